"""Simulated sessions of occluded viewing: the shared test scenes behind occluders, seen by a brain that fills in,
or not.

SIMULATED. How far a brain completes is a number per ROI that we set, kappa, so that an analysis of completion can be
tested against the truth. The response to a scene behind an occluder is

    (1 - kappa) · respond(picture as shown, objects as far as visible)  +  kappa · respond(inferable complete scene)

and the inferable complete scene is one in which every object that is visible at least in part goes on behind the
occluder, while an object that is *wholly* hidden is left out and the background goes on in its place. Nothing here sees
what cannot be inferred. COMPLETION, the default, is an assumption: early cortex is where the literature is split. fMRI
adaptation finds no more than local contours there (Weigelt et al. 2007), later work decodes from V1 on what an occluder
hides (Smith & Muckli 2010; Coggan & Tong 2024, who find it grow along the ventral stream).
"""
from dataclasses import dataclass, replace

import h5py
import numpy as np

from mini_nsd import brain_model, brain_noise, brain_responses, scene_rendering, scene_sampling, scenes
from utils import layout
from utils.completion import completion_index, hidden_content
from utils.occlusion import occluded_pictures
from utils.occlusion import occluded_viewing as oview
from utils.storage import text_files

SEED = 73
COMPLETION = {"early": 0.25, "midventral": 0.5, "midlateral": 0.5, "midparietal": 0.5,
              "ventral": 0.75, "lateral": 0.75, "parietal": 0.5}
GAZE = 0.2              # degrees: sd of fixation in x and in y from trial to trial; trained observers hold 0.1–0.3
SEEN = hidden_content.SEEN  # an object of which no more than this share is in view counts as wholly hidden
BAR, CHECK, SPOT = 0.2, 0.25, 0.4               # image sides
SPOTS = (0.25, 0.5, 0.75)
LID = 0.03              # image sides: margin of the occluder that hides an object wholly
# Fill of each kind: all that an occluder shows is itself.
FILLS = {"bars": 0, "checks": 128, "halves": 0, "spot": 128, "lid": 0}
PAIRS = ("bars_a", "bars_b"), ("checks_a", "checks_b"), ("halves_a", "halves_b")      # what one hides the other shows


def kind(occluder):
    """"bars_a" → "bars"."""
    return occluder.split("_")[0]


def mask(occluder, side):
    """(side, side) bool, True where hidden, of an occluder that depends on no scene:
    bars_a … halves_b, spot_0 … spot_8."""
    x = ((np.arange(side) + 0.5) / side)[None, :] + np.zeros((side, 1))
    y = x.T
    name, which = occluder.split("_")
    if name == "spot":
        row, column = divmod(int(which), len(SPOTS))
        return (np.abs(x - SPOTS[column]) < SPOT / 2) & (np.abs(y - SPOTS[row]) < SPOT / 2)
    hidden = {"bars": x // BAR % 2 == 0, "checks": (x // CHECK + y // CHECK) % 2 == 0, "halves": x < 0.5}[name]
    return hidden if which == "a" else ~hidden


def lid(rendering):
    """(side, side) bool, an ellipse that hides one object wholly; None where it would hide more than half the picture.

    The object is the smallest of those in clear view (`occluded_pictures.CLEAR_SHARE`, `CLEAR_AREA`), and not the only
    one; None where there is none.
    """
    side = rendering.labels.shape[0]
    if len(rendering.amodal) < 2:
        return None
    in_view = np.array([(rendering.labels == position).sum() for position in range(len(rendering.amodal))])
    clear = brain_responses.visibility(rendering) >= occluded_pictures.CLEAR_SHARE
    clear &= in_view >= occluded_pictures.CLEAR_AREA * side ** 2
    if not clear.any():
        return None
    rows, columns = np.nonzero(rendering.labels == int(np.argmin(np.where(clear, in_view, side ** 2))))
    centre = np.array([rows.min() + rows.max() + 1, columns.min() + columns.max() + 1]) / 2
    half = np.sqrt(2) * np.array([np.ptp(rows) + 1, np.ptp(columns) + 1]) / 2 + LID * side
    y, x = np.ogrid[:side, :side]
    hidden = ((y + 0.5 - centre[0]) / half[0]) ** 2 + ((x + 0.5 - centre[1]) / half[1]) ** 2 < 1
    return hidden if hidden.mean() < 0.5 else None


@dataclass(frozen=True)
class View:
    """A scene behind an occluder.

    stimulus    73k id, or any number that names the scene. occluder: bars_a, …, spot_4, lid
    hidden      (side, side) bool. shown: (side, side, 3) uint8, the picture with the occluder in front
    complete    (side, side, 3) uint8, the inferable complete scene
    seen        (objects,) share of each object in view in `shown`
    inferable   (objects,) share of each object in view in `complete`, 0 for one that the occluder hides wholly
    """

    stimulus: int
    scene: scenes.Scene
    occluder: str
    hidden: np.ndarray
    shown: np.ndarray
    complete: np.ndarray
    seen: np.ndarray
    inferable: np.ndarray


def view(stimulus, scene, rendering, occluder, hidden):
    """The View of a rendered scene behind an occluder."""
    shown = rendering.image.copy()
    shown[hidden] = FILLS.get(kind(occluder), 0)
    seen = brain_responses.visibility(rendering, hidden)
    kept = np.flatnonzero(seen > SEEN)
    inferable = np.zeros(len(seen))
    if len(kept) == len(seen):
        complete, inferable = rendering.image, brain_responses.visibility(rendering)
    else:
        without = scene_rendering.render(replace(scene, objects=tuple(scene.objects[k] for k in kept)), len(hidden))
        complete, inferable[kept] = without.image, brain_responses.visibility(without)
    return View(stimulus, scene, occluder, hidden, shown, complete, np.where(seen > SEEN, seen, 0.0), inferable)


def views(stimulus, scene, rendering, spot):
    """The Views of one scene: each of PAIRS, spot number `spot`, and a lid where there is something to hide."""
    names = [name for pair in PAIRS for name in pair] + [f"spot_{spot}"]
    found = [view(stimulus, scene, rendering, name, mask(name, len(rendering.labels))) for name in names]
    covering = lid(rendering)
    return found if covering is None else [*found, view(stimulus, scene, rendering, "lid", covering)]


def unoccluded(stimulus, scene, rendering):
    """The whole scene, as a View that hides nothing."""
    return view(stimulus, scene, rendering, completion_index.WHOLE, np.zeros(rendering.labels.shape, bool))


def shifted(image, gaze):
    """A picture as it falls on the retina when gaze is off by (x, y) image sides, x to the right and y down.

    What moves in from beyond the edge is the scanner's grey screen.
    """
    side = len(image)
    right, down = (-int(round(step * side)) for step in gaze)
    out = np.full_like(image, 128)
    source = image[max(0, -down):side - max(0, down), max(0, -right):side - max(0, right)]
    top, left = max(0, down), max(0, right)
    out[top:top + source.shape[0], left:left + source.shape[1]] = source
    return out


def respond(one, shown, gaze):
    """Noise-free responses to Views, a row each: to what is visible, and to the inferable complete scene.

    one: a `brain.Brain`. shown: n Views. gaze: (n, 2) image sides, where the eye is off the middle of the picture.
    Returns two (n, R) float32, percent signal change. A brain that completes by kappa answers with their mixture.
    """
    looked_at = [replace(each.scene, objects=tuple(replace(thing, x=thing.x - float(x), y=thing.y - float(y))
                                                   for thing in each.scene.objects))
                 for each, (x, y) in zip(shown, gaze)]
    answers = []
    for picture, objects in (("shown", "seen"), ("complete", "inferable")):
        small = np.concatenate([brain_responses.retina(shifted(getattr(each, picture), off)[None])
                                for each, off in zip(shown, gaze)])
        answers.append(brain_responses.respond(one, small, looked_at, [getattr(each, objects) for each in shown]))
    return answers


def kappas(one, completion):
    """(R,) of each ROI voxel. completion: a number for all ROIs, or {ROI: number}."""
    by_roi = completion if isinstance(completion, dict) else dict.fromkeys(layout.ROIS, completion)
    return np.array([by_roi[roi] for roi in layout.ROIS], np.float32)[one.roi - 1]


# ---------------------------------------------------------------------------------------------------------------
# In memory: many data sets from one set of noise-free responses

SIDE = 200              # px: at which views are rendered that only the brain sees; gaze is exact to 0.02 degrees
TRAIN_SEED, TEST_SEED = 74, 75                  # of scenes that are nobody's stimuli
CATEGORIES = scenes.SHAPES + scenes.COLOURS


def annotation(drawn, rendering):
    """(labels, area, kinds) of a scene, as `occluded_pictures.Pictures` has them for one picture.

    labels (SMALL, SMALL) int8; area (objects,): share of the picture; kinds (objects, K), K of CATEGORIES.
    """
    side = len(rendering.labels)
    area = np.maximum(rendering.amodal.sum((1, 2)), 1) / side ** 2
    kinds = np.array([[thing.shape == name for name in scenes.SHAPES]
                      + [thing.colour == name for name in scenes.COLOURS]
                      for thing in drawn.objects], np.uint8)
    return oview.sampled(rendering.labels.astype(np.int8)), area, kinds


def pictures(drawn, renderings):
    """`occluded_pictures.Pictures` of rendered scenes, with their true annotation."""
    noted = [annotation(scene, rendering) for scene, rendering in zip(drawn, renderings)]
    return occluded_pictures.Pictures(oview.small([rendering.image for rendering in renderings]),
                                      np.stack([labels for labels, _, _ in noted]), tuple(area for _, area, _ in noted),
                                      tuple(kinds.astype(float) for _, _, kinds in noted))


@dataclass
class Experiment:
    """Noise-free responses of one brain to an experiment, from which data sets are drawn.

    trained (t, R): to training scenes. whole (REPEATS, m, R): to the whole test scenes, seen between the views.
    visible, filled (REPEATS, v, R): to the views as shown and to the inferable complete scenes; these three with each
    trial's gaze.
    material: `hidden_content.Material`.
    """

    one: brain_model.Brain
    material: hidden_content.Material
    trained: np.ndarray
    whole: np.ndarray
    visible: np.ndarray
    filled: np.ndarray

    @property
    def rows(self):
        """(trials,) training scene of each training trial: three trials for most scenes, two for every fifth."""
        scene = np.repeat(np.arange(len(self.trained)), 3)
        return scene[~((np.arange(len(scene)) % 3 == 2) & (scene % 5 == 0))]

    def noise(self, count, here, rng, factor=1.0):
        """(count, voxels) noise of single trials in the ROI voxels `here`: what `brain_noise.measure` adds, less the
        drift.

        The part that voxels share comes from FIELDS random patterns instead of smooth ones.
        """
        sd = self.one.noise_sd[self.one.anatomy.label > 0][here] * factor
        shared = np.random.default_rng((SEED, 7)).standard_normal((brain_model.FIELDS, len(self.one.roi)))[:, here]
        share = brain_model.NOISE_PARTS["correlated"] / brain_model.FIELDS
        shared = shared.astype(np.float32) * np.float32(np.sqrt(share))
        own = np.float32(np.sqrt(1 - brain_model.NOISE_PARTS["correlated"]))
        return ((own * rng.standard_normal((count, len(sd)), np.float32)
                 + rng.standard_normal((count, brain_model.FIELDS), np.float32) @ shared) * sd.astype(np.float32))


REPEATS = 2             # trials of each view, and of each whole scene between them


def experiment(one, train, test, side=SIDE, gaze=GAZE, seed=0):
    """An Experiment with numbers of training and test scenes; renders at `side` px. gaze: sd, degrees."""
    drawn = [[scene_sampling.sample(which, index) for index in range(count)]
             for which, count in ((TRAIN_SEED, train), (TEST_SEED, test))]
    rendered = [[scene_rendering.render(scene, side) for scene in some] for some in drawn]
    trained = brain_responses.respond(one, [picture.image for picture in rendered[0]], drawn[0],
                                      [brain_responses.visibility(picture) for picture in rendered[0]])
    rng = np.random.default_rng((SEED, 8, seed))
    tests = list(enumerate(zip(drawn[1], rendered[1])))
    shown = [each for index, (scene, rendering) in tests
             for each in views(index, scene, rendering, int(rng.integers(len(SPOTS) ** 2)))]
    answers = [respond(one, shown, rng.normal(0, gaze / brain_model.FIELD, (len(shown), 2))) for _ in range(REPEATS)]
    plain = [unoccluded(index, scene, rendering) for index, (scene, rendering) in tests]
    whole = [respond(one, plain, rng.normal(0, gaze / brain_model.FIELD, (len(plain), 2)))[1] for _ in range(REPEATS)]
    material = hidden_content.prepare(pictures(drawn[0], rendered[0]), pictures(drawn[1], rendered[1]), as_views(shown))
    return Experiment(one, material, trained, np.stack(whole), np.stack([a[0] for a in answers]),
                      np.stack([a[1] for a in answers]))


def as_views(shown):
    """`occluded_pictures.Views` of Views whose stimulus is the row of the test picture; a lid's mask is one of its
    own."""
    return occluded_pictures.Views(np.array([each.stimulus for each in shown]),
                                   np.array([mask_id(each) for each in shown]),
                                   np.stack([oview.sampled(each.hidden) for each in shown]),
                                   oview.small([each.shown for each in shown]))


# ---------------------------------------------------------------------------------------------------------------
# Files: occluded_viewing/, laid out as utils/occlusion/occluded_viewing.py reads it

SCENES = 60             # of the shared test scenes, each behind every occluder
ONSET = 4.0             # seconds from trial to trial, as NSD
SHOWN = 3.0             # seconds a picture stays
SESSION = 101           # a number that no session of NSD has: its noise is its own
README = """SIMULATED DATA

Sessions of occluded viewing by simulated subjects (mini_nsd.occluded_viewing). They saw the shared test scenes behind
occluders and, between them, whole. The share by which each region "completes" what is hidden was set, not measured:
simulated/occluded_viewing.json. How the files are laid out, and how to put a real data set in their place, is in
docs/amodal_completion.md.
"""


def chosen(shared, scale=1.0):
    """73k ids of the test scenes that are shown behind occluders: SCENES · scale of the shared ones, evenly spaced."""
    count = min(len(shared), max(8, round(SCENES * scale)))
    return np.asarray(shared)[np.linspace(0, len(shared) - 1, count).round().astype(int)]


def planned(ids, seed, side):
    """Yield the Views of each of the scenes `ids` of a series `seed`,
    and last the whole picture as a view of nothing hidden."""
    for position, stimulus in enumerate(ids.tolist()):
        scene = scene_sampling.sample(seed, stimulus)
        rendering = scene_rendering.render(scene, side)
        spot = position * 4 % len(SPOTS) ** 2           # 4 and 9 share no factor: every place equally often
        yield [*views(stimulus, scene, rendering, spot), unoccluded(stimulus, scene, rendering)]


def mask_id(each):
    """The name of a View's mask: its occluder, but a lid is its scene's own."""
    return f"lid_{each.stimulus}" if each.occluder == "lid" else each.occluder


def write_stimuli(root, ids, seed, side):
    """shown.hdf5: every view as it was shown, (side, side, 3), and every mask. For a worker."""
    path = root / oview.SHOWN_KEY
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"compression": "gzip", "compression_opts": 1}
    stimuli, names = [], []
    with h5py.File(path, "w") as file:
        images = file.create_dataset("imgBrick", (0, side, side, 3), np.uint8, maxshape=(None, side, side, 3),
                                     chunks=(1, side, side, 3), **options)
        for of_scene in planned(ids, seed, side):
            images.resize(len(images) + len(of_scene), axis=0)
            for row, each in enumerate(of_scene, start=len(images) - len(of_scene)):
                images[row] = each.shown
                stimuli.append(each.stimulus)
                names.append(mask_id(each))
                if each.occluder != completion_index.WHOLE and f"masks/{names[-1]}" not in file:
                    file.create_dataset(f"masks/{names[-1]}", data=each.hidden, chunks=each.hidden.shape, **options)
        file["stim_ids"] = np.array(stimuli, np.int64)
        file["mask_ids"] = np.array(names, object)
        file.attrs["note"] = "SIMULATED by mini_nsd"


def write_objects(root, noted):
    """objects.hdf5: true annotation of every stimulus. noted {73k id: (labels, area, kinds)}, see `annotation`."""
    most = max(len(area) for _, area, _ in noted.values())
    ids = sorted(noted)
    path = root / oview.OBJECTS_KEY
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("labels", data=np.stack([noted[k][0] for k in ids]), chunks=(1, *noted[ids[0]][0].shape),
                            compression="gzip", compression_opts=1)
        file["stim_ids"] = np.array(ids, np.int64)
        file["area"] = np.stack([np.pad(noted[k][1], (0, most - len(noted[k][1])), constant_values=np.nan)
                                 for k in ids])
        file["kinds"] = np.stack([np.pad(noted[k][2], ((0, most - len(noted[k][2])), (0, 0))) for k in ids])
        file.attrs["categories"] = list(CATEGORIES)
        file.attrs["note"] = "SIMULATED by mini_nsd"


def write_session(root, one, ids, seed, noise, completes, gaze, save):
    """A subject's events and betas, in a worker. completes: {ROI: kappa}. gaze: sd, degrees.
    save(path, volume): as NIfTI.

    Every view comes once in the first half of the session and once in the second, in random orders.
    """
    number = brain_model.SUBJECTS[one.subject].number
    rng = np.random.default_rng((SEED, 9, number))
    shown = [each for of_scene in planned(ids, seed, SIDE) for each in of_scene]
    trials = [shown[k] for _ in range(REPEATS) for k in rng.permutation(len(shown))]
    off = rng.normal(0, gaze / brain_model.FIELD, (len(trials), 2)) if gaze else np.zeros((len(trials), 2))
    visible, filled = respond(one, trials, off)
    kappa = kappas(one, completes)
    measured = brain_noise.measure(one, (1 - kappa) * visible + kappa * filled, np.arange(len(trials)) + 1_000_000,
                                   SESSION,
                                   noise)
    betas = np.clip(np.rint(300 * measured), -32768, 32767).astype(np.int16)
    volume = np.zeros((int(np.prod(one.anatomy.shape)), len(betas)), np.int16)
    volume[one.anatomy.flat] = betas.T
    save(root / oview.betas_key(one.subject), volume.reshape(*one.anatomy.shape, len(betas)))
    lines = ["\t".join(oview.COLUMNS)]
    for trial, (each, (x, y)) in enumerate(zip(trials, off * brain_model.FIELD)):
        whole = each.occluder == completion_index.WHOLE
        lines.append("\t".join([f"{trial * ONSET:.1f}", f"{SHOWN:.1f}", "whole" if whole else "occluded",
                                str(each.stimulus), kind(each.occluder), "n/a" if whole else mask_id(each), f"{x:.3f}",
                                f"{y:.3f}"]))
    text_files.write_text(root / oview.events_key(one.subject), "\n".join(lines) + "\n")


def write_description(root, completes, gaze):
    """What a reader must know first: dataset_description.json, README; and the truth, beside the rest of it."""
    folder = root / oview.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    text_files.write_text(folder / "README", README)
    text_files.write_json(folder / "dataset_description.json", {
        "Name": "SIMULATED occluded viewing", "BIDSVersion": "1.9.0", "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "mini_nsd", "Description": "forward model, nobody was measured"}]})
    (root / oview.TRUTH_KEY).parent.mkdir(parents=True, exist_ok=True)
    text_files.write_json(root / oview.TRUTH_KEY, {"SIMULATED": "ground truth of mini_nsd.occluded_viewing",
                                                   "completion": completes, "gaze_sd_degrees": gaze})
