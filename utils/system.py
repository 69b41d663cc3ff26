"""What operating systems and file systems do differently: rename, reserve room, tell whether a process lives.

Written for Linux, macOS and Windows; docs/platforms.md says what was run where.
"""
import errno
import hashlib
import os
import platform
import secrets
import shutil
import sys
import time
import uuid

import psutil

WINDOWS = sys.platform == "win32"
PATIENCE = 5.0  # seconds that a rename on Windows waits for a reader, such as a virus scanner, to let go
NO_RESERVING = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # the file system cannot, as ZFS and some network disks
GONE = (errno.ENOENT, errno.ESTALE)
ZEROS = bytes(1 << 20)


def replace(source, target):
    """Rename over `target`, atomically. On Windows a file that is open elsewhere is waited for."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return os.replace(source, target)
        except PermissionError:
            if not WINDOWS or time.monotonic() > until:
                raise
            time.sleep(0.05)


def reserve(file, size):
    """Make an open file (binary, writable) `size` bytes long, with room on the disk for all of them; content is kept.

    Raises OSError where there is no room. macOS, Windows and some file systems cannot reserve: there the room is
    filled with zeros, after a look at what is free.
    """
    file.flush()
    try:
        return os.posix_fallocate(file.fileno(), 0, size)
    except AttributeError:
        pass
    except OSError as error:
        if error.errno not in NO_RESERVING:
            raise
    there = file.seek(0, os.SEEK_END)
    if size - there > shutil.disk_usage(os.path.dirname(os.path.abspath(file.name))).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(file.name))
    for start in range(there, size, len(ZEROS)):
        file.write(ZEROS[:size - start])
    file.flush()


def is_alive(process):
    """True if a process of that number runs in this process's namespace, whoever's it is."""
    if WINDOWS:  # where os.kill ends a process whatever the signal
        return psutil.pid_exists(process)
    try:
        os.kill(process, 0)  # not by /proc: hidepid and another namespace's /proc hide living processes
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def is_gone(error):
    """True if a system's error says that a file is there no more. A network disk says ESTALE of what another machine
    replaced while it was open here; HDF5 wraps the number in a message of its own."""
    return getattr(error, "errno", None) in GONE or any(f"errno = {number}," in str(error) for number in GONE)


def namespace():
    """16 hex digits for the set of processes whose numbers mean something here: a digest of this machine's full name,
    its boot and, on Linux, the PID namespace (a container has one of its own).

    Where that cannot be known, digits that no other process has: nobody is then taken for a neighbour.
    """
    if sys.platform == "linux":
        try:
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                parts = file.read().strip(), str(os.stat("/proc/self/ns/pid").st_ino)
        except OSError:
            parts = str(os.getpid()), _UNKNOWN
    else:
        parts = (f"{uuid.getnode():x}",)
    return hashlib.blake2b("\0".join((platform.node(), *parts)).encode(), digest_size=8).hexdigest()


_UNKNOWN = secrets.token_hex(16)
