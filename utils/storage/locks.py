"""Locks between processes, on names and on ranges of items, that die with the process that holds them.

Who works in a folder leaves a claim there: a hidden file that it keeps locked (by `filelock`: flock, or LockFileEx on
Windows). A claim that nobody holds is of a process that was killed, and the next one to come removes it. File systems
without flock get lock files that name their process (`SoftFileLock`), which are taken over once it is dead.
"""
import contextlib
import errno
import functools
import re
import secrets
import sys
import time
import warnings
from pathlib import Path

import filelock

GATE = ".claims.lock"  # held for the moment in which claims are looked through
CLAIM = re.compile(r"\.(.+)\.claim-[0-9a-f]{16}\.lock")
ITEMS = re.compile(r"items ([0-9]+)-([0-9]+)")
POLL = 0.1  # seconds between looks at what another process holds
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # flock of a file system that has none
_told = set()


class Held(Exception):
    """Another process holds what was asked for; the first argument is the path of its claim."""


def items(start, stop):
    """The name of a claim on items start … stop - 1: it bars those that overlap it."""
    return f"items {start}-{stop}"


@contextlib.contextmanager
def alone(folder, name, wait=True, said="waiting for another process that makes the same"):
    """Keep other processes from the same `name` in `folder` (see `items` for ranges) during the block.

    said: printed once a folder when there is something to wait for. Raises Held instead of waiting unless `wait`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        with _acquired(folder / GATE):
            held = [path for path in _claims(folder) if not _removed(path)]
            barring = next((path for path in held if _bars(_name(path), name)), None)
            if barring is None:
                mine = folder / f".{name}.claim-{secrets.token_hex(8)}.lock"
                claim = _take(mine)
                break
        if not wait:
            raise Held(barring)
        # Of a process on another machine it is not known whether it lives.
        soft = _kind(folder) is filelock.SoftFileLock
        _tell((folder, said), f"{said} (should none be running any more: delete {barring})" if soft else said)
        time.sleep(POLL)
    try:
        yield
    finally:
        with _acquired(folder / GATE):
            claim.release()
            _unlink(mine)
            if not _claims(folder):
                _unlink(folder / GATE)  # who waits for it sees that it is gone, and makes it again


def _claims(folder):
    return sorted(path for path in folder.glob(".*.lock") if CLAIM.fullmatch(path.name))


def _name(path):
    return CLAIM.fullmatch(path.name)[1]


def _bars(one, other):
    if one == other:
        return True
    first, second = ITEMS.fullmatch(one), ITEMS.fullmatch(other)
    return bool(first and second) and int(first[1]) < int(second[2]) and int(second[1]) < int(first[2])


def _removed(path):
    """Remove a claim whose process is gone; False if it is held."""
    try:
        _take(path).release()
    except filelock.Timeout:
        return False
    _unlink(path)
    return True


def _unlink(path):
    with contextlib.suppress(PermissionError):  # Windows: another process looks at it, and will remove it
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _acquired(path):
    lock = _take(path, timeout=-1)
    try:
        yield
    finally:
        lock.release()


@functools.cache
def _kind(folder):
    """The class of the locks of a folder's file system, found by locking a file of this process's own."""
    probe = folder / f".probe.claim-{secrets.token_hex(8)}.lock"
    lock = filelock.FileLock(probe)
    try:
        with warnings.catch_warnings(action="ignore"):  # some versions fall back by themselves, with a warning
            lock.acquire()
        lock.release()
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", None) not in (*NO_LOCKS, None):
            raise
        lock = None
    finally:
        _unlink(probe)
    if lock is not None and not isinstance(lock, filelock.SoftFileLock):
        return filelock.FileLock
    _tell("soft", f"the file system of {folder} has no locks: files that name their process stand in for them")
    return filelock.SoftFileLock


def _take(path, timeout=0):
    """The acquired lock of a file. Raises filelock.Timeout."""
    lock = _kind(path.parent)(path, timeout=timeout, poll_interval=POLL / 10, thread_local=False)
    lock.acquire()
    return lock


def _tell(what, line):
    if what not in _told:
        _told.add(what)
        print(line, file=sys.stderr)
