"""What a card's memory allows, and what half precision overflows to: slices, batches, folds one at a time, NaN."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests import pretend_gpu
from utils import memory
from utils.errors import Problem
from utils.generate import depth_maps, diffusion
from utils.models import loading
from utils.ridge import products, ridge_decoder

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setenv("NSD_MODELS", "tiny")
    yield
    loading.forget()


def tiny_diffusion(device, dtype=torch.float32):
    loading.forget()
    return diffusion.LatentDiffusion(loading.stable_diffusion(device, dtype))


def latents(count, side=16):
    return torch.from_numpy(np.random.default_rng(0).standard_normal((count, 4, side, side), dtype=np.float32))


def test_the_vae_takes_no_more_memory_for_a_larger_batch_and_gives_the_same(monkeypatch):
    monkeypatch.setattr(diffusion, "VAE_PIXELS", 128 ** 2)
    peaks, made = [], []
    for count in (1, 8):
        with pretend_gpu.Device("cuda") as gpu:
            model = tiny_diffusion(gpu.device)
            before = gpu.alive
            pictures = model.decode(latents(8)[:count])
            again = model.encode(pictures)
            peaks.append(gpu.peak - before - 3 * pictures.nbytes)
            made.append((pictures.cpu(), again.cpu()))
            del pictures, again, model
            loading.forget()
    assert peaks[1] < 1.3 * peaks[0]
    monkeypatch.setattr(diffusion, "VAE_PIXELS", 8 * 128 ** 2)
    whole = tiny_diffusion(CPU).decode(latents(8))
    torch.testing.assert_close(made[1][0], whole, atol=1e-4, rtol=0)
    torch.testing.assert_close(made[1][1][:1], made[0][1], atol=1e-4, rtol=0)


def overflowing(vae, until):
    """Make a VAE return NaN for its last item in every dtype of `until`, as a float16 overflow does."""
    def broken(module, inputs, output):
        if inputs[0].dtype in until:
            output[-1] = torch.nan
    return vae.post_quant_conv.register_forward_hook(broken)


def test_what_overflows_in_the_vae_is_computed_again_in_float32_and_else_refused():
    model = tiny_diffusion(CPU, torch.bfloat16)
    good = model.decode(latents(3))
    overflowing(model.checkpoint.vae, {torch.bfloat16})
    mended = model.decode(latents(3))
    assert torch.equal(mended[:2], good[:2]) and model.checkpoint.vae.dtype == torch.bfloat16
    assert torch.isfinite(mended).all() and (mended[2] - good[2]).abs().mean() < 0.05
    overflowing(model.checkpoint.vae, {torch.bfloat16, torch.float32})
    with pytest.raises(Problem, match="VAE returned NaN .* in float32 too"):
        model.decode(latents(3))


def test_a_unet_that_returns_nan_is_refused_before_it_becomes_a_black_picture():
    model = tiny_diffusion(CPU)
    model.checkpoint.unet.conv_out.register_forward_hook(
        lambda module, inputs, output: torch.full_like(output, torch.nan))
    with pytest.raises(Problem, match="UNet returned NaN"):
        model.img2img(None, None, latents(1), steps=1, progress=False)


def test_depth_that_is_nan_is_no_map_without_relief():
    flat = depth_maps.normalise(torch.ones(2, 8, 8))
    assert (flat == 0).all()
    with pytest.raises(Problem, match="NaN"):
        depth_maps.normalise(torch.full((1, 8, 8), torch.nan))


@pytest.mark.parametrize("fits", [1, 5, 100])
def test_the_batch_is_the_largest_power_of_two_that_free_memory_holds(fits, capsys):
    with pretend_gpu.Device("cuda", memory=int(fits * 4e6 / memory.SHARE) + 1000) as gpu:
        found = memory.batch(gpu.device, {"cuda": 32}, lambda: torch.zeros(1_000_000, device=gpu.device))
    assert found == {1: 1, 5: 4, 100: 32}[fits]
    assert ("--batch_size" in capsys.readouterr().err) == (found < 32)
    assert memory.batch(CPU, {"cuda": 32, "cpu": 7}, None) == 7


def activity():
    random = np.random.default_rng(0)
    return random.standard_normal((900, 600), dtype=np.float32), random.standard_normal((300, 20), dtype=np.float32)


def test_a_ridge_on_a_gpu_holds_one_fold_at_a_time_and_gives_what_the_cpu_gives():
    voxels, features = activity()
    gram, chunk = 8 * 600 ** 2, 8 * 900 * 600
    made = []
    with pretend_gpu.Device("cuda") as gpu:
        decoder = ridge_decoder.Decoder(voxels, np.arange(900) // 3, device=gpu.device)
        assert gpu.peak < 3 * gram + 2 * chunk  # of six Gram matrices, five folds' and their sum
        decoder.predict_to(features, voxels[:5], out := np.empty((5, 20), np.float32))
        made.append(out)
        assert gpu.peak < memory.ridge_bytes(900, 600) - memory.RIDGE_REST + 2 * chunk + decoder.block_bytes
        del decoder
    ridge_decoder.Decoder(voxels, np.arange(900) // 3).predict_to(features, voxels[:5],
                                                                  out := np.empty((5, 20), np.float32))
    np.testing.assert_allclose(made[0], out, atol=1e-3)


def test_a_ridge_too_large_for_the_card_is_fitted_on_the_cpu_and_says_so(capsys):
    with pretend_gpu.Device("cuda", memory=16 << 30) as gpu:
        assert memory.ridge_device(gpu.device, 24_980, 5_917).type == "cuda" and not capsys.readouterr().err
        assert memory.ridge_device(gpu.device, 24_980, 27_638).type == "cpu"
    assert "on the CPU" in capsys.readouterr().err.strip()


def test_products_fall_back_to_pytorchs_own_where_its_private_operator_is_gone(monkeypatch):
    left, right = torch.randn(20, 30), torch.randn(30, 10)
    expected = products.product(left, right)
    products.has_onednn.cache_clear()
    with monkeypatch.context() as gone:
        gone.setattr(torch.ops, "mkldnn", SimpleNamespace())
        assert products.engine().startswith("PyTorch's own")
        torch.testing.assert_close(products.product(left, right), expected)
    products.has_onednn.cache_clear()
