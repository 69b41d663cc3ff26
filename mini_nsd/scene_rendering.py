"""A scene as a picture, with its depth, its objects' labels and their whole silhouettes."""
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mini_nsd import scenes, solids


@dataclass(frozen=True)
class Rendering:
    """A picture of a scene and its ground truth, for a square of `size` pixels.

    image   (size, size, 3) uint8 RGB
    depth   (size, size) float32, metres, larger is farther
    labels  (size, size) int16, position in `scene.objects` of the object seen there, -1 for the background
    amodal  (objects, size, size) bool, each object's full silhouette whether or not something hides it
    """

    image: np.ndarray
    depth: np.ndarray
    labels: np.ndarray
    amodal: np.ndarray


def render(scene: scenes.Scene, size: int = 425) -> Rendering:
    """Draw the scene, antialiased, from the farthest thing to the nearest."""
    image, depth = _draw_background(scene.background, size)
    labels = np.full((size, size), -1, np.int16)
    amodal = np.zeros((len(scene.objects), size, size), bool)
    for thing in scene.objects:
        _cast_shadow(image, thing, scene.light)
    for position in reversed(range(len(scene.objects))):
        thing = scene.objects[position]
        rows, columns, u, v = local_grid(thing, size)
        solid = solids.SOLIDS[thing.shape](u, v, thing.yaw)
        pixel = 2.0 / (thing.size * size)       # one pixel in half-sizes
        coverage = np.clip(0.5 - solid.distance / pixel, 0, 1)[..., None]
        window = image[rows, columns]
        window += coverage * (_shade(solid, thing, scene.light, pixel) - window)
        inside = solid.distance < 0
        surface = thing.depth - solid.bulge * thing.size * thing.depth / 2
        depth[rows, columns] = np.where(inside, surface, depth[rows, columns])
        labels[rows, columns][inside] = position
        amodal[position, rows, columns] = inside
    return Rendering(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8), depth, labels, amodal)


def local_grid(thing: scenes.Object, size: int):
    """The pixels around an object, and their coordinates from its centre.

    Returns row and column slices, u (1, w) to the right and v (h, 1) upwards, in units of half the object's size.
    """
    reach = thing.size / 2 + 1.5 / size
    left, top = (max(0, int(np.floor((c - reach) * size))) for c in (thing.x, thing.y))
    right, bottom = (min(size, int(np.ceil((c + reach) * size))) for c in (thing.x, thing.y))
    scale = np.float32(2 / thing.size)
    u = ((np.arange(left, right, dtype=np.float32) + 0.5) / size - np.float32(thing.x)) * scale
    v = (np.float32(thing.y) - (np.arange(top, bottom, dtype=np.float32) + 0.5) / size) * scale
    return slice(top, bottom), slice(left, right), u[None, :], v[:, None]


def _shade(solid, thing: scenes.Object, light: scenes.Light, pixel: float) -> np.ndarray:
    """The lit surface, (h, w, 3): diffuse light, a soft highlight, and the pattern as a paler colour."""
    nx, ny, nz = solid.normal
    lx, ly, lz = light.direction
    facing = nx * lx + ny * ly + nz * lz
    diffuse = light.ambient + (1 - light.ambient) * np.maximum(facing, 0)
    towards_viewer = 2 * facing * nz - lz
    highlight = solid.gloss * np.maximum(towards_viewer, 0) ** 16
    colour = np.array(scenes.COLOUR_RGB[thing.colour], np.float32)
    albedo = colour
    if thing.pattern != "plain":
        paint = _pattern(thing.pattern, solid.s, solid.t, pixel)[..., None]
        second = colour + (0.70 * (1 - colour) if colour.min() < 0.9 else -0.35 * np.ones(3, np.float32))
        albedo = colour + paint * (second - colour)
    tint = np.array(light.tint, np.float32) * np.float32(light.intensity)
    return albedo * diffuse[..., None] * tint + highlight[..., None]


def _pattern(name: str, s, t, pixel: float) -> np.ndarray:
    """How much of the second colour shows, (h, w) in [0, 1]; s, t are surface coordinates in half-sizes."""
    if name == "striped":
        wave = np.sin(t * (2 * np.pi / 0.62))
        return np.clip(0.5 + wave * 0.62 / (2 * np.pi) / pixel, 0, 1)
    period = 0.62
    ds, dt = s - period * np.rint(s / period), t - period * np.rint(t / period)
    return np.clip(0.5 + (0.19 - np.hypot(ds, dt)) / pixel, 0, 1)


def _cast_shadow(image: np.ndarray, thing: scenes.Object, light: scenes.Light) -> None:
    """Darken the ground under an object, in place: a soft ellipse that leans away from the light."""
    size = len(image)
    width, height = 0.58 * thing.size, 0.13 * thing.size
    x = thing.x - 0.22 * thing.size * light.direction[0]
    y = thing.y + 0.46 * thing.size
    left, right = max(0, int((x - 1.6 * width) * size)), min(size, int((x + 1.6 * width) * size) + 1)
    top, bottom = max(0, int((y - 1.6 * height) * size)), min(size, int((y + 1.6 * height) * size) + 1)
    u = ((np.arange(left, right, dtype=np.float32) + 0.5) / size - x) / width
    v = ((np.arange(top, bottom, dtype=np.float32) + 0.5) / size - y) / height
    squared = (u * u)[None, :] + (v * v)[:, None]
    image[top:bottom, left:right] *= (1 - 0.52 * np.exp(-1.6 * squared * squared))[..., None]


@lru_cache(maxsize=4)
def _grid(size: int):
    """Pixel centres as x (1, size) and y (size, 1), float32 in (0, 1)."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    return centres[None, :], centres[:, None]


def _smooth_step(distance, width):
    return np.clip(0.5 + distance / width, 0, 1)


def _ridge(x, p, q, height):
    """A rolling skyline, (1, size): height above the horizon in image sides."""
    return height * (0.55 + 0.30 * np.sin(2 * np.pi * (1.1 * x + p)) + 0.15 * np.sin(2 * np.pi * (2.3 * x + q)))


def _draw_background(background: scenes.Background, size: int):
    """The empty place: image (size, size, 3) float32 in [0, 1] and depth (size, size) float32 in metres."""
    kind, horizon, phase = background.kind, np.float32(background.horizon), np.array(background.phases, np.float32)
    x, y = _grid(size)
    sky_top, sky_bottom, far, near = (np.array(c, np.float32) for c in scenes.PALETTES[kind])
    edge = np.float32(1.5 / size)
    limit = scenes.ROOM_DEPTH if kind == "room" else scenes.FAR
    depth_of_row = np.minimum(scenes.CAMERA_HEIGHT / np.maximum(y - horizon, 1e-6), limit)          # (size, 1)
    border = horizon + np.float32(scenes.CAMERA_HEIGHT / limit if kind == "room" else 0.0)  # y where ground begins

    if kind == "room":
        sky_bottom = np.array(scenes.WALLS[background.wall], np.float32)
        sky_top = sky_bottom * np.float32(0.86)
    rise = np.clip(y / border, 0, 1)[..., None]
    image = np.repeat(sky_top + rise * (sky_bottom - sky_top), size, axis=1)                  # (size, size, 3)

    if kind in ("meadow", "snow", "desert", "night"):
        height = {"meadow": 0.10, "snow": 0.20, "desert": 0.09, "night": 0.11}[kind]
        hill = {"meadow": (0.42, 0.60, 0.50), "snow": (0.52, 0.60, 0.72), "desert": (0.80, 0.50, 0.30),
                "night": (0.06, 0.08, 0.17)}[kind]
        skyline = horizon - _ridge(x, phase[0], phase[1], height)
        image += _smooth_step(y - skyline, edge)[..., None] * (np.array(hill, np.float32) - image)
    if kind in ("meadow", "beach"):
        for k in (2, 4):
            cx, cy = phase[k], horizon * (0.25 + 0.35 * phase[k + 1])
            squared = ((x - cx) / 0.17) ** 2 + ((y - cy) / 0.045) ** 2
            image += 0.75 * np.exp(-squared)[..., None] * (1 - image)
    if kind in ("night", "desert"):
        cx, cy, radius = 0.12 + 0.76 * phase[2], horizon * (0.25 + 0.25 * phase[3]), 0.055
        disc = _smooth_step(radius - np.hypot(x - cx, y - cy), edge)[..., None]
        lamp = np.array((0.96, 0.95, 0.82) if kind == "night" else (1.0, 0.95, 0.72), np.float32)
        halo = 0.35 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 0.02)[..., None]
        image += halo * (lamp - image)
        image += disc * (lamp - image)
    if kind == "room":
        board = _smooth_step(y - (border - 0.035), edge)[..., None]
        image += board * (np.array((0.96, 0.94, 0.90), np.float32) - image)

    nearness = np.clip((y - border) / (1 - border), 0, 1)[..., None]
    ground = far + nearness * (near - far)                                                    # (size, 1, 3)
    texture = _ground_texture(kind, x, depth_of_row, phase)[..., None]
    image += _smooth_step(y - border, edge)[..., None] * (ground * (1 + texture) - image)
    if kind == "beach":
        shore = horizon + 0.06 + 0.03 * phase[6] + 0.008 * np.sin(2 * np.pi * (1.5 * x + phase[7]))
        water = np.array((0.16, 0.50, 0.68), np.float32) + 0.18 * np.clip((y - horizon) / 0.1, 0, 1)[..., None]
        image += (_smooth_step(y - horizon, edge) * _smooth_step(shore - y, edge))[..., None] * (water - image)
        foam = np.exp(-((y - shore) / 0.008) ** 2)[..., None]
        image += 0.7 * foam * (1 - image)
    image *= np.array(background.tint, np.float32)
    return image, np.repeat(depth_of_row, size, axis=1)


def _ground_texture(kind: str, x, depth, phase) -> np.ndarray:
    """Relative brightness of the ground about its colour, (size, size): tiles in a room, soft patches elsewhere."""
    across = (x - 0.5) * depth
    fade = np.exp(-depth / 4)
    if kind == "room":
        tile = np.pi / 0.9
        checks = np.tanh(6 * np.sin(tile * (across + phase[2])) * np.sin(tile * (depth + phase[3])))
        return 0.24 * checks * np.minimum(1, 2.5 * fade)
    amount = {"meadow": 0.16, "beach": 0.07, "desert": 0.13, "snow": 0.045, "night": 0.22}[kind]
    waves = np.sin(2 * np.pi * (across / 1.3 + 0.25 * depth + phase[2]))
    waves = waves + np.sin(2 * np.pi * (0.55 * depth - across / 2.1 + phase[3]))
    waves = waves + np.sin(2 * np.pi * (across / 0.7 - 0.4 * depth + phase[6])) * 0.6
    return amount * fade * waves
