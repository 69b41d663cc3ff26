"""Combine the predictions that several ROIs make of the same features, weighted by what the training data say."""
import numpy as np

from utils import layout
from utils.errors import Problem
from utils.ridge import correlation
from utils.storage import arrays, provenance, subject_matrices, text_files, writing

BLOCK_BYTES = 1 << 26
OF_ONE_ROI = ("rois", "alphas")  # options in which the predictions may differ


def read_predictions(paths, made_by):
    """(predictions, records) of ridge.py's artifacts: memory maps (test stimuli, dims), and the JSON beside each.

    made_by: what makes each path. Raises Problem for a missing file, one without its record, and predictions that may
    not be combined: of other stimuli or features, of another data set, mode or control, or of unlike shape.
    """
    predictions = [arrays.read_npy(path, mmap=True, made_by=command) for path, command in zip(paths, made_by)]
    records = []
    for path, command in zip(paths, made_by):
        if not layout.sidecar(path).exists():
            raise Problem(f"{path} has no {layout.sidecar(path).name} to say what made it",
                          f"run {command} --overwrite")
        records.append(text_files.read_json(layout.sidecar(path)))
    for path, prediction, record in zip(paths, predictions, records):
        for what, ours, first in [("shape", prediction.shape, predictions[0].shape),
                                  ("options", shared_options(record), shared_options(records[0])),
                                  ("features", _features(record), _features(records[0]))]:
            if ours != first:
                raise Problem(f"{paths[0].name} and {path.name} differ in {what}: {_difference(first, ours)}",
                              "combine predictions that ridge.py made of the same features with the same flags")
    return predictions, records


def shared_options(record):
    """The options of a prediction that a combination shares with it."""
    return {key: value for key, value in record.get("options", {}).items() if key not in OF_ONE_ROI}


def _features(record):
    """Digest and origin of the features, and so of the test stimuli and their order."""
    inputs = {name: digest for name, digest in record.get("inputs", {}).items() if "_betas_" not in name}
    return {"inputs": inputs, "features": record.get("features")}


def _difference(first, second):
    if isinstance(first, dict):
        keys = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
        return ", ".join(f"{key} {first.get(key)} and {second.get(key)}" for key in keys)
    return f"{first} and {second}"


def weights(records, rois, kind):
    """(rois,) float64, summing to 1. kind: "equal", or "cv": each ROI's cross-validated R² on the training data.

    A negative R² counts as zero. The test images have no say: their correlations are never read. Raises Problem
    without a cv_r2, or where no ROI predicts anything.
    """
    if kind == "equal":
        return np.full(len(rois), 1 / len(rois))
    without = [roi for roi, record in zip(rois, records) if record.get("cv_r2") is None]
    if without:
        raise Problem(f"the record of {' and '.join(without)} has no cross-validated R² (cv_r2)",
                      "run ridge.py again with --overwrite, or pass --weights equal")
    scores = np.clip([record["cv_r2"] for record in records], 0, None)
    if not scores.sum() > 0:
        raise Problem(f"no ROI of {' '.join(rois)} predicts the features in cross-validation (R² ≤ 0)",
                      "pass --weights equal if you want their mean nevertheless")
    return scores / scores.sum()


def combine_to(out, predictions, shares, progress):
    """Write the mean of `predictions` weighted by `shares` to `out` (test stimuli, dims), a block of rows at a time."""
    rows = max(1, BLOCK_BYTES // (8 * out.shape[1]))
    for start in range(0, len(out), rows):
        some = slice(start, start + rows)
        out[some] = sum(share * prediction[some].astype(np.float64) for share, prediction in zip(shares, predictions))
        progress(len(out[some]))


def correlations(ws, target, record, combination):
    """The `correlation.Correlations` of a combination (test stimuli, dims) with the true features of the test stimuli.

    record: of one of the predictions. None where the features that it was decoded against are not there any more, or
    were never stored.
    """
    paths = {"/".join(path.parts[-3:]): path for path in (ws.subject_features(use, target) for use in ("each", "ave"))}
    for name, path in paths.items():
        if name in record.get("inputs", {}) and path.exists() and provenance.digest(path) == record["inputs"][name]:
            return _correlations(path, combination)
    return None


def _correlations(path, combination):
    found = correlation.Correlations(*combination.shape)
    columns = max(1, BLOCK_BYTES // (8 * len(combination)))
    with subject_matrices.SubjectFeatures(path, "make_subjstim.py") as matrix:
        true = matrix.features("te")
        for start in range(0, combination.shape[1], columns):
            some = slice(start, start + columns)
            found.add(slice(None), some, combination[:, some], true[:, some])
    return found


def write(path, predictions, shares, wanted, progress, judge, features=None):
    """The combination, as ridge.py writes a prediction: (test stimuli, dims) float32; beside it `wanted`, the weights.

    judge: given the combination, gives its `correlation.Correlations` or None. Returns the two mean test correlations,
    (None, None) without.
    """
    with writing.atomic(path) as temporary:
        out = arrays.new_npy(temporary, predictions[0].shape)
        combine_to(out, predictions, shares, progress)
        out.flush()
        found = judge(out)
        means = (None, None) if found is None else tuple(map(correlation.mean, (found.profile, found.pattern)))
        del out  # Windows renames no file that is mapped
        provenance.finish(path, wanted, temporary, features=features, weights=[float(share) for share in shares],
                          test_correlation=means[0], test_pattern_correlation=means[1])
    return means
