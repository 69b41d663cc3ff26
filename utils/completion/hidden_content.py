"""Views behind occluders, and what each hides beyond its context: the axes of the completion index."""
from dataclasses import dataclass

import numpy as np

from utils import lazy
from utils.completion import context_model, picture_features
from utils.occlusion import occluded_pictures

ndimage = lazy.module("scipy.ndimage")

SEEN = 0.01             # an object of which no more than this share is in view is wholly hidden
MIN_GROUP = 5           # views that share a mask, or they are left out: of 5! = 120 permutations p can fall below 0.01


@dataclass(frozen=True)
class Axis:
    """What the views behind one mask hide, beyond what their visible context predicts.

    rows (n,): positions of the views. dims (d,): dims of the feature. values (n, d): H. depth (d,): distance of each
    dim from the occluder's edge, image sides; infinite for a feature without a place.
    """

    rows: np.ndarray
    dims: np.ndarray
    values: np.ndarray
    depth: np.ndarray

    def take(self, kept):
        """The axis over views kept, (v,) bool, renumbered; H without its mean over them. None for too few."""
        here = kept[self.rows]
        if here.sum() < MIN_GROUP:
            return None
        values = self.values[here]
        return Axis((np.cumsum(kept) - 1)[self.rows[here]], self.dims, values - values.mean(0), self.depth)

    def eroded(self, margin):
        """The axis without the dims nearer than `margin` (image sides) to the occluder's edge; None if none is left."""
        far = self.depth >= margin - 1e-9
        return Axis(self.rows, self.dims[far], self.values[:, far], self.depth[far]) if far.any() else None


@dataclass
class Material:
    """All that comes from pictures and none from a brain; made once for every ROI.

    features {name: (train (n, d), test (m, d))}: standardised over the training pictures. gone (v,) bool: of an object
    that is in view in the whole picture nothing is left in the view. lost (v,) bool: and the whole picture shows it in
    clear view. axes, control {name: [Axis]}: axes for the views that are not gone; control for those that are lost,
    along what such objects hold. A view that is gone and not lost is in neither.
    train_appearance (n, p), view_appearance (v, p). context_r2 {name: share of the hidden content's variance that the
    context predicts, over the test views}. guess {name: (v, d)}: what it predicts there, NaN where nothing is hidden.
    units {name: mean and sd (2, d)}: of the features before they were standardised. as_shown {name: (v, d)}:
    standardised features of the pictures as shown, the occluder in front, where they come from pixels and annotation
    alone.
    """

    views: occluded_pictures.Views
    features: dict
    gone: np.ndarray
    lost: np.ndarray
    axes: dict
    control: dict
    train_appearance: np.ndarray
    view_appearance: np.ndarray
    context_r2: dict
    guess: dict
    units: dict
    as_shown: dict


def prepare(train, test, views, extra=None, progress=lambda done: None):
    """The Material. train, test: Pictures. extra: {name: (train (n, d), test (m, d), hides)}, further local features;
    hides(hidden) → (d,) distance from the occluder's edge of each dim that it hides, else -1."""
    shown = occluded_pictures.Pictures(views.shown) if test.labels is None else occluded_pictures.Pictures(
        views.shown, np.where(views.hidden, np.int8(-1), test.labels[views.rows]),
        tuple(test.area[k] for k in views.rows), tuple(test.kinds[k] for k in views.rows))
    gone, clear = np.zeros(len(views.rows), bool), [np.zeros(0, int)] * len(views.rows)
    raw = {"local": (picture_features.local(train.images), picture_features.local(test.images), hidden_cells)} | (extra
                                                                                                                  or {})
    if test.labels is not None:
        hidden_wholly = [(seen <= SEEN) & (test.seen[row] > SEEN) for seen, row in zip(shown.seen, views.rows)]
        gone = np.array([each.any() for each in hidden_wholly])
        clear = [np.flatnonzero(each & test.clear[row]) for each, row in zip(hidden_wholly, views.rows)]
        raw["objects"] = (picture_features.inventory(train), picture_features.inventory(test), None)
    features, units, as_shown = {}, {}, {}
    of_shown = {"local": picture_features.local(shown.images)} | ({} if test.labels is None
                                                                  else {"objects": picture_features.inventory(shown)})
    for name, (fit, held, _) in raw.items():
        mean, sd = units[name] = np.stack([fit.mean(0), np.maximum(fit.std(0), 1e-6)])
        features[name] = ((fit - mean) / sd, (held - mean) / sd)
        if name in of_shown:
            as_shown[name] = (of_shown[name] - mean) / sd
    found = Material(views, features, gone, np.array([len(each) > 0 for each in clear]), {name: [] for name in raw},
                     {name: [] for name in raw}, picture_features.appearance(train), picture_features.appearance(shown),
                     {},
                     {name: np.full((len(gone), each[0].shape[1]), np.nan, np.float32) for name, each in raw.items()},
                     units, as_shown)
    left, total = dict.fromkeys(raw, 0.0), dict.fromkeys(raw, 0.0)
    lost = {name: [] for name in raw}
    seen_context = picture_features.context(shown)
    for name in np.unique(views.masks):
        rows = np.flatnonzero(views.masks == name)
        hidden = views.hidden[rows[0]]
        fill = np.median(views.shown[rows[0]][hidden], axis=0)
        fitted = picture_features.context(train.covered(hidden, fill))
        for feature, (_, _, hides) in raw.items():
            depth = np.full(features[feature][0].shape[1], np.inf) if hides is None else hides(hidden)
            dims = np.flatnonzero(depth >= 0)
            if not len(dims):
                continue
            fit, held = features[feature][0][:, dims], features[feature][1][views.rows[rows]][:, dims]
            # A mask that a single view has cannot enter the index; the penalty of its control need not be its own.
            model = context_model.Ridge(fitted, fit, None if len(rows) >= MIN_GROUP else 100.0)
            found.guess[feature][np.ix_(rows, dims)] = model.predict(seen_context[rows])
            beyond = held - found.guess[feature][np.ix_(rows, dims)]
            whole_in_view = ~gone[rows]
            left[feature] += (beyond[whole_in_view] ** 2).sum()
            total[feature] += ((held - held.mean(0))[whole_in_view] ** 2).sum()
            if whole_in_view.sum() >= MIN_GROUP:
                values = beyond[whole_in_view]
                found.axes[feature].append(Axis(rows[whole_in_view], dims, values - values.mean(0), depth[dims]))
            for row, truth, guess in zip(rows, held, held - beyond):
                if found.lost[row]:
                    inside = _of_the_lost(feature, test, views.rows[row], clear[row], dims)
                    if inside.any():
                        lost[feature].append((row, dims, truth, guess, inside, depth[dims]))
        progress(1)
    for name in raw:
        found.context_r2[name] = float(1 - left[name] / max(total[name], 1e-9))
        found.control[name] = _control(lost[name], name == "objects")
    return found


def hidden_cells(hidden):
    """(GRID² · 3,): each local dim's distance (image sides) from the occluder's edge if its cell is hidden, else -1."""
    return np.repeat(_depth(hidden, picture_features.GRID).ravel(), 3)


def _depth(hidden, cells):
    """(cells, cells): distance of the hidden cells' nearest pixel from what is visible, image sides; -1 elsewhere.

    Beyond the picture's frame nothing is visible.
    """
    distance = ndimage.distance_transform_edt(hidden) / len(hidden) if not hidden.all() else np.ones(hidden.shape)
    size = len(hidden) // cells
    nearest = distance.reshape(cells, size, cells, size).min((1, 3))
    return np.where(nearest > 0, nearest - 1 / len(hidden), -1.0)


def grid_depth(cells, channels):
    """As `hidden_cells`, for a feature of shape (channels, cells, cells), such as a latent."""
    def hides(hidden):
        side = len(hidden) // cells * cells
        rows = (np.arange(side) * len(hidden) / side).astype(int)
        return np.tile(_depth(hidden[np.ix_(rows, rows)], cells).ravel(), channels)
    return hides


def _of_the_lost(feature, test, picture, objects, dims):
    """(dims,) weights: 1 in the cells that `objects`, wholly hidden in a view, fill in the whole test picture; or what
    that shows of each category.

    All 0 for a feature that says neither.
    """
    if feature == "objects":
        held = np.sqrt(test.area[picture][objects]) * test.seen[picture][objects]
        return np.append(held @ test.kinds[picture][objects], 0.0)
    if feature != "local":
        return np.zeros(len(dims))
    filled = picture_features.pooled(np.isin(test.labels[picture], objects)[None, ..., None].astype(float),
                                     picture_features.GRID)[0, ..., 0] > 0.5
    return np.repeat(filled.ravel(), 3)[dims].astype(float)


def _control(lost, by_category):
    """Axes along the wholly hidden objects, an axis a view: what they hold less what objects like them hold on average.

    In the cells they fill: their colours, less the best guess from the context's, by a line through all of them per
    channel (that something is hidden there is no news, and the context predicts the scene without it). By category:
    their inventory less its mean.
    """
    if not lost:
        return []
    if by_category:
        values = np.stack([inside for _, _, _, _, inside, _ in lost])
        values = values - values.mean(0)
        return [Axis(np.array([row]), dims, each[None], depth) for (row, dims, *_, depth), each in zip(lost, values)]
    truth, guess, channel = (np.concatenate(part) for part in zip(*(
        (truth[inside > 0], guess[inside > 0], dims[inside > 0] % 3) for _, dims, truth, guess, inside, _ in lost)))
    lines = [np.polyfit(guess[channel == k], truth[channel == k], 1) for k in range(3)]
    axes = []
    for row, dims, truth, guess, inside, depth in lost:
        slope, start = np.array(lines)[dims % 3].T
        axes.append(Axis(np.array([row]), dims, (inside * (truth - slope * guess - start))[None], depth))
    return axes
