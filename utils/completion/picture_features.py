"""What a picture holds, in numbers: local colours, objects, and what context and encoding models see."""
import numpy as np

from utils.occlusion import occluded_pictures

GRID = 20               # cells per side of the local features
COARSE = 10             # cells per side of what the context and the encoding model see


def local(images):
    """(n, SMALL, SMALL, 3) uint8 → (n, GRID² · 3): luminance, red–green and blue–yellow of each cell, in [-1, 1]."""
    red, green, blue = np.moveaxis(pooled(images.astype(np.float32) / 255, GRID), -1, 0)
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue - 0.5
    return np.stack([luminance, red - green, blue - (red + green) / 2], -1).reshape(len(images), -1)


def pooled(maps, cells):
    n, side = maps.shape[:2]
    return maps.reshape(n, cells, side // cells, cells, side // cells, -1).mean((2, 4))


def inventory(pictures):
    """(n, K + 1): size (image sides) × visible share, summed over the objects of each category; and their number.

    In the number each object counts by the square root of its visible share, a soft "is there".
    """
    return np.stack([np.append((np.sqrt(area) * seen) @ kinds, np.sqrt(seen).sum())
                     for area, seen, kinds in zip(pictures.area, pictures.seen, pictures.kinds)])


def context(pictures):
    """(n, p): what a model without a brain may know of pictures as shown: coarse colours, and the objects in view."""
    colours = pooled(local(pictures.images).reshape(-1, GRID, GRID, 3), COARSE).reshape(len(pictures.images), -1)
    if pictures.labels is None:
        return colours
    rooted = [(np.sqrt(area * seen)) @ kinds for area, seen, kinds in zip(pictures.area, pictures.seen, pictures.kinds)]
    return np.concatenate([colours, inventory(pictures), rooted], 1)


def appearance(pictures):
    """(n, p): what the encoding model sees of pictures as shown: `context`, contrast, and competition between objects.

    Contrast: mean absolute steps of luminance across and down, over 1 and 4 px, square-rooted. Competition: each
    category's share of all that is in view, to the power 0.7 (responses to several objects are a normalised sum, Reddy
    & Kanwisher 2007), by itself and weighted by where its visible part lies.
    """
    luminance = pictures.images.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    steps = []
    for step in (1, 4):
        padded = np.pad(luminance, ((0, 0), (0, step), (0, step)), mode="edge")
        steps += [np.abs(padded[:, step:, :-step] - luminance), np.abs(padded[:, :-step, step:] - luminance)]
    contrast = np.sqrt(pooled(np.stack(steps, -1), COARSE)).reshape(len(luminance), -1)
    if pictures.labels is None:
        return np.concatenate([context(pictures), contrast], 1)
    return np.concatenate([context(pictures), contrast, _competition(pictures)], 1)


def _competition(pictures):
    axis = (np.arange(occluded_pictures.SMALL) + 0.5) / occluded_pictures.SMALL - 0.5
    rows = []
    for labels, area, seen, kinds in zip(pictures.labels, pictures.area, pictures.seen, pictures.kinds):
        pixels = np.stack([labels == position for position in range(len(area))])
        count = np.maximum(pixels.sum((1, 2)), 1)
        x, y = pixels.sum(1) @ axis / count, pixels.sum(2) @ axis / count
        row = []
        for power in (0.5, 1):
            drive = np.sqrt(area) * seen ** power
            drive = drive / max(drive.sum(), 0.02) ** 0.7
            row += [drive @ kinds, (drive * x) @ kinds, (drive * y) @ kinds]
        rows.append(np.append(np.concatenate(row), np.log(max(np.sqrt(seen).sum(), 0.05))))
    return np.stack(rows)
