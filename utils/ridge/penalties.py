"""The ridge penalties that are tried."""
import numpy as np

#: `--mode fixed`: 1 … 1e6, log-spaced.
FIXED_ALPHAS = tuple(float(a) for a in np.logspace(0, 6, 10))
_LATENT_ALPHAS = tuple(10.0 ** e for e in range(-6, 1))
_WIDE_ALPHAS = (1e4, 2e4, 4e4)


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


def checked_alphas(alphas):
    """Alphas as an ascending float64 array."""
    checked = np.unique(np.atleast_1d(np.asarray(alphas, dtype=np.float64)))
    if checked.size == 0 or not np.isfinite(checked).all() or checked[0] <= 0:
        raise ValueError(f"alphas {alphas} — give one or more positive numbers")
    return checked
