"""The cross-validated loss of every alpha as a quadratic form of a dim's targets, for more voxels than trials.

Ridge is a linear smoother: with K = XX' the residuals of a fit to all trials are proportional to A y, A = (K +
alpha)^-1 (without its mean part where there is an intercept: voxels are standardised, so K 1 = 0). The residuals of
held-out trials v, of a fit to the others, follow without a further fit:  e_v = (A_vv)^-1 (A y)_v. So one factorisation
of K serves every fold, and the loss of alpha, the mean of |e_v|^2 over folds, is y'Q(alpha) y with one symmetric Q over
stimuli. Its triangle takes n_stimuli^2 / 2 multiplications a dim, where folds of their own take more than n_stimuli^2
each alpha.

Precision. The middle alpha, the anchor, is a sum of squares |Py|^2 with Q = P'P. The others follow by the *differences*
of neighbouring alphas, Q(b) - Q(a), made in double precision and applied as forms of their own: alphas are told apart
far below single precision. Of many alphas the differences are nearly dependent, and combinations of fewer forms serve.
"""
import numpy as np

from utils import lazy
from utils.ridge import cross_validation, numerics
from utils.ridge.products import product

torch = lazy.module("torch")

# Largest error that fewer forms may leave in the loss of a target without direction, as a share of its variance; about
# what single-precision products leave. A small difference may be off by 1% of itself at most.
FORM_TOLERANCE = 3e-7
# Condition of K + alpha up to which held-out residuals are taken from it (error about 1e-16 × it).
_CONDITION = 1e8
# Stimuli of one column block: blocks of a triangle waste half a block each.
_BLOCK = 128
# What is added to the anchor's form, as a share of its mean diagonal, so that a factor exists where Q is singular: it
# is for a constant target, and one whose stimulus is never shown.
_JITTER = 1e-11


def build(decoder, alphas):
    """The `LossForms` of a decoder for these alphas, or None where folds of their own are cheaper or more precise."""
    if not decoder.is_dual or macs_bound(decoder, alphas) >= fold_macs(decoder, alphas):
        return None
    values, _ = decoder.kernel_eigen()
    # Of a kernel that lacks more than the mean, or nearly so, the minimum-norm solution is wanted, not a limit.
    smallest = alphas[0] + (float(values[0]) if decoder.mode == "fixed" else 0)
    if len(values) != decoder.n_trials - 1 or (float(values[-1]) + alphas[0]) / smallest > _CONDITION:
        return None
    return LossForms.of(decoder, alphas)


def macs_bound(decoder, alphas):
    """Multiplications and additions of one dim by forms, all of them."""
    return len(alphas) * decoder.n_stimuli * (decoder.n_stimuli + _BLOCK) / 2


def fold_macs(decoder, alphas):
    """The same by `FoldLosses`, estimated from the spectrum of all trials."""
    spectrum = cross_validation.Spectrum()
    spectrum.values, _ = decoder.kernel_eigen()
    columns = sum(stop - start for start, stop, _ in spectrum.alpha_basis(alphas)[0])
    total = 0
    for validation in decoder.validation_trials:
        training = np.delete(decoder.stimulus, validation)
        total += len(training) * len(np.unique(training)) + columns * len(training) / decoder.n_trials * len(validation)
    return total


class LossForms:
    """The forms of all alphas, triangular, cut into column blocks.

    blocks : [(start, stop, weights)]: the products of weights (forms × (stop - start), stop) with the targets of the
        first `stop` stimuli are each form's columns start … stop. The first form is the anchor's factor.
    offsets : (n_alphas, forms - 1) float64, each alpha's loss less the anchor's, in terms of the other forms.
    """

    def __init__(self, decoder, blocks, offsets, level):
        self.decoder, self.blocks, self.offsets, self.level = decoder, blocks, offsets, level

    @classmethod
    def of(cls, decoder, alphas):
        """Make the forms, or None where single precision could spoil a residual by 1e-4 of the target's sd."""
        n, anchor = decoder.n_stimuli, len(alphas) // 2
        cuts = [(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK)]
        packed = [torch.empty(len(alphas), stop - start, stop, device=decoder.device) for start, stop in cuts]
        ones = torch.zeros(len(alphas), n, dtype=torch.float64, device=decoder.device)
        before = None
        for k, alpha in enumerate(alphas):
            form = _form(decoder, float(alpha))
            if form is None:
                return None
            if k == anchor:
                factor = _factor(form)
                if factor is None:
                    return None
                for (start, stop), rows in zip(cuts, packed):
                    rows[0] = factor[start:stop, :stop]
                ones[0] = factor.sum(1)
                del factor
            if before is not None:
                difference = before.neg_().add_(form)
                for (start, stop), rows in zip(cuts, packed):
                    triangle = difference[start:stop, :stop].tril(start)
                    triangle.diagonal(start).div_(2)
                    rows[k] = 2 * triangle
                    ones[k, start:stop] += triangle.sum(1)
                    ones[k, :stop] += triangle.sum(0)
            before = form
        del before
        # Losses less the anchor's, from neighbours' differences: minus those from here up to it, plus those beyond.
        index = torch.arange(len(alphas), device=decoder.device)
        steps = (index[:, None] >= index[1:]).double() - (anchor >= index[1:]).double()
        mixing, weights = _few(cuts, packed)
        for i, rows in enumerate(packed):
            mixed = (mixing.T.to(rows) @ rows[1:].flatten(1)).view(-1, *rows.shape[1:])
            packed[i] = torch.cat([rows[:1], mixed]).flatten(0, 1)
        ones = torch.cat([ones[:1], mixing.T @ ones[1:]])
        return cls(decoder, [(*cut, rows) for cut, rows in zip(cuts, packed)], steps @ weights,
                   None if decoder.mode == "fixed" else ones)

    def block_width(self):
        """Dims per block: targets and products of one block fill `block_bytes`."""
        per_dim = 4 * (3 * self.decoder.n_stimuli + 2 * len(self.blocks[0][2]))
        width = self.decoder.block_bytes // per_dim
        if self.decoder.device.type == "cpu":
            width = min(width, numerics.TILE_BYTES // (4 * len(self.blocks[0][2])))
        return max(16, width)

    def macs(self):
        """Multiplications and additions of one dim."""
        return sum(weights.numel() for _, _, weights in self.blocks)

    def losses(self, targets, mean):
        """Mean squared error of every alpha, averaged over folds: (n_alphas, dims) float64.

        targets : (dims, n_stimuli) float32, centred over training trials. mean : (dims,) float64, what was taken off.
        """
        n_forms = 1 + self.offsets.shape[1]
        found = torch.zeros(n_forms, len(targets), dtype=torch.float64, device=targets.device)
        for start, stop, weights in self.blocks:
            products = product(targets[:, :stop], weights.T).view(len(targets), n_forms, -1)
            if self.level is not None:
                products[:, 0] += (mean[:, None] * self.level[0, start:stop]).float()
            found[0] += products[:, 0].square().sum(1)
            found[1:] += torch.bmm(products[:, 1:], targets[:, start:stop, None])[:, :, 0].T
        if self.level is not None:
            # (y + m 1)'F (y + m 1) = y'F y + 2 m y'F 1 + m² 1'F 1
            rows = self.level[1:]
            found[1:] += mean * (2 * (targets @ rows.T.float()).double().T + mean * rows.sum(1)[:, None])
        return found[0] + self.offsets @ found[1:]


def _form(decoder, alpha):
    """Q (n_stimuli, n_stimuli) of an alpha, float64, its lower triangle at least; None where it would be imprecise."""
    values, vectors = decoder.kernel_eigen()
    sums = decoder.stimulus_vectors()
    form = torch.zeros(decoder.n_stimuli, decoder.n_stimuli, dtype=torch.float64, device=decoder.device)
    # In "paper" mode the mean is a direction like others, of eigenvalue zero.
    constant = 0 if decoder.mode == "fixed" else 1 / (decoder.n_trials * alpha)
    counts = torch.from_numpy(decoder.counts).to(form)
    for validation in decoder.validation_trials:
        held_out = torch.from_numpy(validation).to(decoder.device)
        scaled = vectors[held_out] / (values + alpha)
        rows = scaled @ sums.T
        # Without repeats these are the rows of A, and A_vv is among them.
        square = rows[:, held_out] if sums is vectors else scaled @ vectors[held_out].T
        factor, failed = torch.linalg.cholesky_ex(square + constant)
        if int(failed):
            return None
        rows = torch.cholesky_solve(rows.add_(constant * counts), factor).contiguous()
        leverage = float(rows.square().sum(1).max()) ** 0.5
        if numerics.EPS32 * decoder.n_trials ** 0.5 * leverage > 1e-4:
            return None
        numerics.add_square(form, rows / (len(validation) * decoder.n_folds) ** 0.5)
    return form


def _factor(form):
    """P, lower triangular, with P'P = form (of which the lower triangle is read); None if there is none."""
    # The Cholesky factor of the form in the opposite order, back in order.
    turned = form.tril()
    turned += turned.tril(-1).T
    turned = turned.flip(0, 1)
    turned.diagonal().add_(_JITTER * float(turned.diagonal().mean()))
    factor, failed = torch.linalg.cholesky_ex(turned)
    return None if int(failed) else factor.T.flip(0, 1)


def _few(cuts, packed):
    """The fewest combinations of the differences that serve: mixing (differences, forms), and weights of the same shape
    with differences ≈ weights @ (mixing' differences)."""
    n = len(packed[0]) - 1
    gram = torch.zeros(n, n, dtype=torch.float64, device=packed[0].device)
    for (start, _), rows in zip(cuts, packed):
        # A triangle holds what is off the diagonal twice.
        flat, diagonal = rows[1:].flatten(1).double(), rows[1:].diagonal(start, 1, 2).double()
        gram += (flat @ flat.T + diagonal @ diagonal.T) / 2
    # Of a target without direction, of unit variance, y'Fy varies by sqrt(2) of F's Frobenius norm.
    size = gram.diagonal().clamp(min=1e-300).sqrt()
    allowed = torch.clamp(1e-2 * size, max=FORM_TOLERANCE / 2 ** 0.5)
    strength, directions = torch.linalg.eigh(gram / allowed / allowed[:, None])
    strength, directions = strength.flip(0).clamp(min=0), directions.flip(1)
    for few in range(n):
        if (directions[:, few:].square() @ strength[few:] <= 1).all():
            # Forms of equal size: single precision holds the large and the small.
            directions = directions[:, :few] * (strength[:few].sqrt())
            return directions / strength[:few] / allowed[:, None], directions * allowed[:, None]
    return torch.eye(n).to(gram), torch.eye(n).to(gram)
