"""The field's pattern indices, beside which the completion index stands (docs/amodal_completion.md says why)."""
import numpy as np

from utils.completion import completion_index, hidden_content


def indices(first, second, whole, rows, masks, pairs, seed=42):
    """Object completion and occlusion invariance index (Coggan & Tong 2024), each (value, low, high).

    first, second (v, voxels): patterns of the views in two disjoint sets of trials. whole (m, voxels): of the whole
    images.
    rows (v,), masks (v,): see Views. pairs: [(mask, mask)], what one hides the other shows. Each pattern is taken
    without the mean over the scenes of its mask. All correlations are between patterns of different trials.
    completion = (r[same scene, complementary] - r[other scene, complementary]) / (r[same scene, same occluder] -
    r[other scene, complementary]); invariance: the same with the whole image for the complementary view. Interval:
    bootstrap over scenes. NaN where there are no pairs.
    """
    completed, invariance = [], []          # per scene: same complementary, other complementary, same same
    for one, other in pairs:
        for a, b in ((one, other), (other, one)):
            here, there = (dict(zip(rows[masks == name], np.flatnonzero(masks == name))) for name in (a, b))
            both = sorted(set(here) & set(there))
            if len(both) < hidden_content.MIN_GROUP:
                continue
            mine, theirs = [here[k] for k in both], [there[k] for k in both]
            again = np.diagonal(_correlations(first[mine], second[mine]))
            for found, partner in ((completed, second[theirs]), (invariance, whole[both])):
                r = _correlations(first[mine], partner)
                apart = (r.sum(1) - np.diagonal(r)) / (len(r) - 1)
                found.append((np.array(both), np.diagonal(r), apart, again))
    return _ratio_of(completed, seed), _ratio_of(invariance, seed)


def _correlations(a, b):
    return completion_index.row_correlations(*(each - each.mean(0) for each in (a, b)))


def _ratio_of(found, seed):
    if not found:
        return np.nan, np.nan, np.nan
    count = max(images.max() for images, *_ in found) + 1
    above, below = np.zeros(count), np.zeros(count)
    for images, same, apart, again in found:
        above[images] += same - apart
        below[images] += again - apart
    there = np.unique(np.concatenate([images for images, *_ in found]))
    return float(above.sum() / below.sum()), *completion_index.interval(above[there], below[there], seed)
