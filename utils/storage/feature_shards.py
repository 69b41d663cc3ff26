"""Folders of features of images: one HDF5 file per range of stimuli, written by img2feat_*."""
from pathlib import Path

import numpy as np

from utils import layout
from utils.errors import Problem
from utils.storage import arrays, hdf5, provenance, writing


class Shards:
    """A folder of features, one HDF5 file per range of stimuli: `stim_ids` (n,) and `features` (n, …).

    Reading also takes the original pipeline's `{stim:06}.npy`, one stimulus a file.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        writing.sweep(self.folder)
        self._where, self._known = {}, set()
        self.refresh()

    def refresh(self):
        """Find the files that came since: another process may make shards of the same folder."""
        for path in sorted(set(self.folder.glob("[0-9]*-[0-9]*.h5")) - self._known):
            with self._open(path) as file:
                ids = file.dataset("stim_ids", "iu").ids()
                if len(ids) != len(file.dataset("features", "biuf")):
                    file.refuse("has not one row of features a stimulus")
            self._where |= {int(stimulus): (path, row) for row, stimulus in enumerate(ids)}
            self._known.add(path)
        for path in sorted(self.folder.glob("[0-9]*.npy")):
            if path.stem.isdecimal():
                self._where.setdefault(int(path.stem), (path, None))

    @staticmethod
    def _open(path):
        return hdf5.File(path, "run its stage again", "delete it and run its stage again")

    def __contains__(self, stimulus):
        return int(stimulus) in self._where

    def missing(self, stimuli):
        """Those of `stimuli` that no shard holds, in the order given."""
        return [int(stimulus) for stimulus in stimuli if stimulus not in self]

    def attributes(self):
        """What made the shards. Raises Problem if two of them disagree."""
        found = None
        for path in sorted({path for path, row in self._where.values() if row is not None}):
            with self._open(path) as file:
                attributes = {key: str(value) for key, value in file.attributes().items()}
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
            provenance.must_match(found, {key: str(value) for key, value in wanted.items()}, self.folder)

    def files(self, stimuli):
        """{file name: size in bytes} of the files that hold `stimuli`: a cheap sign that they were written anew."""
        paths = {self._where[int(stimulus)][0] for stimulus in stimuli}
        return {path.name: path.stat().st_size for path in sorted(paths)}

    def item_shape(self):
        """Shape of one stimulus's feature."""
        path, row = next(iter(self._where.values()))
        if row is None:
            return arrays.read_npy(path, mmap=True).shape
        with self._open(path) as file:
            return file.dataset("features", "biuf").shape[1:]

    def write(self, stimuli, features, attributes):
        """One shard. stimuli (n,) ascending 73k ids; features (n, …)."""
        path = layout.feature_shard(self.folder, int(stimuli[0]), int(stimuli[-1]) + 1)
        with writing.atomic(path) as temporary, arrays.new_h5(temporary, features.nbytes) as file:
            file.create_dataset("stim_ids", data=np.asarray(stimuli, np.int64))
            file.create_dataset("features", data=features)
            for key, value in sorted(attributes.items()):
                file.attrs[key] = str(value)
        for row, stimulus in enumerate(stimuli):
            self._where[int(stimulus)] = (path, row)

    def clear(self, stimuli, wanted):
        """For --overwrite: remove shards that were made otherwise than `wanted` says,
        and those that hold any of `stimuli`.

        Returns what is to be made: `stimuli`, and those that lay in one shard with them.
        """
        wanted, again = {key: str(value) for key, value in wanted.items()}, {int(stimulus) for stimulus in stimuli}
        asked = frozenset(again)
        for path in sorted(self._known):
            with self._open(path) as file:
                alike = provenance.difference({key: str(value) for key, value in file.attributes().items()},
                                              wanted) is None
            held = {stimulus for stimulus, (where, _) in self._where.items() if where == path}
            if alike and not held & asked:
                continue
            path.unlink()
            self._known.remove(path)
            self._where = {stimulus: place for stimulus, place in self._where.items() if stimulus not in held}
            again |= held if alike else set()
        return np.array(sorted(again))

    def read(self, stimuli, made_by):
        """(n, …) features of `stimuli`, in the order given. Raises Problem naming the missing ones: none is made up."""
        missing = self.missing(stimuli)
        if missing:
            raise Problem(f"{self.folder} lacks {len(missing)} of {len(stimuli)} stimuli (73k ids {_some(missing)})",
                          f"run {made_by}")
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


def _some(ids, most=5):
    return ", ".join(str(number) for number in ids[:most]) + (" …" if len(ids) > most else "")


def shard_ranges(stimuli, size):
    """Split ascending ids into lists that each lie in one cell of a grid of `size` ids."""
    cells = {}
    for stimulus in stimuli:
        cells.setdefault(int(stimulus) // size, []).append(int(stimulus))
    return list(cells.values())
