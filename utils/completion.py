"""Does activity hold what an occluder hides? The completion index, and its tests.

docs/amodal_completion.md derives all of this. In short: decoders D are trained on whole images alone and are linear, so
if the response to an occluded view is (1 - k) · visible-only + k · whole, then so is what is decoded from it. The axis
on which k is read is the innovation H: the hidden content minus what the visible context predicts of it, by a ridge
model of images alone (no brain). Whatever is a function of the visible picture is uncorrelated with H if that model is
right, and what an encoding model predicts of it is subtracted besides; the index is

    k = sum <D(occluded) - D(visible-only model), H> / sum <D(whole) - D(visible-only model), H>

over the hidden dims and the images. Visible content leaks into it only as far as both models are wrong in the same way.
"""
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from utils import lazy, permutations, regression

ndimage = lazy.module("scipy.ndimage")

SMALL = 100             # px: side of the pictures that features are taken from
GRID = 20               # cells per side of the local features
COARSE = 10             # cells per side of what the context and the encoding model see
SEEN = 0.01             # an object of which no more than this share is in view is wholly hidden
CLEAR_SHARE = 0.5       # of an object's silhouette, and
CLEAR_AREA = 0.0025     # of the picture (a local cell): what the whole picture shows at least of an object in clear
                        # view
MIN_GROUP = 5           # views that share a mask, or they are left out: of 5! = 120 permutations p can fall below 0.01
MARGINS = (0.0, 0.05, 0.1, 0.15)                # image sides that the hidden region is eroded by
WHOLE = "none"          # the occluder of a whole image
BEYOND_RETINOTOPY = ("ventral", "lateral", "parietal")
SIGNAL_R2 = 0.1         # variance of the whole test images' features that must be decoded, or the index says nothing
SIGNAL_Z = 4.0          # mean of the index's denominator in standard errors: the same
RIDGE_ALPHAS = np.logspace(-2, 5, 15)
FOLDS = 5
BOOTSTRAPS = 2000
PERMUTATIONS = 2000
_BOOTSTRAP, _PERMUTE, _FOLD = 0, 1, 2           # streams of randomness


# what a picture holds


@dataclass(frozen=True)
class Pictures:
    """n small pictures and, where they are annotated, their objects.

    images (n, SMALL, SMALL, 3) uint8. labels (n, SMALL, SMALL) int8: position of the object seen at each pixel, -1 for
    none; None without annotation. area: n arrays (objects,), the whole silhouette's share of the picture.
    kinds: n arrays (objects, K) of 0 and 1, which of K categories each object is of.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    area: tuple = ()
    kinds: tuple = ()

    def take(self, rows):
        """The pictures of some rows, in the order given."""
        if self.labels is None:
            return Pictures(self.images[rows])
        return Pictures(self.images[rows], self.labels[rows], tuple(self.area[k] for k in rows),
                        tuple(self.kinds[k] for k in rows))

    def covered(self, hidden, fill):
        """These pictures behind an occluder of one colour. hidden (SMALL, SMALL) bool; fill (3,) levels of 255."""
        images = self.images.copy()
        images[:, hidden] = fill
        if self.labels is None:
            return Pictures(images)
        return Pictures(images, np.where(hidden, np.int8(-1), self.labels), self.area, self.kinds)

    @cached_property
    def seen(self):
        """n arrays (objects,): share of each object's silhouette in view."""
        return [np.bincount(picture[picture >= 0], minlength=len(area))[:len(area)] / picture.size / area
                for picture, area in zip(self.labels, self.area)]

    @cached_property
    def clear(self):
        """n arrays (objects,) bool: in clear view, neither a speck nor for the most part behind another object."""
        return [(seen >= CLEAR_SHARE) & (seen * area >= CLEAR_AREA) for seen, area in zip(self.seen, self.area)]


def local(images):
    """(n, SMALL, SMALL, 3) uint8 → (n, GRID² · 3): luminance, red–green and blue–yellow of each cell, in [-1, 1]."""
    red, green, blue = np.moveaxis(_pooled(images.astype(np.float32) / 255, GRID), -1, 0)
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue - 0.5
    return np.stack([luminance, red - green, blue - (red + green) / 2], -1).reshape(len(images), -1)


def _pooled(maps, cells):
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
    colours = _pooled(local(pictures.images).reshape(-1, GRID, GRID, 3), COARSE).reshape(len(pictures.images), -1)
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
    contrast = np.sqrt(_pooled(np.stack(steps, -1), COARSE)).reshape(len(luminance), -1)
    if pictures.labels is None:
        return np.concatenate([context(pictures), contrast], 1)
    return np.concatenate([context(pictures), contrast, _competition(pictures)], 1)


def _competition(pictures):
    axis = (np.arange(SMALL) + 0.5) / SMALL - 0.5
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


class Ridge:
    """y ≈ mean + (x - mean) / sd · weights, with one penalty for all targets, chosen by FOLDS-fold error unless given.

    x (n, p), y (n, q): rows are independent stimuli. r2: held-out share of variance over all targets (NaN if alpha is
    given).
    """

    def __init__(self, x, y, alpha=None):
        sd = x.std(0)
        self.mean, self.scale = x.mean(0), np.where(sd > 1e-6, sd, np.inf)
        z, self.offset = (x - self.mean) / self.scale, y.mean(0)
        y = y - self.offset
        self.r2 = np.nan
        if alpha is None:
            fold = np.random.default_rng((0, _FOLD)).permutation(len(x)) % FOLDS
            losses = np.zeros(len(RIDGE_ALPHAS))
            for k in range(FOLDS):
                solve = _solver(z[fold != k], y[fold != k])
                losses += [((y[fold == k] - z[fold == k] @ solve(each)) ** 2).sum() for each in RIDGE_ALPHAS]
            alpha = float(RIDGE_ALPHAS[np.argmin(losses)])
            self.r2 = 1 - losses.min() / (y ** 2).sum()
        self.alpha = alpha
        self.weights = _solver(z, y)(alpha)

    def predict(self, x):
        """(n, q)."""
        return (x - self.mean) / self.scale @ self.weights + self.offset


def _solver(z, y):
    values, vectors = np.linalg.eigh(z.T @ z)
    projected = vectors.T @ (z.T @ y)
    return lambda alpha: vectors @ (projected / (np.maximum(values, 0) + alpha)[:, None])


# views, and what each hides beyond its context


@dataclass(frozen=True)
class Views:
    """v occluded views. rows (v,): their picture among the test pictures. masks (v,) str: which mask hides it.

    hidden (v, SMALL, SMALL) bool. shown (v, SMALL, SMALL, 3) uint8.
    """

    rows: np.ndarray
    masks: np.ndarray
    hidden: np.ndarray
    shown: np.ndarray

    def take(self, chosen):
        return Views(self.rows[chosen], self.masks[chosen], self.hidden[chosen], self.shown[chosen])


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

    views: Views
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
    shown = Pictures(views.shown) if test.labels is None else Pictures(
        views.shown, np.where(views.hidden, np.int8(-1), test.labels[views.rows]),
        tuple(test.area[k] for k in views.rows), tuple(test.kinds[k] for k in views.rows))
    gone, clear = np.zeros(len(views.rows), bool), [np.zeros(0, int)] * len(views.rows)
    raw = {"local": (local(train.images), local(test.images), hidden_cells)} | (extra or {})
    if test.labels is not None:
        hidden_wholly = [(seen <= SEEN) & (test.seen[row] > SEEN) for seen, row in zip(shown.seen, views.rows)]
        gone = np.array([each.any() for each in hidden_wholly])
        clear = [np.flatnonzero(each & test.clear[row]) for each, row in zip(hidden_wholly, views.rows)]
        raw["objects"] = (inventory(train), inventory(test), None)
    features, units, as_shown = {}, {}, {}
    of_shown = {"local": local(shown.images)} | ({} if test.labels is None else {"objects": inventory(shown)})
    for name, (fit, held, _) in raw.items():
        mean, sd = units[name] = np.stack([fit.mean(0), np.maximum(fit.std(0), 1e-6)])
        features[name] = ((fit - mean) / sd, (held - mean) / sd)
        if name in of_shown:
            as_shown[name] = (of_shown[name] - mean) / sd
    found = Material(views, features, gone, np.array([len(each) > 0 for each in clear]), {name: [] for name in raw},
                     {name: [] for name in raw}, appearance(train), appearance(shown), {},
                     {name: np.full((len(gone), each[0].shape[1]), np.nan, np.float32) for name, each in raw.items()},
                     units, as_shown)
    left, total = dict.fromkeys(raw, 0.0), dict.fromkeys(raw, 0.0)
    lost = {name: [] for name in raw}
    seen_context = context(shown)
    for name in np.unique(views.masks):
        rows = np.flatnonzero(views.masks == name)
        hidden = views.hidden[rows[0]]
        fill = np.median(views.shown[rows[0]][hidden], axis=0)
        fitted = context(train.covered(hidden, fill))
        for feature, (_, _, hides) in raw.items():
            depth = np.full(features[feature][0].shape[1], np.inf) if hides is None else hides(hidden)
            dims = np.flatnonzero(depth >= 0)
            if not len(dims):
                continue
            fit, held = features[feature][0][:, dims], features[feature][1][views.rows[rows]][:, dims]
            # A mask that a single view has cannot enter the index; the penalty of its control need not be its own.
            model = Ridge(fitted, fit, None if len(rows) >= MIN_GROUP else 100.0)
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
    return np.repeat(_depth(hidden, GRID).ravel(), 3)


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
    filled = _pooled(np.isin(test.labels[picture], objects)[None, ..., None].astype(float), GRID)[0, ..., 0] > 0.5
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


# a brain


@dataclass(frozen=True)
class Readout:
    """Linear decoders of one feature from one ROI: decoded = offset + (betas - mean) / scale · weights."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    offset: np.ndarray

    def __call__(self, betas):
        """(n, voxels) → (n, dims)."""
        return self.standardised(betas) @ self.weights + self.offset

    def standardised(self, betas):
        return (betas - self.mean) / self.scale


def readouts(betas, rows, features, alphas=regression.FIXED_ALPHAS):
    """{name: Readout} by utils.regression's ridge on single trials of whole images.

    betas (trials, voxels); rows (trials,): row of the features that each trial shows; features {name: (stimuli, d)}.
    Ridge is linear, so its answers to no deviation and to one sd in each voxel are its offset and weights.
    """
    mean, sd = betas.mean(0, dtype=np.float64), betas.std(0, dtype=np.float64)
    scale = np.where(sd > 0, sd, 1.0)
    probes = np.concatenate([mean[None], mean + np.diag(scale)])
    stimuli = len(next(iter(features.values())))
    decoder = regression.Decoder(betas, rows, n_stimuli=stimuli)
    found = {}
    for name, feature in features.items():
        answers = np.empty((len(probes), feature.shape[1]), np.float32)
        decoder.predict_to(feature.astype(np.float32), probes, answers, alphas=alphas)
        found[name] = Readout(mean, scale, (answers[1:] - answers[0]).astype(np.float64), answers[0].astype(np.float64))
    return found


def visible_only(material, betas, rows):
    """((v, voxels) standardised responses that an encoding model predicts of the views as shown, its held-out r²).

    Fitted on the training trials' averages, from `appearance` to voxels. betas (trials, voxels), rows (trials,): see
    `readouts`.
    """
    mean, sd = betas.mean(0), np.where(betas.std(0) > 0, betas.std(0), 1.0)
    seen = np.unique(rows)
    sums = np.zeros((len(material.train_appearance), betas.shape[1]))
    np.add.at(sums, rows, (betas - mean) / sd)
    averages = sums[seen] / np.bincount(rows)[seen][:, None]
    model = Ridge(material.train_appearance[seen], averages)
    return model.predict(material.view_appearance), model.r2


# the index


@dataclass
class Scores:
    """Per image of one ROI and feature. above, below (m,): numerators and denominators of the index.

    table: per axis (view rows' images (n,), (n, n) activity of every view on the innovation of every view).
    """

    above: np.ndarray
    below: np.ndarray
    tables: list = field(default_factory=list)

    @property
    def index(self):
        return self.above.sum() / self.below.sum()


def score(decoded, whole, visible, axes, images, count):
    """How far decoded activity goes along each view's innovation, as Scores over `count` images.

    decoded, visible (v, d), whole (v, d): decoded from the occluded viewing, from the visible-only model, and from the
    whole image of each view's scene. axes: Axis of each mask. images (v,): image of each view.
    """
    above, below, tables = np.zeros(count), np.zeros(count), []
    for axis in axes:
        at = np.ix_(axis.rows, axis.dims)
        table = (decoded[at] - visible[at]) @ axis.values.T
        here = images[axis.rows]
        np.add.at(above, here, np.diagonal(table))
        np.add.at(below, here, ((whole[at] - visible[at]) * axis.values).sum(1))
        tables.append((here, table))
    return Scores(above, below, tables)


def interval(above, below, seed=42, level=0.95):
    """(low, high) of a ratio of sums: percentile bootstrap over images. above, below (m,)."""
    draws = np.random.default_rng((seed, _BOOTSTRAP)).integers(len(above), size=(BOOTSTRAPS, len(above)))
    ratios = above[draws].sum(1) / below[draws].sum(1)
    return tuple(float(bound) for bound in np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2]))


def taking_part(material):
    """(m,) bool: the test pictures of which some view enters the index, by any feature."""
    there = np.zeros(len(next(iter(material.features.values()))[1]), bool)
    for axes in material.axes.values():
        for axis in axes:
            there[material.views.rows[axis.rows]] = True
    return there


def permuted(scores, scenes=None, seed=42, draws=PERMUTATIONS):
    """(observed t, (m,) t with each view's activity on the innovation of an image drawn behind the same mask).

    t: sum over images by the root of the sum of squares. Images are permuted uniformly, each its own partner as often
    as any other's (see utils.permutations), and the partner is the same behind all masks that hide both. scenes
    (count,) bool: the images that are permuted, default those in `scores`; ROIs that are given the same scenes and seed
    get the same permutations.
    """
    if scenes is None:
        scenes = np.zeros(len(scores.above), bool)
        for images, _ in scores.tables:
            scenes[images] = True
    position = np.cumsum(scenes) - 1
    orders = permutations.orders(int(scenes.sum()), draws, np.random.default_rng((seed, _PERMUTE)))
    sums = np.zeros((len(orders), len(scores.above)))
    for images, table in scores.tables:
        ascending = np.argsort(images)
        partner = permutations.induced(orders, position[images[ascending]])
        # An image may be behind several masks, but behind each once.
        sums[:, images[ascending]] += table[ascending, ascending[partner]]
    return _t(scores.above), _t(sums)


def _t(per_image):
    return per_image.sum(-1) / np.sqrt((per_image ** 2).sum(-1) + 1e-30)


def p_values(observed, null):
    """{ROI: (p, p corrected over the ROIs by the largest t of each permutation)}, one-sided (see utils.permutations).

    observed {ROI: t}, null {ROI: (m,)}.
    """
    largest = np.max(list(null.values()), axis=0)
    return {roi: tuple(permutations.p_value(t, of) for of in (null[roi], largest)) for roi, t in observed.items()}


def feature_of(roi):
    """The feature by which a ROI is judged: local colours in areas with retinotopy, the objects beyond them."""
    return "objects" if roi in BEYOND_RETINOTOPY else "local"


def explained(decoded, truth):
    """Share of the variance of truth (n, d) about its means that decoded (n, d) explains, over all dims."""
    return float(1 - ((decoded - truth) ** 2).sum() / ((truth - truth.mean(0)) ** 2).sum())


def enough_signal(decoded_r2, below):
    """Whether the feature is decoded from whole images at all, and the index's denominator stands clear of 0."""
    error = below.std(ddof=1) / np.sqrt(len(below))
    return bool(decoded_r2 >= SIGNAL_R2 and below.mean() >= SIGNAL_Z * error)


def guessed(material, feature, views, invented, seed=42):
    """Share of the innovation in a guess without a brain: (value, low, high), 1 for the truth, 0 for the context's.

    views (k,): the views for which `invented` (k, d) gives the feature, standardised as material's. It is what a
    generator makes up behind the occluder; what it gets right beyond the context model, an index could not tell from
    completion.
    """
    count = len(material.features[feature][1])
    above, below, at = np.zeros(count), np.zeros(count), {int(view): row for row, view in enumerate(views)}
    for axis in material.axes[feature]:
        for row, values in zip(axis.rows, axis.values):
            if int(row) in at:
                image, guess = material.views.rows[row], material.guess[feature][row, axis.dims]
                above[image] += (invented[at[int(row)], axis.dims] - guess) @ values
                below[image] += (material.features[feature][1][image, axis.dims] - guess) @ values
    there = below != 0
    return float(above.sum() / below.sum()), *interval(above[there], below[there], seed)


def row_correlations(a, b):
    """(n, m) correlations of the rows of a (n, d) with those of b (m, d)."""
    a, b = (each - each.mean(1, keepdims=True) for each in (a, b))
    return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
