"""The small Inception and AlexNet: name what is in a scene, so that their features can judge reconstructions."""
import json

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from mini_nsd import scenes
from mini_nsd.training import data, loop, vae
from mini_nsd.training.export import MODELS, write_card
from utils import narrow_nets

STEPS = 1500
BATCH = 64
IMAGE_SIZE = 96         # px
ARGUMENTS = {
    "inception": dict(width_divisor=4, n_labels=len(data.LABELS)),
    "alexnet": dict(channels=(24, 64, 96, 64, 64), hidden=256, n_labels=len(data.LABELS)),
}


def train_inception(cache) -> None:
    """Train on `cache`'s scenes and write mini_nsd/models/inception."""
    _train("inception", cache, rate=2e-3)


def train_alexnet(cache) -> None:
    """Train on `cache`'s scenes and write mini_nsd/models/alexnet."""
    _train("alexnet", cache, rate=1e-3)


def _train(role: str, cache, rate: float) -> None:
    torch.manual_seed(0)
    config = dict(architecture=role, arguments=ARGUMENTS[role], image_size=IMAGE_SIZE, mean=[0.5] * 3, std=[0.5] * 3,
                  labels=data.LABELS)
    series = data.training_scenes(cache)
    loop.fit(role, narrow_nets.build(config), lambda model, step, rng: _loss(model, series, rng), steps=STEPS,
             rate=rate, decay=0.99, weight_decay=0.02, cache=cache,
             export=lambda model, step, seconds: _export(model, config, step, seconds))


def _loss(model, series, rng) -> torch.Tensor:
    """Cross-entropy of each label's presence, summed over the labels and divided by 10."""
    rows = np.sort(rng.choice(len(series), BATCH, replace=False))
    pixels = vae.resize(data.to_tensor(series.images[rows]), IMAGE_SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(pixels)
    labels = torch.from_numpy(series.labels[rows]).float()
    return F.binary_cross_entropy_with_logits(logits.float(), labels, reduction="sum") / (10 * BATCH)


@torch.no_grad()
def results(model, count: int = 200) -> dict:
    """What `model` reaches on held-out scenes, by name."""
    series = data.rendered(data.HELD_OUT_SEED, 0, count)
    logits = model(vae.resize(data.to_tensor(series.images), IMAGE_SIZE)).numpy()
    places = len(data.LABELS) - len(scenes.BACKGROUNDS)
    place = (logits[:, places:].argmax(1) == series.labels[:, places:].argmax(1)).mean()
    found, true = logits[:, :places] > 0, series.labels[:, :places] > 0
    precision, recall = (found & true).sum() / max(found.sum(), 1), (found & true).sum() / true.sum()
    return {f"coloured shapes, F1, {count} held-out scenes": f"{2 * precision * recall / (precision + recall):.1%}",
            f"background named, {count} held-out scenes": f"{place:.1%}"}


def _export(model, config: dict, step: int, seconds: float) -> None:
    folder = MODELS / config["architecture"]
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_card(folder, type(model).__name__.lstrip("_"), step, STEPS, seconds, results(model),
               "One output per coloured shape and per background; each answers whether it is in the picture.")
