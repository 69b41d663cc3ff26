"""Stages that are killed, starved of disk, locked out, run twice at once or fed the wrong thing (docs/reliability.md)."""
import json
import os
import random
import shutil
import time

import numpy as np
import pytest

from tests import stage_runs, tiny_nsd
from tests.stage_runs import SUBJECT, contents, finished
from utils import icnn, layout, store

WHO, CPU = ["--subject", SUBJECT], ["--gpu", "-1"]
TWO = ["early", "ventral"]
SHARD = 3  # stimuli a file: several shards even of a tiny world


def fit(rois, *targets):
    return ["ridge.py", *WHO, *CPU, "--target", *targets, "--roi", *rois]


def pair(feature, use_stim):
    return ["make_subjstim.py", *WHO, "--featname", feature, "--use_stim", use_stim]


DPT = [f"dpt_emb{number}" for number in range(4)]
STAGES = {
    "mri": ["make_subjmri.py", *WHO],
    "occluded": ["generate_occluded_images.py", "--input_path", "{stimuli}"],
    "sd": ["img2feat_sd1_parallel.py", *WHO, *CPU],
    "latent": [*pair("init_latent", "each"), "--npy"],
    "c": pair("c", "each"),
    "ridge latent": fit(["early"], "init_latent"),
    "ridge c": fit(["ventral"], "c"),
    "ridge c early": fit(["early"], "c"),
    "combine": ["combine_roi_predictions.py", *WHO, "--target", "c", "--rois", *TWO, "--weights", "equal"],
    "images": ["diffusion_decoding.py", *WHO, *CPU, "--n_samples", "2", "--steps", "2", "--batch_size", "2"],
    "features": ["img2feat_decoded.py", *WHO, *CPU, "--batch_size", "4", "--usefeat", "alexnet5", "clip"],
    "identification": ["identification.py", *WHO, "--usefeat", "alexnet5", "clip"],
    "blip": ["img2feat_blip.py", *WHO, *CPU],
    "blip matrix": pair("blip", "ave"),
    "ridge blip": fit(TWO, "blip"),
    "captions": ["decode_captions.py", *WHO, *CPU, "--roi", *TWO],
    "vgg19": ["make_vgg19bdpy.py", *WHO, *CPU],
    "vgg19 matrix": ["make_subjstim_vgg19.py", *WHO, "--layer", "all"],
    "ridge vgg19": fit(TWO, *icnn.LAYERS),
    "mat": ["make_vgg19fromdecode.py", *WHO, "--roi", *TWO],
    "gan": ["recon_icnn_image_vgg19_dgn_relu7gen_gd.py", *WHO, *CPU, "--n_iter", "3", "--batch_size", "1"],
    "dpt": ["img2feat_dpt.py", *WHO, *CPU],
    **{name: pair(name, "ave") for name in DPT},
    "ridge dpt": fit(TWO, *DPT),
    "depth": ["dptemb2dpt.py", *WHO, *CPU, "--roi", *TWO, "--batch_size", "1"],
    "figures": ["make_figures.py", *WHO],
}
ALWAYS_MADE_AGAIN = {"identification", "figures"}  # seconds of work, whose results are replaced by the same


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return stage_runs.build_world(tmp_path_factory.mktemp("world") / "nsd")


@pytest.fixture(scope="module")
def start(world):
    """start(stage, workdir, …): a stage_runs.Run of one of STAGES, or of a command."""
    def begin(stage, workdir, **settings):
        command = STAGES[stage] if isinstance(stage, str) else stage
        command = [str(part).format(stimuli=world / tiny_nsd.STIMULI) for part in command]
        return stage_runs.Run(command, workdir, world, shard=SHARD, **settings)
    return begin


@pytest.fixture(scope="module")
def run(start):
    """run(stage, workdir, expect=0, …) to its end; returns (stdout, stderr, renames made)."""
    def to_the_end(stage, workdir, expect=0, **settings):
        status, *said = start(stage, workdir, **settings).wait()
        assert status == expect, said[1]
        return said
    return to_the_end


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """A working folder of stages that nothing disturbed, and the (seconds, renames) of each."""
    folder = tmp_path_factory.mktemp("whole") / "work"
    cost = {}
    for stage in STAGES:
        began = time.monotonic()
        renames = run(stage, folder)[2]
        cost[stage] = (time.monotonic() - began, renames)
    return folder, cost


def said_one_line(err):
    """The one line of an error that a person gets, without the bars of progress."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and " — " in lines[0] and "Traceback" not in err, err
    return lines[0]


# killed


def kill_everywhere(start, run, whole, folder, kills, draw):
    """Kill each stage `kills` times, at random renames and random times, then let it end; returns how many were killed.

    A run may make the one file again at which the last was killed, no other.
    """
    _, cost = whole
    killed = 0
    for stage, (seconds, renames) in cost.items():
        for number in range(kills if stage != "figures" else 1):
            before = finished(folder) if folder.exists() else {}
            if number % 3 < 2:
                last = draw.randint(1, renames)
                status, _, err, _ = start(stage, folder, kill_at=(last, draw.choice(["before", "after"]))).wait()
            else:
                process = start(stage, folder)
                time.sleep(draw.uniform(0, seconds))
                process.kill()
                status, _, err, _ = process.wait()
            assert status in (0, -9), f"{stage}: {err}"
            killed += status == -9
            if stage not in ALWAYS_MADE_AGAIN:
                after = finished(folder)
                again = [path for path in before if before[path] != after.get(path) and path.name != "captions_people.csv"]
                assert len(again) <= 1, f"{stage} made {again} again"
        run(stage, folder)
    return killed


def test_killed_anywhere_every_stage_ends_with_the_same_bytes_and_redoes_no_finished_work(start, run, whole, tmp_path):
    killed = kill_everywhere(start, run, whole, tmp_path / "work", 3, random.Random(6))
    assert killed > 50
    assert contents(tmp_path / "work") == contents(whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_very_often_every_stage_ends_with_the_same_bytes(start, run, whole, tmp_path, seed):
    assert kill_everywhere(start, run, whole, tmp_path / "work", 20, random.Random(seed)) > 200
    assert contents(tmp_path / "work") == contents(whole[0])


# --status


@pytest.fixture
def work(whole, tmp_path):
    """A copy of the finished working folder, to spoil."""
    return shutil.copytree(whole[0], tmp_path / "work")


@pytest.fixture
def status(run):
    """status(workdir, *flags): {script and its distinguishing flag: (state, note)} as run_pipeline.py --status says."""
    def read(workdir, *flags, steps=2):
        out, _, renames = run(["run_pipeline.py", *WHO, *CPU, "--status", "--n_samples", 2, "--steps", steps, *flags], workdir)
        assert renames == 0
        found, lines = {}, out.splitlines()
        for line, below in zip(lines, [*lines[1:], ""]):
            if "] python " in line:
                words = line.split("] python ")[1].split()
                target = [words[words.index(flag) + 1] for flag in ("--featname", "--target") if flag in words]
                found[" ".join([words[0].removesuffix(".py"), *target])] = (
                    line.split()[0].rstrip("["), below.strip() if below.startswith("   ") else "")
        assert lines[-1].startswith(f"{[state for state, _ in found.values()].count('done')} done, ")
        return found
    return read


def states(found, *names):
    return [found[name][0] for name in names]


CHAIN = ["ridge init_latent", "diffusion_decoding", "img2feat_decoded", "identification"]


def test_status_tells_done_partial_and_missing_and_touches_nothing(status, work):
    before = contents(work)
    found = status(work)
    assert states(found, "make_subjmri", "img2feat_sd1_parallel", "make_subjstim c", *CHAIN[:2]) == ["done"] * 5
    assert states(found, "img2feat_decoded", "identification") == ["partial"] * 2  # two of seven features
    layout.sample_image(layout.Workspace(work, SUBJECT).samples("cvpr"), 1, 1).unlink()
    assert status(work)["diffusion_decoding"] == ("partial", "8 of 9 files")
    shutil.rmtree(work / "nsdfeat" / "c")
    shutil.rmtree(work / "decoded" / "image-cvpr")
    found = status(work)
    assert states(found, "img2feat_sd1_parallel", "diffusion_decoding", "make_subjstim c") == ["partial", "missing", "done"]
    assert {state for state, _ in status(work.parent / "empty").values()} == {"missing", "done"}  # stimuli are in place
    assert contents(work) | before == before


def spoil_scores(ws):
    path = ws.scores(["early"], "init_latent")
    np.save(path, np.load(path) + 1)


def spoil_sidecar(ws):
    side = layout.sidecar(ws.scores(["early"], "init_latent"))
    side.write_text(side.read_text().replace('"mode": "fixed"', '"mode": "paper"'))


@pytest.mark.parametrize("spoil, said", [
    (spoil_scores, "subj01_early_scores_init_latent.npy changed after ridge.py wrote it"),
    (spoil_sidecar, "made with options mode paper, now fixed"),
], ids=["scores", "sidecar"])
def test_status_calls_a_changed_artifact_stale_and_all_that_builds_on_it(status, work, spoil, said):
    spoil(layout.Workspace(work, SUBJECT))
    found = status(work)
    assert found["ridge init_latent"] == ("stale", said)
    assert states(found, *CHAIN[1:]) == ["stale"] * 3
    assert states(found, "ridge c", "make_subjstim init_latent") == ["done"] * 2


def test_status_sees_that_an_upstream_artifact_was_made_again_otherwise(status, run, work):
    run([*fit(["early"], "init_latent"), "--alphas", "1", "--overwrite"], work)
    assert status(work)["diffusion_decoding"][0] == "stale"
    run([*fit(["early"], "init_latent"), "--overwrite"], work)
    found = status(work)
    assert found["diffusion_decoding"][0] == "done"
    assert status(work, steps=5)["diffusion_decoding"] == ("stale", "made with options steps 2, now 5")
    run(["make_subjmri.py", *WHO, "--sessions", "2", "--overwrite"], work)
    found = status(work)
    assert states(found, "make_subjstim init_latent", "ridge init_latent", "ridge c", "diffusion_decoding") == ["stale"] * 4
    assert "changed since" in found["ridge c"][1]
