"""How well each region's activity tells each feature: correlation of decoded with true features, and identification.

Identification here needs no pictures: the decoded feature of a test image is to be found among those of all others by
its correlation with the true one (as utils/evaluate/identification.py does it with features of reconstructions).
Colours are matplotlib's cividis, which readers with any colour vision see alike (Nuñez et al. 2018), and every cell is
written out.
"""
import numpy as np

from utils import layout, plotting
from utils.evaluate import identification
from utils.plotting import plt
from utils.report import figures
from utils.ridge import decoded_features
from utils.storage import arrays, run_records, subject_matrices, text_files

SMALLEST = 2            # ROIs by themselves; fewer make no figure
MOST_DIMS = 65_536      # by which images are told apart, evenly spaced over a larger feature's; bounds memory
CELL = 0.30             # inches, height of a row
PANELS = (("correlation", "correlation with the true feature\n(mean over dims, test images)", 0.0),
          ("identification", "identification among the test images\n(by the decoded feature, chance 0.5)",
           identification.CHANCE))


def found(ws):
    """{(target, ROI or "several"): record and path of the scores}: whole images, default mode, no controls."""
    cells = {}
    for side in ws.found_scores():
        record = text_files.read_json(side)
        options = record.get("options", {})
        plain = {"mode": "fixed", "shuffle_trials": None, "dataset": "original",
                 "voxels": {"atlas": "streams", "zscore": None, "ncsnr_min": None}}
        if record.get("made_by") != "ridge.py" or any(options.get(name) != value for name, value in plain.items()):
            continue
        rois = options["rois"]
        if len(rois) > 1 and tuple(rois) != decoded_features.ROIS:
            continue
        cells[options["target"], rois[0] if len(rois) == 1 else "several"] = record | {"path": side.with_suffix(".npy")}
    return cells


def identified(ws, target, path):
    """Mean accuracy over test images of the decoded features in `path` by the target's true ones; NaN without these."""
    features = ws.found_subject_features(target)
    guess = arrays.read_npy(path, mmap=True)
    if not features.exists() or len(guess) < 2:
        return np.nan
    step = -(-guess.shape[1] // MOST_DIMS)
    with subject_matrices.SubjectFeatures(features, "make_subjstim.py") as matrix:
        truth = matrix.features("te")[:, ::step]
    guess = guess[:, ::step]
    if guess.shape != truth.shape:
        return np.nan
    r = identification.correlations(np.arange(len(guess)), lambda i: truth[i], lambda i: guess[i][None])
    return float(identification.accuracy(r).mean())


def by_roi(ws):
    """Heat maps of accuracy by feature and ROI; None unless SMALLEST ROIs were decoded by themselves."""
    cells = found(ws)
    rois = [roi for roi in (*layout.ROIS, "several") if any(key[1] == roi for key in cells)]
    if len([roi for roi in rois if roi != "several"]) < SMALLEST:
        return None
    targets = sorted({target for target, _ in cells}, key=figures.target_rank)
    tables = {name: np.full((len(targets), len(rois)), np.nan) for name, _, _ in PANELS}
    for (target, roi), record in cells.items():
        at = targets.index(target), rois.index(roi)
        correlation = record.get("test_correlation")
        tables["correlation"][at] = correlation if isinstance(correlation, float) else np.nan
        tables["identification"][at] = identified(ws, target, record["path"])
    with plt.rc_context(plotting.STYLE):
        made, axes = plt.subplots(1, len(PANELS), figsize=(plotting.WIDTH, 1.7 + CELL * len(targets)),
                                  layout="constrained", sharey=True)
        for axis, (name, title, lowest) in zip(axes, PANELS):
            _heat_map(axis, tables[name], lowest)
            names = [f"{len(decoded_features.ROIS)} ROIs" if roi == "several" else roi for roi in rois]
            axis.set_xticks(range(len(rois)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=6.5)
            axis.set_title(title, fontsize=7, loc="left")
        axes[0].set_yticks(range(len(targets)), targets, fontsize=7)
        made.suptitle(f"Decoding accuracy by feature and ROI, {run_records.who(ws)}", x=0.01, ha="left", fontsize=9,
                      fontweight="bold")
    return made


def _heat_map(axis, table, lowest):
    colours = plt.get_cmap("cividis").with_extremes(bad="#F2F2F2")
    axis.imshow(np.ma.masked_invalid(table), cmap=colours, vmin=lowest, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        if np.isnan(value):
            axis.text(column, row, "–", ha="center", va="center", fontsize=6.5, color=plotting.GREY)
        else:
            middle = (value - lowest) / (1 - lowest) > 0.55
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6.5,
                      color="black" if middle else "white")
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
