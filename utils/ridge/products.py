"""Single-precision matrix products on a CPU by the faster of two libraries.

PyTorch's own @ takes MKL, of half oneDNN's rate on a processor that is not Intel's (`benchmarks/ridge.py` prints both).
The operator that reaches oneDNN is private to PyTorch: where it is gone, or oneDNN is, @ serves.
"""
import functools

from utils import lazy

torch = lazy.module("torch")


@functools.cache
def has_onednn():
    """True if oneDNN is there and PyTorch still has the operator that reaches it."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def engine():
    """Which library multiplies, in words."""
    return "oneDNN" if has_onednn() else "PyTorch's own, as this PyTorch has no way to oneDNN's"


def product(left, right):
    """left (n, m) @ right (m, k)."""
    if left.device.type != "cpu" or left.dtype != torch.float32 or not has_onednn():
        return left @ right
    # oneDNN has no fast kernel for a right factor with gaps.
    weight = right.T if right.is_contiguous() or right.T.is_contiguous() else right.T.contiguous()
    return torch.ops.mkldnn._linear_pointwise(left, weight, None, "none", [], "")
