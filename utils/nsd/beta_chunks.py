"""A session's betas by voxel, from NSD's betas_sessionNN.hdf5, which has a chunk for each.

NSD's manual says that they are the integers of the .nii.gz beside them. What is taken for granted of the layout is
looked up in the file, and the first trial is held against the .nii.gz (docs/nsd_formats.md, "Betas").
"""
import numpy as np

from utils.errors import Problem
from utils.nsd import ranges, remote_hdf5, retrying

GROUP = 16384  # voxels read together: they bound what is held in memory
AGAIN = "get the file from NSD again, or pass --source nifti"


class OtherLayout(Problem):
    """The file is not laid out as NSD's manual says, is damaged, or holds something else than its .nii.gz."""


class VoxelBetas:
    """One session. shape: (x, y, z) of its volume. trials: how many it has. link, connections: see ranges.Ranged.

    Opening reads the headers alone. Raises OtherLayout where a chunk is not one voxel's uncompressed int16.
    """

    def __init__(self, root, key, shape, trials, link, connections=ranges.CONNECTIONS):
        self.key, self._shape, self._trials, self._file = key, shape[::-1], trials, None
        self._ranged = ranges.Ranged(root, key, link, connections=connections)
        self.name, self.tag = self._ranged.name, self._ranged.tag
        try:
            with _layout():
                self._file = remote_hdf5.File(self._ranged, AGAIN)
                self._betas = self._file.dataset("betas", "biufcSOV")
                self._check()
        except Problem:
            self.close()
            raise

    def _check(self):
        betas = self._betas
        for what, found, wanted in (
                ("shape", betas.shape, (self._trials, *self._shape)),
                ("type", betas.dtype.newbyteorder("=").name, "int16"),
                ("chunks", betas.chunks, (self._trials, 1, 1, 1)),
                ("filters", betas.id.get_create_plist().get_nfilters(), 0)):
            if found != wanted:
                self._file.refuse(f"has betas of {what} {found}, not {wanted}")

    @property
    def requests(self):
        return self._ranged.requests

    @property
    def received(self):
        """Bytes that came."""
        return self._ranged.received

    def read(self, positions, progress=None):
        """(trials, n) int16 of the voxels at `positions`, (n,) in the flattened (z, y, x) volume, ascending or nearly.

        progress: called with the share of the voxels that a group of them is. Raises OtherLayout for a damaged file.
        """
        found = np.empty((self._trials, len(positions)), np.int16)
        places = np.stack(np.unravel_index(positions, self._shape), 1).tolist()
        # In the order of the file, as far as it is known: neighbours are then found in one node of the index.
        order = np.argsort(positions, kind="stable")
        for start in range(0, len(order), GROUP):
            group = order[start:start + GROUP]
            with _layout():
                chunks = self._file.gather([places[index] for index in group], self._chunk, self._trials * 2)
            self._ranged.forget()
            group_betas = np.frombuffer(b"".join(chunks), self._betas.dtype).reshape(len(group), self._trials)
            found[:, group] = group_betas.T
            if progress:
                progress(len(group) / len(order))
        return found

    def _chunk(self, place):
        """The bytes of one voxel's chunk. One that was never written is a fault, not zeros."""
        return self._betas.id.read_direct_chunk((0, *place))[1]

    def must_begin_with(self, first, betas):
        """Raises OtherLayout unless the first trial of `betas`, (trials, n), is `first`, (n,) of the .nii.gz."""
        differ = int((betas[0] != first).sum())
        if differ:
            raise OtherLayout(f"{self.name} differs from its .nii.gz in {differ:,} of {len(first):,} voxels of the "
                              "first trial", AGAIN)

    def close(self):
        if self._file is not None:
            self._file.close()
        self._ranged.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class _layout:
    """What is wrong with the file itself is an OtherLayout; what keeps it from being read stays what it is."""

    def __enter__(self):
        return self

    def __exit__(self, kind, problem, _):
        if isinstance(problem, Problem) and not isinstance(problem, (retrying.Unavailable, OtherLayout)):
            raise OtherLayout(problem.what, problem.todo) from problem
