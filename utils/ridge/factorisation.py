"""The half of a ridge decoder that depends on voxels alone: standardised, factorised once, kept for every target.

Notation: see utils/ridge/ridge_decoder.py.
"""
import numpy as np

from utils import lazy
from utils.ridge import cross_validation, numerics, penalties

torch = lazy.module("torch")


class Factorisation:
    """Training voxels, standardised and factorised fold by fold; what they make of any test activity.

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

    def __init__(self, train_voxels, stimulus_of_trial, *, mode="fixed", alphas=penalties.FIXED_ALPHAS,
                 n_folds=cross_validation.N_FOLDS, device="cpu", block_bytes=256 << 20, n_stimuli=None):
        if mode not in ("fixed", "paper"):
            raise ValueError(f"unknown mode {mode!r} — choose fixed or paper")
        self.mode, self.n_folds, self.block_bytes = mode, n_folds, block_bytes
        self.alphas = penalties.checked_alphas(alphas)
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
        self.stimulus = stimulus.astype(np.int64)
        self._counts = np.bincount(self.stimulus, minlength=self.n_stimuli)
        self.validation_trials = cross_validation.grouped_folds(self.stimulus, n_folds) if mode == "fixed" \
            else cross_validation.contiguous_folds(self.n_trials, n_folds)

        self._mean, self._scale, self.constant_voxels = self._voxel_statistics()
        self._dual = self.n_trials < self.n_voxels
        self.training_grams = [None] * n_folds
        self.gram = self._kernel() if self._dual else self._full_gram()
        self._eigen_folds = [None] * n_folds
        self._series_folds = {}
        self._full_eigen = None
        self.test = None
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
        constant = variance <= self.n_trials * numerics.EPS64 * variance + (self.n_trials * mean * numerics.EPS64) ** 2
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

    def chunks(self, trials):
        """Yield (trials, standardised float64 voxels) of sorted trials, a chunk at a time."""
        for rows in self._row_chunks(trials):
            yield rows, self._standardised(self._raw[rows])

    def _full_gram(self):
        """G (voxels, voxels) of all trials. On a CPU that of each fold's training trials is kept until it is
        factorised; a GPU's memory holds one at a time, and `training_gram` makes it again."""
        kept = self.device.type == "cpu"
        own = [self._gram_of(self.validation_trials[0])]
        total = own[0].clone() if kept else own.pop()
        for validation in self.validation_trials[1:]:
            own.append(self._gram_of(validation))
            total += own[-1] if kept else own.pop()
        for k, gram in enumerate(own):
            self.training_grams[k] = self._downdated(k, total, gram)
        return total

    def _gram_of(self, trials):
        """X'X (voxels, voxels) float64 over some trials."""
        gram = torch.zeros(self.n_voxels, self.n_voxels, dtype=torch.float64, device=self.device)
        for _, voxels in self.chunks(trials):
            numerics.add_square(gram, voxels)
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
        for rows, left in self.chunks(np.arange(self.n_trials)):
            for columns, right in self.chunks(np.arange(rows[-1] + 1)):
                product = left @ right.T
                kernel[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1] = product
                kernel[columns[0]:columns[-1] + 1, rows[0]:rows[-1] + 1] = product.T
        return kernel

    def stimulus_sums(self, trials, dtype):
        """Sum over trials of each stimulus: (stimuli present, ascending), (stimuli present, n_voxels)."""
        present, position = np.unique(self.stimulus[trials], return_inverse=True)
        sums = torch.zeros(len(present), self.n_voxels, dtype=dtype, device=self.device)
        done = 0
        for rows, voxels in self.chunks(trials):
            index = torch.from_numpy(position[done:done + len(rows)]).to(self.device)
            sums.index_add_(0, index, voxels.to(dtype))
            done += len(rows)
        return present, sums

    # ---------------------------------------------------------------- folds

    def _folds(self, alphas):
        """(fold, basis, anchor, differences) per validation set, for these alphas; see `Spectrum.alpha_basis`."""
        folds = [self._series_fold(k, alphas) or self._eigen_fold(k) for k in range(self.n_folds)]
        # Folds share the cross-products of voxels and targets, so one that needs double precision decides for all.
        if any(fold.needs_double(alphas[0]) for fold in folds):
            folds = [self._eigen_fold(k, double=True) for k in range(self.n_folds)]
        return [(fold, *fold.alpha_basis(alphas)) for fold in folds]

    def _series_fold(self, k, alphas):
        """The Neumann-series fold, or None where the alphas are not far below the spectrum."""
        key = (k, tuple(alphas))
        if key not in self._series_folds:
            self._series_folds[key] = None if self._dual else cross_validation.SeriesFold.build(self, k, alphas)
        if self._series_folds[key] is not None:
            self.training_grams[k] = None
        return self._series_folds[key]

    def _eigen_fold(self, k, double=False):
        fold = self._eigen_folds[k]
        if fold is None or double and fold.dtype == torch.float32:
            self._eigen_folds[k] = (cross_validation.DualFold if self._dual else cross_validation.EigenFold)(self, k,
                                                                                                             double)
        return self._eigen_folds[k]

    def training_gram(self, k):
        """(mean (voxels,), G (voxels, voxels)) of a fold's training trials; centred in "fixed" mode."""
        if self.training_grams[k] is None:
            own = self._gram_of(self.validation_trials[k])
            self.training_grams[k] = self._downdated(k, self.gram, own)
        return self.training_grams[k]

    def _downdated(self, k, total, own):
        """As `training_gram`, from the Gram matrices of all trials and of the held-out ones, whose memory it takes."""
        validation = self.validation_trials[k]
        own.neg_().add_(total)
        mean = torch.zeros(self.n_voxels, dtype=torch.float64, device=self.device)
        if self.mode == "fixed":
            n_training = self.n_trials - len(validation)
            # Standardised voxels sum to zero over all trials.
            for _, voxels in self.chunks(validation):
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
        if self.test is None or not torch.equal(self.test, standardised):
            self.test, self._weights = standardised, {}

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
            weights = torch.zeros(len(self.test), self.n_stimuli, dtype=torch.float64, device=self.device)
            # A few stimuli at a time: sums over their trials first, so that repeats cost nothing.
            for stimuli in self._row_chunks(np.arange(self.n_stimuli)):
                trials = np.flatnonzero((self.stimulus >= stimuli[0]) & (self.stimulus <= stimuli[-1]))
                present, sums = self.stimulus_sums(trials, torch.float64)
                weights[:, torch.from_numpy(present).to(self.device)] = solved @ sums.T
        if self.mode == "fixed":
            weights += torch.from_numpy(self._counts / self.n_trials).to(self.device)
        return weights

    def _solve_test(self, alpha):
        """X_test (G + alpha)^-1, (n_test, n_voxels) float64."""
        if self._full_eigen is None:
            factor, smallest = numerics.cholesky(self.gram, alpha)
            if factor is not None and float(self.gram.trace()) < numerics.CHOLESKY_CONDITION * smallest:
                return torch.cholesky_solve(self.test.T, factor).T
            self._full_eigen = numerics.eigen(self.gram.clone())
        values, vectors = self._full_eigen
        return (self.test @ vectors / (values + alpha)) @ vectors.T

    def _dual_weights(self, alpha):
        """As `prediction_weights` without the intercept, from the kernel XX'."""
        if self._full_eigen is None:
            # Standardised voxels have mean zero over all trials, so the kernel is centred already.
            self._full_eigen = numerics.eigen(self.gram.clone())
        values, vectors = self._full_eigen
        cross = torch.cat([self.test @ voxels.T for _, voxels in self.chunks(np.arange(self.n_trials))], 1)
        per_trial = (cross @ vectors / (values + alpha)) @ vectors.T
        weights = torch.zeros(len(self.test), self.n_stimuli, dtype=torch.float64, device=self.device)
        return weights.index_add_(1, torch.from_numpy(self.stimulus).to(self.device), per_trial)

    def _cached_weights(self, alpha):
        """(single-precision weights (n_test, n_stimuli), their row sums (n_test,) float64)."""
        if alpha not in self._weights:
            weights = self._prediction_weights(alpha)
            self._weights[alpha] = weights.float(), weights.sum(1)
        return self._weights[alpha]
