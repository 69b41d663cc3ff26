"""The simulated brain: from what is on the screen to percent signal change in every voxel of a small volume.

SIMULATED. Nobody's brain was measured for this. The model shares nothing with the spaces that the pipeline decodes
into: no network, no autoencoder, no text embedding; numpy and a scene's own list of objects are all it uses.

    brain = make("subj01")
    visible = [visibility(rendering) for rendering in renderings]
    responses = respond(brain, images, scenes, visible)               # (stimuli, ROI voxels), noise-free
    betas = measure(brain, responses[rows], trials, session=1)        # (trials, brain voxels), noisy

`respond` is deterministic and takes the image that was shown apart from how much of each object was in view, so that
a view through an occluder is another call with another image and other visibilities, and a brain that completes the
hidden part is a weighted sum of two calls, with weights by `brain.roi`.

Sources of the forms and figures: contrast energy from quadrature pairs, pooled and compressed, Kay et al. 2008 (Nature)
and 2013 (J Neurophysiol); divisive normalisation, Heeger 1992; cortical magnification with e2 = 0.75 deg, Horton & Hoyt
1991; receptive fields that grow with eccentricity and from V1 to V3, Dumoulin & Wandell 2008; several objects drive
a voxel like a normalised sum, MacEvoy & Epstein 2009; number tuning on a log axis, Harvey et al. 2013. How the parts
are weighted (SHARES) is our assumption. What all this cannot stand for is in this folder's README.
"""
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from mini_nsd import scenes
from utils import layout

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
                        # ROIs

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


# ---------------------------------------------------------------------------------------------------------------
# Making a brain


def make(subject, scale=1.0, fields=1.0):
    """The simulated brain of "subj01" or "subj02". scale: share of the voxels, for a smaller volume in tests.

    fields: factor on the size of every receptive field and window, for controls.
    """
    plan = SUBJECTS[subject]
    anatomy = _grow(plan, scale)
    in_roi = anatomy.label > 0
    roi = anatomy.label[in_roi]
    normal, uniform = _draws(plan.number, anatomy.flat[in_roi])
    tuning = _tune(anatomy, roi, normal, uniform, fields)

    names = np.array(layout.ROIS)[roi - 1]
    ceiling = _ceilings(names, plan.number, anatomy.flat[in_roi])
    ncsnr = np.sqrt(ceiling / (1 - ceiling) / 3)
    total_sd = 1.5 * np.exp(0.3 * normal["total_sd"])       # single-trial betas of NSD's visual cortex: sd 1–2 %
    noise_sd = np.empty(len(anatomy.flat))
    noise_sd[in_roi] = total_sd / np.sqrt(1 + ncsnr ** 2)
    noise_sd[~in_roi] = np.random.default_rng((SEED, plan.number, 3)).uniform(0.7, 1.3, (~in_roi).sum())
    signal_sd = noise_sd[in_roi] * ncsnr
    baseline = 1.0 + 0.6 * normal["baseline"]

    raw = _components(tuning, *_reference())
    component_stats = np.stack([raw.mean(0), np.maximum(raw.std(0), 1e-6)])
    mixed = _mix(tuning, raw, component_stats)
    response_stats = np.stack([mixed.mean(0), np.maximum(mixed.std(0), 1e-6)])
    return Brain(subject, anatomy, roi, tuning, signal_sd, baseline, noise_sd, component_stats, response_stats)


def _grow(plan, scale):
    """Two half-ellipsoids. Early cortex lies at the occipital pole, the three streams run forward from it."""
    shape = tuple(int(np.ceil(side * scale ** (1 / 3))) for side in plan.shape)
    axes = [(np.arange(side) - (side - 1) / 2) / (0.40 * side) for side in shape]
    place = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    radius = np.linalg.norm(place, axis=1)
    flat = np.flatnonzero((radius <= 1) & (np.abs(place[:, 0]) > 0.04))
    place, radius = place[flat], radius[flat]
    pole = np.linalg.norm(place - (0, -1, 0), axis=1)

    label = np.where(radius > CORTEX, 0, -1)
    counts = dict(zip(layout.ROIS, (max(12, round(scale * count)) for count in plan.voxels)))
    sector = np.argmax(np.stack([-place[:, 2], np.abs(place[:, 0]), place[:, 2]]), axis=0)
    streams = (("midventral", "ventral"), ("midlateral", "lateral"), ("midparietal", "parietal"))
    for which, rois in [(slice(None), ("early",)), *enumerate(streams)]:
        free = label == 0 if which == slice(None) else (label == 0) & (sector == which)
        forward = np.flatnonzero(free)[np.argsort(pole[free], kind="stable")]
        for roi in rois:
            label[forward[:counts[roi]]] = layout.ROIS.index(roi) + 1
            forward = forward[counts[roi]:]
    return Anatomy(shape, flat, label, place, pole)


_NORMAL = {"shape": 6, "colour": 8, "pattern": 3, "conjunction": 48, "background": 6, "jitter": 3, "weight": 12,
           "total_sd": 1, "baseline": 1}
_UNIFORM = {"centre": 2, "window": 1, "size": 1, "number": 1, "depth": 1, "orientation": 1, "bandwidth": 1, "share": 12}


def _draws(number, flat):
    """Each voxel's random numbers, by name, from a stream of its own: (R,) or (R, k)."""
    normal = np.empty((len(flat), sum(_NORMAL.values())))
    uniform = np.empty((len(flat), sum(_UNIFORM.values())))
    for row, voxel in enumerate(flat):
        rng = np.random.default_rng((SEED, number, 0, int(voxel)))
        normal[row], uniform[row] = rng.standard_normal(normal.shape[1]), rng.random(uniform.shape[1])
    return _split(normal, _NORMAL), _split(uniform, _UNIFORM)


def _split(columns, widths):
    parts = np.split(columns, np.cumsum(list(widths.values()))[:-1], axis=1)
    return {name: part[:, 0] if part.shape[1] == 1 else part for name, part in zip(widths, parts)}


def _ceilings(names, number, flat):
    """(R,) noise ceiling of the average of three trials at noise = 1; 0 for the voxels that are noise only."""
    ceiling = np.empty(len(flat))
    for row, (name, voxel) in enumerate(zip(names, flat)):
        rng = np.random.default_rng((SEED, number, 4, int(voxel)))
        mean = CEILINGS[name]
        drawn = rng.beta(CEILING_SPREAD * mean, CEILING_SPREAD * (1 - mean))
        ceiling[row] = 0.0 if rng.random() < NOISE_ONLY else min(drawn, 0.92)
    return ceiling


def _tune(anatomy, roi, normal, uniform, fields):
    place, pole = anatomy.place[anatomy.label > 0], anatomy.pole[anatomy.label > 0]
    centre = 0.08 + 0.84 * uniform["centre"]
    field, window = np.empty(len(roi)), np.empty(len(roi))
    visual_roi = np.zeros(len(roi), int)
    for index, name in enumerate(layout.ROIS):
        here = roi == index + 1
        if name == "early":
            centre[here], field[here], visual_roi[here] = _retinotopy(place[here], pole[here], normal["jitter"][here])
            window[here] = field[here]
        else:
            low, high = WINDOWS[name]
            window[here] = low + (high - low) * uniform["window"][here]
            field[here] = window[here] / 3      # an assumption: features pool over less than objects do
    field, window = fields * field, fields * window
    energy = _energy_tuning(field, uniform["orientation"], uniform["bandwidth"])
    share = np.array([SHARES[name] for name in layout.ROIS])[roi - 1]
    share = share * -np.log(uniform["share"])               # exponential: voxels of a ROI differ in what they mix
    # Contrast drives up; for luminance and the colour opponents each voxel has a sign of its own.
    sign = np.where(normal["weight"] < 0, -1, 1)
    sign[:, 0], sign[:, PICTURE:] = 1, 1
    return Tuning(centre, field, window, visual_roi, energy, normal["shape"], normal["colour"], normal["pattern"],
                  normal["conjunction"], normal["background"], 0.16 * (0.55 / 0.16) ** uniform["size"],
                  4.0 ** uniform["number"], 2.0 + 3.0 * uniform["depth"],
                  sign * np.sqrt(share / share.sum(1, keepdims=True)))


def _retinotopy(place, pole, jitter):
    """Early cortex as a map of the visual field: V1, V2 and V3 in turn away from the calcarine, each mirrored.

    Returns centre (n, 2) and width (n,) in image sides, and the label in prf-visualrois (n,). The left hemisphere sees
    the right half of the field and the lower bank the upper half; eccentricity grows forward from the pole.
    """
    left, lower = place[:, 0] < 0, place[:, 2] < 0
    bank = 2 * left + lower
    height = 3 * np.clip(_rank(np.abs(place[:, 2]), bank) + 0.01 * jitter[:, 0], 0.001, 0.999)
    area = height.astype(int)
    along = height - area
    polar = np.pi / 2 * np.where(area == 1, 1 - along, along)       # from the horizontal meridian, mirrored in V2
    farthest = 0.98 * FIELD / 2 / np.maximum(np.cos(polar), np.sin(polar))       # where the picture ends
    forward = np.clip(_rank(pole, 3 * bank + area) + 0.03 * jitter[:, 1], 0.005, 1)
    e2 = 0.75
    eccentricity = e2 * ((1 + farthest / e2) ** forward - 1)
    x = eccentricity * np.cos(polar) * np.where(left, 1, -1)
    y = eccentricity * np.sin(polar) * np.where(lower, -1, 1)
    start, slope = np.array(RF_SIZE)[area].T
    width = (start + slope * eccentricity) * np.exp(0.2 * jitter[:, 2])
    return np.stack([x, y], axis=1) / FIELD + 0.5, width / FIELD, 2 * area + np.where(lower, 1, 2)


def _rank(values, group):
    """Rank of each value in its group, as a number in (0, 1)."""
    order = np.lexsort((values, group))
    sizes = np.bincount(group)
    first = np.cumsum(sizes) - sizes
    rank = np.empty(len(values))
    rank[order] = (np.arange(len(values)) - first[group[order]] + 0.5) / sizes[group[order]]
    return rank


def _energy_tuning(field, orientation, bandwidth):
    """(R, 12) weights: spatial frequency falls with the size of the receptive field, orientation is by chance."""
    preferred = 0.45 / field            # cycles per image side: about one cycle in ±1 sd
    octaves = np.log2(np.array(FREQUENCIES)[None, :] / np.clip(preferred, 4, 16)[:, None])
    frequency = np.exp(-0.5 * (octaves / 0.8) ** 2)
    angle = np.array(ORIENTATIONS)[None, :] - np.pi * orientation[:, None]
    oriented = np.exp((0.5 + 2.0 * bandwidth[:, None]) * np.cos(2 * angle))
    weights = (frequency[:, :, None] * oriented[:, None, :]).reshape(len(field), -1)
    return weights / weights.sum(1, keepdims=True)


@lru_cache(maxsize=1)
def _reference():
    seed, count = REFERENCE
    drawn = [scenes.sample(seed, index) for index in range(count)]
    rendered = [scenes.render(scene, 2 * GRID) for scene in drawn]
    return retina([picture.image for picture in rendered]), drawn, [visibility(picture) for picture in rendered]


# ---------------------------------------------------------------------------------------------------------------
# Responses


def retina(images):
    """(n, GRID, GRID, 3) uint8: pictures (H, W, 3) uint8 of any size, averaged over the pixels of the coarser grid."""
    return np.stack([picture if picture.shape[0] == GRID
                     else np.asarray(Image.fromarray(picture).resize((GRID, GRID), Image.Resampling.BOX))
                     for picture in images])


def visibility(rendering, hidden=None):
    """(objects,) share of each object's silhouette that is in view, in [0, 1].

    rendering: a `scenes.Rendering`. hidden: (size, size) bool, True where an occluder covers the picture.
    """
    seen = rendering.labels if hidden is None else np.where(hidden, -1, rendering.labels)
    return np.array([(seen == position).sum() / max(1, silhouette.sum())
                     for position, silhouette in enumerate(rendering.amodal)])


def respond(brain, images, shown, visible, batch=64):
    """The noise-free response, (n, R) float32, percent signal change; R ROI voxels in the volume's C order.

    images: n pictures (H, W, 3) uint8 as they were shown. shown: their n `scenes.Scene`. visible: for each, the share
    of every object that was in view, (objects,) in [0, 1] (see `visibility`). batch: pictures at a time; the result
    does not depend on it beyond the rounding of float32.
    """
    out = np.empty((len(shown), len(brain.roi)), np.float32)
    for start in range(0, len(shown), batch):
        part = slice(start, start + batch)
        raw = _components(brain.tuning, retina(images[part]), shown[part], visible[part])
        mixed = _mix(brain.tuning, raw, brain.component_stats)
        scaled = (mixed - brain.response_stats[0]) / brain.response_stats[1]
        out[part] = brain.baseline + brain.signal_sd * scaled
    return out


def _components(tuning, pictures, shown, visible):
    """(n, R, 12) raw values of COMPONENTS; zero where no voxel of the ROI has the component."""
    out = np.zeros((len(shown), len(tuning.field), len(COMPONENTS)), np.float32)
    sees = tuning.weight[:, :PICTURE].any(1)
    knows = tuning.weight[:, PICTURE:].any(1)
    out[:, sees, :PICTURE] = _picture_components(tuning, sees, pictures)
    out[:, knows, PICTURE:] = _object_components(tuning, knows, shown, visible)
    return out


def _mix(tuning, raw, stats):
    return np.einsum("nrc,rc->nr", (raw - stats[0]) / stats[1], tuning.weight)


def _picture_components(tuning, sees, pictures):
    """(n, voxels, 4): compressed contrast energy, luminance, red–green and blue–yellow in each receptive field."""
    fields = _receptive_fields(tuning.centre[sees], tuning.field[sees])
    maps = _maps(pictures)
    count, channels = maps.shape[:2]
    pooled = (maps.reshape(count * channels, -1) @ fields.T).reshape(count, channels, -1)
    energy = np.einsum("nkr,rk->nr", pooled[:, 3:], tuning.energy[sees]) ** COMPRESSION
    return np.stack([energy, pooled[:, 0], pooled[:, 1], pooled[:, 2]], axis=-1)


def _receptive_fields(centre, sd):
    """(voxels, GRID²) float32 Gaussians that sum to 1; exactly zero beyond CUTOFF."""
    axis = (np.arange(GRID) + 0.5) / GRID
    x = (axis[None, :] - centre[:, :1]) / sd[:, None]
    y = (axis[None, :] - centre[:, 1:]) / sd[:, None]
    squared = y[:, :, None] ** 2 + x[:, None, :] ** 2
    fields = np.where(squared < CUTOFF ** 2, np.exp(-squared / 2), 0).reshape(len(sd), -1)
    return (fields / fields.sum(1, keepdims=True)).astype(np.float32)


def _maps(pictures):
    """(n, 15, GRID²) float32: luminance and two colour opponents about grey, then normalised energy by frequency.

    Luminance and opponents are taken from the encoded RGB values, whose steps are about equally visible.
    """
    red, green, blue = np.moveaxis(pictures.astype(np.float32) / 255, -1, 0)
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue - 0.5
    spectrum = np.fft.fft2(luminance, (PADDED, PADDED))
    energy = np.stack([np.abs(np.fft.ifft2(spectrum * gabor)[:, :GRID, :GRID]) ** 2 for gabor in _gabors()], axis=1)
    energy = energy / (SATURATION + energy.mean(1, keepdims=True))
    maps = np.concatenate([np.stack([luminance, red - green, blue - (red + green) / 2], axis=1), energy], axis=1)
    return maps.reshape(len(pictures), -1, GRID * GRID).astype(np.float32)


@lru_cache(maxsize=1)
def _gabors():
    """(12, PADDED, PADDED) spectra of complex Gabors: real and imaginary part of a response are the quadrature pair.

    The envelope's sd is half a wavelength. High frequencies are amplified to even out a scene's 1/f spectrum.
    """
    along = np.fft.fftfreq(PADDED)
    filters = []
    for frequency in FREQUENCIES:
        cycles = frequency / GRID           # per pixel
        for orientation in ORIENTATIONS:
            fx, fy = cycles * np.cos(orientation), cycles * np.sin(orientation)
            squared = (along[None, :] - fx) ** 2 + (along[:, None] - fy) ** 2
            spectrum = frequency / FREQUENCIES[0] * np.exp(-2 * np.pi ** 2 * (0.5 / cycles) ** 2 * squared)
            spectrum[0, 0] = 0              # no response to uniform light
            filters.append(spectrum)
    return np.stack(filters)


def _object_components(tuning, knows, shown, visible):
    """(n, voxels, 8): what is there, how many, how large, where, how far."""
    things = [thing for scene in shown for thing in scene.objects]
    first = np.cumsum([0] + [len(scene.objects) for scene in shown[:-1]])

    def total(values):
        return np.add.reduceat(values, first, axis=0)

    def kind(names, attribute):
        return np.array([names.index(getattr(thing, attribute)) for thing in things])

    shape, colour = kind(scenes.SHAPES, "shape"), kind(scenes.COLOURS, "colour")
    pattern = kind(scenes.PATTERNS, "pattern")
    x, y, size, depth = (np.array([getattr(thing, name) for thing in things]) for name in ("x", "y", "size", "depth"))
    seen = np.concatenate(visible)
    scene_of = np.repeat(np.arange(len(shown)), [len(scene.objects) for scene in shown])

    # Large things drive more, hidden ones less; together they drive less than the sum of each alone.
    salience = seen ** 0.7 * (size / 0.4)
    drive = salience / np.maximum(total(salience), 0.05)[scene_of] ** 0.7
    centre, window = tuning.centre[knows], tuning.window[knows]
    distance = (x[:, None] - centre[:, 0]) ** 2 + (y[:, None] - centre[:, 1]) ** 2
    drive = (drive[:, None] * np.exp(-distance / (2 * window ** 2))).astype(np.float32)          # (objects, voxels)

    number = np.log(np.maximum(total(np.sqrt(seen)), 0.05))
    background = [scenes.BACKGROUNDS.index(scene.background.kind) for scene in shown]
    return np.stack([
        total(drive * tuning.shape[knows].T[shape]),
        total(drive * tuning.colour[knows].T[colour]),
        total(drive * tuning.pattern[knows].T[pattern]),
        total(drive * tuning.conjunction[knows].T[shape * len(scenes.COLOURS) + colour]),
        total(drive * np.exp(-np.log(size[:, None] / tuning.size[knows]) ** 2 / (2 * 0.5 ** 2))),
        tuning.background[knows].T[background],
        np.exp(-(number[:, None] - np.log(tuning.number[knows])) ** 2 / (2 * 0.6 ** 2)),
        total(drive * np.exp(-(depth[:, None] - tuning.depth[knows]) ** 2 / (2 * 0.6 ** 2))),
    ], axis=-1)


# ---------------------------------------------------------------------------------------------------------------
# Noise


def clipped(brain):
    """(V,) bool: the voxels that are zero throughout CLIPPED_SESSION, as NSD's are at the edge of the imaged volume.

    Those of the ROIs carry no signal, so that what can be decoded stays the same.
    """
    anatomy = brain.anatomy
    top = np.unravel_index(anatomy.flat, anatomy.shape)[2]
    out = (top == top.max()) & (anatomy.label <= 0)
    out[np.flatnonzero(anatomy.label > 0)[brain.signal_sd == 0][::CLIPPED]] = True
    return out


def measure(brain, responses, trials, session, noise=1.0):
    """One session's single-trial responses, (n, V) float32, percent signal change, in all V brain voxels.

    responses: (n, R) from `respond`, a row per trial. trials: (n,) each trial's number in the whole experiment, from
    which its noise derives. session: its number, 1-based, for the gain and the drift. noise: factor on every noise sd.
    """
    number, anatomy = SUBJECTS[brain.subject].number, brain.anatomy
    share = {name: np.float32(np.sqrt(part)) for name, part in NOISE_PARTS.items()}
    rng = np.random.default_rng((SEED, number, 2, session))
    gain = np.exp(SESSION_GAIN * rng.standard_normal())
    count = len(anatomy.flat)

    # Slow drift: three cosines over the session with weights of the voxel's own.
    time = (np.arange(len(responses)) + 0.5) / len(responses)
    cosines = np.sqrt(2 / 3) * np.cos(np.pi * time[:, None] * np.arange(1, 4))
    out = share["drift"] * (cosines @ rng.standard_normal((3, count))).astype(np.float32)

    # Noise that neighbours share: smooth patterns over the brain, a random mixture in each trial.
    waves = np.random.default_rng((SEED, number, 5))
    phase = anatomy.place @ waves.normal(0, 2.5, (3, FIELDS)) + waves.uniform(0, 2 * np.pi, FIELDS)
    patterns = (np.sqrt(2 / FIELDS) * np.cos(phase).T).astype(np.float32)
    for row, trial in enumerate(trials):
        own = np.random.default_rng((SEED, number, 1, int(trial)))
        out[row] += share["correlated"] * (own.standard_normal(FIELDS, np.float32) @ patterns)
        out[row] += share["independent"] * own.standard_normal(count, np.float32)
    out *= (noise * brain.noise_sd).astype(np.float32)
    out[:, anatomy.label > 0] += brain.baseline + gain * (responses - brain.baseline)
    return out
