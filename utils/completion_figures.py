"""The figure of the completion index: by ROI, against the truth where it is known, with its controls."""
import csv

import numpy as np

from utils import completion, figures, layout, store
from utils.figures import BLACK, BLUE, GREY, ORANGE, SERIES_COLOURS, VERMILION, plt

NOTE = "0: visible only   1: as if seen whole   bars: 95% interval over images"


def write(ws, rows, simulated):
    """Write the figure as PNG and PDF; returns the paths. rows: see `completion_stage.FIELDS`."""
    made = draw(ws, rows, simulated)
    paths = [ws.completion_result("completion_index", ending) for ending in ("png", "pdf")]
    for path, metadata in zip(paths, ({}, {"CreationDate": None})):
        with store.atomic(path) as temporary:
            made.savefig(temporary, format=path.suffix[1:], bbox_inches="tight", pad_inches=0.05, metadata=metadata)
    plt.close(made)
    return paths


def draw(ws, rows, simulated):
    """Index by ROI with intervals (left), and how it changes as the hidden region is eroded (right)."""
    primary = [row for row in rows if row["primary"]]
    with plt.rc_context(figures.STYLE):
        made, (axis, beside) = plt.subplots(1, 2, figsize=(figures.WIDTH, 2.9), layout="constrained", width_ratios=(1.7, 1))
        _by_roi(axis, primary)
        _by_margin(beside, ws)
        who = f"{ws.subject}, simulated subject" if simulated else ws.subject
        made.suptitle(f"Is what an occluder hides in the activity? {who}", x=0.01, ha="left", fontsize=9, fontweight="bold")
    return made


def _by_roi(axis, rows):
    names = [row["roi"] for row in rows]
    axis.axhline(0, color=BLACK, lw=0.8)
    axis.axhline(1, color=BLACK, lw=0.8, ls=(0, (4, 3)))
    for x, row in enumerate(rows):
        colour = BLUE if row["enough_signal"] else GREY
        axis.errorbar(x - 0.12, row["index"], [[max(0, row["index"] - row["low"])], [max(0, row["high"] - row["index"])]],
                      fmt="o", color=colour, mfc=colour if row["p_corrected"] < 0.05 else "white", ms=5, elinewidth=1.2)
        if not np.isnan(row["hidden"]):
            axis.errorbar(x + 0.14, row["hidden"], [[max(0, row["hidden"] - row["hidden_low"])],
                                                    [max(0, row["hidden_high"] - row["hidden"])]],
                          fmt="s", color=ORANGE, ms=3.5, elinewidth=1)
        if not np.isnan(row["truth"]):
            axis.plot([x - 0.34, x + 0.1], [row["truth"]] * 2, color=VERMILION, lw=2, solid_capstyle="butt", zorder=1)
    keys = [plt.Line2D([], [], marker="o", ls="", color=BLUE, label="index, p < 0.05 corrected"),
            plt.Line2D([], [], marker="o", ls="", color=BLUE, mfc="white", label="index, not significant"),
            plt.Line2D([], [], marker="s", ls="", color=ORANGE, ms=3.5, label="control: wholly hidden objects")]
    if any(not row["enough_signal"] for row in rows):
        keys.append(plt.Line2D([], [], marker="o", ls="", color=GREY, label="too little signal"))
    if any(not np.isnan(row["truth"]) for row in rows):
        keys.append(plt.Line2D([], [], color=VERMILION, lw=2, label="simulated truth"))
    axis.set_xticks(range(len(names)), [f"{row['roi']}\n{row['feature']}" for row in rows], fontsize=6.5)
    shown = [value for row in rows for value in (row["low"], row["high"]) if np.isfinite(value)]
    axis.set_ylim(max(-0.6, min(-0.3, *shown)), min(1.8, max(1.2, *shown)))
    axis.set_ylabel("completion index")
    axis.set_title(NOTE, fontsize=6.5, loc="left", color="#555555")
    axis.legend(handles=keys, fontsize=6, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)


def _by_margin(axis, ws):
    with open(ws.completion_result("margins", "csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    names = [roi for roi in layout.ROIS if completion.feature_of(roi) == "local" and any(row["roi"] == roi for row in rows)]
    for roi, colour, marker in zip(names, SERIES_COLOURS, figures.SERIES_MARKERS):
        mine = [row for row in rows if row["roi"] == roi]
        margin, index, low, high = (np.array([float(row[key]) for row in mine]) for key in ("margin", "index", "low", "high"))
        axis.plot(margin, index, color=colour, marker=marker, ms=4, lw=1.2, label=roi)
        axis.fill_between(margin, low, high, color=colour, alpha=0.15, lw=0)
    axis.axhline(0, color=BLACK, lw=0.8)
    axis.set_xlabel("margin left out at the occluder's edge\n(image sides)")
    axis.set_title("control: receptive fields on the edge", fontsize=6.5, loc="left", color="#555555")
    if names:
        axis.legend(fontsize=6, frameon=False)
