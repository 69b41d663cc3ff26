"""What several benchmarks need: times of calls and of processes, the two Stable Diffusions, the published procedure."""
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mini_nsd import scene_captions, scene_rendering, scene_sampling
from utils import lazy
from utils.generate import diffusion
from utils.models import loading

torch = lazy.module("torch")  # a process that measures others must be small: their peak begins with its own

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT / ".bench"     # SD 1.4's architecture, 2 GB
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


def process(*command):
    """(wall seconds, processor seconds, peak MiB, stdout) of a Python process on one thread."""
    with tempfile.TemporaryFile("w+") as out:
        start = time.perf_counter()
        child = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stdout=out, stderr=subprocess.DEVNULL,
                                 env=os.environ | {"OMP_NUM_THREADS": "1"})
        _, status, used = os.wait4(child.pid, 0)
        wall, child.returncode = time.perf_counter() - start, os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, command)
        out.seek(0)
        return wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, out.read()


def products(device, dtype, size=4096):
    """Floating-point operations a second of large matrix products on a device."""
    one = torch.randn(size, size, device=device).to(dtype)
    return 2 * size ** 3 / fastest(lambda: (one @ one)[0, 0].item(), 3)


def small(dtype, device=None):
    """The small model of the simulated world. device: default the CPU."""
    os.environ["NSD_MODELS"] = "tiny"
    return diffusion.LatentDiffusion(loading.StableDiffusion("sd", device or torch.device("cpu"), dtype))


def real(dtype, device=None):
    """SD 1.4's architecture with random weights, as the slow tests build it."""
    write_real()
    os.environ["NSD_MODELS"] = str(REAL)
    return diffusion.LatentDiffusion(loading.StableDiffusion("sd", device or torch.device("cpu"), dtype))


def write_real(folder=REAL):
    """SD 1.4's architecture with random weights in the hub's layout, unless it is there."""
    from tests.models.test_real_architectures import write_stable_diffusion

    if not (folder / "sd/tokenizer/tokenizer_config.json").exists():  # what is written last
        write_stable_diffusion(folder)


def scene_stimuli(count):
    """(stimuli (count, 425, 425, 3) uint8, captions) of simulated scenes."""
    drawn = [scene_sampling.sample(73, index) for index in range(count)]
    return (np.stack([scene_rendering.render(scene).image for scene in drawn]),
            [scene_captions.captions(scene)[:CAPTIONS] for scene in drawn])


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
    model.img2img(model.encode(pictures), text, noise, progress=False)


def vgg19_and_generator(device):
    """(encoder, generator, {layer: shape of one picture's features}): the Caffe architectures, random weights."""
    from bdpy.dl.torch.models import VGG19, AlexNetGenerator

    from utils.generate import gan_inversion
    from utils.models import caffe_nets

    encoder = caffe_nets.Encoder(VGG19().eval().requires_grad_(False).to(device), caffe_nets.IMAGENET_SIZE,
                                 torch.tensor(caffe_nets.IMAGENET_MEAN, device=device), device)
    generator = caffe_nets.Generator(AlexNetGenerator().eval().requires_grad_(False).to(device),
                                     torch.full((4_096,), 5.0, device=device), device)
    return encoder, generator, encoder.shapes(gan_inversion.LAYERS)
