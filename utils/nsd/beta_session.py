"""One session of betas: which file it is read from, by voxel or volume by volume, and where its rows go."""
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace

import numpy as np

from utils import cli
from utils.errors import Problem
from utils.nsd import beta_chunks, beta_source, nifti_volumes, object_keys, ranges
from utils.storage import text_files, writing


@dataclass(frozen=True)
class Matrix:
    """A (trials, voxels) array of one ROI and split that sessions fill, in a file that ends as the artifact.

    offset: bytes of the .npy header. columns: start and stop among the voxels of all ROIs.
    """

    tag: str
    split: str
    path: str
    dtype: str
    offset: int
    columns: tuple


@dataclass(frozen=True)
class Session:
    """What a worker needs for one session.

    voxels: (n,) position of each voxel kept in the flattened (z, y, x) volume, ROI after ROI. is_test: (trials,) bool.
    first_row: {split: row of the session's first trial of that split}. marker: the file that says it is done.
    by: beta_source.HDF5 or NIFTI. strict: whether an .hdf5 that cannot be used is a Problem. link: ranges.Link of the
    root. at_a_time: sessions that are read beside each other.
    """

    root: object
    subject: str
    number: int
    grid: nifti_volumes.Grid
    voxels: np.ndarray
    is_test: np.ndarray
    first_row: dict
    zscore: str | None
    marker: str
    by: str = beta_source.NIFTI
    strict: bool = False
    link: ranges.Link | None = None
    at_a_time: int = 1
    matrices: tuple = ()


def with_source(sessions, source, workers):
    """The sessions, each with the file that it is read from, as `source` asks and one line says."""
    if not sessions:
        return []
    one = sessions[0]
    by, link = beta_source.decide(one.root, one.subject, [session.number for session in sessions], one.voxels,
                                  one.grid.shape, len(one.is_test), source, workers)
    return [replace(session, by=by[session.number], strict=source == beta_source.HDF5, link=link, at_a_time=workers)
            for session in sessions]


def checked(session):
    """The session, from its .nii.gz if its .hdf5 cannot be used. Raises Problem unless the headers of its betas fit the
    atlas and the design."""
    if session.by == beta_source.NIFTI:
        _open(session).close()
        return session
    with ranges.Ranged(session.root, object_keys.betas_key(session.subject, session.number), session.link) as packed:
        _open(session, packed.stream(beta_source.HEADER)).close()
    try:
        _open_voxels(session).close()
    except beta_chunks.OtherLayout as problem:
        return _from_volumes(session, problem)
    return session


def _from_volumes(session, problem):
    """The session, to be read from its .nii.gz, with one line that says why; raises `problem` if that is not wanted."""
    if session.strict:
        raise problem
    cli.say(f"{problem.what}: session {session.number:02} is read from its .nii.gz")
    return replace(session, by=beta_source.NIFTI)


def _open_voxels(session):
    key = object_keys.betas_hdf5_key(session.subject, session.number)
    return beta_chunks.VoxelBetas(session.root, key, session.grid.shape, len(session.is_test), session.link,
                                  ranges.connections(session.at_a_time))


def _open(session, raw=None):
    """The session's volumes. Raises Problem unless their header fits the atlas and the design."""
    volumes = nifti_volumes.beta_volumes(session.root, session.subject, session.number, raw)
    try:
        session.grid.must_match(volumes.grid)
        if volumes.count != len(session.is_test):
            raise Problem(f"{volumes.name} has {volumes.count} volumes, but responses.tsv has {len(session.is_test)} "
                          f"trials in session {session.number}", "get both from NSD again")
    except Problem:
        volumes.close()
        raise
    return volumes


def read_all(sessions, workers, total):
    """Read every session and write its rows; `workers` at a time, each in its own process."""
    done = total - sum(len(session.is_test) for session in sessions)
    with cli.progress(total=total, initial=done, unit="trial") as bar:
        if workers == 1:
            for session in sessions:
                bar.set_description(f"session {session.number:02}")
                read_session(session, bar.update)
            return
        # Spawned, not forked: a fork would share the parent's connections.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context) as pool:
            running = {pool.submit(read_session, session): session for session in sessions}
            try:
                for future in as_completed(running):
                    future.result()
                    bar.set_description(f"session {running[future].number:02}")
                    bar.update(len(running[future].is_test))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def read_session(session, progress=None):
    """Read one session's betas and write its rows. progress: called with how many trials' worth came since."""
    done = 0

    def moved(trials):
        nonlocal done
        done += trials
        if parent is not None and not parent.is_alive():
            raise SystemExit("the run that started this worker is gone")
        if progress:
            progress(trials)

    parent = multiprocessing.parent_process()
    if session.by == beta_source.HDF5:
        try:
            block, source = _voxels(session, moved)
        except beta_chunks.OtherLayout as problem:
            session = _from_volumes(session, problem)
            moved(-done)
    if session.by == beta_source.NIFTI:
        block, source = _volumes(session, moved)
    constant = {}
    for matrix in session.matrices:
        betas = block[:, slice(*matrix.columns)]
        constant[matrix.tag] = int((betas == betas[0]).all(axis=0).sum())
        if session.zscore:
            betas = zscored(betas, ~session.is_test, f"session {session.number}")
        chosen = session.is_test if matrix.split == "te" else ~session.is_test
        rows = np.ascontiguousarray(betas[chosen], np.dtype(matrix.dtype))
        _write_rows(matrix, session.first_row[matrix.split], rows)
    text_files.write_json(session.marker, {"constant": constant, "source": source})


def _volumes(session, moved):
    """(trials, voxels) int16 of the session's voxels, of its .nii.gz, and {key: tag} of that."""
    key = object_keys.betas_key(session.subject, session.number)
    version = session.root.version(key)
    block = np.empty((len(session.is_test), len(session.voxels)), np.int16)
    with _open(session, session.root.open(key, version=version)) as volumes:
        for row, volume in zip(block, volumes, strict=True):
            _take(volume, session.voxels, row)
            moved(1)
    return block, {key: version.tag}


def _take(volume, voxels, row):
    # "clip" lets take write straight into the row; the positions come from a volume of the same shape.
    np.take(volume.reshape(-1), voxels, out=row, mode="clip")


def _voxels(session, moved):
    """As _volumes, of the session's .hdf5, whose first trial must be that of the .nii.gz."""
    first = np.empty(len(session.voxels), np.int16)
    with ranges.Ranged(session.root, object_keys.betas_key(session.subject, session.number), session.link) as packed:
        # The first of so many volumes is about so many bytes; what lacks is read then.
        with _open(session, packed.stream(packed.size // len(session.is_test) + beta_source.HEADER)) as volumes:
            _take(next(iter(volumes)), session.voxels, first)
    trials, shares = 0, 0.0

    def part(share):
        nonlocal trials, shares
        shares += share
        moved(round(shares * len(session.is_test)) - trials)
        trials = round(shares * len(session.is_test))

    with _open_voxels(session) as betas:
        block = betas.read(session.voxels, part)
        betas.must_begin_with(first, block)
        return block, {betas.key: betas.tag}


def _write_rows(matrix, first_row, rows):
    with writing.naming(matrix.path), open(matrix.path, "r+b") as file:
        file.seek(matrix.offset + first_row * rows.shape[1] * rows.itemsize)
        file.write(memoryview(rows).cast("B") if rows.size else b"")
        file.flush()
        os.fsync(file.fileno())


def zscored(betas, training, what):
    """Z-scores of each voxel by the mean and standard deviation of its training trials.

    betas (trials, voxels), training (trials,) bool. Returns (trials, voxels) float32; a voxel that is constant over the
    training trials becomes 0. Raises Problem with fewer than two training trials; `what` names them.
    """
    if training.sum() < 2:
        raise Problem(f"{what} has {int(training.sum())} training trials",
                      "--zscore needs two a session: run without it")
    mean = betas[training].mean(axis=0, dtype=np.float64)
    deviation = betas[training].std(axis=0, dtype=np.float64)
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    return ((betas - mean) * scale).astype(np.float32)
