"""The GPU path without a GPU: the numerics on a pretended device, and their results beside the CPU's."""
import numpy as np
import pytest
import torch

from mini_nsd import scene_rendering, scene_sampling
from tests import pretend_gpu
from utils import images
from utils.evaluate import caption_scores, judging_networks
from utils.features import extraction
from utils.generate import captioning, depth_maps, diffusion, gan_inversion, inpainting
from utils.models import loading
from utils.ridge import penalties, ridge_decoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NSD_MODELS", "tiny")
        yield
        loading.forget()


@pytest.fixture(scope="module")
def stimuli():
    return np.stack([scene_rendering.render(scene_sampling.sample(73, index)).image for index in range(2)])


def on(kind, compute):
    """(result on the pretended device, on the CPU)"""
    loading.forget()
    with pretend_gpu.Device(kind) as gpu:
        there = compute(gpu.device)
    loading.forget()
    return there, compute(CPU)


def test_the_pretended_device_refuses_what_cuda_refuses():
    with pretend_gpu.Device("cuda") as gpu:
        there = torch.ones(2, 3).to(gpu.device)
        for wrong in (lambda: there + torch.ones(3), lambda: torch.ones(3)[there[0].long()], lambda: np.asarray(there),
                      lambda: torch.randn(2, generator=torch.Generator(), device=gpu.device)):
            with pytest.raises((pretend_gpu.Mixed, TypeError)):
                wrong()
        assert float((there + torch.tensor(1.0)).sum()) == 12 and there[:, torch.tensor([0])].cpu().shape == (2, 1)
    with pretend_gpu.Device("mps") as gpu, pytest.raises(TypeError):
        torch.ones(2, dtype=torch.float64).to(gpu.device)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("mode", ["fixed", "paper"])
@pytest.mark.parametrize("trials, voxels, alphas", [
    (120, 20, penalties.FIXED_ALPHAS), (60, 90, penalties.FIXED_ALPHAS), (400, 10, (1e-6, 1e-3, 1e-1)),
    (60, 90, (1e-6, 1.0))])
def test_ridge(kind, mode, trials, voxels, alphas):
    def fit(device):
        random = np.random.default_rng(0)
        x, y = random.standard_normal((trials, voxels)), random.standard_normal((trials // 2, 30)).astype(np.float32)
        decoder = ridge_decoder.Decoder(x, np.arange(trials) // 2, mode=mode, device=device, alphas=alphas)
        out = np.empty((5, 30), np.float32)
        decoder.predict_to(y, random.standard_normal((5, voxels)), out, test_features=random.standard_normal((5, 30)))
        return out
    np.testing.assert_allclose(*on(kind, fit), atol=1e-3)


@pytest.mark.parametrize("kind, dtype", [("cuda", torch.bfloat16), ("mps", torch.float32)])
def test_everything_else(kind, dtype, stimuli):
    def diffuse(device):
        model = diffusion.LatentDiffusion(loading.stable_diffusion(device, dtype))
        latents = extraction.as_numpy(model.encode(model.prepare(stimuli)))
        told = extraction.as_numpy(model.caption_features([["a ball"]] * 2))
        noise = torch.stack([diffusion.sample_noise(0, i, 0, (4, model.latent_side, model.latent_side))
                             for i in range(2)])
        start, told = model.start_latents(torch.from_numpy(latents)), torch.from_numpy(told)
        # On a processor without half precision a step in it takes ten times as long.
        more = [(start, told, "dpm"), (None, told, "unipc"), (start, None, "ddim")] if dtype == torch.float32 else []
        made = [images.to_pixels(model.img2img(begin, text, noise, steps=2, solver=solver, progress=False))
                for begin, text, solver in ((start, told, "ddim"), *more)]
        hidden = np.zeros(stimuli.shape[:3], bool)
        hidden[:, 100:300, 100:300] = True
        made += [inpainting.inpaint(model, stimuli, hidden, noise, text, steps=2)
                 for text in (None, told)[:1 + len(more)]]
        return np.concatenate([each.ravel() for each in made]).astype(int)

    def others(device):
        captioner = captioning.Captioner(*loading.blip(device, dtype))
        seen = extraction.stored(captioner.embed(captioner.prepare(stimuli)), "float32")
        captioner.caption(torch.from_numpy(seen))
        estimator = depth_maps.DepthEstimator(*loading.dpt(device, dtype))
        states = [torch.from_numpy(extraction.stored(each, "float32"))
                  for each in estimator.hidden_states(estimator.prepare(stimuli))]
        encoder, generator = loading.vgg19(device), loading.generator(device)
        true = [torch.from_numpy(extraction.stored(each, "float32"))
                for each in gan_inversion.activations(encoder, encoder.prepare(stimuli), gan_inversion.LAYERS)]
        targets = {layer: gan_inversion.shifted_and_scaled(each, 1.0)
                   for layer, each in zip(gan_inversion.LAYERS, true)}
        made = gan_inversion.invert(encoder, generator, targets,
                                    gan_inversion.initial_features(0, [0, 1], len(generator.bound)), 2)
        judged = judging_networks.Evaluators(["inception", "alexnet5", "clip", "clip_h6"], device)(stimuli)
        return np.concatenate([np.ravel(each) for each in (
            seen, depth_maps.normalise(estimator.depth(states)).cpu().numpy(),
            gan_inversion.to_uint8(encoder.pixels(made), "clip").astype(int),
            caption_scores.clip_text_features(device)(["a red ball"]), *judged.values())])

    for compute in (diffuse, others):
        there, here = on(kind, compute)
        np.testing.assert_allclose(there, here, atol=2)


def fitted(device):
    voxels = np.random.default_rng(0).standard_normal((60, 8))
    decoder = ridge_decoder.Decoder(voxels, np.arange(60), device=device)
    decoder.predict_to(voxels, voxels[:2], np.empty((2, 8), np.float32))


def denoised(device):
    model = diffusion.LatentDiffusion(loading.stable_diffusion(device, torch.float32))
    model.img2img(None, None, torch.zeros(1, 4, model.latent_side, model.latent_side), steps=1, progress=False)


BUGS = {
    "voxels stay on the CPU": (
        ridge_decoder.Decoder, "_standardised",
        lambda self, voxels, dtype=torch.float64: torch.as_tensor(np.asarray(voxels, float)).to(dtype), fitted),
    "stimulus sums stay on the CPU": (
        torch.Tensor, "index_add_", lambda self, dim, index, source: torch.zeros(self.shape).add_(source),
        fitted),
    "latents stay on the CPU": (diffusion.LatentDiffusion, "_to", lambda self, tensor: tensor.cpu(), denoised),
    "noise is drawn on the device": (
        diffusion, "scheduler", lambda *_: torch.randn(2, generator=torch.Generator(), device="cuda"), denoised),
    "an array is made of what is on the device": (images, "to_pixels", lambda pixels: np.asarray(pixels),
                                                  lambda device: images.to_pixels(torch.zeros(1, 3, 8, 8).to(device))),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_refused(bug, monkeypatch):
    where, what, wrong, compute = BUGS[bug]
    loading.forget()
    with pretend_gpu.Device("cuda") as gpu:
        compute(gpu.device)
        monkeypatch.setattr(where, what, wrong)
        with pytest.raises((pretend_gpu.Mixed, TypeError)):
            compute(gpu.device)
    loading.forget()
