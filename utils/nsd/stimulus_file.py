"""NSD's images, and files like theirs."""
from pathlib import Path

import numpy as np

from utils import layout
from utils.errors import Problem
from utils.nsd import object_keys
from utils.storage import hdf5


def stimuli_place(root, workdir):
    """Where NSD's images are read from: in place for a local root,
    else the copy that img2feat_sd.py keeps in `workdir`."""
    return root.path(object_keys.STIMULI_KEY) if root.local else layout.stimuli(workdir)


def stimuli_path(root, workdir):
    """The file of NSD's images. Raises Problem where it is missing."""
    path = stimuli_place(root, workdir)
    if not path.is_file():
        raise Problem(f"{path} {'does not exist' if root.local else 'is missing'}",
                      "check NSD_ROOT" if root.local else "run img2feat_sd.py, which fetches it")
    return path


class Stimuli:
    """Images in an HDF5 file like nsd_stimuli.hdf5: `imgBrick` (n, H, W, 3) uint8, row = 0-based 73k id.

    A file with `stim_ids` (n,) holds those ids instead of 0 … n-1. ids: (n,) int64, ascending. stop: one more than the
    largest id that there may be.
    """

    def __init__(self, path):
        self.path = Path(path)
        self._file = hdf5.File(path, "run img2feat_sd.py, which fetches it", "fetch or make it again")
        try:
            self._images = self._file.dataset("imgBrick", "biufc")
            self.shape, dtype = self._images.shape, self._images.dtype
            if dtype != np.uint8 or len(self.shape) != 4 or self.shape[3] != 3 or 0 in self.shape:
                raise Problem(f"imgBrick of {path} is {dtype} {self.shape}, not uint8 (n, H, W, 3)",
                              "get the file again")
            self.count, self._rows = self.shape[0], None
            self.ids, self.stop = np.arange(self.count), self.count
            if "stim_ids" in self._file:
                ids = self._file.dataset("stim_ids", "iu").ids()
                if ids.shape != (self.count,):
                    raise Problem(f"{path} has {self.count} images but stim_ids of shape {ids.shape}", "make it again")
                self._rows = {int(stimulus): row for row, stimulus in enumerate(ids)}
                self.ids, self.stop = np.sort(ids), object_keys.STIMULI
        except Problem:
            self.close()
            raise

    def among(self, chosen):
        """(n,) of the ids in the range `chosen`. Raises Problem if there is none."""
        ids = self.ids[(self.ids >= chosen.start) & (self.ids < chosen.stop)]
        if not len(ids):
            raise Problem(f"{self.path} has none of the images {chosen.start} to {chosen.stop - 1}",
                          f"it holds {self.count} images")
        return ids

    def read(self, ids):
        """(len(ids), H, W, 3) uint8 images of 0-based 73k ids, in the order given; the disk is read in its own."""
        rows = np.array([self._row(stimulus) for stimulus in ids], np.int64)
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        order = np.argsort(rows, kind="stable")
        sorted_rows = rows[order]
        starts = np.flatnonzero(np.diff(sorted_rows, prepend=-2) > 1)
        for start, stop in zip(starts, [*starts[1:], len(rows)]):
            first, last = sorted_rows[start], sorted_rows[stop - 1]
            run = self._images[first:last + 1]
            out[order[start:stop]] = run[sorted_rows[start:stop] - first]
        return out

    def _row(self, stimulus):
        row = self._rows.get(int(stimulus), -1) if self._rows is not None else int(stimulus)
        if not 0 <= row < self.count:
            raise Problem(f"{self.path} has no image of 73k id {stimulus}", f"it holds {self.count} images" + (
                "" if self.whole else ": add others with img2feat_sd.py --subject, or all without it"))
        return row

    @property
    def whole(self):
        """Whether a row is its 73k id: the file is not a choice of images."""
        return self._rows is None

    def __contains__(self, name):
        """True if the file has a dataset of that name."""
        return name in self._file

    def check(self):
        """Read an image at the start, the middle and the end. Raises Problem if one cannot be read."""
        self.read(self.ids[[0, self.count // 2, self.count - 1]])

    def close(self):
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
