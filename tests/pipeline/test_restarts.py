"""Stages that are killed, starved of disk, locked out, run twice at once or fed the wrong thing
(docs/reliability.md)."""
import random
import shutil
import time

import h5py
import numpy as np
import pytest
import torch

import diffusion_decoding
from tests import stage_runs, tiny_nsd
from tests.stage_runs import SUBJECT, contents, finished
from utils import layout
from utils.generate import gan_inversion, reconstruction
from utils.models import checkpoints
from utils.storage import feature_shards

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
    "ridge vgg19": fit(TWO, *gan_inversion.LAYERS),
    "mat": ["make_vgg19fromdecode.py", *WHO, "--roi", *TWO],
    "gan": ["recon_icnn_image_vgg19_dgn_relu7gen_gd.py", *WHO, *CPU, "--n_iter", "3", "--batch_size", "1"],
    "dpt": ["img2feat_dpt.py", *WHO, *CPU],
    **{name: pair(name, "ave") for name in DPT},
    "ridge dpt": fit(TWO, *DPT),
    "depth": ["dptemb2dpt.py", *WHO, *CPU, "--roi", *TWO, "--batch_size", "1"],
    "figures": ["make_figures.py", *WHO],
}
BUT_FIGURES = [stage for stage in STAGES if stage != "figures"]  # drawing them takes as long as all the rest
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


def but_figures(folder):
    return {name: digest for name, digest in contents(folder).items() if not name.startswith("figures/")}


def said_one_line(err):
    """The one line of an error that a person gets, without the bars of progress."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and " — " in lines[0] and "Traceback" not in err, err
    return lines[0]


# redone when asked


def test_overwriting_a_range_of_features_leaves_the_rest(run, work):
    folder = layout.features(work, "c")
    before, ids = finished(folder), feature_shards.Shards(folder)
    asked = int(h5py.File(sorted(folder.glob("*.h5"))[1])["stim_ids"][0])
    run([*STAGES["sd"], "--imgidx", asked, "--overwrite"], work)
    after = finished(folder)
    assert after.keys() == before.keys() and sum(after[path] != before[path] for path in before) == 1
    assert not feature_shards.Shards(folder).missing(ids._where)


def test_overwriting_a_range_of_captions_leaves_the_rest(run, work):
    before = contents(work)
    run([*STAGES["blip"], "--imgidx", 0, 12, "--overwrite"], work)
    assert contents(work) == before


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
                last = draw.randint(1, draw.choice([3, renames]))  # often early: there is less to do after each kill
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
                again = [path for path in before
                         if before[path] != after.get(path) and path.name != "captions_people.csv"]
                assert len(again) <= 1, f"{stage} made {again} again"
        run(stage, folder)
    return killed


def test_killed_anywhere_every_stage_ends_with_the_same_bytes_and_redoes_no_finished_work(start, run, whole, tmp_path):
    killed = kill_everywhere(start, run, whole, tmp_path / "work", 3, random.Random(6))
    assert killed > len(STAGES)
    assert contents(tmp_path / "work") == contents(whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_very_often_every_stage_ends_with_the_same_bytes(start, run, whole, tmp_path, seed):
    assert kill_everywhere(start, run, whole, tmp_path / "work", 20, random.Random(seed)) > 100
    assert contents(tmp_path / "work") == contents(whole[0])


def test_a_fetch_that_is_killed_goes_on_from_the_byte_where_it_stopped(start, world, tmp_path):
    path = layout.stimuli(tmp_path)
    with tiny_nsd.FaultyS3(world) as server:
        s3 = {"environment": {"NSD_ROOT": f"s3://{tiny_nsd.BUCKET}", "AWS_ENDPOINT_URL_S3": server.url}}
        server.faults = [("nsd_stimuli", ("stall", 100_000))]
        process, part = start(["img2feat_sd.py"], tmp_path, **s3), layout.fetched(path)
        while not (part.exists() and part.stat().st_size) and process.process.is_alive():
            time.sleep(0.01)
        process.kill()
        assert process.wait()[0] == -9 and not path.exists()
        done, server.log = part.stat().st_size, []
        status, _, err, _ = start(["img2feat_sd.py"], tmp_path, **s3).wait()
        assert status == 0 and f"nsd_stimuli.hdf5: going on from byte {done:,}" in err
        assert [headers["Range"] for headers in server.gets("nsd_stimuli")] == [f"bytes={done}-"]
    assert path.read_bytes() == (world / tiny_nsd.STIMULI).read_bytes()
    assert not part.exists()


# twice at once


def test_two_processes_with_the_same_work_do_each_part_once_and_agree(start, whole, tmp_path):
    for stage in BUT_FIGURES:
        renames = whole[1][stage][1]
        ends = [process.wait() for process in [start(stage, tmp_path / "work") for _ in range(2)]]
        assert [status for status, *_ in ends] == [0, 0], ends
        if stage not in ALWAYS_MADE_AGAIN:
            found = [made for *_, made in ends]
            assert sum(found) == renames, f"{stage}: {found} renames, not {renames}"
    assert contents(tmp_path / "work") == but_figures(whole[0])


def test_one_process_waits_for_the_other_and_says_so(start, whole, work):
    without(work, "decoded/image-cvpr")
    ends = [process.wait() for process in [start("images", work) for _ in range(2)]]
    waited = [err.count("samples: waiting for another process that makes the same items") for _, _, err, _ in ends]
    assert sum(waited) and max(waited) == 1
    assert contents(work) == contents(whole[0])


CUTS = (0,), (1, 3)


@pytest.mark.parametrize("stage, size, folder", [
    ("images", 4, "decoded/image-cvpr"), ("gan", 2, "decoded/gan_recon_img"),
    ("depth", 2, f"decoded/{SUBJECT}/dpt_fromemb"), ("features", 4, "identification")])
def test_a_run_cut_anywhere_gives_the_bytes_of_one(start, run, work, stage, size, folder):
    command = [*STAGES[stage], "--batch_size", size]
    without(work, folder)
    run(command, work)
    expected = contents(work)
    without(work, folder)
    ends = [half.wait() for half in [start([*command, "--imgidx", *cut], work) for cut in CUTS]]
    assert [status for status, *_ in ends] == [0, 0], ends
    assert contents(work) == expected


def test_a_sample_has_the_same_place_in_a_batch_of_the_same_size_whatever_the_cut(world, work, monkeypatch):
    """Eight bits would hide most of what a batch changes: here a picture shows its place and the batch's size."""
    def placed(model, args, inputs, batch):
        shown = torch.tensor([[place / 10, len(batch) / 10, image / 10] for place, (image, _) in enumerate(batch)])
        return shown[:, :, None, None].expand(-1, -1, 64, 64)
    monkeypatch.setenv("NSD_ROOT", str(world))
    monkeypatch.setenv("NSD_MODELS", "tiny")
    monkeypatch.setattr(reconstruction, "denoise", placed)
    found = []
    for cuts in ([[]], [["--imgidx", *cut] for cut in CUTS]):
        without(work, "decoded/image-cvpr")
        for cut in cuts:
            command = [*STAGES["images"][1:], "--batch_size", 4, "--workdir", work, *cut]
            diffusion_decoding.main([str(word) for word in command])
        found.append(contents(work))
    assert found[0] == found[1]


def test_pictures_of_two_ranges_overwritten_otherwise_side_by_side_are_those_of_one_process(start, run, work, tmp_path):
    command = [*STAGES["images"], "--seed", "7", "--overwrite"]
    one = shutil.copytree(work, tmp_path / "one")
    run(command, one)
    ends = [half.wait() for half in [start([*command, "--imgidx", *cut], work) for cut in CUTS]]
    assert [status for status, *_ in ends] == [0, 0], ends
    assert contents(work) == contents(one)


def test_pictures_of_a_range_that_are_not_there_are_named_and_without_a_range_said(start, run, work):
    without(work, "identification")
    layout.sample_image(layout.Workspace(work, SUBJECT).samples("cvpr"), 2, 1).unlink()
    asked = [*STAGES["features"], "--imgidx", "1", "3"]
    said = said_one_line(run(asked, work, expect=1)[1])
    assert "samples lacks pictures of 1 images (the first is 00002_001.png) — run diffusion_decoding.py" in said
    assert "--imgidx 1 3 first" in said and not (work / "identification").exists()
    run([*asked[:-2], "0", "2"], work)
    assert "warning: " in run(STAGES["features"], work)[1]
    shutil.rmtree(layout.Workspace(work, SUBJECT).samples("cvpr"))
    assert "lacks pictures of 2 images (the first is 00001_org.png)" in said_one_line(run(asked, work, expect=1)[1])


def test_features_of_two_ranges_overwritten_side_by_side_are_those_of_one_process(start, work):
    expected = contents(work)
    command = [*STAGES["features"], "--overwrite"]
    for flags in ([], ["--npy"]):
        ends = [half.wait() for half in [start([*command, *flags, "--imgidx", *cut], work) for cut in CUTS]]
        assert [status for status, *_ in ends] == [0, 0], ends
        found = contents(work)
        assert {name: found[name] for name in expected} == expected
    assert len(found) - len(expected) == 9 * 2  # pictures and features


# no room, no permission


def test_a_file_that_cannot_be_written_whole_is_one_line_and_a_rerun_completes(start, run, whole, tmp_path):
    """The system's limit on the size of files stands in for a full disk: every write may fail half-way."""
    draw, failed = random.Random(8), 0
    for stage in BUT_FIGURES:
        for size in (50, draw.randint(200, 4000)):
            before = finished(tmp_path / "work") if (tmp_path / "work").exists() else {}
            status, _, err, _ = start(stage, tmp_path / "work", file_size=size).wait()
            assert status in (0, 1), err
            if status:
                failed += 1
                line = said_one_line(err)
                assert ": File too large — check the disk" in line or "GB (File too large) — make room" in line, line
                assert str(tmp_path / "work") in line
            after = finished(tmp_path / "work") if (tmp_path / "work").exists() else {}
            assert stage in ALWAYS_MADE_AGAIN or not before.keys() - after.keys()
        run(stage, tmp_path / "work")
    assert failed > len(BUT_FIGURES)
    assert contents(tmp_path / "work") == but_figures(whole[0])


@pytest.mark.parametrize("stage, folder, size", [
    ("mri", "mrifeat", 16384), ("sd", "nsdfeat", 16384), ("latent", "nsdfeat/subjfeat", 4096),
    ("ridge c", "decoded/subj01", 16384),
    ("images", "decoded/image-cvpr", 65536)])
def test_a_full_disk_is_one_line_and_leaves_no_half_file(start, work, stage, folder, size):
    target = work / folder
    shutil.rmtree(target)
    status, _, err, _ = start(stage, work, disk=(target, size)).wait()
    if status == stage_runs.NO_DISK:
        pytest.skip("mounting a small disk takes root")
    line = said_one_line(err)
    assert status == 1 and "No space left on device" in line and str(target) in line


@pytest.mark.parametrize("stage", ["mri", "sd", "ridge c", "images", "gan"])
def test_a_read_only_folder_is_one_line(start, work, stage):
    for folder in [work, *(path for path in work.rglob("*") if path.is_dir())]:
        folder.chmod(0o555)
    command = [*STAGES[stage], "--overwrite"]
    before = contents(work)
    status, _, err, _ = start(command, work, unprivileged=True).wait()
    assert status == 1 and f"error: {work}" in (line := said_one_line(err)) and ": Permission denied — check" in line
    assert contents(work) == before


@pytest.mark.parametrize("stage, name, said", [
    ("mri", "{world}/" + tiny_nsd.BETAS.format(1), "check its permissions"),
    ("latent", "nsdfeat/init_latent/000006-000009.h5", "may not be read"),
    ("ridge c", "nsdfeat/subjfeat/subj01_each_c.h5", "may not be read"),
    ("ridge c", "mrifeat/subj01/subj01_ventral_betas_tr.npy", "Permission denied"),
    ("images", "decoded/subj01/subj01_ventral_scores_c.npy", "Permission denied"),
    ("features", "decoded/image-cvpr/subj01/samples/00000_000.png", "{name}"),
])
def test_a_file_without_permission_is_named_in_one_line(start, world, work, stage, name, said):
    path = work / name.format(world=world)
    assert path.exists()
    path.chmod(0)
    try:
        status, _, err, _ = start([*STAGES[stage], "--overwrite"], work, unprivileged=True).wait()
    finally:
        path.chmod(0o644)
    line = said_one_line(err)
    assert status == 1 and str(path) in line and said.format(name=path.name) in line


# --status


@pytest.fixture
def work(whole, tmp_path):
    """A copy of the finished working folder, to spoil."""
    return shutil.copytree(whole[0], tmp_path / "work")


@pytest.fixture
def status(run):
    """status(workdir, *flags): {script and its distinguishing flag: (state, note)} as run_pipeline.py --status says."""
    def read(workdir, *flags, steps=2):
        out, _, renames = run(["run_pipeline.py", *WHO, *CPU, "--status", "--n_samples", 2, "--steps", steps, *flags],
                              workdir)
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
    assert states(found, "img2feat_decoded", "identification") == ["partial"] * 2  # two of five features
    layout.sample_image(layout.Workspace(work, SUBJECT).samples("cvpr"), 1, 1).unlink()
    assert status(work)["diffusion_decoding"] == ("partial", "8 of 9 files")
    shutil.rmtree(work / "nsdfeat" / "c")
    shutil.rmtree(work / "decoded" / "image-cvpr")
    found = status(work)
    assert states(found, "img2feat_sd1_parallel", "diffusion_decoding",
                  "make_subjstim c") == ["partial", "missing", "done"]
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
    assert states(found, "make_subjstim init_latent", "ridge init_latent", "ridge c",
                  "diffusion_decoding") == ["stale"] * 4
    assert "changed since" in found["ridge c"][1]


# mixed


def without(work, *names):
    for name in names:
        shutil.rmtree(work / name)


def rename_scores(ws, roi, target, new_roi, new_target):
    for path in (ws.scores([roi], target), layout.sidecar(ws.scores([roi], target))):
        new = ws.scores([new_roi], new_target).with_suffix(path.suffix)
        shutil.copy2(path, new)


def of_another_subject(ws):
    side = layout.sidecar(ws.scores(["ventral"], "c"))
    side.write_text(side.read_text().replace("mrifeat/subj01/subj01", "mrifeat/subj02/subj02")
                    .replace("subjfeat/subj01", "subjfeat/subj02"))


IMAGES = [*STAGES["images"], "--seed", "7"]
SESSIONS = ["make_subjmri.py", *WHO, "--sessions", "2", "--overwrite"]
MIXED = {
    "decoded features of another subject": (of_another_subject, IMAGES,
                                            "scores_c.npy is of subject subj02, not subj01"),
    "decoded features of another ROI": (
        lambda ws: rename_scores(ws, "ventral", "c", "early", "c"), [*IMAGES, "--roi_c", "early"],
        "early_scores_c.npy is of ROI ventral, not early"),
    "another decoded feature": (
        lambda ws: rename_scores(ws, "early", "init_latent", "ventral", "c"), [*IMAGES, "--roi_c", "ventral"],
        "ventral_scores_c.npy is of ROI early, not ventral"),
    "training features of another subject": (
        lambda ws: [shutil.copy2(path, str(path).replace("subj01", "subj02")) for path in
                    (ws.subject_features("each", "c"), layout.sidecar(ws.subject_features("each", "c")))]
        and shutil.copytree(ws.mrifeat, ws.workdir / "mrifeat" / "subj02") and
        [path.rename(str(path).replace("subj02/subj01", "subj02/subj02"))
         for path in (ws.workdir / "mrifeat" / "subj02").iterdir()],
        ["ridge.py", "--subject", "subj02", *CPU, "--target", "c", "--roi", "ventral"],
        "subj02_each_c.h5 is of subject subj01, not subj02"),
    "another training feature": (
        lambda ws: [shutil.copy2(path, str(path).replace("init_latent", "blip")) for path in
                    (ws.subject_features("each", "init_latent"),
                     layout.sidecar(ws.subject_features("each", "init_latent")))],
        [*fit(["early"], "blip"), "--use_stim", "each"], "subj01_each_blip.h5 is of feature init_latent, not blip"),
    "shards of another feature": (
        lambda ws: None, [*pair("c", "ave"), "--input_dir", "{work}/nsdfeat/init_latent"],
        "init_latent holds the feature init_latent, not c"),
}


@pytest.mark.parametrize("case", MIXED)
def test_what_is_of_something_else_is_refused_with_both_sides_named(run, work, case):
    spoil, command, said = MIXED[case]
    spoil(layout.Workspace(work, SUBJECT))
    without(work, "decoded/image-cvpr")
    before = contents(work)
    _, err, _ = run([str(part).format(work=work) for part in command], work, expect=1)
    assert said in said_one_line(err)
    assert contents(work) == before


def test_another_split_is_refused_by_every_stage_that_pairs(run, work):
    run(SESSIONS, work)
    for command, said in ((fit(["early"], "init_latent"), "now {"),
                          ([*fit(["early"], "init_latent"), "--overwrite"], "different tr"),
                          (pair("c", "each"), "subj01_stims.npy"), (STAGES["images"], "changed since")):
        assert said in said_one_line(run(command, work, expect=1)[1])
    run([*pair("init_latent", "each"), "--overwrite"], work)
    run([*fit(["early"], "init_latent"), "--overwrite"], work)


@pytest.fixture
def other_models(tmp_path):
    """The same models under another name."""
    folder = tmp_path / "other"
    folder.mkdir()
    for role in checkpoints.TINY.iterdir():
        (folder / role.name).symlink_to(role)
    return {"environment": {"NSD_MODELS": str(folder)}}


@pytest.mark.parametrize("stage, folder, said", [
    ("sd", None, "nsdfeat/init_latent was made with model tiny/sd, now other/sd"),
    ("images", "decoded/image-cvpr", "scores_init_latent.npy is of model tiny/sd, not other/sd"),
    ("features", None, "networks was made with alexnet {'model': 'tiny/alexnet'}, now {'model': 'other/alexnet'}"),
    ("captions", None, "scores_blip.npy is of model tiny/blip, not other/blip"),
    ("mat", None, "scores_conv1_2.npy is of model tiny/vgg19, not other/vgg19"),
    ("gan", None, "made with model tiny/vgg19, now other/vgg19"),
    ("depth", None, "scores_dpt_emb0.npy is of model tiny/dpt, not other/dpt"),
])
def test_what_another_model_made_is_refused_with_both_models_named(run, work, other_models, stage, folder, said):
    if folder:
        without(work, folder)
    before = contents(work)
    assert said in said_one_line(run(stage, work, expect=1, **other_models)[1])
    assert contents(work) == before


def test_features_of_another_occluder_are_refused_then_made_again_when_asked(run, work):
    stimuli = ["generate_occluded_images.py", "--input_path", "{stimuli}"]
    extract = ["img2feat_sd1_occlusion.py", *WHO, *CPU]
    pairs = [["make_subjstim_occluded.py", *WHO, "--featname", f"{name}_occluded", "--use_stim", "each"]
             for name in ("init_latent", "c")]
    fits = [["ridge_occlusion.py", *WHO, *CPU, "--target", f"{name}_occluded", "--roi", roi]
            for name, roi in (("init_latent", "early"), ("c", "ventral"))]
    images = ["diffusion_decoding_occluded.py", *WHO, *CPU, "--n_samples", "1", "--steps", "2"]
    for command in (extract, *pairs, *fits, images):
        run(command, work)
    refused = run([*stimuli, "--occlusion_ratio", "0.5"], work, expect=1)[1]
    assert "'ratio': 0.3}, now {'ratio': 0.5}" in said_one_line(refused)
    run([*stimuli, "--occlusion_ratio", "0.5", "--overwrite"], work)
    for command in (extract, images):
        line = said_one_line(run(command, work, expect=1)[1])
        assert "'ratio': 0.3" in line and "'ratio': 0.5" in line
    for command in (extract, *pairs, *fits, images):
        run([*command, "--overwrite"], work)


def test_files_that_nothing_says_the_making_of_are_not_adopted(run, work):
    folder = layout.Workspace(work, SUBJECT).samples("cvpr")
    layout.manifest(folder).unlink()
    assert "no manifest.json to say what made it" in said_one_line(run("images", work, expect=1)[1])
    run([*STAGES["images"], "--overwrite"], work)


def test_overwriting_with_other_options_leaves_nothing_of_the_old_even_when_killed(start, run, work, tmp_path):
    """The old pictures must not pass for the new ones' when the run that replaces them is killed."""
    other = [*STAGES["images"], "--seed", "7"]
    assert start([*other, "--overwrite"], work, kill_at=(4, "after")).wait()[0] == -9
    run(other, work)
    again = shutil.copytree(work, tmp_path / "again", ignore=shutil.ignore_patterns("image-cvpr"))
    run(other, again)
    assert contents(work) == contents(again)
