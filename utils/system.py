"""What operating systems and file systems do differently: rename, reserve room, tell whether a process lives.

Written for Linux, macOS and Windows; docs/platforms.md says what was run where.
"""
import errno
import os
import shutil
import sys
import time

import psutil

WINDOWS = sys.platform == "win32"
PATIENCE = 5.0  # seconds that a rename on Windows waits for a reader, such as a virus scanner, to let go
NO_RESERVING = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # the file system cannot, as ZFS and some network disks
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
    """True if a process of that number runs on this machine."""
    return psutil.pid_exists(process)
