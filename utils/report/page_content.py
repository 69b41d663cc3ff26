"""What a subject's artifacts say, for the report: numbers with intervals, and the command for each that is missing."""
import math
import shlex
from dataclasses import dataclass, field

from utils import layout
from utils.completion import completion_results
from utils.errors import Problem
from utils.nsd import coco_captions
from utils.ridge import penalties
from utils.storage import arrays, run_records, text_files

KINDS = ("result", "recovery", "control")
HEADLINE_FEATURE = "clip"  # of identification, on the first screen; the table has all
OFF_SCALE = (-0.6, 1.8)  # the completion index is drawn within these; an interval may reach beyond, the text says it
SCRIPT_FLAGS = {"rois": "roi"}  # options whose flag has another name
NO_FLAGS = {"beams", "subject"}
FIRST_FLAGS = ("method", "dataset", "target", "rois", "roi")


@dataclass
class Missing:
    """What the report cannot show, in order: (what, the command that makes it)."""

    subject: str
    found: list = field(default_factory=list)

    def note(self, what, script, *flags):
        self.found.append((what, " ".join(["python", script, "--subject", self.subject, *flags])))


@dataclass(frozen=True)
class Scale:
    """A horizontal axis from low to high; marks: (value, name) of its reference lines."""

    low: float
    high: float
    marks: tuple

    def x(self, value):
        """Where a value lies, as SVG's percentage; what is beyond the axis lies on its edge."""
        return f"{100 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low):.2f}%"


@dataclass(frozen=True)
class Dot:
    """A value on a Scale with its 95% interval. kind: the style sheet's name of its colour and shape."""

    kind: str
    name: str
    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def text(self):
        return f"{self.name}: {spread(self.value, self.low, self.high)}"


def number(value, digits=2):
    """With a true minus sign; an en dash for what is not there."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def spread(value, low=math.nan, high=math.nan, digits=2):
    """`0.21 [0.17, 0.26]`: a value and its interval, if it has one."""
    known = not (low is None or high is None or math.isnan(low) or math.isnan(high))
    return number(value, digits) + (f" [{number(low, digits)}, {number(high, digits)}]" if known else "")


def p_value(p):
    """`p < 0.001` or `p = 0.02`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


# who, and what was seen


def is_simulated(ws, completion):
    """True if figures call the subject simulated, or amodal_completion.py recorded that its data are."""
    return run_records.is_simulated(ws) or bool(completion and completion["summary"].get("simulated"))


def seen(ws, missing):
    """{"trials", "images", "test"} of the whole images, {} where make_subjmri.py was not run."""
    if not ws.stims_ave_test.exists():
        missing.note("the trials and stimuli", "make_subjmri.py")
        return {}
    trials, images, test = (arrays.read_npy(path) for path in (ws.stims, ws.stims_ave, ws.stims_ave_test))
    return {"trials": len(trials), "images": len(images), "test": int(test.sum()),
            "test_stimuli": images[test].tolist()}


# completion


def completion(ws, missing):
    """What amodal_completion.py wrote, with the facts that the first screen states; None if it was not run."""
    table = ws.completion_result("index", "csv")
    if not table.exists():
        missing.note("whether what an occluder hid came back (the completion index)", "amodal_completion.py")
        return None
    rows, summary = completion_results.read_table(ws), text_files.read_json(layout.sidecar(table))
    primary = [row for row in rows if row["primary"]]
    told = [row for row in primary if row["enough_signal"]]
    significant = [row for row in told if row["p_corrected"] < 0.05 and row["index"] > 0]
    known = [row for row in told if not math.isnan(row["truth"])]
    controlled = [row for row in told if not math.isnan(row["hidden"])]
    ends = [value for row in primary for value in (row["low"], row["high"], row["hidden_low"], row["hidden_high"])
            if not math.isnan(value)]
    low, high = max(OFF_SCALE[0], min(-0.3, *ends)), min(OFF_SCALE[1], max(1.2, *ends))
    if not summary.get("generator"):
        missing.note("what the diffusion model invents behind an occluder without a brain", "amodal_completion.py",
                     "--inpaint 16", "--overwrite")
    if not summary.get("reconstructions"):
        missing.note("what the diffusion model draws of hidden regions, from the brain and without one",
                     "amodal_completion.py", "--reconstruct 12", "--inpaint 16", "--overwrite")
    return {"rows": rows, "primary": primary, "told": told, "significant": significant, "summary": summary,
            "generator": summary.get("generator", {}), "drawn": summary.get("reconstructions", {}),
            "context_r2": summary.get("context_r2", {}),
            "lowest": min(significant, key=lambda row: row["index"], default=None),
            "highest": max(significant, key=lambda row: row["index"], default=None),
            "known": known, "truth_inside": [row for row in known if row["low"] <= row["truth"] <= row["high"]],
            "controlled": controlled,
            "leaks": [row for row in controlled if not row["hidden_low"] <= 0 <= row["hidden_high"]],
            "margins": _margins(ws), "closeness": completion_results.told(completion_results.read_closeness(ws), rows),
            "scale": Scale(low, high, ((0, "visible only"), (1, "seen whole")))}


def completion_dots(row):
    """The Dots of one row of the index table."""
    kind = "weak" if not row["enough_signal"] else "index" if row["p_corrected"] < 0.05 else "index open"
    dots = [Dot(kind, f"{row['roi']}, completion index", row["index"], row["low"], row["high"])]
    if not math.isnan(row["hidden"]):
        dots.append(Dot("hidden", f"{row['roi']}, control of wholly hidden objects", row["hidden"], row["hidden_low"],
                        row["hidden_high"]))
    if not math.isnan(row["truth"]):
        dots.append(Dot("truth", f"{row['roi']}, the completion that was simulated", row["truth"]))
    return dots


def _margins(ws):
    """{ROI: (rows at the least and the largest margin)} of the local features."""
    path, found = ws.completion_result("margins", "csv"), {}
    for row in _read(path, ("roi",), ("margin", "index", "low", "high")) if path.exists() else ():
        found.setdefault(row["roi"], []).append(row)
    return {roi: (rows[0], rows[-1]) for roi, rows in found.items()}


def hidden(pictures):
    """What was hidden, from a `page_pictures.Hidden`: views, images, masks, shares of the picture, whole objects."""
    shares = pictures.hidden.mean((1, 2))
    return {"views": len(shares), "images": len(set(pictures.stimuli.tolist())), "masks": len(set(pictures.masks)),
            "mean": float(shares.mean()), "least": float(shares.min()), "most": float(shares.max()),
            "gone": int(pictures.gone.sum())}


# identification


def identification(ws, missing):
    """{"features", "runs", "scale"}: what identification.py wrote, results first, then recovery checks, then controls.

    A run: {"run": figures.Run, "by": {feature: its record}}. None if there is nothing.
    """
    records = [text_files.read_json(path) for path in ws.found_per_image_scores()]
    if not records:
        missing.note("how well reconstructions identify their images", "identification.py", "--method cvpr",
                     "--usefeat", HEADLINE_FEATURE)
        return None
    by_run = {}
    for record in records:
        by_run.setdefault(record["options"]["run"], {})[record["options"]["feature"]] = record
    features = [name for name in layout.EVALUATION_FEATURES if any(name in by for by in by_run.values())]
    runs = [{"run": run_records.Run.of(name), "by": by_run[name]} for name in sorted(by_run, key=run_order)]
    least = min(record["interval"][0] for record in records)
    first = HEADLINE_FEATURE if HEADLINE_FEATURE in features else features[0]
    return {"features": features, "runs": runs, "first": first,
            "scale": Scale(min(0.4, math.floor(least * 10) / 10), 1.0, ((0.5, "chance"),))}


def run_order(name):
    """The order in which runs are listed: results before checks and controls, whole images first, methods by age."""
    run = run_records.Run.of(name)
    method = layout.METHODS.index(run.method) if run.method in layout.METHODS else len(layout.METHODS)
    return KINDS.index(run.kind), run.occluded, method, name


def run_dot(run, record):
    """The Dot of a run (see `identification`) by one of its records."""
    about = run["run"]
    kind = about.method if about.kind == "result" else about.kind
    return Dot(kind + (" square" if about.occluded else ""), about.label, record["accuracy"], *record["interval"])


def of_kind(identification_found, kind):
    """The first run of a kind, and its record of the headline's feature; None if there is none."""
    for each in identification_found["runs"] if identification_found else ():
        if each["run"].kind == kind and identification_found["first"] in each["by"]:
            return each["run"], each["by"][identification_found["first"]]
    return None


# the tables of evaluate.py


def evaluation(ws, missing):
    """{"metrics", "rows", "not_run", "absent", "captions", "held_out"}; None without evaluate.py's table.

    metrics: [(metric, direction)]. rows: [(run label, {metric: row})]. not_run: [label]. absent: [metric and why].
    captions, held_out: rows of these tables, [] where there are none.
    """
    path = ws.evaluation_result("evaluation", "csv")
    if not path.exists():
        missing.note("the table of image metrics that papers print", "evaluate.py")
        return None
    rows = _read(path, ("run", "metric", "direction", "note"), ("value", "low", "high", "chance"))
    by_run = {}
    for row in rows:
        by_run.setdefault(row["run"], {})[row["metric"]] = row
    made = {run: by for run, by in by_run.items() if any(not math.isnan(row["value"]) for row in by.values())}
    absent = dict.fromkeys(f"{row['metric']} {row['note']}" for by in made.values() for row in by.values()
                           if math.isnan(row["value"]))
    held_out = ws.evaluation_result("held_out", "csv")
    if not held_out.exists():
        missing.note("identification without training images of the test image's kind", "evaluate.py",
                     "--held_out_clusters 5")
    told = ws.evaluation_result("captions", "csv")
    return {
        "metrics": list(dict.fromkeys((row["metric"], row["direction"]) for row in rows)),
        "rows": [(run_records.Run.of(run).label, by) for run, by in made.items()],
        "not_run": [run_records.Run.of(run).label for run in by_run if run not in made], "absent": list(absent),
        "captions": _read(told, ("captions", "dataset", "control", "metric"), ("value", "low", "high", "chance"))
        if told.exists() else [],
        "held_out": [row for row in _read(held_out, ("target", "roi", "cluster", "metric", "n_test"),
                                          ("full", "held_out", "drop", "low", "high")) if row["cluster"] == "all"]
        if held_out.exists() else []}


def _read(path, words, numbers):
    """Rows of a CSV; columns `numbers` as float, NaN where empty. Raises Problem for a missing column or no number."""
    try:
        rows = [{**{key: row[key] for key in words}, **{key: float(row[key] or "nan") for key in numbers}}
                for row in text_files.read_csv(path)]
    except (KeyError, TypeError, ValueError) as error:
        raise Problem(f"{path} is not the table it should be ({type(error).__name__}: {error})",
                      "run its stage again with --overwrite") from error
    return rows


# captions


def captions(ws, root, seen, missing):
    """{"people": [a caption per test image], "decoded": {dataset: (captions, score)}}; what is not there is left out.

    People's are those that the decoded ones were scored against, or else NSD's, where its root is a local folder.
    """
    found = {"people": [], "decoded": {}}
    count = seen.get("test")
    if ws.captions_people().exists():
        found["people"] = _lines(ws.captions_people(), count)
    elif root.local and seen:
        try:
            of_images = coco_captions.captions_of(coco_captions.captions(root, ws.workdir), seen["test_stimuli"])
            found["people"] = [said[0] for said in of_images]
        except Problem as problem:
            missing.found.append((f"people's captions of the test images ({problem.what})", problem.todo))
    for dataset, name in (("nsd", ()), ("occluded", ("blip_occluded", "occluded"))):
        path = ws.captions(*name)
        if path.exists():
            record = text_files.read_json(layout.sidecar(path)) if layout.sidecar(path).exists() else {}
            found["decoded"][dataset] = (_lines(path, count), record.get("score"))
        else:
            missing.note(f"captions decoded from activity ({'occluded' if name else 'whole'} images)",
                         "decode_captions_occluded.py" if name else "decode_captions.py")
    return found


def _lines(path, count):
    lines = path.read_text(encoding="utf-8").splitlines()
    if count is not None and len(lines) != count:
        raise Problem(f"{path} has {len(lines)} captions, the subject {count} test images",
                      "run its stage again with --overwrite")
    return lines


# what made it all


def provenance(ws):
    """{"commands": [(command, artifact)], "models": [(model, revision)], "versions", "seeds"} of the records there."""
    commands, models, versions, seeds = [], set(), set(), set()
    for path in ws.found_records():
        record = text_files.read_json(path)
        if "made_by" in record and "options" in record:
            commands.append((command(record, ws.subject), path.relative_to(ws.workdir).as_posix()))
            models |= {(each["model"], each.get("revision", "")) for each in (record, record.get("features", {}))
                       if each.get("model")}
            versions.add(record.get("version", ""))
            seeds.add(record["options"].get("seed"))
    for path in ws.found_networks():
        models |= {(each["model"], each["revision"]) for each in text_files.read_json(path).values()}
    return {"commands": commands, "models": sorted(models), "versions": sorted(versions - {""}),
            "seeds": sorted(seeds - {None})}


def command(record, subject):
    """The command line that a record's options amount to; options at their default of off are left out."""
    options = dict(record["options"])
    voxels = options.pop("voxels", None) or {}
    if options.get("alphas") and tuple(options["alphas"]) == penalties.FIXED_ALPHAS:
        del options["alphas"]
    flags = []
    first = {name: number for number, name in enumerate(FIRST_FLAGS)}
    ordered = sorted(options.items(), key=lambda item: (first.get(item[0], len(first)), item[0]))
    for name, value in ordered + sorted(voxels.items()):
        if name in NO_FLAGS or value is None or value is False or (name, value) == ("atlas", "streams"):
            continue
        values = [] if value is True else value if isinstance(value, list) else [value]
        flags.append(f"--{SCRIPT_FLAGS.get(name, name)}")
        flags += [f"{each:g}" if isinstance(each, float) else str(each) for each in values]
    return shlex.join(["python", record["made_by"], "--subject", subject, *flags])
