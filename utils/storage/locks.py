"""Locks between processes, of one machine or of many, on names and on ranges of items.

Who works in a folder leaves a claim there: a hidden file of a name that no other has, which says whose it is
(`system.namespace` and the process), is held by `flock` (through `filelock`) and is touched every few seconds. First
claim, then look: who finds a claim that bars its own takes its own back and waits. No step but creating a file has to
be atomic, so this holds on network disks too, and where `flock` is missing or does not reach other machines.

A claim is dead if its process is of this namespace and gone; or if it has not been touched for `PATIENCE` seconds, by
the file system's own clock, and nobody holds it by `flock`. Whoever comes next removes it. A process that stood still
for longer than that on a disk without `flock` finds its claim gone at the end, and says so.
"""
import contextlib
import errno
import os
import random
import re
import secrets
import sys
import threading
import time
from pathlib import Path

import filelock

from utils import system
from utils.storage import mounts

CLAIM = re.compile(r"\.(.+)\.claim-([0-9a-f]{16})-([0-9]+)-[0-9a-f]{16}\.lock")
ITEMS = re.compile(r"items ([0-9]+)-([0-9]+)")
BEAT = 10.0  # seconds between touches of a claim
PATIENCE = 120.0  # seconds without one: more than the 60 that a client of a network disk may take for its caches
POLL = 0.1, 1.0  # seconds between looks at what another process holds, at first and in the long run
TRIES = 5  # of two that look at the same moment both step back: so often before Held is raised
# flock of a file system that has none; of NFS, for a file that may only be read
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)
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
    claim, clock, pause, tries = None, None, POLL[0], 0
    while claim is None:
        barring = _barring(folder, name, clock)
        if barring is None:
            claim = _Claim(folder, name)
            clock = claim.created - time.monotonic()
            barring = _barring(folder, name, clock, claim.path)
        if barring is not None:
            if claim is not None:
                claim.withdraw()
                claim = None
            clock = _clock(folder) if clock is None else clock
            tries += 1
            if not wait and tries >= TRIES:
                raise Held(barring)
            if wait and tries == 1:
                tell((folder, said), said)
            time.sleep(random.uniform(0.5, 1) * pause)
            pause = min(pause * 1.1, POLL[1])
    try:
        claim.keep()
        yield
    finally:
        if not claim.withdraw():
            tell((folder, "lost"), f"warning: {folder.name}: this process stood still for over {PATIENCE:.0f} s, and "
                 "another may have made the same meanwhile")


def is_held(folder, name):
    """True if another block, of this process or another, has what `alone` would have to wait for."""
    return _barring(Path(folder), name, None) is not None


class _Claim:
    """This process's claim. created: the file system's time at which it was made, in seconds."""

    def __init__(self, folder, name):
        self.path = folder / f".{name}.claim-{system.namespace()}-{os.getpid()}-{secrets.token_hex(8)}.lock"
        self._over, self._beating = threading.Event(), None
        self._file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        try:
            _say_what_is_lacking(folder, missing=_flock(self._file) is None)
            self.created = os.fstat(self._file).st_mtime
        except BaseException:
            self.withdraw()
            raise

    def keep(self):
        """Touch it from now on."""
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()

    def _beat(self):
        while not self._over.wait(BEAT):
            try:
                os.utime(self.path)
            except FileNotFoundError:
                return
            except OSError:  # a network disk's bad moment: the next touch may succeed
                continue

    def withdraw(self):
        """Give it up; False if another process had removed it."""
        self._over.set()
        if self._beating is not None:
            self._beating.join()
        there = self.path.exists()
        os.close(self._file)  # before the file goes: Windows removes none that is open, NFS renames it instead
        _unlink(self.path)
        return there


def _barring(folder, name, clock, mine=None):
    """The path of a living claim that bars `name`; dead ones are removed on the way.

    clock: what to add to time.monotonic() to have the file system's time; None where this machine's is to do.
    """
    found = None
    for path in sorted(folder.glob(".*.lock")):
        claim = CLAIM.fullmatch(path.name)
        if claim is None or path == mine:
            continue
        if _is_dead(path, claim, clock):
            _unlink(path)
        elif found is None and _bars(claim[1], name):
            found = path
    return found


def _bars(one, other):
    if one == other:
        return True
    first, second = ITEMS.fullmatch(one), ITEMS.fullmatch(other)
    return bool(first and second) and int(first[1]) < int(second[2]) and int(second[1]) < int(first[2])


def _is_dead(path, claim, clock):
    if claim[2] == system.namespace() and not system.is_alive(int(claim[3])):
        return True
    try:
        with _opened(path) as file:
            touched = os.fstat(file).st_mtime
            if clock is None and time.time() - touched >= PATIENCE:
                clock = _clock(path.parent)  # this machine's may differ from the file system's
            now = time.time() if clock is None else clock + time.monotonic()
            return now - touched >= PATIENCE and _flock(file) is not False
    except OSError as error:
        if system.is_gone(error):  # whose it is has withdrawn it
            return True
        raise


@contextlib.contextmanager
def _opened(path):
    """A file's descriptor. Opened, and not only looked at: a network disk then asks its server about it."""
    try:
        file = os.open(path, os.O_RDWR)  # NFS locks only what may be written
    except PermissionError:  # another person's
        file = os.open(path, os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)


def _clock(folder):
    """What to add to time.monotonic() to have the file system's time."""
    path = folder / f".clock-{secrets.token_hex(8)}.lock"
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    try:
        return os.fstat(file).st_mtime - time.monotonic()
    finally:
        os.close(file)
        _unlink(path)


def _unlink(path):
    with contextlib.suppress(PermissionError):  # Windows: another process looks at it, and will remove it
        path.unlink(missing_ok=True)


def _flock(file):
    """Try to lock an open file: True if it is locked now, False if another process holds it, None if the file system
    has no locks."""
    try:
        return filelock.lock_descriptor(file, blocking=False)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None


def _say_what_is_lacking(folder, missing):
    """Name the mount option by which a folder's locks do not reach other machines, once."""
    if ("checked", folder) in _told:
        return
    _told.add(("checked", folder))
    mount = mounts.of(folder)
    if mount is not None and mount.is_object_store:
        tell(("store", mount.point), f"warning: {mount.point} is an object store ({mount.kind}.{mount.helper}), on "
             "which two processes cannot be kept apart: let only one at a time work there")
    elif missing:
        which = f" ({mount.kind} at {mount.point})" if mount else ""
        mend = f"; to have locks, {mount.mend}" if mount and mount.mend else ""
        tell("soft", f"the file system of {folder}{which} has no locks: claims that are touched every {BEAT:.0f} s "
             f"stand in for them{mend}")
    elif mount is not None and mount.local_lock:
        tell("soft", f"{mount.point} is {mount.kind} mounted with {mount.local_lock}, so its locks do not reach other "
             f"machines: claims that are touched every {BEAT:.0f} s stand in for them; to have locks, {mount.mend}")


def tell(what, line):
    """A line on stderr, the first time only."""
    if what not in _told:
        _told.add(what)
        print(line, file=sys.stderr)
