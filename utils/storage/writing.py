"""Atomic writes, and one process at a time.

A file is written to a temporary name beside its own and renamed when whole: a reader never sees half of one.
"""
import contextlib
import os
import re
import tempfile
import time
from pathlib import Path

from utils import system
from utils.storage import locks

# .{stem}.{system.namespace()}-{process}.{random}.part{suffix}; earlier versions had a host's name for the namespace
TEMPORARY = re.compile(r"\..+\.([0-9A-Za-z]+)-([0-9]+)\.\w{8}\.part(?:\.[^.]*)?")
OLD = 24 * 3600  # seconds after which a temporary file of who knows whom is mentioned: longer than any file is written


@contextlib.contextmanager
def atomic(path):
    """Yield a temporary path beside `path`; rename it to `path` if the block ends well, remove it otherwise."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.{system.namespace()}-{os.getpid()}.",
                                    suffix=f".part{path.suffix}", dir=path.parent)
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
    """Remove the temporary files that processes of this machine and namespace left in `folder` when they were killed.

    Of others' (another machine's, container's, or from before a restart) nobody here can tell whether they are still
    written. They stay; those that have not been touched for a day are named once.
    """
    here, left = system.namespace(), []
    for path in Path(folder).glob(".*.part*"):
        made = TEMPORARY.fullmatch(path.name)
        if made and made[1] == here:
            if not system.is_alive(int(made[2])):
                with contextlib.suppress(PermissionError):
                    path.unlink(missing_ok=True)
        elif made:
            with contextlib.suppress(FileNotFoundError):  # whose it is has finished it
                left.append((path.stat().st_mtime, path.name))
    if left and time.time() - min(left)[0] > OLD:
        old = sorted(name for touched, name in left if time.time() - touched > OLD)
        locks.tell(("old", str(folder)), f"warning: {folder} holds unfinished files of another machine or container, "
                   f"or from before a restart, untouched for a day: {len(old)}, the first is {old[0]} — delete them "
                   "once nothing works there any more")


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
