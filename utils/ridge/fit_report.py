"""What a fit found, per dim of one target."""
from dataclasses import dataclass

import numpy as np

from utils.ridge import correlation, numerics


@dataclass
class Report:
    """What a fit found, per dim of one target.

    Attributes
    ----------
    alphas : (dims,) float64, the chosen alpha.
    cv_scores : (dims,) float64, minus the mean squared error over held-out trials, averaged over folds, of the
        chosen alpha (feature units squared; himalaya's `l2_neg_loss`). NaN where a dim was not scored (`--stream`
        with a shared alpha).
    cv_r2 : (dims,) float64, the same as a share of the target's variance over training trials: 1 - mse / variance.
    test_correlation : (dims,) float64, each dim's r over test stimuli (`correlation.Correlations.profile`), or None
        without test features. NaN where either side is constant.
    test_pattern_correlation : (test stimuli,) float64, each stimulus's r over dims (`.pattern`), or None likewise.
    grid : the alphas tried.
    at_low_edge, at_high_edge : dims (constant ones left out) whose winner is the grid's smallest / largest alpha.
    constant_targets : dims that do not vary over training stimuli; they are predicted by their mean ("fixed").
    constant_voxels : voxels that do not vary over training trials; they carry no weight.
    mode, n_trials, n_stimuli, n_voxels, n_folds : of the fit.
    """

    alphas: np.ndarray
    cv_scores: np.ndarray
    cv_r2: np.ndarray
    test_correlation: np.ndarray | None
    test_pattern_correlation: np.ndarray | None
    grid: tuple
    at_low_edge: int
    at_high_edge: int
    constant_targets: int
    constant_voxels: int
    mode: str
    n_trials: int
    n_stimuli: int
    n_voxels: int
    n_folds: int

    @property
    def at_edge(self):
        """Dims whose winner lies at either edge of the grid."""
        return self.at_low_edge + self.at_high_edge

    def summary(self):
        """Totals as a dict of plain Python numbers, ready for JSON (None where there is no number)."""
        counts = {f"{alpha:g}": int((self.alphas == alpha).sum()) for alpha in self.grid}
        return {
            "mode": self.mode, "n_trials": self.n_trials, "n_stimuli": self.n_stimuli,
            "n_voxels": self.n_voxels, "n_folds": self.n_folds, "dims": int(self.alphas.size),
            "constant_voxels": self.constant_voxels, "constant_targets": self.constant_targets,
            "alphas": counts, "at_low_edge": self.at_low_edge, "at_high_edge": self.at_high_edge,
            "cv_score": correlation.mean(self.cv_scores), "cv_r2": correlation.mean(self.cv_r2),
            "test_correlation": correlation.mean(self.test_correlation),
            "test_pattern_correlation": correlation.mean(self.test_pattern_correlation),
        }


class Tally:
    """Collects a Report block by block."""

    def __init__(self, decoder, grid, dims, with_truth):
        self.decoder, self.grid = decoder, grid
        self.alphas, self.scores, self.r2 = np.empty(dims), np.full(dims, np.nan), np.full(dims, np.nan)
        self.correlations = correlation.Correlations(len(decoder.test), dims) if with_truth else None
        self.constant = self.low = self.high = 0

    def _scored(self, losses, mean, variance):
        losses, mean, variance = (t.cpu().numpy() for t in (losses, mean, variance))
        constant = variance <= (numerics.EPS32 * np.abs(mean)) ** 2
        if self.decoder.mode == "paper":
            # himalaya's slope, which lets the larger of equal alphas win.
            return losses - 1e-10 * np.log(self.grid)[:, None], constant, variance
        return losses, constant, variance

    def _record(self, dims, index, losses, constant, variance):
        best = np.take_along_axis(losses, index[None], 0)[0]
        self.alphas[dims], self.scores[dims] = self.grid[index], -best
        self.r2[dims] = 1 - best / np.where(constant, np.nan, variance)
        self.constant += int(constant.sum())
        if len(self.grid) > 1:
            self.low += int(((index == 0) & ~constant).sum())
            self.high += int(((index == len(self.grid) - 1) & ~constant).sum())

    def choose(self, block, losses, mean, variance):
        """Record a block; the index (dims,) of each dim's alpha. Of equal alphas the largest wins."""
        losses, constant, variance = self._scored(losses, mean, variance)
        index = len(self.grid) - 1 - np.argmin(losses[::-1], axis=0)
        self._record(block, index, losses, constant, variance)
        return index

    def share(self, probes, losses, mean, variance):
        """Record the one alpha with the best mean R² over the probed dims."""
        losses, constant, variance = self._scored(losses, mean, variance)
        relative = losses[:, ~constant] / variance[~constant]
        best = len(self.grid) - 1 - int(np.argmin(relative.mean(1)[::-1])) if relative.size else len(self.grid) - 1
        self._record(probes, np.full(len(probes), best), losses, constant, variance)
        self.alphas[:] = self.grid[best]

    def correlate(self, block, predictions, truth):
        """Record how a block of dims fits the true features."""
        self.correlations.add(slice(None), block, predictions, truth)

    def report(self):
        d, found = self.decoder, self.correlations
        profile, pattern = (None, None) if found is None else (found.profile, found.pattern)
        return Report(self.alphas, self.scores, self.r2, profile, pattern, tuple(float(a) for a in self.grid), self.low,
                      self.high, self.constant, d.constant_voxels, d.mode, d.n_trials, d.n_stimuli,
                      d.n_voxels, d.n_folds)
