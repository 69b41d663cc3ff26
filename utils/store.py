"""Atomic writes, what made an artifact, shards of features, and subject matrices.

A file is written to a temporary name beside its own and renamed when whole: a reader never sees half of one.
Every artifact carries a record of what made it; work whose record differs from the one wanted is never reused unseen.
"""
import contextlib
import csv
import functools
import hashlib
import io
import json
import os
import platform
import re
import tempfile
import tokenize
import zipfile
from pathlib import Path

import h5py
import numpy as np

from utils import __version__, hdf5, layout, locks, system
from utils.errors import Problem

CHUNK_BYTES = 1 << 20
NPY_FAULTS = (ValueError, EOFError, TypeError, OverflowError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile)
H5_OVERHEAD = 64 << 10  # bytes beside the data
READ_AT_MOST = 16 << 20  # bytes; a larger file whose record holds no digest is not read to see whether it changed
HOST = "".join(letter for letter in platform.node() if letter.isalnum()) or "host"


@contextlib.contextmanager
def atomic(path):
    """Yield a temporary path beside `path`; rename it to `path` if the block ends well, remove it otherwise."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.{HOST}-{os.getpid()}.", suffix=f".part{path.suffix}",
                                    dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        system.replace(temporary, path)
    except BaseException as error:
        # Refused on Windows, while the traceback holds a map of it: `sweep` will find it.
        with contextlib.suppress(PermissionError):
            temporary.unlink(missing_ok=True)
        with naming(path):
            raise error


@contextlib.contextmanager
def naming(path):
    """Let the system's errors say that they are of `path`, also those that HDF5 wraps in messages of its own."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        wrapped = re.search(r"errno = (\d+)", str(error))
        number = int(wrapped[1]) if wrapped else getattr(error, "errno", None)
        if number is None or not wrapped and error.filename is not None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def sweep(folder):
    """Remove the temporary files that processes of this machine left in `folder` when they were killed."""
    for path in Path(folder).glob(f".*.{HOST}-*.part*"):
        maker = path.name.split(f".{HOST}-")[1].split(".")[0]
        if not system.is_alive(int(maker)):
            with contextlib.suppress(PermissionError):
                path.unlink(missing_ok=True)


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def locked(path):
    """Let one process at a time make `path`; another waits, and says so. The lock dies with its process."""
    path = Path(path)
    with locks.alone(path.parent, path.name, said=f"{path.name}: waiting for another process that makes it"):
        sweep(path.parent)
        yield


def working(folder, start, stop):
    """Let one process at a time make items start..stop of `folder`; processes with other items go on side by side.

    What another process made meanwhile is there when the block begins: look for it inside.
    """
    return locks.alone(folder, locks.items(start, stop),
                       said=f"{Path(folder).name}: waiting for another process that makes the same items")


def write_text(path, text):
    """`text` in UTF-8, its lines ended by a line feed on every platform."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_csv(path, fields, rows, form, record=None):
    """Rows (dicts of `fields`, some may lack) as CSV, numbers with a fraction in the format `form`; and the record."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:{form}}" if isinstance(value, (float, np.floating)) else value
                      for name, value in row.items()} for row in rows)
    with atomic(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="\n")
        if record is not None:
            finish(path, record)


def read_csv(path):
    """Rows of a CSV as dicts of strings."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_json(path, content):
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_json(path):
    """Raises Problem if the file is not a JSON object."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise Problem(f"{path} is not valid JSON ({error})", "delete it and run its stage again") from error
    return found


def write_npy(path, array):
    whole = io.BytesIO()  # numpy writes to a real file past Python, and then cannot say why it failed
    np.save(whole, array, allow_pickle=False)
    with atomic(path) as temporary:
        temporary.write_bytes(whole.getbuffer())


def new_npy(temporary, shape, dtype=np.float32):
    """A memory map of a new .npy file whose room on the disk is reserved:
    writing to a full disk would end in SIGBUS."""
    out = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
    with open(temporary, "rb+") as file:
        system.reserve(file, os.fstat(file.fileno()).st_size)
    return out


@contextlib.contextmanager
def new_h5(temporary, size):
    """A new HDF5 file for about `size` bytes. The room is asked for first: HDF5 crashes when the disk fills up."""
    with open(temporary, "wb") as file:
        system.reserve(file, size + H5_OVERHEAD)
    with h5py.File(temporary, "w") as file:
        yield file


def read_npy(path, mmap=False, made_by=None):
    """An array of numbers; never unpickled. made_by: the command to name when the file is missing.

    It is mapped even to be read whole: a header that promises more than the file holds is then found out before any
    memory is set aside.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf":
            raise ValueError("no array of numbers")
    except FileNotFoundError as error:
        raise Problem(f"{path} is missing", f"run {made_by}" if made_by else "run the stage that writes it") from error
    except NPY_FAULTS as error:
        raise Problem(f"{path} is not a whole .npy file ({error})", "delete it and run its stage again") from error
    return found if mmap else np.array(found)


def digest(path):
    """BLAKE2b-128 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def record(script, options, inputs=(), **more):
    """What made an artifact: the script, the options that matter, the digest of each input file, the code's version.

    inputs: paths; they are named by their last three parts so that a moved working folder stays valid.
    """
    named = {"/".join(Path(path).parts[-3:]): digest(path) for path in inputs}
    return {"made_by": script, "options": options, "inputs": named, "version": __version__, **more}


def is_done(path, wanted, overwrite):
    """True if `path` is whole and was made as `wanted` says (see `record`); False if it has to be made.

    Raises Problem if it was made otherwise: nothing stale is reused, and nothing is redone unasked.
    """
    path = Path(path)
    sweep(path.parent)
    if overwrite or not path.exists():
        return False
    side = layout.sidecar(path)
    if not side.exists():
        raise Problem(f"{path} has no {side.name} to say what made it", "pass --overwrite to make it again")
    found = read_json(side)
    _must_match(found, wanted, path)
    if is_altered(path, found):
        raise Problem(f"{path} changed after {found.get('made_by')} wrote it", "pass --overwrite to make it again")
    return True


def finish(path, wanted, temporary=None, **results):
    """Write the record beside an artifact. Call it before the artifact itself is renamed into place.

    An old artifact goes first: it must never stand beside a record that is not its own. temporary: the whole new one,
    whose digest the record keeps.
    """
    Path(path).unlink(missing_ok=True)
    known = {} if temporary is None else {"digest": digest(temporary)}
    write_json(layout.sidecar(path), wanted | known | results)


def is_altered(path, record):
    """True if the content of `path` is not what its record says. Read only if it is younger than the record."""
    path = Path(path)
    if "digest" not in record or path.stat().st_mtime_ns <= layout.sidecar(path).stat().st_mtime_ns:
        return False
    return digest(path) != record["digest"]


@functools.lru_cache
def _known_digest(path, _):
    """A file's digest: from its record, or by reading it; None for a large file that only reading would tell.

    _: the file's time, so that a digest is remembered until the file changes.
    """
    path, side = Path(path), layout.sidecar(path)
    if side != path and side.exists():
        record = read_json(side)
        if "digest" in record and not is_altered(path, record):
            return record["digest"]
    return digest(path) if path.stat().st_size <= READ_AT_MOST else None


def changed_input(record, workdir, known=()):
    """The name of a recorded input whose file is there but holds something else now; None if there is none.

    Names are the last three parts of paths: `known` lists those that do not lie three below the working folder.
    """
    paths = {"/".join(path.parts[-3:]): path for path in known}
    for name, wanted in record.get("inputs", {}).items():
        path = paths.get(name, Path(workdir) / name)
        if path.exists() and _known_digest(path, path.stat().st_mtime_ns) not in (None, wanted):
            return name
    return None


def claim_folder(folder, wanted, overwrite, files=None):
    """Say in `folder` what makes its files. Raises Problem if files there were made otherwise, or nothing says how.

    With overwrite, files that were made otherwise are removed first: they must never stand beside a record that is not
    theirs. files: function of the folder that finds its artifacts; by default all its plain files.
    """
    path = layout.manifest(folder)
    with locked(path):
        found = read_json(path) if path.exists() else None
        there = (files or layout.plain_files)(folder)
        if found is None and there and not overwrite:
            raise Problem(f"{folder} holds {there[0].name} and no {path.name} to say what made it",
                          "pass --overwrite to make its files again, or use another --workdir")
        if found is not None and not overwrite:
            _must_match(found, wanted, folder)
            return
        if found is None or difference(found, wanted):
            path.unlink(missing_ok=True)
            for old in there:
                old.unlink()
        write_json(path, wanted)


def difference(found, wanted):
    """(key, found's value, wanted's value) of the first key of `wanted` in which two records differ;
    None if they agree."""
    for key, value in json.loads(json.dumps(wanted)).items():
        if found.get(key) != value:
            return (key, *_difference(found.get(key), value))
    return None


def _must_match(found, wanted, what):
    differ = difference(found, wanted)
    if differ:
        raise Problem("{} was made with {} {}, now {}".format(what, *differ),
                      "pass --overwrite to make it again, or use another --workdir")


def _difference(found, wanted):
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
        return tuple({key: side.get(key) for key in keys} for side in (found, wanted))
    return found, wanted


class Shards:
    """A folder of features, one HDF5 file per range of stimuli: `stim_ids` (n,) and `features` (n, …).

    Reading also takes the original pipeline's `{stim:06}.npy`, one stimulus a file.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        sweep(self.folder)
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
            _must_match(found, {key: str(value) for key, value in wanted.items()}, self.folder)

    def files(self, stimuli):
        """{file name: size in bytes} of the files that hold `stimuli`: a cheap sign that they were written anew."""
        paths = {self._where[int(stimulus)][0] for stimulus in stimuli}
        return {path.name: path.stat().st_size for path in sorted(paths)}

    def item_shape(self):
        """Shape of one stimulus's feature."""
        path, row = next(iter(self._where.values()))
        if row is None:
            return read_npy(path, mmap=True).shape
        with self._open(path) as file:
            return file.dataset("features", "biuf").shape[1:]

    def write(self, stimuli, features, attributes):
        """One shard. stimuli (n,) ascending 73k ids; features (n, …)."""
        path = layout.feature_shard(self.folder, int(stimuli[0]), int(stimuli[-1]) + 1)
        with atomic(path) as temporary, new_h5(temporary, features.nbytes) as file:
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
                alike = difference({key: str(value) for key, value in file.attributes().items()}, wanted) is None
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
                block = read_npy(path)[None]
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


class SubjectFeatures:
    """A subject's feature matrix, each stimulus once (docs/artifacts.md): `tr` and `te` groups of an open HDF5 file.

    `features` (stimuli, dims) float32 or float16, chunked for reading blocks of dims; `stim_ids` (stimuli,);
    `trial_rows` (trials,) maps trials to rows.
    """

    def __init__(self, path, made_by):
        self.file = hdf5.File(path, f"run {made_by}", "delete it and run its stage again")
        self.path = Path(path)
        self.attributes = {key: str(value) for key, value in self.file.attributes().items()}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def stimuli(self, split):
        """(stimuli,) int64 0-based 73k ids of the rows of `features`."""
        ids = self.file.dataset(f"{split}/stim_ids", "iu").ids()
        if len(ids) != len(self.features(split)):
            self.file.refuse(f"has not one row of {split}/features a stimulus")
        return ids

    def trial_rows(self, split):
        """(trials,) int64: the row of `features` that each trial shows."""
        rows = self.file.dataset(f"{split}/trial_rows", "iu", 1).whole()
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self.features(split)):
            self.file.refuse(f"has {split}/trial_rows out of range")
        return rows.astype(np.int64)

    def features(self, split):
        """(stimuli, dims), read when indexed."""
        return self.file.dataset(f"{split}/features", "biuf", 2)


def write_subject_features(path, splits, attributes, wanted=None, progress=None, block=256):
    """Write a subject matrix from shards, and its record `wanted`, if there is one, beside it.

    splits: {"tr": (stim_ids (n,), trial_rows (trials,), read), "te": …}, where read(ids) gives (len(ids), …) features.
    attributes: what made the features. progress: called with the number of stimuli done.
    """
    first, _, read = next(iter(splits.values()))
    bytes_each = read(first[:1]).nbytes
    with atomic(path) as temporary:
        with new_h5(temporary, bytes_each * sum(len(stimuli) for stimuli, *_ in splits.values())) as file:
            for split, (stimuli, trial_rows, read) in splits.items():
                group = file.create_group(split)
                group.create_dataset("stim_ids", data=np.asarray(stimuli, np.int64))
                group.create_dataset("trial_rows", data=np.asarray(trial_rows, np.int64))
                for start in range(0, len(stimuli), block):
                    features = read(stimuli[start:start + block])
                    features = features.reshape(len(features), -1)
                    if start == 0:
                        count, dims = len(stimuli), features.shape[1]
                        rows = min(count, block)
                        columns = max(1, min(dims, CHUNK_BYTES // (rows * features.dtype.itemsize)))
                        matrix = group.create_dataset("features", (count, dims), features.dtype, chunks=(rows, columns))
                    matrix[start:start + len(features)] = features
                    if progress:
                        progress(len(features))
            for key, value in sorted(attributes.items()):
                file.attrs[key] = str(value)
        if wanted is not None:
            finish(path, wanted, temporary)
