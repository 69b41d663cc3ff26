"""The notebooks are their sources, run on a tiny world, and show a figure a cell that says "simulated"."""
import asyncio
import contextlib
import os
import re
from pathlib import Path
from unittest import mock

import jupytext
import nbclient
import pytest
from ipykernel.kernelspec import KERNEL_NAME
from nbconvert import HTMLExporter, ScriptExporter

from tests import stage_runs
from utils import layout
from utils.errors import Problem
from utils.plotting import plt
from utils.report import notebook_plots

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("make_subjmri", "img2feat_sd", "img2feat_blip", "decode_captions")
WHO, CPU, TWO = ["--subject", stage_runs.SUBJECT], ["--gpu", "-1"], ["--roi", "early", "ventral"]
STAGES = [
    ["make_subjmri.py", *WHO],
    ["img2feat_sd1_parallel.py", *WHO, *CPU],
    ["img2feat_blip.py", *WHO, *CPU],
    ["make_subjstim.py", *WHO, "--featname", "blip", "--use_stim", "ave"],
    ["ridge.py", *WHO, *CPU, "--target", "blip", *TWO],
    ["decode_captions.py", *WHO, *CPU, *TWO],
]


def notebook(name):
    return ROOT / "notebooks" / f"{name}.ipynb"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return stage_runs.build_world(tmp_path_factory.mktemp("world") / "nsd")


@pytest.fixture(scope="module")
def workdir(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "work"
    for command in STAGES:
        stage_runs.run(command, folder, world)
    return folder


@pytest.fixture(scope="module")
def executed(world, workdir, tmp_path_factory):
    """{name: the notebook with its output}, each run where Jupyter would; "nothing": the first without artifacts."""
    folder = tmp_path_factory.mktemp("none")
    given = {name: (jupytext.read(notebook(name)), workdir) for name in NAMES}
    given["nothing"] = jupytext.read(notebook(NAMES[0])), folder
    at_once = asyncio.Semaphore(2)  # kernels, each of which holds torch

    async def one(content, where):
        client = nbclient.NotebookClient(content, timeout=120, kernel_name=KERNEL_NAME,
                                         resources={"metadata": {"path": str(ROOT / "notebooks")}})
        settings = {"NSD_ROOT": str(world), "NSD_MODELS": "tiny", "WORKDIR": str(where)}
        own = {"OMP_NUM_THREADS": "1", "IPYTHONDIR": str(folder)}
        async with at_once:
            with contextlib.suppress(nbclient.exceptions.CellExecutionError):  # its output says more
                await client.async_execute(env=os.environ | settings | own)
        return content

    async def all_of_them():
        return await asyncio.gather(*(one(*each) for each in given.values()))

    return dict(zip(given, asyncio.run(all_of_them())))


def test_each_notebook_is_its_source_without_output():
    for ending in ("py", "ipynb"):
        assert {path.stem for path in (ROOT / "notebooks").glob(f"*.{ending}")} == set(NAMES)
    for name in NAMES:
        ours, source = jupytext.read(notebook(name)), jupytext.read(notebook(name).with_suffix(".py"))
        both = ([(cell.cell_type, cell.source) for cell in pair.cells] for pair in (ours, source))
        assert next(both) == next(both), f"{name}: run make docs"
        assert ours.metadata["language_info"] == source.metadata["language_info"]
        empty = not any(cell.get("outputs") or cell.get("execution_count") for cell in ours.cells)
        assert empty, f"{name}: run make docs"


@pytest.mark.parametrize("name", NAMES)
def test_each_cell_but_the_first_shows_a_figure_of_the_simulated_subject(executed, name):
    first, *others = [cell for cell in executed[name].cells if cell.cell_type == "code"]
    outputs = [output for cell in (first, *others) for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error" or "error: " in output.get("text", "")] == []
    for cell in others:
        shown = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        assert len(shown) == 1, cell.source
        assert "simulated" in shown[0].metadata["image/png"]["alt"]


def test_a_rendered_page_holds_its_pictures_says_what_they_are_and_fetches_nothing(executed):
    exporter = HTMLExporter(template_name="notebook_page", extra_template_basedirs=[str(ROOT / "docs")])
    page, _ = exporter.from_notebook_node(executed["img2feat_blip"])
    assert len(re.findall(r'<img alt="[^"]*simulated subject"\s+src="data:image/png;base64,', page)) == 2
    assert not re.search(r"<script|<link|@import|src=\"(?!data:)|url\((?!data:)", page)


def test_trials_that_are_read_again_are_the_stored_ones(executed):
    said = [output.text for cell in executed["make_subjmri"].cells for output in cell.get("outputs", [])
            if "text" in output]
    assert "the 8 trials read again are the same: True\n" in said


def test_what_is_missing_is_said_in_one_line(executed):
    first = next(cell for cell in executed["nothing"].cells if cell.cell_type == "code")
    line, = [output.text for output in first.outputs]
    assert line.startswith("error: ") and line.endswith("run `make demo`, or set WORKDIR to the scripts' --workdir\n")
    assert line.count("\n") == 1


def test_without_settings_a_notebook_looks_at_the_demo_or_says_what_to_do(world, workdir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(os.environ), plt.rc_context():
        for name in ("NSD_ROOT", "NSD_MODELS", "WORKDIR"):
            os.environ.pop(name, None)
        monkeypatch.setattr(layout, "demo", lambda: (tmp_path / "demo" / "world", tmp_path / "demo" / "work"))
        (tmp_path / "demo").mkdir()
        with pytest.raises(Problem, match="world is missing — run `make demo`"):
            notebook_plots.start(stage_runs.SUBJECT)
        (tmp_path / "demo" / "world").symlink_to(world)
        (tmp_path / "demo" / "work").symlink_to(workdir)
        ws, root, who = notebook_plots.start(stage_runs.SUBJECT)
        assert (ws.workdir, str(root)) == (tmp_path / "demo" / "work", str(world))
        assert who == "subj01, simulated subject" and os.environ["NSD_MODELS"] == "tiny"
        (tmp_path / "copy").mkdir()
        os.environ["NSD_ROOT"] = "copy"
        with pytest.raises(Problem, match="NSD_ROOT is set, but"):
            notebook_plots.start(stage_runs.SUBJECT)
        os.environ["NSD_MODELS"] = "hub"
        assert notebook_plots.start(stage_runs.SUBJECT, workdir)[2] == "subj01"
        (tmp_path / "copy" / notebook_plots.SIMULATED_KEY).touch()
        assert notebook_plots.start(stage_runs.SUBJECT, workdir)[2] == "subj01, simulated subject"


@pytest.mark.parametrize("name", NAMES)
def test_nbconvert_makes_a_script_that_runs(name, world, workdir, tmp_path):
    body, resources = ScriptExporter().from_filename(str(notebook(name)))
    script = tmp_path / f"{name}{resources['output_extension']}"
    script.write_text(body, encoding="utf-8")
    assert script.suffix == ".py"
    out, *_ = stage_runs.run([script], workdir, world, environment={"WORKDIR": str(workdir)})
    assert out
