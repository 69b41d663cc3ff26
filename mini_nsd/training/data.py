"""Training scenes, rendered once and shared by every role.

Subjects' stimuli come from another seed (`world_sizes.SEED`), so no model has seen what a subject saw.
"""
import json
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from mini_nsd import scene_captions, scene_rendering, scene_sampling, scenes

TRAIN_SEED, HELD_OUT_SEED = 1001, 2002
TRAIN_SCENES = 24_000
SIZE = 128              # px: the native size of the small diffusion model
DEPTH_SIZE = 64         # px: the depth maps that the depth model is conditioned on
LABELS = tuple(f"{colour} {shape}" for colour in scenes.COLOURS for shape in scenes.SHAPES) + scenes.BACKGROUNDS
CHUNK = 500             # scenes that one worker renders at a time


@dataclass(frozen=True)
class Scenes:
    """A series of rendered scenes.

    images    (n, SIZE, SIZE, 3) uint8 RGB
    depth     (n, DEPTH_SIZE, DEPTH_SIZE) float16, metres
    labels    (n, len(LABELS)) uint8, 1 where the label applies
    captions  n lists of five sentences
    """

    images: np.ndarray
    depth: np.ndarray
    labels: np.ndarray
    captions: list

    def __len__(self):
        return len(self.images)


def labels_of(scene) -> np.ndarray:
    """Which of LABELS apply: each object's colour with its shape, and the background. (len(LABELS),) uint8."""
    names = {f"{thing.colour} {thing.shape}" for thing in scene.objects} | {scene.background.kind}
    return np.array([label in names for label in LABELS], np.uint8)


def rendered(seed: int, start: int, stop: int) -> Scenes:
    """Scenes start … stop - 1 of a series, rendered now."""
    series = [scene_sampling.sample(seed, index) for index in range(start, stop)]
    pictures = [scene_rendering.render(scene, SIZE) for scene in series]
    ratio = SIZE // DEPTH_SIZE
    depth = np.stack([p.depth for p in pictures]).reshape(-1, DEPTH_SIZE, ratio, DEPTH_SIZE, ratio).mean((2, 4))
    return Scenes(np.stack([p.image for p in pictures]), depth.astype(np.float16),
                  np.stack([labels_of(scene) for scene in series]),
                  [scene_captions.captions(scene) for scene in series])


def training_scenes(cache: Path, count: int = TRAIN_SCENES) -> Scenes:
    """The training series, memory-mapped from `cache`; rendered there first, by all cores, if it is not there yet."""
    folder = cache / f"scenes-{TRAIN_SEED}-{count}"
    if not folder.exists():
        _render_to(folder, count)
    arrays = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "depth", "labels"))
    return Scenes(*arrays, json.loads((folder / "captions.json").read_text(encoding="utf-8")))


def _render_to(folder: Path, count: int) -> None:
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    shapes = {"images": ((SIZE, SIZE, 3), np.uint8), "depth": ((DEPTH_SIZE, DEPTH_SIZE), np.float16),
              "labels": ((len(LABELS),), np.uint8)}
    stores = {name: np.lib.format.open_memmap(partial / f"{name}.npy", "w+", dtype, (count, *shape))
              for name, (shape, dtype) in shapes.items()}
    sentences = []
    spans = [(TRAIN_SEED, start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    with get_context("spawn").Pool() as pool:
        for (_, start, stop), part in zip(spans, pool.imap(_rendered, spans)):
            for name, store in stores.items():
                store[start:stop] = getattr(part, name)
            sentences += part.captions
    for store in stores.values():
        store.flush()
    (partial / "captions.json").write_text(json.dumps(sentences), encoding="utf-8")
    partial.rename(folder)


def _rendered(span) -> Scenes:
    return rendered(*span)


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """(n, H, W, 3) uint8 → (n, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()
