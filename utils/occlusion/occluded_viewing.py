"""Sessions of occluded viewing, simulated or real, beside NSD's keys
(docs/amodal_completion.md says how to bring one's own).

occluded_viewing/
    dataset_description.json, README
    {subject}/{subject}_task-occluded_events.tsv     a row a trial: onset, duration, trial_type, stim_id (0-based 73k
                                                     id), occluder, mask_id, gaze_x, gaze_y (degrees)
    {subject}/{subject}_task-occluded_betas.nii.gz   int16 × 300, (x, y, z, trials), on the grid of NSD's func1pt8mm
    stimuli/shown.hdf5                               imgBrick, stim_ids, mask_ids; masks/{mask_id} (H, W) bool
    stimuli/objects.hdf5                             optional annotation: labels, stim_ids, area, kinds
"""
import json
from dataclasses import dataclass

import numpy as np
from PIL import Image

from utils import layout
from utils.errors import Problem
from utils.nsd import nifti_volumes, object_keys, text_tables
from utils.occlusion import occluded_pictures
from utils.storage import hdf5

FOLDER = "occluded_viewing"
SHOWN_KEY = f"{FOLDER}/stimuli/shown.hdf5"
OBJECTS_KEY = f"{FOLDER}/stimuli/objects.hdf5"
TRUTH_KEY = "simulated/occluded_viewing.json"
COLUMNS = ("onset", "duration", "trial_type", "stim_id", "occluder", "mask_id", "gaze_x", "gaze_y")
NEEDED = ("trial_type", "stim_id", "occluder", "mask_id")
NO_MASK = ("", "none", "n/a")


def events_key(subject):
    return f"{FOLDER}/{subject}/{subject}_task-occluded_events.tsv"


def betas_key(subject):
    return f"{FOLDER}/{subject}/{subject}_task-occluded_betas.nii.gz"


@dataclass(frozen=True)
class Events:
    """Trials in scan order. stimuli (trials,) int64 0-based 73k ids; masks, occluders (trials,) str;
    whole (trials,) bool."""

    stimuli: np.ndarray
    masks: np.ndarray
    occluders: np.ndarray
    whole: np.ndarray


def events(root, subject):
    """The Events of a subject. Raises Problem for a missing file, column or number."""
    name = root.name(events_key(subject))
    if not root.exists(events_key(subject)):
        raise Problem(f"{name} does not exist", "NSD itself has no occluded viewing: bring a data set of it "
                      "(docs/amodal_completion.md), or build the simulated one with python -m mini_nsd.build DIR")
    rows = text_tables.table(root.read(events_key(subject)), "\t", name, "write it as UTF-8, tab-separated")
    missing = [column for column in NEEDED if not rows or rows[0].get(column) is None]
    if missing:
        raise Problem(f"{name} has no {'column ' + ' '.join(missing) if rows else 'trial'}",
                      f"it needs {' '.join(NEEDED)}")
    stimuli = np.array([_checked(row, f"line {line} of {name}") for line, row in enumerate(rows, start=2)], np.int64)
    whole = np.array([row["trial_type"] == "whole" for row in rows])
    if whole.all():
        raise Problem(f"{name} has no occluded trial", "trial_type of such a trial is occluded")
    return Events(stimuli, np.array([row["mask_id"] for row in rows]), np.array([row["occluder"] for row in rows]),
                  whole)


def _checked(row, where):
    """The 73k id of a trial whose cells are what they must be."""
    if row["trial_type"] not in ("whole", "occluded"):
        raise Problem(f"{where} has trial_type {row['trial_type']!r}", "use whole or occluded")
    if row["mask_id"] is None or row["trial_type"] == "occluded" and row["mask_id"] in NO_MASK:
        raise Problem(f"{where} is an occluded trial without a mask_id", "name one of masks/ in shown.hdf5")
    stimulus = text_tables.whole_number(row["stim_id"], f"stim_id in {where}", "give 0-based 73k ids")
    if not 0 <= stimulus < object_keys.STIMULI:
        raise Problem(f"{where} has stim_id {stimulus}", f"give 0-based 73k ids, below {object_keys.STIMULI}")
    return stimulus


def betas(root, subject, voxels, grid, count):
    """{ROI: (trials, voxels) int16}, streamed volume by volume. voxels, grid: see `mrifeat.choose_voxels`."""
    rows = {roi: np.empty((count, len(at)), np.int16) for roi, at in voxels.items()}
    with nifti_volumes.BetaVolumes(root, betas_key(subject)) as volumes:
        grid.must_match(volumes.grid)
        if volumes.count != count:
            raise Problem(f"{volumes.name} has {volumes.count} volumes, its events {count} trials", "one row a volume")
        for trial, volume in enumerate(volumes):
            flat = volume.reshape(-1)
            for roi, at in voxels.items():
                rows[roi][trial] = flat[at]
    return rows


def truth(root):
    """{ROI: completion} of a simulated data set; None for a real one, whose truth nobody knows."""
    if not root.exists(TRUTH_KEY):
        return None
    try:
        return {roi: float(share) for roi, share in json.loads(root.read(TRUTH_KEY))["completion"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Problem(f"{root.name(TRUTH_KEY)} is not what mini_nsd wrote ({error})",
                      "build the simulated data set again") from error


def fetch(root, key, workdir):
    """A file as a local path: in place, or a copy below the working folder."""
    return root.fetch(key, layout.occluded_viewing_copy(workdir, key))


def small(images):
    """n of (H, W, 3) uint8 → (n, SMALL, SMALL, 3) uint8, averaged."""
    side = occluded_pictures.SMALL
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX)) for image in images])


def must_be_test(shown, test):
    """Raises Problem unless all stimuli shown behind occluders are among the test stimuli."""
    strange = np.setdiff1d(shown, test)
    if len(strange):
        raise Problem(f"{len(strange)} of the occluded stimuli (the first is {strange[0]}) are no test stimuli",
                      "decoders are trained on the others: show stimuli that NSD's subjects share")


def views(path, events, stimuli):
    """(`occluded_pictures.Views`, [(stimulus, mask)]) of the events' occluded trials, an entry a pair, ascending.

    path: shown.hdf5. stimuli (m,): test stimuli; a view's row is its stimulus's position among them.
    """
    rows = np.flatnonzero(~events.whole)
    pairs = sorted({(int(events.stimuli[k]), str(events.masks[k])) for k in rows})
    position = {int(stimulus): row for row, stimulus in enumerate(stimuli)}
    must_be_test([stimulus for stimulus, _ in pairs], stimuli)
    with open_file(path) as file:
        brick, index = indexed(file, pairs)
        shown = small([brick[index[pair]] for pair in pairs])
        masks = {mask: sampled(_mask(file, mask, brick.shape[1:3])) for mask in sorted({mask for _, mask in pairs})}
    return occluded_pictures.Views(np.array([position[stimulus] for stimulus, _ in pairs]),
                                   np.array([mask for _, mask in pairs]),
                                   np.stack([masks[mask] for _, mask in pairs]), shown), pairs


def pictures(path, pairs):
    """((n, H, W, 3) uint8, (n, H, W) bool): what was shown for [(stimulus, mask)] and what it hid,
    at their own size."""
    with open_file(path) as file:
        brick, index = indexed(file, pairs)
        return (np.stack([brick[index[pair]] for pair in pairs]),
                np.stack([_mask(file, mask, brick.shape[1:3]) for _, mask in pairs]))


def indexed(file, pairs=()):
    """(imgBrick, {(stimulus, mask): row}) of an open shown.hdf5, which must have all of `pairs`."""
    brick = file.dataset("imgBrick", "u", 4)
    ids, names = file.dataset("stim_ids", "iu", 1).whole(), file.dataset("mask_ids", "OSU", 1).whole()
    index = {(int(stimulus), text(mask)): row for row, (stimulus, mask) in enumerate(zip(ids, names))}
    if brick.dtype != np.uint8 or brick.shape[3] != 3 or not len(brick) == len(ids) == len(names) == len(index):
        file.refuse("has not one stim_id and mask_id, together different, for each picture of imgBrick (n, H, W, 3) "
                    "uint8")
    lacking = [pair for pair in pairs if pair not in index]
    if lacking:
        stimulus, mask = lacking[0]
        file.refuse(f"lacks {len(lacking)} pictures of the trials (the first is stimulus {stimulus} behind {mask})")
    return brick, index


def text(value):
    """A name out of an HDF5 file as str."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _mask(file, name, shape):
    """A mask, (H, W) bool, which must be the pictures' size."""
    found = file.dataset(f"masks/{name}", "biu", 2)
    mask = found.whole()
    if found.shape != shape or not np.isin(mask, (0, 1)).all() or not mask.any():
        file.refuse(f"has masks/{name} {found.dtype} {found.shape}, not a mask of {shape} that is True where it hides")
    return mask.astype(bool)


def sampled(mask):
    """(H, W) → (SMALL, SMALL): the nearest pixel of each."""
    nearest = [((np.arange(occluded_pictures.SMALL) + 0.5) * side / occluded_pictures.SMALL).astype(int)
               for side in mask.shape]
    return mask[np.ix_(*nearest)]


def open_file(path):
    """shown.hdf5 or objects.hdf5, as an `hdf5.File`."""
    return hdf5.File(path, "fetch or make it again", "see docs/amodal_completion.md, and make it again")


class Annotation:
    """The objects in the stimuli: objects.hdf5. categories: names of the K kinds."""

    def __init__(self, path):
        with open_file(path) as file:
            ids = file.dataset("stim_ids", "iu").ids()
            self._row = {int(stimulus): row for row, stimulus in enumerate(ids)}
            self._labels = file.dataset("labels", "i", 3).whole()
            self._area, self._kinds = file.dataset("area", "f", 2).whole(), file.dataset("kinds", "biuf", 3).whole()
            self.categories = [str(name) for name in np.atleast_1d(file.attributes().get("categories", ()))]
            shapes = ((len(ids), *(occluded_pictures.SMALL,) * 2), (len(ids), *self._kinds.shape[1:2]),
                      (*self._area.shape, len(self.categories)))
            if (self._labels.shape, self._area.shape, self._kinds.shape) != shapes or not all(self._kinds.shape):
                file.refuse(f"has labels {self._labels.shape}, area {self._area.shape}, kinds {self._kinds.shape} of "
                            f"{len(ids)} stimuli and {len(self.categories)} categories")
            there = ~np.isnan(self._area)
            count = there.sum(1)
            if (there != (np.arange(there.shape[1]) < count[:, None])).any() or not (self._area[there] > 0).all() \
                    or not (self._area[there] <= 1).all() or not np.isin(self._kinds[there], (0, 1)).all() \
                    or (self._labels.min((1, 2)) < -1).any() or (self._labels.max((1, 2)) >= count).any():
                file.refuse("has an area out of (0, 1], a kind that is not 0 or 1, or a label of no object")

    def pictures(self, images, stimuli):
        """`occluded_pictures.Pictures` of images (n, SMALL, SMALL, 3) with the annotation of `stimuli` (n,)."""
        missing = [int(stimulus) for stimulus in stimuli if int(stimulus) not in self._row]
        if missing:
            raise Problem(f"{len(missing)} stimuli have no annotation (the first is {missing[0]})",
                          "annotate every stimulus that the subject saw, or leave objects.hdf5 out")
        rows = [self._row[int(stimulus)] for stimulus in stimuli]
        there = [~np.isnan(self._area[row]) for row in rows]
        return occluded_pictures.Pictures(images, self._labels[rows],
                                          tuple(self._area[row][keep] for row, keep in zip(rows, there)),
                                          tuple(self._kinds[row][keep].astype(float) for row, keep in zip(rows, there)))
