"""Figures of one subject: reconstructions, identification, decoding accuracy. PDF for print, PNG for the screen."""
import csv
import re
import textwrap
from dataclasses import dataclass

import numpy as np
from PIL import Image

from utils import images, layout, plotting
from utils.errors import Problem
from utils.evaluate import identification
from utils.plotting import plt
from utils.storage import run_records, text_files

TARGET_ORDER = ("init_latent", "c", "blip", "dpt_emb", "conv", "fc")
TILE = 300  # px of a picture in a figure
MOST_COLUMNS = 8  # pictures in a row; fewer samples of each result are shown to keep to it
SAMPLES_SHOWN = 3  # of each result at most; a recovery check and a control show one
LETTER = 0.066  # inches, the width of one at 7 points
HEAD = 0.85  # inches above the pictures


def by_rank(scores, count):
    """[(image, label)] evenly spaced from the best identified image to the worst; ties by index, nothing hand-picked.

    scores: {image: accuracy}.
    """
    ranked = sorted(scores, key=lambda image: (-scores[image], image))
    names = {0: "best", len(ranked) - 1: "worst"}
    return [(ranked[rank], f"{names.get(rank, f'rank {rank + 1} of {len(ranked)}')}\nacc. {scores[ranked[rank]]:.2f}")
            for rank in plotting.evenly(len(ranked), count)]


def by_index(found, count):
    """[(image, label)] evenly spaced over the images there are, where no identification says how good each is."""
    return [(found[position], f"image {found[position]}") for position in plotting.evenly(len(found), count)]


def read_scores(ws, run, feature):
    """{image: accuracy} of a run by one feature, as identification.py wrote it; {} if it did not."""
    path = ws.found_per_image_score(run, feature)
    if not path.exists():
        return {}
    try:
        return {int(row["imgidx"]): float(row["accuracy"]) for row in text_files.read_csv(path)}
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise Problem(f"{path} is not what identification.py writes ({error})",
                      "run identification.py again") from error


def reconstructions(ws, occluded, feature, count):
    """Originals, occluded images and samples of every run of a data set that is there; None if there is none.

    The rows are chosen by rank of identification with `feature` in the first run that has it, and say so.
    """
    runs = [run for run in map(run_records.Run.of, ws.found_runs()) if run.occluded == occluded]
    runs.sort(key=lambda run: (["result", "recovery", "control"].index(run.kind), _in_order(run), run.name))
    found = {run.name: layout.found_images(ws.samples(run.name)) for run in runs}
    runs = [run for run in runs if any(set(paths) - {"org", "occ"} for paths in found[run.name].values())]
    if not runs:
        return None
    judged = next((run for run in runs if read_scores(ws, run.name, feature)), None)
    common = sorted(set.intersection(*(set(_sampled(found[run.name])) for run in runs
                                       if run.kind == "result" or runs[0] == run)))
    if judged:
        scores = read_scores(ws, judged.name, feature)
        rows = by_rank({image: scores[image] for image in common if image in scores}, count)
        rule = f"rows: evenly spaced ranks of {feature} identification ({judged.label}), best to worst"
    else:
        rows = by_index(common, count)
        rule = "rows: evenly spaced over the test images"

    columns = [("original", None, "org")] + ([("occluded", None, "occ")] if occluded else [])
    results = sum(run.kind == "result" for run in runs)
    room = MOST_COLUMNS - len(columns) - (len(runs) - results)
    each = min(SAMPLES_SHOWN, max(1, room // max(1, results)))
    for run in runs:
        most = max(len(set(paths) - {"org", "occ"}) for paths in found[run.name].values())
        shown = min(most, each if run.kind == "result" else 1)
        title = run.label.replace(", occluded", "")
        columns += [(title, run, repeat) for repeat in range(shown)]
    return _gallery(ws, rows, columns, found, runs, rule, occluded)


def _in_order(run):
    """Place of a run's method in the order in which the papers added them."""
    return layout.METHODS.index(run.method) if run.method in layout.METHODS else len(layout.METHODS)


def _sampled(found):
    """The images of a samples folder that have a sample."""
    return [image for image, paths in found.items() if set(paths) - {"org", "occ"}]


def captions_and_depth(ws, dataset, count):
    """Test images with the caption and the depth map that were decoded, beside a true caption and the true picture's
    depth; None unless captions were decoded. Images are evenly spaced over those that have a picture.
    """
    decoded = ws.captions(*(("blip_occluded", "occluded") if dataset == "occluded" else ()))
    if not decoded.exists() or not ws.captions_people().exists():
        return None
    told, said = (path.read_text(encoding="utf-8").splitlines() for path in (decoded, ws.captions_people()))
    runs = [run for run in map(run_records.Run.of, ws.found_runs())
            if run.kind == "result" and run.occluded == (dataset == "occluded")]
    found = {run.name: layout.found_images(ws.samples(run.name)) for run in runs}
    if not runs:
        return None
    common = sorted(set.intersection(*(set(_sampled(images)) for images in found.values())))
    rows = [image for image, _ in by_index(common, count)]
    originals = found[runs[0].name]
    shown = ["org"] + (["occ"] if dataset == "occluded" else [])
    depth = [ws.depth_image(rows[0], dataset, control).exists() for control in (None, "true_features")]
    titles = (["original", "shown"][:len(shown)] + ["decoded depth"] * depth[0]
              + ["depth of the true picture"] * depth[1])
    with plt.rc_context(plotting.STYLE):
        figure, axes = plt.subplots(len(rows), len(titles), squeeze=False,
                                    figsize=(plotting.WIDTH, 0.5 + 0.95 * len(rows)))
        figure.subplots_adjust(left=0, right=0.95 * len(titles) / plotting.WIDTH, bottom=0,
                               top=1 - 0.5 / figure.get_figheight(),
                               wspace=0.04, hspace=0.06)
        for row, image in zip(axes, rows):
            pictures = [originals[image].get(what) for what in shown]
            pictures += [ws.depth_image(image, dataset, control)
                         for control, there in zip((None, "true_features"), depth) if there]
            for axis, path in zip(row, pictures):
                _picture(axis, path)
            text = (f"decoded: {told[image]}", f"true: {said[image]}")
            for line, y, colour in zip(text, (0.72, 0.3), (plotting.METHOD_COLOURS["text"], plotting.BLACK)):
                row[-1].text(1.05, y, textwrap.fill(line, 50), transform=row[-1].transAxes, va="center", fontsize=7,
                             color=colour)
        for axis, title in zip(axes[0], titles):
            axis.set_title(textwrap.fill(title, 14), fontsize=7, pad=3)
        what = "occluded images" if dataset == "occluded" else "whole images"
        figure.text(0, 1, f"Decoded captions and depth, {what}, {run_records.who(ws)}", fontsize=9, fontweight="bold",
                    va="top")
    return figure


def _gallery(ws, rows, columns, found, runs, rule, occluded):
    tile = min(1.1, (plotting.WIDTH - 0.6) / len(columns))
    with plt.rc_context(plotting.STYLE):
        figure, axes = plt.subplots(len(rows), len(columns), squeeze=False, layout="none",
                                    figsize=(0.6 + tile * len(columns), HEAD + tile * len(rows)))
        height = figure.get_figheight()
        figure.subplots_adjust(left=0.6 / figure.get_figwidth(), right=1, bottom=0, top=1 - HEAD / height,
                               wspace=0.04, hspace=0.04)
        for row, (image, label) in zip(axes, rows):
            for axis, (_, run, what) in zip(row, columns):
                _picture(axis, found[(run or runs[0]).name].get(image, {}).get(what))
            row[0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=4, fontsize=6.5)
        for start, stop in _groups(columns):
            title, run, _ = columns[start]
            left, right = axes[0, start].get_position(), axes[0, stop - 1].get_position()
            colour = plotting.BLACK if run is None or run.kind == "recovery" else (
                plotting.GREY if run.kind == "control" else plotting.METHOD_COLOURS.get(run.method, plotting.BLACK))
            letters = int((stop - start) * tile / LETTER)
            figure.text((left.x0 + right.x1) / 2, left.y1 + 0.09 / height, textwrap.fill(title, max(letters, 8)),
                        ha="center", va="bottom", fontsize=7, color=colour)
            if run is not None:
                figure.add_artist(plt.Line2D([left.x0, right.x1], [left.y1 + 0.05 / height] * 2, color=colour,
                                             lw=1.5))
        what = "occluded images" if occluded else "whole images"
        figure.text(0, 1, f"Reconstructions of {what}, {run_records.who(ws)}", fontsize=9, fontweight="bold", va="top")
        figure.text(0, 1 - 0.16 / height, rule, fontsize=6.5, color="#555555", va="top")
    return figure


def _groups(columns):
    """[(start, stop)] of columns that share a title."""
    edges = [0] + [at for at in range(1, len(columns)) if columns[at][0] != columns[at - 1][0]] + [len(columns)]
    return list(zip(edges[:-1], edges[1:]))


def _picture(axis, path):
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    if path is None:
        axis.set_facecolor("#F2F2F2")
        axis.text(0.5, 0.5, "not made", ha="center", va="center", transform=axis.transAxes, fontsize=6,
                  color=plotting.GREY)
        axis.set_aspect("equal", adjustable="box")
    else:
        axis.imshow(_load(path), interpolation="antialiased")


def _load(path):
    picture = Image.fromarray(images.load(path, ("RGB", "L")))
    return np.asarray(picture.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS))


# numbers


@dataclass(frozen=True)
class Series:
    """Dots of one colour and marker: values, and perhaps intervals, by group on the x axis."""

    label: str
    colour: str
    marker: str
    filled: bool
    values: dict
    intervals: dict


def dots(axis, groups, series, size=4.5):
    """A dot a series in every group, side by side, with its interval. groups: names on the x axis, in order."""
    spread = min(0.8, 0.14 * len(series))
    offsets = np.linspace(-spread / 2, spread / 2, len(series)) if len(series) > 1 else [0]
    for offset, each in zip(offsets, series):
        there = [group for group in groups if group in each.values]
        x = [groups.index(group) + offset for group in there]
        y = [each.values[group] for group in there]
        spans = [each.intervals.get(group, (value, value)) for group, value in zip(there, y)]
        errors = np.array([[max(0, value - low), max(0, high - value)] for value, (low, high) in zip(y, spans)]).T
        axis.errorbar(x, y, errors if each.intervals else None, fmt=each.marker, ms=size, color=each.colour,
                      mfc=each.colour if each.filled else "white", mew=1, elinewidth=1, capsize=0, label=each.label)
    axis.set_xticks(range(len(groups)), groups)
    if len(groups) > 5:
        plt.setp(axis.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
    axis.set_xlim(-0.6, len(groups) - 0.4)
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="y", color="#E6E6E6", lw=0.6)
    axis.set_axisbelow(True)
    for boundary in range(1, len(groups)):
        axis.axvline(boundary - 0.5, color="#F0F0F0", lw=0.6, zorder=0)


def identification_by_feature(ws):
    """Accuracy with its 95% interval, by feature and run, against chance; None if identification.py was not run."""
    found = [text_files.read_json(path) for path in ws.found_per_image_scores()]
    if not found:
        return None
    features = [name for name in layout.EVALUATION_FEATURES
                if any(record["options"]["feature"] == name for record in found)]
    runs = sorted({record["options"]["run"] for record in found},
                  key=lambda name: (["result", "recovery", "control"].index(run_records.Run.of(name).kind),
                                    _in_order(run_records.Run.of(name)),
                                    name))
    series = []
    for run in map(run_records.Run.of, runs):
        mine = {record["options"]["feature"]: record for record in found if record["options"]["run"] == run.name}
        colour = {"control": plotting.GREY,
                  "recovery": plotting.BLACK}.get(run.kind) or plotting.METHOD_COLOURS.get(run.method, plotting.BLACK)
        name = {"control": "control: ", "recovery": "recovery check: "}.get(run.kind, "")
        series.append(Series(name + run.label, colour, "s" if run.occluded else "o",
                             run.kind == "result" and "only_" not in run.name,
                             {feature: record["accuracy"] for feature, record in mine.items()},
                             {feature: record["interval"] for feature, record in mine.items()}))
    with plt.rc_context(plotting.STYLE):
        figure, axis = plt.subplots(figsize=(min(plotting.WIDTH, 4.2 + 0.6 * len(features)), 3.0),
                                    layout="constrained")
        dots(axis, features, series)
        axis.axhline(identification.CHANCE, color=plotting.BLACK, lw=0.9, ls=(0, (4, 3)), zorder=1)
        axis.annotate("chance", (1, identification.CHANCE), xycoords=("axes fraction", "data"), xytext=(3, 0),
                      textcoords="offset points", ha="left", va="center", fontsize=6.5)
        lowest = min(low for each in series for low, _ in each.intervals.values())
        axis.set_ylim(min(0.4, lowest - 0.03), 1.02)
        axis.set_ylabel("identification accuracy")
        _title(figure, f"Identification of the seen image, {run_records.who(ws)}")
        _legend(figure, axis, "bars: 95% interval over images")
    return figure


def decoding_by_roi(ws):
    """Mean correlation of decoded with true features on the test images, by feature and ROI; None below two results."""
    found = [record for record in map(text_files.read_json, ws.found_scores())
             if isinstance(record.get("test_correlation"), float)]
    if len(found) < 2:
        return None
    names, values = [], {}
    for record in found:
        options = record["options"]
        control = options.get("shuffle_trials") is not None
        name = ("control: " if control else "") + _roi_label(options) + (", shuffled trials" if control else "")
        values.setdefault(name, {})[options["target"]] = record["test_correlation"]
        names = sorted(values, key=lambda name: (name.startswith("control: "), _roi_rank(name), name))
    targets = sorted({target for each in values.values() for target in each}, key=target_rank)
    colours = iter(range(len(names)))
    series = []
    for name in names:
        control = name.startswith("control: ")
        style = 0 if control else next(colours)
        series.append(Series(name,
                             plotting.GREY if control
                             else plotting.SERIES_COLOURS[style % len(plotting.SERIES_COLOURS)],
                             plotting.SERIES_MARKERS[style % len(plotting.SERIES_MARKERS)], not control, values[name],
                             {}))
    with plt.rc_context(plotting.STYLE):
        figure, axis = plt.subplots(figsize=(min(plotting.WIDTH, 4.2 + 0.6 * len(targets)), 3.0),
                                    layout="constrained")
        dots(axis, targets, series)
        axis.axhline(0, color=plotting.BLACK, lw=0.9, ls=(0, (4, 3)), zorder=1)
        axis.set_ylabel("correlation with the true feature\n(mean over dims, test images)")
        _title(figure, f"Decoding accuracy, {run_records.who(ws)}")
        _legend(figure, axis, None)
    return figure


def _roi_label(options):
    """ROIs as one name; all but one or two are told by number, so that a legend stays readable."""
    rois, voxels = options["rois"], options.get("voxels") or {}
    name = " + ".join(rois) if len(rois) <= 3 else f"{len(rois)} ROIs ({rois[0]} … {rois[-1]})"
    name = name if voxels.get("atlas", "streams") == "streams" else f"{voxels['atlas']}: {name}"
    name += ", z-scored by session" if voxels.get("zscore") else ""
    name += f", ncsnr ≥ {voxels['ncsnr_min']:g}" if voxels.get("ncsnr_min") is not None else ""
    return name + (", paper mode" if options.get("mode") == "paper" else "")


def _roi_rank(name):
    return layout.ROIS.index(name) if name in layout.ROIS else len(layout.ROIS)


def target_rank(name):
    """The order of the stages that decode them; layers in order of depth."""
    kind, *numbers = re.split(r"(\d+)", name.removesuffix("_occluded"))
    rank = TARGET_ORDER.index(kind) if kind in TARGET_ORDER else len(TARGET_ORDER)
    return rank, [int(number) for number in numbers if number.isdigit()], name


def _title(figure, text):
    figure.suptitle(text, x=0.01, ha="left", fontsize=9, fontweight="bold")


def _legend(figure, axis, note):
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, handletextpad=0.3, labelspacing=0.6,
                  title=note, title_fontsize=6.5, alignment="left")
