"""A small world of rendered scenes: the embedded dataset's stimuli, with their captions and ground truth.

A scene is one to four plain solids standing on a ground plane. Everything about it follows from `(seed, index)`:

    scene = sample(seed=73, index=0)
    picture = render(scene, size=425)       # .image, .depth, .labels, .amodal
    sentences = captions(scene)

The pinhole geometry is kept simple on purpose. The camera looks along the horizon from CAMERA_HEIGHT metres, with
a field of view of one image side per metre at one metre: a thing at depth d that measures w metres spans w / d of
the image, and touches the ground at y = horizon + CAMERA_HEIGHT / d. Image coordinates run from 0 to 1, x to the
right and y downwards.

Pictures carry no detail finer than about 1/60 of the side: a VAE with 8×8-pixel latents can keep all of it, and
what an occluder hides follows from what it leaves (solids are symmetric, backgrounds continue).
"""
from dataclasses import asdict, dataclass
from functools import lru_cache

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


# ---------------------------------------------------------------------------------------------------------------
# Sampling


def sample(seed: int, index: int) -> Scene:
    """Scene number `index` of the series `seed`; the two alone decide it."""
    rng = np.random.default_rng((seed, index))
    background = _sample_background(rng)
    light = _sample_light(rng, background.kind)
    return Scene(background, light, _sample_objects(rng, background), seed, index)


def _sample_background(rng) -> Background:
    return Background(
        kind=str(rng.choice(BACKGROUNDS)),
        horizon=float(rng.uniform(0.34, 0.44)),
        phases=tuple(rng.random(8).tolist()),
        tint=tuple(rng.uniform(0.93, 1.07, 3).tolist()),
        wall=int(rng.integers(len(WALLS))),
    )


def _sample_light(rng, kind: str) -> Light:
    azimuth, height = rng.uniform(-1.1, 1.1), rng.uniform(0.45, 0.9)
    direction = np.array([np.sin(azimuth), height, np.cos(azimuth)])
    direction /= np.linalg.norm(direction)
    dark = kind == "night"
    tint = (0.88, 0.93, 1.0) if dark else tuple((1.0 + rng.uniform(-1, 1) * np.array([0.04, 0.0, -0.06])).tolist())
    intensity = rng.uniform(0.74, 0.84) if dark else rng.uniform(0.92, 1.08)
    return Light(tuple(direction.tolist()), float(intensity), float(rng.uniform(0.42, 0.52)), tint)


def _sample_objects(rng, background: Background) -> tuple:
    """Place objects from front to back; one that nearer ones would hide too much of is moved, or left out."""
    count = int(rng.choice([1, 2, 3, 4], p=[0.15, 0.40, 0.33, 0.12]))
    free = [c for c in COLOURS if not (c == "white" and background.kind == "snow")]
    colours = rng.permutation(free)[:count]
    objects, covered, depth = [], np.zeros((SKETCH, SKETCH), bool), 0.0
    for place, colour in enumerate(colours):
        depth = rng.uniform(2.1, 2.7) if place == 0 else min(depth + rng.uniform(0.45, 1.1), 5.0)
        low, high = NEAREST_SIZE if place == 0 else (SMALLEST_SIZE, 0.42)
        size = float(np.clip(rng.uniform(0.75, 1.30) / depth, low, high))
        shape = str(rng.choice(SHAPES))
        pattern = str(rng.choice(PATTERNS, p=[0.64, 0.18, 0.18])) if size >= 0.26 else "plain"
        yaw = float(rng.uniform(0.45, 1.12) if shape == "cube" else rng.uniform(-0.2, 0.2))
        y = background.horizon + CAMERA_HEIGHT / depth - size / 2
        for _ in range(20):
            x = _sample_x(rng, objects, size)
            candidate = Object(shape, str(colour), size, pattern, x, float(y), float(depth), yaw)
            silhouette = _sketch(candidate)
            if (silhouette & ~covered).sum() >= MIN_VISIBLE * silhouette.sum():
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


def _sketch(thing: Object) -> np.ndarray:
    """The silhouette, (SKETCH, SKETCH) bool."""
    mask = np.zeros((SKETCH, SKETCH), bool)
    rows, columns, u, v = _local_grid(thing, SKETCH)
    mask[rows, columns] = _SOLIDS[thing.shape](u, v, thing.yaw).distance < 0
    return mask


# ---------------------------------------------------------------------------------------------------------------
# Rendering


def render(scene: Scene, size: int = 425) -> Rendering:
    """Draw the scene, antialiased, from the farthest thing to the nearest."""
    image, depth = _draw_background(scene.background, size)
    labels = np.full((size, size), -1, np.int16)
    amodal = np.zeros((len(scene.objects), size, size), bool)
    for thing in scene.objects:
        _cast_shadow(image, thing, scene.light)
    for position in reversed(range(len(scene.objects))):
        thing = scene.objects[position]
        rows, columns, u, v = _local_grid(thing, size)
        solid = _SOLIDS[thing.shape](u, v, thing.yaw)
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


def _local_grid(thing: Object, size: int):
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


def _shade(solid, thing: Object, light: Light, pixel: float) -> np.ndarray:
    """The lit surface, (h, w, 3): diffuse light, a soft highlight, and the pattern as a paler colour."""
    nx, ny, nz = solid.normal
    lx, ly, lz = light.direction
    facing = nx * lx + ny * ly + nz * lz
    diffuse = light.ambient + (1 - light.ambient) * np.maximum(facing, 0)
    towards_viewer = 2 * facing * nz - lz
    highlight = solid.gloss * np.maximum(towards_viewer, 0) ** 16
    colour = np.array(COLOUR_RGB[thing.colour], np.float32)
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


def _cast_shadow(image: np.ndarray, thing: Object, light: Light) -> None:
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


def _draw_background(background: Background, size: int):
    """The empty place: image (size, size, 3) float32 in [0, 1] and depth (size, size) float32 in metres."""
    kind, horizon, phase = background.kind, np.float32(background.horizon), np.array(background.phases, np.float32)
    x, y = _grid(size)
    sky_top, sky_bottom, far, near = (np.array(c, np.float32) for c in PALETTES[kind])
    edge = np.float32(1.5 / size)
    limit = ROOM_DEPTH if kind == "room" else FAR
    depth_of_row = np.minimum(CAMERA_HEIGHT / np.maximum(y - horizon, 1e-6), limit)          # (size, 1)
    border = horizon + np.float32(CAMERA_HEIGHT / limit if kind == "room" else 0.0)           # y where ground begins

    if kind == "room":
        sky_bottom = np.array(WALLS[background.wall], np.float32)
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


# ---------------------------------------------------------------------------------------------------------------
# Solids. Each takes u (1, w), v (h, 1) in half-sizes from the centre (u right, v up) and a yaw.


@dataclass(frozen=True)
class _Solid:
    """A solid seen from the front, sampled on a grid; every array is (h, w).

    distance  signed, in half-sizes: negative inside the silhouette
    normal    three arrays: x right, y up, z towards the viewer
    s, t      surface coordinates that patterns follow, in half-sizes
    bulge     how far the surface comes towards the viewer from the object's centre plane, in half-sizes
    gloss     strength of the highlight
    """

    distance: np.ndarray
    normal: tuple
    s: np.ndarray
    t: np.ndarray
    bulge: np.ndarray
    gloss: float


def _ball(u, v, yaw):
    squared = u * u + v * v
    nz = np.sqrt(np.maximum(1 - squared, 0))
    s = np.arcsin(np.clip(u / np.sqrt(np.maximum(1 - v * v, 1e-3)), -1, 1))
    t = np.arcsin(np.clip(v, -1, 1)) + 0 * u
    shrink = 1 / np.maximum(np.sqrt(squared), 1)
    return _Solid(np.sqrt(squared) - 1, (u * shrink, v * shrink, nz), s, t, nz, 0.45)


def _cube(u, v, yaw):
    """A cube turned by `yaw` about the vertical and seen from above: two sides and the top."""
    cos, sin, lift = np.cos(yaw), np.sin(yaw), np.sin(CUBE_ELEVATION)
    right, left = np.array([cos, -sin * lift]), np.array([-sin, -cos * lift])    # images of the two level axes
    up = np.array([0.0, np.cos(CUBE_ELEVATION)])
    half = 1 / max(cos + sin, up[1] + (cos + sin) * lift)                        # fits the bounding square
    drop = -1 + half * (up[1] + (cos + sin) * lift)                              # rest on the square's lower edge
    faces = (   # (centre direction, one edge, other edge, outward normal)
        (up, right, left, (0.0, 1.1, 0.5)),     # longer than 1: the top is brighter than a side in any light
        (right, left, up, (cos, -sin * lift, sin * np.cos(CUBE_ELEVATION))),
        (left, right, up, (-sin, -cos * lift, cos * np.cos(CUBE_ELEVATION))),
    )
    distances, coordinates, normals, outline = [], [], [], -np.inf
    for centre, first, second, normal in faces:
        du, dv = u - half * centre[0], v - drop - half * centre[1]
        determinant = _cross(first, second)
        a = (du * second[1] - dv * second[0]) / determinant          # along each edge, the face spans ±half
        b = (dv * first[0] - du * first[1]) / determinant
        to_edge_a = (np.abs(a) - half) * abs(determinant) / np.hypot(*second)
        to_edge_b = (np.abs(b) - half) * abs(determinant) / np.hypot(*first)
        distances.append(np.maximum(to_edge_a, to_edge_b))
        coordinates.append((a, b))
        normals.append(normal)
        extent = half * (abs(_cross(first, centre)) + abs(_cross(second, centre)))      # the outline is a hexagon
        outline = np.maximum(outline, (np.abs(u * centre[1] - (v - drop) * centre[0]) - extent) / np.hypot(*centre))
    which = np.argmin(distances, axis=0)
    s, t = (np.choose(which, [c[k] for c in coordinates]) for k in (0, 1))
    nx, ny, nz = (np.choose(which, [np.float32(n[k]) for n in normals]) for k in range(3))
    away = np.hypot(u, v - drop) / np.float32(half * 1.45)
    return _Solid(outline, (nx, ny, nz), s, t, half * (1 - 0.6 * np.minimum(away, 1)), 0.0)


def _cross(a, b):
    return a[0] * b[1] - a[1] * b[0]


def _cone(u, v, yaw):
    """An upright cone with its point at v = 1; its base is an ellipse at the bottom."""
    base, width = -1 + LID, 0.86
    slope = width / (1 - base)
    side = (np.abs(u) - (1 - v) * slope) / np.hypot(1, slope)
    triangle = np.maximum(side, base - v)
    ellipse = _ellipse_distance(u, v - base, width, LID)
    radius = np.maximum(np.where(v > base, (1 - v) * slope, width), 1e-3)
    across = np.clip(u / radius, -1, 1)
    front = np.sqrt(1 - across * across)
    tilt = np.float32(1 / np.hypot(1, slope))
    normal = (across * tilt, np.float32(slope) * tilt + 0 * across, front * tilt)
    return _Solid(np.minimum(triangle, ellipse), normal, np.arcsin(across) * width, v + LID * front * radius,
                  front * np.minimum(radius, width), 0.15)


def _cylinder(u, v, yaw):
    """An upright can: the lid is an ellipse that tips towards the viewer."""
    width, top, base = 0.76, 1 - LID, -1 + LID
    body = np.maximum(np.abs(u) - width, np.abs(v) - top)
    lid = _ellipse_distance(u, v - top, width, LID)
    foot = _ellipse_distance(u, v - base, width, LID)
    across = np.clip(u / width, -1, 1) + 0 * v
    front = np.sqrt(1 - across * across)
    on_lid = lid < 0
    zero = np.float32(0)
    normal = (np.where(on_lid, zero, across), np.where(on_lid, np.float32(0.96), zero),
              np.where(on_lid, np.float32(0.28), front))
    t = np.where(on_lid, np.float32(0.155), v + LID * front)
    return _Solid(np.minimum(np.minimum(body, lid), foot), normal, np.arcsin(across) * width, t, front * width, 0.2)


def _ring(u, v, yaw):
    """A torus that stands upright and faces the viewer."""
    middle, tube = 0.70, 0.30
    radius = np.hypot(u, v)
    across = np.clip((radius - middle) / tube, -1, 1)
    front = np.sqrt(1 - across * across)
    inverse = 1 / np.maximum(radius, 1e-3)
    angle = np.arctan2(v, u)
    quarter = 0.62 * 8 / (2 * np.pi)        # eight stripes or dots around, whatever the period of the pattern
    return _Solid(np.abs(radius - middle) - tube, (across * u * inverse, across * v * inverse, front),
                  (radius - middle), angle * quarter, tube * front, 0.35)


def _star(u, v, yaw):
    """A five-pointed star with a ridge along each arm."""
    cos, sin = np.cos(np.float32(yaw)), np.sin(np.float32(yaw))
    across, along = cos * u + sin * v, cos * v - sin * u
    fifth, inner = 2 * np.pi / 5, 0.50
    angle = np.arctan2(across, along)
    sector = np.rint(angle / fifth)
    folded = angle - sector * fifth                              # within ±36° of the nearest point
    radius = np.hypot(across, along)
    px, py = radius * np.cos(folded), radius * np.abs(np.sin(folded))
    tip, notch = np.array([1.0, 0.0]), inner * np.array([np.cos(fifth / 2), np.sin(fifth / 2)])
    edge = notch - tip
    length = np.hypot(*edge)
    distance = ((py - tip[1]) * -edge[0] + (px - tip[0]) * edge[1]) / length
    out = sector * fifth + np.where(folded >= 0, 1, -1) * np.arctan2(-edge[0], edge[1]) - yaw
    nx, ny = 0.62 * np.sin(out), 0.62 * np.cos(out)
    return _Solid(distance, (nx, ny, np.float32(0.785) + 0 * nx), across, along,
                  np.clip(-distance, 0, 0.4), 0.0)


def _ellipse_distance(u, v, a, b):
    """Distance to an ellipse, exact on its outline and first-order around it."""
    implicit = (u / a) ** 2 + (v / b) ** 2 - 1
    slope = 2 * np.sqrt((u / a ** 2) ** 2 + (v / b ** 2) ** 2)
    return implicit / np.maximum(slope, 1e-3)


_SOLIDS = {"ball": _ball, "cube": _cube, "cone": _cone, "cylinder": _cylinder, "ring": _ring, "star": _star}


# ---------------------------------------------------------------------------------------------------------------
# Words

_PLACES = {
    "meadow": ("on a green meadow", "in a grassy field", "on the grass", "in a meadow with hills behind"),
    "beach": ("on a sandy beach", "on the beach by the sea", "at the seaside", "on the sand near the water"),
    "desert": ("in the desert", "on desert sand", "in a hot desert under the sun", "on an orange desert plain"),
    "snow": ("in the snow", "on a snowy field", "on snow in front of mountains", "in a winter landscape"),
    "night": ("at night", "under the night sky", "in the moonlight", "in the dark at night"),
    "room": ("in a room", "on a tiled floor", "in a room with a tiled floor", "indoors on the tiles"),
}
_NUMBERS = ("no", "one", "two", "three", "four")


def captions(scene: Scene, n: int = 5) -> list:
    """`n` short English sentences about the scene, as varied as people's; the same ones every time.

    The nearest object comes first, with its colour and shape. Size, pattern, the objects behind it and the place
    are each left out of some of them.
    """
    rng = np.random.default_rng((scene.seed, scene.index, 1))
    templates = _CAPTIONS_OF_ONE if len(scene.objects) == 1 else _CAPTIONS_OF_MANY
    order = np.concatenate([rng.permutation(len(templates)) for _ in range(-(-n // len(templates)))])
    return [templates[k](scene, rng) for k in order[:n]]


def _noun(thing: Object, rng, size=0.5) -> str:
    """"a large striped red ball"; the size is named with probability `size`, a pattern with 0.8."""
    words = []
    if rng.random() < size and not 0.24 < thing.size < 0.40:
        words.append(str(rng.choice(("large", "big") if thing.size >= 0.40 else ("small", "little"))))
    if thing.pattern != "plain" and rng.random() < 0.8:
        words.append(thing.pattern)
    words += [thing.colour, thing.shape]
    return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)


def _place(scene: Scene, rng) -> str:
    return str(rng.choice(_PLACES[scene.background.kind]))


def _relation(front: Object, other: Object, rng) -> str:
    """How the nearer object lies to the other one."""
    apart = other.x - front.x
    if abs(apart) < 0.5 * (front.size + other.size) and rng.random() < 0.6:
        return "in front of"
    if abs(apart) < 0.08:
        return "in front of"
    side = "left" if apart > 0 else "right"
    return str(rng.choice((f"to the {side} of", f"on the {side} of", "next to", "near")))


def _listing(things, rng) -> str:
    nouns = [_noun(thing, rng, size=0.15) for thing in things]
    return ", ".join(nouns[:-1]) + " and " + nouns[-1]


def _related(scene, rng):
    front, second = scene.objects[:2]
    return f"{_noun(front, rng)} {_relation(front, second, rng)} {_noun(second, rng)} {_place(scene, rng)}"


def _with_others(scene, rng):
    front, others = scene.objects[0], scene.objects[1:]
    rest = _noun(others[0], rng) if len(others) == 1 else _listing(others[:2], rng)
    return f"{_noun(front, rng)} with {rest} behind it {_place(scene, rng)}"


def _list_of_all(scene, rng):
    return f"{_listing(scene.objects[:3], rng)} {_place(scene, rng)}"


def _counted(scene, rng):
    number = _NUMBERS[len(scene.objects)]
    return f"{_noun(scene.objects[0], rng)} is the closest of {number} objects {_place(scene, rng)}"


def _placeless(scene, rng):
    front, second = scene.objects[:2]
    return f"{_noun(front, rng)} {_relation(front, second, rng)} {_noun(second, rng)}"


def _there_is(scene, rng):
    near, where, far = _noun(scene.objects[0], rng), _place(scene, rng), _noun(scene.objects[1], rng)
    return f"there is {near} {where} and {far} farther away"


def _alone(scene, rng):
    return f"{_noun(scene.objects[0], rng)} {rng.choice(('alone', 'by itself', 'standing'))} {_place(scene, rng)}"


def _bare(scene, rng):
    return f"{_noun(scene.objects[0], rng)} {_place(scene, rng)}"


def _only(scene, rng):
    return f"there is only {_noun(scene.objects[0], rng)} {_place(scene, rng)}"


def _picture(scene, rng):
    return f"a picture of {_noun(scene.objects[0], rng, size=0.9)}"


def _sits(scene, rng):
    side = ("on the left", "in the middle", "on the right")[int(np.clip(scene.objects[0].x * 3, 0, 2))]
    return f"{_noun(scene.objects[0], rng)} {side} {_place(scene, rng)}"


_CAPTIONS_OF_MANY = (_related, _with_others, _list_of_all, _counted, _placeless, _there_is)
_CAPTIONS_OF_ONE = (_alone, _bare, _only, _picture, _sits)


def describe(scene: Scene) -> dict:
    """The scene as plain numbers and words that JSON can hold."""
    return asdict(scene)
