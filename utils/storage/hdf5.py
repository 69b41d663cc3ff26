"""HDF5 files that may be damaged, unfinished or hostile: every fault is a Problem, no other file is read.

A dataset must hold the bytes that its shape promises. HDF5 fills what was never written with zeros, unseen, and would
set aside any amount of memory that a header asks for.
"""
import contextlib
import math
import mmap
import os

import h5py
import numpy as np

from utils import system
from utils.errors import Problem

DEFLATE = 1100  # bytes that one stored byte may unpack to; deflate, the strongest filter in use, reaches 1,032
CHUNK_LIMIT = 256 << 20  # bytes of an unpacked chunk, and of a row: the least that must be held at once
WHOLE_LIMIT = 2 << 30  # bytes of a dataset that is read in one piece
HEAP = b"GCOL\x01\0\0\0"  # signature and version of a collection of strings
HEAP_ENDS = 8 << 20  # bytes: h5py writes attributes to one end of a file or the other
FAULTS = (OSError, KeyError, ValueError, TypeError, RuntimeError, OverflowError, IndexError, AttributeError,
          NotImplementedError)


class Gone(Problem):
    """The file is not there, or no more: another process may have replaced it."""


def _identity(path):
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class File:
    """An HDF5 file, open for reading. missing, todo: what to do where it does not exist, or is damaged."""

    def __init__(self, path, missing, todo):
        self.path, self.todo = path, todo
        before = _identity(path)
        try:
            self._file = h5py.File(path, "r")
        except FileNotFoundError as error:
            raise Gone(f"{path} is missing", missing) from error
        except PermissionError as error:
            raise Problem(f"{path} may not be read", "check its permissions") from error
        except FAULTS as error:
            # HDF5 looks at the path again when it has opened the file, and finds another there or none.
            problem = Gone if system.is_gone(error) or _identity(path) != before else Problem
            raise problem(f"{path} is not a whole HDF5 file ({error})", todo) from error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._file.close()

    @contextlib.contextmanager
    def _guarded(self, what):
        try:
            yield
        except FAULTS as error:
            problem = Gone if system.is_gone(error) else Problem
            raise problem(f"{what} of {self.path} cannot be read ({error})", self.todo) from error

    def refuse(self, what):
        """Raises the Problem that something in the file is wrong."""
        raise Problem(f"{self.path} {what}", self.todo)

    def attributes(self):
        """{name: value} of the file's own attributes."""
        self._check_heaps(HEAP_ENDS)
        with self._guarded("the attributes"):
            found = dict(self._file.attrs.items())
        if not all(isinstance(name, str) for name in found):
            self.refuse("has an attribute whose name is no text")
        return found

    def __contains__(self, name):
        with self._guarded(name):
            return self._find(name) is not None

    def _find(self, name):
        """The object of that name, None if there is none. Links to other places and files are not followed."""
        found = self._file
        for part in name.split("/"):
            if not isinstance(found, h5py.Group) or not found.id.links.exists(part.encode()):
                return None
            if found.id.links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
                self.refuse(f"has a link for {name}: data must lie in the file itself")
            found = found[part]
        return found

    def dataset(self, name, kinds, ndim=None):
        """The Dataset of that name; its dtype must be of one of `kinds` (numpy's letters)."""
        with self._guarded(name):
            found = self._find(name)
            if not isinstance(found, h5py.Dataset):
                self.refuse(f"has no dataset {name}")
            if found.is_virtual or found.external:
                self.refuse(f"keeps {name} in another file: data must lie in the file itself")
            if found.dtype.kind not in kinds or found.shape is None or ndim not in (None, found.ndim):
                self.refuse(f"has {name} of {found.dtype} {found.shape}, which it cannot be")
            self._must_hold(name, found)
        if found.dtype.kind == "O":
            self._check_heaps(math.inf)
        return Dataset(self, name, found)

    def _check_heaps(self, ends):
        """Strings of any length lie in heaps, in which an entry of no size makes the HDF5 library (2.0) loop for ever.

        ends: bytes at the beginning and the end of the file that are searched for heaps.
        """
        with (self._guarded("the file"), open(self.path, "rb") as file,
              mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content):
            parts = [(0, len(content))] if len(content) <= 2 * ends else \
                [(0, ends), (len(content) - ends, len(content))]
            for start, stop in parts:
                at = content.find(HEAP, start, stop)
                while at >= 0:
                    if not _is_heap(content, at):
                        self.refuse("is damaged: a heap of strings has an entry of impossible size")
                    at = content.find(HEAP, at + 1, stop)

    def _must_hold(self, name, found):
        if not found.size:
            return
        width = found.dtype.itemsize
        if width * math.prod(found.chunks or found.shape[1:]) > CHUNK_LIMIT:
            self.refuse(f"has {name} {found.shape} in pieces of more than {CHUNK_LIMIT >> 20} MiB")
        whole, stored = width * math.prod(found.shape), found.id.get_storage_size()
        pieces = math.prod(-(-size // piece) for size, piece in zip(found.shape, found.chunks)) if found.chunks else 1
        packed = found.chunks and found.id.get_create_plist().get_nfilters()
        if stored * (DEFLATE if packed else 1) < whole or found.chunks and found.id.get_num_chunks() < pieces:
            self.refuse(f"has {name} {found.shape}, {whole:,} bytes, of which it holds {stored:,}: "
                        "it was never finished")


def _is_heap(content, at):
    """True if the entries of the global heap collection at a byte of a file fill it (HDF5 file format, III.E)."""
    stop = at + int.from_bytes(content[at + 8:at + 16], "little")
    at += 16
    while at + 16 <= stop <= len(content):
        index, size = int.from_bytes(content[at:at + 2], "little"), int.from_bytes(content[at + 8:at + 16], "little")
        step = 16 + -(-size // 8) * 8 if index else size
        if step < 16:
            return False
        at += step
    return at <= stop


class Dataset:
    """An array in a File, read when indexed. shape, dtype: of the array."""

    def __init__(self, file, name, dataset):
        self._file, self.name, self._dataset = file, name, dataset
        self.shape, self.dtype = dataset.shape, dataset.dtype

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, key):
        with self._file._guarded(self.name):
            return self._dataset[key]

    def whole(self):
        """All of it."""
        if self.dtype.itemsize * math.prod(self.shape) > WHOLE_LIMIT:
            self._file.refuse(f"has {self.name} {self.shape}, more than {WHOLE_LIMIT >> 30} GiB")
        return self[()]

    def ids(self):
        """All of it, as (n,) int64 that may not be negative or come twice."""
        found = self.whole()
        if found.ndim != 1 or found.dtype.kind not in "iu" or found.size and found.min() < 0 \
                or len(np.unique(found)) < len(found):
            self._file.refuse(f"has {self.name} that are not different ids")
        return found.astype(np.int64)
