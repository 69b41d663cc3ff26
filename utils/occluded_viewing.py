"""Sessions of occluded viewing, simulated or real, beside NSD's keys (docs/amodal_completion.md says how to bring one's own).

occluded_viewing/
    dataset_description.json, README
    {subject}/{subject}_task-occluded_events.tsv     a row a trial: onset, duration, trial_type, stim_id (0-based 73k id),
                                                     occluder, mask_id, gaze_x, gaze_y (degrees)
    {subject}/{subject}_task-occluded_betas.nii.gz   int16 × 300, (x, y, z, trials), on the grid of NSD's func1pt8mm
    stimuli/shown.hdf5                               imgBrick, stim_ids, mask_ids; masks/{mask_id} (H, W) bool
    stimuli/objects.hdf5                             optional annotation: labels, stim_ids, area, kinds
"""
import csv
import io
import json
from dataclasses import dataclass

import h5py
import numpy as np
from PIL import Image

from utils import completion, layout, nsd
from utils.errors import Problem

FOLDER = "occluded_viewing"
SHOWN_KEY = f"{FOLDER}/stimuli/shown.hdf5"
OBJECTS_KEY = f"{FOLDER}/stimuli/objects.hdf5"
TRUTH_KEY = "simulated/occluded_viewing.json"
COLUMNS = ("onset", "duration", "trial_type", "stim_id", "occluder", "mask_id", "gaze_x", "gaze_y")
NEEDED = ("trial_type", "stim_id", "occluder", "mask_id")


def events_key(subject):
    return f"{FOLDER}/{subject}/{subject}_task-occluded_events.tsv"


def betas_key(subject):
    return f"{FOLDER}/{subject}/{subject}_task-occluded_betas.nii.gz"


@dataclass(frozen=True)
class Events:
    """Trials in scan order. stimuli (trials,) int64 0-based 73k ids; masks, occluders (trials,) str; whole (trials,) bool."""

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
    try:
        rows = list(csv.DictReader(io.StringIO(root.read(events_key(subject)).decode("utf-8-sig")), delimiter="\t"))
    except UnicodeDecodeError as error:
        raise Problem(f"{name} is not a table ({error})", "write it as UTF-8, tab-separated") from error
    missing = [column for column in NEEDED if not rows or rows[0].get(column) is None]
    if missing:
        raise Problem(f"{name} has no {'column ' + ' '.join(missing) if rows else 'trial'}", f"it needs {' '.join(NEEDED)}")
    try:
        stimuli = np.array([int(row["stim_id"]) for row in rows], np.int64)
    except (ValueError, TypeError) as error:
        raise Problem(f"{name}: a stim_id is no whole number ({error})", "give 0-based 73k ids") from error
    types = {row["trial_type"] for row in rows}
    if not types <= {"whole", "occluded"}:
        raise Problem(f"{name} has trial_type {' '.join(sorted(types - {'whole', 'occluded'}))}", "use whole or occluded")
    return Events(stimuli, np.array([row["mask_id"] for row in rows]), np.array([row["occluder"] for row in rows]),
                  np.array([row["trial_type"] == "whole" for row in rows]))


def betas(root, subject, voxels, grid, count):
    """{ROI: (trials, voxels) int16}, streamed volume by volume. voxels, grid: see `mrifeat.choose_voxels`."""
    rows = {roi: np.empty((count, len(at)), np.int16) for roi, at in voxels.items()}
    with nsd.BetaVolumes(root, betas_key(subject)) as volumes:
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
    return json.loads(root.read(TRUTH_KEY))["completion"] if root.exists(TRUTH_KEY) else None


def fetch(root, key, workdir):
    """A file as a local path: in place, or a copy below the working folder."""
    return root.fetch(key, layout.occluded_viewing_copy(workdir, key))


def small(images):
    """n of (H, W, 3) uint8 → (n, SMALL, SMALL, 3) uint8, averaged."""
    side = completion.SMALL
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX)) for image in images])


def views(path, events, stimuli):
    """(`completion.Views`, [(stimulus, mask)]) of the events' occluded trials, an entry a pair, ascending.

    path: shown.hdf5. stimuli (m,): test stimuli; a view's row is its stimulus's position among them.
    """
    rows = np.flatnonzero(~events.whole)
    pairs = sorted({(int(events.stimuli[k]), str(events.masks[k])) for k in rows})
    position = {int(stimulus): row for row, stimulus in enumerate(stimuli)}
    strange = sorted({stimulus for stimulus, _ in pairs} - set(position))
    if strange:
        raise Problem(f"{len(strange)} of the occluded stimuli (the first is {strange[0]}) are no test stimuli of the subject",
                      "decoders are trained on the others: show stimuli behind occluders that NSD's subjects share")
    with _open(path) as file:
        try:
            index = {(int(stimulus), mask.decode()): row for row, (stimulus, mask)
                     in enumerate(zip(file["stim_ids"][:], file["mask_ids"][:]))}
            shown = small([file["imgBrick"][index[pair]] for pair in pairs])
            masks = {mask: _sampled(file[f"masks/{mask}"][:]) for mask in sorted({mask for _, mask in pairs})}
        except KeyError as error:
            raise Problem(f"{path} lacks {error}", "it needs imgBrick, stim_ids, mask_ids and masks/ for every trial") from error
    return completion.Views(np.array([position[stimulus] for stimulus, _ in pairs]), np.array([mask for _, mask in pairs]),
                            np.stack([masks[mask] for _, mask in pairs]), shown), pairs


def _sampled(mask):
    nearest = [((np.arange(completion.SMALL) + 0.5) * side / completion.SMALL).astype(int) for side in mask.shape]
    return np.asarray(mask, bool)[np.ix_(*nearest)]


def _open(path):
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise Problem(f"{path} is not a whole HDF5 file ({error})", "fetch or make it again") from error


class Annotation:
    """The objects in the stimuli: objects.hdf5. categories: names of the K kinds."""

    def __init__(self, path):
        with _open(path) as file:
            self._row = {int(stimulus): row for row, stimulus in enumerate(file["stim_ids"][:])}
            self._labels, self._area, self._kinds = (file[name][:] for name in ("labels", "area", "kinds"))
            self.categories = [str(name) for name in file.attrs["categories"]]
        if self._labels.shape[1:] != (completion.SMALL,) * 2:
            raise Problem(f"labels of {path} are {self._labels.shape[1:]}", f"give {completion.SMALL} × {completion.SMALL}")

    def pictures(self, images, stimuli):
        """`completion.Pictures` of images (n, SMALL, SMALL, 3) with the annotation of `stimuli` (n,)."""
        missing = [int(stimulus) for stimulus in stimuli if int(stimulus) not in self._row]
        if missing:
            raise Problem(f"{len(missing)} stimuli have no annotation (the first is {missing[0]})",
                          "annotate every stimulus that the subject saw, or leave objects.hdf5 out")
        rows = [self._row[int(stimulus)] for stimulus in stimuli]
        there = [~np.isnan(self._area[row]) for row in rows]
        return completion.Pictures(images, self._labels[rows],
                                   tuple(self._area[row][keep] for row, keep in zip(rows, there)),
                                   tuple(self._kinds[row][keep].astype(float) for row, keep in zip(rows, there)))
