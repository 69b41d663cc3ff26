"""Linear decoders of a feature from one ROI, and the encoding model of the visible-only response."""
from dataclasses import dataclass

import numpy as np

from utils.completion import context_model
from utils.ridge import penalties, ridge_decoder


@dataclass(frozen=True)
class Readout:
    """Linear decoders of one feature from one ROI: decoded = offset + (betas - mean) / scale · weights."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    offset: np.ndarray

    def __call__(self, betas):
        """(n, voxels) → (n, dims)."""
        return self.standardised(betas) @ self.weights + self.offset

    def standardised(self, betas):
        return (betas - self.mean) / self.scale


def readouts(betas, rows, features, alphas=penalties.FIXED_ALPHAS):
    """{name: Readout} by utils.ridge's ridge on single trials of whole images.

    betas (trials, voxels); rows (trials,): row of the features that each trial shows; features {name: (stimuli, d)}.
    Ridge is linear, so its answers to no deviation and to one sd in each voxel are its offset and weights.
    """
    mean, sd = betas.mean(0, dtype=np.float64), betas.std(0, dtype=np.float64)
    scale = np.where(sd > 0, sd, 1.0)
    probes = np.concatenate([mean[None], mean + np.diag(scale)])
    stimuli = len(next(iter(features.values())))
    decoder = ridge_decoder.Decoder(betas, rows, n_stimuli=stimuli)
    found = {}
    for name, feature in features.items():
        answers = np.empty((len(probes), feature.shape[1]), np.float32)
        decoder.predict_to(feature.astype(np.float32), probes, answers, alphas=alphas)
        found[name] = Readout(mean, scale, (answers[1:] - answers[0]).astype(np.float64), answers[0].astype(np.float64))
    return found


def visible_only(material, betas, rows):
    """((v, voxels) standardised responses that an encoding model predicts of the views as shown, its held-out r²).

    Fitted on the training trials' averages, from `appearance` to voxels. betas (trials, voxels), rows (trials,): see
    `readouts`.
    """
    mean, sd = betas.mean(0), np.where(betas.std(0) > 0, betas.std(0), 1.0)
    seen = np.unique(rows)
    sums = np.zeros((len(material.train_appearance), betas.shape[1]))
    np.add.at(sums, rows, (betas - mean) / sd)
    averages = sums[seen] / np.bincount(rows)[seen][:, None]
    model = context_model.Ridge(material.train_appearance[seen], averages)
    return model.predict(material.view_appearance), model.r2
