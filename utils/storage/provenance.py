"""What made an artifact: its record, and whether it still holds.

Every artifact carries a record of what made it; work whose record differs from the one wanted is never reused unseen.
"""
import functools
import hashlib
import json
from pathlib import Path

from utils import __version__, layout
from utils.errors import Problem
from utils.storage import text_files, writing

READ_AT_MOST = 16 << 20  # bytes; a larger file whose record holds no digest is not read to see whether it changed


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
    writing.sweep(path.parent)
    if overwrite or not path.exists():
        return False
    side = layout.sidecar(path)
    if not side.exists():
        raise Problem(f"{path} has no {side.name} to say what made it", "pass --overwrite to make it again")
    found = text_files.read_json(side)
    must_match(found, wanted, path)
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
    text_files.write_json(layout.sidecar(path), wanted | known | results)


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
        record = text_files.read_json(side)
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
    with writing.locked(path):
        found = text_files.read_json(path) if path.exists() else None
        there = (files or layout.plain_files)(folder)
        if found is None and there and not overwrite:
            raise Problem(f"{folder} holds {there[0].name} and no {path.name} to say what made it",
                          "pass --overwrite to make its files again, or use another --workdir")
        if found is not None and not overwrite:
            must_match(found, wanted, folder)
            return
        if found is None or difference(found, wanted):
            path.unlink(missing_ok=True)
            for old in there:
                old.unlink()
        text_files.write_json(path, wanted)


def difference(found, wanted):
    """(key, found's value, wanted's value) of the first key of `wanted` in which two records differ;
    None if they agree."""
    for key, value in json.loads(json.dumps(wanted)).items():
        if found.get(key) != value:
            return (key, *_difference(found.get(key), value))
    return None


def must_match(found, wanted, what):
    differ = difference(found, wanted)
    if differ:
        raise Problem("{} was made with {} {}, now {}".format(what, *differ),
                      "pass --overwrite to make it again, or use another --workdir")


def _difference(found, wanted):
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
        return tuple({key: side.get(key) for key in keys} for side in (found, wanted))
    return found, wanted
