"""Folders of features of images: one HDF5 file per range of stimuli, written by img2feat_*."""
import contextlib
import math
import os
import re
import time
from pathlib import Path

import numpy as np

from utils import layout, system
from utils.errors import Problem
from utils.storage import arrays, hdf5, mounts, provenance, writing

PAUSES = (0.05, 0.2, 0.5, 1.0)  # seconds before what was listed and is gone is looked for again


class Shards:
    """A folder of features, one HDF5 file per range of stimuli: `stim_ids` (n,) and `features` (n, …).

    Reading also takes the original pipeline's `{stim:06}.npy`, one stimulus a file. Other processes may make, replace
    and remove shards of the folder meanwhile: what was listed and is gone is looked for again.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        writing.sweep(self.folder)
        self._known = {}  # path → (signature, 73k ids of its rows)
        self._old = {}  # the same of those that are to be replaced: they count as not there
        self._where = {}  # 73k id → (path, row; None for a .npy file)
        self.refresh()

    def refresh(self, start=0, stop=math.inf):
        """Look anew at the files that may hold stimuli start … stop - 1."""
        for pause in (*PAUSES, None):
            before = {path: found[0] for path, found in self._known.items()}
            listed = {path for path in self.folder.glob("[0-9]*-[0-9]*.h5") if _meets(path, start, stop)}
            gone = {path for path in self._known if _meets(path, start, stop)} - listed
            for path in sorted(listed):
                try:
                    signature, known = _signature(path), self._known.get(path) or self._old.get(path)
                    if known is None or known[0] != signature:
                        self._known[path] = signature, self._ids(path)
                        self._old.pop(path, None)
                except hdf5.Gone:
                    gone.add(path)
            for path in gone:
                self._known.pop(path, None)
            if before != {path: found[0] for path, found in self._known.items()} or not self._where:
                self._look_up()
            if pause is None or not gone & listed:
                break
            time.sleep(pause)

    def _ids(self, path):
        with self._open(path) as file:
            ids = file.dataset("stim_ids", "iu").ids()
            if len(ids) != len(file.dataset("features", "biuf")):
                file.refuse("has not one row of features a stimulus")
        return ids.tolist()

    def _look_up(self):
        """Where each stimulus is."""
        self._where = {}
        for path, (_, ids) in sorted(self._known.items()):
            self._where |= {stimulus: (path, row) for row, stimulus in enumerate(ids)}
        for path in sorted(self.folder.glob("[0-9]*.npy")):
            if path.stem.isdecimal():
                self._where.setdefault(int(path.stem), (path, None))

    def _retried(self, attempt):
        """attempt(), again where a file is gone that another process has replaced."""
        for pause in PAUSES:
            try:
                return attempt()
            except hdf5.Gone:
                time.sleep(pause)
                self.refresh()
        return attempt()

    @staticmethod
    def _open(path):
        return hdf5.File(path, "run its stage again", "delete it and run its stage again")

    def _attributes(self, path):
        with self._open(path) as file:
            return {key: str(value) for key, value in file.attributes().items()}

    def __contains__(self, stimulus):
        return int(stimulus) in self._where

    def missing(self, stimuli):
        """Those of `stimuli` that no shard holds, in the order given."""
        return [int(stimulus) for stimulus in stimuli if stimulus not in self]

    def lacking(self, stimuli):
        """`missing`, after waiting for a network disk to list what another machine has just written."""
        def look():
            if self.missing(stimuli):
                self.refresh()
            return self.missing(stimuli)
        return mounts.patiently(look, self.folder)

    def attributes(self):
        """What made the shards. Raises Problem if two of them disagree."""
        return self._retried(self._all_attributes)

    def _all_attributes(self):
        found = None
        for path in sorted(self._known):
            attributes = self._attributes(path)
            if found is not None and attributes != found:
                key = next(key for key in attributes.keys() | found.keys() if attributes.get(key) != found.get(key))
                raise Problem(f"{self.folder} mixes features of {key} {found.get(key)} and {attributes.get(key)}",
                              "run the stage again with --overwrite")
            found = attributes
        return found or {}

    def check(self, wanted):
        """Raises Problem if the shards there were not made as `wanted` (attribute → value) says."""
        found = self.attributes()
        if found:
            provenance.must_match(found, _texts(wanted), self.folder)

    def files(self, stimuli):
        """{file name: size in bytes} of the files that hold `stimuli`: a cheap sign that they were written anew."""
        def sizes():
            paths = {self._where[int(stimulus)][0] for stimulus in stimuli}
            return {path.name: _signature(path)[-1] for path in sorted(paths)}
        return self._retried(sizes)

    def item_shape(self):
        """Shape of one stimulus's feature."""
        def shape():
            path, row = next(iter(self._where.values()))
            if row is None:
                return arrays.read_npy(path, mmap=True).shape
            with self._open(path) as file:
                return file.dataset("features", "biuf").shape[1:]
        return self._retried(shape)

    def write(self, stimuli, features, attributes):
        """One shard. stimuli (n,) ascending 73k ids; features (n, …)."""
        path = layout.feature_shard(self.folder, int(stimuli[0]), int(stimuli[-1]) + 1)
        with writing.atomic(path) as temporary:
            with arrays.new_h5(temporary, features.nbytes) as file:
                file.create_dataset("stim_ids", data=np.asarray(stimuli, np.int64))
                file.create_dataset("features", data=features)
                for key, value in sorted(attributes.items()):
                    file.attrs[key] = str(value)
            self.retire(stimuli, keep=path)
        self._old.pop(path, None)
        self._known[path] = _signature(path), [int(stimulus) for stimulus in stimuli]
        self._where |= {int(stimulus): (path, row) for row, stimulus in enumerate(stimuli)}

    def remove_others(self, wanted, size):
        """For --overwrite: remove shards that were made otherwise than `wanted` says: they must not stand beside new
        ones.

        size: stimuli a cell of the grid whose cells processes make alone. A cell is looked at when no process is making
        it, so that what another one has just made in place of an old shard stays.
        """
        wanted = _texts(wanted)

        def others(paths):
            for path in sorted(paths):
                with contextlib.suppress(hdf5.Gone):
                    if provenance.difference(self._attributes(path), wanted) is not None:
                        yield path
        for path in others(self._known):
            start, stop = _range(path)
            with writing.working(self.folder, start // size, (stop - 1) // size + 1):
                for still in others([path]):
                    still.unlink(missing_ok=True)
        self.refresh()

    def renew(self, stimuli):
        """For --overwrite: take the shards that hold any of `stimuli` for not there. They go as soon as all they hold
        has been written anew (see `retire`), so that nothing is lost when that never happens.

        Returns what is to be made: `stimuli`, and those that lie in one shard with them.
        """
        again = {int(stimulus) for stimulus in stimuli}
        asked = frozenset(again)
        for path, (_, ids) in list(self._known.items()):
            if not asked.isdisjoint(ids):
                self._old[path] = self._known.pop(path)
                again |= set(ids)
        self._look_up()
        return np.array(sorted(again))

    def retire(self, new=(), keep=None):
        """Remove the shards that `renew` took for not there, if other shards and those `new` hold all that they held.

        keep: one that is about to be replaced by its name. To be called where no other process makes the same.
        """
        there = self._where.keys() | {int(stimulus) for stimulus in new}
        for path, (signature, ids) in list(self._old.items()):
            if there >= set(ids):
                with contextlib.suppress(hdf5.Gone):
                    if path != keep and _signature(path) == signature:
                        path.unlink(missing_ok=True)
                del self._old[path]

    def read(self, stimuli, made_by):
        """(n, …) features of `stimuli`, in the order given. Raises Problem naming the missing ones: none is made up."""
        missing = self.lacking(stimuli)
        if missing:
            raise Problem(f"{self.folder} lacks {len(missing)} of {len(stimuli)} stimuli (73k ids {_some(missing)})",
                          f"run {made_by}")
        return self._retried(lambda: self._read(stimuli))

    def _read(self, stimuli):
        out, by_file = None, {}
        for position, stimulus in enumerate(stimuli):
            path, row = self._where[int(stimulus)]
            by_file.setdefault(path, []).append((position, row))
        for path, wanted in by_file.items():
            positions, rows = zip(*wanted)
            if rows[0] is None:
                block = arrays.read_npy(path)[None]
            else:
                with self._open(path) as file:
                    low, high = min(rows), max(rows) + 1
                    block = file.dataset("features", "biuf")[low:high][np.array(rows) - low]
            if out is None:
                out = np.empty((len(stimuli), *block.shape[1:]), block.dtype)
            if (block.shape[1:], block.dtype) != (out.shape[1:], out.dtype):
                raise Problem(f"{path} holds {block.dtype} features of shape {block.shape[1:]}, others in its folder "
                              f"{out.dtype} {out.shape[1:]}", "run the stage again with --overwrite")
            out[list(positions)] = block
        return out


def _range(path):
    """(start, stop) of the stimuli that a shard's name gives."""
    return tuple(map(int, re.findall("[0-9]+", path.stem)[:2]))


def _meets(path, start, stop):
    first, last = _range(path)
    return first < stop and start < last


def _signature(path):
    """What tells a file from another of its name, its size in bytes last. Opened, and not only looked at: a network
    disk then asks its server about it."""
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
    except PermissionError as error:
        raise Problem(f"{path} may not be read", "check its permissions") from error
    except OSError as error:
        if system.is_gone(error):
            raise hdf5.Gone(f"{path} is missing", "run its stage again") from error
        raise
    return found.st_ino, found.st_mtime_ns, found.st_size


def _texts(attributes):
    return {key: str(value) for key, value in attributes.items()}


def _some(ids, most=5):
    return ", ".join(str(number) for number in ids[:most]) + (" …" if len(ids) > most else "")


def shard_ranges(stimuli, size):
    """Split ascending ids into lists that each lie in one cell of a grid of `size` ids."""
    cells = {}
    for stimulus in stimuli:
        cells.setdefault(int(stimulus) // size, []).append(int(stimulus))
    return list(cells.values())
