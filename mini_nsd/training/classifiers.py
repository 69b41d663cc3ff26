"""The small Inception and AlexNet: name what is in a scene, so that their features can judge reconstructions."""
import json

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from mini_nsd import scenes
from mini_nsd.training import data, loop, vae
from mini_nsd.training.export import MODELS, write_card
from utils.models import narrow_nets
from utils.storage import text_files

STEPS = {"inception": 1000, "alexnet": 1400}
BATCH = 64
IMAGE_SIZE = 96         # px
NAMES = scenes.COLOURS + scenes.SHAPES + data.LABELS    # what the outputs say is in the picture
ARGUMENTS = {
    "inception": dict(width_divisor=4, n_labels=len(NAMES)),
    "alexnet": dict(channels=(24, 64, 96, 64, 48), hidden=64, n_labels=len(NAMES)),
}


def train(role: str, cache) -> None:
    """Train `role` on `cache`'s scenes and write mini_nsd/models/{role}."""
    torch.manual_seed(0)
    config = dict(architecture=role, arguments=ARGUMENTS[role], image_size=IMAGE_SIZE, mean=[0.5] * 3, std=[0.5] * 3,
                  labels=NAMES)
    series = data.training_scenes(cache)
    loop.fit(role, narrow_nets.build(config), lambda model, step, rng: _loss(model, series, rng), steps=STEPS[role],
             rate=1e-3, muon_rate=2e-3, decay=0.99, weight_decay=0.02, cache=cache,
             export=lambda model, step, seconds: _export(model, config, step, seconds))


def _loss(model, series, rng) -> torch.Tensor:
    """Cross-entropy of each name's presence, summed over NAMES and divided by 10."""
    rows = np.sort(rng.choice(len(series), BATCH, replace=False))
    pixels = vae.resize(data.to_tensor(series.images[rows]), IMAGE_SIZE)
    with loop.half():
        logits = model(pixels)
    labels = torch.from_numpy(presence(series.labels[rows])).float()
    return F.binary_cross_entropy_with_logits(logits.float(), labels, reduction="sum") / (10 * BATCH)


def presence(labels: np.ndarray) -> np.ndarray:
    """Which of NAMES apply, (n, len(NAMES)) uint8, from which of data.LABELS do.

    Colours and shapes by themselves come first: a coloured shape is rare, and alone hardly teaches a network anything.
    """
    pairs = labels[:, :-len(scenes.BACKGROUNDS)].reshape(-1, len(scenes.COLOURS), len(scenes.SHAPES))
    return np.concatenate([pairs.max(2), pairs.max(1), labels], axis=1)


def evaluate(role: str) -> dict:
    """What the model in mini_nsd/models/{role} reaches on held-out scenes, by name."""
    return results(narrow_nets.load(MODELS / role)[0])


@torch.no_grad()
def results(model, count: int = 200) -> dict:
    """As `evaluate`, for `model`."""
    series = data.rendered(data.HELD_OUT_SEED, 0, count)
    logits = model(vae.resize(data.to_tensor(series.images), IMAGE_SIZE)).numpy()
    true = presence(series.labels) > 0
    kinds = np.cumsum([len(scenes.COLOURS), len(scenes.SHAPES)])
    colours, shapes, _ = (_f1(found, is_there) for found, is_there in
                          zip(np.split(logits > 0, kinds, axis=1), np.split(true, kinds, axis=1)))
    places = len(scenes.BACKGROUNDS)
    place = (logits[:, -places:].argmax(1) == true[:, -places:].argmax(1)).mean()
    return {f"colours named (F1), {count} held-out scenes": f"{colours:.1%}", "shapes named (F1)": f"{shapes:.1%}",
            "background named": f"{place:.1%}"}


def _f1(found, true) -> float:
    return 2 * (found & true).sum() / (found.sum() + true.sum())


def _export(model, config: dict, step: int, seconds: float) -> None:
    folder = MODELS / config["architecture"]
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    text_files.write_text(folder / "config.json", json.dumps(config, indent=2))
    write_card(folder, type(model).__name__.lstrip("_"), step, STEPS[config["architecture"]], seconds, results(model),
               "Each output says whether one colour, shape, coloured shape or background is in the picture.")
