"""Ridge regression of a few dims on a few stimuli: the model of what a visible context predicts."""
import numpy as np

RIDGE_ALPHAS = np.logspace(-2, 5, 15)
FOLDS = 5
_FOLD = 2                                       # likewise


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
