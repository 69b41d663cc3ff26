"""The Caffe-style networks of KamitaniLab's cookbook: bdpy's VGG19 and relu7 generator, and the same ones narrowed.

Both work on pictures as Caffe does: BGR, 0–255, the mean subtracted (float32). A folder holds either the published
weights under the cookbook's own names, or config.json with model.safetensors, for the narrowed classes below.
"""
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bdpy.dl.torch.models import VGG19, AlexNetGenerator, layer_map
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from utils import images
from utils.errors import Problem
from utils.models import checkpoints
from utils.storage import text_files, writing

BLOCKS = (2, 2, 4, 4, 4)  # convolutions before each of VGG19's five poolings
IMAGENET_MEAN = (104.00698793, 116.66876762, 122.67891434)  # BGR; channel means of Caffe's ilsvrc_2012_mean.npy
IMAGENET_SIZE = 224  # px
BOUND = Path("act_range") / "3x" / "fc7.txt"  # beside the generator's weights, in the cookbook as here
VGG19_FILES = ("VGG_ILSVRC_19_layers.pt",)
GENERATOR_FILES = ("generator_relu7.pt", BOUND)
WHERE = "Kamitani Lab's brain-decoding-cookbook-public, whose data/download.py fetches the models from figshare"
SLOPE = 0.3  # of the generator's leaky ReLUs


def _positions():
    """{layer: (part, index)}: where each named layer is in VGG19's `features` or `classifier`, by bdpy's layer_map."""
    found = {}
    for layer, place in layer_map("vgg19").items():
        part, index = re.fullmatch(r"(\w+)\[(\d+)\]", place).groups()
        found[layer] = part, int(index)
    return found


POSITIONS = _positions()


class NarrowVGG19(VGG19):
    """bdpy's VGG19, layer for layer, with fewer channels and for smaller pictures.

    channels: of the five blocks (VGG19: 64 128 256 512 512). image_size: px, a multiple of 32 (224). hidden: width of
    fc6 and fc7 (4096). outputs: of fc8 (1000).
    """

    def __init__(self, channels, image_size, hidden, outputs):
        nn.Module.__init__(self)
        layers, before = [], 3
        for width, count in zip(channels, BLOCKS, strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        side = image_size // 2 ** len(BLOCKS)
        self.avgpool = nn.AdaptiveAvgPool2d(side)
        self.classifier = nn.Sequential(
            nn.Linear(before * side ** 2, hidden), nn.ReLU(), nn.Dropout(),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, outputs))


class NarrowGenerator(AlexNetGenerator):
    """bdpy's relu7 generator with fewer channels, from a map of `side`×`side` (4×4 there) to 64 × side px.

    channels: of the map and of the outputs of the first eight (transposed) convolutions
    (256, then 256 512 256 256 128 128 64 32).
    """

    def __init__(self, input_size, hidden, channels, side):
        nn.Module.__init__(self)
        self.start = (channels[0], side, side)
        self.defc = nn.Sequential(
            nn.Linear(input_size, hidden), nn.LeakyReLU(SLOPE), nn.Linear(hidden, hidden), nn.LeakyReLU(SLOPE),
            nn.Linear(hidden, channels[0] * side ** 2), nn.LeakyReLU(SLOPE))
        layers, doubles = [], (True, False, True, False, True, False, True, True, True)
        for before, after, double in zip(channels, (*channels[1:], 3), doubles, strict=True):
            kernel, stride = (4, 2) if double else (3, 1)
            layers += [nn.ConvTranspose2d(before, after, kernel, stride, padding=1), nn.LeakyReLU(SLOPE)]
        self.deconv = nn.Sequential(*layers[:-1])

    def forward(self, z):
        return self.deconv(self.defc(z).view(-1, *self.start))


@dataclass(frozen=True)
class Encoder:
    """VGG19 on one device, with the preprocessing that it was trained with.

    run: computes a layer, from (module, input); see `winograd`.
    """

    network: nn.Module
    image_size: int
    mean: torch.Tensor  # (3,) BGR
    device: torch.device
    run: Callable = lambda module, value: module(value)

    def prepare(self, stimuli):
        """(n, H, W, 3) uint8 RGB → (n, 3, size, size) float32, the network's input: BGR, 0–255, mean subtracted.

        Bilinear, as the published pipeline resized them.
        """
        resized = np.stack([images.resize(image, self.image_size, Image.Resampling.BILINEAR) for image in stimuli])
        return torch.from_numpy(resized[..., ::-1].astype(np.float32) - self.mean.cpu().numpy()).permute(0, 3, 1, 2)

    def blank(self):
        """(1, 3, size, size) float32, a prepared picture of nothing: see memory.batch."""
        return torch.zeros(1, 3, self.image_size, self.image_size)

    def pixels(self, inputs):
        """(n, 3, h, w) of the network's input → (n, h, w, 3) float32 RGB, about 0–255; the inverse of `prepare`."""
        return (inputs + self.mean.view(3, 1, 1)).flip(1).permute(0, 2, 3, 1).cpu().numpy()

    def activations(self, inputs, layers):
        """{layer: (n, channels, h, w) or (n, units)} of a prepared batch, before the layer's ReLU.

        layers: names of layout.VGG19_LAYERS, or relu6, relu7. Nothing behind the last of them is computed.
        """
        wanted = {POSITIONS[layer]: layer for layer in layers}
        found, value = {}, inputs.to(self.device, next(self.network.parameters()).dtype)
        network = self.network
        steps = [(("features", index), module) for index, module in enumerate(network.features)]
        steps.append((None, lambda pooled: torch.flatten(network.avgpool(pooled), 1)))
        steps += [(("classifier", index), module) for index, module in enumerate(network.classifier)]
        for position, module in steps:
            if len(found) == len(wanted):
                break
            value = self.run(module, value)
            if position in wanted:
                found[wanted[position]] = value
        return {layer: found[layer] for layer in layers}

    def shapes(self, layers):
        """{layer: shape of one picture's activation}, (C, H, W) or (units,)."""
        with torch.inference_mode():
            return {layer: tuple(found.shape[1:]) for layer, found in self.activations(self.blank(), layers).items()}


@dataclass(frozen=True)
class Generator:
    """The relu7 generator on one device: (n, units) → (n, 3, s, s) in Caffe's picture space.

    bound: (units,) float32, the upper bound of its input; the lower one is 0. levels: how its pictures become 8-bit,
    "stretch" or "clip" (see icnn.to_uint8).
    """

    network: nn.Module
    bound: torch.Tensor
    device: torch.device
    levels: str = "stretch"


def load_encoder(folder, device):
    """VGG19 from a role's folder. Raises Problem if the weights are missing or do not fit."""
    network, config = _network(folder, VGG19, NarrowVGG19, VGG19_FILES[0], device)
    mean = torch.tensor(config.pop("mean", IMAGENET_MEAN), dtype=torch.float32, device=device)
    return Encoder(network, config.get("image_size", IMAGENET_SIZE), mean, device)


def load_generator(folder, device):
    """The relu7 generator and its bound from a role's folder. Raises Problem if one is missing or does not fit."""
    network, config = _network(folder, AlexNetGenerator, NarrowGenerator, GENERATOR_FILES[0], device)
    path, units = Path(folder) / BOUND, network.defc[0].in_features
    if not path.exists():
        raise Problem(f"{path} is missing", f"take it from {WHERE}")
    bound = np.loadtxt(path, ndmin=1).ravel()
    if bound.shape != (units,) or not (bound >= 0).all():
        raise Problem(f"{path} holds {bound.size} bounds for {units} units, or negative ones", f"take it from {WHERE}")
    return Generator(network, torch.from_numpy(bound).float().to(device), device, config.get("levels", "stretch"))


def _network(folder, published, narrowed, weights, device):
    """(network, config) of a folder; the config of published weights is empty."""
    folder = Path(folder)
    config = text_files.read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    path = folder / ("model.safetensors" if config else weights)
    if not path.exists():
        raise Problem(f"{path} is missing", f"take it from {WHERE}")
    try:
        if config:
            network = narrowed(**{key: value for key, value in config.items() if key not in NOT_ARCHITECTURE})
            network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
        else:
            network = published()
            checkpoints.check_unpickler(path)
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, TypeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise Problem(f"{path} does not hold the weights of a {published.__name__} ({error})",
                      f"take it from {WHERE}, or set NSD_MODELS to tiny") from error
    return network.float().eval().requires_grad_(False).to(device), config


NOT_ARCHITECTURE = ("kind", "mean", "labels", "levels")


def save(network, config, folder):
    """Write a narrowed network: config.json and float16 model.safetensors."""
    folder = Path(folder)
    weights = {name: tensor.detach().half().contiguous() for name, tensor in network.state_dict().items()}
    with writing.atomic(folder / "model.safetensors") as temporary:
        save_file(weights, temporary)
    text_files.write_json(folder / "config.json", {"kind": type(network).__name__} | config)


def save_bound(bound, folder):
    """Write a generator's upper bound (units,) as the cookbook's text file."""
    with writing.atomic(Path(folder) / BOUND) as temporary:
        np.savetxt(temporary, bound[None], fmt="%.6g")
