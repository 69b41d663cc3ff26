"""From a subject's sessions of betas to the voxels of each ROI, streamed.

Of a session (`beta_session`) only the ROIs' voxels are kept, and its rows go straight to their place in arrays that are
the final artifacts but for their name. A killed run goes on after its last whole session.
"""
import functools
import io
import itertools
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from utils import cli, layout, system
from utils.errors import Problem
from utils.nsd import atlases, beta_session, beta_source, experiment, object_keys, trials
from utils.storage import arrays, provenance, text_files, writing

SCRIPT = "make_subjmri.py"


@dataclass(frozen=True)
class Summary:
    """What mrifeat/ holds now: counts, and {ROI tag: voxels}."""

    trials: int
    stimuli: int
    test_stimuli: int
    sessions: int
    voxels: dict


def extract(ws, root, choice, rois=None, limit=None, workers=1, overwrite=False, source=beta_source.AUTO):
    """Write one subject's artifacts below mrifeat/ (docs/artifacts.md) for one choice of voxels; returns a Summary.

    rois: names from the atlas's table, default all. limit: only the first sessions. workers: sessions at a time.
    source: of the betas, one of beta_source.SOURCES; the arrays are the same whichever it is.
    Memory: one session's ROI voxels per worker, whatever the number of sessions. Raises Problem for whatever is
    wrong with NSD's files before anything is written, but for faults inside a session's data.
    """
    nsd_design = experiment.design(root)
    responses = experiment.responses(root, ws.subject, nsd_design)
    used = experiment.sessions(root, ws.subject, responses.sessions, limit)
    kept = np.isin(responses.sessions, used)
    session_of_trial = responses.sessions[kept]
    design = trials.Design.of(responses.stimuli[kept], nsd_design.shared)
    if design.test.all() or not design.test.any():
        raise Problem(f"{int(design.test.sum())} of {ws.subject}'s {len(design.test)} stimuli are shared ones",
                      "a test set and a training set are needed: use more sessions")
    voxels, grid, atlas_keys, left_out = choose_voxels(root, ws.subject, choice, rois)
    records = _Records(ws, root, choice, used, voxels, atlas_keys)

    with writing.locked(ws.mrifeat / "betas"):
        for leftover in ws.mrifeat.glob(".*.part.*"):  # of a killed run: the lock keeps out any other writer
            leftover.unlink()
        todo = [(tag, split) for tag in voxels for split in trials.SPLITS
                if not provenance.is_done(ws.betas(tag, split), records.found(tag, split), overwrite)]
        folder = ws.betas_parts(choice)
        if todo:
            made = [records.frame(tag, split) for tag, split in todo]
            resumed = _resumable(folder, made, todo)
            sessions = _sessions(root, ws.subject, used, session_of_trial, design, grid, voxels, choice, folder,
                                 records if resumed else None)
            sessions = beta_session.with_source(sessions, source, workers)
            # What is wrong with a header is found out now, not after hours.
            sessions = [beta_session.checked(session) for session in sessions]
            matrices = _prepare(folder, made, todo, voxels, design, choice, resumed)
            beta_session.read_all([replace(session, matrices=matrices) for session in sessions], workers,
                                  len(design.stims))
            _check_constant(folder, used, voxels)
            records.read_from({number: text_files.read_json(_marker(folder, number))["source"] for number in used})
        _write_design(ws, design, records.design, overwrite)

        def finish(tag, split):
            part = _part(folder, tag, split) if (tag, split) in todo else None
            _finish(ws, design, tag, split, records, part, overwrite, left_out)

        # Threads: what takes the time here, numpy's sums and digests, leaves the interpreter to others meanwhile.
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(finish, *zip(*itertools.product(voxels, trials.SPLITS))))
        shutil.rmtree(folder, ignore_errors=True)
    return Summary(len(design.stims), len(design.stims_ave), int(design.test.sum()), len(used),
                   {tag: len(positions) for tag, positions in voxels.items()})


def choose_voxels(root, subject, choice, rois):
    """{ROI tag: (n,) positions in the flattened (z, y, x) volume, ascending}, the Grid, the keys that were read, and
    what was left out: {"rois": those without voxels, "voxels_without_ncsnr": {ROI tag: voxels}}.

    A ROI that no voxel has is warned of and skipped. Raises Problem if none is left.
    """
    atlas = atlases.atlas(root, subject, choice.atlas)
    unknown = [roi for roi in rois or () if roi not in atlas.values]
    if unknown:
        raise Problem(f"{choice.atlas} has no ROI {' '.join(unknown)}", f"it has {' '.join(atlas.values)}")
    keys = list(atlas.keys)
    good, unknown = np.ones(atlas.labels.size, bool), np.zeros(atlas.labels.size, bool)
    if choice.ncsnr_min is not None:
        ratio, grid = atlases.ncsnr(root, subject)
        atlas.grid.must_match(grid)
        good, unknown = ratio.ravel() >= choice.ncsnr_min, np.isnan(ratio.ravel())  # NaN is never good
        keys.append(object_keys.ncsnr_key(subject))
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
        common = [object_keys.DESIGN_KEY, object_keys.responses_key(ws.subject)]
        self.design = provenance.record(SCRIPT, {"subject": ws.subject, "sessions": used},
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
        return provenance.record(SCRIPT, options, sources=self._sources | (sources or {}))

    def made(self, tag, split, average=False):
        """The record of an artifact that this run makes."""
        return self.frame(tag, split, average, {key: seen for each in self._read.values()
                                                for key, seen in each.items()})

    def found(self, tag, split, average=False):
        """The record that an artifact must have: of its sessions' files as they are now, of those that it was made of.

        Both files of a session hold the same betas, so which was read makes no difference.
        """
        side = layout.sidecar(self._ws.betas(tag, split, average))
        known = text_files.read_json(side).get("sources", {}) if side.exists() else {}
        keys = []
        for session in self._used:
            other = object_keys.betas_hdf5_key(self._ws.subject, session)
            keys.append(other if other in known else object_keys.betas_key(self._ws.subject, session))
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
    found = text_files.read_json(manifest)["records"] if manifest.exists() else []
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
        matrices.append(beta_session.Matrix(tag, split, str(part), dtype.str, header.tell(),
                                            (starts[tag], starts[tag] + width)))
    if not resumed:
        text_files.write_json(layout.manifest(folder), {"records": records})
    return tuple(matrices)


def _reserve(path, header, size):
    """A file of `size` bytes that begins with `header`; a full disk is noticed here, not after hours."""
    with writing.naming(path), open(path, "wb") as file:
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
        if not (resumed and marker.exists() and resumed.is_current(text_files.read_json(marker).get("source", {}))):
            marker.unlink(missing_ok=True)
            found.append(beta_session.Session(root, subject, number, grid, positions, is_test[inside], first_row,
                                              choice.zscore, str(marker)))
    if len(found) < len(used):
        cli.say(f"{len(used) - len(found)} of {len(used)} sessions were done before")
    return found


def _marker(folder, number):
    return folder / f"session{number:02}.json"


def _check_constant(folder, used, voxels):
    """Raises Problem for a ROI in which nothing changes in any session; says where some voxels do not."""
    by_session = [text_files.read_json(_marker(folder, number))["constant"] for number in used]
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
        if not provenance.is_done(path, record, overwrite):
            provenance.finish(path, record)
            arrays.write_npy(path, array)


def _finish(ws, design, tag, split, records, part, overwrite, left_out):
    """Write the averages of one ROI and split, then give its betas (`part`, None if done) their name."""
    path, average = ws.betas(tag, split), ws.betas(tag, split, average=True)
    source = path if part is None else part
    record_of = records.found if part is None else records.made
    if part is not None or not provenance.is_done(average, records.found(tag, split, True), overwrite):
        chosen = design.split(split)
        width = arrays.read_npy(source, mmap=True).shape[1]
        with writing.atomic(average) as temporary:
            with open(temporary, "wb") as file:
                np.lib.format.write_array_header_1_0(file, {
                    "descr": "<f4", "fortran_order": False, "shape": (len(chosen.stimuli), width)})
                betas = functools.partial(arrays.read_npy, source, mmap=True)
                for block in trials.averages(betas, chosen.rows, len(chosen.stimuli)):
                    file.write(memoryview(np.ascontiguousarray(block)).cast("B"))
            provenance.finish(average, record_of(tag, split, True), temporary, left_out=left_out)
    if part is not None:
        provenance.finish(path, record_of(tag, split), part, left_out=left_out)
        system.replace(part, path)
