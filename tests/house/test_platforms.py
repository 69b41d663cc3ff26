"""What macOS, Windows and network disks lack is not needed (docs/platforms.md); requirements.txt holds what is."""
import ast
import contextlib
import errno
import fcntl
import os
import select
import shutil
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from packaging import requirements
from packaging import utils as names

from tests import tiny_nsd
from tests.stage_runs import contents
from utils import layout, system
from utils.storage import feature_shards, locks, writing

ROOT = Path(__file__).resolve().parents[2]
OWN = [*ROOT.glob("*.py"), *(ROOT / "utils").rglob("*.py"), *(ROOT / "mini_nsd").rglob("*.py")]
# boto3, jinja2 and pytest bring them, and decide their versions.
CARRIED = {"botocore", "urllib3", "markupsafe", "packaging"}
CARRIERS = {"boto3"}  # listed for the botocore that it brings
TOOLS = {"ruff", "pytest-xdist"}  # run, not imported
STAGES = ("make_subjmri.py", "make_subjstim.py --featname c --use_stim each --npy", "ridge.py --target c --roi early",
          "ridge.py --target c --roi ventral",
          "combine_roi_predictions.py --target c --rois early ventral --weights equal")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_nsd.build(tmp_path_factory.mktemp("world") / "nsd")


def stages(world, workdir, lacking, chosen=STAGES, passes=("",)):
    """Runs stages in a process that lacks `lacking`; returns the contents of the working folder."""
    ids = np.arange(104)
    features = np.random.default_rng(0).standard_normal((len(ids), 4, 5)).astype(np.float32)
    folder = layout.features(workdir, "c")
    folder.mkdir(parents=True)
    feature_shards.Shards(folder).write(ids, features, {"feature": "c"})
    commands = [f"{stage} --subject subj01 --workdir {workdir}{flag}" for flag in passes for stage in chosen]
    code = [sys.executable, "-X", "utf8=0", str(ROOT / "tests/elsewhere.py"), lacking, " : ".join(commands)]
    environment = os.environ | {"NSD_ROOT": str(world), "OMP_NUM_THREADS": "1", "LC_ALL": "C",
                                "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(code, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert ("has no locks" in done.stderr) == bool({"flock", "fcntl"} & set(lacking.split(",")))
    assert not list(workdir.rglob("*.lock"))
    return contents(workdir)


def test_stages_write_the_same_without_what_other_platforms_lack(world, tmp_path):
    here = stages(world, tmp_path / "here" / "work", "nothing")
    windows = stages(world, tmp_path / "windows" / "work", "fallocate,fcntl,symlink,open", passes=("", " --overwrite"))
    assert windows == here
    no_flock = stages(world, tmp_path / "no_flock" / "work", "flock", STAGES[:1])
    assert no_flock.items() <= here.items()


def test_room_is_taken_and_content_kept_where_nothing_can_be_reserved(tmp_path, monkeypatch):
    def cannot(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")
    monkeypatch.setattr(os, "posix_fallocate", cannot)
    with open(tmp_path / "file", "wb") as file:
        file.write(b"head")
        system.reserve(file, 3 << 20)
    assert (tmp_path / "file").read_bytes() == b"head" + bytes((3 << 20) - 4)
    assert os.stat(tmp_path / "file").st_blocks * 512 >= 3 << 20
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with open(tmp_path / "larger", "wb") as file, pytest.raises(OSError, match="No space left"):
        system.reserve(file, 3 << 20)
    assert not (tmp_path / "larger").stat().st_size


def test_a_rename_on_windows_waits_for_a_reader(tmp_path, monkeypatch):
    (tmp_path / "new").write_bytes(b"new")
    replace, refused = os.replace, iter([True, True, False])

    def busy(*names):
        if next(refused):
            raise PermissionError(errno.EACCES, "in use")
        replace(*names)
    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr(system, "WINDOWS", True)
    system.replace(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == b"new"


# locks


HOLD = ("import sys, time\nsys.path[:0] = [{root!r}]\nfrom tests.elsewhere import without\nwithout([{lacking!r}])\n"
        "from utils.storage import writing\nwith writing.working({folder!r}, {start}, {stop}):\n"
        "    print('in', flush=True)\n    sys.stdin.read()\n")


@pytest.fixture(params=["", "flock"], ids=["flock", "no flock"])
def hold(request, tmp_path, monkeypatch):
    """hold(start, stop): a process that tries to work on those items of tmp_path, and says "in" when it does."""
    if request.param:
        def flock(*_):
            raise OSError(errno.ENOLCK, "No locks available")
        monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(locks, "_told", set())
    with contextlib.ExitStack() as ended:
        def begin(start, stop):
            code = HOLD.format(root=str(ROOT), lacking=request.param, folder=str(tmp_path), start=start, stop=stop)
            process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, bufsize=0)
            ended.callback(process.wait)
            ended.callback(process.kill)
            return process
        yield begin


def line_of(pipe, patience=60):
    """The next line of a process, which has to come within `patience` seconds."""
    assert select.select([pipe], [], [], patience)[0], "nothing was said"
    line = pipe.readline().decode()
    assert line, "the process ended"
    return line


def test_ranges_of_items_are_made_side_by_side_and_a_killed_run_bars_nobody(hold, tmp_path):
    first = hold(0, 8)
    assert line_of(first.stdout) == "in\n"
    with locks.alone(tmp_path, locks.items(8, 16), wait=False):  # the other half
        pass
    second = hold(7, 9)  # overlaps the first's
    while "waiting for another process that makes the same items" not in line_of(second.stderr):
        pass
    with pytest.raises(locks.Held), locks.alone(tmp_path, locks.items(5, 6), wait=False):
        pass
    first.kill()
    first.wait()
    assert line_of(second.stdout) == "in\n"  # it takes over
    second.communicate(b"")
    assert not list(tmp_path.iterdir())  # nothing piles up


def test_a_claim_left_by_a_killed_process_is_removed_by_whoever_comes_next(hold, tmp_path):
    first = hold(0, 8)
    assert line_of(first.stdout) == "in\n"
    first.kill()
    first.wait()
    assert any(path.name.startswith(".items 0-8.claim-") for path in tmp_path.iterdir())
    began = time.monotonic()
    with writing.working(tmp_path, 100, 101):
        assert not any(path.name.startswith(".items 0-8.claim-") for path in tmp_path.iterdir())
    assert time.monotonic() - began < 30 and not list(tmp_path.iterdir())


# Python, text, packages


def test_an_old_python_is_refused_in_one_line_before_anything_else():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    code = ("import sys; sys.version_info = (3, 10, 9, 'final', 0)\n"
            "import runpy; runpy.run_path('ridge.py', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and wanted == ">=3.11"
    assert done.stderr == "error: Python 3.10 is too old — use 3.11 or newer (make PYTHON=python3.11)\n"
    for path in (ROOT / "utils" / "__init__.py", *ROOT.glob("*.py")):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))  # it has to be read before it can refuse


def test_what_a_terminal_cannot_show_is_no_failure():
    code = "from utils import cli\ncli.run(lambda: print('a → b'))"
    environment = os.environ | {"PYTHONIOENCODING": "cp1252:strict"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "a \\u2192 b\n")


def opens_text(call):
    """True for open(…) of text, and for the methods read_text and write_text, but text_files', which is UTF-8."""
    if isinstance(call.func, ast.Name) and call.func.id == "open":
        modes = [*call.args[1:2], *(key.value for key in call.keywords if key.arg == "mode")]
        return not any("b" in mode.value for mode in modes)
    return (isinstance(call.func, ast.Attribute) and call.func.attr in ("read_text", "write_text")
            and ast.unparse(call.func.value) != "text_files")


def test_text_is_read_and_written_in_a_named_encoding():
    for path in OWN:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and opens_text(call):
                named = {key.arg for key in call.keywords}
                assert "encoding" in named, f"{path.name}:{call.lineno}: {ast.unparse(call)}"


def listed(name):
    """{name: packaging.Requirement} of the distributions that a requirements file lists itself."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [requirements.Requirement(line) for line in lines if line[0] not in "#-"]
    return {names.canonicalize_name(one.name): one for one in found}


def imported(paths):
    """Names of the distributions that files import, whatever the place in them, or name to `lazy.module`."""
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "lazy.module":
                found.add(node.args[0].value.split(".")[0])
    of = metadata.packages_distributions()
    return {names.canonicalize_name(of[name][0]) for name in found - set(sys.stdlib_module_names) if name in of}


def test_requirements_hold_what_is_imported_and_no_more():
    runs, tests = listed("requirements.txt").keys(), listed("requirements-test.txt").keys()
    demo = ROOT / "mini_nsd" / "serve.py"
    assert imported(set(OWN) - {demo}) - CARRIED == runs - CARRIERS
    assert not runs & tests
    others = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), demo]
    assert imported(others) - runs - CARRIED == tests - TOOLS


def test_the_locked_versions_are_exact_and_within_the_ranges():
    locked = {name: one.specifier for name, one in listed("requirements.lock").items()}
    assert all(str(specifier).startswith("==") for specifier in locked.values())
    assert not [name for name in locked if name.startswith(("nvidia", "cuda", "triton"))]  # torch's own pins, CUDA only
    for name, one in (listed("requirements.txt") | listed("requirements-test.txt")).items():
        assert str(locked[name]).removeprefix("==") in one.specifier
