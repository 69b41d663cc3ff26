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

import numpy as np

from utils import permutations

MARGINS = (0.0, 0.05, 0.1, 0.15)                # image sides that the hidden region is eroded by
WHOLE = "none"          # the occluder of a whole image
BEYOND_RETINOTOPY = ("ventral", "lateral", "parietal")
SIGNAL_R2 = 0.1         # variance of the whole test images' features that must be decoded, or the index says nothing
SIGNAL_Z = 4.0          # mean of the index's denominator in standard errors: the same
BOOTSTRAPS = 2000
PERMUTATIONS = 2000
BOOTSTRAP, PERMUTE = 0, 1                       # streams of randomness


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
    draws = np.random.default_rng((seed, BOOTSTRAP)).integers(len(above), size=(BOOTSTRAPS, len(above)))
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
    orders = permutations.orders(int(scenes.sum()), draws, np.random.default_rng((seed, PERMUTE)))
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
