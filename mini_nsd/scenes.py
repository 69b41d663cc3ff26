"""A small world of rendered scenes: the embedded dataset's stimuli, with their captions and ground truth.

A scene is one to four plain solids standing on a ground plane. Everything about it follows from `(seed, index)`:

    scene = scene_sampling.sample(seed=73, index=0)
    picture = scene_rendering.render(scene, size=425)       # .image, .depth, .labels, .amodal
    sentences = scene_captions.captions(scene)

The pinhole geometry is kept simple on purpose. The camera looks along the horizon from CAMERA_HEIGHT metres, with
a field of view of one image side per metre at one metre: a thing at depth d that measures w metres spans w / d of
the image, and touches the ground at y = horizon + CAMERA_HEIGHT / d. Image coordinates run from 0 to 1, x to the
right and y downwards.

Pictures carry no detail finer than about 1/60 of the side: a VAE with 8×8-pixel latents can keep all of it, and
what an occluder hides follows from what it leaves (solids are symmetric, backgrounds continue).
"""
from dataclasses import asdict, dataclass

import numpy as np

SHAPES = ("ball", "cube", "cone", "cylinder", "ring", "star")
COLOUR_RGB = {
    "red": (0.85, 0.13, 0.13),
    "orange": (0.97, 0.52, 0.10),
    "yellow": (0.98, 0.85, 0.16),
    "green": (0.13, 0.62, 0.27),
    "blue": (0.14, 0.35, 0.88),
    "purple": (0.50, 0.20, 0.70),
    "pink": (0.98, 0.55, 0.74),
    "white": (0.95, 0.95, 0.95),
}
COLOURS = tuple(COLOUR_RGB)
PATTERNS = ("plain", "striped", "dotted")
BACKGROUNDS = ("meadow", "beach", "desert", "snow", "night", "room")
CAMERA_HEIGHT = 1.15    # metres
FAR = 12.0              # metres: the depth given to the sky, and the farthest ground
NEAREST_SIZE = (0.30, 0.55)     # image sides: the front object is large enough to survive the VAE
SMALLEST_SIZE = 0.16            # image sides
MIN_VISIBLE = 0.42      # share of a silhouette that nearer objects leave in view; drawn pixels then keep ≥ 35 %
SKETCH = 64             # px: resolution at which visibility is checked while sampling
CUBE_ELEVATION = np.deg2rad(24)     # how far a solid's top face tips towards the viewer
LID = 0.13              # height of the ellipse that a cylinder's lid and a cone's base project to, in half-sizes
# The two ends of each background's sky and ground: (sky top, sky bottom, ground far, ground near), RGB in [0, 1].
PALETTES = {
    "meadow": ((0.30, 0.56, 0.90), (0.78, 0.89, 0.97), (0.55, 0.70, 0.36), (0.30, 0.50, 0.20)),
    "beach": ((0.36, 0.66, 0.93), (0.86, 0.94, 0.97), (0.93, 0.86, 0.69), (0.86, 0.74, 0.52)),
    "desert": ((0.93, 0.64, 0.38), (0.99, 0.88, 0.66), (0.86, 0.60, 0.36), (0.72, 0.43, 0.23)),
    "snow": ((0.58, 0.67, 0.78), (0.86, 0.89, 0.93), (0.90, 0.93, 0.97), (0.80, 0.86, 0.94)),
    "night": ((0.03, 0.04, 0.14), (0.13, 0.15, 0.34), (0.13, 0.17, 0.22), (0.07, 0.10, 0.13)),
    "room": ((0.80, 0.72, 0.62), (0.88, 0.81, 0.72), (0.62, 0.50, 0.42), (0.52, 0.38, 0.30)),
}
WALLS = ((0.84, 0.77, 0.66), (0.66, 0.76, 0.79), (0.82, 0.67, 0.66), (0.71, 0.78, 0.66))
ROOM_DEPTH = 8.0        # metres from the camera to the wall


@dataclass(frozen=True)
class Background:
    """Where the scene is: `kind` is one of BACKGROUNDS; `horizon` an image y; the rest varies its look."""

    kind: str
    horizon: float
    phases: tuple       # 8 numbers in [0, 1) that place ridges, texture, clouds and the moon
    tint: tuple         # RGB factors close to 1
    wall: int           # which of WALLS a room has


@dataclass(frozen=True)
class Light:
    """A distant lamp. `direction` points from the scene to it (x right, y up, z to the viewer), unit length."""

    direction: tuple
    intensity: float
    ambient: float
    tint: tuple


@dataclass(frozen=True)
class Object:
    """A solid. `x`, `y`: centre in the image; `size`: diameter in image sides; `depth`: metres from the camera."""

    shape: str
    colour: str
    size: float
    pattern: str
    x: float
    y: float
    depth: float
    yaw: float          # radians: turns a cube about its vertical axis, tilts a star in its plane


@dataclass(frozen=True)
class Scene:
    """A background, a light and one to four objects, the nearest first."""

    background: Background
    light: Light
    objects: tuple
    seed: int
    index: int


def describe(scene: Scene) -> dict:
    """The scene as plain numbers and words that JSON can hold."""
    return asdict(scene)
