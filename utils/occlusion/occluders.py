"""Occluders: which pixels are hidden, and what fills them.

One number, the ratio, sizes every kind: an occluder hides ratio² of the image. For a rectangle that is `ratio` of each
side (0.3 by default: 9% of the area); ellipse, bars and patches hide the same area, so that kinds can be compared.
A mask and a noise fill depend on (seed, index) alone, never on the range of images, its order or a restart.
"""
import numpy as np

from utils.errors import Problem

KINDS = ("rectangle", "ellipse", "bars", "patches")
PLACES = ("centre", "random")
FILLS = ("black", "grey", "mean", "noise")
GREY = 128
BARS = 5
PATCHES = 4  # per side: 4 × 4 patches
_PLACE, _FILL = 0, 1  # streams of randomness, so that a fill never moves an occluder


def _random(seed, index, stream):
    return np.random.default_rng((seed, index, stream))


def mask(kind, ratio, place, seed, index, shape):
    """(H, W) bool, True where the image is hidden: ratio² of it, to within a row or column of pixels.

    ratio: 0 < ratio ≤ 1. place: "centre", or "random" by (seed, index). shape: (H, W) of the image, in pixels.
    Raises Problem for a ratio out of range or so small that no pixel is hidden.
    """
    if not 0 < ratio <= 1:
        raise Problem(f"an occlusion ratio of {ratio:g} is out of range", "give a share of the side: 0 < ratio ≤ 1")
    random = _random(seed, index, _PLACE) if place == "random" else None
    hidden = {"rectangle": _rectangle, "ellipse": _ellipse, "bars": _bars, "patches": _patches}[kind](
        ratio, random, *shape)
    if not hidden.any():
        raise Problem(f"{kind} of ratio {ratio:g} hides no pixel of {shape[0]} × {shape[1]}", "give a larger ratio")
    return hidden


def _offset(space, random):
    """Start of something that has `space` pixels to spare: the middle, or anywhere."""
    return space // 2 if random is None else int(random.integers(space + 1))


def _rectangle(ratio, random, height, width):
    hidden = np.zeros((height, width), bool)
    rows, columns = round(ratio * height), round(ratio * width)
    top, left = _offset(height - rows, random), _offset(width - columns, random)
    hidden[top:top + rows, left:left + columns] = True
    return hidden


def _ellipse(ratio, random, height, width):
    axis = min(1.0, ratio * 2 / np.sqrt(np.pi))  # of the side; an ellipse as large as the rectangle
    space = np.array([height, width]) * (1 - axis)
    centre = np.array([height, width]) / 2 + (0 if random is None else (random.random(2) - 0.5) * space)
    row, column = np.ogrid[:height, :width]
    distance = ((row + 0.5 - centre[0]) / height) ** 2 + ((column + 0.5 - centre[1]) / width) ** 2
    # The nearest pixels, as many as asked: exact also where a large ellipse is cut off by the image's edge.
    count = round(ratio**2 * height * width)
    if count == 0:
        return np.zeros((height, width), bool)
    return distance <= np.partition(distance, count - 1, axis=None)[count - 1] * (1 + 1e-9)


def _shares(total, parts):
    """Split `total` pixels into whole numbers, the larger in the middle: a smaller total never has a larger part."""
    from_middle = np.argsort(np.argsort(np.abs(np.arange(parts) - (parts - 1) / 2), kind="stable"))
    return total // parts + (from_middle < total % parts)


def _bars(ratio, random, height, width):
    columns = np.zeros(width, bool)
    widths, cells = _shares(round(ratio**2 * width), BARS), _shares(width, BARS)
    for start, cell, bar in zip(np.cumsum(cells) - cells, cells, widths):
        left = start + (cell - bar) // 2
        columns[left:left + bar] = True
    if random is not None:
        columns = np.roll(columns, random.integers(width))
    return np.repeat(columns[None], height, axis=0)


def _patches(ratio, random, height, width):
    hidden = np.zeros((height, width), bool)
    sides = [_shares(round(ratio * side), PATCHES) for side in (height, width)]
    cells = [_shares(side, PATCHES) for side in (height, width)]
    starts = [np.cumsum(cell) - cell for cell in cells]
    for i in range(PATCHES):
        for j in range(PATCHES):
            top = starts[0][i] + _offset(cells[0][i] - sides[0][i], random)
            left = starts[1][j] + _offset(cells[1][j] - sides[1][j], random)
            hidden[top:top + sides[0][i], left:left + sides[1][j]] = True
    return hidden


def apply(image, hidden, fill, seed, index):
    """A copy of `image` (H, W, 3) uint8 whose hidden pixels are filled.

    fill: "black"; "grey" (128); "mean", the mean colour of the pixels that stay visible, so that the fill tells
    nothing of what it hides (grey where none is visible); "noise", uniform by (seed, index).
    """
    out = image.copy()
    if fill == "black":
        out[hidden] = 0
    elif fill == "grey":
        out[hidden] = GREY
    elif fill == "mean":
        out[hidden] = np.round(image[~hidden].mean(axis=0)) if not hidden.all() else GREY
    else:
        out[hidden] = _random(seed, index, _FILL).integers(0, 256, (np.count_nonzero(hidden), 3), np.uint8)
    return out
