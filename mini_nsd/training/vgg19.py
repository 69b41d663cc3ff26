"""The small VGG19: names what is in a scene, and gives the features that the GAN start image is made from."""
import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mini_nsd import scenes
from mini_nsd.training import data, loop
from mini_nsd.training.export import MODELS, write_card
from utils.models import caffe_nets

STEPS = 1200
BATCH = 64
WIDTHS = dict(channels=(8, 16, 32, 64, 64), image_size=64, hidden=384, outputs=len(data.LABELS))
DROPOUT = 0.1           # 0.5 in VGG19, whose fc6 and fc7 are ten times as wide
THUMBNAIL = 8           # px: side of the picture that a head must tell from relu7
RELU7_BOUND = 12.0      # mean upper bound of relu7 after scaling, in steps of the inversion's first learning rate (2)


class Trained(nn.Module):
    """A NarrowVGG19 with batch normalisation behind each layer and a thumbnail head; neither is kept.

    Sixteen plain convolutions hardly learn from scratch: the published VGG19 was grown from a shallower one. The
    normalisation is folded into the weights afterwards. The head keeps in relu7 where things are, not only what.
    """

    def __init__(self):
        super().__init__()
        self.vgg = caffe_nets.NarrowVGG19(**WIDTHS)
        self.normal = nn.ModuleList([
            (nn.BatchNorm2d if isinstance(module, nn.Conv2d) else nn.BatchNorm1d)(module.weight.shape[0])
            for module in self.weighted()[:-1]])
        self.thumbnail = nn.Linear(WIDTHS["hidden"], 3 * THUMBNAIL ** 2)
        for module in self.vgg.classifier:
            if isinstance(module, nn.Dropout):
                module.p = DROPOUT

    def weighted(self) -> list:
        """The convolutions and linear layers, in order."""
        return [m for m in [*self.vgg.features, *self.vgg.classifier] if isinstance(m, (nn.Conv2d, nn.Linear))]

    def forward(self, x):
        """Logits (n, labels) and thumbnails (n, 3, THUMBNAIL, THUMBNAIL)."""
        normal = iter(self.normal)
        for module in self.vgg.features:
            x = module(x)
            x = next(normal)(x) if isinstance(module, nn.Conv2d) else x
        x = torch.flatten(self.vgg.avgpool(x), 1)
        for index, module in enumerate(self.vgg.classifier[:-1]):
            x = module(x)
            x = next(normal)(x) if isinstance(module, nn.Linear) else x
            if index == 4:
                thumbnail = self.thumbnail(x).view(-1, 3, THUMBNAIL, THUMBNAIL)
        return self.vgg.classifier[-1](x), thumbnail

    @torch.no_grad()
    def folded(self) -> caffe_nets.NarrowVGG19:
        """The plain network that computes the same, normalisation and all, in evaluation."""
        plain = copy.deepcopy(self)
        for module, normal in zip(plain.weighted(), plain.normal):
            scale = normal.weight / (normal.running_var + normal.eps).sqrt()
            module.bias.copy_((module.bias - normal.running_mean) * scale + normal.bias)
            module.weight.mul_(scale.view(-1, *[1] * (module.weight.dim() - 1)))
        return plain.vgg.eval()


def train(cache) -> None:
    """Train on `cache`'s scenes and write mini_nsd/models/vgg19."""
    torch.manual_seed(0)
    series = data.training_scenes(cache)
    mean = bgr_mean(series)
    loop.fit("vgg19", Trained(), lambda model, step, rng: _loss(model, series, mean, rng), steps=STEPS, rate=2e-3,
             decay=0.995, cache=cache, export_steps=(STEPS // 2,),
             export=lambda model, step, seconds: _export(model, step, seconds, series, mean))


def bgr_mean(series) -> list:
    """Mean of each channel over 2,000 training scenes, BGR, 0–255: what Caffe's preprocessing takes away."""
    return series.images[:2000].mean((0, 1, 2))[::-1].round(3).tolist()


def inputs(images: np.ndarray, mean) -> torch.Tensor:
    """(n, H, W, 3) uint8 RGB → (n, 3, 64, 64) float32 BGR minus the mean."""
    small = F.interpolate(data.to_tensor(images), size=(WIDTHS["image_size"],) * 2, mode="area").add(1).mul(127.5)
    return small.flip(1) - torch.tensor(mean).view(3, 1, 1)


def _loss(model, series, mean, rng) -> torch.Tensor:
    rows = np.sort(rng.choice(len(series), BATCH, replace=False))
    pictures = inputs(series.images[rows], mean)
    if rng.random() < 0.5:
        pictures = pictures.flip(-1)
    with loop.half():
        named, thumbnail = model(pictures)
    labels = torch.from_numpy(series.labels[rows]).float()
    truth = F.adaptive_avg_pool2d(pictures, THUMBNAIL) / 64
    return 10 * F.binary_cross_entropy_with_logits(named.float(), labels) + F.mse_loss(thumbnail.float(), truth)


@torch.no_grad()
def relu7(encoder, images: np.ndarray, batch: int = 250) -> torch.Tensor:
    """(n, hidden) of (n, H, W, 3) uint8 RGB pictures: what the generator inverts."""
    parts = [inputs(images[start:start + batch], encoder.mean.tolist()) for start in range(0, len(images), batch)]
    return torch.cat([encoder.activations(part, ["relu7"])["relu7"] for part in parts])


@torch.no_grad()
def named(encoder, count: int = 300) -> dict:
    """Held-out scores: how often the likeliest object is there, its colour at least, and the background is right."""
    series = data.rendered(data.HELD_OUT_SEED, 0, count)
    logits = encoder.activations(inputs(series.images, encoder.mean.tolist()), ["fc8"])["fc8"].numpy()
    kinds, rows = len(scenes.BACKGROUNDS), np.arange(count)
    likeliest, there = logits[:, :-kinds].argmax(1), series.labels[:, :-kinds] > 0
    colours = there.reshape(count, len(scenes.COLOURS), -1).any(2)
    return {
        f"likeliest object is in the scene, {count} held-out scenes": f"{there[rows, likeliest].mean():.1%}",
        "an object of its colour is": f"{colours[rows, likeliest // len(scenes.SHAPES)].mean():.1%}",
        "background named": f"{(logits[:, -kinds:].argmax(1) == series.labels[:, -kinds:].argmax(1)).mean():.1%}"}


def evaluate() -> dict:
    """What the model in mini_nsd/models/vgg19 reaches on held-out scenes, by name."""
    encoder = caffe_nets.load_encoder(MODELS / "vgg19", torch.device("cpu"))
    return {"size": f"{sum(p.numel() for p in encoder.network.parameters()):,} parameters", **named(encoder)}


def _export(model, step: int, seconds: float, series, mean) -> None:
    _recalibrate(model, series, mean)
    plain, folder = model.folded(), MODELS / "vgg19"
    encoder = caffe_nets.Encoder(plain, WIDTHS["image_size"], torch.tensor(mean), torch.device("cpu"))
    # ReLU is homogeneous: relu7 may be scaled if fc8 takes it back. The inversion's steps then have a fitting size.
    scale = RELU7_BOUND / float(upper_bound(relu7(encoder, series.images[:2000])).mean())
    with torch.no_grad():
        plain.classifier[3].weight.mul_(scale)
        plain.classifier[3].bias.mul_(scale)
        plain.classifier[6].weight.div_(scale)
    caffe_nets.save(plain, WIDTHS | {"mean": mean, "labels": data.LABELS}, folder)
    write_card(folder, "VGG19 (bdpy's, narrowed)", step, STEPS, seconds, evaluate(),
               "Takes 64 px pictures as Caffe does: BGR, 0–255, mean subtracted. Every layer has VGG19's name and "
               "place, at an eighth of its channels. Besides naming objects it had to tell an 8 px thumbnail of the "
               "scene from relu7, so that the generator can find there where things are.")


def upper_bound(activations: torch.Tensor) -> torch.Tensor:
    """(units,): mean + 3 SD over pictures, as the range of the published generator's input (Nguyen et al. 2016)."""
    return activations.mean(0) + 3 * activations.std(0)


@torch.no_grad()
def _recalibrate(model, series, mean) -> None:
    """Take the normalisation's statistics anew: the exported weights are an average that they were not taken for."""
    for normal in model.normal:
        normal.reset_running_stats()
        normal.momentum = None
    model.train()
    for start in range(0, 2000, 250):
        model(inputs(series.images[start:start + 250], mean))
    model.eval()
