"""Ridge regression from voxels to image features, for any number of targets.

The voxels are factorised once per cross-validation fold and reused by every target; targets are read in
blocks of dims, so memory does not grow with them; a stimulus's features are used once however many trials
repeat it. docs/algorithms.md#ridge fixes the two modes, "fixed" and "paper".

Notation. X (trials, voxels): standardised voxels. Y (stimuli, dims): features, each stimulus once.
S (trials, stimuli): 1 where a trial shows a stimulus, so that the trials' targets are S Y and X'SY needs only
the per-stimulus sums of X. G = X'X.

How every alpha is scored for every target without one prediction per alpha. On a fold, the held-out
predictions of alpha are  P(alpha) = sum_j c_j(alpha) P_j  with a few "bases" P_j shared by all alphas:

* all alphas far below G's smallest eigenvalue (the paper's 1e-6 … 1 on thousands of trials): one Cholesky
  factor of G + a and the Neumann series (G + alpha)^-1 = sum_j (a - alpha)^j (G + a)^-(j+1);
* otherwise: G's eigenvectors, and a low-rank basis of the shrinkage curves l / (l + alpha). The spectrum is cut
  into segments, on each of which the curves of all alphas are nearly dependent: ten alphas over six decades cost
  as much as three or four.

The loss of alpha is then a quadratic in c(alpha), so the *differences* between alphas are computed, never
obtained by subtracting two large sums: alphas are told apart far below single precision.

A block of targets is held transposed, (dims, stimuli), so that each dim's values lie together in memory.
"""
from dataclasses import dataclass

import numpy as np

from utils import correlation, lazy
from utils.products import product

torch = lazy.module("torch")
scipy = lazy.module("scipy")

#: `--mode fixed`: 1 … 1e6, log-spaced.
FIXED_ALPHAS = tuple(float(a) for a in np.logspace(0, 6, 10))

_LATENT_ALPHAS = tuple(10.0 ** e for e in range(-6, 1))
_WIDE_ALPHAS = (1e4, 2e4, 4e4)

# Seed of the grouped folds: a constant, not `--seed`, so that alphas do not change with an image's noise.
_FOLD_SEED = 0

# Largest error of a held-out prediction, as a share of the target's norm, that the alpha basis may leave. Losses are
# then within 3e-7 of themselves, about what single-precision products leave (measured).
_BASIS_TOLERANCE = 1e-5

# Pieces of equal count (most of them, least eigenvalues in one) that the spectrum is cut into before neighbours are
# merged, and what one more basis costs besides its product, in units of one eigenvector's (inner products and copies;
# measured on a CPU).
_PIECES, _PIECE_RANK = 24, 20
_BASIS_OVERHEAD = 100

# Held-out trials of one matrix product on a CPU, and the bytes that the bases of one block of dims may fill for so many
# trials: what is multiplied out is used before it leaves the processor's cache. A GPU takes a fold in one product.
_TILE_TRIALS, _TILE_BYTES = 256, 16 << 20

# The Neumann series is used where its ratio is at most this (three terms then reach _BASIS_TOLERANCE).
_SERIES_RATIO = 1e-2

# Condition number up to which a float64 Cholesky factor of a Gram matrix is trusted (error about 1e-16 × it).
_CHOLESKY_CONDITION = 1e9

_EPS32 = float(np.finfo(np.float32).eps)
_EPS64 = float(np.finfo(np.float64).eps)


def paper_alphas(target):
    """Alphas that the published scripts try for a target (`--mode paper`).

    Parameters
    ----------
    target : str, the feature's name: "c", "init_latent", "blip", "conv1_1", …

    Returns
    -------
    tuple of float: 1e-6 … 1 for `c`, `init_latent` and their `_occluded` twins; 1e4, 2e4, 4e4 otherwise.
    """
    return _LATENT_ALPHAS if target.removesuffix("_occluded") in ("c", "init_latent") else _WIDE_ALPHAS


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


class Decoder:
    """Ridge decoders from voxels to image features (docs/algorithms.md#ridge).

    Parameters
    ----------
    train_voxels : (n_trials, n_voxels) int16 or float, array or h5py dataset. One row a trial (`each`) or a
        stimulus average (`ave`). It is read again when a fold is factorised, and not copied.
    stimulus_of_trial : (n_trials,) int, the row of the feature matrix that belongs to each trial.
    mode : "fixed" — intercept, folds grouped by stimulus — or "paper" — himalaya's `RidgeCV(alphas, cv=5)` after
        `StandardScaler`: no intercept, contiguous folds over trials.
    alphas : alphas to try; penalties on standardised voxels, in units of squared singular values.
    n_folds : cross-validation folds.
    device : torch device of the linear algebra.
    block_bytes : working memory of one block of dims, in bytes. It changes speed, not results.
    n_stimuli : rows of the feature matrix; by default the largest of `stimulus_of_trial` + 1.

    Attributes
    ----------
    validation_trials : list of n_folds arrays, the held-out trials of each fold.
    constant_voxels : number of voxels that do not vary over training trials; they carry no weight.

    Raises
    ------
    ValueError : one line "<what> — <what to do>": rows that do not match, NaN or infinite voxels, no voxels, only
        constant voxels, stimuli out of range, fewer stimuli (trials in "paper" mode) than folds, bad alphas.
    """

    def __init__(self, train_voxels, stimulus_of_trial, *, mode="fixed", alphas=FIXED_ALPHAS, n_folds=5,
                 device="cpu", block_bytes=256 << 20, n_stimuli=None):
        if mode not in ("fixed", "paper"):
            raise ValueError(f"unknown mode {mode!r} — choose fixed or paper")
        self.mode, self.n_folds, self.block_bytes = mode, n_folds, block_bytes
        self.alphas = _check_alphas(alphas)
        # Metal has no float64, and the factorisation needs it.
        device = torch.device(device)
        self.device = torch.device("cpu") if device.type == "mps" else device

        if len(train_voxels.shape) != 2 or 0 in train_voxels.shape:
            raise ValueError(f"training voxels have shape {tuple(train_voxels.shape)} — give (trials, voxels), "
                             "neither empty: check the ROI and the split")
        self.n_trials, self.n_voxels = train_voxels.shape
        self._raw = train_voxels
        stimulus = np.asarray(stimulus_of_trial)
        if stimulus.shape != (self.n_trials,):
            raise ValueError(f"{self.n_trials} trials of voxels but stimuli of shape {stimulus.shape} — "
                             "give one stimulus row per trial")
        if not np.issubdtype(stimulus.dtype, np.integer):
            raise ValueError(f"stimulus rows have dtype {stimulus.dtype} — give integers")
        self.n_stimuli = int(stimulus.max()) + 1 if n_stimuli is None else int(n_stimuli)
        if stimulus.min() < 0 or stimulus.max() >= self.n_stimuli:
            raise ValueError(f"stimulus rows span {stimulus.min()}..{stimulus.max()}, the features have "
                             f"{self.n_stimuli} rows — make the stimuli and the features of one subject again")
        self._stimulus = stimulus.astype(np.int64)
        self._counts = np.bincount(self._stimulus, minlength=self.n_stimuli)
        self.validation_trials = _grouped_folds(self._stimulus, n_folds) if mode == "fixed" \
            else _contiguous_folds(self.n_trials, n_folds)

        self._mean, self._scale, self.constant_voxels = self._voxel_statistics()
        self._dual = self.n_trials < self.n_voxels
        self._training_grams = [None] * n_folds
        self._gram = self._kernel() if self._dual else self._full_gram()
        self._eigen_folds = [None] * n_folds
        self._series_folds = {}
        self._full_eigen = None
        self._test = None
        self._weights = {}

    # ---------------------------------------------------------------- voxels

    def _voxel_statistics(self):
        """Mean, standard deviation (ddof 0; 1 where constant) and the number of constant voxels."""
        total = np.zeros(self.n_voxels)
        for rows in self._row_chunks(np.arange(self.n_trials)):
            chunk = np.asarray(self._raw[rows[0]:rows[-1] + 1], dtype=np.float64)
            if not np.isfinite(chunk).all():
                trial, voxel = np.argwhere(~np.isfinite(chunk))[0]
                raise ValueError(f"training voxel {voxel} of trial {rows[0] + trial} is not finite — "
                                 "make the betas again")
            total += chunk.sum(0)
        mean = total / self.n_trials
        squares = np.zeros(self.n_voxels)
        for rows in self._row_chunks(np.arange(self.n_trials)):
            squares += ((self._raw[rows[0]:rows[-1] + 1] - mean) ** 2).sum(0)
        variance = squares / self.n_trials
        # scikit-learn's StandardScaler calls a column constant by this bound on the rounding of its variance.
        constant = variance <= self.n_trials * _EPS64 * variance + (self.n_trials * mean * _EPS64) ** 2
        if constant.all():
            raise ValueError(f"all {self.n_voxels} training voxels are constant — check the betas and the ROI")
        return mean, np.where(constant, 1.0, np.sqrt(variance)), int(constant.sum())

    def _row_chunks(self, rows):
        """Split sorted row indices so that a float64 copy of one chunk's voxels stays within 64 MB."""
        size = max(1, (64 << 20) // (8 * self.n_voxels))
        return [rows[i:i + size] for i in range(0, len(rows), size)]

    def _standardised(self, voxels, dtype=None):
        """Raw voxels (rows, n_voxels) → standardised with the training statistics, on the device."""
        standardised = (np.asarray(voxels, dtype=np.float64) - self._mean) / self._scale
        return torch.from_numpy(standardised).to(self.device, dtype or torch.float64)

    def _chunks(self, trials):
        """Yield (trials, standardised float64 voxels) of sorted trials, a chunk at a time."""
        for rows in self._row_chunks(trials):
            yield rows, self._standardised(self._raw[rows])

    def _full_gram(self):
        """G (voxels, voxels) of all trials. On a CPU that of each fold's training trials is kept until it is factorised; a
        GPU's memory holds one at a time, and `_training_gram` makes it again."""
        kept = self.device.type == "cpu"
        own = [self._gram_of(self.validation_trials[0])]
        total = own[0].clone() if kept else own.pop()
        for validation in self.validation_trials[1:]:
            own.append(self._gram_of(validation))
            total += own[-1] if kept else own.pop()
        for k, gram in enumerate(own):
            self._training_grams[k] = self._downdated(k, total, gram)
        return total

    def _gram_of(self, trials):
        """X'X (voxels, voxels) float64 over some trials."""
        gram = torch.zeros(self.n_voxels, self.n_voxels, dtype=torch.float64, device=self.device)
        for _, voxels in self._chunks(trials):
            _add_square(gram, voxels)
        width = 512
        for start in range(0, self.n_voxels, width):
            stop = min(start + width, self.n_voxels)
            gram[:start, start:stop] = gram[start:stop, :start].T
            square = gram[start:stop, start:stop].tril()
            gram[start:stop, start:stop] = square + square.tril(-1).T
        return gram

    def _kernel(self):
        """XX' (trials, trials) float64, from blocks of trials."""
        kernel = torch.empty(self.n_trials, self.n_trials, dtype=torch.float64, device=self.device)
        for rows, left in self._chunks(np.arange(self.n_trials)):
            for columns, right in self._chunks(np.arange(rows[-1] + 1)):
                product = left @ right.T
                kernel[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1] = product
                kernel[columns[0]:columns[-1] + 1, rows[0]:rows[-1] + 1] = product.T
        return kernel

    def _stimulus_sums(self, trials, dtype):
        """Sum over trials of each stimulus: (stimuli present, ascending), (stimuli present, n_voxels)."""
        present, position = np.unique(self._stimulus[trials], return_inverse=True)
        sums = torch.zeros(len(present), self.n_voxels, dtype=dtype, device=self.device)
        done = 0
        for rows, voxels in self._chunks(trials):
            index = torch.from_numpy(position[done:done + len(rows)]).to(self.device)
            sums.index_add_(0, index, voxels.to(dtype))
            done += len(rows)
        return present, sums

    # ---------------------------------------------------------------- folds

    def _folds(self, alphas):
        """(fold, basis, anchor, differences) per validation set, for these alphas; see `_Spectrum.alpha_basis`."""
        folds = [self._series_fold(k, alphas) or self._eigen_fold(k) for k in range(self.n_folds)]
        # Folds share the cross-products of voxels and targets, so one that needs double precision decides for all.
        if any(fold.needs_double(alphas[0]) for fold in folds):
            folds = [self._eigen_fold(k, double=True) for k in range(self.n_folds)]
        return [(fold, *fold.alpha_basis(alphas)) for fold in folds]

    def _series_fold(self, k, alphas):
        """The Neumann-series fold, or None where the alphas are not far below the spectrum."""
        key = (k, tuple(alphas))
        if key not in self._series_folds:
            self._series_folds[key] = None if self._dual else _SeriesFold.build(self, k, alphas)
        if self._series_folds[key] is not None:
            self._training_grams[k] = None
        return self._series_folds[key]

    def _eigen_fold(self, k, double=False):
        fold = self._eigen_folds[k]
        if fold is None or double and fold.dtype == torch.float32:
            self._eigen_folds[k] = (_DualFold if self._dual else _EigenFold)(self, k, double)
        return self._eigen_folds[k]

    def _training_gram(self, k):
        """(mean (voxels,), G (voxels, voxels)) of a fold's training trials; centred in "fixed" mode."""
        if self._training_grams[k] is None:
            own = self._gram_of(self.validation_trials[k])
            self._training_grams[k] = self._downdated(k, self._gram, own)
        return self._training_grams[k]

    def _downdated(self, k, total, own):
        """As `_training_gram`, from the Gram matrices of all trials and of the held-out ones, whose memory it takes."""
        validation = self.validation_trials[k]
        own.neg_().add_(total)
        mean = torch.zeros(self.n_voxels, dtype=torch.float64, device=self.device)
        if self.mode == "fixed":
            n_training = self.n_trials - len(validation)
            # Standardised voxels sum to zero over all trials.
            for _, voxels in self._chunks(validation):
                mean -= voxels.sum(0) / n_training
            own.addmm_(mean[:, None], mean[None], alpha=-n_training)
        return mean, own

    # ---------------------------------------------------------------- prediction weights

    def set_test(self, test_voxels):
        """Set the test activity that later calls predict from.

        Parameters
        ----------
        test_voxels : (n_test, n_voxels) float or int16, one row a test stimulus (its average), raw units.

        Raises
        ------
        ValueError : another number of voxels than in training, no rows, NaN or infinite values.
        """
        if len(test_voxels.shape) != 2 or test_voxels.shape[0] == 0 or test_voxels.shape[1] != self.n_voxels:
            raise ValueError(f"test voxels have shape {tuple(test_voxels.shape)} but training has {self.n_voxels} "
                             "voxels — give (test stimuli, voxels) of the same ROIs")
        raw = np.asarray(test_voxels[:])
        if not np.isfinite(raw).all():
            stimulus, voxel = np.argwhere(~np.isfinite(raw))[0]
            raise ValueError(f"test voxel {voxel} of test stimulus {stimulus} is not finite — make the betas again")
        standardised = self._standardised(raw)
        if self._test is None or not torch.equal(self._test, standardised):
            self._test, self._weights = standardised, {}

    def prediction_weights(self, test_voxels, alpha):
        """The fixed linear combination of training targets that a ridge prediction is.

        Parameters
        ----------
        test_voxels : (n_test, n_voxels), raw units.
        alpha : float > 0.

        Returns
        -------
        (n_test, n_stimuli) float64 W, so that predictions = W @ features. The intercept of "fixed" mode is part of
        it (rows sum to 1), so targets may be accumulated stimulus by stimulus (`--stream`).
        """
        self.set_test(test_voxels)
        return self._prediction_weights(float(alpha)).cpu().numpy()

    def _prediction_weights(self, alpha):
        if self._dual:
            weights = self._dual_weights(alpha)
        else:
            solved = self._solve_test(alpha)
            weights = torch.zeros(len(self._test), self.n_stimuli, dtype=torch.float64, device=self.device)
            # A few stimuli at a time: sums over their trials first, so that repeats cost nothing.
            for stimuli in self._row_chunks(np.arange(self.n_stimuli)):
                trials = np.flatnonzero((self._stimulus >= stimuli[0]) & (self._stimulus <= stimuli[-1]))
                present, sums = self._stimulus_sums(trials, torch.float64)
                weights[:, torch.from_numpy(present).to(self.device)] = solved @ sums.T
        if self.mode == "fixed":
            weights += torch.from_numpy(self._counts / self.n_trials).to(self.device)
        return weights

    def _solve_test(self, alpha):
        """X_test (G + alpha)^-1, (n_test, n_voxels) float64."""
        if self._full_eigen is None:
            factor, smallest = _cholesky(self._gram, alpha)
            if factor is not None and float(self._gram.trace()) < _CHOLESKY_CONDITION * smallest:
                return torch.cholesky_solve(self._test.T, factor).T
            self._full_eigen = _eigen(self._gram.clone())
        values, vectors = self._full_eigen
        return (self._test @ vectors / (values + alpha)) @ vectors.T

    def _dual_weights(self, alpha):
        """As `prediction_weights` without the intercept, from the kernel XX'."""
        if self._full_eigen is None:
            # Standardised voxels have mean zero over all trials, so the kernel is centred already.
            self._full_eigen = _eigen(self._gram.clone())
        values, vectors = self._full_eigen
        cross = torch.cat([self._test @ voxels.T for _, voxels in self._chunks(np.arange(self.n_trials))], 1)
        per_trial = (cross @ vectors / (values + alpha)) @ vectors.T
        weights = torch.zeros(len(self._test), self.n_stimuli, dtype=torch.float64, device=self.device)
        return weights.index_add_(1, torch.from_numpy(self._stimulus).to(self.device), per_trial)

    def _cached_weights(self, alpha):
        """(single-precision weights (n_test, n_stimuli), their row sums (n_test,) float64)."""
        if alpha not in self._weights:
            weights = self._prediction_weights(alpha)
            self._weights[alpha] = weights.float(), weights.sum(1)
        return self._weights[alpha]

    # ---------------------------------------------------------------- targets

    def predict_to(self, features, test_voxels, out, *, test_features=None, alphas=None, progress=None):
        """Choose an alpha per dim by cross-validation and write the test predictions, block by block.

        Parameters
        ----------
        features : (n_stimuli, dims) float, array or h5py dataset: each training stimulus once, feature units.
        test_voxels : (n_test, n_voxels), raw units.
        out : writable (n_test, dims) array-like; `out[:, a:b] = block` is called in order of dims.
        test_features : (n_test, dims) true features of the test stimuli, for the test correlation.
        alphas : alphas to try for this target instead of the decoder's.
        progress : called with (dims done, dims) after each block.

        Returns
        -------
        Report

        Raises
        ------
        ValueError : features with another number of rows than stimuli, NaN or infinite features, shapes of `out` or
            `test_features` that do not fit.
        """
        self.set_test(test_voxels)
        self._check_features(features, out, test_features)
        alphas = self.alphas if alphas is None else _check_alphas(alphas)
        folds = self._folds(alphas)
        tally = _Tally(self, alphas, features.shape[1], test_features is not None)
        width = self._block_width(folds)
        for start in range(0, features.shape[1], width):
            block = slice(start, min(start + width, features.shape[1]))
            truth = None if test_features is None else test_features[:, block]
            out[:, block] = self._predict_block(features[:, block], block, folds, tally, truth)
            if progress is not None:
                progress(block.stop, features.shape[1])
        return tally.report()

    def _check_features(self, features, out, test_features):
        n_test = len(self._test)
        if len(features.shape) != 2 or features.shape[0] != self.n_stimuli or features.shape[1] == 0:
            raise ValueError(f"features have shape {tuple(features.shape)} but the trials show {self.n_stimuli} "
                             "stimuli — make the subject's features again")
        for name, array in (("output", out), ("test features", test_features)):
            if array is not None and tuple(array.shape) != (n_test, features.shape[1]):
                raise ValueError(f"{name} has shape {tuple(array.shape)}, not {(n_test, features.shape[1])} — "
                                 "give one row per test stimulus and one column per dim")

    def _block_width(self, folds):
        """Dims per block: targets, projections and held-out bases of one block fill `block_bytes`."""
        n_bases = max(len(anchor) + min(differences.shape) for _, _, anchor, differences in folds)
        columns = max(sum(stop - start for start, stop, _ in basis or ()) for _, basis, _, _ in folds)
        tile = min(max(len(v) for v in self.validation_trials), self._tile_trials())
        rank = min(self.n_trials, self.n_voxels)
        per_dim = 4 * (3 * self.n_stimuli + (self.n_folds + 2) * rank + columns + 2 * n_bases * tile)
        width = self.block_bytes // per_dim
        if self.device.type == "cpu":
            width = min(width, _TILE_BYTES // (4 * n_bases * tile))
        return max(16, width)

    def _tile_trials(self):
        """Held-out trials that one product takes."""
        return _TILE_TRIALS if self.device.type == "cpu" else self.n_trials

    def _predict_block(self, features, block, folds, tally, truth):
        """Score a block's dims and return its test predictions (n_test, width) float32."""
        targets, mean, variance = self._centred(features, block.start)
        losses = self._losses(targets, mean, folds, len(tally.grid))
        chosen = tally.choose(block, losses, mean, variance)
        predictions = torch.empty(len(targets), len(self._test), device=self.device)
        for index in np.unique(chosen):
            weights, sums = self._cached_weights(float(tally.grid[index]))
            dims = torch.from_numpy(np.flatnonzero(chosen == index)).to(self.device)
            part = product(targets[dims], weights.T).double() + mean[dims, None] * sums
            predictions[dims] = part.float()
        predictions = predictions.T.cpu().numpy()
        if truth is not None:
            tally.correlate(block, predictions, np.asarray(truth, dtype=np.float64))
        return predictions

    def _centred(self, features, first_dim):
        """Targets (dims, n_stimuli) float32 minus their mean over training trials; mean and variance (dims,) float64.

        Centring first keeps single precision for what varies, whatever the mean."""
        raw = np.asarray(features)
        finite = np.isfinite(raw)
        if not finite.all():
            stimulus, dim = np.argwhere(~finite)[0]
            raise ValueError(f"feature {first_dim + dim} of stimulus row {stimulus} is not finite — "
                             "extract the features again")
        weights = torch.from_numpy(self._counts / self.n_trials).to(self.device, torch.float32)
        targets = torch.from_numpy(np.ascontiguousarray(raw.T)).to(self.device)
        targets = targets if targets.dtype == torch.float64 else targets.float()
        # The first stimulus is a shift near the mean: the sums stay small, and a constant dim gives exactly zero.
        shift = targets[:, :1].clone()
        targets = (targets - shift).float()
        offset = targets @ weights
        targets -= offset[:, None]
        return targets, shift[:, 0].double() + offset.double(), (targets.square() @ weights).double()

    def _losses(self, targets, mean, folds, n_alphas):
        """Mean squared error of every alpha, averaged over folds: (n_alphas, dims) float64."""
        losses = torch.zeros(n_alphas, len(targets), dtype=torch.float64, device=self.device)
        values = targets.to(folds[0][0].dtype)
        own = [fold.held_out_products(values) for fold, *_ in folds]
        total = sum(own)
        for k, (fold, basis, anchor, differences) in enumerate(folds):
            validation = self.validation_trials[k]
            stimulus = torch.from_numpy(self._stimulus[validation]).to(self.device)
            if self.mode == "fixed":
                counts = self._counts - np.bincount(self._stimulus[validation], minlength=self.n_stimuli)
                weights = torch.from_numpy(counts / counts.sum()).to(values)
                level, offset = None, -(values @ weights)
            else:
                level = offset = mean.to(fold.dtype)
            lefts = fold.lefts(values, level, basis, total - own[k])
            # The anchor's prediction becomes its residual; the alphas' differences from it need no more directions than
            # there are alphas, however many bases are local to a part of the spectrum.
            directions, weights = torch.linalg.qr(differences.T)
            mixing = torch.cat([-anchor[None], directions.T]).to(values.dtype)
            products = losses.new_zeros(len(targets), len(mixing), len(mixing))
            for shown, rights in zip(stimulus.split(self._tile_trials()), fold.rights(basis)):
                terms = torch.stack([product(left, right) for left, right in zip(lefts, rights)])
                mixed = product(mixing, terms.flatten(1)).view(len(mixing), len(targets), -1)
                mixed[0].add_(values[:, shown]).add_(offset[:, None])
                products += torch.bmm(mixed.transpose(0, 1), mixed.permute(1, 2, 0))
            signed = torch.cat([torch.ones_like(weights[:1]), -weights]).T
            losses += torch.einsum("ai,aj,dij->ad", signed, signed, products) / (len(validation) * self.n_folds)
        return losses

    # ---------------------------------------------------------------- streamed targets

    def predict_streamed(self, replay, dims, test_voxels, out, *, memory_bytes=2 << 30, shared_alpha=False,
                         probe_dims=4096, test_features=None, alphas=None, progress=None):
        """As `predict_to` for targets that are never stored, emitted stimulus by stimulus by a network.

        An alpha per dim needs all stimuli of that dim at once (its cross-validation score is a quadratic form in
        them), and no projection is smaller than the targets when there are several folds of thousands of voxels.
        So there are two exact ways, and the caller chooses:

        * `shared_alpha=False`: the network runs ceil(n_stimuli × dims × 4 / memory_bytes) times; each pass keeps
          one block of dims. Alphas and predictions are those of `predict_to`.
        * `shared_alpha=True`: two passes whatever the dims. The first keeps `probe_dims` evenly spaced dims and
          picks the one alpha with the best mean cross-validated R² on them; the second accumulates
          predictions = sum over stimuli of weight × features. The predictions are those of `predict_to` with that
          alpha; only the freedom of an alpha per dim is given up.

        Parameters
        ----------
        replay : callable returning an iterable of (rows, features): rows (n,) int of the feature matrix, features
            (n, dims). One pass must emit every stimulus once, in any order, and every pass the same values.
        dims : number of dims.
        test_voxels, out, test_features, alphas, progress : as in `predict_to`; with `shared_alpha` the output is
            also read (it accumulates).
        memory_bytes : memory for the kept block of targets.

        Returns
        -------
        Report (with a shared alpha, cv scores are NaN except at the probed dims)

        Raises
        ------
        ValueError : as `predict_to`; a pass that repeats or lacks a stimulus.
        """
        self.set_test(test_voxels)
        shape = np.broadcast_to(np.float32(0), (self.n_stimuli, dims))
        self._check_features(shape, out, test_features)
        alphas = self.alphas if alphas is None else _check_alphas(alphas)
        folds = self._folds(alphas)
        tally = _Tally(self, alphas, dims, test_features is not None)
        if shared_alpha:
            self._accumulate(replay, folds, tally, min(probe_dims, dims), out, test_features, progress)
            return tally.report()
        width, inner = max(1, memory_bytes // (4 * self.n_stimuli)), self._block_width(folds)
        for start in range(0, dims, width):
            kept = self._collect(replay, np.arange(start, min(start + width, dims)), dims)
            for first in range(start, start + kept.shape[1], inner):
                block = slice(first, min(first + inner, start + kept.shape[1]))
                truth = None if test_features is None else test_features[:, block]
                columns = kept[:, block.start - start:block.stop - start]
                out[:, block] = self._predict_block(columns, block, folds, tally, truth)
                if progress is not None:
                    progress(block.stop, dims)
        return tally.report()

    def _passes(self, replay, dims):
        """One pass of the network, checked: yields (rows, features) and refuses repeated or missing stimuli."""
        seen = np.zeros(self.n_stimuli, dtype=bool)
        for rows, features in replay():
            rows = np.asarray(rows)
            if np.shape(features) != (len(rows), dims):
                raise ValueError(f"streamed features have shape {np.shape(features)}, not {(len(rows), dims)} — "
                                 "emit one row per stimulus")
            if rows.min() < 0 or rows.max() >= self.n_stimuli or seen[rows].any() or len(np.unique(rows)) < len(rows):
                raise ValueError("a streamed stimulus row is out of range or came twice — emit every stimulus once")
            seen[rows] = True
            yield rows, features
        if not seen.all():
            raise ValueError(f"{(~seen).sum()} of {self.n_stimuli} stimuli were not streamed — "
                             "emit every stimulus once")

    def _collect(self, replay, columns, dims):
        """One pass that keeps some dims whole: (n_stimuli, len(columns)) float32."""
        kept = np.empty((self.n_stimuli, len(columns)), dtype=np.float32)
        contiguous = columns[-1] - columns[0] + 1 == len(columns)
        selection = slice(columns[0], columns[-1] + 1) if contiguous else columns
        for rows, features in self._passes(replay, dims):
            kept[rows] = features[:, selection]
        return kept

    def _accumulate(self, replay, folds, tally, n_probes, out, test_features, progress):
        """Shared alpha from probed dims, then predictions summed up as stimuli come."""
        dims = len(tally.alphas)
        probes = np.unique(np.linspace(0, dims - 1, n_probes).astype(np.int64))
        targets, mean, variance = self._centred(self._collect(replay, probes, dims), 0)
        tally.share(probes, self._losses(targets, mean, folds, len(tally.grid)), mean, variance)
        weights = self._cached_weights(float(tally.alphas[0]))[0]
        width = max(1, self.block_bytes // (4 * (len(weights) + self.n_stimuli)))
        done = 0
        for rows, features in self._passes(replay, dims):
            part = weights[:, torch.from_numpy(rows).to(self.device)]
            for start in range(0, dims, width):
                block = slice(start, min(start + width, dims))
                values = torch.from_numpy(np.ascontiguousarray(features[:, block], dtype=np.float32)).to(self.device)
                if not torch.isfinite(values).all():
                    raise ValueError(f"features of stimulus rows {rows.min()}..{rows.max()} are not finite — "
                                     "extract the features again")
                update = (part @ values).cpu().numpy()
                out[:, block] = update if done == 0 else out[:, block] + update
            done += len(rows)
            if progress is not None:
                progress(done * dims // self.n_stimuli, dims)
        if test_features is not None:
            for start in range(0, dims, width):
                block = slice(start, min(start + width, dims))
                tally.correlate(block, np.asarray(out[:, block]), np.asarray(test_features[:, block], np.float64))


# -------------------------------------------------------------------- folds


def _grouped_folds(stimulus, n_folds):
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


def _contiguous_folds(n_trials, n_folds):
    """Validation trials of scikit-learn's KFold without shuffling: contiguous, the first ones longer by one."""
    if n_folds < 2 or n_trials < n_folds:
        raise ValueError(f"{n_trials} training trials for {n_folds} folds — give at least two folds, and at least as "
                         "many trials as folds")
    return np.array_split(np.arange(n_trials), n_folds)


class _Spectrum:
    """A fold in the eigenbasis of its training voxels: X = U diag(s) V', spectrum l = s².

    Held-out predictions of alpha are  right' diag(l / (l + alpha)) U'SY,  with right = (X_val V / s)' (rank,
    validation trials), kept in tiles of trials. Both factors are of moderate size whatever the spectrum."""

    def needs_double(self, smallest_alpha):
        """Whether single precision could spoil a held-out prediction by 1e-4 of the target's sd."""
        if self.dtype == torch.float64:
            return True
        shrinkage = (self.values / (self.values + smallest_alpha)).float()[:, None]
        leverage = max(float((tile * shrinkage).square().sum(0).max()) for tile in self.right) ** 0.5
        return _EPS32 * self.n_training ** 0.5 * leverage > 1e-4

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
            scales, weights = _low_rank(rows[:, start:stop])
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
                n_bases = len(_low_rank(rows[:, torch.from_numpy(points)])[0])
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


class _VoxelFold:
    """What folds with at least as many trials as voxels share: training X'SY as all trials' minus the held-out."""

    def _take_sums(self, decoder, k, mean):
        self.mean = mean
        self.stimuli, self.sums = decoder._stimulus_sums(decoder.validation_trials[k], self.dtype)
        self.stimuli = torch.from_numpy(self.stimuli).to(decoder.device)
        self.repeats = torch.from_numpy(np.bincount(decoder._stimulus[decoder.validation_trials[k]])).to(self.sums)
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


class _EigenFold(_VoxelFold, _Spectrum):
    """Eigenvectors of the voxels' Gram matrix."""

    def __init__(self, decoder, k, double):
        validation = decoder.validation_trials[k]
        self.n_training = decoder.n_trials - len(validation)
        mean, gram = decoder._training_gram(k)
        decoder._training_grams[k] = None
        self.values, vectors = _eigen(gram)
        del gram
        vectors /= self.values.sqrt()
        # Products in single precision lose eps × the condition of the singular values.
        condition = float(self.values[-1] / self.values[0]) ** 0.5
        self.dtype = torch.float64 if double or _EPS32 * condition > 3e-5 else torch.float32
        offset, self.vectors = (mean @ vectors).to(self.dtype), vectors.to(self.dtype)
        right = [product(v.to(self.dtype), self.vectors) - offset for _, v in decoder._chunks(validation)]
        self.right = _tiles(torch.cat(right).T, decoder._tile_trials())
        self._take_sums(decoder, k, mean)

    def _projected(self, targets, level, products):
        """(U'SY)', (dims, rank)."""
        return product(self._training_products(targets, level, products), self.vectors)


class _DualFold(_Spectrum):
    """Eigenvectors of the trials' kernel XX', for more voxels than trials."""

    def __init__(self, decoder, k, double):
        held_out = np.zeros(decoder.n_trials, dtype=bool)
        held_out[decoder.validation_trials[k]] = True
        training, validation = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        self.n_training = len(training)
        self.dtype = torch.float64 if double else torch.float32
        train, held = (torch.from_numpy(rows).to(decoder.device) for rows in (training, validation))
        kernel, cross = decoder._gram[train][:, train], decoder._gram[held][:, train]
        if decoder.mode == "fixed":
            column = kernel.mean(0)
            cross = cross - column - cross.mean(1, keepdim=True) + column.mean()
            kernel = kernel - column - column[:, None] + column.mean()
        self.values, vectors = _eigen(kernel)
        self.right = _tiles((cross @ (vectors / self.values)).T.to(self.dtype), decoder._tile_trials())
        stimuli, position = np.unique(decoder._stimulus[training], return_inverse=True)
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


class _SeriesFold(_VoxelFold):
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
        mean, gram = decoder._training_gram(k)
        factor, smallest = _cholesky(gram, centre)
        if factor is None or radius > _SERIES_RATIO * smallest \
                or _EPS32 * (float(gram.trace()) / smallest) ** 0.5 > 1e-4:
            return None
        fold = cls()
        fold.dtype = torch.float32
        # The first two terms always: their ratio tells the smallest of alphas apart.
        n_terms = 1 if radius == 0 else max(2, int(np.ceil(np.log(_BASIS_TOLERANCE) / np.log(radius / smallest))))
        # With G + a = LL' both steps are products with L^-1, whose condition is the square root of G's: single precision
        # serves.
        inverse = _inverse(factor).float()
        rows = torch.cat([(v - mean).float() for _, v in decoder._chunks(decoder.validation_trials[k])])
        right = []
        for _ in range(n_terms):
            rows = product(product(rows, inverse.T), inverse)
            right.append(rows.T)
        fold.centre, fold.n_terms = centre, n_terms
        fold.right = list(zip(*(_tiles(rows, decoder._tile_trials()) for rows in right)))
        fold._take_sums(decoder, k, mean)
        return fold

    def needs_double(self, smallest_alpha):
        """Never: `build` refused such spectra."""
        return False

    def alpha_basis(self, alphas):
        """No functions of the spectrum; the anchor a itself, and differences (n_alphas, bases) = (a - alpha)^j, j > 0."""
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


# -------------------------------------------------------------------- numerics


def _tiles(right, n_trials):
    """Columns of (rank, validation trials) in contiguous tiles of n_trials."""
    return [tile.contiguous() for tile in right.split(n_trials, 1)]


def _add_square(gram, rows):
    """Add rows'rows to the lower triangle of gram, at least."""
    if gram.device.type == "cpu":
        # In place; the transposes have the column order that BLAS wants.
        scipy.linalg.blas.dsyrk(1.0, rows.numpy().T, beta=1.0, c=gram.numpy().T, overwrite_c=True)
    else:
        gram.addmm_(rows.T, rows)


def _inverse(factor):
    """Inverse of a lower triangular matrix, float64."""
    if factor.device.type == "cpu":
        return torch.from_numpy(scipy.linalg.lapack.dtrtri(factor.numpy(), lower=True)[0])
    return torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(factor), upper=False)


def _eigen(gram):
    """Eigenvalues (ascending) and eigenvectors of a Gram matrix, without its numerical null space.

    A direction whose eigenvalue is rounding carries no information; left in, tiny alphas would blow it up. Without
    it a tiny alpha gives the minimum-norm solution, as it does in exact arithmetic. `gram` is overwritten."""
    if gram.device.type == "cpu":
        # SciPy's driver works in place, and is a quarter faster than torch's here. The transpose of a symmetric
        # matrix is itself, in the column order that LAPACK wants.
        values, vectors = scipy.linalg.eigh(gram.numpy().T, overwrite_a=True, check_finite=False, driver="evd")
        values, vectors = torch.from_numpy(values), torch.from_numpy(vectors)
    else:
        values, vectors = torch.linalg.eigh(gram)
    kept = values > values[-1] * len(values) * _EPS64
    return values[kept], vectors if kept.all() else vectors[:, kept]


def _cholesky(gram, alpha):
    """Lower factor of gram + alpha (None if not positive definite) and a low estimate of its smallest eigenvalue."""
    shifted = gram.clone()
    shifted.diagonal().add_(alpha)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if int(failed):
        return None, 0.0
    # Block power iteration on the inverse; it comes within a third, and half of it is kept as a margin. The factor's
    # condition is the square root of the matrix's, so single precision serves.
    generator, single = torch.Generator().manual_seed(0), factor.float()
    block = torch.randn(len(gram), 8, generator=generator).to(gram.device)
    for _ in range(8):
        half = torch.linalg.solve_triangular(single, torch.linalg.qr(block)[0], upper=False)
        block = torch.linalg.solve_triangular(single.T, half, upper=True)
    return factor, 0.5 / float(torch.linalg.matrix_norm(block, 2))


def _low_rank(rows):
    """Functions (n, points) and weights (rows, n) with weights @ functions = rows (rows, points).

    As few as leave an error of _BASIS_TOLERANCE; small rows may be off by 1% of themselves at most."""
    size = rows.abs().amax(1, keepdim=True).clamp(min=1e-300)
    tolerance = (_BASIS_TOLERANCE / size).clamp(_BASIS_TOLERANCE, 1e-2)[:, 0]
    u, s, functions = torch.linalg.svd(rows / size, full_matrices=False)
    u *= s
    residual = rows / size
    for n in range(len(s) + 1):
        if n == len(s) or (residual.abs().amax(1) <= tolerance).all():
            return functions[:n], u[:, :n] * size
        residual = residual - u[:, n:n + 1] * functions[n]


def _check_alphas(alphas):
    """Alphas as an ascending float64 array."""
    checked = np.unique(np.atleast_1d(np.asarray(alphas, dtype=np.float64)))
    if checked.size == 0 or not np.isfinite(checked).all() or checked[0] <= 0:
        raise ValueError(f"alphas {alphas} — give one or more positive numbers")
    return checked


class _Tally:
    """Collects a Report block by block."""

    def __init__(self, decoder, grid, dims, with_truth):
        self.decoder, self.grid = decoder, grid
        self.alphas, self.scores, self.r2 = np.empty(dims), np.full(dims, np.nan), np.full(dims, np.nan)
        self.correlations = correlation.Correlations(len(decoder._test), dims) if with_truth else None
        self.constant = self.low = self.high = 0

    def _scored(self, losses, mean, variance):
        losses, mean, variance = (t.cpu().numpy() for t in (losses, mean, variance))
        constant = variance <= (_EPS32 * np.abs(mean)) ** 2
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
