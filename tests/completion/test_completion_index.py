"""Amodal completion: the index on brains whose completion is known, its controls, its statistics, its command line."""
import csv
import itertools
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

import amodal_completion
import img2feat_sd1_parallel
import make_subjmri
import make_subjstim
from mini_nsd import brain_making, brain_model, build, occluded_viewing, scene_rendering, scene_sampling
from utils import layout, permutations
from utils.completion import (
    closeness,
    closeups,
    completion_index,
    completion_results,
    completion_stage,
    hidden_content,
    linear_readouts,
    pattern_indices,
    picture_features,
)
from utils.errors import Problem
from utils.nsd import s3
from utils.occlusion import occluded_pictures
from utils.occlusion import occluded_viewing as oview
from utils.ridge import ridge_decoder

ROOT = Path(__file__).resolve().parents[2]
SUBJECT = "subj01"
SIDE = occluded_pictures.SMALL
KAPPAS = (0.0, 0.25, 0.5, 0.75, 1.0)
MASKS = ("bars_a", "bars_b", "halves_a", "halves_b")


# random linear brains


def smooth_pictures(rng, count):
    """(count, SIDE, SIDE, 3) uint8: random colours that change slowly, so that a part says something about the rest."""
    fields = ndimage.gaussian_filter(rng.standard_normal((count, SIDE, SIDE, 3)), (0, 12, 12, 0), mode="reflect")
    fields = fields / fields.std() + rng.standard_normal((count, 1, 1, 3))
    return np.clip(128 + 40 * fields, 0, 255).astype(np.uint8)


class LinearBrain:
    """Voxels that are random sums of the coarse colours of a picture."""

    def __init__(self, rng, voxels=150):
        inputs = picture_features.context(occluded_pictures.Pictures(np.zeros((1, SIDE, SIDE, 3), np.uint8))).shape[1]
        self.weights = rng.standard_normal((inputs, voxels)) / 10

    def respond(self, images):
        return picture_features.context(occluded_pictures.Pictures(images)) @ self.weights


class World:
    """One linear brain, what it was shown, and its noisy activity for any kappa."""

    def __init__(self, seed=0, noise=0.1):
        self.rng, self.noise = np.random.default_rng(seed), noise
        train, test = smooth_pictures(self.rng, 400), smooth_pictures(self.rng, 40)
        hidden = np.stack([occluded_viewing.mask(name, SIDE) for _ in test for name in MASKS])
        self.images = np.repeat(np.arange(len(test)), len(MASKS))
        shown = np.where(hidden[..., None], np.uint8(0), test[self.images])
        views = occluded_pictures.Views(self.images, np.array(MASKS * len(test)), hidden, shown)
        self.material = hidden_content.prepare(occluded_pictures.Pictures(train), occluded_pictures.Pictures(test),
                                               views)
        self.brain = LinearBrain(self.rng)
        self.visible, self.filled = self.brain.respond(shown), self.brain.respond(test)[self.images]
        self.whole = self.brain.respond(test)
        betas, rows = self.noisy(self.brain.respond(train)), np.arange(len(train))
        self.readout = linear_readouts.readouts(betas, rows, {"local": self.material.features["local"][0]})["local"]
        model, self.r2 = linear_readouts.visible_only(self.material, betas, rows)
        self.predicted = model @ self.readout.weights + self.readout.offset

    def noisy(self, clean):
        return clean + self.noise * self.rng.standard_normal(clean.shape)

    def decoded(self, kappa):
        return self.readout(self.noisy((1 - kappa) * self.visible + kappa * self.filled))

    def scores(self, decoded):
        reference = self.readout(self.noisy(self.whole))[self.images]
        return completion_index.score(decoded, reference, self.predicted, self.material.axes["local"], self.images,
                                      len(self.whole))


@pytest.fixture(scope="module")
def world():
    return World()


def test_the_index_is_the_completion_of_a_linear_brain(world):
    found = [world.scores(world.decoded(kappa)).index for kappa in KAPPAS]
    assert (np.diff(found) > 0).all()
    assert np.allclose(found, KAPPAS, atol=0.1)
    assert world.scores(world.predicted).index == pytest.approx(0, abs=1e-9)


def test_a_guess_from_the_visible_part_lifts_naive_similarity_but_not_the_index(world):
    """What a caption of the visible part, or a decoder's own prior, adds to what is decoded behind the occluder."""
    honest = world.decoded(0.0)
    guess = np.nan_to_num(world.material.guess["local"])
    told = honest + guess
    every = np.arange(len(world.images))
    naive = [closeness.compare(world.material, "local", every, each)["over_others"] for each in (honest, told)]
    assert naive[1] > naive[0] + 0.2
    assert abs(world.scores(told).index) < 0.1


def test_closeness_is_what_a_plain_loop_says(world):
    decoded, views, material = world.decoded(0.5), np.array([0, 9, 22]), world.material
    compared, r = closeness.correlations(material, "local", views, decoded[views])
    for view, (own, occluder, context, others) in zip(compared, r):
        mask = material.views.masks[view]
        axis = next(axis for axis in material.axes["local"] if material.views.masks[axis.rows[0]] == mask)
        seen = decoded[view, axis.dims]
        truth = material.features["local"][1][:, axis.dims]
        assert own == pytest.approx(np.corrcoef(seen, truth[world.images[view]])[0, 1])
        assert occluder == pytest.approx(np.corrcoef(seen, material.as_shown["local"][view, axis.dims])[0, 1])
        assert context == pytest.approx(np.corrcoef(seen, material.guess["local"][view, axis.dims])[0, 1])
        assert others == pytest.approx(np.mean([np.corrcoef(seen, truth[image])[0, 1] for image in range(len(truth))
                                                if image != world.images[view]]))
    assert sorted(compared) == views.tolist()


def test_closeness_to_the_truth_rises_with_completion(world):
    every = np.arange(len(world.images))
    for rival in ("over_occluder", "over_others"):
        found = [closeness.compare(world.material, "local", every, world.decoded(kappa))[rival]
                 for kappa in (0.0, 0.5, 1.0)]
        assert found[0] < found[1] < found[2]


def test_an_axis_holds_only_what_is_hidden_and_not_the_mean_over_its_views(world):
    for axis in world.material.axes["local"]:
        hidden = world.material.views.hidden[axis.rows[0]]
        cells = hidden.reshape(picture_features.GRID, SIDE // picture_features.GRID, picture_features.GRID,
                               -1).all((1, 3))
        assert np.array_equal(np.unique(axis.dims // 3), np.flatnonzero(cells))
        assert np.allclose(axis.values.mean(0), 0, atol=1e-6)
        assert axis.eroded(0.05).dims.size < axis.dims.size and axis.eroded(0.05).depth.min() >= 0.05 - 1e-9


# statistics


def test_permutation_p_is_uniform_where_nothing_is_there():
    rng, found = np.random.default_rng(1), []
    for _ in range(300):
        images = np.arange(15)
        tables = [(images, rng.standard_normal((15, 6)) @ rng.standard_normal((6, 15))) for _ in range(2)]
        above = sum(np.diagonal(table) for _, table in tables)
        observed, null = completion_index.permuted(completion_index.Scores(above, np.ones(15), tables), draws=199)
        found.append(completion_index.p_values({"x": observed}, {"x": null})["x"][0])
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert 0.02 < np.mean(np.array(found) <= 0.05) < 0.09


def null_p(rng, scenes, masks):
    """p of activity that says nothing of what is hidden: scenes × masks, the scenes' parts alike behind all masks."""
    images, above, tables = np.arange(scenes), np.zeros(scenes), []
    shared, content = rng.standard_normal((2, scenes, 5))
    for _ in range(masks):
        hidden, seen = content + rng.standard_normal((scenes, 5)), shared + rng.standard_normal((scenes, 5))
        tables.append((images, seen @ (hidden - hidden.mean(0)).T))
        above += np.diagonal(tables[-1][1])
    return permutations.p_value(*completion_index.permuted(completion_index.Scores(above, np.ones(scenes), tables),
                                                           draws=199))


def test_few_scenes_do_not_raise_false_positives():
    """Partners that are always other images, of patterns whose mean is taken off, give 17% at 4 × 3 and 9% at 6 × 3."""
    rng = np.random.default_rng(12)
    for count, most in ((4, 0.07), (6, 0.07), (8, 0.07)):
        p = np.array([null_p(rng, count, 3) for _ in range(600)])
        assert (p <= 0.05).mean() < most
        assert p.min() >= permutations.smallest_p(count, 199)


def test_few_permutations_are_all_made_and_many_are_drawn_uniformly_fixed_points_among_them():
    rng = np.random.default_rng(0)
    every = permutations.orders(4, 199, rng)
    assert len(np.unique(every, axis=0)) == 23 and (every != np.arange(4)).any(1).all()
    assert permutations.smallest_p(4, 199) == 1 / 24 and permutations.smallest_p(9, 199) == 1 / 200
    drawn = permutations.orders(8, 4000, rng)
    assert np.allclose([(drawn[:, 3] == partner).mean() for partner in range(8)], 1 / 8, atol=0.025)
    # What is left for some of the items is uniform too, and the same partner wherever both are there.
    some = np.array([0, 2, 5])
    left = permutations.induced(drawn, some)
    assert np.allclose(np.unique(left, axis=0, return_counts=True)[1] / 4000, 1 / 6, atol=0.025)
    same = np.isin(drawn[:, some], some)
    assert np.array_equal(some[left][same], drawn[:, some][same])


def test_a_null_is_of_permuted_images_and_the_correction_takes_the_largest_of_all_rois():
    images = np.array([3, 0, 2])                # image 1 has no view
    table = np.random.default_rng(2).standard_normal((3, 3))
    above = np.zeros(4)
    above[images] = np.diagonal(table)
    observed, null = completion_index.permuted(completion_index.Scores(above, np.ones(4), [(images, table)]), draws=50)
    by_hand = [sum(picked) / np.sqrt(sum(each ** 2 for each in picked)) for order in itertools.permutations(range(3))
               for picked in [[table[row, order[row]] for row in range(3)]]]
    assert sorted([observed, *null]) == pytest.approx(sorted(by_hand)) and observed == pytest.approx(by_hand[0])
    both = completion_index.p_values({"a": 1.0, "b": 3.0},
                                     {"a": np.array([0.0, 2.0, 0.0]), "b": np.array([0.0, 0.0, 2.0])})
    assert both == {"a": (2 / 4, 3 / 4), "b": (1 / 4, 1 / 4)}


def test_the_interval_is_a_bootstrap_over_images():
    rng = np.random.default_rng(3)
    above, below = rng.normal(1, 1, 20), rng.normal(3, 0.5, 20)
    draws = np.random.default_rng((7, 0)).integers(20, size=(completion_index.BOOTSTRAPS, 20))
    ratios = []
    for draw in draws:
        ratios.append(sum(above[image] for image in draw) / sum(below[image] for image in draw))
    assert completion_index.interval(above, below, 7) == pytest.approx(np.percentile(ratios, [2.5, 97.5]))


def test_readouts_give_what_the_decoder_of_ridge_predicts():
    rng = np.random.default_rng(4)
    betas = rng.integers(-900, 900, (90, 12)).astype(np.int16)
    rows = np.repeat(np.arange(30), 3)
    features = {"a": rng.standard_normal((30, 5)) + 4, "b": rng.standard_normal((30, 3))}
    new = rng.normal(0, 500, (7, 12))
    for name, readout in linear_readouts.readouts(betas, rows, features).items():
        expected = np.empty((7, features[name].shape[1]), np.float32)
        ridge_decoder.Decoder(betas, rows).predict_to(features[name].astype(np.float32), new, expected)
        assert np.allclose(readout(new), expected, atol=2e-4)


# the field's pattern indices


def test_pattern_indices_are_what_a_double_loop_says():
    rng = np.random.default_rng(5)
    scene = np.repeat(np.arange(6), 2)
    masks = np.array(["left", "right"] * 6)
    signal = rng.standard_normal((6, 30))
    first, second = (signal[scene] + rng.standard_normal((12, 30)) for _ in range(2))
    whole = signal + rng.standard_normal((6, 30))
    found = pattern_indices.indices(first, second, whole, scene, masks, [("left", "right")])

    def centred(patterns, name):
        return patterns[masks == name] - patterns[masks == name].mean(0)

    for index, (name, *_) in zip(found, (("completion",), ("invariance",))):
        same, other, again = [], [], []
        for a, b in (("left", "right"), ("right", "left")):
            here, repeat = centred(first, a), centred(second, a)
            partner = centred(second, b) if name == "completion" else whole - whole.mean(0)
            for i in range(6):
                again.append(np.corrcoef(here[i], repeat[i])[0, 1])
                for j in range(6):
                    (same if i == j else other).append(np.corrcoef(here[i], partner[j])[0, 1])
        expected = (np.mean(same) - np.mean(other)) / (np.mean(again) - np.mean(other))
        assert index[0] == pytest.approx(expected)
        assert index[1] < index[0] < index[2]


# the simulated brain and its occluders


def test_complementary_occluders_hide_exactly_what_the_other_shows():
    for side in (SIDE, 425):
        for one, other in occluded_viewing.PAIRS:
            assert np.array_equal(occluded_viewing.mask(one, side), ~occluded_viewing.mask(other, side))


@pytest.fixture(scope="module")
def experiment():
    return occluded_viewing.experiment(brain_making.make(SUBJECT, scale=0.12), 160, 24, side=SIDE, gaze=0.0)


def test_lids_hide_an_object_wholly_and_no_completion_brings_it_back(experiment):
    material = experiment.material
    lids = np.flatnonzero(np.char.startswith(material.views.masks.astype(str), "lid"))
    assert len(lids) > 5 and material.gone[lids].all()
    scene = scene_sampling.sample(occluded_viewing.TEST_SEED, int(material.views.rows[lids[0]]))
    rendering = scene_rendering.render(scene, SIDE)
    lid = occluded_viewing.view(0, scene, rendering, "lid", occluded_viewing.lid(rendering))
    assert (lid.seen == 0).sum() >= 1 and (lid.inferable[lid.seen == 0] == 0).all()
    assert not np.array_equal(lid.complete, rendering.image)


def test_the_control_is_near_0_for_a_brain_that_infers_and_catches_one_that_sees_through_the_lid(experiment):
    material, here = experiment.material, np.flatnonzero(np.array(layout.ROIS)[experiment.one.roi - 1] == "ventral")
    images, count = material.views.rows, experiment.whole.shape[1]
    betas, rows = experiment.trained[:, here], np.arange(len(experiment.trained))
    readout = linear_readouts.readouts(betas, rows, {"objects": material.features["objects"][0]})["objects"]
    predicted = linear_readouts.visible_only(material, betas, rows)[0] @ readout.weights + readout.offset
    whole = readout(experiment.whole[:, :, here].mean(0))[images]
    inferring = readout(experiment.filled[:, :, here].mean(0))

    def control(decoded):
        return completion_index.score(decoded, whole, predicted, material.control["objects"], images, count).index

    assert abs(control(inferring)) < 0.2
    assert control(whole) == pytest.approx(1) and control(np.where(material.gone[:, None], whole, inferring)) > 0.9
    assert completion_index.score(inferring, whole, predicted, material.axes["objects"], images, count).index > 0.8


def test_only_what_the_whole_picture_shows_in_clear_view_can_be_wholly_hidden():
    """A speck, or an object behind another one, is no control; the view of what was never in view is as any other."""
    train = smooth_pictures(np.random.default_rng(9), 60)
    labels = np.full((5, SIDE, SIDE), -1, np.int8)
    labels[:, 60:90, 60:90] = 0
    labels[0, 10:30, 10:30] = 1                 # in clear view
    labels[1, 10:14, 10:14] = 1                 # a speck of 16 px
    labels[2, 10:18, 10:30] = 1                 # 160 of 400 px, the rest behind something
    area = [np.array([900, size]) / SIDE ** 2 for size in (400, 16, 400, 400, 400)]     # 3, 4: never in view
    kinds = tuple(np.eye(2) for _ in area)
    test = occluded_pictures.Pictures(train[:5], labels, tuple(area), kinds)
    known = occluded_pictures.Pictures(train, np.tile(labels[:1], (60, 1, 1)), tuple(area[:1] * 60), kinds[:1] * 60)
    hidden = np.zeros((5, SIDE, SIDE), bool)
    hidden[:, :50, :50] = True
    views = occluded_pictures.Views(np.arange(5), np.array(["corner"] * 5), hidden,
                                    np.where(hidden[..., None], 0, test.images))
    material = hidden_content.prepare(known, test, views)
    assert material.lost.tolist() == [True, False, False, False, False]
    assert material.gone.tolist() == [True, True, True, False, False]
    for feature in ("local", "objects"):
        assert [axis.rows.tolist() for axis in material.control[feature]] == [[0]]


def test_unsteady_gaze_and_large_receptive_fields_lift_the_pattern_index_of_a_brain_that_completes_nothing():
    drawn = [scene_sampling.sample(occluded_viewing.TEST_SEED, index) for index in range(16)]
    names = [name for pair in occluded_viewing.PAIRS for name in pair]
    shown = [occluded_viewing.view(row, scene, rendering, name, occluded_viewing.mask(name, SIDE))
             for row, scene in enumerate(drawn) for rendering in [scene_rendering.render(scene, SIDE)]
             for name in names]
    views = occluded_viewing.as_views(shown)

    def index(fields, gaze):
        one = brain_making.make(SUBJECT, 0.12, fields)
        rng = np.random.default_rng(6)
        off = [rng.normal(0, gaze / brain_model.FIELD, (len(shown), 2)) for _ in range(2)]
        trials = [occluded_viewing.respond(one, shown, each)[0][:, one.roi == 1] for each in off]
        return pattern_indices.indices(*trials, trials[0][:len(drawn)], views.rows, views.masks,
                                          completion_stage.complementary(views))[0][0]

    steady = index(1.0, 0.0)
    assert index(1.0, 1.0) > steady + 0.05 and index(2.0, 0.0) > steady + 0.05


# files


def test_a_view_is_found_by_stimulus_and_mask_whatever_the_order_of_the_file(tmp_path):
    rng, path = np.random.default_rng(8), tmp_path / "shown.hdf5"
    pictures = rng.integers(0, 256, (3, SIDE, SIDE, 3)).astype(np.uint8)
    left = np.arange(SIDE)[None, :] < SIDE // 2
    with h5py.File(path, "w") as file:
        file["imgBrick"], file["stim_ids"] = pictures, np.array([9, 4, 4])
        file["mask_ids"] = np.array(["left", "right", "left"], object)
        for name, mask in (("left", left), ("right", ~left)):
            file[f"masks/{name}"] = np.broadcast_to(mask, (SIDE, SIDE))
    events = oview.Events(np.array([9, 4, 4, 9]), np.array(["left", "left", "right", "n/a"]), np.array(["half"] * 4),
                          np.array([False, False, False, True]))
    views, pairs = oview.views(path, events, np.array([9, 4]))
    assert pairs == [(4, "left"), (4, "right"), (9, "left")] and views.rows.tolist() == [1, 1, 0]
    assert np.array_equal(views.shown, pictures[[2, 1, 0]])
    assert np.array_equal(views.hidden[1], np.broadcast_to(~left, (SIDE, SIDE)))
    assert np.array_equal(oview.pictures(path, pairs[:1])[1][0], np.broadcast_to(left, (SIDE, SIDE)))
    with pytest.raises(Problem, match="no test stimuli"):
        oview.views(path, events, np.array([4]))


def test_events_say_which_line_is_wrong(tmp_path):
    path = tmp_path / oview.events_key(SUBJECT)
    path.parent.mkdir(parents=True)
    good = "trial_type\tstim_id\toccluder\tmask_id\nwhole\t3\tnone\tn/a\noccluded\t3\tbar\tleft\n"
    path.write_text(good)
    found = oview.events(s3.Folder(tmp_path), SUBJECT)
    assert found.stimuli.tolist() == [3, 3] and found.whole.tolist() == [True, False] and found.masks[1] == "left"
    for right, wrong, said in (("occluded\t3", "hidden\t3", "line 3"), ("mask_id", "mask", "mask_id"),
                               ("\tleft", "\tn/a", "without a mask_id")):
        path.write_text(good.replace(right, wrong))
        with pytest.raises(Problem, match=said):
            oview.events(s3.Folder(tmp_path), SUBJECT)


# the command line


def run(*arguments, environment, expect=0):
    done = subprocess.run([sys.executable, "amodal_completion.py", *map(str, arguments)], cwd=ROOT, capture_output=True,
                          text=True, env=os.environ | environment)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """(working folder, environment, arguments, stdout) of a finished amodal_completion.py, with reconstructions."""
    folder = tmp_path_factory.mktemp("stage")
    build.build(folder / "nsd", subjects=(SUBJECT,), scale=0.06)
    environment = {"NSD_ROOT": str(folder / "nsd"), "NSD_MODELS": "tiny", "OMP_NUM_THREADS": "1"}
    common = ["--subject", SUBJECT, "--workdir", str(folder / "work")]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        make_subjmri.main(common)
        img2feat_sd1_parallel.main([*common, "--gpu", "-1"])
        for feature in ("init_latent", "c"):
            make_subjstim.main([*common, "--featname", feature, "--use_stim", "each"])
    arguments = [*common, "--gpu", "-1", "--roi", "early", "ventral", "--reconstruct", "8", "--inpaint", "2", "--steps",
                 "4", "--scheduler", "dpm"]
    return folder / "work", environment, arguments, run(*arguments, environment=environment).stdout


def test_the_stage_says_and_writes_what_it_found(stage):
    work, _, _, said = stage
    ws = layout.Workspace(work, SUBJECT)
    rows = completion_results.read_table(ws)
    judged = {(row["roi"], row["feature"]) for row in rows if row["primary"]}
    assert judged == {("early", "local"), ("ventral", "objects")}
    assert all(row["low"] <= row["index"] <= row["high"] and row["truth"] in (0.25, 0.75) for row in rows)
    assert said.count("SIMULATED truth") == 2 and "without a brain" in said and "from the brain" in said
    near = completion_results.read_closeness(ws)
    assert {(row["roi"], row["source"]) for row in near if row["feature"] == "reconstruction"} == {
        ("early+ventral", "occluded viewing"), ("none", "inpainting")}
    for name in ("completion_index", "closeness", "closeups"):
        assert Image.open(ws.completion_result(name, "png")).width > 1000
        assert ws.completion_result(name, "pdf").read_bytes().startswith(b"%PDF")
    assert len(list(csv.DictReader(open(ws.completion_result("patterns", "csv"))))) == 2


def test_close_ups_show_the_view_that_the_manifest_names(stage):
    work, environment, _, _ = stage
    found = closeups.read(layout.Workspace(work, SUBJECT))
    assert len(found) == 8 and sum(view["control"] for view in found) == 2
    assert len({view["mask_id"] for view in found}) >= 5
    with h5py.File(Path(environment["NSD_ROOT"]) / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5") as file:
        for view in found:
            truth, shown, hidden = (np.asarray(Image.open(view[what])) for what in ("truth", "shown", "hidden"))
            assert np.array_equal(truth, file["imgBrick"][view["stim_id"]])
            assert np.array_equal(shown[hidden == 0], truth[hidden == 0]) and np.ptp(shown[hidden > 0]) == 0
            brain_made, alone = (np.asarray(Image.open(view[what])) for what in ("brain", "context"))
            assert brain_made.shape == alone.shape == (512, 512, 3) and not np.array_equal(brain_made, alone)


def test_a_finished_analysis_is_not_redone_and_other_settings_are_refused(stage, monkeypatch, capsys):
    work, environment, arguments, said = stage
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ws = layout.Workspace(work, SUBJECT)
    kept = [ws.completion_result("index", "csv"), ws.completion_result("decoded", "h5"), layout.manifest(ws.closeups)]
    before = [path.stat().st_mtime_ns for path in kept]
    amodal_completion.main(arguments)
    assert [path.stat().st_mtime_ns for path in kept] == before and capsys.readouterr().out == said
    for changed in (["--seed", "1"], ["--reconstruct", "9"]):
        with pytest.raises(Problem, match=changed[0].strip("-")):
            amodal_completion.main(arguments + changed)


def test_results_of_other_events_are_refused_on_one_line(stage):
    _, environment, arguments, _ = stage
    events = Path(environment["NSD_ROOT"]) / oview.events_key(SUBJECT)
    whole = events.read_bytes()
    try:
        events.write_bytes(whole.replace(b"\t0.0", b"\t0.1", 1))
        stale = run(*arguments, environment=environment, expect=1)
    finally:
        events.write_bytes(whole)
    last = stale.stderr.splitlines()[-1]
    assert last.startswith("error: ") and "events.tsv" in last and "--overwrite" in last
    assert "Traceback" not in stale.stderr
