"""The GPU benchmark rehearses without a GPU; published ways that benchmarks are held against give the same results."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu, identification, subjstim
from utils import layout
from utils.storage import arrays

ROOT = Path(__file__).resolve().parents[2]


def test_the_gpu_benchmark_rehearses_on_the_cpu(tmp_path):
    command = ["benchmarks/gpu.py", "--small", "--parts", "products", "vae", "counted", "--batches", "1", "2",
               "--minutes", "100", "--out", tmp_path]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert set(found["parts"]) == {"products", "vae", "counted"}
    assert [each["fault"] for each in found["parts"].values()] == [None] * 3
    decoding = [line for line in found["parts"]["vae"]["lines"] if line["group"] == "decode"]
    reference, *others = decoding
    assert reference["reference"] and reference["ratio"] == 1 and reference["share"] > 0
    for line in others:
        assert line["ratio"] == pytest.approx(line["rate"] / reference["rate"])
    one, two = (line["counted_gib"] for line in decoding if not line["reference"])
    assert 0 < one < two
    assert (tmp_path / "gpu.md").read_text() == done.stdout
    assert "REHEARSED" in done.stdout and f"| vae | {reference['what']} |" in done.stdout


def test_a_part_that_runs_out_of_time_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(gpu.PARTS, "unet", (gpu.unet, 0.05))
    monkeypatch.setitem(gpu.PARTS, "products", (gpu.products, 500))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--small", "--parts", "unet", "products", "--out", str(tmp_path)])
    gpu.main()
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert parts["unet"]["lines"] == [] and "stopped" in parts["unet"]["fault"]
    assert parts["products"]["fault"] is None and len(parts["products"]["lines"]) == 4
    assert "- `unet`: stopped" in capsys.readouterr().out


def test_parts_cannot_take_longer_than_the_whole(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(gpu, "about", lambda small: {"device": "none", "small": small})
    monkeypatch.setattr(gpu, "run", lambda part, args, seconds: (given.append((part, seconds)), ([], None))[1])
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--small", "--minutes", "1", "--out", str(tmp_path)])
    gpu.main()
    assert [part for part, _ in given] == list(gpu.PARTS) and max(seconds for _, seconds in given) < 60


def test_without_a_gpu_nothing_is_measured_or_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "about", lambda small: {"device": None, "small": small})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    gpu.main()
    assert "there is none here" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_the_published_way_of_identification_gives_the_scripts_accuracies(monkeypatch):
    monkeypatch.setattr(identification, "RUNS", 1)
    *_, ratio = identification.whole(9)
    assert ratio.startswith("ratio")


def test_the_published_way_of_gathering_reads_the_same_features(tmp_path):
    subjstim.write(tmp_path, "fc8", 20, (6,))
    subjstim.published(tmp_path, "fc8")
    command = ["make_subjstim_vgg19.py", "--layer", "fc8", "--subject", "subj01", "--workdir", tmp_path, "--npy"]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    ws = layout.Workspace(tmp_path, "subj01")
    for split in ("tr", "te"):
        theirs = arrays.read_npy(tmp_path / f"subj01_ave_fc8_{split}.npy")
        assert (arrays.read_npy(ws.subject_features_npy("ave", "fc8", split)) == theirs).all()
