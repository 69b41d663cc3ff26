"""Run scripts as on a platform that lacks what Linux has: python tests/elsewhere.py LACKING SCRIPT … [: SCRIPT …].

LACKING: "nothing", or commas between: fallocate (macOS, Windows), fcntl, symlink (Windows), flock (some network disks),
reach (flock is there, but keeps out nobody else: some network disks, seen from another machine), open (Windows, where
a file that is open or mapped can be neither renamed nor removed; as Linux's /proc shows it).
"""
import errno
import os
import pathlib
import runpy
import sys


def refuse_open_files():
    """Let os.replace, os.remove and os.unlink fail for files that this process has open or mapped."""
    def guarded(function):
        def call(*paths, **options):
            for path in map(os.path.realpath, paths):
                if not path.endswith(".lock") and path in opened():  # filelock removes its own as Windows allows
                    raise PermissionError(errno.EACCES, "the file is open", path)
            return function(*paths, **options)
        return call

    def opened():
        folder = pathlib.Path("/proc/self")
        yield from (os.path.realpath(link) for link in (folder / "fd").iterdir())
        yield from (line.split(maxsplit=5)[5].strip() for line in open(folder / "maps", encoding="utf-8")
                    if "/" in line)

    for name in ("replace", "remove", "unlink", "rename"):
        setattr(os, name, guarded(getattr(os, name)))


def without(lacking):
    """Take away what the platform lacks."""
    if "fallocate" in lacking:
        del os.posix_fallocate
    if "fcntl" in lacking:
        sys.modules["fcntl"] = None
    if "symlink" in lacking:
        os.symlink = None
    if "flock" in lacking:
        import fcntl

        def flock(*_):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        fcntl.flock = fcntl.lockf = flock
    if "reach" in lacking:
        import fcntl

        fcntl.flock = fcntl.lockf = lambda *_: None
    if "open" in lacking:
        refuse_open_files()


if __name__ == "__main__":
    root = pathlib.Path(__file__).resolve().parent.parent
    sys.path.insert(0, str(root))
    without(sys.argv[1].split(","))
    for command in " ".join(sys.argv[2:]).split(" : "):
        sys.argv = command.split()
        runpy.run_path(str(root / sys.argv[0]), run_name="__main__")
