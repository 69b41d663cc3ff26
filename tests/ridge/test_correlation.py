"""The two test correlations, however their parts come, are those of the slow and obvious loop."""
from types import SimpleNamespace

import numpy as np
import pytest

from utils.ridge import correlation, fit_targets

IMAGES, DIMS = 9, 40


def world(offset=0.0):
    draw = np.random.default_rng(1)
    true = draw.normal(size=(IMAGES, DIMS)) + offset * draw.normal(size=DIMS)
    return true + draw.normal(size=true.shape), true


def slow(predicted, true):
    """One np.corrcoef at a time: (dims,) over images, (images,) over dims, as the published script does the latter."""
    return (np.array([np.corrcoef(p, t)[0, 1] for p, t in zip(predicted.T, true.T)]),
            np.array([np.corrcoef(p, t)[0, 1] for p, t in zip(predicted, true)]))


def by_blocks(found, predicted, true):
    for start in range(0, DIMS, 7):
        some = slice(start, start + 7)
        found.add(slice(None), some, predicted[:, some], true[:, some])


def by_images_in_any_order(found, predicted, true):
    for rows in np.array_split(np.random.default_rng(0).permutation(IMAGES), 4):
        found.add(rows, slice(None), predicted[rows], true[rows])


@pytest.mark.parametrize("way", [by_blocks, by_images_in_any_order])
@pytest.mark.parametrize("offset", [0, 1, 1e8])
def test_parts_in_any_order_give_what_one_corrcoef_at_a_time_gives(way, offset):
    predicted, true = world(offset)
    found = correlation.Correlations(IMAGES, DIMS)
    way(found, predicted, true)
    for ours, reference in zip((found.profile, found.pattern), slow(predicted, true)):
        np.testing.assert_allclose(ours, reference, atol=1e-7)


def test_dims_that_differ_in_their_means_give_a_pattern_correlation_without_any_information():
    _, true = world(offset=1000)
    found = correlation.Correlations(IMAGES, DIMS)
    by_blocks(found, np.random.default_rng(2).normal(size=true.shape) + true.mean(0), true)
    assert found.pattern.mean() > 0.99 and abs(found.profile.mean()) < 0.2


def test_what_does_not_vary_has_no_correlation_and_the_rest_has():
    predicted, true = world()
    predicted[:, 3] = predicted[2] = 0.1
    true[:, 5] = 1e6
    found = correlation.Correlations(IMAGES, DIMS)
    by_blocks(found, predicted, true)
    assert list(np.flatnonzero(np.isnan(found.profile))) == [3, 5]
    assert list(np.flatnonzero(np.isnan(found.pattern))) == [2]


def test_both_are_printed_by_name():
    said = correlation.sentence(0.7571, 0.676)
    assert said == "profile r = 0.757 (of a dim over images), pattern r = 0.676 (of an image over dims)"
    assert correlation.sentence(None, 0.5).startswith("profile r = not defined")


def test_paper_mode_decodes_fully_connected_layers_from_single_trials_as_published():
    def use(target, mode, use_stim=None):
        return fit_targets.use_of(SimpleNamespace(mode=mode, use_stim=use_stim), target)

    targets = ("conv1_2", "fc6", "fc8_occluded", "c")
    assert [use(target, "paper") for target in targets] == ["ave", "each", "each", "each"]
    assert [use(target, "fixed") for target in targets] == ["ave", "ave", "ave", "each"]
    assert use("fc6", "paper", "ave") == "ave" and use("fc6", "fixed", "each") == "each"
