"""The cross-validated loss of every alpha, fold by fold, from held-out predictions (utils/ridge/ridge_decoder.py)."""
import numpy as np

from utils import lazy
from utils.ridge import numerics
from utils.ridge.products import product

torch = lazy.module("torch")


class FoldLosses:
    """The folds of a decoder, and what tells these alphas apart on each.

    folds : [(fold, basis, anchor, differences)] of each validation set; see `cross_validation.Spectrum.alpha_basis`.
    """

    def __init__(self, decoder, folds, n_alphas):
        self.decoder, self.folds, self.n_alphas = decoder, folds, n_alphas

    def block_width(self):
        """Dims per block: targets, projections and held-out bases of one block fill `block_bytes`."""
        d = self.decoder
        n_bases = max(len(anchor) + min(differences.shape) for _, _, anchor, differences in self.folds)
        columns = max(sum(stop - start for start, stop, _ in basis or ()) for _, basis, _, _ in self.folds)
        tile = min(max(len(v) for v in d.validation_trials), d.tile_trials())
        rank = min(d.n_trials, d.n_voxels)
        per_dim = 4 * (3 * d.n_stimuli + (d.n_folds + 2) * rank + columns + 2 * n_bases * tile)
        width = d.block_bytes // per_dim
        if d.device.type == "cpu":
            width = min(width, numerics.TILE_BYTES // (4 * n_bases * tile))
        return max(16, width)

    def macs(self):
        """Multiplications and additions of one dim."""
        d, total = self.decoder, 0
        for validation, (fold, basis, anchor, differences) in zip(d.validation_trials, self.folds):
            if basis is None:
                columns, projection = fold.n_terms * d.n_voxels, len(fold.stimuli) * d.n_voxels
            else:
                columns = sum(stop - start for start, stop, _ in basis)
                into = 0 if d.is_dual else d.n_voxels
                projection = len(fold.stimuli) * (into or len(fold.values)) + into * len(fold.values)
            mixed = 1 + min(differences.shape)
            total += projection + (columns + mixed * (len(anchor) + mixed)) * len(validation)
        return total

    def losses(self, targets, mean):
        """Mean squared error of every alpha, averaged over folds: (n_alphas, dims) float64.

        targets : (dims, n_stimuli) float32, centred over training trials. mean : (dims,) float64, what was taken off.
        """
        d = self.decoder
        losses = torch.zeros(self.n_alphas, len(targets), dtype=torch.float64, device=d.device)
        values = targets.to(self.folds[0][0].dtype)
        own = [fold.held_out_products(values) for fold, *_ in self.folds]
        total = sum(own)
        for k, (fold, basis, anchor, differences) in enumerate(self.folds):
            validation = d.validation_trials[k]
            stimulus = torch.from_numpy(d.stimulus[validation]).to(d.device)
            if d.mode == "fixed":
                counts = d.counts - np.bincount(d.stimulus[validation], minlength=d.n_stimuli)
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
            for shown, rights in zip(stimulus.split(d.tile_trials()), fold.rights(basis)):
                terms = torch.stack([product(left, right) for left, right in zip(lefts, rights)])
                mixed = product(mixing, terms.flatten(1)).view(len(mixing), len(targets), -1)
                mixed[0].add_(values[:, shown]).add_(offset[:, None])
                products += torch.bmm(mixed.transpose(0, 1), mixed.permute(1, 2, 0))
            signed = torch.cat([torch.ones_like(weights[:1]), -weights]).T
            losses += torch.einsum("ai,aj,dij->ad", signed, signed, products) / (len(validation) * d.n_folds)
        return losses
