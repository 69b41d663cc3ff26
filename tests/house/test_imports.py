"""Scripts without networks never import torch, and no script imports a large library to print its help."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import stage_runs, tiny_nsd
from utils import layout
from utils.storage import arrays, feature_shards, picture_files, text_files

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
NETWORKS = {"torch", "torchvision", "transformers", "diffusers"}
HEAVY = NETWORKS | {"boto3", "matplotlib", "nibabel", "scipy", "skimage", "sklearn"}
SUBJECT = ["--subject", "subj01"]
# Runs commands one after another in one process, and says after each what is imported. argv: commands as JSON.
DRIVER = """
import contextlib, io, json, runpy, sys
for command in json.loads(sys.argv[1]):
    sys.argv, status, said = command, 0, io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    print(json.dumps([command[0], status, said.getvalue(), [name for name in sys.modules if "." not in name]]))
"""


def imported(commands, **environment):
    """[(script, stdout, set of imported top-level modules)] after each command; each has to succeed."""
    said = json.dumps([list(map(str, each)) for each in commands])
    done = subprocess.run([sys.executable, "-c", DRIVER, said], cwd=ROOT,
                          env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [script for script, status, *_ in found if status == 0] == [each[0] for each in commands], done.stderr
    return [(script, said, set(modules)) for script, _, said, modules in found]


def test_help_of_no_script_imports_a_large_library():
    for script, said, modules in imported([[script, "--help"] for script in SCRIPTS]):
        assert said.startswith("usage: ")
        assert not modules & HEAVY, script


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """What stages with networks leave for those without: features, predictions, pictures and their features."""
    workdir = tmp_path_factory.mktemp("work")
    ws, random = layout.Workspace(workdir, "subj01"), np.random.default_rng(0)
    for feature in ("c", "c_occluded", "fc8"):
        feature_shards.Shards(layout.features(workdir, feature)).write(
            np.arange(stage_runs.IMAGES), random.normal(size=(stage_runs.IMAGES, 6)).astype(np.float32),
            {"stimuli": "occluded" if "occluded" in feature else "nsd"})
    for roi in ("early", "ventral"):
        arrays.write_npy(ws.scores([roi], "c"), random.normal(size=(3, 6)).astype(np.float32))
        text_files.write_json(layout.sidecar(ws.scores([roi], "c")), {
            "options": {"rois": [roi], "alphas": [1], "mode": "fixed", "target": "c", "dataset": "original"},
            "features": {"model": "tiny"}, "cv_r2": 0.1, "test_correlation": 0.9,
            "inputs": {f"mrifeat/subj01/subj01_{roi}_betas_tr.npy": roi, "nsdfeat/subjfeat/subj01_each_c.h5": "f"}})
    for run in ("cvpr", "cvpr-occluded"):
        ws.identification(run).mkdir(parents=True)
        ws.samples(run).mkdir(parents=True)
        for image in range(4):
            folder = ws.samples(run)
            for path in (layout.original_image(folder, image), layout.sample_image(folder, image, 0)):
                picture_files.save(path, random.integers(0, 256, (16, 16, 3), np.uint8))
                np.save(layout.image_feature(ws.identification(run), path.stem, "clip"), random.normal(size=8))
    return workdir


def test_stages_without_networks_never_import_torch(workdir, tmp_path):
    world = stage_runs.build_world(tmp_path / "nsd")
    common = ["--workdir", workdir]
    plan = ["run_pipeline.py", *SUBJECT, *common, "--methods", *layout.METHODS, "--datasets", *layout.DATASETS,
            "--controls", "--by_roi", "--completion"]
    commands = [
        ["get_data.py", "ppdata", "subj01", *common],
        ["make_subjmri.py", *SUBJECT, *common],
        ["img2feat_sd.py", *common],
        ["generate_occluded_images.py", "--input_path", world / tiny_nsd.STIMULI, *common],
        ["make_subjstim.py", "--featname", "c", "--use_stim", "each", *SUBJECT, *common],
        ["make_subjstim_occluded.py", "--featname", "c_occluded", "--use_stim", "ave", *SUBJECT, *common],
        ["make_subjstim_vgg19.py", "--layer", "fc8", *SUBJECT, *common],
        ["combine_roi_predictions.py", "--target", "c", "--rois", "early", "ventral", *SUBJECT, *common],
        ["identification.py", "--usefeat", "clip", "--method", "cvpr", *SUBJECT, *common],
        ["identification_occluded.py", "--usefeat", "clip", "--method", "cvpr", *SUBJECT, *common],
        ["make_figures.py", *SUBJECT, *common],
        ["make_report.py", *SUBJECT, *common],
        [*plan, "--dry_run"], [*plan, "--status"]]
    found = imported(commands, NSD_ROOT=str(world), NSD_MODELS="tiny")
    for script, _, modules in found:
        assert not modules & NETWORKS, script
    assert "make_vgg19bdpy.py" in found[-1][1] and "done" in found[-1][1]
