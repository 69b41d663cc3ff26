"""One subject's results as one self-contained HTML page: nothing is fetched when it is read, or when it is made.

The page is utils/report/page_template/template.html with style.css and script.js put in. A policy in its head lets it
run and load nothing but these. Captions and names come from files that others wrote; jinja2 escapes all of them.
"""
import base64
import contextlib
import hashlib
import math
from pathlib import Path

import jinja2
from markupsafe import Markup

from utils import cli, layout, plotting
from utils.completion import closeups
from utils.errors import Problem
from utils.nsd import s3
from utils.report import figures, page_content, page_pictures
from utils.storage import provenance, run_records, text_files, writing

PAGE = Path(__file__).resolve().parent / "page_template"
SCRIPT = "make_report.py"
VIEWS, CONTROL_VIEWS = 8, 2  # views shown cell by cell, and of those that hide an object wholly
DRAWN = ("shown", "truth", "context", "brain")  # pictures of `closeups.PICTURES` that are shown, in order
CLOSE_UPS_SHARE = 0.15  # of the page's size, at most, are for close-ups
COLOURS = plotting.METHOD_COLOURS | {"vermilion": plotting.VERMILION, "orange": plotting.ORANGE, "sky": plotting.SKY,
                                     "blue": plotting.BLUE}  # of the figures, by the style sheet's names


def write(args):
    """Make the page, unless one of what there is is there; returns (path, whether it was made, what is missing)."""
    ws, root = layout.Workspace.of(args), s3.Root.from_env()
    runs = {name: _with_samples(layout.found_images(ws.samples(name)), args.n_samples) for name in ws.found_runs()}
    runs = {name: runs[name] for name in sorted(runs, key=page_content.run_order) if runs[name]}
    if not runs and not ws.completion_result("index", "csv").exists() and not ws.found_per_image_scores():
        raise Problem(f"{args.workdir} has nothing of {args.subject} to report", "run run_pipeline.py first")
    missing = page_content.Missing(args.subject)
    content = _content(ws, root, missing, runs)
    wanted = _record(args, ws, runs, content["simulated"])
    if _is_made(ws.report, wanted, args.overwrite):
        return ws.report, False, missing.found
    pictures = _pictures(args, runs)
    content |= {"gallery": _gallery(ws, runs, content, pictures), "close_ups": _close_ups(ws, root, content, runs)}
    with writing.atomic(ws.report) as temporary:
        temporary.write_text(render(content | {"missing": missing.found}), encoding="utf-8", newline="\n")
        provenance.finish(ws.report, wanted, missing=[list(each) for each in missing.found])
    return ws.report, True, missing.found


def render(content):
    """The page of what `_content`, `_gallery` and `_close_ups` found."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(PAGE), autoescape=True, lstrip_blocks=True,
                                     undefined=jinja2.StrictUndefined)
    environment.filters |= {"number": page_content.number, "p": page_content.p_value, "isnan": math.isnan}
    environment.globals |= {"spread": page_content.spread, "completion_dots": page_content.completion_dots,
                            "run_dot": page_content.run_dot}
    style, script = ((PAGE / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    style = f":root {{ {' '.join(f'--{name}: {colour};' for name, colour in COLOURS.items())} }}\n{style}"
    return environment.get_template("template.html").render(
        content, style=Markup(style), script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
               "base-uri 'none'; form-action 'none'")


def _hash(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _content(ws, root, missing, runs):
    """All that the page says in words and numbers."""
    seen = page_content.seen(ws, missing)
    if not runs:
        missing.note("reconstructions", "diffusion_decoding.py", "--method cvpr")
    identified = page_content.identification(ws, missing)
    completed = page_content.completion(ws, missing)
    checks = (("recovery", "the recovery check", "--true_features"), ("control", "the control", "--shuffle_trials 0"))
    for kind, what, flag in checks:
        if runs and not any(run_records.Run.of(name).kind == kind for name in runs):
            missing.note(f"{what} of the reconstructions", "diffusion_decoding.py", "--method cvpr", flag)
    decoded = ws.completion_result("decoded", "h5")
    views = page_pictures.Hidden(decoded) if decoded.exists() else None
    return {
        "subject": ws.subject, "simulated": page_content.is_simulated(ws, completed), "seen": seen,
        "completion": completed, "hidden": page_content.hidden(views) if views else None, "views": views,
        "identification": identified, "evaluation": page_content.evaluation(ws, missing),
        **{kind: page_content.of_kind(identified, kind) for kind in page_content.KINDS},
        "captions": page_content.captions(ws, root, seen, missing), "provenance": page_content.provenance(ws)}


def _record(args, ws, runs, simulated):
    """What the page is made from: digests of the records and tables, names and sizes and times of the pictures."""
    digest = hashlib.blake2b(digest_size=16)
    for found in runs.values():
        for path in (path for paths in found.values() for path in paths.values()):
            stat = path.stat()
            digest.update(f"{path.relative_to(ws.workdir)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    tables = [*ws.found_records(), *ws.found_networks(), *ws.found_per_image_scores(), layout.manifest(ws.closeups),
              *(ws.completion_result(name, "csv") for name in ("index", "margins", "closeness")),
              ws.completion_result("decoded", "h5"), ws.captions_people(),
              *(ws.evaluation_result(name, "csv") for name in ("evaluation", "held_out", "captions")),
              *sorted(PAGE.iterdir())]
    options = {name: getattr(args, name) for name in ("subject", "n_samples", "megabytes")} | {"simulated": simulated}
    return provenance.record(SCRIPT, options, [path for path in tables if path.exists()], pictures=digest.hexdigest())


def _is_made(path, wanted, overwrite):
    """A page is a view of what is there: one of something else is made anew, not an error."""
    side = layout.sidecar(path)
    if overwrite or not path.exists() or not side.exists():
        return False
    found = text_files.read_json(side)
    return all(found.get(key) == value for key, value in wanted.items())


# the gallery


def _with_samples(found, most):
    """{image: {"org", "occ", 0, 1 …: path}} of the images that have a sample, the first `most` of each."""
    kept = {}
    for image, paths in found.items():
        repeats = _repeats(paths)[:most]
        if repeats:
            kept[image] = {what: paths[what] for what in ("org", "occ", *repeats) if what in paths}
    return kept


def _repeats(names):
    """The numbers of the samples among the names of an image's pictures."""
    return sorted({what for what in names if what not in ("org", "occ")})


def _pictures(args, runs):
    """{(image, "org" | "occ") or (image, sample, run): base64}.

    Originals are the same in every run, and so are occluded pictures: each is embedded once.
    """
    paths = {}
    for name, found in runs.items():
        for image, of_image in found.items():
            for what, path in of_image.items():
                paths.setdefault((image, what) if what in ("org", "occ") else (image, what, name), path)
    if not paths:
        return {}
    most = args.megabytes * 1e6 * (1 - CLOSE_UPS_SHARE)
    side = page_pictures.fitting_side(list(paths.values()), most)
    with cli.progress(paths.items(), desc=f"pictures at {side} px", unit="img") as bar:
        embedded = {key: page_pictures.embedded_file(path, side) for key, path in bar}
    if (size := sum(map(len, embedded.values()))) > most:
        cli.say(f"the pictures take {size / 1e6:.0f} MB even at {side} px: show fewer samples of each with --n_samples")
    return embedded


def _gallery(ws, runs, content, pictures):
    """What script.js reads: images, runs, scores, captions, and the pictures; None without a run."""
    if not runs:
        return None
    images = sorted({image for found in runs.values() for image in found})
    identified = content["identification"] or {"runs": [], "features": [], "first": None}
    judged = {each["run"].name: each["by"] for each in identified["runs"]}
    people, told = content["captions"]["people"], content["captions"]["decoded"]
    stimuli = content["seen"].get("test_stimuli", [])
    return {
        "images": [{"i": image, "stimulus": _at(stimuli, image), "said": _at(people, image),
                    "told": {dataset: _at(lines, image) for dataset, (lines, _) in told.items()},
                    "original": pictures.get((image, "org")), "occluded": pictures.get((image, "occ"))}
                   for image in images],
        "runs": [_run(ws, name, found, images, judged.get(name, ()), pictures, content["simulated"])
                 for name, found in runs.items()],
        "features": identified["features"], "first": identified["first"]}


def _at(items, position):
    return items[position] if position < len(items) else None


def _run(ws, name, found, images, features, pictures, simulated):
    """One run of the gallery; scores and pictures are lists over `images`, None where an image is not in the run."""
    run = run_records.Run.of(name)
    repeats = _repeats(what for paths in found.values() for what in paths)
    scores = {feature: figures.read_scores(ws, name, feature) for feature in features}
    return {
        "name": name, "label": run.label.replace(", occluded", ""), "alt": _alt(run, simulated), "kind": run.kind,
        "method": run.method, "dataset": "occluded" if run.occluded else "nsd", "samples": len(repeats),
        "scores": {feature: [_rounded(each.get(image)) for image in images] for feature, each in scores.items()},
        "pictures": [[pictures.get((image, repeat, name)) for repeat in repeats] if image in found else None
                     for image in images]}


def _rounded(score):
    return None if score is None else round(score, 4)


def _alt(run, simulated):
    """What a reconstruction of a run is, for its alternative text."""
    brain = "simulated brain activity" if simulated else "brain activity"
    of = " of the occluded image" if run.occluded else ""
    how = {"result": f"Reconstruction{of} decoded from {brain}",
           "recovery": f"Recovery check: reconstruction{of} from true features, not from {brain},",
           "control": f"Control: reconstruction{of} decoded from {brain} with shuffled trials"}[run.kind]
    return f"{how} by method {run.method}"


# close-ups


def _close_ups(ws, root, content, runs):
    """{"roi", "rois", "first", "views", "gone", "drawn"} of the hidden regions; None without amodal_completion.py.

    views, gone: views ranked in the ROI whose completion index is the highest of those read from local features, and
    those that hide an object wholly. drawn: what the diffusion model made of some. first: the one for the first screen.
    """
    hidden, completed = content["views"], content["completion"]
    rows = completed["rows"] if hidden and completed else []
    local = [row for row in rows if row["feature"] == "local" and row["roi"] in hidden.decoded]
    if not local:
        return None
    roi = max(local, key=lambda row: (row["primary"], row["enough_signal"], row["index"]))["roi"]
    position = {stimulus: image for image, stimulus in enumerate(content["seen"].get("test_stimuli", []))}
    originals = {image: paths["org"] for found in runs.values() for image, paths in found.items() if "org" in paths}

    def about(stimulus, pictures, **more):
        image = position.get(stimulus)
        said = None if image is None else _at(content["captions"]["people"], image)
        embedded = {name: page_pictures.embedded(each, page_pictures.CLOSE_UP) for name, each in pictures.items()}
        return more | {"image": image, "name": said or f"73k id {stimulus}", "pictures": embedded}

    def cells(view):
        original = originals.get(position.get(view.stimulus))
        original = original and page_pictures.opened(original)
        pictures = hidden.pictures(view, original, shown.picture(view))
        return about(view.stimulus, pictures, view=view, mask=view.mask)

    with contextlib.closing(page_pictures.Shown.at_hand(root, ws.workdir)) as shown:
        drawn = [about(record["stim_id"], _outlined(record), mask=record["mask_id"], control=record["control"])
                 for record in closeups.read(ws)]
        free = [record for record in closeups.read(ws) if not record["control"]]
        if free:
            first = free[len(free) // 2]
            pictures = {"original": page_pictures.opened(first["truth"]),
                        "shown": page_pictures.opened(first["shown"]), "back": _outlined(first)["brain"]}
            first = about(first["stim_id"], pictures, mask=first["mask_id"], drawn=len(free))
        else:
            first = cells(hidden.middle(roi)) | {"drawn": 0}
            first["pictures"]["back"] = first["pictures"][f"decoded/{roi}"]
        return {"roi": roi, "rois": list(hidden.decoded), "first": first, "drawn": drawn,
                "views": [cells(view) for view in hidden.views(roi, False, VIEWS)],
                "gone": [cells(view) for view in hidden.views(roi, True, CONTROL_VIEWS)]}


def _outlined(record):
    """{one of DRAWN: PIL image} of a close-up, with a line around what was hidden. record: see `closeups.read`."""
    mask, *pictures = (page_pictures.opened(record[name]) for name in ("hidden", *DRAWN))
    return {name: page_pictures.outlined(each, mask, plotting.VERMILION) for name, each in zip(DRAWN, pictures)}
