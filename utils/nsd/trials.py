"""Which trial belongs to which stimulus, the split into training and test, and the voxels of both.

Every pairing goes by stimulus id. Training and test trials keep the scan order; a split's stimuli are in the order
of their first presentation.
"""
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from utils import cli, layout
from utils.errors import Problem
from utils.storage import arrays, text_files

SPLITS = ("tr", "te")
BLOCK = 32 << 20  # bytes of betas that averaging holds at once


@dataclass(frozen=True)
class Split:
    """One split's trials and stimuli.

    trials: (n,) int64 positions in the scan order. stimuli: (m,) int64 0-based 73k ids in order of first presentation.
    rows: (n,) int64, the row of `stimuli` that each trial shows.
    """

    trials: np.ndarray
    stimuli: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class Design:
    """A subject's trials.

    stims: (trials,) int64 0-based 73k ids, scan order. stims_ave: (stimuli,) int64 unique ids in order of first
    presentation. test: (stimuli,) bool, True where the stimulus is a test stimulus.
    """

    stims: np.ndarray
    stims_ave: np.ndarray
    test: np.ndarray

    @classmethod
    def of(cls, stims, shared):
        """Test stimuli are those in `shared`, the rest train. stims (trials,), shared (n,): 0-based ids."""
        unique, first = np.unique(np.asarray(stims, np.int64), return_index=True)
        stims_ave = unique[np.argsort(first)]
        return cls(np.asarray(stims, np.int64), stims_ave, np.isin(stims_ave, shared))

    @cached_property
    def rows(self):
        """(trials,) int64: the row of stims_ave that each trial shows."""
        order = np.argsort(self.stims_ave)
        return order[np.searchsorted(self.stims_ave, self.stims, sorter=order)]

    def split(self, name):
        """The Split named "tr" or "te"."""
        chosen = self.test if name == "te" else ~self.test
        trials = np.flatnonzero(chosen[self.rows])
        return Split(trials, self.stims_ave[chosen], (np.cumsum(chosen) - 1)[self.rows[trials]])


def load_design(ws):
    """The Design that make_subjmri.py wrote. Raises Problem where it is missing or its parts disagree."""
    made_by = f"make_subjmri.py --subject {ws.subject}"
    paths = (ws.stims, ws.stims_ave, ws.stims_ave_test)
    stims, stims_ave, test = (arrays.read_npy(path, made_by=made_by) for path in paths)
    found = Design.of(stims, stims_ave[test] if test.dtype == bool and test.shape == stims_ave.shape else ())
    if not np.array_equal(found.stims_ave, stims_ave) or not np.array_equal(found.test, test):
        raise Problem(f"{', '.join(path.name for path in paths)} in {ws.mrifeat} do not belong together",
                      f"run {made_by} --overwrite")
    return found


def seen(workspaces, among=None):
    """(stimuli,) int64 0-based 73k ids that any of the subjects saw, ascending; of those in the range `among` only.

    Says how many of them `among` lacks. Raises Problem if it has none.
    """
    ids = np.unique(np.concatenate([arrays.read_npy(ws.stims_ave, made_by=f"make_subjmri.py --subject {ws.subject}")
                                    for ws in workspaces]))
    if among is None:
        return ids
    inside = ids[(ids >= among.start) & (ids < among.stop)]
    who = " ".join(ws.subject for ws in workspaces)
    if not len(inside):
        raise Problem(f"none of the images {among.start} to {among.stop - 1} was seen by {who}",
                      "check the range and --subject")
    if len(inside) < len(ids):
        cli.say(f"{len(ids) - len(inside)} of the {len(ids)} stimuli that {who} saw are outside the images "
                f"{among.start} to {among.stop - 1}: left out")
    return inside


def test_stimuli(ws):
    """(test stimuli,) int64 0-based 73k ids in order of first presentation: image i of every decoded artifact."""
    return load_design(ws).split("te").stimuli


test_stimuli.__test__ = False  # a name that pytest would take for a test


def in_scan_order(ws, design, tag, voxels=slice(None)):
    """(trials, voxels) betas of a ROI as stored, training and test trials together in scan order.

    tag: see `layout.VoxelChoice.tag`. voxels: which columns, as numpy indexes them.
    """
    made_by = f"make_subjmri.py --subject {ws.subject}"
    parts = {split: arrays.read_npy(ws.betas(tag, split), mmap=True, made_by=made_by)[:, voxels] for split in SPLITS}
    out = np.empty((len(design.stims), parts["tr"].shape[1]), parts["tr"].dtype)
    for split, betas in parts.items():
        out[design.split(split).trials] = betas
    return out


def averages(betas, rows, count):
    """Yield (count, voxels) means over the trials of each stimulus, a block of stimuli at a time, in order.

    betas: function that opens (trials, voxels) betas; it is opened anew for each block, so that a memory map's pages
    are let go. rows: (trials,) int64 row of each trial's stimulus, 0 … count-1, each at least once. Yields float32;
    sums of int16 are exact, the mean is rounded once. One pass: each trial is read once.
    """
    order = np.argsort(rows, kind="stable")
    ends = np.cumsum(np.bincount(rows, minlength=count))
    width = betas().shape[1]
    most = max(1, BLOCK // (width * 8))
    start = trial = 0
    while start < count:
        stop = max(start + 1, int(np.searchsorted(ends, trial + most, side="right")))
        stop = min(stop, count)
        chosen = order[trial:ends[stop - 1]]
        block = betas()[np.sort(chosen)]
        block = block[np.argsort(np.argsort(chosen))]
        firsts = np.concatenate([[trial], ends[start:stop - 1]]) - trial
        counts = np.diff(ends[start:stop], prepend=trial)
        sums = block[firsts].astype(np.int64 if block.dtype.kind == "i" else np.float64)
        for presentation in range(1, counts.max()):  # np.add.reduceat takes twice as long
            more = np.flatnonzero(counts > presentation)
            sums[more] += block[firsts[more] + presentation]
        yield (sums / counts[:, None]).astype(np.float32)
        start, trial = stop, int(ends[stop - 1])


class Voxels:
    """The voxels of one or more ROIs, joined in the order given, with the stimuli that they belong to.

    train_stims (train trials,), train_stimuli (train stimuli,), test_stimuli (test stimuli,): 0-based 73k ids.
    train_rows (train trials,): the row of train_stimuli that each training trial shows. files: what is read.
    """

    def __init__(self, ws, rois, choice):
        self._ws, self._tags = ws, [choice.tag(roi) for roi in rois]
        design = load_design(ws)
        train, test = design.split("tr"), design.split("te")
        self.train_stims, self.train_stimuli, self.train_rows = design.stims[train.trials], train.stimuli, train.rows
        self.test_stimuli = test.stimuli
        _must_be_alike(ws, self._tags)
        self.files = [ws.stims, ws.stims_ave, ws.stims_ave_test]
        self.files += [ws.betas(tag, split, average)
                       for tag in self._tags for split in SPLITS for average in (False, True)]

    @cached_property
    def train(self):
        """(train trials, voxels) int16 (NSD's integers), or float32 where the choice of voxels is z-scored."""
        return self._joined("tr", False, len(self.train_stims))

    @cached_property
    def train_average(self):
        """(train stimuli, voxels) float32."""
        return self._joined("tr", True, len(self.train_stimuli))

    @cached_property
    def test(self):
        """(test stimuli, voxels) float32: means over each test stimulus's trials."""
        return self._joined("te", True, len(self.test_stimuli))

    def _joined(self, split, average, rows):
        made_by = f"make_subjmri.py --subject {self._ws.subject}"
        paths = [self._ws.betas(tag, split, average) for tag in self._tags]
        parts = [arrays.read_npy(path, mmap=True, made_by=made_by) for path in paths]
        for path, part in zip(paths, parts):
            if part.ndim != 2 or len(part) != rows or part.shape[1] == 0 or part.dtype != parts[0].dtype:
                raise Problem(f"{path} holds {part.dtype} {part.shape} where {parts[0].dtype} with {rows} rows belongs",
                              f"run {made_by} --overwrite")
        return np.concatenate(parts, axis=1)


def load_voxels(ws, rois, choice=layout.VoxelChoice()):
    """The Voxels of `rois`, read when asked for. Raises Problem for missing files and for ones made differently."""
    if len(set(rois)) != len(rois):
        raise Problem(f"ROI twice in {' '.join(rois)}", "name each once")
    return Voxels(ws, rois, choice)


def _must_be_alike(ws, tags):
    """Sessions, trials and inputs of all ROIs must be those of the design."""
    made_by = f"make_subjmri.py --subject {ws.subject}"
    reference = layout.sidecar(ws.stims)
    for tag in tags:
        for split in SPLITS:
            path = ws.betas(tag, split)
            if not path.exists():
                there = sorted({name.name.removeprefix(f"{ws.subject}_").removesuffix("_betas_tr.npy")
                                for name in ws.mrifeat.glob("*_betas_tr.npy") if "_ave_" not in name.name})
                raise Problem(f"{path} is missing; ROIs there: {' '.join(there) or 'none'}", f"run {made_by}")
            ours, theirs = (_origin(side) for side in (layout.sidecar(path), reference))
            differ = [key for key, tag in theirs.items() if ours.get(key) != tag]
            if differ or not theirs:
                raise Problem(f"{path} and {ws.stims} were made from different {', '.join(differ[:3]) or 'files'}",
                              f"run {made_by} --overwrite")


def _origin(side):
    """What must be the same for trials and betas: sessions, and NSD's files by key."""
    if not side.exists():
        return {}
    made = text_files.read_json(side)
    return {"sessions": made["options"]["sessions"], **made["sources"]}
