"""Identification agrees with the slow pairwise loop, its statistics behave, and the stage refuses what it must."""
import csv
import json

import numpy as np
import pytest

from utils import layout
from utils.errors import Problem
from utils.evaluate import identification


def correlate(originals, samples, **more):
    """originals (n, dims), samples (n, k, dims)."""
    return identification.correlations(range(len(originals)), originals.__getitem__, samples.__getitem__, **more)


def slow(originals, samples):
    """(r (n, n), accuracy (n,)) one pair of vectors at a time, as published pipelines compute them."""
    n = len(originals)
    r = np.array([[np.mean([np.corrcoef(originals[i].ravel(), sample.ravel())[0, 1] for sample in samples[j]])
                   for j in range(n)] for i in range(n)])
    scores = []
    for i in range(n):
        wins = [1.0 if r[i, j] < r[i, i] - 1e-9 else 0.5 if abs(r[i, j] - r[i, i]) <= 1e-9 else 0.0
                for j in range(n) if j != i]
        scores.append(np.mean(wins))
    return r, np.array(scores)


def world(n=11, k=3, dims=40, signal=1.0, seed=0, dtype=np.float32):
    random = np.random.default_rng(seed)
    originals = random.normal(5, 1, (n, dims))
    samples = signal * originals[:, None] + random.normal(0, 1, (n, k, dims)) + 100
    return originals.astype(dtype), samples.astype(dtype)


@pytest.mark.parametrize("n, k, dims", [(2, 1, 3), (11, 3, 40), (17, 5, 301)])
def test_correlations_and_accuracy_are_those_of_the_pairwise_loop(n, k, dims):
    originals, samples = world(n, k, dims, signal=0.4)
    r, scores = slow(originals, samples)
    assert np.allclose(correlate(originals, samples), r, atol=1e-6)
    assert np.allclose(identification.accuracy(correlate(originals, samples)), scores)


def test_equal_reconstructions_tie_and_count_one_half():
    originals, samples = world(60, 2, 500, signal=0.3)
    samples[1::2] = samples[0::2]
    assert np.allclose(identification.accuracy(correlate(originals, samples)), slow(originals, samples)[1])
    samples[:] = samples[0]
    assert (identification.accuracy(correlate(originals, samples)) == 0.5).all()


def test_blocks_of_images_and_dims_change_nothing(monkeypatch):
    originals, samples = world(13, 2, 50, signal=0.4)
    whole = correlate(originals, samples)
    monkeypatch.setattr(identification, "BLOCK_VALUES", 150)
    monkeypatch.setattr(identification, "BLOCK_DIMS", 7)
    assert np.allclose(correlate(originals, samples), whole, atol=2e-9)


def test_a_large_mean_does_not_swamp_float32_features():
    originals, samples = world(8, 2, 64, signal=0.5, dtype=np.float64)
    r = correlate((originals + 1000).astype(np.float32), (samples + 1000).astype(np.float32))
    assert np.allclose(r, slow(originals, samples)[0], atol=1e-3)


def test_every_reconstruction_is_scored_against_every_original():
    r = correlate(*world(9, 2, 20, signal=0.3))
    table = identification.pairwise_accuracy(r)
    assert np.allclose(np.diagonal(table), identification.accuracy(r))
    for j in range(9):
        swapped = r.copy()
        swapped[:, [0, j]] = swapped[:, [j, 0]]
        assert np.isclose(table[0, j], identification.accuracy(swapped)[0])


def test_a_feature_that_correlates_with_nothing_is_refused():
    for spoil, said in [(7.3, "constant"), (np.nan, "NaN"), (np.inf, "NaN")]:
        originals, samples = world()
        samples[4, 1] = spoil
        with pytest.raises(Problem, match=f"reconstruction 4 .*{said}"):
            correlate(originals, samples)
        originals[2] = spoil
        with pytest.raises(Problem, match=f"original 2 .*{said}"):
            correlate(originals, samples)


def test_features_of_unlike_length_are_refused():
    originals, samples = world()
    samples = list(samples)
    samples[3] = samples[3][:, :-1]
    with pytest.raises(Problem, match="reconstruction 3 has 39 dims, others 40"):
        identification.correlations(range(11), originals.__getitem__, samples.__getitem__)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        low, high = identification.interval(random.beta(4, 2, 60), seed=1)
        assert low < high
        covered += low <= 4 / 6 <= high
    assert 87 <= covered <= 100
    scores = random.beta(4, 2, 60)
    assert identification.interval(scores, 1) == identification.interval(scores, 1)
    assert identification.interval(scores, 1) != identification.interval(scores, 2)
    assert np.isclose(np.ptp(identification.interval(scores)), 2 * 1.96 * scores.std() / np.sqrt(60), rtol=0.1)


def test_the_permutation_p_is_uniform_without_signal_and_small_with_it(monkeypatch):
    monkeypatch.setattr(identification, "PERMUTATIONS", 400)
    null = [identification.summary(np.random.default_rng(seed).normal(size=(12, 12)), seed)["p"]
            for seed in range(200)]
    assert 0.42 < np.mean(null) < 0.58
    assert 0.01 <= np.mean(np.array(null) <= 0.05) <= 0.10
    assert identification.summary(correlate(*world(20, 2, 60)))["p"] == 1 / 401
    assert identification.summary(-correlate(*world(20, 2, 60)))["p"] > 0.95
    # Three images have six pairings: all are made, and the best of them is no rarer than one in six.
    assert identification.summary(np.eye(3))["p"] == 1 / 6
    constant = np.ones((12, 12))
    assert identification.summary(constant)["p"] == 1


# The stage


@pytest.fixture
def workdir(tmp_path):
    """A run `cvpr` of subj01 with clip features: images 3, 7, 8, 20, 21, 22 with two samples each."""
    originals, samples = world(6, 2, 30)
    write(tmp_path, "cvpr", "clip", (3, 7, 8, 20, 21, 22), originals, samples)
    return tmp_path


def write(workdir, run, feature, images, originals, samples):
    folder = layout.Workspace(workdir, "subj01").identification(run)
    folder.mkdir(parents=True, exist_ok=True)
    for image, original, each in zip(images, originals, samples):
        np.save(layout.image_feature(folder, f"{image:05}_org", feature), original)
        for repeat, sample in enumerate(each):
            np.save(layout.image_feature(folder, f"{image:05}_{repeat:03}", feature), sample)
    return folder


@pytest.fixture
def run(command_line):
    """Run a stage as its command line does; gives returncode, stdout and stderr."""
    def command(workdir, *arguments, script="identification.py"):
        return command_line(script, "--workdir", workdir, "--subject", "subj01", *arguments)
    return command


def refused(result, status=1):
    """The one line that a refused command says."""
    assert result.returncode == status, result.stderr
    lines = [line for line in result.stderr.splitlines() if "error: " in line]
    assert len(lines) == 1 and "Traceback" not in result.stderr and result.stdout == ""
    return lines[0]


def test_the_stage_prints_a_line_and_writes_the_scores_of_each_image(workdir, run):
    done = run(workdir, "--usefeat", "clip", "--method", "latent")
    assert done.returncode == 0, done.stderr
    originals, samples = world(6, 2, 30)
    r, scores = slow(originals, samples)
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith(f"subj01 cvpr clip: identification {scores.mean():.3f} [")
    assert "p = " in done.stdout and done.stdout.endswith("chance 0.5 (6 images × 2 samples)\n")
    with open(workdir / "scores" / "per_image_scores_subj01_cvpr_clip.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["imgidx"]) for row in rows] == [3, 7, 8, 20, 21, 22]
    assert np.allclose([float(row["mean_corr"]) for row in rows], np.diagonal(r), atol=2e-6)
    assert np.allclose([float(row["accuracy"]) for row in rows], scores, atol=1e-6)
    record = json.loads((workdir / "scores" / "per_image_scores_subj01_cvpr_clip.json").read_text())
    assert record["accuracy"] == pytest.approx(scores.mean()) and record["images"] == 6 and record["samples"] == 2
    assert record["options"] == {"subject": "subj01", "run": "cvpr", "feature": "clip", "seed": 42}


def test_features_whose_names_begin_alike_are_not_mixed(workdir, run):
    originals, samples = world(6, 2, 30, seed=9)
    write(workdir, "cvpr", "clip_h6", (0, 1, 2, 3, 4, 5), originals, samples)
    done = run(workdir, "--usefeat", "clip", "clip_h6")
    assert done.returncode == 0 and done.stdout.count("(6 images × 2 samples)") == 2
    assert (workdir / "scores"
            / "per_image_scores_subj01_cvpr_clip_h6.csv").read_text().splitlines()[1].startswith("0,")


@pytest.mark.parametrize("flags, name, script", [
    (["--true_features"], "cvpr-true_features", "identification.py"),
    (["--shuffle_trials", 7], "cvpr-shuffled7", "identification.py"),
    (["--conditioning", "z", "--method", "cvpr"], "cvpr-only_z", "identification.py"),
    (["--method", "gan"], "gan", "identification.py"),
    ([], "cvpr-occluded", "identification_occluded.py"),
    (["--dataset", "occluded"], "cvpr-occluded", "identification.py")])
def test_flags_select_the_run(tmp_path, run, flags, name, script):
    write(tmp_path, name, "clip", range(4), *world(4, 1, 30))
    done = run(tmp_path, "--usefeat", "clip", *flags, script=script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"subj01 {name} clip: ")
    assert layout.Workspace(tmp_path, "subj01").per_image_scores(name, "clip").exists()


def test_samples_must_be_equal_in_number_and_as_many_as_asked(workdir, run):
    layout.image_feature(layout.Workspace(workdir, "subj01").identification("cvpr"), "00008_001", "clip").unlink()
    line = refused(run(workdir, "--usefeat", "clip"))
    assert "image 3 has 2 samples" in line and "image 8 has 1" in line
    assert "2 samples asked, but image 8 has 1" in refused(run(workdir, "--usefeat", "clip", "--n_samples", 2))
    done = run(workdir, "--usefeat", "clip", "--n_samples", 1)
    assert done.returncode == 0 and "(6 images × 1 samples)" in done.stdout
    originals, samples = world(6, 2, 30)
    assert f"identification {slow(originals, samples[:, :1])[1].mean():.3f}" in done.stdout


def test_what_is_missing_or_broken_is_one_line_and_writes_nothing(workdir, run):
    folder = layout.Workspace(workdir, "subj01").identification("cvpr")
    assert "img2feat_decoded.py" in refused(run(workdir, "--usefeat", "inception"))
    assert "img2feat_decoded_occlusion.py" in refused(run(workdir, "--usefeat", "clip", "--dataset", "occluded"))
    path = layout.image_feature(folder, "00007_000", "clip")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert "not a whole .npy" in refused(run(workdir, "--usefeat", "clip"))
    np.save(path, np.array([True, False]))
    assert "not features" in refused(run(workdir, "--usefeat", "clip"))
    np.save(path, np.ones(30, np.float32))
    assert "reconstruction 7 has a constant feature" in refused(run(workdir, "--usefeat", "clip"))
    path.write_bytes(whole)
    layout.image_feature(folder, "00008_org", "clip").unlink()
    line = refused(run(workdir, "--usefeat", "clip"))
    assert "1 originals" in line and "image 8" in line and "img2feat_decoded.py" in line
    for image in (7, 8, 20, 21, 22):
        for file in folder.glob(f"{image:05}_*"):
            file.unlink()
    assert "single test image" in refused(run(workdir, "--usefeat", "clip"))
    for file in folder.glob("00003_00*"):
        file.unlink()
    assert "no reconstruction" in refused(run(workdir, "--usefeat", "clip"))
    assert not list(workdir.rglob("per_image_scores*"))


def test_bad_usage_is_status_2(workdir, run):
    for wrong in (["--usefeat", "resnet"], ["--usefeat", "clip", "--n_samples", 0], ["--method", "cvpr"],
                  ["--usefeat", "clip", "--method", "vae"], ["--usefeat", "clip", "--seed", -1]):
        refused(run(workdir, *wrong), status=2)
