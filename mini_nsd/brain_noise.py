"""From responses to betas: noise of three kinds, the gain of a session, clipped voxels."""
import numpy as np

from mini_nsd import brain_model


def clipped(brain):
    """(V,) bool: the voxels that are zero throughout CLIPPED_SESSION, as NSD's are at the edge of the imaged volume.

    Those of the ROIs carry no signal, so that what can be decoded stays the same.
    """
    anatomy = brain.anatomy
    top = np.unravel_index(anatomy.flat, anatomy.shape)[2]
    out = (top == top.max()) & (anatomy.label <= 0)
    out[np.flatnonzero(anatomy.label > 0)[brain.signal_sd == 0][::brain_model.CLIPPED]] = True
    return out


def measure(brain, responses, trials, session, noise=1.0):
    """One session's single-trial responses, (n, V) float32, percent signal change, in all V brain voxels.

    responses: (n, R) from `respond`, a row per trial. trials: (n,) each trial's number in the whole experiment, from
    which its noise derives. session: its number, 1-based, for the gain and the drift. noise: factor on every noise sd.
    """
    number, anatomy = brain_model.SUBJECTS[brain.subject].number, brain.anatomy
    share = {name: np.float32(np.sqrt(part)) for name, part in brain_model.NOISE_PARTS.items()}
    rng = np.random.default_rng((brain_model.SEED, number, 2, session))
    gain = np.exp(brain_model.SESSION_GAIN * rng.standard_normal())
    count = len(anatomy.flat)

    # Slow drift: three cosines over the session with weights of the voxel's own.
    time = (np.arange(len(responses)) + 0.5) / len(responses)
    cosines = np.sqrt(2 / 3) * np.cos(np.pi * time[:, None] * np.arange(1, 4))
    out = share["drift"] * (cosines @ rng.standard_normal((3, count))).astype(np.float32)

    # Noise that neighbours share: smooth patterns over the brain, a random mixture in each trial.
    waves = np.random.default_rng((brain_model.SEED, number, 5))
    phase = anatomy.place @ waves.normal(0, 2.5, (3, brain_model.FIELDS)) + waves.uniform(0, 2 * np.pi,
                                                                                          brain_model.FIELDS)
    patterns = (np.sqrt(2 / brain_model.FIELDS) * np.cos(phase).T).astype(np.float32)
    for row, trial in enumerate(trials):
        own = np.random.default_rng((brain_model.SEED, number, 1, int(trial)))
        out[row] += share["correlated"] * (own.standard_normal(brain_model.FIELDS, np.float32) @ patterns)
        out[row] += share["independent"] * own.standard_normal(count, np.float32)
    out *= (noise * brain.noise_sd).astype(np.float32)
    out[:, anatomy.label > 0] += brain.baseline + gain * (responses - brain.baseline)
    return out
