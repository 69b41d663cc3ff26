"""HDF5 files read by ranges: the HDF5 library says which bytes it needs, and they are read many at a time.

What the library asks for and is not here yet is written down, and the reading that asked for it is broken off. When all
readings were tried, what they missed is fetched together, and they are tried again. So the index of a dataset's chunks
is read level by level, and of it only the nodes that lead to what is wanted; the format itself is the library's.
"""
import contextlib
import io
import math

import h5py

from utils.errors import Problem
from utils.storage import hdf5

AHEAD = 16 << 10  # bytes read at once while a file is opened: its headers lie together
PART_LIMIT = 64 << 20  # bytes of one piece: a chunk or a node of an index


class _Missed(Exception):
    """Bytes are asked for that were not read yet."""


class File(hdf5.File):
    """An HDF5 file of which a ranges.Ranged reads parts. todo: what to do where it is damaged."""

    def __init__(self, ranged, todo):
        self.path, self.todo = ranged.name, todo
        self._ranged, self._raw = ranged, _Raw(ranged)
        try:
            self._file = _opened(self._raw)
        except hdf5.FAULTS as error:
            raise self._raw.fault or Problem(f"{self.path} is not a whole HDF5 file ({error})", todo) from error

    @contextlib.contextmanager
    def _guarded(self, what):
        with super()._guarded(what):
            try:
                yield
            except hdf5.FAULTS as error:
                if self._raw.fault:
                    raise self._raw.fault from error
                raise

    def dataset(self, name, kinds, ndim=None):
        """The h5py.Dataset of that name; its dtype must be of one of `kinds` (numpy's letters).

        Whether all of it was written is not known without reading its whole index: `gather` with readings that fail
        where nothing was written.
        """
        with self._guarded(name):
            found = self._find(name)
            if not isinstance(found, h5py.Dataset):
                self.refuse(f"has no dataset {name}")
            if found.is_virtual or found.external:
                self.refuse(f"keeps {name} in another file: data must lie in the file itself")
            if found.dtype.kind not in kinds or found.shape is None or ndim not in (None, found.ndim):
                self.refuse(f"has {name} of {found.dtype} {found.shape}, which it cannot be")
        return found

    def gather(self, items, read, stored=None):
        """[read(item) for item in items], with what they need of the file fetched together.

        read: function that reads of this file, and nothing else: it may be called several times for an item. items:
        best in an order in which neighbours need neighbouring bytes. stored: where `read` returns bytes as they lie in
        the file, how many; an item is then not read again when these have come. Raises Problem where one cannot be
        read.
        """
        found, todo = {}, list(range(len(items)))
        self._raw.stored = stored
        while todo:
            missed = self._tried(todo, items, read, found)
            parts = {part for part in missed.values() if part is not None}
            if any(self._ranged.find(*part) is not None for part in parts):
                self.refuse("cannot be read: the library asks again for what it was given")
            if parts:
                self._ranged.fetch(parts)
            found |= {index: bytes(self._ranged.find(*part)) for index, part in missed.items()
                      if index in found and part}
            todo = [index for index in todo if index not in found]
        return [found[index] for index in range(len(items))]

    def _tried(self, todo, items, read, found):
        """{index: (start, size) that it missed, None if nothing}, of some of `todo`. Those in `found` now missed
        nothing, or only what they are to return.

        Where two miss the same bytes, a node of the index, those between them are taken to miss it too, and are left
        for the next time.
        """
        missed = {}

        def attempt(place):
            index = todo[place]
            if index not in missed:
                missed[index] = self._attempt(index, items[index], read, found)
            return missed[index]

        spans = [(0, len(todo) - 1)]
        while spans:
            first, last = spans.pop()
            one, other = attempt(first), attempt(last)
            if last - first > 1 and (one is None or one != other):
                middle = (first + last) // 2
                spans += [(middle, last), (first, middle)]
        return missed

    def _attempt(self, index, item, read, found):
        raw = self._raw
        raw.missed, raw.blank, raw.collecting = None, None, True
        try:
            result = read(item)
        except (_Missed, *hdf5.FAULTS) as error:
            raw.missed = raw.missed or raw.blank  # a node of the index, as large as what is stored
            if raw.missed is None:
                raise Problem(f"{self.path} cannot be read ({error})", self.todo) from error
        finally:
            raw.collecting = False
        if raw.missed is None:
            found[index] = result
        elif raw.missed[1] > PART_LIMIT:
            self.refuse(f"has a piece of {raw.missed[1]:,} bytes")
        return raw.missed or raw.blank


def _opened(raw):
    """The h5py.File that reads `raw`. As h5py opens it, but for its list of properties: one that outlives the opening,
    in a traceback, crashes the library when the process ends."""
    properties = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    try:
        properties.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
        properties.set_fileobj_driver(h5py.h5fd.fileobj_driver, raw)
        return h5py.File(h5py.h5f.open(repr(raw).encode(), h5py.h5f.ACC_RDONLY, properties))
    finally:
        properties.close()


class _Raw(io.RawIOBase):
    """The file as h5py reads it. fault: what went wrong while it was opened.

    While `collecting`, bytes that are not here end the reading, and are noted as `missed`; but so many as `stored` says
    are given as zeros, and noted as `blank`: where the reading ends well with them, it was for them.
    """

    def __init__(self, ranged):
        self._ranged, self._at = ranged, 0
        self.collecting, self.missed, self.fault = False, None, None
        self.stored, self.blank = None, None

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._ranged.size}[whence]
        return self._at

    def tell(self):
        return self._at

    def readinto(self, buffer):
        size = min(len(buffer), max(0, self._ranged.size - self._at))
        if not size:
            return 0
        if self.collecting and self.blank:
            self.missed = self.blank  # not what the reading was for: it reads on
            raise _Missed
        found = self._ranged.find(self._at, size)
        if found is None:
            if self.collecting and size == self.stored:
                self.blank, found = (self._at, size), bytes(size)
            elif self.collecting:
                self.missed = (self._at, size)
                raise _Missed
            else:
                try:
                    self._ranged.fetch([(self._at, min(max(size, AHEAD), self._ranged.size - self._at))])
                except Problem as fault:
                    self.fault = fault  # raised here, it would leave the library a file neither open nor closed
                    return 0
                found = self._ranged.find(self._at, size)
        buffer[:size] = found
        self._at += size
        return size


def covering(dataset, row):
    """The offsets of the chunks that hold a row of a chunked dataset."""
    chunk = dataset.chunks
    counts = [-(-size // each) for size, each in zip(dataset.shape[1:], chunk[1:])]
    first = row // chunk[0] * chunk[0]
    for number in range(math.prod(counts)):
        place = []
        for count, each in zip(reversed(counts), reversed(chunk[1:])):
            place.append(number % count * each)
            number //= count
        yield (first, *reversed(place))
