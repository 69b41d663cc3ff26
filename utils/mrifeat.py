"""From a subject's sessions of betas to the voxels of each ROI, streamed.

A session is read by voxel from its .hdf5 or volume by volume from its .nii.gz (`beta_source`), only the ROIs' voxels are
kept, and its rows go straight to their place in arrays that are the final artifacts but for their name. A killed run
goes on after its last whole session.
"""
import functools
import io
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace

import numpy as np

from utils import beta_chunks, beta_source, cli, layout, nsd, ranges, store, system, trials
from utils.errors import Problem

SCRIPT = "make_subjmri.py"


@dataclass(frozen=True)
class Summary:
    """What mrifeat/ holds now: counts, and {ROI tag: voxels}."""

    trials: int
    stimuli: int
    test_stimuli: int
    sessions: int
    voxels: dict


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
    grid: nsd.Grid
    voxels: np.ndarray
    is_test: np.ndarray
    first_row: dict
    zscore: str | None
    marker: str
    by: str
    strict: bool
    link: ranges.Link
    at_a_time: int = 1
    matrices: tuple = ()


def extract(ws, root, choice, rois=None, limit=None, workers=1, overwrite=False, source=beta_source.AUTO):
    """Write one subject's artifacts below mrifeat/ (docs/artifacts.md) for one choice of voxels; returns a Summary.

    rois: names from the atlas's table, default all. limit: only the first sessions. workers: sessions at a time.
    source: of the betas, one of beta_source.SOURCES; the arrays are the same whichever it is.
    Memory: one session's ROI voxels per worker, whatever the number of sessions. Raises Problem for whatever is
    wrong with NSD's files before anything is written, but for faults inside a session's data.
    """
    nsd_design = nsd.design(root)
    responses = nsd.responses(root, ws.subject, nsd_design)
    used = nsd.sessions(root, ws.subject, responses.sessions, limit)
    kept = np.isin(responses.sessions, used)
    session_of_trial = responses.sessions[kept]
    design = trials.Design.of(responses.stimuli[kept], nsd_design.shared)
    if design.test.all() or not design.test.any():
        raise Problem(f"{int(design.test.sum())} of {ws.subject}'s {len(design.test)} stimuli are shared ones",
                      "a test set and a training set are needed: use more sessions")
    voxels, grid, atlas_keys, left_out = choose_voxels(root, ws.subject, choice, rois)
    records = _Records(ws, root, choice, used, voxels, atlas_keys)

    with store.locked(ws.mrifeat / "betas"):
        for leftover in ws.mrifeat.glob(".*.part.*"):  # of a killed run: the lock keeps out any other writer
            leftover.unlink()
        todo = [(tag, split) for tag in voxels for split in trials.SPLITS
                if not store.is_done(ws.betas(tag, split), records.found(tag, split), overwrite)]
        folder = ws.betas_parts(choice)
        if todo:
            made = [records.frame(tag, split) for tag, split in todo]
            resumed = _resumable(folder, made, todo)
            sessions = _sessions(root, ws.subject, used, session_of_trial, design, grid, voxels, choice, folder,
                                 records if resumed else None)
            sessions = _with_source(sessions, source, workers)
            sessions = [_checked(session) for session in sessions]  # what is wrong is found out now, not after hours
            matrices = _prepare(folder, made, todo, voxels, design, choice, resumed)
            _stream([replace(session, matrices=matrices) for session in sessions], workers, len(design.stims))
            _check_constant(folder, used, voxels)
            records.read_from({number: store.read_json(_marker(folder, number))["source"] for number in used})
        _write_design(ws, design, records.design, overwrite)
        for tag in voxels:
            for split in trials.SPLITS:
                part = _part(folder, tag, split) if (tag, split) in todo else None
                _finish(ws, design, tag, split, records, part, overwrite, left_out)
        shutil.rmtree(folder, ignore_errors=True)
    return Summary(len(design.stims), len(design.stims_ave), int(design.test.sum()), len(used),
                   {tag: len(positions) for tag, positions in voxels.items()})


def choose_voxels(root, subject, choice, rois):
    """{ROI tag: (n,) positions in the flattened (z, y, x) volume, ascending}, the Grid, the keys that were read, and
    what was left out: {"rois": those without voxels, "voxels_without_ncsnr": {ROI tag: voxels}}.

    A ROI that no voxel has is warned of and skipped. Raises Problem if none is left.
    """
    atlas = nsd.atlas(root, subject, choice.atlas)
    unknown = [roi for roi in rois or () if roi not in atlas.values]
    if unknown:
        raise Problem(f"{choice.atlas} has no ROI {' '.join(unknown)}", f"it has {' '.join(atlas.values)}")
    keys = list(atlas.keys)
    good, unknown = np.ones(atlas.labels.size, bool), np.zeros(atlas.labels.size, bool)
    if choice.ncsnr_min is not None:
        ratio, grid = nsd.ncsnr(root, subject)
        atlas.grid.must_match(grid)
        good, unknown = ratio.ravel() >= choice.ncsnr_min, np.isnan(ratio.ravel())  # NaN is never good
        keys.append(nsd.ncsnr_key(subject))
    found, left_out = {}, {"rois": [], "voxels_without_ncsnr": {}}
    for roi in rois or atlas.values:
        here = atlas.labels.ravel() == atlas.values[roi]
        lacking = int((here & unknown).sum())
        if lacking:
            cli.say(f"warning: {lacking} of {int(here.sum())} voxels of {roi} have no ncsnr (NaN) and are left out")
            left_out["voxels_without_ncsnr"][choice.tag(roi)] = lacking
        if (here & good).any():
            found[choice.tag(roi)] = np.flatnonzero(here & good)
        else:
            left_out["rois"].append(roi)
    lacks = f"{atlas.grid.name} has no voxels" + (
        f" with ncsnr of at least {choice.ncsnr_min:g}" if choice.ncsnr_min is not None else "")
    if not found:
        raise Problem(f"{lacks} of {' '.join(left_out['rois'])}", "choose another --atlas, --roi or --ncsnr_min")
    if left_out["rois"]:
        cli.say(f"warning: {lacks} of {' '.join(left_out['rois'])}: skipped")
    return found, atlas.grid, keys, left_out


class _Records:
    """What makes each artifact. NSD's files are named by key and version; a session's betas by the file that was read.

    design: the record of the trials' arrays.
    """

    def __init__(self, ws, root, choice, used, voxels, atlas_keys):
        self._ws, self._root, self._choice, self._used = ws, root, choice, used
        self._versions, self._read = {}, {}
        common = [nsd.DESIGN_KEY, nsd.responses_key(ws.subject)]
        self.design = store.record(SCRIPT, {"subject": ws.subject, "sessions": used},
                                   sources={key: self.version(key) for key in common})
        self._sources = {key: self.version(key) for key in (*common, *atlas_keys)}

    def version(self, key):
        """The tag of an object as it is now; it is asked for once."""
        if key not in self._versions:
            self._versions[key] = self._root.version(key).tag
        return self._versions[key]

    def read_from(self, sources):
        """Take in {session: {key: tag}} of what was read."""
        self._read = sources

    def frame(self, tag, split, average=False, sources=None):
        """The record of an artifact without its sessions' files, or with `sources` {key: tag} of them."""
        options = {"subject": self._ws.subject, "sessions": self._used, "roi": tag, "split": split, "average": average,
                   "atlas": self._choice.atlas, "zscore": self._choice.zscore, "ncsnr_min": self._choice.ncsnr_min}
        return store.record(SCRIPT, options, sources=self._sources | (sources or {}))

    def made(self, tag, split, average=False):
        """The record of an artifact that this run makes."""
        return self.frame(tag, split, average, {key: seen for each in self._read.values()
                                                for key, seen in each.items()})

    def found(self, tag, split, average=False):
        """The record that an artifact must have: of its sessions' files as they are now, of those that it was made of.

        Both files of a session hold the same betas, so which was read makes no difference.
        """
        side = layout.sidecar(self._ws.betas(tag, split, average))
        known = store.read_json(side).get("sources", {}) if side.exists() else {}
        keys = []
        for session in self._used:
            other = nsd.betas_hdf5_key(self._ws.subject, session)
            keys.append(other if other in known else nsd.betas_key(self._ws.subject, session))
        return self.frame(tag, split, average, {key: self.version(key) for key in keys})

    def is_current(self, source):
        """Whether {key: tag}, as a session's marker has it, is what the root holds now."""
        return all(self._root.exists(key) and self.version(key) == tag for key, tag in source.items())


# the arrays that sessions fill


def _part(folder, tag, split):
    return folder / f"{tag}_{split}.part"


def _resumable(folder, records, todo):
    """Whether a killed run left the arrays of `todo`, made as `records` say."""
    manifest = layout.manifest(folder)
    found = store.read_json(manifest)["records"] if manifest.exists() else []
    return all(record in found for record in records) and all(_part(folder, tag, split).exists() for tag, split in todo)


def _prepare(folder, records, todo, voxels, design, choice, resumed):
    """The matrices to fill; unless resumed, new ones, with room reserved on the disk."""
    dtype = np.dtype(np.float32 if choice.zscore else np.int16)
    if not resumed:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    starts = dict(zip(voxels, np.cumsum([0, *map(len, voxels.values())]).tolist()))
    matrices = []
    for tag, split in todo:
        part, width, rows = _part(folder, tag, split), len(voxels[tag]), len(design.split(split).trials)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {
            "descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, width)})
        if not resumed:
            _reserve(part, header.getvalue(), header.tell() + rows * width * dtype.itemsize)
        matrices.append(Matrix(tag, split, str(part), dtype.str, header.tell(), (starts[tag], starts[tag] + width)))
    if not resumed:
        store.write_json(layout.manifest(folder), {"records": records})
    return tuple(matrices)


def _reserve(path, header, size):
    """A file of `size` bytes that begins with `header`; a full disk is noticed here, not after hours."""
    with store.naming(path), open(path, "wb") as file:
        file.write(header)
        try:
            system.reserve(file, size)
        except OSError as error:
            raise Problem(f"{path} needs {size / 1e9:.2f} GB ({error.strerror})",
                          "make room or give another --workdir") from error


def _sessions(root, subject, used, session_of_trial, design, grid, voxels, choice, folder, resumed):
    """A Session, without matrices and source yet, for each of `used` that a killed run has not done.

    resumed: the _Records by which to tell what of a killed run counts, or None.
    """
    is_test = design.test[design.rows]
    positions = np.concatenate(list(voxels.values()))
    found = []
    for number in used:
        inside, before = session_of_trial == number, session_of_trial < number
        first_row = {"tr": int((before & ~is_test).sum()), "te": int((before & is_test).sum())}
        marker = _marker(folder, number)
        if not (resumed and marker.exists() and resumed.is_current(store.read_json(marker).get("source", {}))):
            marker.unlink(missing_ok=True)
            found.append(Session(root, subject, number, grid, positions, is_test[inside], first_row, choice.zscore,
                                 str(marker), beta_source.NIFTI, False, ranges.Link(root.local)))
    if len(found) < len(used):
        cli.say(f"{len(used) - len(found)} of {len(used)} sessions were done before")
    return found


def _marker(folder, number):
    return folder / f"session{number:02}.json"


def _with_source(sessions, source, workers):
    """The sessions, each with the file that it is read from, as `source` asks and one line says."""
    if not sessions:
        return []
    one = sessions[0]
    by, link = beta_source.decide(one.root, one.subject, [session.number for session in sessions], one.voxels,
                                  one.grid.shape, len(one.is_test), source, workers)
    return [replace(session, by=by[session.number], strict=source == beta_source.HDF5, link=link, at_a_time=workers)
            for session in sessions]


def _checked(session):
    """The session, from its .nii.gz if its .hdf5 cannot be used. Raises Problem unless the headers of its betas fit the
    atlas and the design."""
    if session.by == beta_source.NIFTI:
        _open(session).close()
        return session
    with ranges.Ranged(session.root, nsd.betas_key(session.subject, session.number), session.link) as packed:
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
    return beta_chunks.VoxelBetas(
        session.root, nsd.betas_hdf5_key(session.subject, session.number), session.grid.shape, len(session.is_test),
        session.link, connections=ranges.connections(session.at_a_time))


def _open(session, raw=None):
    """The session's volumes. Raises Problem unless their header fits the atlas and the design."""
    volumes = nsd.beta_volumes(session.root, session.subject, session.number, raw)
    try:
        session.grid.must_match(volumes.grid)
        if volumes.count != len(session.is_test):
            raise Problem(f"{volumes.name} has {volumes.count} volumes, but responses.tsv has {len(session.is_test)} "
                          f"trials in session {session.number}", "get both from NSD again")
    except Problem:
        volumes.close()
        raise
    return volumes


def _stream(sessions, workers, total):
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
    store.write_json(session.marker, {"constant": constant, "source": source})


def _volumes(session, moved):
    """(trials, voxels) int16 of the session's voxels, of its .nii.gz, and {key: tag} of that."""
    key = nsd.betas_key(session.subject, session.number)
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
    with ranges.Ranged(session.root, nsd.betas_key(session.subject, session.number), session.link) as packed:
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
    with store.naming(matrix.path), open(matrix.path, "r+b") as file:
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


def _check_constant(folder, used, voxels):
    """Raises Problem for a ROI in which nothing changes in any session; says where some voxels do not."""
    by_session = [store.read_json(_marker(folder, number))["constant"] for number in used]
    for tag in voxels:
        constant = [counts.get(tag, 0) for counts in by_session]
        if min(constant) == len(voxels[tag]):
            raise Problem(f"no voxel of {tag} changes within any session", "get the betas from NSD again")
        if max(constant):
            cli.say(f"warning: {tag}: up to {max(constant)} of {len(voxels[tag])} voxels are constant within a session "
                    f"(session {used[int(np.argmax(constant))]})")


# the artifacts


def _write_design(ws, design, record, overwrite):
    train = (~design.test).astype(np.float64)
    for path, array in ((ws.stims, design.stims), (ws.stims_ave, design.stims_ave), (ws.stims_ave_test, design.test),
                        (ws.train_index(), train[design.rows]), (ws.train_index(average=True), train)):
        if not store.is_done(path, record, overwrite):
            store.finish(path, record)
            store.write_npy(path, array)


def _finish(ws, design, tag, split, records, part, overwrite, left_out):
    """Write the averages of one ROI and split, then give its betas (`part`, None if done) their name."""
    path, average = ws.betas(tag, split), ws.betas(tag, split, average=True)
    source = path if part is None else part
    record_of = records.found if part is None else records.made
    if part is not None or not store.is_done(average, records.found(tag, split, True), overwrite):
        chosen = design.split(split)
        width = store.read_npy(source, mmap=True).shape[1]
        with store.atomic(average) as temporary:
            with open(temporary, "wb") as file:
                np.lib.format.write_array_header_1_0(file, {
                    "descr": "<f4", "fortran_order": False, "shape": (len(chosen.stimuli), width)})
                betas = functools.partial(store.read_npy, source, mmap=True)
                for block in trials.averages(betas, chosen.rows, len(chosen.stimuli)):
                    file.write(memoryview(np.ascontiguousarray(block)).cast("B"))
            store.finish(average, record_of(tag, split, True), temporary, left_out=left_out)
    if part is not None:
        store.finish(path, record_of(tag, split), part, left_out=left_out)
        system.replace(part, path)
