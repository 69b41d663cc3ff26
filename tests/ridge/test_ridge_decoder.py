"""Ridge decoders against himalaya (paper mode), scikit-learn in float64 (fixed mode), and themselves."""
import json
import warnings

import h5py
import numpy as np
import pytest
import torch
from himalaya.ridge import RidgeCV
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

from utils.ridge import numerics
from utils.ridge.penalties import FIXED_ALPHAS, paper_alphas
from utils.ridge.ridge_decoder import Decoder

TINY = paper_alphas("c")
WIDE = paper_alphas("blip")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class World:
    """Voxels and features that share latent causes; every stimulus is shown 1 to 4 times, in mixed order."""

    def __init__(self, n_stimuli=160, n_voxels=60, dims=24, max_repeats=4, mean=7.3, noise=4.0, seed=0):
        rng = np.random.default_rng(seed)
        n_test = 20
        causes = rng.normal(size=(n_stimuli + n_test, 12))
        to_voxels, to_features = rng.normal(size=(12, n_voxels)), rng.normal(size=(12, dims))
        repeats = rng.integers(1, max_repeats + 1, n_stimuli)
        self.stimulus = rng.permutation(np.repeat(np.arange(n_stimuli), repeats))
        voxels = causes[self.stimulus] @ to_voxels + noise * rng.normal(size=(len(self.stimulus), n_voxels))
        test = causes[n_stimuli:] @ to_voxels + noise / 2 * rng.normal(size=(n_test, n_voxels))
        # Per cent signal change × 300, as NSD's integers.
        self.voxels = np.round(300 * (voxels + rng.normal(size=n_voxels))).astype(np.int16)
        self.test = (300 * test).astype(np.float32)
        features = causes @ to_features * rng.uniform(0.1, 3, dims) + rng.normal(size=(n_stimuli + n_test, dims)) + mean
        self.features = features[:n_stimuli].astype(np.float32)
        self.test_features = features[n_stimuli:].astype(np.float32)

    def fit(self, **options):
        decoder = Decoder(self.voxels, self.stimulus, **options)
        out = np.full((len(self.test), self.features.shape[1]), np.nan, dtype=np.float32)
        report = decoder.predict_to(self.features, self.test, out, test_features=self.test_features)
        return decoder, report, out

    def standardised(self):
        scaler = StandardScaler().fit(self.voxels.astype(np.float64))
        return scaler.transform(self.voxels.astype(np.float64)), scaler.transform(self.test.astype(np.float64))


def reference(world, validation, alphas, intercept):
    """Losses (alphas, dims) and predictions (alphas, n_test, dims), one float64 scikit-learn fit at a time."""
    voxels, test = world.standardised()
    targets = world.features[world.stimulus].astype(np.float64)
    losses, predictions = np.zeros((len(alphas), targets.shape[1])), []
    for i, alpha in enumerate(alphas):
        for held_out in validation:
            training = np.setdiff1d(np.arange(len(voxels)), held_out)
            model = Ridge(alpha=alpha, fit_intercept=intercept, solver="svd").fit(voxels[training], targets[training])
            losses[i] += ((targets[held_out] - model.predict(voxels[held_out])) ** 2).mean(0) / len(validation)
        predictions.append(Ridge(alpha=alpha, fit_intercept=intercept, solver="svd").fit(voxels, targets).predict(test))
    return losses, np.array(predictions)


def assert_agrees(world, decoder, report, out, alphas, intercept, rtol=1e-5):
    losses, predictions = reference(world, decoder.validation_trials, alphas, intercept)
    chosen = np.searchsorted(alphas, report.alphas)
    dims = np.arange(losses.shape[1])
    best = losses.min(0)
    # Where the reference tells alphas apart (by more than rounding), the same one is chosen.
    tied = (losses - best) / best < 1e-9
    assert tied[chosen, dims].all()
    np.testing.assert_allclose(report.cv_scores, -best, rtol=rtol)
    error = np.abs(out - predictions[chosen, :, dims].T) / world.features.std(0)
    assert error.max() < 1e-3


SHAPES = {
    "more trials than voxels": dict(n_stimuli=160, n_voxels=60),
    "more voxels than trials": dict(n_stimuli=40, n_voxels=150),
    "more voxels than a fold's trials": dict(n_stimuli=60, n_voxels=100, max_repeats=2, seed=3),
    "many trials": dict(n_stimuli=500, n_voxels=30),
    "averages": dict(n_stimuli=200, n_voxels=60, max_repeats=1),
}


@pytest.mark.parametrize("alphas", [FIXED_ALPHAS, TINY, WIDE, (10.0,)], ids=["fixed", "tiny", "wide", "one"])
@pytest.mark.parametrize("shape", SHAPES)
def test_fixed_mode_agrees_with_scikit_learn_in_float64(shape, alphas):
    world = World(**SHAPES[shape])
    decoder, report, out = world.fit(alphas=alphas)
    assert_agrees(world, decoder, report, out, alphas, intercept=True)


@pytest.mark.parametrize("alphas", [TINY, WIDE, FIXED_ALPHAS], ids=["tiny", "wide", "fixed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_paper_mode_is_himalaya_after_a_standard_scaler(shape, alphas):
    world = World(**SHAPES[shape])
    _, report, out = world.fit(mode="paper", alphas=alphas)
    voxels, test = world.standardised()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = RidgeCV(alphas=alphas, cv=5).fit(voxels, world.features[world.stimulus].astype(np.float64))
    np.testing.assert_allclose(report.alphas, model.best_alphas_, rtol=1e-12)
    np.testing.assert_allclose(report.cv_scores, model.cv_scores_, rtol=1e-5)
    assert (np.abs(out - model.predict(test)) / world.features.std(0)).max() < 1e-3


def test_alphas_that_differ_by_less_than_single_precision_are_still_told_apart():
    world = World(n_stimuli=500, n_voxels=30)
    decoder, report, _ = world.fit(alphas=(1e-4, 1e-3))
    losses, _ = reference(world, decoder.validation_trials, (1e-4, 1e-3), intercept=True)
    apart = np.abs(losses[0] - losses[1]) / losses[0]
    assert apart.max() < 1e-6 and apart.min() > 1e-11
    np.testing.assert_array_equal(report.alphas, np.where(losses[0] < losses[1], 1e-4, 1e-3))


def test_the_mean_of_a_target_is_predicted():
    world = World(mean=7.3, noise=1000.0)
    assert abs(world.fit(alphas=(1e6,))[2].mean() - 7.3) < 0.5
    assert abs(world.fit(alphas=(1e6,), mode="paper")[2].mean()) < 0.5


def test_a_mean_ten_thousand_times_the_sd_costs_no_precision():
    world = World()
    world.features = (world.features - world.features.mean(0)).astype(np.float64)
    _, report, centred = world.fit()
    world.features = world.features + 1e4 * world.features.std(0)
    _, shifted_report, shifted = world.fit()
    np.testing.assert_array_equal(report.alphas, shifted_report.alphas)
    sd = world.features.std(0)
    assert (np.abs(shifted - 1e4 * sd - centred) / sd).max() < 2e-3


@pytest.mark.parametrize("mode", ["fixed", "paper"])
def test_duplicate_and_constant_voxels_with_tiny_alphas(mode):
    world = World(n_stimuli=120, n_voxels=40)
    extra = np.concatenate([world.voxels, world.voxels[:, :15], np.full((len(world.voxels), 3), 9, np.int16)], 1)
    world.voxels, world.test = extra, np.concatenate([world.test, world.test[:, :15], np.full((20, 3), 9.0)], 1)
    decoder, report, out = world.fit(mode=mode, alphas=TINY)
    assert report.constant_voxels == 3
    assert_agrees(world, decoder, report, out, TINY, intercept=mode == "fixed")


def test_trials_close_to_as_many_as_voxels():
    # The interpolation threshold: the smallest eigenvalues are tiny and the held-out leverage large.
    world = World(n_stimuli=101, n_voxels=80, max_repeats=1, noise=2.0)
    decoder, report, out = world.fit(alphas=TINY)
    assert_agrees(world, decoder, report, out, TINY, intercept=True, rtol=1e-4)


def test_a_stimulus_never_straddles_training_and_validation():
    world = World()
    validation = Decoder(world.voxels, world.stimulus).validation_trials
    np.testing.assert_array_equal(np.sort(np.concatenate(validation)), np.arange(len(world.stimulus)))
    for held_out in validation:
        training = np.setdiff1d(np.arange(len(world.stimulus)), held_out)
        assert not set(world.stimulus[held_out]) & set(world.stimulus[training])
    sizes = [len(held_out) for held_out in validation]
    assert max(sizes) - min(sizes) <= 4


def test_folds_do_not_depend_on_the_order_of_trials():
    world = World()
    order = np.random.default_rng(1).permutation(len(world.stimulus))
    first = Decoder(world.voxels, world.stimulus).validation_trials
    second = Decoder(world.voxels[order], world.stimulus[order]).validation_trials
    for a, b in zip(first, second):
        assert set(world.stimulus[a]) == set(world.stimulus[order][b])


def test_paper_folds_are_scikit_learns_kfold():
    world = World()
    validation = Decoder(world.voxels, world.stimulus, mode="paper").validation_trials
    for (_, expected), held_out in zip(KFold(5).split(world.voxels), validation):
        np.testing.assert_array_equal(held_out, expected)


@pytest.mark.parametrize("mode, alphas", [("fixed", FIXED_ALPHAS), ("paper", TINY)])
def test_block_and_tile_sizes_do_not_change_the_answer(mode, alphas, monkeypatch):
    world = World(dims=70)
    _, whole, expected = world.fit(mode=mode, alphas=alphas)
    monkeypatch.setattr(numerics, "TILE_TRIALS", 7)
    _, blocks, out = world.fit(mode=mode, alphas=alphas, block_bytes=1)
    np.testing.assert_array_equal(blocks.alphas, whole.alphas)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(blocks.test_correlation, whole.test_correlation, rtol=1e-4)
    np.testing.assert_allclose(blocks.test_pattern_correlation, whole.test_pattern_correlation, rtol=1e-4)


def test_voxels_features_and_output_may_be_hdf5(tmp_path):
    world = World(dims=40)
    expected = world.fit()[2]
    with h5py.File(tmp_path / "w.h5", "w") as file:
        voxels = file.create_dataset("voxels", data=world.voxels)
        features = file.create_dataset("features", data=world.features.astype(np.float16), chunks=(160, 8))
        out = file.create_dataset("out", (20, 40), dtype=np.float32)
        seen = []
        decoder = Decoder(voxels, world.stimulus, block_bytes=1)
        decoder.predict_to(features, world.test, out, progress=lambda done, dims: seen.append((done, dims)))
        assert np.abs(out[:] - expected).max() < 0.02
    assert seen == [(16, 40), (32, 40), (40, 40)]


def test_one_factorisation_serves_every_target_and_alpha_grid(monkeypatch):
    world = World()
    decoder = Decoder(world.voxels, world.stimulus)
    calls = []
    original = numerics.eigen
    monkeypatch.setattr(numerics, "eigen", lambda gram: calls.append(1) or original(gram))
    out = np.empty((20, 24), np.float32)
    decoder.predict_to(world.features, world.test, out)
    assert len(calls) == 5
    decoder.predict_to(world.features[:, ::-1], world.test, out, alphas=WIDE)
    assert len(calls) == 5
    grid_alone = Decoder(world.voxels, world.stimulus, alphas=WIDE)
    fresh = np.empty_like(out)
    grid_alone.predict_to(world.features[:, ::-1], world.test, fresh)
    np.testing.assert_array_equal(out, fresh)


def test_tiny_alphas_need_no_eigenvectors(monkeypatch):
    world = World(n_stimuli=500, n_voxels=30)
    monkeypatch.setattr(numerics, "eigen", lambda gram: pytest.fail("decomposed"))
    world.fit(mode="paper", alphas=TINY)


def test_a_second_grid_after_the_series_gives_the_same_as_alone():
    world = World(n_stimuli=500, n_voxels=30)
    decoder = Decoder(world.voxels, world.stimulus, alphas=TINY)
    out, alone = np.empty((20, 24), np.float32), np.empty((20, 24), np.float32)
    decoder.predict_to(world.features, world.test, out)
    decoder.predict_to(world.features, world.test, out, alphas=FIXED_ALPHAS)
    Decoder(world.voxels, world.stimulus).predict_to(world.features, world.test, alone)
    np.testing.assert_allclose(out, alone, rtol=1e-6)


@pytest.mark.parametrize("mode", ["fixed", "paper"])
@pytest.mark.parametrize("shape", ["more trials than voxels", "more voxels than trials"])
def test_a_prediction_is_a_fixed_combination_of_training_targets(mode, shape):
    world = World(**SHAPES[shape])
    decoder, _, out = world.fit(mode=mode, alphas=(100.0,))
    weights = decoder.prediction_weights(world.test, 100.0)
    assert weights.shape == (20, len(world.features))
    np.testing.assert_allclose(weights @ world.features, out, rtol=1e-4, atol=1e-4)
    if mode == "fixed":
        np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-9)


def test_weights_follow_the_test_voxels():
    world = World()
    decoder = Decoder(world.voxels, world.stimulus)
    first = decoder.prediction_weights(world.test, 10.0)
    world.test += 100
    assert np.abs(decoder.prediction_weights(world.test, 10.0) - first).max() > 1e-3


def replay_of(features, batch=17, seed=0, passes=None):
    order = np.random.default_rng(seed).permutation(len(features))

    def replay():
        if passes is not None:
            passes.append(1)
        for start in range(0, len(order), batch):
            rows = order[start:start + batch]
            yield rows, features[rows]
    return replay


def test_streamed_targets_in_blocks_equal_stored_ones():
    world = World(dims=50)
    decoder, stored, expected = world.fit()
    passes, out = [], np.empty_like(expected)
    report = decoder.predict_streamed(replay_of(world.features, passes=passes), 50, world.test, out,
                                      memory_bytes=4 * 160 * 20, test_features=world.test_features)
    assert len(passes) == 3
    np.testing.assert_array_equal(report.alphas, stored.alphas)
    np.testing.assert_allclose(report.cv_scores, stored.cv_scores, rtol=1e-5)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["fixed", "paper"])
def test_streamed_targets_with_a_shared_alpha_equal_stored_ones_at_that_alpha(mode):
    world = World(dims=50)
    decoder = Decoder(world.voxels, world.stimulus, mode=mode, block_bytes=4 * 180 * 16)
    passes, out = [], np.empty((20, 50), np.float32)
    report = decoder.predict_streamed(replay_of(world.features, passes=passes), 50, world.test, out,
                                      shared_alpha=True, probe_dims=10, test_features=world.test_features)
    assert len(passes) == 2 and len(np.unique(report.alphas)) == 1
    expected = np.empty_like(out)
    stored = decoder.predict_to(world.features, world.test, expected, alphas=report.alphas[:1],
                                test_features=world.test_features)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(report.test_correlation, stored.test_correlation, rtol=1e-4)
    probed = np.isfinite(report.cv_scores)
    assert probed.sum() == 10
    # The shared alpha is the one with the best mean R² over the probed dims.
    losses, _ = reference(world, decoder.validation_trials, FIXED_ALPHAS, intercept=mode == "fixed")
    variance = world.features[world.stimulus].astype(np.float64).var(0)
    assert report.alphas[0] == FIXED_ALPHAS[np.argmin((losses / variance)[:, probed].mean(1))]


def test_a_winner_at_the_edge_of_the_grid_is_counted():
    world = World()
    _, report, _ = world.fit(alphas=(1e6, 1e7, 1e8))
    assert report.at_low_edge == report.at_edge == 24 and report.at_high_edge == 0
    world.features[:, 0] = 2.5
    _, report, out = world.fit(alphas=(1e-3, 1e-2))
    assert report.at_high_edge == 23 and report.constant_targets == 1
    np.testing.assert_allclose(out[:, 0], 2.5, rtol=1e-6)
    assert np.isnan(report.test_correlation[0]) and np.isfinite(report.test_correlation[1:]).all()


def test_test_correlation_and_r2_are_pearson_and_explained_variance():
    world = World()
    decoder, report, out = world.fit()
    expected = [np.corrcoef(out[:, j], world.test_features[:, j])[0, 1] for j in range(24)]
    np.testing.assert_allclose(report.test_correlation, expected, rtol=1e-4)
    expected = [np.corrcoef(out[i], world.test_features[i])[0, 1] for i in range(len(out))]
    np.testing.assert_allclose(report.test_pattern_correlation, expected, rtol=1e-4)
    variance = world.features[world.stimulus].astype(np.float64).var(0)
    np.testing.assert_allclose(report.cv_r2, 1 + report.cv_scores / variance, rtol=1e-4, atol=1e-6)
    summary = json.loads(json.dumps(report.summary(), allow_nan=False))
    assert summary["test_correlation"] == report.test_correlation.mean()
    assert summary["test_pattern_correlation"] == report.test_pattern_correlation.mean()
    assert summary["dims"] == 24 and sum(summary["alphas"].values()) == 24


def test_test_voxels_do_not_enter_the_scaler():
    world = World()
    first = world.fit()[2]
    world.test[1:] *= 5
    np.testing.assert_allclose(world.fit()[2][0], first[0], rtol=1e-5)


def test_paper_alphas_by_target():
    for target in ("c", "init_latent", "c_occluded", "init_latent_occluded"):
        np.testing.assert_allclose(paper_alphas(target), 10.0 ** np.arange(-6, 1))
    for target in ("blip", "conv1_1", "dpt_emb0", "blip_occluded", "c2"):
        assert paper_alphas(target) == (1e4, 2e4, 4e4)


def spoil(array, value):
    array = array.astype(np.float32)
    array[3, 2] = value
    return array


BAD_DECODERS = {
    "one stimulus row per trial": lambda w: Decoder(w.voxels, w.stimulus[:-1]),
    "rows span": lambda w: Decoder(w.voxels, w.stimulus, n_stimuli=100),
    "rows span -1": lambda w: Decoder(w.voxels, w.stimulus - 1),
    "give integers": lambda w: Decoder(w.voxels, w.stimulus.astype(float)),
    "voxel 2 of trial 3 is not finite": lambda w: Decoder(spoil(w.voxels, np.nan), w.stimulus),
    "voxel 2 of trial 3 is not finite ": lambda w: Decoder(spoil(w.voxels, np.inf), w.stimulus),
    "neither empty": lambda w: Decoder(w.voxels[:, :0], w.stimulus),
    "are constant": lambda w: Decoder(np.full((90, 4), 0.1, np.float32), np.arange(90)),
    "3 training stimuli for 5 folds": lambda w: Decoder(w.voxels[:30], np.arange(30) % 3),
    "3 training trials for 5 folds": lambda w: Decoder(w.voxels[:3], np.arange(3), mode="paper"),
    "positive numbers": lambda w: Decoder(w.voxels, w.stimulus, alphas=(0.0, 1.0)),
    "unknown mode": lambda w: Decoder(w.voxels, w.stimulus, mode="best"),
}


@pytest.mark.parametrize("message", BAD_DECODERS)
def test_bad_training_input_is_one_clear_line(message):
    with pytest.raises(ValueError, match=message.strip()) as error:
        BAD_DECODERS[message](World())
    assert " — " in str(error.value) and "\n" not in str(error.value)


def refused(message, **changes):
    world = World()
    arguments = dict(features=world.features, test_voxels=world.test, out=np.empty((20, 24), np.float32))
    arguments |= {name: change(world) for name, change in changes.items()}
    with pytest.raises(ValueError, match=message) as error:
        Decoder(world.voxels, world.stimulus).predict_to(**arguments)
    assert " — " in str(error.value) and "\n" not in str(error.value)


def test_bad_targets_and_test_voxels_are_one_clear_line():
    refused("trials show 160 stimuli", features=lambda w: w.features[:-1])
    refused("feature 2 of stimulus row 3 is not finite", features=lambda w: spoil(w.features, np.nan))
    refused("training has 60 voxels", test_voxels=lambda w: w.test[:, :-1])
    refused("test voxel 2 of test stimulus 3", test_voxels=lambda w: spoil(w.test, np.inf))
    refused("output has shape", out=lambda w: np.empty((19, 24), np.float32))
    refused("test features has shape", test_features=lambda w: w.test_features[:, :3])


def test_a_non_finite_feature_is_named_by_its_dim_in_a_later_block():
    world = World(dims=40)
    world.features[5, 33] = np.nan
    with pytest.raises(ValueError, match="feature 33 of stimulus row 5"):
        world.fit(block_bytes=1)


@pytest.mark.parametrize("shared", [False, True])
def test_a_stream_that_lacks_or_repeats_a_stimulus_is_refused(shared):
    world = World()
    decoder, out = Decoder(world.voxels, world.stimulus), np.empty((20, 24), np.float32)

    def stream(rows):
        return lambda: iter([(np.array(rows), world.features[rows])])
    rows = list(range(160))
    for bad, message in [(rows[:-1], "1 of 160"), (rows + [4], "came twice"), ([-1] + rows[1:], "out of range")]:
        with pytest.raises(ValueError, match=message):
            decoder.predict_streamed(stream(bad), 24, world.test, out, shared_alpha=shared)
    with pytest.raises(ValueError, match="one row per stimulus"):
        decoder.predict_streamed(stream(rows), 25, world.test, np.empty((20, 25), np.float32), shared_alpha=shared)


def test_a_test_set_of_one_image_is_predicted():
    world = World()
    out = np.empty((1, 24), np.float32)
    expected = world.fit()[2]
    Decoder(world.voxels, world.stimulus).predict_to(world.features, world.test[:1], out)
    np.testing.assert_allclose(out, expected[:1], rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_answer():
    world = World()
    _, cpu, expected = world.fit()
    _, gpu, out = world.fit(device="cuda")
    np.testing.assert_array_equal(gpu.alphas, cpu.alphas)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
