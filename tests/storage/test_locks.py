"""Locks and temporary files between machines: processes whose host names and PID namespaces differ."""
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.storage import locks, mounts, writing

ROOT = Path(__file__).resolve().parents[2]
# A process of another machine, or of another container here. argv: host name, what flock lacks, folder, what to do.
CODE = """
import pathlib, socket, sys, time
from tests.elsewhere import without
name, lacking, folder, todo = sys.argv[1:]
without([lacking])
socket.sethostname(name)
from utils.storage import locks, writing
locks.BEAT, locks.PATIENCE = 0.2, 2.0
if todo == "sweep":
    writing.sweep(folder)
elif todo == "write":
    with writing.atomic(pathlib.Path(folder) / "a.npy") as temporary:
        temporary.write_text("unfinished")
        print("in", flush=True)
        sys.stdin.readline()
else:
    try:
        with locks.alone(folder, todo, wait=False):
            print("in", flush=True)
            sys.stdin.readline()
    except locks.Held:
        print("held", flush=True)
"""


@pytest.fixture
def machine(tmp_path):
    """machine(name, todo, lacking=""): CODE in UTS and PID namespaces of its own, under that host name."""
    unshare = ["unshare", "--uts", "--pid", "--fork", "--kill-child"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("other host names and PID namespaces take root on Linux, with util-linux")
    started = []

    def start(name, todo, lacking=""):
        code = [sys.executable, "-c", CODE, name, lacking, str(tmp_path), todo]
        # Below a shell, a writer has a number that no process has in the sweeper's namespace.
        shell = [] if todo == "sweep" else ["sh", "-c", '"$@"; exit $?', "sh"]
        started.append(subprocess.Popen([*unshare, *shell, *code], cwd=ROOT, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def line_of(process, patience=60):
    assert select.select([process.stdout], [], [], patience)[0], "nothing was said"
    return process.stdout.readline().decode().strip() or process.communicate()[1].decode()


@pytest.mark.parametrize("one, other", [("gpu-1-12", "gpu-11-2"), ("worker", "worker")],
                         ids=["names that differ in punctuation", "containers of one name"])
def test_a_temporary_file_that_another_machine_writes_is_not_swept(machine, tmp_path, one, other):
    writer = machine(one, "write")
    assert line_of(writer) == "in"
    sweeper = machine(other, "sweep")
    assert sweeper.wait(60) == 0, sweeper.communicate()[1]
    writing.sweep(tmp_path)
    writer.communicate(b"\n")
    assert (tmp_path / "a.npy").read_text() == "unfinished" and writer.returncode == 0


def test_what_a_dead_process_left_goes_and_what_others_left_long_ago_is_named(machine, tmp_path, capsys):
    killed = machine("other", "write")
    assert line_of(killed) == "in"
    killed.kill()
    killed.wait()
    theirs, = tmp_path.iterdir()
    code = (f"import os, sys, pathlib; from utils.storage import writing\n"
            f"with writing.atomic(pathlib.Path({str(tmp_path / 'b.npy')!r})): os._exit(1)")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    before = tmp_path / ".c.oldhost-1234.abcdefgh.part.npy"  # an earlier version's
    before.touch()
    assert len(list(tmp_path.iterdir())) == 3
    writing.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([theirs, before]) and capsys.readouterr().err == ""
    os.utime(before, (time.time() - 2 * writing.OLD,) * 2)
    for _ in range(2):
        writing.sweep(tmp_path)
    said, = capsys.readouterr().err.splitlines()
    assert f"untouched for a day: 1, the first is {before.name} — delete" in said and before.exists()


@pytest.mark.parametrize("lacking", ["", "flock", "reach"])
def test_machines_exclude_each_other_with_and_without_flock(machine, tmp_path, lacking):
    first = machine("one", "the same", lacking)
    assert line_of(first) == "in"
    time.sleep(2.5)  # longer than the patience with a claim that is not touched
    assert line_of(machine("two", "the same", lacking)) == "held"
    assert line_of(machine("two", "something else", lacking)) == "in"
    first.communicate(b"\n")
    assert line_of(machine("two", "the same", lacking)) == "in"


def test_a_claim_of_a_dead_machine_lapses(machine, tmp_path):
    first = machine("one", "the same", "flock")
    assert line_of(first) == "in"
    first.kill()
    first.wait()
    assert line_of(machine("two", "the same", "flock")) == "held"  # it may live: its claim was just touched
    time.sleep(2)
    assert line_of(machine("two", "the same", "flock")) == "in"


def table(monkeypatch, tmp_path, line):
    monkeypatch.setattr(mounts, "TABLE", tmp_path / "mountinfo")
    mounts.TABLE.write_text(f"20 1 8:1 / / rw - ext4 /dev/sda1 rw\n36 20 0:50 / {tmp_path} rw,noatime - {line}\n")


@pytest.mark.parametrize("line, said", [
    ("nfs4 server:/lab rw,vers=4.2,local_lock=all", "nfs mounted with local_lock=all, so its locks do not reach other"),
    ("nfs server:/lab rw,vers=3,nolock,local_lock=all", "nfs mounted with nolock"),
    ("lustre mgs:/lab rw,localflock", "to have locks, mount it with -o flock"),
    ("fuse.s3fs s3fs rw", "is an object store (fuse.s3fs), on which two processes cannot be kept apart"),
    ("nfs4 server:/lab rw,vers=4.2,local_lock=none", None),
    ("xfs /dev/sdb1 rw", None)])
def test_the_mount_option_that_keeps_locks_to_one_machine_is_named_once(monkeypatch, tmp_path, capsys, line, said):
    monkeypatch.setattr(locks, "_told", set())
    table(monkeypatch, tmp_path, line)
    for _ in range(2):
        with locks.alone(tmp_path / "folder", "a"):
            pass
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (said is not None) and (said or "") in "".join(lines)
