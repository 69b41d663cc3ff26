"""Identification: can the original be told from the others by its reconstruction? (Takagi & Nishimoto 2023)

docs/algorithms.md#identification in code.

r[i, j] is the Pearson correlation of original i's features with those of reconstruction j, averaged over j's samples.
The accuracy of image i is the share of the other images j with r[i, j] < r[i, i]; ties count one half; chance is 0.5.
"""
import numpy as np

from utils import permutations
from utils.errors import Problem
from utils.storage import image_features, provenance, writing

CHANCE = 0.5
BLOCK_VALUES = 1 << 25  # values of reconstructions held at once: 128 MiB of float32
BLOCK_DIMS = 8192  # dims multiplied at once in float64
DECIMALS = 9  # of r: equal features must tie whatever order a matrix product adds them in
BOOTSTRAPS = 10_000
PERMUTATIONS = 10_000
_BOOTSTRAP, _PERMUTE = 0, 1  # streams of randomness


class Features:
    """One feature of a run's originals and reconstructions, read as they are needed.

    images: (n,) indices of the test images, ascending. samples: reconstructions of each. Raises Problem for an original
    that is missing, images with different numbers of samples, more samples asked than found, fewer than two images.
    """

    def __init__(self, folder, feature, made_by, samples=None):
        self._features = image_features.ImageFeatures(folder, feature)
        found = image_features.by_image(self._features.pictures)
        if not found:
            raise Problem(f"{folder} holds no {feature} features", f"run {made_by}")
        without = [image for image, whats in found.items() if "org" not in whats]
        if without:
            raise Problem(f"{folder} lacks {feature} features of {len(without)} originals (the first is image "
                          f"{without[0]})", f"run {made_by}")
        self._repeats = {image: [what for what in whats if what != "org"] for image, whats in found.items()}
        counts = {image: len(each) for image, each in self._repeats.items()}
        fewest, most = min(counts, key=counts.get), max(counts, key=counts.get)
        if samples is None and counts[fewest] != counts[most]:
            raise Problem(f"image {most} has {counts[most]} samples of {feature} but image {fewest} has "
                          f"{counts[fewest]}", f"run {made_by}, or compare fewer with --n_samples")
        self.samples = counts[fewest] if samples is None else samples
        if self.samples > counts[fewest]:
            raise Problem(f"{self.samples} samples asked, but image {fewest} has {counts[fewest]}",
                          f"ask for fewer, or make them and run {made_by}")
        if self.samples < 1:
            raise Problem(f"image {fewest} has no reconstruction with {feature} features", f"run {made_by}")
        if len(found) < 2:
            raise Problem("a single test image cannot be told from others", "reconstruct at least two")
        self.images = np.array(list(found))

    def original(self, position):
        """(dims,) features of the original at a position in `images`."""
        return self._features[int(self.images[position]), "org"]

    def reconstructions(self, position):
        """(samples, dims)."""
        image = int(self.images[position])
        return np.stack([self._features[image, repeat] for repeat in self._repeats[image][:self.samples]])


def _centred(vectors, what):
    """(k, dims) → vectors minus their means, float64, and (k,) their norms. Raises Problem where r is undefined."""
    centred = np.array(vectors, np.float64)
    dims = centred.shape[1]
    means = np.add.reduce(centred, axis=1) / dims
    if not np.isfinite(means).all():
        raise Problem(f"{what} holds NaN or infinite features", "delete its features and extract them again")
    centred -= means[:, None]
    norms = np.sqrt(np.einsum("kd,kd->k", centred, centred))
    if (norms <= 1e-10 * np.sqrt(dims) * np.abs(means)).any():
        raise Problem(f"{what} has a constant feature, which correlates with nothing",
                      "look at the picture: a uniform one cannot be compared")
    return centred, norms


def standardised(vectors, what):
    """(k, dims) → (dims,) float32: the mean of the vectors, each minus its mean and of length 1. See `products`."""
    centred, norms = _centred(vectors, what)
    return ((1 / norms / len(norms)) @ centred).astype(np.float32)


def products(originals, reconstructions):
    """(n, m) float64: r of n originals with m reconstructions, (·, dims) both `standardised`.

    r is linear in the standardised samples, so that their average gives the average r.
    """
    dims = originals.shape[1]
    r = np.zeros((len(originals), len(reconstructions)))
    for low in range(0, dims, BLOCK_DIMS):
        some = slice(low, low + BLOCK_DIMS)
        r += originals[:, some].astype(np.float64) @ reconstructions[:, some].astype(np.float64).T
    return r


def correlations(images, original, reconstructions, progress=lambda done: None):
    """(n, n) float64: r[i, j] of original i with reconstruction j, averaged over j's samples.

    images: (n,) what errors call each. original(i) → (dims,); reconstructions(j) → (samples, dims). Memory: n × dims
    float32, and ~0.3 GB. progress: called with the number of images read. Raises Problem for constant, non-finite or
    unlike features.
    """
    count = len(images)
    for i in range(count):
        vector = original(i).reshape(1, -1)
        if i == 0:
            dims = vector.shape[1]
            originals = np.empty((count, dims), np.float32)
        _must_fit(vector, dims, f"original {images[i]}")
        originals[i] = standardised(vector, f"original {images[i]}")
        progress(1)
    r = np.zeros((count, count))
    block = max(1, BLOCK_VALUES // dims)
    for start in range(0, count, block):
        stop = min(start + block, count)
        averages = np.empty((stop - start, dims), np.float32)
        for j in range(start, stop):
            vectors = reconstructions(j)
            _must_fit(vectors, dims, f"reconstruction {images[j]}")
            averages[j - start] = standardised(vectors, f"reconstruction {images[j]}")
            progress(1)
        r[:, start:stop] = products(originals, averages)
    return np.round(r, DECIMALS)


def _must_fit(vectors, dims, what):
    if vectors.shape[1] != dims:
        raise Problem(f"{what} has {vectors.shape[1]} dims, others {dims}", "extract them again with --overwrite")


def accuracy(r):
    """(n,) share of the other images whose reconstruction correlates less with original i than its own; ties ½."""
    own = np.diagonal(r)[:, None]
    others = len(r) - 1
    return ((r < own).sum(axis=1) + ((r == own).sum(axis=1) - 1) / 2) / others


def pairwise_accuracy(r):
    """(n, n) what the accuracy of original i would be if reconstruction j were its own."""
    less_twice_and_ties = [np.searchsorted(row, values, "left") + np.searchsorted(row, values, "right")
                           for row, values in zip(np.sort(r, axis=1), r)]
    return (np.array(less_twice_and_ties) - 1) / 2 / (len(r) - 1)  # −1: a reconstruction ties with itself


def interval(scores, seed=42, level=0.95):
    """(low, high) of the mean of `scores` (n,): percentile bootstrap over images."""
    random = np.random.default_rng((seed, _BOOTSTRAP))
    n, rounds = len(scores), 10  # in rounds, to bound memory
    means = np.concatenate([scores[random.integers(n, size=(BOOTSTRAPS // rounds, n))].mean(axis=1)
                            for _ in range(rounds)])
    return tuple(np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))


def permutation_p(table, seed=42):
    """One-sided p of the mean accuracy, were it arbitrary which reconstruction belongs to which original.

    table (n, n): see `pairwise_accuracy`. All permutations where there are no more than PERMUTATIONS, else so many; see
    utils.permutations.
    """
    n = len(table)
    orders = permutations.orders(n, PERMUTATIONS, np.random.default_rng((seed, _PERMUTE)))
    rows = np.arange(n)
    return permutations.p_value(np.trace(table) / n, [table[rows, order].mean() for order in orders])


def summary(r, seed=42):
    """What identification says of a run, for its record: mean accuracy, its 95% interval over images, p, chance."""
    return summary_of(pairwise_accuracy(r), seed)


def summary_of(table, seed=42):
    """`summary`, of accuracies as `pairwise_accuracy` gives them, (n, n)."""
    scores = np.diagonal(table)
    low, high = interval(scores, seed)
    return {"accuracy": float(scores.mean()), "interval": [float(low), float(high)], "chance": CHANCE,
            "p": permutation_p(table, seed), "images": len(table), "seed": seed}


def sentence(subject, run, feature, found):
    """One line for a reader. found: see `summary`, with `samples`."""
    p = f"p = {found['p']:.4f}" if found["p"] >= 0.0001 else "p < 0.0001"
    low, high = found["interval"]
    return (f"{subject} {run} {feature}: identification {found['accuracy']:.3f} [{low:.2f}, {high:.2f}], {p}, "
            f"chance {CHANCE} ({found['images']} images × {found['samples']} samples)")


def identify(folder, feature, made_by, samples=None, seed=42, progress=lambda done: None):
    """(features, r, what was found) of a run's identification folder; see `Features` and `summary`."""
    features = Features(folder, feature, made_by, samples)
    r = correlations(features.images, features.original, features.reconstructions, progress)
    return features, r, summary(r, seed) | {"samples": features.samples}


def write_scores(path, images, r, record):
    """CSV, a row per image: imgidx, mean_corr (r with its own reconstructions), accuracy; and the JSON beside it."""
    rows = [f"{image},{own:.6f},{score:.6f}\n" for image, own, score in zip(images, np.diagonal(r), accuracy(r))]
    with writing.locked(path), writing.atomic(path) as temporary:
        temporary.write_text("imgidx,mean_corr,accuracy\n" + "".join(rows), encoding="utf-8", newline="\n")
        provenance.finish(path, record, temporary)
