"""Which scene a seed and an index give: background, light, and objects that can be told apart."""
import numpy as np

from mini_nsd import scene_rendering, scenes, solids


def sample(seed: int, index: int) -> scenes.Scene:
    """Scene number `index` of the series `seed`; the two alone decide it."""
    rng = np.random.default_rng((seed, index))
    background = _sample_background(rng)
    light = _sample_light(rng, background.kind)
    return scenes.Scene(background, light, _sample_objects(rng, background), seed, index)


def _sample_background(rng) -> scenes.Background:
    return scenes.Background(
        kind=str(rng.choice(scenes.BACKGROUNDS)),
        horizon=float(rng.uniform(0.34, 0.44)),
        phases=tuple(rng.random(8).tolist()),
        tint=tuple(rng.uniform(0.93, 1.07, 3).tolist()),
        wall=int(rng.integers(len(scenes.WALLS))),
    )


def _sample_light(rng, kind: str) -> scenes.Light:
    azimuth, height = rng.uniform(-1.1, 1.1), rng.uniform(0.45, 0.9)
    direction = np.array([np.sin(azimuth), height, np.cos(azimuth)])
    direction /= np.linalg.norm(direction)
    dark = kind == "night"
    tint = (0.88, 0.93, 1.0) if dark else tuple((1.0 + rng.uniform(-1, 1) * np.array([0.04, 0.0, -0.06])).tolist())
    intensity = rng.uniform(0.74, 0.84) if dark else rng.uniform(0.92, 1.08)
    return scenes.Light(tuple(direction.tolist()), float(intensity), float(rng.uniform(0.42, 0.52)), tint)


def _sample_objects(rng, background: scenes.Background) -> tuple:
    """Place objects from front to back; one that nearer ones would hide too much of is moved, or left out."""
    count = int(rng.choice([1, 2, 3, 4], p=[0.15, 0.40, 0.33, 0.12]))
    free = [c for c in scenes.COLOURS if not (c == "white" and background.kind == "snow")]
    colours = rng.permutation(free)[:count]
    objects, covered, depth = [], np.zeros((scenes.SKETCH, scenes.SKETCH), bool), 0.0
    for place, colour in enumerate(colours):
        depth = rng.uniform(2.1, 2.7) if place == 0 else min(depth + rng.uniform(0.45, 1.1), 5.0)
        low, high = scenes.NEAREST_SIZE if place == 0 else (scenes.SMALLEST_SIZE, 0.42)
        size = float(np.clip(rng.uniform(0.75, 1.30) / depth, low, high))
        shape = str(rng.choice(scenes.SHAPES))
        pattern = str(rng.choice(scenes.PATTERNS, p=[0.64, 0.18, 0.18])) if size >= 0.26 else "plain"
        yaw = float(rng.uniform(0.45, 1.12) if shape == "cube" else rng.uniform(-0.2, 0.2))
        y = background.horizon + scenes.CAMERA_HEIGHT / depth - size / 2
        for _ in range(20):
            x = _sample_x(rng, objects, size)
            candidate = scenes.Object(shape, str(colour), size, pattern, x, float(y), float(depth), yaw)
            silhouette = _sketch(candidate)
            if (silhouette & ~covered).sum() >= scenes.MIN_VISIBLE * silhouette.sum():
                objects.append(candidate)
                covered |= silhouette
                break
    return tuple(objects)


def _sample_x(rng, objects, size: float) -> float:
    """A place within the frame: half of the time partly behind an object that is already there."""
    margin = 0.5 * size
    if objects and rng.random() < 0.5:
        front = objects[rng.integers(len(objects))]
        reach = rng.uniform(0.55, 0.95) * (front.size + size) / 2
        x = front.x + reach * rng.choice((-1, 1))
        if margin <= x <= 1 - margin:
            return float(x)
    return float(rng.uniform(margin, 1 - margin))


def _sketch(thing: scenes.Object) -> np.ndarray:
    """The silhouette, (SKETCH, SKETCH) bool."""
    mask = np.zeros((scenes.SKETCH, scenes.SKETCH), bool)
    rows, columns, u, v = scene_rendering.local_grid(thing, scenes.SKETCH)
    mask[rows, columns] = solids.SOLIDS[thing.shape](u, v, thing.yaw).distance < 0
    return mask
