"""Making a simulated brain: its anatomy, and what each voxel is tuned to."""
from functools import lru_cache

import numpy as np

from mini_nsd import brain_model, brain_responses, scene_rendering, scene_sampling
from utils import layout


def make(subject, scale=1.0, fields=1.0):
    """The simulated brain of "subj01" or "subj02". scale: share of the voxels, for a smaller volume in tests.

    fields: factor on the size of every receptive field and window, for controls.
    """
    plan = brain_model.SUBJECTS[subject]
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
    noise_sd[~in_roi] = np.random.default_rng((brain_model.SEED, plan.number, 3)).uniform(0.7, 1.3, (~in_roi).sum())
    signal_sd = noise_sd[in_roi] * ncsnr
    baseline = 1.0 + 0.6 * normal["baseline"]

    raw = brain_responses.raw_components(tuning, *_reference())
    component_stats = np.stack([raw.mean(0), np.maximum(raw.std(0), 1e-6)])
    mixed = brain_responses.weighted_sum(tuning, raw, component_stats)
    response_stats = np.stack([mixed.mean(0), np.maximum(mixed.std(0), 1e-6)])
    return brain_model.Brain(subject, anatomy, roi, tuning, signal_sd, baseline, noise_sd, component_stats,
                             response_stats)


def _grow(plan, scale):
    """Two half-ellipsoids. Early cortex lies at the occipital pole, the three streams run forward from it."""
    shape = tuple(int(np.ceil(side * scale ** (1 / 3))) for side in plan.shape)
    axes = [(np.arange(side) - (side - 1) / 2) / (0.40 * side) for side in shape]
    place = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    radius = np.linalg.norm(place, axis=1)
    flat = np.flatnonzero((radius <= 1) & (np.abs(place[:, 0]) > 0.04))
    place, radius = place[flat], radius[flat]
    pole = np.linalg.norm(place - (0, -1, 0), axis=1)

    label = np.where(radius > brain_model.CORTEX, 0, -1)
    counts = dict(zip(layout.ROIS, (max(12, round(scale * count)) for count in plan.voxels)))
    sector = np.argmax(np.stack([-place[:, 2], np.abs(place[:, 0]), place[:, 2]]), axis=0)
    streams = (("midventral", "ventral"), ("midlateral", "lateral"), ("midparietal", "parietal"))
    for which, rois in [(slice(None), ("early",)), *enumerate(streams)]:
        free = label == 0 if which == slice(None) else (label == 0) & (sector == which)
        forward = np.flatnonzero(free)[np.argsort(pole[free], kind="stable")]
        for roi in rois:
            label[forward[:counts[roi]]] = layout.ROIS.index(roi) + 1
            forward = forward[counts[roi]:]
    return brain_model.Anatomy(shape, flat, label, place, pole)


_NORMAL = {"shape": 6, "colour": 8, "pattern": 3, "conjunction": 48, "background": 6, "jitter": 3, "weight": 12,
           "total_sd": 1, "baseline": 1}
_UNIFORM = {"centre": 2, "window": 1, "size": 1, "number": 1, "depth": 1, "orientation": 1, "bandwidth": 1, "share": 12}


def _draws(number, flat):
    """Each voxel's random numbers, by name, from a stream of its own: (R,) or (R, k)."""
    normal = np.empty((len(flat), sum(_NORMAL.values())))
    uniform = np.empty((len(flat), sum(_UNIFORM.values())))
    for row, voxel in enumerate(flat):
        rng = np.random.default_rng((brain_model.SEED, number, 0, int(voxel)))
        normal[row], uniform[row] = rng.standard_normal(normal.shape[1]), rng.random(uniform.shape[1])
    return _split(normal, _NORMAL), _split(uniform, _UNIFORM)


def _split(columns, widths):
    parts = np.split(columns, np.cumsum(list(widths.values()))[:-1], axis=1)
    return {name: part[:, 0] if part.shape[1] == 1 else part for name, part in zip(widths, parts)}


def _ceilings(names, number, flat):
    """(R,) noise ceiling of the average of three trials at noise = 1; 0 for the voxels that are noise only."""
    ceiling = np.empty(len(flat))
    for row, (name, voxel) in enumerate(zip(names, flat)):
        rng = np.random.default_rng((brain_model.SEED, number, 4, int(voxel)))
        mean = brain_model.CEILINGS[name]
        drawn = rng.beta(brain_model.CEILING_SPREAD * mean, brain_model.CEILING_SPREAD * (1 - mean))
        ceiling[row] = 0.0 if rng.random() < brain_model.NOISE_ONLY else min(drawn, 0.92)
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
            low, high = brain_model.WINDOWS[name]
            window[here] = low + (high - low) * uniform["window"][here]
            field[here] = window[here] / 3      # an assumption: features pool over less than objects do
    field, window = fields * field, fields * window
    energy = _energy_tuning(field, uniform["orientation"], uniform["bandwidth"])
    share = np.array([brain_model.SHARES[name] for name in layout.ROIS])[roi - 1]
    share = share * -np.log(uniform["share"])               # exponential: voxels of a ROI differ in what they mix
    # Contrast drives up; for luminance and the colour opponents each voxel has a sign of its own.
    sign = np.where(normal["weight"] < 0, -1, 1)
    sign[:, 0], sign[:, brain_model.PICTURE:] = 1, 1
    return brain_model.Tuning(centre, field, window, visual_roi, energy, normal["shape"], normal["colour"],
                              normal["pattern"],
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
    farthest = 0.98 * brain_model.FIELD / 2 / np.maximum(np.cos(polar), np.sin(polar))       # where the picture ends
    forward = np.clip(_rank(pole, 3 * bank + area) + 0.03 * jitter[:, 1], 0.005, 1)
    e2 = 0.75
    eccentricity = e2 * ((1 + farthest / e2) ** forward - 1)
    x = eccentricity * np.cos(polar) * np.where(left, 1, -1)
    y = eccentricity * np.sin(polar) * np.where(lower, -1, 1)
    start, slope = np.array(brain_model.RF_SIZE)[area].T
    width = (start + slope * eccentricity) * np.exp(0.2 * jitter[:, 2])
    return np.stack([x, y], axis=1) / brain_model.FIELD + 0.5, width / brain_model.FIELD, 2 * area + np.where(lower, 1,
                                                                                                              2)


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
    octaves = np.log2(np.array(brain_model.FREQUENCIES)[None, :] / np.clip(preferred, 4, 16)[:, None])
    frequency = np.exp(-0.5 * (octaves / 0.8) ** 2)
    angle = np.array(brain_model.ORIENTATIONS)[None, :] - np.pi * orientation[:, None]
    oriented = np.exp((0.5 + 2.0 * bandwidth[:, None]) * np.cos(2 * angle))
    weights = (frequency[:, :, None] * oriented[:, None, :]).reshape(len(field), -1)
    return weights / weights.sum(1, keepdims=True)


@lru_cache(maxsize=1)
def _reference():
    seed, count = brain_model.REFERENCE
    drawn = [scene_sampling.sample(seed, index) for index in range(count)]
    rendered = [scene_rendering.render(scene, 2 * brain_model.GRID) for scene in drawn]
    return brain_responses.retina([picture.image for picture in rendered]), drawn, [brain_responses.visibility(picture)
                                                                                    for picture in rendered]
