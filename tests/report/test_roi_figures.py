"""The figure of accuracy by feature and ROI tells regions apart, leaves out controls, and admits what it lacks."""
import numpy as np
import pytest

from utils import layout
from utils.evaluate import identification
from utils.report import roi_figures
from utils.storage import arrays, subject_matrices, text_files

IMAGES, DIMS = 12, 20


@pytest.fixture
def ws(tmp_path):
    """Decoded features of two ROIs, one of them good; a control; an occluded twin;
    a target whose true features are gone."""
    ws = layout.Workspace(tmp_path, "subj01")
    random = np.random.default_rng(0)
    truth = random.standard_normal((IMAGES, DIMS)).astype(np.float32)
    subject_matrices.write_subject_features(ws.subject_features("each", "c"), {
        split: (np.arange(IMAGES), np.arange(IMAGES), lambda ids: truth[ids]) for split in ("tr", "te")}, {}, {})
    for roi, target, noise, more in (("early", "c", 0.1, {}), ("ventral", "c", 30.0, {}), ("early", "blip", 1.0, {}),
                                     ("ventral", "c", 0.0, {"shuffle_trials": 3}),
                                     ("early", "c_occluded", 0.1, {"dataset": "occluded"})):
        path = ws.scores([roi], target, control="shuffled3" if "shuffle_trials" in more else None)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays.write_npy(path, truth + noise * random.standard_normal(truth.shape).astype(np.float32))
        options = {"rois": [roi], "target": target, "mode": "fixed", "dataset": "original",
                   "shuffle_trials": None,
                   "voxels": {"atlas": "streams", "zscore": None, "ncsnr_min": None}} | more
        text_files.write_json(layout.sidecar(path),
                              {"made_by": "ridge.py", "options": options, "test_correlation": 0.25})
    return ws


def test_regions_are_told_apart_and_controls_and_occluded_twins_left_out(ws):
    cells = roi_figures.found(ws)
    assert set(cells) == {("c", "early"), ("c", "ventral"), ("blip", "early")}
    good, poor = (roi_figures.identified(ws, "c", cells["c", roi]["path"]) for roi in ("early", "ventral"))
    assert good == 1 and abs(poor - identification.CHANCE) < 0.25


def test_every_cell_is_written_out_and_what_is_not_known_is_a_dash(ws):
    figure = roi_figures.by_roi(ws)
    correlation, identified = ([text.get_text() for text in axis.texts] for axis in figure.axes)
    assert correlation == ["0.25", "0.25", "0.25", "–"] and identified[0] == "1.00" and identified[2:] == ["–", "–"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["early", "ventral"]


def test_one_region_makes_no_figure(ws):
    for path in ws.decoded.glob("*ventral*"):
        path.unlink()
    assert roi_figures.by_roi(ws) is None
