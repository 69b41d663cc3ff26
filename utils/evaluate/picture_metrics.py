"""PixCorr and SSIM of two pictures, as the field's tables define them.

Ozcelik & VanRullen (2023); Scotti et al., MindEye (2023).
"""
import numpy as np

from utils import lazy
from utils.evaluate import judging_networks

skimage = lazy.module("skimage")

SIDE = 425  # px of NSD's stimuli: both metrics compare pictures at this size
SSIM = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}  # Wang et al. 2004


def prepared(picture):
    """(H, W, 3) uint8 square picture → (425, 425, 3) uint8, bilinear."""
    return judging_networks.resize(picture, SIDE)


def pixel_correlation(original, reconstruction):
    """Pearson r of two pictures (H, W, 3) uint8 over all pixels and channels; NaN where one is uniform."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(original.ravel(), reconstruction.ravel())[0, 1])


def similarity(original, reconstruction):
    """SSIM in [-1, 1] of two pictures (H, W, 3) uint8 turned grey in [0, 1]: Gaussian windows, sigma 1.5 px."""
    grey = map(skimage.color.rgb2gray, (original, reconstruction))
    return float(skimage.metrics.structural_similarity(*grey, **SSIM))
