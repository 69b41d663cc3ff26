"""The latent diffusion numerics against slow, obvious references, on the small trained checkpoint."""
import argparse

import numpy as np
import pytest
import torch

from mini_nsd import scene_rendering, scene_sampling
from utils import images
from utils.generate import diffusion, reconstruction
from utils.models import loading
from utils.pipeline import costs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NSD_MODELS", "tiny")
        yield diffusion.LatentDiffusion(loading.stable_diffusion(CPU, torch.float32))
        loading.forget()


@pytest.fixture(scope="module")
def stimuli():
    return np.stack([scene_rendering.render(scene_sampling.sample(73, index)).image for index in range(3)])


def by_hand(model, start, conditioning, noise, strength, steps, guidance):
    """DDIM with eta 0 written out for one image (Song et al. 2021, eq. 12), with classifier-free guidance."""
    config, unet = model.checkpoint.scheduler_config, model.checkpoint.unet
    betas = np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, config["num_train_timesteps"]) ** 2
    kept = np.cumprod(1 - betas)
    stride = config["num_train_timesteps"] // steps
    timesteps = (np.arange(steps) * stride)[::-1] + config["steps_offset"]
    timesteps = timesteps[steps - int(steps * strength):]
    latent = kept[timesteps[0]] ** 0.5 * model.encode(start) + (1 - kept[timesteps[0]]) ** 0.5 * noise
    empty = model.embed([""])
    for timestep in timesteps:
        with torch.inference_mode():
            without = unet(latent.float(), int(timestep), encoder_hidden_states=empty).sample
            under = unet(latent.float(), int(timestep), encoder_hidden_states=conditioning).sample
        predicted = without + guidance * (under - without)
        now, previous = kept[timestep], kept[timestep - stride] if timestep >= stride else kept[0]
        if config.get("prediction_type") == "v_prediction":
            clean = now ** 0.5 * latent - (1 - now) ** 0.5 * predicted
            predicted = now ** 0.5 * predicted + (1 - now) ** 0.5 * latent
        else:
            clean = (latent - (1 - now) ** 0.5 * predicted) / now ** 0.5
        latent = previous ** 0.5 * clean + (1 - previous) ** 0.5 * predicted
    return model.decode(latent.float())


def test_img2img_is_ddim_as_written_out(model, stimuli):
    start = images.to_network(stimuli[:1], model.size)
    noise = diffusion.sample_noise(42, 0, 0, (4, 16, 16))[None]
    text = model.embed(["a red ball"])
    fast = model.img2img(model.encode(start), text, noise, steps=10, progress=False)
    assert torch.allclose(fast, by_hand(model, start, text, noise, 0.8, 10, 5.0), atol=2e-3)


def test_steps_at_high_noise_can_go_without_guidance_and_that_is_counted(model, stimuli, monkeypatch):
    guidances, predict = [], diffusion.LatentDiffusion.predict

    def noted(self, latents, timestep, empty, conditioning, guidance, extra=None):
        guidances.append(guidance)
        return predict(self, latents, timestep, empty, conditioning, guidance, extra)
    monkeypatch.setattr(diffusion.LatentDiffusion, "predict", noted)
    start = model.encode(images.to_network(stimuli[:1], model.size))
    noise = diffusion.sample_noise(42, 0, 0, (4, 16, 16))[None]
    for solver in diffusion.SCHEDULERS:
        for steps, below in ((5, 0.6), (8, 0.5), (5, 0.0)):
            guidances.clear()
            model.img2img(start, model.embed(["a red ball"]), noise, steps=steps, guided_below=below, solver=solver,
                          progress=False)
            asked = argparse.Namespace(steps=steps, strength=0.8, guidance=5.0, guided_below=below)
            guided, plain = costs.passes(asked)
            assert abs(guidances.count(5.0) - guided) <= (steps > 5) and len(guidances) == guided + plain
            assert guidances == sorted(guidances)  # without first, then with


def test_pictures_can_be_made_smaller_and_a_latent_be_enlarged_without_the_vae(model, stimuli):
    smaller = diffusion.LatentDiffusion(model.checkpoint, 0.8125)
    assert (smaller.latent_side, smaller.size, smaller.feature_size) == (13, 104, model.feature_size)
    latents = model.encode(model.prepare(stimuli[:2]))
    for each in (model, smaller):
        through_pictures, as_it_is = (each.start_latents(latents.flatten(1), how) for how in diffusion.STARTS)
        assert through_pictures.shape == as_it_is.shape == (2, 4, each.latent_side, each.latent_side)
        assert torch.corrcoef(torch.stack([through_pictures.flatten(), as_it_is.flatten()]))[0, 1] > 0.9
    noise = torch.stack([diffusion.sample_noise(42, index, 0, (4, 13, 13)) for index in range(2)])
    made = smaller.img2img(smaller.start_latents(latents, "latent"), smaller.embed(["a", "b"]), noise, steps=5,
                           solver="unipc", progress=False)
    assert made.shape == (2, 3, 104, 104) and images.to_pixels(made).shape == (2, 512, 512, 3)


class TrueInputs:
    """What reconstruction.Inputs gives, from true features held in memory."""

    def __init__(self, model, stimuli, captions):
        self.model, self.latents, self.c = model, model.encode(model.prepare(stimuli)), model.caption_features(captions)

    def start(self, rows):
        return self.model.start_latents(self.latents[rows])

    def text(self, rows):
        return self.c[rows]

    def depth(self, rows):
        return None


def test_a_sample_does_not_depend_on_its_batch(model, stimuli):
    args = argparse.Namespace(seed=42, strength=0.8, steps=8, guidance=5.0, guided_below=1.0, scheduler="ddim")
    inputs = TrueInputs(model, stimuli, [["a red ball"], ["a blue cube", "a cube"], ["a ring"]])
    batch = [(image, sample) for image in range(3) for sample in range(2)]
    together = images.to_pixels(reconstruction.denoise(model, args, inputs, batch))
    for position, item in reversed(list(enumerate(batch))):
        alone = images.to_pixels(reconstruction.denoise(model, args, inputs, [item]))
        assert np.abs(alone[0].astype(int) - together[position]).max() <= 1  # one grey level: float32 rounding


def test_samples_of_one_image_differ_and_repeat(model):
    draw = [diffusion.sample_noise(42, image, sample, (4, 16, 16)) for image in (0, 1) for sample in (0, 1)]
    assert len({tensor.numpy().tobytes() for tensor in draw}) == 4
    assert torch.equal(draw[3], diffusion.sample_noise(42, 1, 1, (4, 16, 16)))


def test_latents_are_the_posterior_mean_at_five_eighths_of_the_size(model, stimuli):
    latents = model.encode(model.prepare(stimuli))
    assert latents.shape == (3, 4, 10, 10)
    pixels = images.to_network(stimuli, 80)
    with torch.inference_mode():
        mean = model.checkpoint.vae.encode(pixels).latent_dist.mean
    assert torch.allclose(latents, mean * model.checkpoint.vae.config.scaling_factor, atol=1e-4)
    assert pixels.min() >= -1 and pixels.max() <= 1 and pixels.min() < -0.5


def test_conditioning_is_the_mean_over_the_captions_of_an_image(model):
    captions = ["a red ball", "a large red ball in the snow"]
    apart = torch.cat([model.embed([caption]) for caption in captions])
    assert torch.allclose(model.caption_features([captions, ["a cube"]])[0], apart.mean(0), atol=1e-5)
    assert not torch.allclose(apart[0], apart[1], atol=1e-2)


@pytest.mark.parametrize("solver", ["dpm", "unipc"])
def test_better_solvers_end_where_ddim_ends(model, stimuli, solver):
    """Fewer steps of a higher order reach DDIM's result of many steps: they integrate the same equation."""
    start = images.to_network(stimuli[:1], model.size)
    noise = diffusion.sample_noise(42, 0, 0, (4, 16, 16))[None]
    text = model.embed(["a red ball"])
    reference = model.img2img(model.encode(start), text, noise, steps=250, guidance=1.0, progress=False)
    few = model.img2img(model.encode(start), text, noise, steps=25, guidance=1.0, solver=solver, progress=False)
    assert (few - reference).abs().mean() < 0.03


def test_bfloat16_stays_near_float32(model, stimuli):
    """Stated tolerance: latents within 3% of their standard deviation on average, pictures within 4 grey levels."""
    half = diffusion.LatentDiffusion(loading.stable_diffusion(CPU, torch.bfloat16))
    exact, rough = (each.encode(each.prepare(stimuli)) for each in (model, half))
    assert (exact - rough).abs().mean() < 0.03 * exact.std()
    pictures = [images.to_pixels(each.decode(exact)).astype(int) for each in (model, half)]
    assert np.abs(pictures[0] - pictures[1]).mean() < 4


def test_captions_longer_than_the_text_encoder_are_cut(model):
    assert model.embed(["ball " * 200]).shape == (1, *model.text_shape)
