"""How well predicted features fit the true ones: Pearson r in the two ways that papers print, gathered piece by piece.

*Profile r*: of one dim, over test images. Which images have more of that feature? No mean over images helps.
*Pattern r*: of one image, over dims. Dims differ in their means, so a prediction that knows nothing but those means has
a high pattern r already; it is what the published ridge.py prints (docs/differences.md#accuracy). The names are those
of Kamitani Lab's bdpy.
"""
import numpy as np


class Correlations:
    """Both correlations of predictions (images, dims) with true features, whose parts come in any order.

    n_images, n_dims : of the whole. Every pair of an image and a dim has to be added exactly once.

    Attributes
    ----------
    profile : (n_dims,) float64, r over images. NaN where either side does not vary.
    pattern : (n_images,) float64, r over dims. NaN where either side does not vary.
    """

    def __init__(self, n_images, n_dims):
        self._dims, self._images = _Moments(n_dims), _Moments(n_images)

    def add(self, images, dims, predicted, true):
        """Add a part. images, dims: a slice or indices of the whole; predicted, true: (images, dims) of the part."""
        self._dims.add(dims, predicted.T, true.T)
        self._images.add(images, predicted, true)

    @property
    def profile(self):
        return self._dims.pearson()

    @property
    def pattern(self):
        return self._images.pearson()


class _Moments:
    """Sums over pairs of values (predicted, true), for each of `n` series.

    Each series is shifted by its first pair: one that does not vary then has sums of exactly zero, and little is lost
    where the mean is far from zero.
    """

    def __init__(self, n):
        self.count = np.zeros(n, np.int64)
        self.shift, self.total, self.squares = np.zeros((3, 2, n))
        self.products = np.zeros(n)

    def add(self, series, predicted, true):
        """series: a slice or indices; predicted, true: (series, values)."""
        first = self.count[series] == 0
        moved = []
        for side, values in enumerate((predicted, true)):
            values = np.asarray(values, np.float64)
            shift = np.where(first, values[:, 0], self.shift[side, series])
            self.shift[side, series] = shift
            moved.append(values - shift[:, None])
            self.total[side, series] += moved[side].sum(1)
            self.squares[side, series] += np.einsum("sv,sv->s", moved[side], moved[side])
        self.products[series] += np.einsum("sv,sv->s", *moved)
        self.count[series] += moved[0].shape[1]

    def pearson(self):
        """r of each series, NaN where either side does not vary beyond rounding."""
        count = np.maximum(self.count, 1)
        spread = self.squares - self.total ** 2 / count
        varies = (spread > 1e-12 * self.squares).all(0)
        covariance = self.products - self.total.prod(0) / count
        return np.divide(covariance, np.sqrt(spread.clip(0).prod(0)), out=np.full(len(count), np.nan), where=varies)


def mean(values):
    """The mean of what is defined, as a float; None if nothing is, or for None."""
    if values is None or not np.isfinite(values).any():
        return None
    return float(np.nanmean(values))


def sentence(profile, pattern):
    """The two mean test correlations by name (see above), each a float, or None where it is not defined."""
    named = (("profile", profile, "of a dim over images"), ("pattern", pattern, "of an image over dims"))
    undefined = "not defined, as nothing varies"
    return ", ".join(f"{name} r = {undefined if r is None else format(r, '.3f')} ({how})" for name, r, how in named)
