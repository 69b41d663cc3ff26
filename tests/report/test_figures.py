"""Figures show rows chosen by rule, mark controls and recovery checks, and say what they could not draw."""

import numpy as np
import pytest
from PIL import Image

from utils import layout
from utils.evaluate import identification
from utils.report import figures
from utils.storage import run_records, text_files

IMAGES = 6


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Two runs and their control with pictures, scores and decoded features of subj01."""
    workdir = tmp_path_factory.mktemp("figures")
    ws = layout.Workspace(workdir, "subj01")
    random = np.random.default_rng(0)
    for run in ("cvpr", "cvpr-shuffled7", "cvpr-occluded"):
        folder = ws.samples(run)
        folder.mkdir(parents=True)
        for image in range(IMAGES):
            paths = [layout.original_image(folder, image), layout.sample_image(folder, image, 0)]
            for path in paths + ([layout.occluded_image(folder, image)] if "occluded" in run else []):
                Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
        r = random.normal(size=(IMAGES, IMAGES))
        identification.write_scores(ws.per_image_scores(run, "clip"), range(IMAGES), r,
                                    {"options": {"run": run, "feature": "clip"}, "samples": 1}
                                    | identification.summary(r))
    for roi, value in (("early", 0.3), ("ventral", 0.2)):
        text_files.write_json(layout.sidecar(ws.scores([roi], "c")),
                              {"options": {"rois": [roi], "target": "c", "shuffle_trials": None},
                               "test_correlation": value})
    return workdir


@pytest.fixture
def run(command_line):
    """Run the stage as its command line does; gives returncode, stdout and stderr."""
    def command(workdir, *arguments):
        return command_line("make_figures.py", "--workdir", workdir, "--subject", "subj01", *arguments)
    return command


def test_rows_are_evenly_spaced_ranks_from_best_to_worst():
    scores = {10: 0.5, 11: 1.0, 12: 0.75, 13: 0.25, 14: 0.0}
    assert figures.by_rank(scores, 3) == [
        (11, "best\nacc. 1.00"), (10, "rank 3 of 5\nacc. 0.50"), (14, "worst\nacc. 0.00")]
    assert [image for image, _ in figures.by_rank(scores, 99)] == [11, 12, 10, 13, 14]
    assert figures.by_index([4, 5, 9], 2) == [(4, "image 4"), (9, "image 9")]


@pytest.mark.parametrize("name, kind, occluded, label", [
    ("cvpr", "result", False, "cvpr"), ("gan-occluded", "result", True, "gan, occluded"),
    ("cvpr-true_features", "recovery", False, "cvpr, true features"),
    ("cvpr-occluded-shuffled7", "control", True, "cvpr, occluded, shuffled trials"),
    ("cvpr-only_z", "result", False, "cvpr, latent only")])
def test_the_name_of_a_run_says_what_it_is(name, kind, occluded, label):
    run = run_records.Run.of(name)
    assert (run.kind, run.occluded, run.label) == (kind, occluded, label)


def test_every_figure_is_drawn_as_pdf_and_png(workdir, run):
    done = run(workdir)
    assert done.returncode == 0, done.stderr
    ws = layout.Workspace(workdir, "subj01")
    for name in ("reconstructions", "reconstructions_occluded", "identification", "decoding"):
        assert ws.figure(name, "pdf").read_bytes().startswith(b"%PDF")
        assert Image.open(ws.figure(name, "png")).width > 600
        assert str(ws.figure(name, "png")) in done.stdout


def test_controls_and_chance_are_marked(workdir):
    figure = figures.identification_by_feature(layout.Workspace(workdir, "subj01"))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["cvpr", "cvpr, occluded", "control: cvpr, shuffled trials"]
    assert "chance" in [text.get_text() for text in figure.axes[0].texts]


def test_a_simulated_subject_is_called_so(workdir, monkeypatch):
    ws = layout.Workspace(workdir, "subj01")
    monkeypatch.delenv("NSD_MODELS", raising=False)
    assert run_records.who(ws) == "subj01"
    text_files.write_json(layout.manifest(ws.samples("cvpr")), {"model": "tiny/sd"})
    assert run_records.who(ws) == "subj01, simulated subject"
    layout.manifest(ws.samples("cvpr")).unlink()
    monkeypatch.setenv("NSD_MODELS", "tiny")
    assert run_records.is_simulated(ws)


def test_what_is_not_there_is_skipped_and_said_and_nothing_at_all_is_an_error(tmp_path, run):
    empty = run(tmp_path)
    assert empty.returncode == 1 and empty.stderr.count("error: ") == 1 and not (tmp_path / "figures").exists()
    folder = layout.Workspace(tmp_path, "subj01").samples("cvpr")
    folder.mkdir(parents=True)
    for path in (layout.original_image(folder, 3), layout.sample_image(folder, 3, 0)):
        Image.new("RGB", (16, 16)).save(path)
    done = run(tmp_path)
    assert done.returncode == 0 and done.stdout.count("\n") == 2
    for skipped in ("reconstructions_occluded", "identification", "decoding"):
        assert f"{skipped}: skipped" in done.stderr
    layout.sample_image(folder, 3, 0).write_bytes(b"PNG")
    broken = run(tmp_path)
    assert broken.returncode == 1 and "not a whole picture" in broken.stderr
