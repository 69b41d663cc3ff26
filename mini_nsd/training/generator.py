"""The small relu7 generator: a picture from what the small VGG19's relu7 says of it, for the GAN start image."""
import copy

import numpy as np
import torch
from torch import nn

from mini_nsd.training import clip, data, loop, vgg19
from mini_nsd.training.export import MODELS, write_card
from utils.generate import gan_inversion
from utils.models import caffe_nets

STEPS = 1000
BATCH = 32
WIDTHS = dict(input_size=vgg19.WIDTHS["hidden"], hidden=384, channels=(256, 64, 128, 64, 64, 64, 64, 48, 32), side=1)
SPREAD = 64.0           # levels: SD of a pixel, in which the output is learnt
PERCEPTUAL = {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 0.2, "conv4_4": 0.2, "conv5_4": 0.2, "fc7": 0.2}


class Trained(nn.Module):
    """A NarrowGenerator with input and output in units of their spread; `folded` is the plain network."""

    def __init__(self, unit: float):
        super().__init__()
        self.generator, self.unit = caffe_nets.NarrowGenerator(**WIDTHS), unit
        for module in self.generator.modules():
            if isinstance(module, (nn.Linear, nn.ConvTranspose2d)):
                taps = module.weight[0, 0].numel() / np.prod(module.stride) if module.weight.dim() == 4 else 1
                inputs = module.in_channels if module.weight.dim() == 4 else module.in_features
                nn.init.normal_(module.weight, std=(2 / (1 + caffe_nets.SLOPE ** 2) / (inputs * taps)) ** 0.5)
                nn.init.zeros_(module.bias)

    def forward(self, z):
        return self.generator(z / self.unit) * SPREAD

    @torch.no_grad()
    def folded(self) -> caffe_nets.NarrowGenerator:
        plain = copy.deepcopy(self.generator)
        plain.defc[0].weight.div_(self.unit)
        plain.deconv[-1].weight.mul_(SPREAD)
        plain.deconv[-1].bias.mul_(SPREAD)
        return plain.eval()


def train(cache) -> None:
    """Train on `cache`'s scenes, against mini_nsd/models/vgg19, and write mini_nsd/models/generator."""
    torch.manual_seed(0)
    series = data.training_scenes(cache)
    encoder = caffe_nets.load_encoder(MODELS / "vgg19", torch.device("cpu"))
    model = Trained(unit=vgg19.RELU7_BOUND / 6)
    loop.fit("generator", model, lambda model, step, rng: _loss(model, encoder, series, rng), steps=STEPS, rate=1e-3,
             muon_rate=5e-3, decay=0.99, cache=cache, export_steps=(STEPS // 2,),
             export=lambda model, step, seconds: _export(model, encoder, step, seconds, series))


def _loss(model, encoder, series, rng) -> torch.Tensor:
    """Absolute error of pixels, of their differences, and of the VGG19's activations, each in units of its own size."""
    rows = np.sort(rng.choice(len(series), BATCH, replace=False))
    pictures = vgg19.inputs(series.images[rows], encoder.mean.tolist())
    if rng.random() < 0.5:
        pictures = pictures.flip(-1)
    with torch.no_grad():
        truth = encoder.activations(pictures, list(PERCEPTUAL))
    made = model(truth["fc7"].relu())
    seen = encoder.activations(made, list(PERCEPTUAL))
    error = (made - pictures) / SPREAD
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    perceptual = sum(weight * (seen[layer] - truth[layer]).abs().mean() / truth[layer].abs().mean()
                     for layer, weight in PERCEPTUAL.items())
    return error.abs().mean() + 0.5 * edges + perceptual


@torch.no_grad()
def psnr(encoder, generator, count: int = 64) -> float:
    """Mean PSNR (dB) of held-out scenes made from their relu7 alone, without an inversion."""
    pictures = vgg19.inputs(data.rendered(data.HELD_OUT_SEED, 0, count).images, encoder.mean.tolist())
    made = encoder.pixels(generator.network(encoder.activations(pictures, ["relu7"])["relu7"])).clip(0, 255)
    return float((20 * np.log10(255) - 10 * np.log10(((made - encoder.pixels(pictures)) ** 2).mean((1, 2, 3)))).mean())


def inverted(encoder, generator, images: np.ndarray, **options) -> np.ndarray:
    """(n, 64, 64, 3) uint8 pictures inverted from the true features of (n, H, W, 3) uint8 ones, as by the GAN stage."""
    inputs = vgg19.inputs(images, encoder.mean.tolist())
    with torch.no_grad():
        targets = encoder.activations(inputs, gan_inversion.LAYERS)
    start = gan_inversion.initial_features(0, range(len(images)), len(generator.bound))
    made = gan_inversion.invert(encoder, generator, targets, start, **options)
    return gan_inversion.to_uint8(encoder.pixels(made), generator.levels)


def match_inverted(encoder, generator, count: int = 50) -> float:
    """How often the small CLIP finds the held-out scene that an inverted picture came from among ten."""
    model, _, _ = clip.load()
    images = data.rendered(data.HELD_OUT_SEED, 0, count).images
    made = clip.embed_images(model, data.to_tensor(inverted(encoder, generator, images)))
    return clip.match_among(made @ clip.embed_images(model, data.to_tensor(images)).T)


def evaluate() -> dict:
    """What the models in mini_nsd/models/vgg19 and generator reach together on held-out scenes, by name."""
    encoder = caffe_nets.load_encoder(MODELS / "vgg19", torch.device("cpu"))
    generator = caffe_nets.load_generator(MODELS / "generator", torch.device("cpu"))
    return {"size": f"{sum(p.numel() for p in generator.network.parameters()):,} parameters",
            "PSNR from relu7 alone, 64 held-out scenes": f"{psnr(encoder, generator):.2f} dB",
            "inversion of true features, matched to its scene among 10 by the small CLIP, 50 held-out scenes":
                f"{match_inverted(encoder, generator):.1%}"}


def _export(model, encoder, step: int, seconds: float, series) -> None:
    folder = MODELS / "generator"
    caffe_nets.save(model.folded(), WIDTHS | {"levels": "clip"}, folder)
    caffe_nets.save_bound(vgg19.upper_bound(vgg19.relu7(encoder, series.images[:4000])).numpy(), folder)
    write_card(folder, "AlexNetGenerator (bdpy's relu7 generator, narrowed)", step, STEPS, seconds, evaluate(),
               "Makes 64 px pictures in Caffe's space (BGR, 0–255, mean subtracted) from mini_nsd/models/vgg19's "
               "relu7. `act_range/3x/fc7.txt` bounds its input: mean + 3 SD of each unit over training scenes.")
