"""run_pipeline.py --check: what a run takes and what it lacks, before anything runs; and the presets."""
import dataclasses

import pytest

import diffusion_decoding
import run_pipeline
from tests import stage_runs
from utils import cli
from utils.models import checkpoints
from utils.pipeline import costs, graph, machine, presets, stages, status, study

BIG = machine.Machine(float32=1e11, float64=5e10, network=1e11, write=2e8, processor=machine.REFERENCE_PROCESSOR,
                      memory=64 * 10 ** 9, disk=10 ** 12, gpu=None, cores=2, device="cpu", dtype="float32")
EVERYTHING = ["--methods", "cvpr", "text", "gan", "depth", "--datasets", "nsd", "occluded", "--controls", "--by_roi",
              "--completion"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return stage_runs.build_world(tmp_path_factory.mktemp("world") / "nsd")


@pytest.fixture
def checked(world, tmp_path, monkeypatch, capsys):
    """Run --check on a machine made up; gives (exit status, what it printed)."""
    monkeypatch.setenv("NSD_ROOT", str(world))
    monkeypatch.setenv("NSD_MODELS", "tiny")

    def run(*flags, here=BIG):
        monkeypatch.setattr(machine, "probe", lambda workdir, gpu: here)
        with pytest.raises(SystemExit) as ended:
            run_pipeline.main(["--subject", "subj01", "--workdir", str(tmp_path / "work"), "--gpu", "-1", "--check",
                               *flags])
        assert not (tmp_path / "work").exists()  # nothing runs, nothing is written
        return ended.value.code, capsys.readouterr().out
    return run


def plan_of(*flags):
    args = run_pipeline.arguments(["run_pipeline.py", "--subject", "subj01", *flags])
    presets.apply(args)
    return [(command, run_pipeline.arguments(command)) for command in stages.plan(args)]


def test_every_step_of_every_method_has_a_price_and_a_row(checked):
    for module in (graph, status, costs):
        assert not [kind for kind in stages.KIND.values() if not callable(getattr(module, f"_{kind}", None))], module
    code, out = checked(*EVERYTHING)
    assert code == 0 and "nothing is missing" in out and "SIMULATED" in out
    assert {command[0] for command, _ in plan_of(*EVERYTHING)} <= {line.split()[0] for line in out.splitlines() if line}


def test_what_the_machine_cannot_hold_is_said_and_the_run_cannot_begin(checked):
    code, out = checked(here=dataclasses.replace(BIG, memory=400_000_000))
    assert code == 1 and "MISSING  ridge.py holds " in out and "cannot begin" in out
    code, out = checked(here=dataclasses.replace(BIG, disk=1_000_000))
    assert code == 1 and "on the disk, and 1 MB are free" in out
    code, out = checked(here=dataclasses.replace(BIG, gpu=1_000_000))
    assert code == 1 and "of a GPU's memory" in out and "--gpu -1" in out


def test_without_nsd_the_published_numbers_stand_in_and_it_is_said(checked, monkeypatch):
    checked()
    monkeypatch.setenv("NSD_ROOT", "/nowhere")
    code, out = checked()
    assert code == 1 and "ASSUMED, subj01's" in out and "MISSING  NSD_ROOT /nowhere is not a folder" in out
    assert "27,750 trials" in out


def test_checkpoints_that_are_neither_cached_nor_to_be_had_are_named(checked, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NSD_MODELS", "hub")
    code, out = checked("--methods", "cvpr", "gan")
    assert code == 1
    for role in ("sd", "clip"):
        assert f"{checkpoints.HUB[role][0]} ({role}) is not in the cache and HF_HUB_OFFLINE is set" in out
    assert "no hub carries the generator" in out and "checkpoints: sd blip inception alexnet clip" in out
    repository, revision = checkpoints.HUB["sd"]
    (tmp_path / "cache" / f"models--{repository.replace('/', '--')}" / "snapshots" / revision).mkdir(parents=True)
    assert "(sd) is not in the cache" not in checked()[1]


def test_captions_that_nsds_bucket_lacks_are_found_out_before_the_night(world, checked):
    path = world / "nsddata_stimuli/stimuli/nsd/annotations/captions_val2017.json"
    path.rename(path.with_suffix(".away"))
    try:
        code, out = checked()
    finally:
        path.with_suffix(".away").rename(path)
    assert code == 1 and "captions_val2017.json does not exist — unpack COCO's" in out


def test_twice_the_speed_takes_half_the_time_and_fewer_images_less():
    def seconds(script, here, *flags):
        plan = plan_of(*flags)
        priced = costs.Costs(study.Study(), here, study.ranges.Link(), True, plan)
        return next(priced.of(command, args).seconds for command, args in plan if command[0] == script)
    fast = dataclasses.replace(BIG, network=2 * BIG.network, processor=2 * BIG.processor)
    sampling = seconds("diffusion_decoding.py", BIG)
    assert seconds("diffusion_decoding.py", fast) == pytest.approx(sampling / 2)
    assert seconds("diffusion_decoding.py", BIG, "--imgidx", "0", "491") == pytest.approx(sampling / 2)
    assert seconds("diffusion_decoding.py", BIG, "--preset", "night") < sampling / 50


def test_presets_fill_in_what_was_not_given_and_papers_is_what_the_stages_do():
    night = dict(plan_of_scripts("--preset", "night", "--datasets", "nsd", "occluded"))
    own = dict(plan_of_scripts("--preset", "night", "--steps", "7", "--datasets", "nsd", "occluded"))
    for name, value in presets.PRESETS["night"].items():
        if hasattr(night["diffusion_decoding.py"], name):
            assert getattr(night["diffusion_decoding.py"], name) == value
    assert own["diffusion_decoding.py"].steps == 7 and own["diffusion_decoding.py"].scheduler == "unipc"
    assert night["generate_occluded_images.py"].on_read and night["img2feat_sd1_occlusion.py"].store == "float16"
    by_itself = run_pipeline.arguments(["diffusion_decoding.py", "--subject", "subj01"])
    inversion = run_pipeline.arguments(["recon_icnn_image_vgg19_dgn_relu7gen_gd.py", "--subject", "subj01"])
    assert {name: getattr(by_itself if hasattr(by_itself, name) else inversion, name)
            for name in presets.PRESETS["paper"]} == presets.PRESETS["paper"]
    assert diffusion_decoding.__doc__ and not cli.parsing_only


def plan_of_scripts(*flags):
    return [(command[0], args) for command, args in plan_of(*flags)]
