"""One subject's results as one self-contained HTML page: nothing is fetched when it is read, or when it is made.

The page is utils/report_page/template.html with style.css and script.js put in. A policy in its head lets it run and load
nothing but these. Captions and names come from files that others wrote; jinja2 escapes all of them.
"""
import base64
import contextlib
import hashlib
import math
from pathlib import Path

import jinja2
from markupsafe import Markup

from utils import cli, closeups, figures, layout, report_content, report_pictures, s3, store
from utils.errors import Problem

PAGE = Path(__file__).resolve().parent / "report_page"
SCRIPT = "make_report.py"
VIEWS, CONTROL_VIEWS = 9, 3  # close-ups of hidden regions, and of those that hide an object wholly
DRAWN = ("shown", "truth", "context", "brain")  # pictures of `closeups.PICTURES` that are shown, in order
CLOSE_UPS_SHARE = 0.15  # of the page's size, at most, are for close-ups
COLOURS = figures.METHOD_COLOURS | {"vermilion": figures.VERMILION, "orange": figures.ORANGE, "sky": figures.SKY,
                                    "blue": figures.BLUE}  # of the figures, by the style sheet's names


def write(args):
    """Make the page unless it is there and shows what there is; returns (path, whether it was made, what is missing)."""
    ws = layout.Workspace.of(args)
    runs = {name: _with_samples(layout.found_images(ws.samples(name)), args.n_samples) for name in ws.found_runs()}
    runs = {name: runs[name] for name in sorted(runs, key=report_content.run_order) if runs[name]}
    if not runs and not ws.completion_result("index", "csv").exists() and not ws.found_per_image_scores():
        raise Problem(f"{args.workdir} has nothing of {args.subject} to report", "run run_pipeline.py first")
    missing = report_content.Missing(args.subject)
    content = _content(ws, missing, runs)
    wanted = _record(args, ws, runs, content["simulated"])
    if _is_made(ws.report, wanted, args.overwrite):
        return ws.report, False, missing.found
    pictures = _pictures(args, runs)
    content |= {"gallery": _gallery(ws, runs, content, pictures), "close_ups": _close_ups(args, ws, content, runs)}
    with store.atomic(ws.report) as temporary:
        temporary.write_text(render(content | {"missing": missing.found}), encoding="utf-8")
        store.finish(ws.report, wanted, missing=[list(each) for each in missing.found])
    return ws.report, True, missing.found


def render(content):
    """The page of what `_content` and its companions found."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(PAGE), autoescape=True, lstrip_blocks=True,
                                     undefined=jinja2.StrictUndefined)
    environment.filters |= {"number": report_content.number, "p": report_content.p_value, "isnan": math.isnan}
    environment.globals |= {
        "spread": report_content.spread, "completion_dots": report_content.completion_dots,
        "run_dot": report_content.run_dot, "Dot": report_content.Dot, "Scale": report_content.Scale}
    style, script = ((PAGE / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    style = f":root {{ {' '.join(f'--{name}: {colour};' for name, colour in COLOURS.items())} }}\n{style}"
    return environment.get_template("template.html").render(
        content, style=Markup(style), script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
               "base-uri 'none'; form-action 'none'")


def _hash(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _content(ws, missing, runs):
    """All that the page says in words and numbers."""
    seen = report_content.seen(ws, missing)
    if not runs:
        missing.note("reconstructions", "diffusion_decoding.py", "--method cvpr")
    identified = report_content.identification(ws, missing)
    completion = report_content.completion(ws, missing)
    for kind, what, flag in (("recovery", "the recovery check", "--true_features"), ("control", "the control", "--shuffle_trials 0")):
        if runs and not any(figures.Run.of(name).kind == kind for name in runs):
            missing.note(f"{what} of the reconstructions", "diffusion_decoding.py", "--method cvpr", flag)
    decoded = ws.completion_result("decoded", "h5")
    hidden = report_pictures.Hidden(decoded) if decoded.exists() else None
    return {
        "subject": ws.subject, "simulated": report_content.is_simulated(ws, completion), "seen": seen,
        "completion": completion, "hidden": report_content.hidden(hidden) if hidden else None, "views": hidden,
        "identification": identified, "evaluation": report_content.evaluation(ws, missing),
        "recovery": report_content.of_kind(identified, "recovery"), "control": report_content.of_kind(identified, "control"),
        "result": report_content.of_kind(identified, "result"),
        "captions": report_content.captions(ws, seen.get("test"), missing), "provenance": report_content.provenance(ws)}


def _record(args, ws, runs, simulated):
    """What the page is made from: digests of the records and tables, names and sizes and times of the pictures."""
    digest = hashlib.blake2b(digest_size=16)
    for found in runs.values():
        for path in (path for paths in found.values() for path in paths.values()):
            stat = path.stat()
            digest.update(f"{path.relative_to(ws.workdir)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    tables = [*ws.found_records(), *ws.found_networks(), *ws.found_per_image_scores(),
              *(ws.completion_result(name, "csv") for name in ("index", "margins")), ws.completion_result("decoded", "h5"),
              layout.manifest(ws.closeups),
              *(ws.evaluation_result(name, "csv") for name in ("evaluation", "held_out")), ws.captions_people(), *sorted(PAGE.iterdir())]
    options = {"subject": args.subject, "n_samples": args.n_samples, "megabytes": args.megabytes, "simulated": simulated}
    return store.record(SCRIPT, options, [path for path in tables if path.exists()], pictures=digest.hexdigest())


def _is_made(path, wanted, overwrite):
    """A page is a view of what is there: one of something else is made anew, not an error."""
    side = layout.sidecar(path)
    if overwrite or not path.exists() or not side.exists():
        return False
    found = store.read_json(side)
    return all(found.get(key) == value for key, value in wanted.items())


# pictures


def _with_samples(found, most):
    """{image: {"org", "occ", 0, 1 …: path}} of the images that have a sample, the first `most` of each."""
    kept = {}
    for image, paths in found.items():
        repeats = sorted(what for what in paths if what not in ("org", "occ"))[:most]
        if repeats:
            kept[image] = {what: paths[what] for what in ("org", "occ", *repeats) if what in paths}
    return kept


def _pictures(args, runs):
    """{path: base64}. Originals are the same in every run, and so are occluded pictures: each is embedded once."""
    wanted = {}
    for name, found in runs.items():
        for image, paths in found.items():
            for what, path in paths.items():
                wanted.setdefault((image, what) if what in ("org", "occ") else (image, what, name), path)
    paths = list(wanted.values())
    if not paths:
        return {}
    most = args.megabytes * 1e6 * (1 - CLOSE_UPS_SHARE)
    side = report_pictures.fitting_side(paths, most)
    with cli.progress(paths, desc=f"pictures at {side} px", unit="img") as bar:
        embedded = {path: report_pictures.embedded_file(path, side) for path in bar}
    if (size := sum(map(len, embedded.values()))) > most:
        cli.say(f"the pictures take {size / 1e6:.0f} MB even at {side} px: show fewer samples of each with --n_samples")
    return {key: embedded[path] for key, path in wanted.items()}


def _gallery(ws, runs, content, pictures):
    """What script.js reads: images, runs, scores, captions, and the pictures; None without a run."""
    if not runs:
        return None
    images = sorted({image for found in runs.values() for image in found})
    people, told = content["captions"]["people"], content["captions"]["decoded"]
    stimuli = content["seen"].get("test_stimuli", [])
    by_run = {each["run"].name: each["by"] for each in content["identification"]["runs"]} if content["identification"] else {}
    listed = []
    for name, found in runs.items():
        run = figures.Run.of(name)
        scores = {feature: figures.read_scores(ws, name, feature) for feature in by_run.get(name, ())}
        repeats = sorted({what for paths in found.values() for what in paths if what not in ("org", "occ")})
        listed.append({
            "name": name, "label": _run_label(run), "alt": _run_alt(run, content["simulated"]), "kind": run.kind, "method": run.method,
            "dataset": "occluded" if run.occluded else "nsd", "samples": len(repeats),
            "scores": {feature: report_content.numbers_of(each.get(image) for image in images) for feature, each in scores.items()},
            "pictures": [[pictures.get((image, repeat, name)) for repeat in repeats] if image in found else None for image in images]})
    return {
        "images": [{"i": image, "stimulus": stimuli[image] if image < len(stimuli) else None,
                    "said": people[image] if image < len(people) else None,
                    "told": {dataset: lines[image] for dataset, (lines, _) in told.items() if image < len(lines)},
                    "original": pictures.get((image, "org")), "occluded": pictures.get((image, "occ"))} for image in images],
        "runs": listed, "features": list(content["identification"]["features"]) if content["identification"] else [],
        "first": content["identification"]["first"] if content["identification"] else None}


def _run_label(run):
    """A run's name within its data set."""
    return run.label.replace(", occluded", "")


def _run_alt(run, simulated):
    """What a reconstruction of a run is, for its alternative text."""
    brain = "simulated brain activity" if simulated else "brain activity"
    of = " of the occluded image" if run.occluded else ""
    return {"result": f"Reconstruction{of} decoded from {brain} by method {run.method}",
            "recovery": f"Recovery check: reconstruction{of} from true features, not from {brain}, by method {run.method}",
            "control": f"Control: reconstruction{of} decoded from {brain} with shuffled trials, by method {run.method}"}[run.kind]


def _close_ups(args, ws, content, runs):
    """{"roi", "rois", "first", "views", "gone", "drawn"} of the hidden regions; None without amodal_completion.py.

    views, gone: views ranked in the ROI whose completion index is the highest of those read from local features, and those
    that hide an object wholly; each {"view", "image", "said", "pictures"}. drawn: what the diffusion model made of some.
    first: the one for the first screen.
    """
    hidden, completion = content["views"], content["completion"]
    local = [row for row in completion["rows"] if row["feature"] == "local" and row["roi"] in hidden.decoded] \
        if hidden and completion else []
    if not local:
        return None
    best = max(local, key=lambda row: (row["primary"], row["enough_signal"], row["index"]))["roi"]
    shown = report_pictures.Shown.at_hand(s3.Root.from_env(), args.workdir)
    position = {stimulus: image for image, stimulus in enumerate(content["seen"].get("test_stimuli", []))}
    people = content["captions"]["people"]
    originals = {image: paths["org"] for found in runs.values() for image, paths in found.items() if "org" in paths}

    def about(stimulus, pictures, **more):
        image = position.get(stimulus)
        return more | {"image": image, "stimulus": stimulus, "said": people[image] if image is not None and people else None,
                       "pictures": {name: report_pictures.embedded(each, report_pictures.CLOSE_UP) for name, each in pictures.items()}}

    def cells(view):
        image = position.get(view.stimulus)
        original = report_pictures.opened(originals[image]) if image in originals else None
        return about(view.stimulus, hidden.pictures(view, original, shown.picture(view)), view=view, mask=view.mask)

    drawn = []
    for record in closeups.read(ws):
        mask, *pictures = (report_pictures.opened(record[name]) for name in ("hidden", *DRAWN))
        outlined = {name: report_pictures.outlined(each, mask, figures.VERMILION) for name, each in zip(DRAWN, pictures)}
        plain = dict(zip(("shown", "original"), pictures)) | {"back": outlined["brain"]}
        drawn.append((about(record["stim_id"], outlined, mask=record["mask_id"], control=record["control"]), plain))
    with contextlib.closing(shown):
        made = {"roi": best, "rois": list(hidden.decoded), "drawn": [each for each, _ in drawn],
                "views": [cells(view) for view in hidden.views(best, False, VIEWS)],
                "gone": [cells(view) for view in hidden.views(best, True, CONTROL_VIEWS)] if hidden.gone.any() else []}
        free = [plain for each, plain in drawn if not each["control"]]
        if free:
            middle = [each for each, _ in drawn if not each["control"]][len(free) // 2]
            made["first"] = about(middle["stimulus"], free[len(free) // 2], mask=middle["mask"], drawn=len(free))
        else:
            first = cells(hidden.middle(best))
            made["first"] = first | {"pictures": first["pictures"] | {"back": first["pictures"][f"decoded/{best}"]}, "drawn": 0}
        return made
