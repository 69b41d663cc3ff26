"""Which file system a folder lies on, and whether its locks and listings reach other machines.

From Linux's table of mounts; elsewhere nothing is known of a folder, and it is taken for a local disk.
"""
import contextlib
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

TABLE = Path("/proc/self/mountinfo")
# Options by which `flock` is kept to one machine: nfs(5), mount.lustre(8), mount.cifs(8); ocfs2, gfs2 and afs in the
# kernel's documentation.
LOCAL_LOCKS = {"nfs": ("nolock", "local_lock=flock", "local_lock=all"), "lustre": ("localflock",),
               "cifs": ("nobrl",), "ocfs2": ("localflocks",), "gfs2": ("localflocks",), "afs": ("flock=local",)}
MEND = {"nfs": "mount it with local_lock=none, without nolock; NFS before version 4 takes lockd and statd",
        "lustre": "mount it with -o flock", "cifs": "mount it without nobrl",
        "ocfs2": "mount it without localflocks", "gfs2": "mount it without localflocks",
        "afs": "mount it without flock=local"}
# A directory's listing may be cached on each client for up to a minute (acdirmax of nfs(5), actimeo of mount.cifs(8)).
STALE_LISTINGS = ("nfs", "cifs", "fuse", "9p", "virtiofs", "afs", "beegfs")
# Object stores in a disk's clothes: what one machine has created, another need not see, and a rename is a copy.
OBJECT_STORES = ("s3fs", "goofys", "rclone", "gcsfuse", "mountpoint-s3", "blobfuse", "blobfuse2")
PAUSES = (0.2, 0.5, 1.0, 2.0, 3.0)  # seconds that a listing which may lag is given, one after another
ALIASES = {"nfs4": "nfs", "smb3": "cifs", "beegfs_nodev": "beegfs"}


@dataclass(frozen=True)
class Mount:
    """kind: the file system's name (nfs4 is nfs, smb3 is cifs); of fuse.NAME the name is `helper`."""

    point: str
    kind: str
    helper: str
    options: frozenset

    @property
    def local_lock(self):
        """The option by which `flock` does not reach other machines; None if there is no such option."""
        return next((option for option in LOCAL_LOCKS.get(self.kind, ()) if option in self.options), None)

    @property
    def mend(self):
        """How to mount it so that `flock` is there and reaches other machines; empty where that is not known."""
        return MEND.get(self.kind, "")

    @property
    def listings_may_lag(self):
        return self.kind in STALE_LISTINGS

    @property
    def is_object_store(self):
        return self.helper in OBJECT_STORES


def of(folder):
    """The Mount that holds a folder; None where there is no table of mounts."""
    try:
        lines = TABLE.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    folder, found = Path(folder).resolve(), None
    parents = {str(path) for path in (folder, *folder.parents)}
    for line in lines:  # a later mount of the same place covers an earlier one
        mine, _, theirs = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), mine.split()[4])
        if point in parents and (found is None or len(point) >= len(found.point)):
            name, _, options = theirs.split(maxsplit=2)
            kind, _, helper = ALIASES.get(name, name).partition(".")
            found = Mount(point, kind, helper, frozenset({*mine.split()[5].split(","), *options.split(",")}))
    return found


def patiently(lacking, folder):
    """lacking(), asked again for some seconds as long as it returns anything, where `folder`'s listing may lag behind.

    A client of a network disk that creates a file in a folder asks its server anew what is in it.
    """
    found = lacking()
    if found and (mount := of(folder)) is not None and mount.listings_may_lag:
        for pause in PAUSES:
            time.sleep(pause)
            with contextlib.suppress(OSError):  # a folder that may only be read is asked all the same
                touch = Path(folder) / f".listed-{secrets.token_hex(8)}"
                touch.touch()
                touch.unlink()
            found = lacking()
            if not found:
                break
    return found
