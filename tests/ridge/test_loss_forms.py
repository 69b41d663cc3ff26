"""Losses as quadratic forms: those of refitting each fold in float64, and taken only where precise and cheaper."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ridge.test_ridge_decoder import WIDE, World, assert_agrees, one_thread, reference  # noqa: F401
from utils.ridge import loss_forms
from utils.ridge.fold_losses import FoldLosses
from utils.ridge.penalties import FIXED_ALPHAS, paper_alphas

NEAR = paper_alphas("conv1_1")


def by_folds(decoder, alphas):
    """The decoder's losses the other way, which factorises each fold by itself."""
    return FoldLosses(decoder, decoder._folds(alphas), len(alphas))


@pytest.mark.parametrize("mode", ["fixed", "paper"])
@pytest.mark.parametrize("alphas", [NEAR, FIXED_ALPHAS, (10.0,)], ids=["near", "ten", "one"])
@pytest.mark.parametrize("repeats", [1, 3])
def test_forms_give_what_refitting_each_fold_gives(mode, alphas, repeats):
    world = World(n_stimuli=300, n_voxels=900, max_repeats=repeats, dims=12)
    decoder, report, out = world.fit(mode=mode, alphas=alphas)
    forms = loss_forms.build(decoder, decoder.alphas)
    assert forms is not None
    targets, mean, _ = decoder._centred(world.features, 0)
    found = forms.losses(targets, mean).numpy()
    wanted, _ = reference(world, decoder.validation_trials, alphas, mode == "fixed")
    np.testing.assert_allclose(found, wanted, rtol=2e-6)
    np.testing.assert_allclose(found, by_folds(decoder, decoder.alphas).losses(targets, mean), rtol=5e-5)
    if mode == "fixed":
        assert_agrees(world, decoder, report, out, alphas, intercept=True)


def test_differences_between_alphas_are_kept_far_below_single_precision():
    world = World(n_stimuli=300, n_voxels=900, max_repeats=1, dims=12, mean=500.0)
    alphas = (1e4, 1e4 * (1 + 1e-6))
    decoder, _, _ = world.fit(alphas=alphas)
    targets, mean, _ = decoder._centred(world.features, 0)
    found = loss_forms.build(decoder, decoder.alphas).losses(targets, mean).numpy()
    wanted, _ = reference(world, decoder.validation_trials, alphas, True)
    np.testing.assert_allclose(found[1] - found[0], wanted[1] - wanted[0], rtol=2e-2)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), n_stimuli=st.integers(150, 260), excess=st.integers(1, 400),
       decades=st.tuples(st.integers(-2, 5), st.integers(0, 2)), mode=st.sampled_from(["fixed", "paper"]))
def test_random_inputs_are_scored_as_by_folds_or_left_to_them(seed, n_stimuli, excess, decades, mode):
    world = World(n_stimuli=n_stimuli, n_voxels=n_stimuli + excess, max_repeats=1, dims=5, seed=seed)
    alphas = np.logspace(decades[0], sum(decades), 1 + decades[1])
    decoder, _, _ = world.fit(mode=mode, alphas=alphas)
    targets, mean, _ = decoder._centred(world.features, 0)
    forms = loss_forms.build(decoder, decoder.alphas)
    if forms is not None:
        np.testing.assert_allclose(forms.losses(targets, mean), by_folds(decoder, decoder.alphas).losses(targets, mean),
                                   rtol=1e-4)


def test_a_singular_kernel_is_left_to_the_folds():
    world = World(n_stimuli=200, n_voxels=500, max_repeats=1, dims=5)
    world.voxels[1] = world.voxels[0]       # two equal rows: the kernel lacks a direction
    decoder, report, out = world.fit(alphas=WIDE)
    assert loss_forms.build(decoder, decoder.alphas) is None
    assert_agrees(world, decoder, report, out, WIDE, intercept=True)


def test_the_dearer_way_is_not_taken():
    world = World(n_stimuli=300, n_voxels=900, max_repeats=1, dims=3)
    decoder, _, _ = world.fit(alphas=NEAR)
    assert loss_forms.build(decoder, decoder.alphas).macs() < loss_forms.fold_macs(decoder, decoder.alphas)
    many = np.logspace(0, 6, 200)
    assert loss_forms.macs_bound(decoder, many) > loss_forms.fold_macs(decoder, many)
    assert loss_forms.build(decoder, many) is None
    primal, _, _ = World(n_stimuli=200, n_voxels=60, dims=3).fit(alphas=NEAR)
    assert loss_forms.build(primal, primal.alphas) is None
