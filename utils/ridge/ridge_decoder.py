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

With more voxels than trials the losses are quadratic forms instead, where these are cheaper and precise
(utils/ridge/loss_forms.py).

The loss of alpha is then a quadratic in c(alpha), so the *differences* between alphas are computed, never
obtained by subtracting two large sums: alphas are told apart far below single precision.

A block of targets is held transposed, (dims, stimuli), so that each dim's values lie together in memory.
"""
import numpy as np

from utils import lazy
from utils.ridge import factorisation, fit_report, numerics, penalties
from utils.ridge.products import product

torch = lazy.module("torch")


class Decoder(factorisation.Factorisation):
    """Ridge decoders from voxels to image features (docs/algorithms.md#ridge).

    Its parameters, attributes and errors are those of `factorisation.Factorisation`, which it is made as.
    """

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
        alphas = self.alphas if alphas is None else penalties.checked_alphas(alphas)
        scorer = self.scorer(alphas)
        tally = fit_report.Tally(self, alphas, features.shape[1], test_features is not None)
        width = scorer.block_width()
        for start in range(0, features.shape[1], width):
            block = slice(start, min(start + width, features.shape[1]))
            truth = None if test_features is None else test_features[:, block]
            out[:, block] = self._predict_block(features[:, block], block, scorer, tally, truth)
            if progress is not None:
                progress(block.stop, features.shape[1])
        return tally.report()

    def _check_features(self, features, out, test_features):
        n_test = len(self.test)
        if len(features.shape) != 2 or features.shape[0] != self.n_stimuli or features.shape[1] == 0:
            raise ValueError(f"features have shape {tuple(features.shape)} but the trials show {self.n_stimuli} "
                             "stimuli — make the subject's features again")
        for name, array in (("output", out), ("test features", test_features)):
            if array is not None and tuple(array.shape) != (n_test, features.shape[1]):
                raise ValueError(f"{name} has shape {tuple(array.shape)}, not {(n_test, features.shape[1])} — "
                                 "give one row per test stimulus and one column per dim")

    def tile_trials(self):
        """Held-out trials that one product takes."""
        return numerics.TILE_TRIALS if self.device.type == "cpu" else self.n_trials

    def _predict_block(self, features, block, scorer, tally, truth):
        """Score a block's dims and return its test predictions (n_test, width) float32."""
        targets, mean, variance = self._centred(features, block.start)
        losses = scorer.losses(targets, mean)
        chosen = tally.choose(block, losses, mean, variance)
        predictions = torch.empty(len(targets), len(self.test), device=self.device)
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
        weights = torch.from_numpy(self.counts / self.n_trials).to(self.device, torch.float32)
        targets = torch.from_numpy(np.ascontiguousarray(raw.T)).to(self.device)
        targets = targets if targets.dtype == torch.float64 else targets.float()
        # The first stimulus is a shift near the mean: the sums stay small, and a constant dim gives exactly zero.
        shift = targets[:, :1].clone()
        targets = (targets - shift).float()
        offset = targets @ weights
        targets -= offset[:, None]
        return targets, shift[:, 0].double() + offset.double(), (targets.square() @ weights).double()

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
        alphas = self.alphas if alphas is None else penalties.checked_alphas(alphas)
        scorer = self.scorer(alphas)
        tally = fit_report.Tally(self, alphas, dims, test_features is not None)
        if shared_alpha:
            self._accumulate(replay, scorer, tally, min(probe_dims, dims), out, test_features, progress)
            return tally.report()
        width, inner = max(1, memory_bytes // (4 * self.n_stimuli)), scorer.block_width()
        for start in range(0, dims, width):
            kept = self._collect(replay, np.arange(start, min(start + width, dims)), dims)
            for first in range(start, start + kept.shape[1], inner):
                block = slice(first, min(first + inner, start + kept.shape[1]))
                truth = None if test_features is None else test_features[:, block]
                columns = kept[:, block.start - start:block.stop - start]
                out[:, block] = self._predict_block(columns, block, scorer, tally, truth)
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

    def _accumulate(self, replay, scorer, tally, n_probes, out, test_features, progress):
        """Shared alpha from probed dims, then predictions summed up as stimuli come."""
        dims = len(tally.alphas)
        probes = np.unique(np.linspace(0, dims - 1, n_probes).astype(np.int64))
        targets, mean, variance = self._centred(self._collect(replay, probes, dims), 0)
        tally.share(probes, scorer.losses(targets, mean), mean, variance)
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
