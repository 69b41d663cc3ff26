"""Shards of features that several processes make, replace and read side by side."""
import concurrent.futures
import contextlib
import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests import tiny_nsd
from tests.stage_runs import contents, finished
from utils import layout
from utils.errors import Problem
from utils.storage import feature_shards, mounts

ROOT = Path(__file__).resolve().parents[2]
COUNT, SHARD = 96, 8
# Extracts a feature whose numbers tell which pictures shared a forward pass. argv: options ("a" or "b"), flags.
# It says "ready" when all is imported, and goes on when it is told to.
EXTRACT = f"""
import sys, time
import numpy as np, torch
from utils import cli
from utils.features import extraction

def feature(batch, ids):
    time.sleep(0.002)
    return np.stack([ids, np.full(len(ids), ids[0]), np.full(len(ids), len(ids)), batch.mean((1, 2, 3))], 1)

extraction.SHARD = {SHARD}
parser = cli.parser("", "")
extraction.add_arguments(parser)
for line in sys.stdin:
    options, *flags = line.split()
    args = cli.parse(parser, flags)
    stimuli, attributes = extraction.open_stimuli(args)
    extraction.extract(args, stimuli, attributes | {{"options": options}}, None, "own", torch.float64, feature, batch=3)
    print("done", flush=True)
"""


class Killed(Exception):
    """The process was killed, as asked."""


@pytest.fixture(scope="module")
def extract(tmp_path_factory):
    """extract(workdir, *commands): the commands side by side, each in a process of its own; all have to succeed.

    kill: function that says when to kill the first process instead.
    """
    world = tmp_path_factory.mktemp("world")
    tiny_nsd.build_stimuli(world, count=COUNT)
    environment = os.environ | {"NSD_ROOT": str(world), "OMP_NUM_THREADS": "1"}
    started = []

    def run(workdir, *commands, kill=None):
        while len(started) < len(commands):
            started.append(subprocess.Popen([sys.executable, "-c", EXTRACT], cwd=ROOT, env=environment, text=True,
                                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        for process, command in zip(started, commands):
            process.stdin.write(f"{command} --workdir {workdir}\n")
            process.stdin.flush()
        if kill:
            while not kill():
                assert started[0].poll() is None
                time.sleep(0.005)
            started[0].kill()
            started.pop(0).communicate()
            raise Killed
        for process in started[:len(commands)]:
            said = [process.stdout.readline(), process.stdout.readline()]
            if said[-1] != "done\n":
                started.remove(process)
                process.kill()
                pytest.fail(process.communicate()[1])

    yield run
    for process in started:
        process.kill()
        process.communicate()


def held(workdir):
    """The Shards there, which lack no stimulus."""
    shards = feature_shards.Shards(layout.features(workdir, "own"))
    assert not shards.missing(range(COUNT)), "a stimulus was lost"
    return shards


@contextlib.contextmanager
def reading(workdir):
    """Read all features again and again during the block: whoever replaces shards, none is ever missing."""
    over = threading.Event()

    def read():
        while not over.is_set():
            assert (held(workdir).read(range(COUNT), "")[:, 0] == range(COUNT)).all()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        reader = pool.submit(read)
        try:
            yield
        finally:
            over.set()
        reader.result()


@pytest.mark.parametrize("before", ["a", "b"], ids=["of the same options", "of others"])
@pytest.mark.parametrize("cut", [48, 44], ids=["between shards", "within a shard"])
def test_two_ranges_overwritten_side_by_side_leave_the_bytes_of_one_process(extract, tmp_path, before, cut):
    extract(tmp_path / "one", "a --overwrite")
    for attempt in range(3):
        work = tmp_path / str(attempt)
        extract(work, before)
        with reading(work) if before == "a" else contextlib.nullcontext():
            extract(work, f"a --overwrite --imgidx 0 {cut}", f"a --overwrite --imgidx {cut} {COUNT}")
        assert held(work).attributes()["options"] == "a"
        if before == "a" or cut % SHARD == 0:  # else a shard's two halves are two shards
            assert contents(work) == contents(tmp_path / "one")


def test_overwriting_that_is_killed_loses_nothing_and_a_rerun_ends_with_the_same_bytes(extract, tmp_path):
    extract(tmp_path / "one", "a")
    shutil.copytree(tmp_path / "one", work := tmp_path / "work")
    for share in (0.2, 0.5, 0.9):
        began = finished(work)
        with pytest.raises(Killed):
            extract(work, "a --overwrite --imgidx 0 84",
                    kill=lambda: sum(began[path] != now for path, now in finished(work).items()) > share * len(began))
        held(work)
    extract(work, "a --overwrite --imgidx 0 84")
    assert contents(work) == contents(tmp_path / "one")


def nfs(monkeypatch, folder):
    monkeypatch.setattr(mounts, "TABLE", folder / "mountinfo")
    mounts.TABLE.write_text(f"36 20 0:50 / {folder} rw - nfs4 server:/lab rw,vers=4.2,local_lock=none\n")


def write(folder, *ids, shards=None):
    (shards or feature_shards.Shards(folder)).write(ids, np.array(ids)[:, None], {"feature": "own"})


def test_what_a_network_disk_does_not_list_yet_is_waited_for_and_what_is_not_there_is_not(monkeypatch, tmp_path):
    nfs(monkeypatch, tmp_path)
    write(tmp_path / "own", 0, 1)
    shards = feature_shards.Shards(tmp_path / "own")
    timer = threading.Timer(0.4, write, (tmp_path / "own", 2, 3))
    timer.start()
    assert shards.read([0, 3], "")[:, 0].tolist() == [0, 3]
    timer.join()
    monkeypatch.setattr(mounts, "PAUSES", (0.01, 0.01))
    with pytest.raises(Problem, match="lacks 1 of 2 stimuli"):
        shards.read([0, 4], "")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE])
def test_a_shard_that_was_listed_and_is_gone_is_looked_for_again(monkeypatch, tmp_path, number):
    write(tmp_path, 0, 1)
    shards = feature_shards.Shards(tmp_path)
    assert 2 not in shards
    if number == errno.ENOENT:  # replaced by one of another name
        next(tmp_path.glob("*.h5")).unlink()
        write(tmp_path, 0, 1, 2)
    else:
        stale, opened = iter([True, True, False]), h5py.File

        def open_stale(*given):
            if next(stale, False):
                raise OSError(number, "Unable to open file (errno = 116, error message = 'Stale file handle')")
            return opened(*given)
        monkeypatch.setattr(h5py, "File", open_stale)
    assert shards.read([1, 0], "")[:, 0].tolist() == [1, 0]
    assert shards.attributes() == {"feature": "own"} and shards.item_shape() == (1,)
