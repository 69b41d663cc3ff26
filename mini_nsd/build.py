"""Write a simulated dataset in the Natural Scenes Dataset's formats: stimuli, captions, design, atlas and betas.

SIMULATED: the pictures are rendered, the subjects do not exist, their activity comes from the forward model in
mini_nsd/brain.py. Keys, dtypes, orientation and 1-based ids are NSD's; the volumes are smaller and the sessions fewer.

Reads   nothing
Writes  DIR/nsddata/, DIR/nsddata_betas/, DIR/nsddata_stimuli/ as NSD has them; DIR/occluded_viewing/ with sessions in
        which the test scenes were seen behind occluders; DIR/simulated/ with the ground truth
"""
import argparse
import contextlib
import csv
import io
import json
import os
import shutil
import signal
import threading
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path

import h5py
import nibabel
import numpy as np
import scipy.io

from mini_nsd import brain, occluded_viewing, scenes
from utils import __version__, cli, layout, system
from utils.errors import Problem
from utils.nsd import atlases
from utils.storage import locks, text_files

SEED = 73                       # of the stimuli's scenes; the models were trained on others
SIDE = 425                      # px, as NSD
VOXEL = 1.8                     # mm
TRIALS = 750                    # a session, as NSD
SESSIONS = {"subj01": 4, "subj02": 2}
IMAGES = 1060                   # a subject's images; NSD: 10,000
SHARED = 130                    # of them, seen by every subject; NSD: 1,000
UNSEEN = 20                     # images that nobody saw
REPEATS = 3
RUNS = 12                       # a session, as NSD
DIFFICULTY = {"easy": 0.5, "default": 1.0, "hard": 2.0}         # factors on the noise
DEPTH_SIDE = 96                 # px of the true depth maps
WORKERS = 2
CAPTIONS = 5                    # an image, as COCO
MORE_CAPTIONS = {7: 6, 57: 7}   # of a hundred images these two have more, as some of COCO's do
STRAY = (" {}", "{} ", "{}\n")  # blanks around every seventh image's captions, such as COCO's have
RESPONSES = ("SUBJECT SESSION RUN TRIAL 73KID 10KID TIME ISOLD ISCORRECT RT CHANGEMIND MEMORYRECENT MEMORYFIRST "
             "ISOLDCURRENT ISCORRECTCURRENT TOTAL1 TOTAL2 BUTTON MISSINGDATA").split()
BETAS = "nsddata_betas/ppdata/{}/func1pt8mm/betas_fithrf_GLMdenoise_RR"
MARKER = "simulated/world.json"
NOTICE = """SIMULATED DATA

Everything below this folder is simulated by mini_nsd (python -m mini_nsd.build). It follows the file formats of the
Natural Scenes Dataset so that a pipeline can be exercised end to end, and holds nothing of it: the pictures are
rendered, the captions generated, the subjects and their behaviour made up, the "betas" computed by a forward model with
noise. Do not report results from it as findings about brains. The folder simulated/ holds the ground truth; the
options that this world was built with are in simulated/world.json.
"""


@dataclass(frozen=True)
class Design:
    """Who sees what when. All ids are 0-based here and 1-based in the files.

    shared (n,)             73k ids seen by every subject, ascending
    images {subject: (k,)}  73k id of each of the subject's images, the shared ones first (the order of NSD's 10k ids)
    order (trials,)         position in `images` that each trial shows; the same for every subject, as in NSD
    session                 trials a session
    count                   stimuli in all
    """

    shared: np.ndarray
    images: dict
    order: np.ndarray
    session: int
    count: int

    def sessions(self, subject):
        """Ranges of trials, one a session."""
        return [range(start, start + self.session)
                for start in range(0, self.session * SESSIONS[subject], self.session)]

    def stimuli(self, subject):
        """(trials,) 73k id of each trial that the subject did."""
        return self.images[subject][self.order[:self.session * SESSIONS[subject]]]


def design(scale=1.0):
    """The experiment; `scale` shrinks its sessions and its images alike."""
    rng = np.random.default_rng((SEED, 1))
    session = max(24, round(TRIALS * scale))
    trials = session * max(SESSIONS.values())
    images = round(trials * IMAGES / (TRIALS * max(SESSIONS.values())))
    shared = round(images * SHARED / IMAGES)

    # Most images come three times, some twice, a few once.
    excess = REPEATS * images - trials
    once = excess // 6
    repeats = np.full(images, REPEATS)
    fewer = rng.permutation(images)
    repeats[fewer[:once]] = 1
    repeats[fewer[once:once + excess - 2 * once]] = 2
    order = rng.permutation(np.repeat(np.arange(images), repeats))

    own = images - shared
    unseen = max(2, round(UNSEEN * scale))
    ids = rng.permutation(shared + own * len(SESSIONS) + unseen)
    common, rest = np.sort(ids[:shared]), ids[shared:]
    seen = {subject: np.concatenate([common, rest[k * own:(k + 1) * own]]) for k, subject in enumerate(SESSIONS)}
    return Design(common, seen, order, session, len(ids))


# ---------------------------------------------------------------------------------------------------------------
# Experiment: nsddata/experiments, nsddata/ppdata/*/behav


def write_expdesign(root, plan):
    """nsd_expdesign.mat, 1-based. Rows of `subjectim` for the subjects that are not simulated are zeros."""
    subjectim = np.zeros((len(layout.SUBJECTS), plan.order.max() + 1), np.int32)
    for subject, images in plan.images.items():
        subjectim[layout.SUBJECTS.index(subject)] = images + 1
    content = {"sharedix": plan.shared[None].astype(np.int32) + 1, "subjectim": subjectim,
               "masterordering": plan.order[None].astype(np.int32) + 1}
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, content)
    # The format opens with 116 characters of free text, where scipy puts the time: one world, one set of bytes.
    text = "MATLAB 5.0 MAT-file, SIMULATED by mini_nsd".ljust(116).encode()
    path = _made(root / "nsddata/experiments/nsd/nsd_expdesign.mat")
    path.write_bytes(text + buffer.getvalue()[len(text):])


def coco_ids(plan):
    """cocoId (n,) and cocoSplit (n,) of each stimulus: made up, none is the image that COCO has under that id."""
    rng = np.random.default_rng((SEED, 2))
    ids = rng.choice(np.arange(1, 581930), plan.count, replace=False)
    return ids, np.where(rng.random(plan.count) < 0.05, "val2017", "train2017")


def write_stim_info(root, plan):
    """nsd_stim_info_merged.csv; `subjectN_repM` is the 1-based trial, 0 for none, and covers the whole design."""
    ids, splits = coco_ids(plan)
    numbers = range(1, len(layout.SUBJECTS) + 1)
    trials = {subject: _trials_of(plan, subject) for subject in plan.images}
    shared = set(plan.shared.tolist())
    with open(_made(root / "nsddata/experiments/nsd/nsd_stim_info_merged.csv"), "w", newline="",
              encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["", "cocoId", "cocoSplit", "cropBox", "loss", "nsdId", "flagged", "BOLD5000", "shared1000",
                         *(f"subject{n}" for n in numbers), *(f"subject{n}_rep{k}" for n in numbers for k in range(3))])
        for stimulus in range(plan.count):
            shown = [trials.get(subject, {}).get(stimulus, []) for subject in layout.SUBJECTS]
            writer.writerow([stimulus, ids[stimulus], splits[stimulus], "(0, 0, 0, 0)", 0.0, stimulus, False, False,
                             stimulus in shared, *(int(bool(of)) for of in shown),
                             *(number for of in shown for number in (of + [0] * REPEATS)[:REPEATS])])


def _trials_of(plan, subject):
    """{73k id: its 1-based trials in the design}."""
    found = {}
    for trial, stimulus in enumerate(plan.images[subject][plan.order], start=1):
        found.setdefault(int(stimulus), []).append(trial)
    return found


def write_responses(root, plan, subject):
    """responses.tsv with NSD's columns. The answers to "seen before?" are made up: 85% right, RT about 0.8 s."""
    rng = np.random.default_rng((SEED, 3, layout.SUBJECTS.index(subject)))
    starts = np.linspace(0, plan.session, RUNS + 1).round().astype(int)[1:]     # 63 and 62 trials in turn, as NSD
    rows, before = [], {}
    for session, trials in enumerate(plan.sessions(subject), start=1):
        run, in_run, latest = 1, 0, {}
        for position, trial in enumerate(trials):
            if position == starts[run - 1]:
                run, in_run = run + 1, 0
            in_run += 1
            image = int(plan.order[trial])
            seen = before.setdefault(image, [])
            old, recent = bool(seen), image in latest
            says_old = old == (rng.random() < 0.85)
            pressed = rng.random() > 0.005
            time = 7 * (session - 1) + 0.5 + (run - 1) * 6.5 / 1440 + in_run * 4 / 86400
            answer = [int(says_old == old), f"{800 * np.exp(0.25 * rng.standard_normal()):.6f}",
                      int(rng.random() < 0.02)] if pressed else ["NaN"] * 3
            # NSD leaves MEMORYFIRST blank at the second presentation, where it would repeat MEMORYRECENT.
            memory = [trial - seen[-1] - 1, trial - seen[0] - 1 if len(seen) > 1 else ""] if old else ["NaN"] * 2
            current = int(says_old == recent) if pressed else "NaN"
            buttons = [int(pressed and not says_old), int(pressed and says_old), 1 + says_old if pressed else "NaN"]
            rows.append([layout.SUBJECTS.index(subject) + 1, session, run, in_run, plan.images[subject][image] + 1,
                         image + 1, f"{time:.9f}", int(old), *answer, *memory, int(recent), current, *buttons, 0])
            seen.append(trial)
            latest[image] = trial
    with open(_made(root / f"nsddata/ppdata/{subject}/behav/responses.tsv"), "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(RESPONSES)
        writer.writerows(rows)


# ---------------------------------------------------------------------------------------------------------------
# Stimuli: nsddata_stimuli, and their ground truth


def draw(index):
    """One stimulus, in a worker: its chunk of the HDF5 file, the small picture, visibilities, depth and annotation."""
    drawn = scenes.sample(SEED, index)
    picture = scenes.render(drawn, SIDE)
    nearest = ((np.arange(DEPTH_SIDE) + 0.5) * SIDE / DEPTH_SIDE).astype(int)
    depth = picture.depth[np.ix_(nearest, nearest)].astype(np.float16)
    return (zlib.compress(picture.image.tobytes(), 4), brain.retina(picture.image[None])[0],
            brain.visibility(picture), zlib.compress(depth.tobytes(), 4), occluded_viewing.annotation(drawn, picture))


def write_stimuli(root, plan, pool, advance):
    """nsd_stimuli.hdf5 and the true depth maps. Returns small pictures (n, …),
    the objects' visibilities and annotation."""
    pictures, visible, noted = [], [], {}
    stimuli = _made(root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5")
    truth = _made(root / "simulated/depth.hdf5")
    with h5py.File(stimuli, "w") as images, h5py.File(truth, "w") as depths:
        bricks = images.create_dataset("imgBrick", (plan.count, SIDE, SIDE, 3), np.uint8, chunks=(1, SIDE, SIDE, 3),
                                       compression="gzip", compression_opts=4)
        maps = depths.create_dataset("depth", (plan.count, DEPTH_SIDE, DEPTH_SIDE), np.float16,
                                     chunks=(1, DEPTH_SIDE, DEPTH_SIDE), compression="gzip", compression_opts=4)
        maps.attrs["unit"] = "metres from the camera, larger is farther; SIMULATED, true by construction"
        for index, (image, small, seen, depth, objects) in enumerate(pool.map(draw, range(plan.count), chunksize=8)):
            # The workers have compressed the chunks; HDF5 would do it again in this process.
            bricks.id.write_direct_chunk((index, 0, 0, 0), image)
            maps.id.write_direct_chunk((index, 0, 0), depth)
            pictures.append(small)
            visible.append(seen)
            noted[index] = objects
            advance()
    return np.stack(pictures), visible, noted


def captions(index):
    """A stimulus's captions: five, or up to seven; some with stray blanks."""
    scene = scenes.sample(SEED, index)
    said = scenes.captions(scene, CAPTIONS)
    said += scenes.captions(scene, MORE_CAPTIONS.get(index % 100, CAPTIONS))[CAPTIONS:]
    return [STRAY[n % len(STRAY)].format(caption) for n, caption in enumerate(said)] if index % 7 == 3 else said


def write_captions(root, plan):
    """captions_{train,val}2017.json in COCO's structure, five to seven captions an image."""
    ids, splits = coco_ids(plan)
    for split in ("train2017", "val2017"):
        here = np.flatnonzero(splits == split)
        images = [{"license": 1, "file_name": f"{ids[k]:012}.jpg", "coco_url": "", "height": SIDE, "width": SIDE,
                   "date_captured": "", "flickr_url": "", "id": int(ids[k])} for k in here]
        annotations = [{"image_id": int(ids[k]), "id": int(max(MORE_CAPTIONS.values()) * k + n + 1), "caption": caption}
                       for k in here for n, caption in enumerate(captions(int(k)))]
        content = {"info": {"description": "SIMULATED captions by mini_nsd, in COCO's structure", "url": "",
                            "version": __version__, "year": 2017, "contributor": "mini_nsd", "date_created": ""},
                   "licenses": [{"url": "", "id": 1, "name": "simulated, no rights reserved"}],
                   "images": images, "annotations": annotations}
        path = _made(root / f"nsddata_stimuli/stimuli/nsd/annotations/captions_{split}.json")
        text_files.write_text(path, json.dumps(content) + "\n")


def write_scenes(root, plan, visible):
    """simulated/scenes.json: what is in each stimulus, and how much of each object is in view."""
    content = [{"nsdId": index, "visible": np.round(visible[index], 4).tolist()}
               | scenes.describe(scenes.sample(SEED, index)) for index in range(plan.count)]
    text_files.write_text(root / "simulated/scenes.json", json.dumps(content) + "\n")


# ---------------------------------------------------------------------------------------------------------------
# Brains: nsddata/ppdata/*/func1pt8mm, nsddata/freesurfer, nsddata_betas


def save_volume(path, volume):
    """A NIfTI with NSD's orientation: 1.8 mm voxels, axes right, front, up, the origin in the middle of the volume.

    As in NSD's files the affine stands in the sform, with code 1, and pixdim[0] is 0.
    """
    affine = np.diag([VOXEL, VOXEL, VOXEL, 1.0])
    affine[:3, 3] = -VOXEL * (np.array(volume.shape[:3]) - 1) / 2
    image = nibabel.Nifti1Image(volume, affine)
    image.header.set_sform(affine, code=1)
    image.header["pixdim"][0] = 0
    image.header["descrip"] = b"SIMULATED by mini_nsd"
    nibabel.save(image, _made(path))


def write_atlas(root, one):
    """The label volumes with their tables, and the brain mask. In NSD's volumes -1 is what is not cortex.

    As in NSD, label volumes are float64, come also by hemisphere, have a table in the subject's and in fsaverage's
    folder, and its lines end in tabs.
    """
    anatomy = one.anatomy
    folder = root / f"nsddata/ppdata/{one.subject}/func1pt8mm"
    save_volume(folder / "brainmask.nii.gz", anatomy.volume(1, np.int16))
    in_roi = anatomy.label > 0
    visual = anatomy.label.clip(max=0)
    visual[in_roi] = one.tuning.visual_roi
    # NSD drew nsdgeneral by hand around the posterior voxels that respond; here it is the nearer part of the ROIs.
    general = anatomy.label.clip(max=0)
    general[in_roi] = anatomy.pole[in_roi] <= np.quantile(anatomy.pole[in_roi], 0.75)
    for name, labels, table in (("streams", anatomy.label, layout.ROIS),
                                ("prf-visualrois", visual, brain.VISUAL_ROIS),
                                ("nsdgeneral", general, ("nsdgeneral",))):
        left = anatomy.place[:, 0] < 0
        for prefix, here in (("", np.ones_like(left)), ("lh.", left), ("rh.", ~left)):
            save_volume(folder / f"roi/{prefix}{name}.nii.gz",
                        anatomy.volume(np.where(here, labels, -1), np.float64, outside=-1))
        lines = [f"{label} {entry}\t\n" for label, entry in enumerate(("Unknown", *table))]
        for owner in (one.subject, "fsaverage"):
            text_files.write_text(root / f"nsddata/freesurfer/{owner}/label/{name}.mgz.ctab", "".join(lines))


def write_session(root, one, noise, session, trials, responses, hdf5):
    """One betas_sessionNN.nii.gz, in a worker; with hdf5 also NSD's HDF5 of the same.
    Returns the brain's (trials, V) int16.

    The HDF5 is as NSD's own export code makes it: /betas (trials, z, y, x) int16, uncompressed, a chunk a voxel.
    """
    measured = brain.measure(one, responses, trials, session, noise)
    betas = np.clip(np.rint(300 * measured), -32768, 32767).astype(np.int16)
    if session == brain.CLIPPED_SESSION:
        betas[:, brain.clipped(one)] = 0
    volume = np.zeros((int(np.prod(one.anatomy.shape)), len(betas)), np.int16)
    volume[one.anatomy.flat] = betas.T
    volume = volume.reshape(*one.anatomy.shape, len(betas))
    path = root / BETAS.format(one.subject) / f"betas_session{session:02}.nii.gz"
    save_volume(path, volume)
    if hdf5:
        with h5py.File(path.with_name(path.name.replace(".nii.gz", ".hdf5")), "w") as file:
            file.create_dataset("betas", data=volume.T, chunks=(len(betas), 1, 1, 1))
    return betas


def write_subject(root, plan, one, noise, pictures, visible, pool, advance, hdf5):
    """A subject's betas and their ncsnr. Returns the ncsnr of the brain voxels, (V,),
    NaN where a session is missing."""
    ids = plan.stimuli(one.subject)
    seen, rows = np.unique(ids, return_inverse=True)
    shown = [scenes.sample(SEED, int(stimulus)) for stimulus in seen]
    responses = brain.respond(one, pictures[seen], shown, [visible[stimulus] for stimulus in seen])
    tasks = []
    for session, trials in enumerate(plan.sessions(one.subject), start=1):
        tasks.append(pool.submit(write_session, root, one, noise, session, trials, responses[rows[trials]], hdf5))
        tasks[-1].add_done_callback(lambda _: advance())
    ratio = ncsnr([task.result() for task in tasks], ids)
    ratio[brain.clipped(one)] = np.nan
    save_volume(root / BETAS.format(one.subject) / "ncsnr.nii.gz",
                one.anatomy.volume(ratio, np.float32, outside=np.nan))
    return ratio


def ncsnr(sessions, ids):
    """NSD's noise-ceiling signal-to-noise ratio, (V,) float32 (Allen et al. 2022, Methods; NSD data manual).

    sessions: list of (trials, V) betas; ids: (all trials,) stimulus of each trial. Betas are z-scored within each
    session; noise variance is that of a stimulus's trials about their mean, signal variance is what is left of 1, at
    least 0. NSD averages the variance over images with three trials; here it is pooled over those with two or three,
    because subj02's sessions leave few with three.
    """
    z = np.concatenate([_zscore(betas) for betas in sessions])
    order = np.argsort(ids, kind="stable")
    _, first, counts = np.unique(ids[order], return_index=True, return_counts=True)
    sums = np.add.reduceat(z[order], first, axis=0)
    within = (z ** 2).sum(0) - (sums ** 2 / counts[:, None])[counts > 1].sum(0) - (sums[counts == 1] ** 2).sum(0)
    noise = within / (counts - 1).sum()
    return np.sqrt(np.maximum(1 - noise, 0) / np.maximum(noise, 1e-6)).astype(np.float32)


def _zscore(betas):
    centred = betas - betas.mean(0, dtype=np.float32)
    return centred / np.maximum(centred.std(0), 1e-6)


def write_truth(root, plan, brains, options, ratios):
    """simulated/truth.json: the forward model's parameters, voxel by voxel."""
    content = {"SIMULATED": "ground truth of mini_nsd's forward model", "options": options,
               "model": {"components": brain.COMPONENTS, "shares": brain.SHARES, "noise_parts": brain.NOISE_PARTS,
                         "noise_only": brain.NOISE_ONLY, "field_degrees": brain.FIELD}}
    for subject, one in brains.items():
        repeats = Counter(Counter(plan.stimuli(subject).tolist()).values())
        tuning = one.tuning
        columns = {"ijk": np.stack(np.unravel_index(one.anatomy.flat[one.anatomy.label > 0], one.anatomy.shape), 1),
                   "roi": one.roi, "true_ncsnr": one.ncsnr(options["noise"]), "signal_sd": one.signal_sd,
                   "baseline": one.baseline, "centre": tuning.centre, "field": tuning.field, "window": tuning.window,
                   "weight": tuning.weight, "ncsnr": ratios[subject][one.anatomy.label > 0]}
        content[subject] = {"sessions": SESSIONS[subject], "shape": one.anatomy.shape, "rois": layout.ROIS,
                            "stimuli_by_repeats": {str(key): repeats[key] for key in sorted(repeats)},
                            "voxels": {name: np.round(np.asarray(values, float), 4).tolist()
                                       for name, values in columns.items()}}
    text_files.write_text(root / "simulated/truth.json", json.dumps(content) + "\n")


# ---------------------------------------------------------------------------------------------------------------
# The whole


def build(folder, subjects=tuple(SESSIONS), noise=1.0, scale=1.0, workers=WORKERS, completes=None,
          gaze=occluded_viewing.GAZE, hdf5=False):
    """Write the world to `folder`. Returns False if it was there already, made with the same options.

    noise: factor on the noise of every voxel. scale: share of the trials, images and voxels (tests use a tiny world).
    completes: {ROI: how far the brain completes what an occluder hides}, default `occluded_viewing.COMPLETION`. gaze:
    sd of fixation in the sessions of occluded viewing, degrees. hdf5: also write the betas as HDF5, as NSD has them.
    Raises Problem if the folder holds something else. A build that is killed leaves no world: all is written to a
    hidden folder beside it, which the next build clears.
    """
    folder = Path(folder).resolve()
    completes = completes or occluded_viewing.COMPLETION
    options = {"subjects": sorted(subjects), "noise": noise, "scale": scale, "version": __version__,
               "completion": completes, "gaze": gaze, "hdf5": hdf5}
    if (folder / MARKER).exists():
        found = text_files.read_json(folder / MARKER)["options"]
        if found != options:
            differ = sorted(key for key in options if found.get(key) != options[key])
            raise Problem(f"{folder} holds a simulated world built with "
                          f"{_named(found, differ)}, not {_named(options, differ)}",
                          "name another folder, or delete this one")
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Problem(f"{folder} is there and is not a simulated world", "name a new or an empty folder")

    plan = design(scale)
    with _beside(folder) as root:
        steps = plan.count + sum(SESSIONS[subject] + 1 for subject in subjects) + 1
        behind = occluded_viewing.chosen(plan.shared, scale), SEED
        with _workers(workers) as pool, cli.progress(total=steps, desc="simulated NSD", unit="step") as bar:
            pictures, visible, noted = write_stimuli(root, plan, pool, bar.update)
            later = [pool.submit(occluded_viewing.write_stimuli, root, *behind, SIDE)]
            brains, ratios = {}, {}
            for subject in options["subjects"]:
                brains[subject] = brain.make(subject, scale)
                write_atlas(root, brains[subject])
                write_responses(root, plan, subject)
                later.append(pool.submit(occluded_viewing.write_session, root, brains[subject], *behind, noise,
                                         completes, gaze, save_volume))
                ratios[subject] = write_subject(root, plan, brains[subject], noise, pictures, visible, pool, bar.update,
                                                hdf5)
            for task in later:
                task.result()
                bar.update()
        occluded_viewing.write_objects(root, noted)
        occluded_viewing.write_description(root, completes, gaze)
        write_expdesign(root, plan)
        write_stim_info(root, plan)
        write_captions(root, plan)
        write_scenes(root, plan, visible)
        write_truth(root, plan, brains, options, ratios)
        text_files.write_text(root / "SIMULATED.txt", NOTICE)
        summary = {subject: _summary(brains[subject], ratios[subject]) for subject in brains}
        text_files.write_json(root / MARKER, {"options": options, "stimuli": plan.count, "noise_ceilings": summary})
    return True


def _summary(one, ratio):
    """Mean noise ceiling in percent (three trials) by ROI, and over all ROI voxels."""
    ceiling = atlases.noise_ceiling(ratio, REPEATS)
    by_roi = {roi: round(float(np.nanmean(ceiling[one.anatomy.label == k])), 1) for k, roi in enumerate(layout.ROIS, 1)}
    return by_roi | {"all": round(float(np.nanmean(ceiling[one.anatomy.label > 0])), 1)}


def _named(options, keys):
    return ", ".join(f"{key} {options.get(key)}" for key in keys)


def _made(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def _workers(count):
    """A pool of processes that drops what is queued if the block fails."""
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_enter_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _enter_worker():
    """Leave Ctrl-C to the parent, and end with it, also where it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(parent_process(),), daemon=True).start()


def _follow(parent):
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _beside(folder):
    """A hidden folder beside `folder` that takes its name if the block ends well, and goes if it does not."""
    hidden = folder.with_name(f".{folder.name}.building")
    with contextlib.ExitStack() as building:
        try:
            building.enter_context(locks.alone(hidden.parent, hidden.name, wait=False))
        except locks.Held as error:
            raise Problem(f"another build is writing {folder}", "wait for it, or name another folder") from error
        if hidden.exists():
            shutil.rmtree(hidden)
        hidden.mkdir()
        try:
            yield hidden
            if folder.exists():
                folder.rmdir()  # an empty folder, which Windows does not rename over
            system.replace(hidden, folder)
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m mini_nsd.build", description=__doc__,
                                     epilog="example:\n  python -m mini_nsd.build demo/nsd --difficulty easy",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="new or empty folder for the simulated dataset")
    harder = parser.add_mutually_exclusive_group()
    harder.add_argument("--difficulty", choices=DIFFICULTY, default="default",
                        help="noise half of, like, or double the default, which gives noise ceilings like NSD's")
    harder.add_argument("--noise", type=_positive, metavar="X", help="the same as a factor")
    parser.add_argument("--completion", type=_share, metavar="K",
                        help="how far every ROI completes what an occluder hides, 0 … 1 (default: by ROI, 0.25 … 0.75)")
    parser.add_argument("--gaze", type=_degrees, default=occluded_viewing.GAZE, metavar="DEG",
                        help=f"sd of fixation in the sessions of occluded viewing (default: {occluded_viewing.GAZE})")
    parser.add_argument("--hdf5", action="store_true",
                        help="also write the betas as HDF5, as NSD has them beside the NIfTI")
    parser.add_argument("--subjects", nargs="+", choices=SESSIONS, default=list(SESSIONS), metavar="subjNN",
                        help=f"which of {' '.join(SESSIONS)} (default: all)")
    parser.add_argument("--scale", type=partial(_positive, most=1.0), default=1.0, metavar="S",
                        help="share of the trials, images and voxels, for a tinier world in tests (default: 1)")
    parser.add_argument("--workers", type=int, default=WORKERS, metavar="N",
                        help=f"processes; the world is the same with any number (default: {WORKERS})")
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    args = cli.parse(parser, argv)
    if args.workers < 1:
        parser.error("--workers must be at least 1")

    noise = DIFFICULTY[args.difficulty] if args.noise is None else args.noise
    completes = None if args.completion is None else dict.fromkeys(layout.ROIS, args.completion)
    made = build(args.folder, tuple(dict.fromkeys(args.subjects)), noise, args.scale, args.workers, completes,
                 args.gaze, args.hdf5)
    found = text_files.read_json(args.folder / MARKER)
    cli.say(f"{args.folder} {'now holds' if made else 'already holds'} this simulated world: "
            f"{found['stimuli']} stimuli, noise {noise:g}")
    for subject, ceilings in found["noise_ceilings"].items():
        print(f"{subject}: simulated noise ceiling {ceilings['all']:.1f}% on average over the ROI voxels")


def _positive(text, most=float("inf")):
    value = float(text)
    if not 0 < value <= most:
        raise argparse.ArgumentTypeError(f"must be above 0{'' if most == float('inf') else f' and at most {most:g}'}")
    return value


def _share(text):
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must be from 0 to 1")
    return value


def _degrees(text):
    value = float(text)
    if not 0 <= value <= brain.FIELD / 4:
        raise argparse.ArgumentTypeError(f"must be from 0 to {brain.FIELD / 4:g}")
    return value


if __name__ == "__main__":
    cli.run(main)
