"""What a simulated brain answers to a picture, without noise."""
from functools import lru_cache

import numpy as np
from PIL import Image

from mini_nsd import brain_model, scenes


def retina(images):
    """(n, GRID, GRID, 3) uint8: pictures (H, W, 3) uint8 of any size, averaged over the pixels of the coarser grid."""
    return np.stack([picture if picture.shape[0] == brain_model.GRID
                     else np.asarray(Image.fromarray(picture).resize((brain_model.GRID,) * 2, Image.Resampling.BOX))
                     for picture in images])


def visibility(rendering, hidden=None):
    """(objects,) share of each object's silhouette that is in view, in [0, 1].

    rendering: a `scenes.Rendering`. hidden: (size, size) bool, True where an occluder covers the picture.
    """
    seen = rendering.labels if hidden is None else np.where(hidden, -1, rendering.labels)
    return np.array([(seen == position).sum() / max(1, silhouette.sum())
                     for position, silhouette in enumerate(rendering.amodal)])


def respond(brain, images, shown, visible, batch=64):
    """The noise-free response, (n, R) float32, percent signal change; R ROI voxels in the volume's C order.

    images: n pictures (H, W, 3) uint8 as they were shown. shown: their n `scenes.Scene`. visible: for each, the share
    of every object that was in view, (objects,) in [0, 1] (see `visibility`). batch: pictures at a time; the result
    does not depend on it beyond the rounding of float32.
    """
    out = np.empty((len(shown), len(brain.roi)), np.float32)
    for start in range(0, len(shown), batch):
        part = slice(start, start + batch)
        raw = raw_components(brain.tuning, retina(images[part]), shown[part], visible[part])
        mixed = weighted_sum(brain.tuning, raw, brain.component_stats)
        scaled = (mixed - brain.response_stats[0]) / brain.response_stats[1]
        out[part] = brain.baseline + brain.signal_sd * scaled
    return out


def raw_components(tuning, pictures, shown, visible):
    """(n, R, 12) raw values of COMPONENTS; zero where no voxel of the ROI has the component."""
    out = np.zeros((len(shown), len(tuning.field), len(brain_model.COMPONENTS)), np.float32)
    sees = tuning.weight[:, :brain_model.PICTURE].any(1)
    knows = tuning.weight[:, brain_model.PICTURE:].any(1)
    out[:, sees, :brain_model.PICTURE] = _picture_components(tuning, sees, pictures)
    out[:, knows, brain_model.PICTURE:] = _object_components(tuning, knows, shown, visible)
    return out


def weighted_sum(tuning, raw, stats):
    return np.einsum("nrc,rc->nr", (raw - stats[0]) / stats[1], tuning.weight)


def _picture_components(tuning, sees, pictures):
    """(n, voxels, 4): compressed contrast energy, luminance, red–green and blue–yellow in each receptive field."""
    fields = _receptive_fields(tuning.centre[sees], tuning.field[sees])
    maps = _maps(pictures)
    count, channels = maps.shape[:2]
    pooled = (maps.reshape(count * channels, -1) @ fields.T).reshape(count, channels, -1)
    energy = np.einsum("nkr,rk->nr", pooled[:, 3:], tuning.energy[sees]) ** brain_model.COMPRESSION
    return np.stack([energy, pooled[:, 0], pooled[:, 1], pooled[:, 2]], axis=-1)


def _receptive_fields(centre, sd):
    """(voxels, GRID²) float32 Gaussians that sum to 1; exactly zero beyond CUTOFF."""
    axis = (np.arange(brain_model.GRID) + 0.5) / brain_model.GRID
    x = (axis[None, :] - centre[:, :1]) / sd[:, None]
    y = (axis[None, :] - centre[:, 1:]) / sd[:, None]
    squared = y[:, :, None] ** 2 + x[:, None, :] ** 2
    fields = np.where(squared < brain_model.CUTOFF ** 2, np.exp(-squared / 2), 0).reshape(len(sd), -1)
    return (fields / fields.sum(1, keepdims=True)).astype(np.float32)


def _maps(pictures):
    """(n, 15, GRID²) float32: luminance and two colour opponents about grey, then normalised energy by frequency.

    Luminance and opponents are taken from the encoded RGB values, whose steps are about equally visible.
    """
    red, green, blue = np.moveaxis(pictures.astype(np.float32) / 255, -1, 0)
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue - 0.5
    spectrum = np.fft.fft2(luminance, (brain_model.PADDED, brain_model.PADDED))
    energy = np.stack([np.abs(np.fft.ifft2(spectrum * gabor)[:, :brain_model.GRID, :brain_model.GRID]) ** 2
                       for gabor in _gabors()], axis=1)
    energy = energy / (brain_model.SATURATION + energy.mean(1, keepdims=True))
    maps = np.concatenate([np.stack([luminance, red - green, blue - (red + green) / 2], axis=1), energy], axis=1)
    return maps.reshape(len(pictures), -1, brain_model.GRID * brain_model.GRID).astype(np.float32)


@lru_cache(maxsize=1)
def _gabors():
    """(12, PADDED, PADDED) spectra of complex Gabors: real and imaginary part of a response are the quadrature pair.

    The envelope's sd is half a wavelength. High frequencies are amplified to even out a scene's 1/f spectrum.
    """
    along = np.fft.fftfreq(brain_model.PADDED)
    filters = []
    for frequency in brain_model.FREQUENCIES:
        cycles = frequency / brain_model.GRID           # per pixel
        for orientation in brain_model.ORIENTATIONS:
            fx, fy = cycles * np.cos(orientation), cycles * np.sin(orientation)
            squared = (along[None, :] - fx) ** 2 + (along[:, None] - fy) ** 2
            spectrum = frequency / brain_model.FREQUENCIES[0] * np.exp(-2 * np.pi ** 2 * (0.5 / cycles) ** 2 * squared)
            spectrum[0, 0] = 0              # no response to uniform light
            filters.append(spectrum)
    return np.stack(filters)


def _object_components(tuning, knows, shown, visible):
    """(n, voxels, 8): what is there, how many, how large, where, how far."""
    things = [thing for scene in shown for thing in scene.objects]
    first = np.cumsum([0] + [len(scene.objects) for scene in shown[:-1]])

    def total(values):
        return np.add.reduceat(values, first, axis=0)

    def kind(names, attribute):
        return np.array([names.index(getattr(thing, attribute)) for thing in things])

    shape, colour = kind(scenes.SHAPES, "shape"), kind(scenes.COLOURS, "colour")
    pattern = kind(scenes.PATTERNS, "pattern")
    x, y, size, depth = (np.array([getattr(thing, name) for thing in things]) for name in ("x", "y", "size", "depth"))
    seen = np.concatenate(visible)
    scene_of = np.repeat(np.arange(len(shown)), [len(scene.objects) for scene in shown])

    # Large things drive more, hidden ones less; together they drive less than the sum of each alone.
    salience = seen ** 0.7 * (size / 0.4)
    drive = salience / np.maximum(total(salience), 0.05)[scene_of] ** 0.7
    centre, window = tuning.centre[knows], tuning.window[knows]
    distance = (x[:, None] - centre[:, 0]) ** 2 + (y[:, None] - centre[:, 1]) ** 2
    drive = (drive[:, None] * np.exp(-distance / (2 * window ** 2))).astype(np.float32)          # (objects, voxels)

    number = np.log(np.maximum(total(np.sqrt(seen)), 0.05))
    background = [scenes.BACKGROUNDS.index(scene.background.kind) for scene in shown]
    return np.stack([
        total(drive * tuning.shape[knows].T[shape]),
        total(drive * tuning.colour[knows].T[colour]),
        total(drive * tuning.pattern[knows].T[pattern]),
        total(drive * tuning.conjunction[knows].T[shape * len(scenes.COLOURS) + colour]),
        total(drive * np.exp(-np.log(size[:, None] / tuning.size[knows]) ** 2 / (2 * 0.5 ** 2))),
        tuning.background[knows].T[background],
        np.exp(-(number[:, None] - np.log(tuning.number[knows])) ** 2 / (2 * 0.6 ** 2)),
        total(drive * np.exp(-(depth[:, None] - tuning.depth[knows]) ** 2 / (2 * 0.6 ** 2))),
    ], axis=-1)
