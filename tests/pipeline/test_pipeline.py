"""The whole pipeline from the command line, over S3 on loopback, on a world far smaller than the demo's."""
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import run_pipeline
from mini_nsd import build, serve
from tests import stage_runs
from utils import layout
from utils.pipeline import graph, presets, stages
from utils.storage import feature_shards, text_files

ROOT = Path(__file__).resolve().parents[2]
SUBJECT = "subj01"
SAMPLING = ["--n_samples", "2", "--steps", "5", "--scheduler", "dpm"]
EVERYTHING = ["--subject", SUBJECT, "--gpu", "-1", "--methods", "cvpr", "--datasets", "nsd", "occluded", "--controls",
              "--completion", *SAMPLING]

RICHER = ["--subject", SUBJECT, "--gpu", "-1", "--methods", "text", "gan", "depth", "--datasets", "nsd", "occluded",
          "--imgidx", "0", "2", *SAMPLING]


def run(script, *arguments, environment, expect=0):
    """A script, as from a shell in the repository's root."""
    result = subprocess.run([sys.executable, script, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
                            env=os.environ | environment)
    assert result.returncode == expect, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The environment that points every script at a simulated world behind a real HTTP server."""
    world = tmp_path_factory.mktemp("world") / "nsd"
    build.build(world, subjects=(SUBJECT,), scale=0.06)
    with serve.serving(world) as endpoint:
        yield {"NSD_ROOT": "s3://natural-scenes-dataset", "AWS_ENDPOINT_URL_S3": endpoint, "NSD_MODELS": "tiny",
               "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def work(served, tmp_path_factory):
    """The working folder of a finished run of everything the CVPR method has."""
    folder = tmp_path_factory.mktemp("work")
    done = run("run_pipeline.py", "--workdir", folder, *EVERYTHING, environment=served)
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def ws(work):
    return layout.Workspace(work, SUBJECT)


def runs():
    return ["cvpr", "cvpr-occluded", "cvpr-true_features", "cvpr-shuffled0"]


def test_artifacts_have_the_shapes_of_the_contract(ws):
    design = [np.load(path) for path in (ws.stims, ws.stims_ave, ws.stims_ave_test)]
    stims, unique, test = design
    assert stims.dtype == unique.dtype == np.int64 and list(dict.fromkeys(stims)) == list(unique)
    for target, roi, dims in (("init_latent", "early", 400), ("c", "ventral", 32 * 128)):
        for dataset in (None, "occluded"):
            name = target if dataset is None else f"{target}_occluded"
            scores = np.load(ws.scores([roi], name, dataset))
            assert scores.shape == (test.sum(), dims) and scores.dtype == np.float32
            with h5py.File(ws.subject_features("each", name)) as file:
                assert np.array_equal(file["te/stim_ids"][:], unique[test])
                assert np.array_equal(file["tr/stim_ids"][:][file["tr/trial_rows"][:]],
                                      stims[~np.isin(stims, unique[test])])
    for name in runs():
        found = layout.found_images(ws.samples(name))
        assert list(found) == list(range(test.sum()))
        assert all(set(paths) - {"occ"} == {"org", 0, 1} for paths in found.values())
        with Image.open(found[0][1]) as picture:
            assert picture.size == (512, 512) and picture.mode == "RGB"


def test_originals_are_the_stimuli_of_the_test_trials(ws, work):
    stimulus = np.load(ws.stims_ave)[np.load(ws.stims_ave_test)][1]
    with h5py.File(layout.stimuli(work)) as file:
        picture = file["imgBrick"][file["stim_ids"][()].tolist().index(stimulus)]  # only what the subject saw is there
    shown = Image.fromarray(picture).resize((512, 512), Image.Resampling.LANCZOS)
    saved = np.asarray(Image.open(layout.original_image(ws.samples("cvpr"), 1)))
    assert np.array_equal(saved, np.asarray(shown))


def test_an_occluded_run_shows_what_was_hidden_and_keeps_its_features_apart(ws, work):
    folder = ws.samples("cvpr-occluded")
    whole, occluded = (np.asarray(Image.open(path(folder, 0)))
                       for path in (layout.original_image, layout.occluded_image))
    assert (occluded[230:280, 230:280] == 0).all() and np.array_equal(occluded[:60], whole[:60])
    latents = [feature_shards.Shards(layout.features(work, name)).read([0], "x")
               for name in ("init_latent", "init_latent_occluded")]
    assert not np.allclose(*latents)


def test_scores_are_written_with_interval_p_and_a_row_per_image(ws):
    for name in runs():
        path = ws.per_image_scores(name, "clip")
        rows = list(csv.DictReader(open(path)))
        record = text_files.read_json(layout.sidecar(path))
        assert [int(row["imgidx"]) for row in rows] == list(range(len(rows)))
        assert record["accuracy"] == pytest.approx(np.mean([float(row["accuracy"]) for row in rows]), abs=1e-5)
        assert record["interval"][0] <= record["accuracy"] <= record["interval"][1] and 0 < record["p"] <= 1


def test_true_features_are_identified_well_even_in_this_world(ws):
    assert text_files.read_json(layout.sidecar(ws.per_image_scores("cvpr-true_features", "clip")))["accuracy"] > 0.8


def test_nothing_of_the_true_image_feeds_a_decoded_run(ws):
    """Every input of a run is decoded, unless it is a recovery check: docs/published_defects.md#leaked-answers."""
    for name in runs():
        inputs = text_files.read_json(layout.manifest(ws.samples(name)))["inputs"]
        assert len(inputs) == 2
        assert all(("_scores_" in path) == (name != "cvpr-true_features") for path in inputs)


def test_a_finished_pipeline_does_nothing_again(served, work, ws):
    drawn = (ws.figure("decoding", "png").parent, ws.completion)  # figures, which every run draws anew
    before = {path: path.stat().st_mtime_ns for ending in ("npy", "png") for path in work.rglob(f"*.{ending}")
              if path.parent not in drawn}
    run("run_pipeline.py", "--workdir", work, *EVERYTHING, environment=served)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_status_of_a_finished_pipeline_says_that_all_is_done(served, work):
    said = run("run_pipeline.py", "--workdir", work, *EVERYTHING, "--status", environment=served).stdout
    lines = [line for line in said.splitlines() if "] python " in line]
    assert "amodal_completion.py" in said and not [line for line in lines if not line.startswith("done")], said


def test_a_killed_reconstruction_resumes_to_the_same_bytes(served, work, ws, tmp_path):
    for name in ("mrifeat", "decoded/subj01", layout.stimuli(work).name):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(work / name, tmp_path / name)
    command = ["diffusion_decoding.py", "--subject", SUBJECT, "--gpu", "-1", "--method", "cvpr", "--seed", "42",
               *SAMPLING, "--workdir", str(tmp_path), "--batch_size", "4"]
    whole = ws.samples("cvpr")
    killed = layout.Workspace(tmp_path, SUBJECT).samples("cvpr")
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=os.environ | served, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(killed.glob("*_000.png")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(list(killed.glob("*_0*.png"))) < len(list(whole.glob("*_0*.png")))
    run(*command, environment=served)
    again = tmp_path / "again"
    for name in ("mrifeat", "decoded/subj01", layout.stimuli(work).name):
        (again / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(work / name, again / name)
    run(*command[:-3], again, *command[-2:], environment=served)
    uninterrupted = layout.Workspace(again, SUBJECT).samples("cvpr")
    names = sorted(path.name for path in uninterrupted.glob("*.png"))
    assert names == sorted(path.name for path in killed.glob("*.png"))
    assert all((killed / name).read_bytes() == (uninterrupted / name).read_bytes() for name in names)


def test_other_settings_are_not_mixed_into_finished_work(served, work):
    refused = run("diffusion_decoding.py", "--subject", SUBJECT, "--gpu", "-1", "--workdir", work, *SAMPLING,
                  "--guidance", "3", environment=served, expect=1)
    assert refused.stderr.splitlines()[-1].startswith("error: ") and "guidance" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("command, status, said", [
    (["diffusion_decoding.py", "--subject", "subj09"], 2, "subj01"),
    (["diffusion_decoding.py", "--subject", SUBJECT, "--imgidx", "5", "5"], 1, "half-open"),
    (["diffusion_decoding.py", "--subject", SUBJECT, "--imgidx", "9999"], 1, "starts at 9999"),
    (["diffusion_decoding.py", "--subject", SUBJECT, "--method", "gan"], 1, "decode_captions.py"),
    (["ridge.py", "--subject", SUBJECT, "--target", "c_occluded", "--roi", "ventral"], 1, "ridge_occlusion.py"),
    (["ridge.py", "--subject", SUBJECT, "--target", "c", "--roi", "V9"], 1, "early"),
    (["img2feat_sd1_parallel.py", "--imgidx", "0", "1", "--batch_size", "none"], 1, "auto"),
])
def test_bad_requests_get_one_clear_line(served, work, command, status, said):
    refused = run(*command, "--gpu", "-1", "--workdir", work, environment=served, expect=status)
    assert said in refused.stderr.splitlines()[-1] and "Traceback" not in refused.stderr


def test_combining_rois_writes_a_target_of_its_own(served, work, ws):
    run("ridge.py", "--subject", SUBJECT, "--target", "c", "--roi", "early", "--gpu", "-1", "--workdir", work,
        environment=served)
    run("combine_roi_predictions.py", "--subject", SUBJECT, "--target", "c", "--rois", "early", "ventral",
        "--workdir", work, environment=served)
    parts = [np.load(ws.scores([roi], "c")) for roi in ("early", "ventral")]
    combined = np.load(ws.scores(["early+ventral"], "c"))
    assert combined.shape == parts[0].shape
    assert (combined >= np.minimum(*parts) - 1e-4).all() and (combined <= np.maximum(*parts) + 1e-4).all()


def test_the_richer_methods_run_to_the_end_whole_and_occluded(served, work, ws):
    """Text, GAN and depth: the pictures differ from one another's, and every input is named."""
    run("run_pipeline.py", "--workdir", work, *RICHER, environment=served)
    for dataset in layout.DATASETS:
        names = [layout.run_name(method, dataset) for method in layout.METHODS]
        pictures = [np.asarray(Image.open(layout.sample_image(ws.samples(name), 0, 0))) for name in names]
        assert all(picture.shape == (512, 512, 3) for picture in pictures)
        assert len({picture.tobytes() for picture in pictures}) == len(pictures)
        made = {method: " ".join(text_files.read_json(layout.manifest(ws.samples(name)))["inputs"])
                for method, name in zip(layout.METHODS, names)}
        assert "captions_brain" in made["text"] and "init_latent" in made["text"]
        assert "streams/manifest.json" in made["gan"] and "init_latent" not in made["gan"]
        assert "dpt_fromemb" in made["depth"] and "streams/manifest.json" in made["depth"]
        depth = np.load(ws.depth(0, dataset))
        assert depth.shape == (1, 1, 64, 64) and depth.dtype == np.float32 and depth.min() == -1 and depth.max() == 1
        assert Image.open(ws.gan_image(0, dataset)).mode == "RGB"
    captions = ws.captions().read_text().splitlines()
    assert len(captions) == np.load(ws.stims_ave_test).sum() and all(captions)
    assert not layout.sample_image(ws.samples("text"), 2, 0).exists()


def test_a_night_runs_to_the_end_keeps_no_occluded_images_and_is_then_checked_as_done(served, work, tmp_path):
    night = ["--subject", SUBJECT, "--workdir", tmp_path, "--gpu", "-1", "--preset", "night", "--datasets", "nsd",
             "occluded", "--usefeat", "clip", "--skip", "evaluate.py", "make_figures.py", "make_report.py"]
    for name in ("mrifeat", layout.stimuli(work).name, layout.sidecar(layout.stimuli(work)).name):
        copy = shutil.copytree if (work / name).is_dir() else shutil.copy2
        copy(work / name, tmp_path / name)
    run("run_pipeline.py", *night, environment=served)
    made = layout.Workspace(tmp_path, SUBJECT)
    options = text_files.read_json(layout.manifest(made.samples("cvpr-occluded")))["options"]
    assert {name: options[name] for name in ("scheduler", "steps", "size", "start", "guided_below")} == {
        name: presets.PRESETS["night"][name] for name in ("scheduler", "steps", "size", "start", "guided_below")}
    assert not layout.sample_image(made.samples("cvpr"), 0, 1).exists()
    with h5py.File(layout.occluded_stimuli(tmp_path)) as file, h5py.File(layout.occluded_stimuli(work)) as images:
        assert "imgBrick" not in file
        covered = images["mask"][0]
    shown, whole = (np.asarray(Image.open(path)).astype(int) for path in (
        layout.occluded_image(made.samples("cvpr-occluded"), 0), layout.original_image(made.samples("cvpr"), 0)))
    inside = np.asarray(Image.fromarray(covered).resize((512, 512))) > 0
    assert (shown[inside] == 0).mean() > 0.95 and (shown == whole)[~inside].mean() > 0.95
    matrix = made.subject_features("each", "c_occluded")
    assert matrix.stat().st_size < 0.6 * next(work.rglob(matrix.name)).stat().st_size
    said = run("run_pipeline.py", *night, "--check", environment=served).stdout
    assert "nothing is missing" in said
    rows = [line for line in said.splitlines() if ".py " in line]
    assert [line.split()[0] for line in rows if not line.endswith("done")] == []


def test_the_records_name_model_revision_and_inputs(ws):
    record = json.loads(layout.sidecar(ws.scores(["early"], "init_latent")).read_text())
    assert record["features"]["model"] == "tiny/sd" and len(record["features"]["revision"]) == 32
    assert any("betas_tr" in path for path in record["inputs"])


def kind(step):
    """What a step is tried once of: its script, on whole or occluded images, made by which method, as which control."""
    method = getattr(step.args, "method", None) if step.command[0].startswith("diffusion") else None
    return (step.command[0], method, *(getattr(step.args, name, None) for name in (
        "dataset", "true_features", "shuffle_trials")))


def test_every_step_runs_with_what_it_says_it_reads_and_writes_what_it_says(served, work, tmp_path):
    """After the richer methods' test, which leaves their artifacts in `work`."""
    tried = {}
    for flags in (RICHER, EVERYTHING):
        asked = run_pipeline.arguments(["run_pipeline.py", "--workdir", str(work), *flags])
        tried |= {kind(step): step for step in graph.of(stages.plan(asked), run_pipeline.arguments)}
    for number, step in enumerate(tried.values()):
        alone = tmp_path / str(number)
        for path in step.reads:
            offered(path, work, alone)
        given = files_of(alone)
        command = list(step.command)
        at = command.index("--workdir")
        stage_runs.run(command[:at] + command[at + 2:], alone, None, environment=served)
        wrote = files_of(alone) - given
        writes = [alone / path.relative_to(work) for path in step.writes]
        stray = [path for path in wrote if not any(path in (each, layout.sidecar(each)) or each in path.parents
                                                   for each in writes)]
        assert not stray, (step.command, stray)
        expected = {alone / path.relative_to(work) for each in step.writes for path in files_of(each)}
        assert not expected - wrote, (step.command, sorted(expected - wrote))
        shutil.rmtree(alone)


def offered(path, work, alone):
    """Hard links of a file with its record, or of all files in a folder, in the folder of a step by itself."""
    for each in files_of(path) | files_of(layout.sidecar(path)):
        target = alone / each.relative_to(work)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(each, target)


def files_of(path):
    """The files at or below a path, but locks and what is hidden."""
    found = path.rglob("*") if path.is_dir() else [path]
    return {each for each in found if each.is_file() and not any(part.startswith(".") for part in each.parts[-3:])
            and each.suffix != ".lock"}
