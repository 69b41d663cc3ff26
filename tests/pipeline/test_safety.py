"""Nothing is unpickled, fetched unasked, signed, read from another file or unpacked without bound."""
import ast
import gzip
import os
import pickle
import shutil
import subprocess
import sys
import urllib.request
import zlib
from pathlib import Path

import h5py
import huggingface_hub.constants
import numpy as np
import pytest
import torch

import combine_roi_predictions
import decode_captions
import diffusion_decoding
import get_data
import make_subjmri
import make_subjstim
import ridge
from tests import tiny_nsd
from tests.pipeline.test_fuzz import bounded
from utils import images
from utils.errors import Problem
from utils.generate import gan_inversion
from utils.models import checkpoints, loading
from utils.nsd import atlases, coco_captions, mat5, nifti_volumes, object_keys, s3, stimulus_file
from utils.storage import arrays, feature_shards, hdf5, text_files

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


# no pickles


def sources():
    return [path for folder in (ROOT, ROOT / "utils", ROOT / "mini_nsd", ROOT / "mini_nsd" / "training",
                                ROOT / "benchmarks")
            for path in sorted(folder.glob("*.py"))]


def dotted(node):
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "?")


def keyword(call, name):
    """The constant value of a keyword argument; None if it is not there or not a constant."""
    return next((getattr(each.value, "value", None) for each in call.keywords if each.arg == name), None)


FORBIDDEN = {"pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "pd.read_pickle", "pandas.read_pickle",
             "scipy.io.loadmat", "dill.load", "dill.loads", "shelve.open", "eval", "exec"}


def test_no_call_in_the_sources_can_unpickle():
    for path in sources():
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name, where = dotted(call.func), f"{path.name}:{call.lineno}"
            assert name not in FORBIDDEN, where
            assert keyword(call, "allow_pickle") is not True, where
            if name in ("torch.load", "torch.hub.load_state_dict_from_url"):
                assert keyword(call, "weights_only") is True, where
            # torchvision's way to a state dict unpickles it.
            assert not name.endswith(".get_state_dict"), where
            assert not name.endswith("get_model") or not keyword(call, "weights"), where
            assert keyword(call, "trust_remote_code") is not True, where


class Bomb:
    """Says that it was unpickled by making a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.fixture
def went_off(tmp_path):
    return tmp_path / "unpickled"


def test_arrays_of_objects_are_refused_and_not_run(tmp_path, went_off):
    np.save(tmp_path / "000001.npy", np.array([Bomb(went_off)], object), allow_pickle=True)
    np.savez(tmp_path / "zip", a=np.ones(3))
    (tmp_path / "zip.npz").rename(tmp_path / "000002.npy")
    (tmp_path / "000003.npy").write_bytes(pickle.dumps(Bomb(went_off)))
    for name in ("000001", "000002", "000003"):
        with pytest.raises(Problem, match="not a whole .npy"):
            arrays.read_npy(tmp_path / f"{name}.npy")
        with pytest.raises(Problem, match="not a whole .npy"):
            feature_shards.Shards(tmp_path).read([int(name)], "x")
    assert not went_off.exists()


def test_weights_in_torchs_cache_are_not_unpickled(tmp_path, went_off, monkeypatch):
    monkeypatch.setenv("NSD_MODELS", "hub")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tiny_nsd.put(tmp_path, "hub/checkpoints/alexnet-owt-7be5be79.pth", b"")
    torch.save({"features.0.weight": Bomb(went_off)}, cached)
    loading.forget()
    with pytest.raises(Problem, match="cannot load the alexnet weights"):
        loading.classifier("alexnet", CPU)
    assert not went_off.exists()


def test_a_checkpoint_without_safetensors_is_refused_and_not_run(tmp_path, went_off, monkeypatch):
    shutil.copytree(checkpoints.TINY / "clip", tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").unlink()
    torch.save({"logit_scale": Bomb(went_off)}, tmp_path / "clip" / "pytorch_model.bin")
    monkeypatch.setenv("NSD_MODELS", str(tmp_path))
    loading.forget()
    with pytest.raises(Problem, match="cannot load the clip model"):
        loading.clip(CPU)
    assert not went_off.exists()


def test_damaged_safetensors_are_one_problem(tmp_path, monkeypatch):
    for role in ("clip", "alexnet"):
        shutil.copytree(checkpoints.TINY / role, tmp_path / role)
        weights = tmp_path / role / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
    monkeypatch.setenv("NSD_MODELS", str(tmp_path))
    loading.forget()
    with pytest.raises(Problem, match="cannot load the clip model"):
        loading.clip(CPU)
    with pytest.raises(Problem, match="cannot load the alexnet weights"):
        loading.classifier("alexnet", CPU)


# nothing fetched unasked


def run(script, *arguments, **environment):
    return subprocess.run([sys.executable, script, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | environment, timeout=120)


def test_small_models_and_folders_need_no_network(monkeypatch):
    def refused(*_, **__):
        raise AssertionError("a connection was made")

    monkeypatch.setattr("socket.socket.connect", refused)
    monkeypatch.setattr("socket.getaddrinfo", refused)
    monkeypatch.setenv("NSD_MODELS", "tiny")
    loading.forget()
    for role in sorted(path.name for path in checkpoints.TINY.iterdir()):
        checkpoints.identity(role)
    loading.clip(CPU), loading.blip(CPU, torch.float32), loading.dpt(CPU, torch.float32)
    loading.vgg19(CPU), loading.generator(CPU), loading.classifier("inception", CPU)
    stable = loading.stable_diffusion(CPU, torch.float32)
    stable.vae, stable.tokenizer, stable.text_encoder, stable.scheduler_config


def test_an_offline_hub_is_asked_for_nothing(tmp_path):
    """NSD_MODELS=hub, the default, is what asks for the hub; HF_HUB_OFFLINE takes that back."""
    with tiny_nsd.FaultyS3(tmp_path) as server:
        hub = {"NSD_MODELS": "hub", "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf")}
        found = run("img2feat_blip.py", "--gpu", "-1", "--workdir", tmp_path, **hub, HF_HUB_OFFLINE="1")
        assert found.returncode == 1 and found.stderr.startswith("error: cannot load the blip model")
        assert "HF_HUB_OFFLINE" in found.stderr and found.stderr.count("\n") == 1 and not server.log


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_that_does_not_answer_is_one_problem(tmp_path, monkeypatch, offline):
    connected = []

    def refuse(*address, **_):
        connected.append(address)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("NSD_MODELS", "hub")
    loading.forget()
    checkpoints.identity.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(Problem, match="cannot load the clip model.*openai/clip.* is not in"):
        loading.clip(CPU)
    assert bool(connected) is not offline


def test_weights_outside_the_hub_keep_to_offline_too(tmp_path, monkeypatch):
    monkeypatch.setenv("NSD_MODELS", "hub")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_: pytest.fail("a download was begun"))
    loading.forget()
    with pytest.raises(Problem, match="HF_HUB_OFFLINE is set.*alexnet"):
        loading.classifier("alexnet", CPU)


# no credentials


def test_no_profile_and_no_key_of_the_user_is_read_or_sent(tmp_path):
    """~/.aws is unreadable nonsense here: a run that read it would fail."""
    world = tiny_nsd.build(tmp_path / "nsd")
    tiny_nsd.put(tmp_path, "home/.aws/config", b"[profile ghost\nregion")
    tiny_nsd.put(tmp_path, "home/.aws/credentials", b"aws_secret_access_key = HIDDEN [")
    with tiny_nsd.FaultyS3(world) as server:
        found = run("get_data.py", "ppdata", "subj01", HOME=str(tmp_path / "home"), AWS_PROFILE="ghost", NSD_ROOT="",
                    AWS_ENDPOINT_URL_S3=server.url, AWS_ACCESS_KEY_ID="AKIDHIDDEN", AWS_SECRET_ACCESS_KEY="HIDDEN",
                    AWS_SESSION_TOKEN="HIDDEN")
        assert found.returncode == 0 and "responses.tsv" in found.stdout
        assert server.log
        for _, path, headers in server.log:
            assert not {"authorization", "x-amz-security-token"} & {name.lower() for name in headers}
            assert "HIDDEN" not in path + str(headers)


def test_a_name_from_outside_steers_no_terminal(tmp_path, monkeypatch, capsys):
    tiny_nsd.put(tmp_path, "nsddata/a\x1b[2Jb", b"")
    monkeypatch.setenv("NSD_ROOT", str(tmp_path))
    get_data.main(["list", "nsddata/"])
    assert "\x1b" not in capsys.readouterr().out


# nothing outside the working folder


@pytest.mark.parametrize("main, flags", [
    (make_subjmri.main, ["--roi", "../early"]), (make_subjmri.main, ["--atlas", "/etc/x"]),
    (make_subjstim.main, ["--subject", "subj01", "--use_stim", "ave", "--featname", "../../c"]),
    (ridge.main, ["--subject", "subj01", "--roi", "early", "--target", "../c"]),
    (ridge.main, ["--subject", "subj01", "--roi", "a/b", "--target", "c"]),
    (decode_captions.main, ["--subject", "subj01", "--target", "/c"]),
    (diffusion_decoding.main, ["--subject", "subj01", "--roi_c", ".."]),
    (combine_roi_predictions.main, ["--subject", "subj01", "--target", "c", "--rois", "early", "x\0y"]),
])
def test_a_name_cannot_be_a_path(tmp_path, main, flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--workdir", str(tmp_path), *flags])
    assert stopped.value.code == 2 and "is not a name" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def linked(file, secret):
    file["imgBrick"] = h5py.ExternalLink(str(secret), "imgBrick")


def linked_within(file, _):
    file["other"] = np.zeros((2, 4, 4, 3), np.uint8)
    file["imgBrick"] = h5py.SoftLink("/other")


def stored_outside(file, secret):
    file.create_dataset("imgBrick", (2, 4, 4, 3), np.uint8, external=[(str(secret), 0, 96)])


def virtual(file, secret):
    whole = h5py.VirtualLayout((2, 4, 4, 3), np.uint8)
    whole[:] = h5py.VirtualSource(str(secret), "imgBrick", (2, 4, 4, 3))
    file.create_virtual_dataset("imgBrick", whole)


@pytest.mark.parametrize("made", [linked, linked_within, stored_outside, virtual])
def test_an_hdf5_file_cannot_have_another_file_read(tmp_path, made):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["imgBrick"] = np.full((2, 4, 4, 3), 7, np.uint8)
    with h5py.File(tmp_path / "stimuli.hdf5", "w") as file:
        made(file, tmp_path / "secret.h5")
    with pytest.raises(Problem, match="must lie in the file itself"):
        stimulus_file.Stimuli(tmp_path / "stimuli.hdf5")


# nothing without bound


def npy_of(path, shape):
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        file.write(b"\0" * 64)
    return path


def test_an_array_that_claims_petabytes_is_refused(tmp_path):
    path = npy_of(tmp_path / "000001.npy", (1 << 25, 1 << 25))
    with bounded(), pytest.raises(Problem, match="not a whole .npy"):
        arrays.read_npy(path)
    with bounded(), pytest.raises(Problem, match="not a whole .npy"):
        feature_shards.Shards(tmp_path).read([1], "x")


def test_an_hdf5_that_claims_petabytes_or_was_never_finished_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("petabytes", (1 << 20, 1 << 15, 1 << 15), np.uint8, chunks=(1, 64, 64), compression="gzip")
        file.create_dataset("chunk", (1 << 29,), np.uint8, chunks=(1 << 29,), compression="gzip")
        unfinished = file.create_dataset("unfinished", (100, 50), np.float32, chunks=(10, 50), compression="gzip")
        unfinished[:90] = np.random.default_rng(0).random((90, 50))
        file.create_dataset("empty", (100, 50), np.float32)
        file["whole"] = np.ones((100, 50), np.float32)
    with hdf5.File(tmp_path / "a.h5", "x", "y") as file, bounded():
        for name in ("petabytes", "unfinished", "empty"):
            with pytest.raises(Problem, match=f"has {name} .* never finished"):
                file.dataset(name, "uf")
        with pytest.raises(Problem, match="pieces of more than 256 MiB"):
            file.dataset("chunk", "u")
        assert file.dataset("whole", "f").whole().sum() == 5000


ZEROS = 80 * gzip.compress(bytes(8 << 20), 1)  # 640 MiB, in members


def test_a_gzipped_volume_is_unpacked_no_further_than_its_header_says(tmp_path):
    root = s3.Folder(tiny_nsd.build(tmp_path))
    whole = gzip.decompress(tiny_nsd.nifti(tiny_nsd.labels()))
    tiny_nsd.put(tmp_path, tiny_nsd.ATLAS, gzip.compress(whole) + ZEROS)
    with bounded(), pytest.raises(Problem, match="streams.nii.gz holds more than its shape"):
        atlases.atlas(root, "subj01")
    header = gzip.decompress(tiny_nsd.nifti(np.zeros((1, 1, 1), np.int16), dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]))
    tiny_nsd.put(tmp_path, tiny_nsd.ATLAS, gzip.compress(header) + ZEROS)
    with bounded(), pytest.raises(Problem, match="unpacks to more than"):
        atlases.atlas(root, "subj01")
    header = gzip.decompress(tiny_nsd.nifti(np.zeros((1, 1, 1, 1), np.int16),
                                            dim=[4, 30000, 30000, 30000, 750, 1, 1, 1]))
    tiny_nsd.put(tmp_path, tiny_nsd.BETAS.format(1), gzip.compress(header) + ZEROS)
    with bounded(), pytest.raises(Problem, match="volumes .* of more than"):
        nifti_volumes.beta_volumes(root, "subj01", 1)


def png(width, height, bits=8, data=b""):
    """A PNG of RGB that has that header, whatever its data."""
    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([bits, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
def test_a_picture_that_unpacks_to_gigabytes_is_refused(tmp_path, side):
    (tmp_path / "a.png").write_bytes(png(side, side))
    with bounded(), pytest.raises(Problem, match="a.png"):
        images.load(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(png(4, 2, data=2 * (b"\0" + bytes(range(12)))))  # so made, an honest one is read
    assert np.array_equal(images.load(tmp_path / "a.png")[0].ravel(), np.arange(12))


def test_a_variable_of_a_mat_file_is_unpacked_within_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(mat5, "LIMIT", 1 << 20)
    packed = zlib.compress(bytes(mat5.LIMIT + 8))
    element = (mat5.COMPRESSED).to_bytes(4, "little") + len(packed).to_bytes(4, "little") + packed
    (tmp_path / "a.mat").write_bytes(bytes(124) + b"\0\1IM" + element)
    with pytest.raises(Problem, match="truncated or too large"):
        gan_inversion.read_mat(tmp_path / "a.mat", (1,), "x")


def test_json_nested_without_end_is_one_problem(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a":' * 200_000)
    with pytest.raises(Problem, match="not valid JSON"):
        text_files.read_json(tmp_path / "a.json")
    tiny_nsd.put(tmp_path, tiny_nsd.INFO, b"nsdId,cocoId,cocoSplit\n0,70,val2017\n")
    tiny_nsd.put(tmp_path, object_keys.captions_key("val2017"), b'{"annotations":' + b"[" * 200_000)
    with pytest.raises(Problem, match="not a COCO caption file"):
        coco_captions.captions(s3.Folder(tmp_path))
