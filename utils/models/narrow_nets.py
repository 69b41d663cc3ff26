"""torchvision's Inception v3 and AlexNet with fewer channels, for classifiers small enough to ship.

Modules keep torchvision's names and order, so that 'avgpool' or 'features.12' mean the same node in both.
"""
import json
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models import inception as tv


class _NarrowConv(tv.BasicConv2d):
    """A convolution of Inception's with all channel counts divided, but the picture's own three."""

    def __init__(self, in_channels, out_channels, divisor, **options):
        super().__init__(in_channels if in_channels == 3 else in_channels // divisor, out_channels // divisor,
                         **options)


def inception(width_divisor: int, n_labels: int) -> tv.Inception3:
    """Inception v3 for pictures of at least 75 px, its channels divided by `width_divisor` (a divisor of 16).

    No auxiliary head. 'avgpool' gives 2048 / width_divisor numbers.
    """
    conv = partial(_NarrowConv, divisor=width_divisor)
    mixed = [partial(block, conv_block=conv)
             for block in (tv.InceptionA, tv.InceptionB, tv.InceptionC, tv.InceptionD, tv.InceptionE)]
    network = tv.Inception3(n_labels, aux_logits=False, init_weights=False, dropout=0.2,
                            inception_blocks=[conv, *mixed, tv.InceptionAux])
    network.fc = nn.Linear(2048 // width_divisor, n_labels)
    return network


def alexnet(channels: tuple, hidden: int, n_labels: int) -> nn.Module:
    """AlexNet for pictures of at least 96 px: five convolutions of `channels`, two hidden layers of `hidden` units.

    The first convolution strides by 2, not 4: the pictures are half the size of ImageNet's.
    """
    return _AlexNet(channels, hidden, n_labels)


class _AlexNet(nn.Module):
    def __init__(self, channels, hidden, n_labels):
        super().__init__()
        a, b, c, d, e = channels
        self.features = nn.Sequential(
            nn.Conv2d(3, a, 11, stride=2, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
            nn.Conv2d(a, b, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2),
            nn.Conv2d(b, c, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(c, d, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(d, e, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2))
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(0.2), nn.Linear(e * 36, hidden), nn.ReLU(inplace=True),
            nn.Dropout(0.2), nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, n_labels))

    def forward(self, x):
        """(n, 3, H, W) → logits (n, n_labels)."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


BUILDERS = {"inception": inception, "alexnet": alexnet}


def build(config: dict) -> nn.Module:
    """The network that a config.json describes: `architecture` and its `arguments`."""
    return BUILDERS[config["architecture"]](**config["arguments"])


def load(folder) -> tuple:
    """The network in `folder` (config.json, model.safetensors), in float32 and evaluation mode, and its config.

    The config has, besides the architecture: image_size (px), mean and std (of RGB in [0, 1]), labels (their names).
    """
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    network = build(config)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network.float().eval(), config
