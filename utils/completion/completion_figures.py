"""Figures of amodal completion: the index by ROI with its controls, closeness, and close-ups of what was hidden."""
import functools

import numpy as np

from utils import images, layout, lazy, plotting
from utils.completion import completion_index
from utils.plotting import BLACK, BLUE, GREEN, GREY, ORANGE, SERIES_COLOURS, VERMILION, plt
from utils.storage import picture_files, run_records, text_files

ndimage = lazy.module("scipy.ndimage")

NOTE = "0: visible only   1: as if seen whole   bars: 95% interval over images"
CLOSEUP_ROWS = 6        # views in the figure of close-ups, beside the controls
ZOOM = 0.45             # image sides that a close-up shows
CAPTION = (
    'Outlined: hidden; right of each picture the hidden region, enlarged. "From the brain": cvpr, decoders trained\n'
    'on whole images. "Without a brain": the same diffusion model given the visible part. '
    "Detail is the model's own; see the\ncloseness table.")
COMPARED = (("over_occluder", "the occluder", BLUE, "o"), ("over_context", "the context's guess", ORANGE, "s"),
            ("over_others", "other images' hidden content", GREEN, "^"))
SOURCES = (("visible-only model", "visible only", "white"), ("occluded viewing", "occluded viewing", None),
           ("whole image seen", "whole image seen", GREY))


def write(ws, rows, near, closeups, simulated):
    """Write every figure as PNG and PDF; returns the paths. Arguments: see `completion_stage` and `closeups.read`."""
    drawn = {"completion_index": draw(ws, rows, simulated), "closeness": closeness(ws, rows, near, simulated)}
    if closeups:
        drawn["closeups"] = close_up(ws, closeups, simulated)
    return [path for name, made in drawn.items()
            for path in picture_files.save_figure(made, functools.partial(ws.completion_result, name))]


def _headed(made, title):
    made.suptitle(title, x=0.01, ha="left", fontsize=9, fontweight="bold")


def _bars(value, low, high):
    """Lengths of an error bar."""
    return [[max(0, value - low)], [max(0, high - value)]]


def draw(ws, rows, simulated):
    """Index by ROI with intervals (left), and how it changes as the hidden region is eroded (right)."""
    primary = [row for row in rows if row["primary"]]
    with plt.rc_context(plotting.STYLE):
        made, (axis, beside) = plt.subplots(1, 2, figsize=(plotting.WIDTH, 2.9), layout="constrained",
                                            width_ratios=(1.7, 1))
        _by_roi(axis, primary)
        _by_margin(beside, ws)
        _headed(made, f"Is what an occluder hides in the activity? {run_records.who(ws, simulated)}")
    return made


def _by_roi(axis, rows):
    names = [row["roi"] for row in rows]
    axis.axhline(0, color=BLACK, lw=0.8)
    axis.axhline(1, color=BLACK, lw=0.8, ls=(0, (4, 3)))
    for x, row in enumerate(rows):
        colour = BLUE if row["enough_signal"] else GREY
        axis.errorbar(x - 0.12, row["index"], _bars(row["index"], row["low"], row["high"]),
                      fmt="o", color=colour, mfc=colour if row["p_corrected"] < 0.05 else "white", ms=5, elinewidth=1.2)
        if not np.isnan(row["hidden"]):
            axis.errorbar(x + 0.14, row["hidden"], _bars(row["hidden"], row["hidden_low"], row["hidden_high"]),
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
    axis.set_xticks(range(len(names)), [f"{row['roi']}\n{row['feature']}" for row in rows], fontsize=6)
    shown = [value for row in rows for value in (row["low"], row["high"]) if np.isfinite(value)]
    axis.set_ylim(max(-0.6, min(-0.3, *shown)), min(1.8, max(1.2, *shown)))
    axis.set_ylabel("completion index")
    axis.set_title(NOTE, fontsize=6.5, loc="left", color="#555555")
    axis.legend(handles=keys, fontsize=6, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)


def _by_margin(axis, ws):
    rows = text_files.read_csv(ws.completion_result("margins", "csv"))
    there = {row["roi"] for row in rows}
    names = [roi for roi in layout.ROIS if completion_index.feature_of(roi) == "local" and roi in there]
    for roi, colour, marker in zip(names, SERIES_COLOURS, plotting.SERIES_MARKERS):
        mine = [row for row in rows if row["roi"] == roi]
        margin, index, low, high = (np.array([float(row[key]) for row in mine])
                                    for key in ("margin", "index", "low", "high"))
        axis.plot(margin, index, color=colour, marker=marker, ms=4, lw=1.2, label=roi)
        axis.fill_between(margin, low, high, color=colour, alpha=0.15, lw=0)
    axis.axhline(0, color=BLACK, lw=0.8)
    axis.set_xlabel("margin left out at the occluder's edge\n(image sides)")
    axis.set_title("control: receptive fields on the edge", fontsize=6.5, loc="left", color="#555555")
    if names:
        axis.set_ylim(min(-0.2, axis.get_ylim()[0]), axis.get_ylim()[1])
        axis.legend(fontsize=6, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.36), ncols=2)


def closeness(ws, rows, near, simulated):
    """How much closer what is decoded is to the truth than to each of COMPARED, by ROI and by what the brain saw."""
    judged = [(row["roi"], row["feature"]) for row in rows if row["primary"]]
    known = {(row["roi"], row["feature"], row["source"]): row for row in near}
    with plt.rc_context(plotting.STYLE):
        made, axes = plt.subplots(1, len(COMPARED), figsize=(plotting.WIDTH, 2.6), layout="constrained")
        for axis, (key, name, colour, marker) in zip(axes, COMPARED):
            axis.axhline(0, color=BLACK, lw=0.8)
            for step, (source, _, fill) in enumerate(SOURCES):
                for x, name_of in enumerate(judged):
                    row = known.get((*name_of, source))
                    if row is None or np.isnan(row[key]):
                        continue
                    bars = _bars(row[key], row[f"{key}_low"], row[f"{key}_high"])
                    axis.errorbar(x + 0.22 * (step - 1), row[key], bars, fmt=marker, mfc=fill or colour, ms=4,
                                  color=GREY if fill == GREY else colour, elinewidth=1)
            axis.set_xticks(range(len(judged)), [roi for roi, _ in judged], rotation=40, ha="right", fontsize=6.5)
            axis.set_title(f"than to {name}", fontsize=7, loc="left")
        axes[0].set_ylabel("r with the truth minus r with …")
        keys = [plt.Line2D([], [], marker="o", ls="", color=GREY if fill == GREY else BLACK, mfc=fill or BLACK, ms=4,
                           label=label) for _, label, fill in SOURCES]
        made.legend(handles=keys, fontsize=6.5, frameon=False, loc="outside lower center", ncols=len(keys))
        _headed(made, f"Is what is decoded behind the occluder closer to the truth … {run_records.who(ws, simulated)}")
    return made


def close_up(ws, closeups, simulated):
    """Views behind occluders: shown, truth, reconstruction from the brain, and without one; the hidden region enlarged.

    Rows are evenly spaced over the views that were reconstructed, then the controls; none is hand-picked.
    """
    usual, controls = ([each for each in closeups if each["control"] == which] for which in (False, True))
    shown = [usual[row] for row in plotting.evenly(len(usual), CLOSEUP_ROWS)] + controls
    columns = (("shown", "shown", BLACK), ("truth", "truth", BLACK), ("brain", "from the brain", BLUE),
               ("context", "without a brain", ORANGE))
    with plt.rc_context(plotting.STYLE):
        tile = (plotting.WIDTH - 0.7) / 8
        made, axes = plt.subplots(len(shown), 8, squeeze=False, figsize=(plotting.WIDTH, 0.75 + tile * len(shown)))
        made.subplots_adjust(left=0.7 / plotting.WIDTH, right=1, bottom=0, top=1 - 0.75 / made.get_figheight(),
                             wspace=0.04, hspace=0.04)
        for row, view in zip(axes, shown):
            hidden = images.load(view["hidden"], ("L",)) > 127
            window = _window(hidden)
            for pair, (what, _, _) in enumerate(columns):
                picture = images.load(view[what])
                for axis, part in zip(row[2 * pair:2 * pair + 2], (None, window)):
                    _outlined(axis, picture, hidden, part)
            name = f"{view['mask_id']}\nimage {view['stim_id']}"
            name += "\ncontrol: object\nwholly hidden" if view["control"] else ""
            row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=5.5)
        for pair, (_, name, colour) in enumerate(columns):
            left, right = axes[0, 2 * pair].get_position(), axes[0, 2 * pair + 1].get_position()
            made.text((left.x0 + right.x1) / 2, left.y1 + 0.06 / made.get_figheight(), name, ha="center", va="bottom",
                      fontsize=7, color=colour)
        made.text(0, 1, f"What was hidden, {run_records.who(ws, simulated)}", fontsize=9, fontweight="bold", va="top")
        made.text(0, 1 - 0.17 / made.get_figheight(), CAPTION, fontsize=6, color="#555555", va="top")
    return made


def _window(hidden):
    """(top, left, side) px of a square of ZOOM about the middle of the largest connected hidden part."""
    parts, count = ndimage.label(hidden)
    largest = 1 + int(np.argmax(ndimage.sum_labels(hidden, parts, range(1, count + 1))))
    middle = ndimage.center_of_mass(parts == largest)
    side = round(ZOOM * len(hidden))
    return (*(int(np.clip(round(at - side / 2), 0, length - side)) for at, length in zip(middle, hidden.shape)), side)


def _outlined(axis, picture, hidden, window):
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    scale = len(picture) / len(hidden)
    axis.imshow(picture, interpolation="antialiased")
    if not hidden.all():
        y, x = ((np.arange(length) + 0.5) * scale - 0.5 for length in hidden.shape)
        axis.contour(x, y, hidden, [0.5], colors="white", linewidths=1.0)
        axis.contour(x, y, hidden, [0.5], colors=VERMILION, linewidths=0.5)
    if window is not None:
        top, left, side = (edge * scale for edge in window)
        axis.set_xlim(left - 0.5, left + side - 0.5)
        axis.set_ylim(top + side - 0.5, top - 0.5)
