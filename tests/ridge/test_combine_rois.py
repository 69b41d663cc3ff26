"""Predictions of several ROIs combine by training scores alone, and only if they belong together."""
import json

import numpy as np
import pytest

from utils import layout
from utils.storage import arrays, provenance, subject_matrices, text_files

SHAPE = (7, 13)


def predict(workdir, roi, value=None, shape=SHAPE, *, dataset=None, control=None, options=(), inputs=(), **record):
    """An artifact as ridge.py leaves it; returns its prediction."""
    path = layout.Workspace(workdir, "subj01").scores([roi], "c", dataset, control)
    random = np.random.default_rng(len(roi))
    prediction = random.normal(size=shape).astype(np.float32) if value is None else np.full(shape, value, np.float32)
    arrays.write_npy(path, prediction)
    text_files.write_json(layout.sidecar(path), {
        "options": {"rois": [roi], "alphas": [len(roi)], "mode": "fixed", "target": "c", "dataset": "original"}
        | dict(options), "features": {"model": "tiny"}, "cv_r2": 0.1, "test_correlation": 0.9,
        "inputs": {f"mrifeat/subj01/subj01_{roi}_betas_tr.npy": roi, "nsdfeat/subjfeat/subj01_each_c.h5": "f"}
        | dict(inputs)} | record)
    return prediction


@pytest.fixture
def run(tmp_path, command_line):
    """Run the stage as its command line does; gives returncode, stdout and stderr."""
    def command(*arguments, rois=("early", "ventral")):
        return command_line("combine_roi_predictions.py", "--workdir", tmp_path, "--subject", "subj01", "--target", "c",
                            "--rois", *rois, *arguments)
    return command


def refused(result, status=1):
    """The one line that a refused command says."""
    assert result.returncode == status, result.stderr
    lines = [line for line in result.stderr.splitlines() if "error: " in line]
    assert len(lines) == 1 and "Traceback" not in result.stderr and result.stdout == ""
    return lines[0]


def combined(workdir, dataset=None, control=None):
    path = layout.Workspace(workdir, "subj01").scores(["early+ventral"], "c", dataset, control)
    return np.load(path), json.loads(layout.sidecar(path).read_text())


def test_weights_are_the_training_scores_whatever_the_test_images_say(tmp_path, run):
    early = predict(tmp_path, "early", cv_r2=0.1, test_correlation=0.9)
    ventral = predict(tmp_path, "ventral", cv_r2=0.3, test_correlation=0.0)
    done = run()
    assert done.returncode == 0 and done.stdout == "subj01_early+ventral_scores_c: early 0.25, ventral 0.75\n"
    prediction, record = combined(tmp_path)
    assert prediction.dtype == np.float32 and np.allclose(prediction, 0.25 * early + 0.75 * ventral, atol=1e-6)
    assert record["weights"] == pytest.approx([0.25, 0.75]) and len(record["inputs"]) == 2
    assert record["options"]["rois"] == ["early", "ventral"]


def test_equal_weights_are_the_mean_and_need_no_score(tmp_path, run):
    early, ventral = predict(tmp_path, "early", cv_r2=None), predict(tmp_path, "ventral", cv_r2=0.3)
    assert "early has no cross-validated R²" in refused(run())
    assert run("--weights", "equal").returncode == 0
    assert np.allclose(combined(tmp_path)[0], (early + ventral) / 2, atol=1e-6)


def test_the_combination_is_compared_with_the_features_that_its_parts_were_decoded_against(tmp_path, run):
    true = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    path = layout.Workspace(tmp_path, "subj01").subject_features("each", "c")
    ids = np.arange(len(true))
    subject_matrices.write_subject_features(path,
                                            {split: (ids, ids, lambda some: true[some]) for split in ("tr", "te")}, {})
    name = "/".join(path.parts[-3:])
    parts = [predict(tmp_path, roi, inputs={name: provenance.digest(path)}) for roi in ("early", "ventral")]
    done = run()
    mean = (parts[0] + parts[1]) / 2
    profile = np.mean([np.corrcoef(p, t)[0, 1] for p, t in zip(mean.T, true.T)])
    pattern = np.mean([np.corrcoef(p, t)[0, 1] for p, t in zip(mean, true)])
    assert f"profile r = {profile:.3f}" in done.stdout and f"pattern r = {pattern:.3f}" in done.stdout
    _, record = combined(tmp_path)
    assert record["test_correlation"] == pytest.approx(profile, abs=1e-6)
    assert record["test_pattern_correlation"] == pytest.approx(pattern, abs=1e-6)

    for roi in ("early", "ventral"):
        predict(tmp_path, roi, inputs={name: "of another file"})
    done = run("--overwrite")
    assert "r = " not in done.stdout and "are not there to compare with" in done.stderr
    assert combined(tmp_path)[1]["test_correlation"] is None


def test_another_folder_of_predictions_is_read_and_written(tmp_path, run):
    early, ventral = (predict(tmp_path / "other", roi) for roi in ("early", "ventral"))
    done = run("--weights", "equal", "--decoded_dir", tmp_path / "other" / "decoded")
    assert done.returncode == 0, done.stderr
    assert np.allclose(combined(tmp_path / "other")[0], (early + ventral) / 2, atol=1e-6)
    assert not (tmp_path / "decoded").exists()


def test_a_roi_below_zero_has_no_weight_and_all_below_zero_is_refused(tmp_path, run):
    early = predict(tmp_path, "early", cv_r2=0.2)
    predict(tmp_path, "ventral", cv_r2=-0.4)
    assert run().returncode == 0
    assert np.allclose(combined(tmp_path)[0], early)
    predict(tmp_path, "early", cv_r2=-0.2)
    assert "no ROI" in refused(run("--overwrite"))


def test_blocks_of_rows_change_nothing(tmp_path, run, monkeypatch):
    from utils.ridge import combine_rois
    predict(tmp_path, "early"), predict(tmp_path, "ventral")
    assert run().returncode == 0
    whole, _ = combined(tmp_path)
    monkeypatch.setattr(combine_rois, "BLOCK_BYTES", 2 * 8 * SHAPE[1])
    assert run("--overwrite").returncode == 0
    assert np.array_equal(combined(tmp_path)[0], whole)


@pytest.mark.parametrize("other, said", [
    ({"shape": (8, 13)}, "(7, 13) and (8, 13)"),
    ({"shape": (7, 12)}, "(7, 13) and (7, 12)"),
    ({"options": {"shuffle_trials": 7}}, "shuffle_trials None and 7"),
    ({"options": {"dataset": "occluded"}}, "dataset original and occluded"),
    ({"options": {"mode": "paper"}}, "mode fixed and paper"),
    ({"features": {"model": "hub"}}, "features"),
    ({"inputs": {"nsdfeat/subjfeat/subj01_each_c.h5": "g"}}, "inputs")])
def test_predictions_that_do_not_belong_together_are_refused(tmp_path, run, other, said):
    predict(tmp_path, "early")
    predict(tmp_path, "ventral", **other)
    line = refused(run())
    assert said in line and "early" in line and "ventral" in line
    assert not list(tmp_path.glob("decoded/subj01/*early+ventral*"))


def test_controls_and_datasets_have_names_of_their_own(tmp_path, run):
    for roi in ("early", "ventral"):
        predict(tmp_path, roi, 1.0)
        predict(tmp_path, roi, 2.0, control="shuffled7")
        predict(tmp_path, roi, 3.0, dataset="occluded")
    assert [run(*flags).returncode for flags in ([], ["--shuffle_trials", 7], ["--dataset", "occluded"])] == [0, 0, 0]
    assert [combined(tmp_path, **which)[0][0, 0] for which in ({}, {"control": "shuffled7"}, {"dataset": "occluded"})
            ] == [1, 2, 3]


def test_finished_work_is_kept_until_an_input_changes(tmp_path, run):
    predict(tmp_path, "early", 1.0), predict(tmp_path, "ventral", 1.0)
    assert run().returncode == 0
    assert "done before" in run().stdout
    predict(tmp_path, "ventral", 2.0)
    assert "--overwrite" in refused(run())
    assert run("--overwrite").returncode == 0 and combined(tmp_path)[0][0, 0] == 1.5


def test_what_is_missing_or_misused_is_one_line(tmp_path, run):
    predict(tmp_path, "early")
    assert "ridge.py --target c --roi ventral --subject subj01" in refused(run())
    predict(tmp_path, "ventral")
    layout.sidecar(layout.Workspace(tmp_path, "subj01").scores(["ventral"], "c")).unlink()
    assert "to say what made it" in refused(run())
    refused(run(rois=("early",)), status=2)
    refused(run(rois=("early", "early")), status=2)
    refused(run("--weights", "test"), status=2)
