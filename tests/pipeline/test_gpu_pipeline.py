"""The whole pipeline on a local NSD and a pretended GPU, beside the same run on the CPU; and short memory."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import run_pipeline
from tests import pretend_gpu, stage_runs
from utils import layout
from utils.generate import gan_inversion
from utils.models import loading
from utils.storage import text_files

SUBJECT = stage_runs.SUBJECT
SHORT = ["--imgidx", "0", "2", "--n_samples", "1", "--steps", "2"]
NO_DEVICE = ["identification.py", "identification_occluded.py", "make_figures.py", "make_report.py"]
# Between them cvpr and depth read all that the four methods read. Batches: as many as fit, then as asked.
RUNS = (["--methods", *layout.METHODS, *SHORT, "--skip", "evaluate.py", *NO_DEVICE],
        ["--datasets", "occluded", "--methods", "cvpr", "depth", *SHORT, "--batch_size", "3", "--skip", *NO_DEVICE])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return stage_runs.build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def settings(world):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NSD_MODELS", "tiny")
        patch.setenv("NSD_ROOT", str(world))
        # Half precision is slow on a processor without it, and the two runs are to differ by the device alone.
        patch.setattr(loading, "precision", lambda name, device: torch.float32)
        patch.setattr(gan_inversion, "N_ITER", 5)
        yield patch
        loading.forget()


def pipeline(workdir, gpu):
    loading.forget()
    for flags in RUNS:
        run_pipeline.main(["--subject", SUBJECT, "--workdir", str(workdir), "--gpu", gpu, *flags])


@pytest.fixture(scope="module")
def there(settings, tmp_path_factory):
    """workdir, peaks, left: the run on the pretended GPU, and the bytes at most and after each of its stages."""
    found = SimpleNamespace(workdir=tmp_path_factory.mktemp("gpu"), peaks=[], left=[])
    forget = loading.forget
    with pretend_gpu.Device("cuda") as gpu, pytest.MonkeyPatch.context() as patch:
        def forget_and_look():
            found.peaks.append(torch.cuda.max_memory_allocated())
            forget()
            found.left.append(gpu.alive)
            torch.cuda.reset_peak_memory_stats()
        patch.setattr(loading, "forget", forget_and_look)
        pipeline(found.workdir, "0")
    found.peak = gpu.peak
    return found


@pytest.fixture(scope="module")
def here(settings, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("cpu")
    pipeline(workdir, "-1")
    return workdir


def test_the_whole_pipeline_on_a_gpu_gives_what_it_gives_on_the_cpu(there, here):
    ws = [layout.Workspace(workdir, SUBJECT) for workdir in (there.workdir, here)]
    scores = [sorted(path.relative_to(each.decoded) for path in each.decoded.glob("*_scores_*.npy")) for each in ws]
    assert scores[0] == scores[1] and len(scores[0]) == 30
    for path in scores[0]:
        np.testing.assert_allclose(*(np.load(each.decoded / path) for each in ws), rtol=1e-3, atol=1e-3,
                                   err_msg=str(path))
    runs = ws[0].found_runs()
    assert runs == ws[1].found_runs() and len(runs) == 6
    for run in runs:
        pictures = [np.stack([np.asarray(Image.open(layout.sample_image(each.samples(run), image, 0)), int)
                              for image in (0, 1)])
                    for each in ws]
        assert np.abs(pictures[0] - pictures[1]).mean() < 0.5, run  # grey levels; the inversion amplifies rounding
    assert ws[0].captions().read_text() == ws[1].captions().read_text()
    for dataset in layout.DATASETS:
        np.testing.assert_allclose(*(np.load(each.depth(0, dataset)) for each in ws), atol=1e-2)


def test_a_local_nsd_is_read_in_place_and_status_finds_all_of_it_done(here, capsys):
    for flags in RUNS:
        run_pipeline.main(["--subject", SUBJECT, "--workdir", str(here), "--gpu", "-1", *flags, "--status"])
        lines = [line for line in capsys.readouterr().out.splitlines() if "] python " in line]
        assert len(lines) > 15 and not [line for line in lines if not line.startswith("done")]
    assert not layout.stimuli(here).exists()


def test_nothing_is_left_on_the_gpu_between_stages_so_its_peak_is_the_largest_stages(there):
    assert len(there.left) > 40 and max(there.left) == 0
    assert there.peak == max(there.peaks) < sum(there.peaks) / 4


def test_the_record_says_what_precision_auto_came_to_and_that_float32_is_no_tf32(there, here):
    for workdir, arithmetic in ((there.workdir, "ieee"), (here, None)):
        ws = layout.Workspace(workdir, SUBJECT)
        assert text_files.read_json(layout.manifest(ws.samples("cvpr")))["options"]["precision"] == "float32"
        made = text_files.read_json(layout.manifest(ws.gan_image(0).parent))
        judged = text_files.read_json(layout.manifest(ws.identification("cvpr") / "networks"))
        assert made.get("float32") == judged.get("float32") == arithmetic


@pytest.fixture
def reconstruct(command_line, here, settings):
    def run(*flags, gpu=-1):
        return command_line("diffusion_decoding.py", "--subject", SUBJECT, "--workdir", here, "--gpu", gpu,
                            "--imgidx", 0, 2, "--n_samples", 1, "--steps", 2, *flags)
    return run


def test_a_run_is_not_gone_on_with_in_another_precision(reconstruct, here, settings):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "precision", lambda name, device: torch.bfloat16)
        refused = reconstruct("--method", "cvpr", "--n_samples", 2)
    assert refused.returncode == 1 and "--precision float32 to go on" in refused.stderr
    manifest = layout.manifest(layout.Workspace(here, SUBJECT).samples("text"))
    record = text_files.read_json(manifest)
    manifest.write_text(json.dumps(record | {"options": record["options"] | {"precision": "auto"}}))
    refused = reconstruct("--method", "text")
    assert refused.returncode == 1 and "earlier version" in refused.stderr and "--overwrite" in refused.stderr
    manifest.write_text(json.dumps(record))


def test_out_of_memory_is_one_line_that_names_the_flag_and_leaves_nothing_half_written(reconstruct, here):
    folder = layout.Workspace(here, SUBJECT).samples(layout.run_name("cvpr", conditioning="c"))
    with pretend_gpu.Device("cuda", memory=60 << 20):
        refused = reconstruct("--method", "cvpr", "--conditioning", "c", "--batch_size", 64, "--n_samples", 32, gpu=0)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    line = refused.stderr.strip().splitlines()[-1]
    assert line.startswith("error: out of memory") and "--batch_size" in line
    left = {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}
    assert left == {"manifest.json", "00000_org.png", "00001_org.png"}
    with pretend_gpu.Device("cuda", memory=60 << 20) as gpu:
        done = reconstruct("--method", "cvpr", "--conditioning", "c", "--n_samples", 32, gpu=0)
    assert done.returncode == 0, done.stderr
    assert " at once: " in done.stderr and len(list(folder.glob("*_0*.png"))) == 64 and gpu.peak <= 60 << 20


def test_every_stage_of_a_pipeline_with_a_forward_pass_gets_the_batch_size(capsys, tmp_path):
    run_pipeline.main(["--subject", SUBJECT, "--workdir", str(tmp_path), "--methods", "depth", "--datasets",
                       *layout.DATASETS, "--batch_size", "3", "--dry_run"])
    for line in capsys.readouterr().out.splitlines():
        command = line.split(" python ")[1].split()
        asked = run_pipeline.arguments(command)
        assert getattr(asked, "batch_size", 3) in (3, "3") or command[0] == "make_vgg19fromdecode.py", line
