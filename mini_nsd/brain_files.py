"""The subjects' volumes (nsddata/ppdata, nsddata/freesurfer, nsddata_betas), and the truth behind them."""
import json
from collections import Counter

import h5py
import nibabel
import numpy as np

from mini_nsd import brain_model, brain_noise, brain_responses, scene_sampling, world_sizes
from utils import layout
from utils.storage import text_files


def save_volume(path, volume):
    """A NIfTI with NSD's orientation: 1.8 mm voxels, axes right, front, up, the origin in the middle of the volume.

    As in NSD's files the affine stands in the sform, with code 1, and pixdim[0] is 0.
    """
    affine = np.diag([world_sizes.VOXEL, world_sizes.VOXEL, world_sizes.VOXEL, 1.0])
    affine[:3, 3] = -world_sizes.VOXEL * (np.array(volume.shape[:3]) - 1) / 2
    image = nibabel.Nifti1Image(volume, affine)
    image.header.set_sform(affine, code=1)
    image.header["pixdim"][0] = 0
    image.header["descrip"] = b"SIMULATED by mini_nsd"
    nibabel.save(image, world_sizes.for_writing(path))


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
                                ("prf-visualrois", visual, brain_model.VISUAL_ROIS),
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
    measured = brain_noise.measure(one, responses, trials, session, noise)
    betas = np.clip(np.rint(300 * measured), -32768, 32767).astype(np.int16)
    if session == brain_model.CLIPPED_SESSION:
        betas[:, brain_noise.clipped(one)] = 0
    volume = np.zeros((int(np.prod(one.anatomy.shape)), len(betas)), np.int16)
    volume[one.anatomy.flat] = betas.T
    volume = volume.reshape(*one.anatomy.shape, len(betas))
    path = root / world_sizes.BETAS.format(one.subject) / f"betas_session{session:02}.nii.gz"
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
    shown = [scene_sampling.sample(world_sizes.SEED, int(stimulus)) for stimulus in seen]
    responses = brain_responses.respond(one, pictures[seen], shown, [visible[stimulus] for stimulus in seen])
    tasks = []
    for session, trials in enumerate(plan.sessions(one.subject), start=1):
        tasks.append(pool.submit(write_session, root, one, noise, session, trials, responses[rows[trials]], hdf5))
        tasks[-1].add_done_callback(lambda _: advance())
    ratio = ncsnr([task.result() for task in tasks], ids)
    ratio[brain_noise.clipped(one)] = np.nan
    save_volume(root / world_sizes.BETAS.format(one.subject) / "ncsnr.nii.gz",
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
               "model": {"components": brain_model.COMPONENTS, "shares": brain_model.SHARES,
                         "noise_parts": brain_model.NOISE_PARTS,
                         "noise_only": brain_model.NOISE_ONLY, "field_degrees": brain_model.FIELD}}
    for subject, one in brains.items():
        repeats = Counter(Counter(plan.stimuli(subject).tolist()).values())
        tuning = one.tuning
        columns = {"ijk": np.stack(np.unravel_index(one.anatomy.flat[one.anatomy.label > 0], one.anatomy.shape), 1),
                   "roi": one.roi, "true_ncsnr": one.ncsnr(options["noise"]), "signal_sd": one.signal_sd,
                   "baseline": one.baseline, "centre": tuning.centre, "field": tuning.field, "window": tuning.window,
                   "weight": tuning.weight, "ncsnr": ratios[subject][one.anatomy.label > 0]}
        content[subject] = {"sessions": world_sizes.SESSIONS[subject], "shape": one.anatomy.shape, "rois": layout.ROIS,
                            "stimuli_by_repeats": {str(key): repeats[key] for key in sorted(repeats)},
                            "voxels": {name: np.round(np.asarray(values, float), 4).tolist()
                                       for name, values in columns.items()}}
    text_files.write_text(root / "simulated/truth.json", json.dumps(content) + "\n")
