"""What several benchmarks need: the fastest of a few calls, the two Stable Diffusions, and the published procedure."""
import os
import time
from pathlib import Path

import numpy as np
import torch

from mini_nsd import scenes
from utils import diffusion, models

CPU = torch.device("cpu")
REAL = Path(__file__).resolve().parents[1] / ".bench"     # SD 1.4's architecture, 2 GB
CAPTIONS = 5


def fastest(function, repeats):
    """Seconds of the fastest of `repeats` calls, after one that is not counted. A GPU's work is waited for."""
    def called():
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    called()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        called()
        times.append(time.perf_counter() - start)
    return min(times)


def products(device, dtype, size=4096):
    """Floating-point operations a second of large matrix products on a device."""
    one = torch.randn(size, size, device=device).to(dtype)
    return 2 * size ** 3 / fastest(lambda: (one @ one)[0, 0].item(), 3)


def small(dtype, device=CPU):
    """The small model of the simulated world."""
    os.environ["NSD_MODELS"] = "tiny"
    return diffusion.LatentDiffusion(models.StableDiffusion("sd", device, dtype))


def real(dtype, device=CPU):
    """SD 1.4's architecture with random weights, as the slow tests build it."""
    write_real()
    os.environ["NSD_MODELS"] = str(REAL)
    return diffusion.LatentDiffusion(models.StableDiffusion("sd", device, dtype))


def write_real(folder=REAL):
    """SD 1.4's architecture with random weights in the hub's layout, unless it is there."""
    from tests.test_real_architectures import write_stable_diffusion

    if not (folder / "sd/tokenizer/tokenizer_config.json").exists():  # what is written last
        write_stable_diffusion(folder)


def scene_stimuli(count):
    """(stimuli (count, 425, 425, 3) uint8, captions) of simulated scenes."""
    drawn = [scenes.sample(73, index) for index in range(count)]
    return (np.stack([scenes.render(scene).image for scene in drawn]),
            [scenes.captions(scene)[:CAPTIONS] for scene in drawn])


def extract_features(model, stimuli, captions):
    """The features init_latent and c of a batch, as img2feat_sd1_* computes them."""
    model.encode(model.prepare(stimuli))
    model.caption_features(captions)


def extract_as_published(model, stimulus, captions):
    """One image through the published procedure, at the same feature size: 40 guided steps that are thrown away."""
    latent = model.encode(model.prepare(stimulus[None]))
    text = model.caption_features([captions])
    noise = diffusion.sample_noise(42, 0, 0, model.latent_shape)[None]
    pictures = diffusion.enlarge(model.decode(latent), model.feature_size)
    model.img2img(pictures, text, noise, progress=False)


def vgg19_and_generator(device):
    """(encoder, generator, {layer: shape of one picture's features}): the Caffe architectures, random weights."""
    from bdpy.dl.torch.models import VGG19, AlexNetGenerator

    from utils import caffe_nets, icnn

    encoder = caffe_nets.Encoder(VGG19().eval().requires_grad_(False).to(device), caffe_nets.IMAGENET_SIZE,
                                 torch.tensor(caffe_nets.IMAGENET_MEAN, device=device), device)
    generator = caffe_nets.Generator(AlexNetGenerator().eval().requires_grad_(False).to(device),
                                     torch.full((4_096,), 5.0, device=device), device)
    return encoder, generator, encoder.shapes(icnn.LAYERS)
