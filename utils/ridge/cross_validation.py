"""Folds, and how every penalty is scored on one for every target without a prediction per penalty."""
import numpy as np

from utils import lazy
from utils.ridge import numerics
from utils.ridge.products import product

torch = lazy.module("torch")

N_FOLDS = 5
# Seed of the grouped folds: a constant, not `--seed`, so that alphas do not change with an image's noise.
_FOLD_SEED = 0
# Pieces of equal count (most of them, least eigenvalues in one) that the spectrum is cut into before neighbours are
# merged, and what one more basis costs besides its product, in units of one eigenvector's (inner products and copies;
# measured on a CPU).
_PIECES, _PIECE_RANK = 24, 20
_BASIS_OVERHEAD = 100
# The Neumann series is used where its ratio is at most this (three terms then reach BASIS_TOLERANCE).
_SERIES_RATIO = 1e-2


def grouped_folds(stimulus, n_folds):
    """Validation trials of each fold; all trials of a stimulus fall in one fold.

    Otherwise: docs/published_defects.md#folds-that-share-a-stimulus.

    Stimuli are shuffled by a fixed seed and dealt out in order of their repeats, so folds have equal numbers of
    stimuli and, nearly, of trials. Which fold a stimulus falls in does not depend on the order of trials."""
    present, counts = np.unique(stimulus, return_counts=True)
    if n_folds < 2 or len(present) < n_folds:
        raise ValueError(f"{len(present)} training stimuli for {n_folds} folds — give at least two folds, and at "
                         "least as many stimuli as folds")
    shuffled = np.random.default_rng(_FOLD_SEED).permutation(len(present))
    dealt = shuffled[np.argsort(-counts[shuffled], kind="stable")]
    fold_of = np.empty(len(present), dtype=np.int64)
    fold_of[dealt] = np.arange(len(present)) % n_folds
    fold = fold_of[np.searchsorted(present, stimulus)]
    return [np.flatnonzero(fold == k) for k in range(n_folds)]


def contiguous_folds(n_trials, n_folds):
    """Validation trials of scikit-learn's KFold without shuffling: contiguous, the first ones longer by one."""
    if n_folds < 2 or n_trials < n_folds:
        raise ValueError(f"{n_trials} training trials for {n_folds} folds — give at least two folds, and at least as "
                         "many trials as folds")
    return np.array_split(np.arange(n_trials), n_folds)


class Spectrum:
    """A fold in the eigenbasis of its training voxels: X = U diag(s) V', spectrum l = s².

    Held-out predictions of alpha are  right' diag(l / (l + alpha)) U'SY,  with right = (X_val V / s)' (rank,
    validation trials), kept in tiles of trials. Both factors are of moderate size whatever the spectrum."""

    def needs_double(self, smallest_alpha):
        """Whether single precision could spoil a held-out prediction by 1e-4 of the target's sd."""
        if self.dtype == torch.float64:
            return True
        shrinkage = (self.values / (self.values + smallest_alpha)).float()[:, None]
        leverage = max(float((tile * shrinkage).square().sum(0).max()) for tile in self.right) ** 0.5
        return numerics.EPS32 * self.n_training ** 0.5 * leverage > 1e-4

    def alpha_basis(self, alphas):
        """A basis of the curves l / (l + alpha).

        Returns a list of (first, last + 1, scale), functions that are zero outside a range of the spectrum; the
        coefficients in it of one alpha's curve, the anchor, (bases,); and those of each alpha's difference from the
        anchor, (n_alphas, bases), float64."""
        alphas = torch.from_numpy(alphas).to(self.values)
        curves = self.values / (self.values + alphas[:, None])
        anchor = curves[len(alphas) // 2]
        rows = torch.cat([anchor[None], curves - anchor])
        basis, coefficients = [], []
        for start, stop in self._segments(rows):
            scales, weights = numerics.low_rank(rows[:, start:stop])
            basis += [(start, stop, scale) for scale in scales]
            coefficients += list(weights.T)
        coefficients = torch.stack(coefficients, 1)
        return basis, coefficients[0], coefficients[1:]

    @staticmethod
    def _segments(rows):
        """Cut the spectrum so that the bases' products cost least: dynamic programming over a few cuts."""
        rank = rows.shape[1]
        cuts = np.unique(np.linspace(0, rank, min(_PIECES, 1 + rank // _PIECE_RANK) + 1).astype(int))
        cost, before = [0.0] + [np.inf] * (len(cuts) - 1), [0] * len(cuts)
        for j in range(1, len(cuts)):
            for i in range(j):
                # Smooth curves: some of their points, both ends among them, show how dependent they are.
                points = np.unique(np.linspace(cuts[i], cuts[j] - 1, 48).astype(int))
                n_bases = len(numerics.low_rank(rows[:, torch.from_numpy(points)])[0])
                total = cost[i] + n_bases * (cuts[j] - cuts[i] + _BASIS_OVERHEAD)
                if total < cost[j]:
                    cost[j], before[j] = total, i
        segments, j = [], len(cuts) - 1
        while j > 0:
            segments.append((int(cuts[before[j]]), int(cuts[j])))
            j = before[j]
        return segments[::-1]

    def lefts(self, targets, level, basis, products):
        """Factors (dims, rank of the range) of the bases P_j of targets (dims, n_stimuli); `rights` has the others."""
        projected = self._projected(targets, level, products)
        return [projected[:, start:stop] * scale.to(self.dtype) for start, stop, scale in basis]

    def rights(self, basis):
        """For each tile of validation trials, the other factors (rank of the range, trials)."""
        for tile in self.right:
            yield [tile[start:stop] for start, stop, _ in basis]


class VoxelFold:
    """What folds with at least as many trials as voxels share: training X'SY as all trials' minus the held-out."""

    def _take_sums(self, decoder, k, mean):
        self.mean = mean
        self.stimuli, self.sums = decoder.stimulus_sums(decoder.validation_trials[k], self.dtype)
        self.stimuli = torch.from_numpy(self.stimuli).to(decoder.device)
        self.repeats = torch.from_numpy(np.bincount(decoder.stimulus[decoder.validation_trials[k]])).to(self.sums)
        self.repeats = self.repeats[self.stimuli]

    def held_out_products(self, targets):
        """(SY)'X over validation trials, (dims, voxels)."""
        return product(targets[:, self.stimuli], self.sums)

    def _training_products(self, targets, level, products):
        """(SY)'X over training trials (dims, voxels), centred in "fixed" mode, `level` (dims,) added to Y in "paper"
        mode; from the products of centred targets with uncentred voxels."""
        if level is None:
            # Targets are centred over all trials: the training ones sum to minus the held-out ones.
            return products + (targets[:, self.stimuli] @ self.repeats)[:, None] * self.mean.to(self.dtype)
        # So are voxels.
        return products - level[:, None] * self.sums.sum(0)


class EigenFold(VoxelFold, Spectrum):
    """Eigenvectors of the voxels' Gram matrix."""

    def __init__(self, decoder, k, double):
        validation = decoder.validation_trials[k]
        self.n_training = decoder.n_trials - len(validation)
        mean, gram = decoder.training_gram(k)
        decoder.training_grams[k] = None
        self.values, vectors = numerics.eigen(gram)
        del gram
        vectors /= self.values.sqrt()
        # Products in single precision lose eps × the condition of the singular values.
        condition = float(self.values[-1] / self.values[0]) ** 0.5
        self.dtype = torch.float64 if double or numerics.EPS32 * condition > 3e-5 else torch.float32
        offset, self.vectors = (mean @ vectors).to(self.dtype), vectors.to(self.dtype)
        right = [product(v.to(self.dtype), self.vectors) - offset for _, v in decoder.chunks(validation)]
        self.right = numerics.tiles(torch.cat(right).T, decoder.tile_trials())
        self._take_sums(decoder, k, mean)

    def _projected(self, targets, level, products):
        """(U'SY)', (dims, rank)."""
        return product(self._training_products(targets, level, products), self.vectors)


class DualFold(Spectrum):
    """Eigenvectors of the trials' kernel XX', for more voxels than trials."""

    def __init__(self, decoder, k, double):
        held_out = np.zeros(decoder.n_trials, dtype=bool)
        held_out[decoder.validation_trials[k]] = True
        training, validation = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        self.n_training = len(training)
        self.dtype = torch.float64 if double else torch.float32
        train, held = (torch.from_numpy(rows).to(decoder.device) for rows in (training, validation))
        kernel, cross = decoder.gram[train][:, train], decoder.gram[held][:, train]
        if decoder.mode == "fixed":
            column = kernel.mean(0)
            cross = cross - column - cross.mean(1, keepdim=True) + column.mean()
            kernel = kernel - column - column[:, None] + column.mean()
        self.values, vectors = numerics.eigen(kernel)
        self.right = numerics.tiles((cross @ (vectors / self.values)).T.to(self.dtype), decoder.tile_trials())
        stimuli, position = np.unique(decoder.stimulus[training], return_inverse=True)
        left = torch.zeros(len(stimuli), vectors.shape[1], dtype=torch.float64, device=decoder.device)
        left.index_add_(0, torch.from_numpy(position).to(decoder.device), vectors)
        self.stimuli, self.left = torch.from_numpy(stimuli).to(decoder.device), left.to(self.dtype)

    def held_out_products(self, targets):
        """None are shared: targets are projected on the training trials' eigenvectors directly."""
        return 0

    def _projected(self, targets, level, products):
        """(U'SY)', (dims, rank)."""
        projected = product(targets[:, self.stimuli], self.left)
        return projected if level is None else projected + level[:, None] * self.left.sum(0)


class SeriesFold(VoxelFold):
    """A fold whose alphas all lie far below its spectrum: no eigenvectors, one Cholesky factor.

    With a = the middle of the alphas and H = X_val (G + a)^-1, the bases are P_j = H (G + a)^-j X'SY, and the
    coefficients (a - alpha)^j."""

    @classmethod
    def build(cls, decoder, k, alphas):
        """The fold, or None where the series would need more than three terms or single precision would not do."""
        centre = (alphas[0] + alphas[-1]) / 2
        radius = (alphas[-1] - alphas[0]) / 2
        # The smallest eigenvalue is at most the mean one, which is at most the number of trials.
        if radius > _SERIES_RATIO * decoder.n_trials:
            return None
        mean, gram = decoder.training_gram(k)
        factor, smallest = numerics.cholesky(gram, centre)
        if factor is None or radius > _SERIES_RATIO * smallest \
                or numerics.EPS32 * (float(gram.trace()) / smallest) ** 0.5 > 1e-4:
            return None
        fold = cls()
        fold.dtype = torch.float32
        # The first two terms always: their ratio tells the smallest of alphas apart.
        n_terms = 1 if radius == 0 else max(2,
                                            int(np.ceil(np.log(numerics.BASIS_TOLERANCE) / np.log(radius / smallest))))
        # With G + a = LL' both steps are products with L^-1, whose condition is the square root of G's: single
        # precision serves.
        inverse = numerics.inverse_of_lower(factor).float()
        rows = torch.cat([(v - mean).float() for _, v in decoder.chunks(decoder.validation_trials[k])])
        right = []
        for _ in range(n_terms):
            rows = product(product(rows, inverse.T), inverse)
            right.append(rows.T)
        fold.centre, fold.n_terms = centre, n_terms
        fold.right = list(zip(*(numerics.tiles(rows, decoder.tile_trials()) for rows in right)))
        fold._take_sums(decoder, k, mean)
        return fold

    def needs_double(self, smallest_alpha):
        """Never: `build` refused such spectra."""
        return False

    def alpha_basis(self, alphas):
        """No functions of the spectrum; the anchor a itself, and differences (n_alphas, bases)
        = (a - alpha)^j, j > 0."""
        offset = torch.from_numpy(self.centre - alphas).to(self.mean)
        powers = offset[:, None] ** torch.arange(self.n_terms, device=offset.device)
        anchor = torch.zeros_like(powers[0])
        anchor[0], powers[:, 0] = 1, 0
        return None, anchor, powers

    def lefts(self, targets, level, basis, products):
        """Factors (dims, voxels) of the bases P_j of targets (dims, n_stimuli): one and the same."""
        return [self._training_products(targets, level, products)] * self.n_terms

    def rights(self, basis):
        """For each tile of validation trials, the other factors (voxels, trials): H (G + a)^-j."""
        return self.right
