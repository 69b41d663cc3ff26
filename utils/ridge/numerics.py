"""Linear algebra of the ridge decoders, and the tolerances it is held to."""
import numpy as np

from utils import lazy

torch = lazy.module("torch")
scipy = lazy.module("scipy")

# Largest error of a held-out prediction, as a share of the target's norm, that the alpha basis may leave. Losses are
# then within 3e-7 of themselves, about what single-precision products leave (measured).
BASIS_TOLERANCE = 1e-5
# Held-out trials of one matrix product on a CPU, and the bytes that the bases of one block of dims may fill for so many
# trials: what is multiplied out is used before it leaves the processor's cache. A GPU takes a fold in one product.
TILE_TRIALS, TILE_BYTES = 256, 16 << 20
# Condition number up to which a float64 Cholesky factor of a Gram matrix is trusted (error about 1e-16 × it).
CHOLESKY_CONDITION = 1e9
EPS32 = float(np.finfo(np.float32).eps)
EPS64 = float(np.finfo(np.float64).eps)


def tiles(right, n_trials):
    """Columns of (rank, validation trials) in contiguous tiles of n_trials."""
    return [tile.contiguous() for tile in right.split(n_trials, 1)]


def add_square(gram, rows):
    """Add rows'rows to the lower triangle of gram, at least."""
    if gram.device.type == "cpu":
        # In place; the transposes have the column order that BLAS wants.
        scipy.linalg.blas.dsyrk(1.0, rows.numpy().T, beta=1.0, c=gram.numpy().T, overwrite_c=True)
    else:
        gram.addmm_(rows.T, rows)


def inverse_of_lower(factor):
    """Inverse of a lower triangular matrix, float64."""
    if factor.device.type == "cpu":
        return torch.from_numpy(scipy.linalg.lapack.dtrtri(factor.numpy(), lower=True)[0])
    return torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(factor), upper=False)


def eigen(gram):
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
    kept = values > values[-1] * len(values) * EPS64
    return values[kept], vectors if kept.all() else vectors[:, kept]


def cholesky(gram, alpha):
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


def low_rank(rows):
    """Functions (n, points) and weights (rows, n) with weights @ functions = rows (rows, points).

    As few as leave an error of BASIS_TOLERANCE; small rows may be off by 1% of themselves at most."""
    size = rows.abs().amax(1, keepdim=True).clamp(min=1e-300)
    tolerance = (BASIS_TOLERANCE / size).clamp(BASIS_TOLERANCE, 1e-2)[:, 0]
    u, s, functions = torch.linalg.svd(rows / size, full_matrices=False)
    u *= s
    residual = rows / size
    for n in range(len(s) + 1):
        if n == len(s) or (residual.abs().amax(1) <= tolerance).all():
            return functions[:n], u[:, :n] * size
        residual = residual - u[:, n:n + 1] * functions[n]
