"""DPT: hidden states of one pass, and depth from them, against transformers' and diffusers' own paths."""
import os
import types
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

import dptemb2dpt
import img2feat_dpt
from mini_nsd import scene_rendering, scene_sampling
from mini_nsd.training import dpt as training
from utils import images, layout
from utils.errors import Problem
from utils.features import extraction
from utils.generate import depth_maps, reconstruction
from utils.models import checkpoints, loading
from utils.storage import arrays, feature_shards, subject_matrices

CPU = torch.device("cpu")
ROIS = ["early", "lateral"]
COUNT = 5


@pytest.fixture(scope="module")
def estimator():
    """A DPT of random weights with unevenly spaced output indices."""
    torch.manual_seed(5)
    network = DPTForDepthEstimation(DPTConfig(
        hidden_size=32, num_hidden_layers=7, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=16,
        backbone_out_indices=[0, 2, 3, 6], neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16, initializer_range=0.2))
    torch.nn.init.constant_(network.head.head[4].bias, 1.0)
    return depth_maps.DepthEstimator(network.eval(), DPTImageProcessor(size={"height": 64, "width": 64}))


@pytest.fixture(scope="module")
def stimuli():
    return np.stack([scene_rendering.render(scene_sampling.sample(73, index)).image for index in range(COUNT)])


@pytest.fixture
def trained():
    """Skips where the small DPT has not been trained (python -m mini_nsd.train dpt)."""
    if not (checkpoints.TINY / "dpt").is_dir():
        pytest.skip("mini_nsd/models/dpt is not there; runs after python -m mini_nsd.train dpt")


@pytest.fixture
def world(trained, tmp_path, monkeypatch, stimuli):
    """A working folder of a subject that saw COUNT stimuli, the last three as test images."""
    monkeypatch.setenv("NSD_MODELS", "tiny")
    monkeypatch.setenv("NSD_ROOT", str(tmp_path / "nsd"))
    path = tmp_path / "nsd/nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file["imgBrick"] = stimuli
    ws = layout.Workspace(tmp_path / "work", "subj01")
    for path, array in ((ws.stims, np.arange(COUNT)), (ws.stims_ave, np.arange(COUNT)),
                        (ws.stims_ave_test, np.arange(COUNT) >= 2)):
        arrays.write_npy(path, array)
    yield ws
    loading.forget()


def tiny_estimator():
    return depth_maps.DepthEstimator(*loading.dpt(CPU, torch.float32))


def true_states(estimator, stimuli):
    return [state.flatten(1).numpy() for state in estimator.hidden_states(estimator.prepare(stimuli))]


def write_states(ws, states, occluded=False, scores=None):
    """Decoded states (default: the true ones) as ridge.py writes them, and the true ones as make_subjstim.py does."""
    for name, true, decoded in zip(depth_maps.NAMES, states, scores or states):
        target = f"{name}_occluded" if occluded else name
        arrays.write_npy(ws.scores(ROIS, target, "occluded" if occluded else None), decoded)
        shown = np.arange(COUNT - len(true), COUNT)  # the test images
        subject_matrices.write_subject_features(ws.subject_features("ave", target), {
            split: (shown, range(len(true)), lambda ids: true[ids - shown[0]]) for split in ("tr", "te")}, {})


def arguments(ws, *more):
    return ["--workdir", str(ws.workdir), "--subject", "subj01", "--gpu", "-1", "--roi", *ROIS, *more]


def test_depth_from_the_hidden_states_is_the_full_forward_pass(estimator, stimuli):
    pixels = estimator.prepare(stimuli)
    states = estimator.hidden_states(pixels)
    assert [state.shape for state in states] == [(COUNT, 17, 32)] * 4
    with torch.inference_mode():
        full = estimator.network(pixel_values=pixels).predicted_depth
    assert torch.allclose(estimator.depth(states), full, rtol=1e-6, atol=0) and full.std() > 0
    assert not torch.allclose(estimator.depth([states[0], states[1], states[3], states[2]]), full, rtol=1e-3)


def test_pixels_are_prepared_as_the_image_processor_does(estimator, stimuli):
    expected = estimator.processor(images=list(stimuli), return_tensors="pt").pixel_values
    level = 1 / 255 / min(estimator.processor.image_std)  # the two resize to 8 bits with other rounding
    assert (estimator.prepare(stimuli) - expected).abs().max() <= 1.01 * level


def test_maps_are_scaled_as_stable_diffusions_depth_pipeline_scales_them(estimator, stimuli):
    from diffusers import StableDiffusionDepth2ImgPipeline

    predicted = estimator.depth(estimator.hidden_states(estimator.prepare(stimuli)))
    expected = StableDiffusionDepth2ImgPipeline.prepare_depth_map(
        types.SimpleNamespace(vae_scale_factor=8), list(torch.zeros(COUNT, 3, 512, 512)), predicted, COUNT, False,
        torch.float32, CPU)
    assert expected.shape == (COUNT, 1, 64, 64)
    assert torch.allclose(depth_maps.normalise(predicted), expected, atol=1e-6)


def test_a_map_without_relief_is_zero_and_not_nan():
    maps = depth_maps.normalise(torch.stack([torch.full((8, 8), 3.0), torch.arange(64.0).reshape(8, 8)]))
    assert (maps[0] == 0).all() and maps[1].min() == -1 and maps[1].max() == 1
    assert np.isnan(depth_maps.correlation(maps[:1], maps[1:])).all()


def test_correlation_is_pearsons_per_image():
    one, other = np.random.default_rng(0).normal(size=(2, 3, 1, 4, 4))
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(one, other)]
    assert np.allclose(depth_maps.correlation(one, other), expected)


def test_a_half_precision_feature_that_would_overflow_is_refused():
    assert extraction.stored(torch.tensor([1.5]), "float16").dtype == np.float16
    with pytest.raises(Problem, match="--store float32"):
        extraction.stored(torch.tensor([1e5]), "float16")
    assert extraction.stored(torch.tensor([1e5]), "float32")[0] == 1e5


def test_stage_takes_all_four_states_from_one_pass_and_makes_only_what_is_missing(world, stimuli, monkeypatch):
    passes = []
    once = depth_maps.DepthEstimator.hidden_states
    monkeypatch.setattr(depth_maps.DepthEstimator, "hidden_states",
                        lambda self, pixels: passes.append(1) or once(self, pixels))
    common = ["--workdir", str(world.workdir), "--gpu", "-1", "--precision", "float32"]
    img2feat_dpt.main(common)
    assert len(passes) == 1
    folders = [layout.features(world.workdir, name) for name in depth_maps.NAMES]
    shards = [folder / "000000-000005.h5" for folder in folders]
    whole = [shard.read_bytes() for shard in shards]
    for folder, exact in zip(folders, true_states(tiny_estimator(), stimuli)):
        found = feature_shards.Shards(folder).read(range(COUNT), "x")
        assert found.dtype == np.float16 and found.shape == (COUNT, 65, 96)
        assert np.allclose(found.reshape(COUNT, -1), exact, atol=2e-3 * np.abs(exact).max())
    shards[2].unlink()  # as a run would leave it that is killed between two of the four
    before = [shard.stat().st_mtime_ns for shard in shards if shard.exists()]
    img2feat_dpt.main(common)
    assert [shard.read_bytes() for shard in shards] == whole
    assert [shards[number].stat().st_mtime_ns for number in (0, 1, 3)] == before


def test_stimuli_and_occluded_pictures_are_read_from_where_the_command_says(world, tmp_path, command_line):
    stimuli = Path(os.environ["NSD_ROOT"]) / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    common = ["--gpu", "-1", "--precision", "float32", "--workdir"]
    img2feat_dpt.main([*common, str(tmp_path / "usual")])
    elsewhere, pictures = tmp_path / "elsewhere.h5", tmp_path / "png"
    occluded = tmp_path / "usual/nsd_stimuli_occluded.hdf5"
    assert command_line("generate_occluded_images.py", "--h5_path", stimuli, "--outdir", pictures).returncode == 0
    assert command_line("generate_occluded_images.py", "--input_path", stimuli,
                        "--output_path", occluded).returncode == 0
    stimuli.rename(elsewhere)

    def dpt(workdir, *flags):
        return command_line("img2feat_dpt.py", *common, tmp_path / workdir, *flags)

    def shards(workdir, name):
        return (layout.features(tmp_path / workdir, name) / "000000-000005.h5").read_bytes()

    assert dpt("named", "--stimuli_path", elsewhere).returncode == 0
    assert shards("named", "dpt_emb2") == shards("usual", "dpt_emb2")
    assert dpt("usual", "--dataset", "occluded").returncode == 0
    assert dpt("named", "--dataset", "occluded", "--occluded_dir", pictures).returncode == 0
    assert shards("named", "dpt_emb2_occluded") == shards("usual", "dpt_emb2_occluded") != shards("usual", "dpt_emb2")
    again = dpt("usual", "--dataset", "occluded", "--occluded_dir", pictures)
    assert again.returncode == 0 and f"0 computed, {COUNT} already there" in again.stdout
    for flags, said in ([["--occluded_dir", pictures], "pass --dataset occluded too"],
                        [["--stimuli_path", occluded], "holds occluded images"],
                        [["--dataset", "occluded", "--stimuli_path", occluded], "name their file with --occluded_path"],
                        [["--dataset", "occluded", "--occluded_dir", pictures, "--occluded_path", occluded],
                         "give one"],
                        [["--stimuli_path", tmp_path / "none.h5"], "none.h5 is missing"]):
        refused = dpt("refused", *flags)
        assert refused.returncode == 1 and said in refused.stderr.splitlines()[-1]
    assert not layout.features(tmp_path / "refused", "dpt_emb0").exists()
    elsewhere.rename(stimuli)
    asked = types.SimpleNamespace(workdir=tmp_path / "named", dataset="occluded", occluded_dir=pictures)
    reconstruction.save_originals(asked, world, tmp_path, [1])  # what was shown, of diffusion_decoding_occluded.py
    with (Image.open(layout.stimulus_image(pictures, 3)) as shown,
          Image.open(layout.occluded_image(tmp_path, 1)) as kept):
        assert np.array_equal(np.asarray(kept), images.resize(np.asarray(shown), 512))


def test_decoded_maps_are_the_full_pass_scaled_and_their_pictures(world, stimuli, capsys):
    estimator = tiny_estimator()
    write_states(world, true_states(estimator, stimuli[2:]))
    dptemb2dpt.main(arguments(world, "--batch_size", "2"))
    with torch.inference_mode():
        full = estimator.network(pixel_values=estimator.prepare(stimuli[2:])).predicted_depth
    expected = depth_maps.normalise(full).numpy()
    for index in range(3):
        found = np.load(world.depth(index))
        assert found.dtype == np.float32 and found.shape == (1, 1, 64, 64)
        assert np.allclose(found[0], expected[index], atol=1e-5)
        with Image.open(world.depth_image(index)) as picture:
            large = depth_maps.normalise(full[index:index + 1], 512).numpy()[0, 0]
            assert picture.mode == "L" and picture.size == (512, 512)
            assert np.abs(np.asarray(picture) - (large + 1) * 127.5).max() <= 0.51
    assert "r = 1.000" in capsys.readouterr().out


def test_occluded_maps_lie_apart_and_other_inputs_are_not_mixed_in(world, stimuli):
    states = true_states(tiny_estimator(), stimuli[2:])
    write_states(world, states)
    dptemb2dpt.main(arguments(world))
    whole = world.depth(0).read_bytes()
    write_states(world, states, occluded=True, scores=[state[::-1].copy() for state in states])
    dptemb2dpt.main(arguments(world, "--dataset", "occluded"))
    assert world.depth(0).read_bytes() == whole
    assert world.depth(2, "occluded").read_bytes() == whole  # the occluded scores are in reverse
    write_states(world, states, scores=[state + 1 for state in states])
    with pytest.raises(Problem, match="--overwrite"):
        dptemb2dpt.main(arguments(world))


def test_a_missing_state_names_its_stage(world):
    with pytest.raises(Problem, match="run ridge.py --target dpt_emb0 --roi early lateral"):
        dptemb2dpt.main(arguments(world))


def test_the_small_dpt_predicts_true_nearness(trained):
    """The bar is 0.9 over held-out scenes, on average."""
    assert training.correlation(training.load(), count=50).mean() >= 0.9


@pytest.mark.slow
def test_dpt_large_gives_four_states_of_577_by_1024(stimuli):
    network = DPTForDepthEstimation(DPTConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
        backbone_out_indices=[5, 11, 17, 23], neck_hidden_sizes=[256, 512, 1024, 1024])).eval()
    estimator = depth_maps.DepthEstimator(network, DPTImageProcessor())
    states = estimator.hidden_states(estimator.prepare(stimuli[:1]))
    assert [state.shape for state in states] == [(1, 577, 1024)] * 4
    assert depth_maps.normalise(estimator.depth(states)).shape == (1, 1, 64, 64)
