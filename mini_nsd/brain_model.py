"""The simulated brain: from what is on the screen to percent signal change in every voxel of a small volume.

SIMULATED. Nobody's brain was measured for this. The model shares nothing with the spaces that the pipeline decodes
into: no network, no autoencoder, no text embedding; numpy and a scene's own list of objects are all it uses.

    one = brain_making.make("subj01")
    visible = [brain_responses.visibility(rendering) for rendering in renderings]
    responses = brain_responses.respond(one, images, scenes, visible)        # (stimuli, ROI voxels), noise-free
    betas = brain_noise.measure(one, responses[rows], trials, session=1)     # (trials, brain voxels), noisy

`respond` is deterministic and takes the image that was shown apart from how much of each object was in view, so that
a view through an occluder is another call with another image and other visibilities, and a brain that completes the
hidden part is a weighted sum of two calls, with weights by `one.roi`.

Sources of the forms and figures: contrast energy from quadrature pairs, pooled and compressed, Kay et al. 2008 (Nature)
and 2013 (J Neurophysiol); divisive normalisation, Heeger 1992; cortical magnification with e2 = 0.75 deg, Horton & Hoyt
1991; receptive fields that grow with eccentricity and from V1 to V3, Dumoulin & Wandell 2008; several objects drive
a voxel like a normalised sum, MacEvoy & Epstein 2009; number tuning on a log axis, Harvey et al. 2013. How the parts
are weighted (SHARES) is our assumption. What all this cannot stand for is in this folder's README.
"""
from dataclasses import dataclass

import numpy as np

SEED = 73
FIELD = 8.4             # degrees of visual angle that the image spans (Allen et al. 2022)
GRID = 48               # px: resolution at which early vision sees the image (17 px a degree at NSD's 425 px → 5.7)
PADDED = 72             # px: the image on the scanner's grey screen, so that filters do not wrap around
FREQUENCIES = (4, 8, 16)                        # cycles per image side: 0.5, 1 and 1.9 cycles a degree
ORIENTATIONS = (0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
SATURATION = 0.001      # contrast energy at which normalisation is half-way; twice its median over the scenes
COMPRESSION = 0.5       # exponent of the pooled energy (Kay et al. 2013 find 0.2–0.5 for V1–V3)
CUTOFF = 3.0            # standard deviations: a receptive field is exactly zero farther out
CORTEX = 0.6            # of the brain's radius: voxels farther out are cortex
NOISE_ONLY = 0.22       # share of each ROI's voxels that carry no signal
REFERENCE = (7300, 160)         # seed and number of scenes, seen by no subject, that set the units of each component
NOISE_PARTS = {"independent": 0.80, "correlated": 0.15, "drift": 0.05}     # shares of a voxel's noise variance
FIELDS = 8              # smooth spatial patterns in the correlated part
SESSION_GAIN = 0.05     # sd of the log gain of a session
CLIPPED_SESSION = 2     # in which some voxels lay outside what the scanner imaged
CLIPPED = 40            # one in so many of a ROI's voxels without signal, and the brain's uppermost layer outside the
# Share of a voxel's signal variance, on average over the voxels of a ROI.
COMPONENTS = ("energy", "luminance", "red_green", "blue_yellow",
              "shape", "colour", "pattern", "conjunction", "place", "background", "number", "depth")
SHARES = {
    "early":       (0.34, 0.32, 0.17, 0.17, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00),
    "midventral":  (0.16, 0.12, 0.12, 0.12, 0.12, 0.15, 0.05, 0.06, 0.02, 0.08, 0.00, 0.00),
    "midlateral":  (0.22, 0.14, 0.07, 0.07, 0.16, 0.04, 0.03, 0.05, 0.14, 0.02, 0.04, 0.02),
    "midparietal": (0.22, 0.14, 0.07, 0.07, 0.02, 0.00, 0.00, 0.02, 0.26, 0.02, 0.08, 0.10),
    "ventral":     (0.00, 0.00, 0.00, 0.00, 0.27, 0.28, 0.06, 0.11, 0.05, 0.19, 0.04, 0.00),
    "lateral":     (0.00, 0.00, 0.00, 0.00, 0.31, 0.06, 0.04, 0.09, 0.27, 0.05, 0.13, 0.05),
    "parietal":    (0.00, 0.00, 0.00, 0.00, 0.04, 0.00, 0.00, 0.03, 0.42, 0.03, 0.23, 0.25),
}
PICTURE = 4             # the first components come from the picture, the rest from its objects
# Width (sd, image sides) of the window in which a voxel of a higher area sees objects: low and high end.
WINDOWS = {"midventral": (0.25, 0.45), "midlateral": (0.22, 0.40), "midparietal": (0.18, 0.32),
           "ventral": (0.45, 0.80), "lateral": (0.25, 0.50), "parietal": (0.15, 0.35)}
# Mean noise ceiling of the voxels that carry signal, for the average of three trials. With NOISE_ONLY the mean over all
# ROI voxels is about 36 %: README, "Noise".
CEILINGS = {"early": 0.50, "midventral": 0.48, "midlateral": 0.47, "midparietal": 0.44,
            "ventral": 0.46, "lateral": 0.45, "parietal": 0.38}
CEILING_SPREAD = 4.5    # a + b of the Beta distribution of noise ceilings: from near 0 to above 80 %
VISUAL_ROIS = ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4")       # NSD's prf-visualrois, labels 1–7
RF_SIZE = ((0.25, 0.10), (0.34, 0.13), (0.48, 0.19))    # degrees: V1, V2, V3 at fixation, and growth per degree


@dataclass(frozen=True)
class Plan:
    """What differs between the simulated subjects. voxels: number in each of `layout.ROIS`."""

    number: int
    shape: tuple
    voxels: tuple


SUBJECTS = {
    "subj01": Plan(1, (42, 40, 36), (1500, 170, 160, 160, 1000, 1000, 500)),
    "subj02": Plan(2, (40, 42, 38), (1340, 150, 150, 140, 900, 940, 460)),
}


@dataclass(frozen=True)
class Anatomy:
    """A volume of voxels, 1.8 mm apart; axes x to the right, y to the front, z upwards. V brain voxels in C order.

    flat    (V,) position of each brain voxel in the volume, C order, ascending
    label   (V,) -1 not cortex, 0 cortex outside the ROIs, k + 1 for layout.ROIS[k]
    place   (V, 3) coordinates in brain radii from its centre
    pole    (V,) distance from the occipital pole, brain radii
    """

    shape: tuple
    flat: np.ndarray
    label: np.ndarray
    place: np.ndarray
    pole: np.ndarray

    def volume(self, values, dtype, outside=0):
        """(X, Y, Z) array of `dtype` with values (V,) in the brain and `outside` elsewhere."""
        out = np.full(int(np.prod(self.shape)), outside, dtype)
        out[self.flat] = values
        return out.reshape(self.shape)


@dataclass(frozen=True)
class Tuning:
    """What each of the R ROI voxels responds to. Places and sizes are in image sides, x to the right, y down.

    centre (R, 2)               centre of the receptive field and of the window
    field (R,)                  sd of the receptive field in the picture
    window (R,)                 sd of the window in which objects count
    visual_roi (R,)             0, or label in VISUAL_ROIS + 1
    energy (R, 12)              weights of the energy maps, frequency by frequency, summing to 1
    shape (R, 6), colour (R, 8), pattern (R, 3), conjunction (R, 48), background (R, 6)    responses to each kind
    size, number, depth (R,)    preferred size (image sides), number, distance (metres)
    weight (R, 12)              of each of COMPONENTS, once these have unit variance
    """

    centre: np.ndarray
    field: np.ndarray
    window: np.ndarray
    visual_roi: np.ndarray
    energy: np.ndarray
    shape: np.ndarray
    colour: np.ndarray
    pattern: np.ndarray
    conjunction: np.ndarray
    background: np.ndarray
    size: np.ndarray
    number: np.ndarray
    depth: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Brain:
    """A simulated subject: R ROI voxels among V brain voxels.

    roi (R,)            label of each ROI voxel, 1–7; ROI voxels keep the volume's C order
    signal_sd (R,)      percent signal change; 0 where a voxel is noise only
    baseline (R,)       mean response, percent signal change
    noise_sd (V,)       sd of one trial's noise at noise = 1, percent signal change
    component_stats     mean and sd (2, R, 12) of the components over the reference scenes
    response_stats      mean and sd (2, R) of their weighted sum
    """

    subject: str
    anatomy: Anatomy
    roi: np.ndarray
    tuning: Tuning
    signal_sd: np.ndarray
    baseline: np.ndarray
    noise_sd: np.ndarray
    component_stats: np.ndarray
    response_stats: np.ndarray

    def ncsnr(self, noise=1.0):
        """(R,) true ratio of signal sd to single-trial noise sd."""
        return self.signal_sd / (noise * self.noise_sd[self.anatomy.label > 0])
