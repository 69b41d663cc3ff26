"""Which of NSD's two files of a session is read: the .hdf5, by voxel, or the whole .nii.gz."""
import os
from dataclasses import dataclass

import numpy as np

from utils import cli
from utils.errors import Problem
from utils.nsd import object_keys, ranges

AUTO, HDF5, NIFTI = SOURCES = ("auto", "hdf5", "nifti")
NODE = 3656  # bytes of a node of the index of chunks in four dimensions (HDF5 file format, III.A.1, 64 children)
PER_NODE = 32  # chunks that a node leads to at least: it is split when it holds 64
VOXEL = 1e-4  # seconds of a processor that a voxel of an .hdf5 takes (benchmarks/slow_link.py)
INFLATED = 0.98e9  # bytes of a .nii.gz unpacked in a second of a processor (benchmarks/subjmri.py)
HEADER = 4096  # bytes in which a .nii.gz's header is, packed
PROBE = 256 << 10  # bytes by which the rate of a connection is measured


@dataclass(frozen=True)
class Cost:
    """What a session takes: seconds, bytes over the wire, requests."""

    seconds: float
    size: int
    requests: int

    def __str__(self):
        return f"{self.size / 1e6:,.0f} MB in {self.requests:,} request{'s'[:self.requests > 1]}, {self.seconds:.2g} s"


def by_voxel(positions, trials, link, workers=1):
    """The Cost of the voxels at `positions` of an .hdf5 whose chunks lie as their voxels do."""
    connections = ranges.connections(workers)
    width = 2 * trials
    nodes = np.unique(positions // PER_NODE)
    parts = [*zip((positions * (width + NODE // PER_NODE)).tolist(), [width] * len(positions))]
    found = [ranges.plan(parts, link, connections),
             ranges.plan([(node * (NODE + PER_NODE * width), NODE) for node in nodes.tolist()], link, connections)]
    sizes = [sum(stop - start for start, stop in each) for each in found]
    seconds = sum(link.seconds(len(each), size, connections) for each, size in zip(found, sizes))
    return Cost(seconds + len(positions) * VOXEL, sum(sizes), sum(map(len, found)))


def whole(size, unpacked, link, workers=1):
    """The Cost of a .nii.gz of so many bytes, of `workers` that are read at a time."""
    at_a_time = min(workers, os.cpu_count() or 1)
    rate = min(link.rate, link.total / workers)
    return Cost(link.latency + max(size / rate / workers, unpacked / INFLATED / at_a_time), size, 1)


def measured(root, key):
    """The Link to the root, as the first bytes of an object tell."""
    link = ranges.Link(root.local)
    if not root.local:
        with ranges.Ranged(root, key, link) as probe:
            size = probe.size
            for start, stop in ((0, HEADER), (HEADER, 2 * HEADER), (2 * HEADER, 2 * HEADER + PROBE)):
                if start < size:  # the first opens the connection, the second tells the latency
                    probe.fetch([(start, min(stop, size) - start)])
    return link


def decide(root, subject, used, positions, shape, trials, source, workers=1):
    """({session: HDF5 or NIFTI}, the ranges.Link), with one line that says why.

    used: the sessions. positions: (n,) of the voxels wanted in the flattened volume of `shape`. trials: of a session.
    source: one of SOURCES. Raises Problem if HDF5 is asked for and not there.
    """
    sizes = dict(root.list(object_keys.betas_prefix(subject)))
    lacking = [session for session in used if object_keys.betas_hdf5_key(subject, session) not in sizes]
    if source == NIFTI:
        return dict.fromkeys(used, NIFTI), ranges.Link(root.local)
    if source == HDF5 and lacking:
        raise Problem(f"{root.name(object_keys.betas_prefix(subject))} has no .hdf5 of session {_list(lacking)}",
                      "pass --source auto or nifti")
    if len(lacking) == len(used):
        cli.say("betas are read from .nii.gz: there is no .hdf5 beside it")
        return dict.fromkeys(used, NIFTI), ranges.Link(root.local)
    first = next(session for session in used if session not in lacking)
    link = measured(root, object_keys.betas_key(subject, first))
    chosen = HDF5
    if source == AUTO:
        total = int(np.prod(shape))
        voxels = by_voxel(positions, trials, link, workers)
        volumes = whole(sizes[object_keys.betas_key(subject, first)], 2 * trials * total, link, workers)
        chosen = HDF5 if voxels.seconds < volumes.seconds else NIFTI
        cli.say(f"betas are read from .{'hdf5, by voxel' if chosen == HDF5 else 'nii.gz'}: {len(positions):,} of "
                f"{total:,} voxels are about {voxels} a session, the .nii.gz {volumes}")
    if chosen == HDF5 and lacking:
        cli.say(f"session {_list(lacking)} has no .hdf5 and is read from its .nii.gz")
    return {session: NIFTI if session in lacking else chosen for session in used}, link


def _list(numbers):
    return ", ".join(map(str, numbers))
