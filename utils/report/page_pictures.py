"""The report's pictures: small, embedded as text, and the close-ups of what an occluder hid."""
import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor

from utils import images, layout, lazy, plotting
from utils.occlusion import occluded_viewing
from utils.storage import hdf5

ndimage = lazy.module("scipy.ndimage")

SIDES = (256, 224, 192, 160, 128, 96)  # px: the largest at which all pictures fit is taken
PROBES = 24  # pictures that are encoded to learn how large all will be
QUALITY = 75  # of WebP
CLOSE_UP = 240  # px


def embedded(picture, side):
    """A PIL image → base64 of a WebP of side × side px."""
    small = picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    small.save(content, "WEBP", quality=QUALITY, method=4)
    return base64.b64encode(content.getvalue()).decode("ascii")


def embedded_file(path, side):
    """As `embedded`, of a picture file."""
    return embedded(opened(path), side)


def opened(path):
    """A picture file → PIL image, RGB. Raises Problem if it is not a whole picture, see `images.load`."""
    return Image.fromarray(images.load(path, ("RGB", "L"))).convert("RGB")


def outlined(picture, hidden, colour):
    """The picture at CLOSE_UP px with a line around the hidden region. hidden: PIL image, white where hidden."""
    levels = np.asarray(_array(picture))
    mask = np.asarray(hidden.convert("L").resize((CLOSE_UP, CLOSE_UP), Image.Resampling.NEAREST)) > 127
    edge = mask & ~ndimage.binary_erosion(mask, iterations=2, border_value=1)
    return Image.fromarray(np.where(edge[..., None], np.array(ImageColor.getrgb(colour), np.uint8), levels))


def fitting_side(paths, most_bytes):
    """The largest of SIDES at which `paths` together take at most `most_bytes` of text; the smallest if none is."""
    probes = [paths[k] for k in sorted(set(np.linspace(0, len(paths) - 1, min(PROBES, len(paths))).astype(int)))]
    for side in SIDES[:-1]:
        mean = sum(len(embedded_file(path, side)) for path in probes) / len(probes)
        if mean * len(paths) <= most_bytes:
            return side
    return SIDES[-1]


def to_rgb(channels):
    """(…, 3) luminance − 0.5, red − green, blue − (red + green) / 2 → (…, 3) RGB in [0, 1].

    The inverse of `picture_features.local`, whose luminance is 0.299 R + 0.587 G + 0.114 B. Decoded values may lie
    outside what a screen can show; these are clipped.
    """
    luminance, red_green, blue_yellow = np.moveaxis(np.asarray(channels, np.float64), -1, 0)
    green = luminance + 0.5 - (0.299 + 0.114 / 2) * red_green - 0.114 * blue_yellow
    red = green + red_green
    return np.clip(np.stack([red, green, blue_yellow + (red + green) / 2], -1), 0, 1)


@dataclass(frozen=True)
class View:
    """One occluded view. row: its place in decoded.h5. stimulus: 0-based 73k id. gone: an object is wholly hidden.

    likeness: see `Hidden.likeness`. rank: 1 for the most alike of the views of its kind (`of`).
    """

    row: int
    stimulus: int
    mask: str
    gone: bool
    share: float
    likeness: float
    rank: int
    of: int


class Hidden:
    """What amodal_completion.py decoded of every view (`_decoded.h5`), cells of completion.GRID × completion.GRID."""

    def __init__(self, path):
        with hdf5.File(path, "run amodal_completion.py", "run amodal_completion.py again with --overwrite") as file:
            self.stimuli = file.dataset("stim_ids", "iu", 1).whole()
            self.masks = [occluded_viewing.text(mask) for mask in file.dataset("mask_ids", "OSU", 1).whole()]
            self.gone, self.hidden = file.dataset("gone", "b", 1).whole(), file.dataset("hidden", "b", 3).whole()

            def cells(name):
                return file.dataset(name, "f", 4).whole().astype(np.float32)

            self.truth, self.context = cells("truth"), cells("context")
            self.decoded = {roi: cells(f"decoded/{roi}") for roi in layout.ROIS if f"decoded/{roi}" in file}

    def likeness(self, roi):
        """(views,) correlation, over hidden cells, of what was decoded with the truth, each less what the context says.

        0 for a view in which nothing is left to be told.
        """
        r = np.zeros(len(self.hidden))
        for row, hidden in enumerate(self.hidden):
            guess = self.context[row][hidden]
            brain, truth = self.decoded[roi][row][hidden] - guess, self.truth[row][hidden] - guess
            if brain.size > 2 and brain.std() > 0 and truth.std() > 0:
                r[row] = np.corrcoef(brain.ravel(), truth.ravel())[0, 1]
        return r

    def views(self, roi, gone, count):
        """`count` views evenly spaced by likeness, from the most to the least, so that none is hand-picked; or all."""
        likeness = self.likeness(roi)
        rows = sorted(np.flatnonzero(self.gone == gone), key=lambda row: (-likeness[row], row))
        return [View(int(rows[k]), int(self.stimuli[rows[k]]), self.masks[rows[k]], bool(gone),
                     float(self.hidden[rows[k]].mean()), float(likeness[rows[k]]), k + 1, len(rows))
                for k in plotting.evenly(len(rows), count)]

    def middle(self, roi):
        """The view of median likeness among those that hide no object wholly."""
        return self.views(roi, False, 3)[1] if (~self.gone).sum() > 2 else self.views(roi, False, 1)[0]

    def pictures(self, view, original, shown):
        """{"original", "shown", "truth", "context", "decoded/{roi}": PIL image}: the last three fill hidden cells.

        original, shown: PIL images, or None where they cannot be had; then cells stand in for them.
        """
        side, hidden = CLOSE_UP, self.hidden[view.row]
        cells = _enlarged(self.truth[view.row], np.ones_like(hidden))
        whole = cells if original is None else _array(original)
        mask = np.asarray(Image.fromarray(hidden).resize((side, side), Image.Resampling.NEAREST), bool)[..., None]
        seen = np.where(mask, 128, whole).astype(np.uint8) if shown is None else _array(shown)
        fillings = {"truth": self.truth, "context": self.context}
        fillings |= {f"decoded/{roi}": each for roi, each in self.decoded.items()}
        filled = {name: np.where(mask, _enlarged(each[view.row], hidden), seen) for name, each in fillings.items()}
        return {name: Image.fromarray(each) for name, each in ({"original": whole, "shown": seen} | filled).items()}


def _array(picture):
    return np.asarray(picture.convert("RGB").resize((CLOSE_UP, CLOSE_UP), Image.Resampling.LANCZOS))


def _enlarged(channels, known):
    """(cells, cells, 3) → (CLOSE_UP, CLOSE_UP, 3) uint8, smoothly; beyond the known cells the nearest goes on."""
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    levels = (to_rgb(channels[tuple(nearest)]) * 255).round().astype(np.uint8)
    return np.asarray(Image.fromarray(levels).resize((CLOSE_UP, CLOSE_UP), Image.Resampling.BICUBIC))


class Shown:
    """The occluded pictures as they were shown, from a file that is at hand; without one, every picture is None."""

    def __init__(self, path):
        self._file = None if path is None else occluded_viewing.open_file(path)
        self._pictures, self._row = (None, {}) if path is None else occluded_viewing.indexed(self._file)

    @classmethod
    def at_hand(cls, root, workdir):
        """From the working folder's copy, or a local NSD_ROOT. Nothing is fetched."""
        copy = layout.occluded_viewing_copy(workdir, occluded_viewing.SHOWN_KEY)
        if copy.exists():
            return cls(copy)
        if root.local and root.exists(occluded_viewing.SHOWN_KEY):
            return cls(root.path(occluded_viewing.SHOWN_KEY))
        return cls(None)

    def picture(self, view):
        row = self._row.get((view.stimulus, view.mask))
        return None if row is None else Image.fromarray(self._pictures[row])

    def close(self):
        if self._file is not None:
            self._file.close()
