"""The table that papers print of a subject's reconstructions: eight metrics of every run, with intervals over images.

| name | what it is | tensor |
|---|---|---|
| PixCorr | Pearson r over pixels and channels at 425 px | pixels |
| SSIM | structural similarity in grey at 425 px | pixels |
| AlexNet(2) | two-way identification, percent | second convolution after its ReLU: torchvision's `features.4` |
| AlexNet(5) | the same | fifth convolution after its ReLU: `features.11` |
| Inception | the same | Inception v3's `avgpool` |
| CLIP | the same | CLIP's projected image embedding |
| EffNet-B | 1 − Pearson r of the features | `avgpool` of EfficientNet-B1 |
| SwAV | the same | `avgpool` of SwAV's ResNet-50 |

identification.py's `alexnet5` and `alexnet12` are AlexNet(2) and AlexNet(5) after max pooling: not the same tensors.

Definitions: Ozcelik & VanRullen (2023); Scotti et al., MindEye (2023). Two things are as everywhere in this pipeline:
an image's samples are averaged as identification.py does, r (or the metric itself) over samples first; and the accuracy
of an image is the share of the *other images' reconstructions* that correlate less with its original than its own do.
MindEye counts the other way, a reconstruction among all originals: each row's note gives that number too. Inception and
AlexNet see 299 px (Takagi & Nishimoto), where MindEye's code resizes to 342 and 256. Small runs are easier:
identification is among the images of the run, whose number stands beside it.
"""
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils import cli, images, layout
from utils.errors import Problem
from utils.evaluate import identification, judging_networks, picture_metrics
from utils.models import checkpoints, loading
from utils.storage import image_features, provenance, run_records, text_files, writing

SCRIPT = "evaluate.py"
FORM = ".6f"  # of numbers in tables
FIELDS = ("run", "method", "dataset", "control", "metric", "direction", "value", "low", "high", "chance", "n_images",
          "note")
CONTROLS = {"result": "", "recovery": "true features", "control": "shuffled trials"}
FORWARD = 64  # pictures a forward pass, about


@dataclass(frozen=True)
class Metric:
    """A column of the table. kind: "pixels", "identification" (percent) or "distance"; better: "higher" or "lower".

    feature, role: what `Evaluators` calls the feature, and its network; None for pixels. digits: after the point.
    """

    name: str
    kind: str
    better: str = "higher"
    feature: str | None = None
    role: str | None = None
    digits: int = 3


METRICS = (
    Metric("PixCorr", "pixels"), Metric("SSIM", "pixels"),
    *(Metric(name, "identification", "higher", feature, role, 1) for name, feature, role in (
        ("AlexNet(2)", "alexnet4", "alexnet"), ("AlexNet(5)", "alexnet11", "alexnet"),
        ("Inception", "inception", "inception"), ("CLIP", "clip", "clip"))),
    Metric("EffNet-B", "distance", "lower", "efficientnet", "efficientnet"),
    Metric("SwAV", "distance", "lower", "swav", "swav"))
ROLES = tuple(dict.fromkeys(metric.role for metric in METRICS if metric.role))
PIXELS = {"PixCorr": picture_metrics.pixel_correlation, "SSIM": picture_metrics.similarity}


def absent_roles(device):
    """{role: why} of the metrics' networks whose weights are not there; a broken local checkpoint is an error later."""
    found = {}
    for role in ROLES:
        try:
            where = checkpoints.source(role)
        except Problem:
            found[role] = f"NSD_MODELS={checkpoints.choice()} has no weights of role {role}"
            continue
        if not isinstance(where, Path):
            try:
                loading.clip(device) if role == "clip" else loading.classifier(role, device)
            except Problem as problem:
                found[role] = " ".join(problem.what.split())
    return found


class Pictures:
    """The pictures of a run. images (n,): indices of the test images; originals: n paths; samples: n lists of paths.

    Raises Problem where there are none, an original is missing, or images have different numbers of samples: what is
    half made is not evaluated.
    """

    def __init__(self, folder):
        found = layout.found_images(folder)
        self.images = list(found)
        self.samples = [[each[repeat] for repeat in sorted(each.keys() - {"org", "occ"})] for each in found.values()]
        counts = sorted({len(each) for each in self.samples})
        if not counts or not counts[-1]:
            raise Problem("no pictures", "run diffusion_decoding.py")
        if len(counts) > 1:
            raise Problem(f"unfinished: {counts[0]} samples of some images, {counts[-1]} of others",
                          "run diffusion_decoding.py")
        if any("org" not in each for each in found.values()):
            raise Problem("originals are missing", "run diffusion_decoding.py")
        if len(found) < 2:
            raise Problem("a single image cannot be told from others", "reconstruct at least two")
        self.originals = [each["org"] for each in found.values()]
        self.per_image = counts[0]

    def __len__(self):
        return len(self.images)

    def paths(self):
        """All of them, originals first."""
        return [*self.originals, *(path for each in self.samples for path in each)]

    def digest(self):
        """Of the names and bytes of all pictures, in hex."""
        total = hashlib.blake2b(digest_size=16)
        for path in self.paths():
            total.update(path.name.encode() + provenance.digest(path).encode())
        return total.hexdigest()


def evaluate(ws, run, device, absent, overwrite):
    """Write what one run's pictures measure, per image, unless it is there; returns the path."""
    pictures = Pictures(ws.samples(run))
    path = ws.evaluation_per_image(run)
    manifest = layout.manifest(ws.samples(run))
    made_from = text_files.read_json(manifest) if manifest.exists() else {}
    networks = {role: checkpoints.identity(role) for role in ROLES if role not in absent}
    wanted = provenance.record(SCRIPT, {"run": run}, pictures=made_from, networks=networks,
                               **loading.arithmetic(device))
    before = text_files.read_json(layout.sidecar(path)) if layout.sidecar(path).exists() else {}
    digest, gained = pictures.digest(), before.get("networks", {}).items() < networks.items()
    if not gained and provenance.is_done(path, wanted, overwrite):
        if before["pictures_digest"] == digest:
            return path
        cli.say(f"{run}: its pictures have changed, evaluated again")
    values, chance, notes = measure(ws, run, pictures, [m for m in METRICS if m.role not in absent], networks, device)
    for name, column in values.items():
        if not np.isfinite(column).all():
            worst = pictures.images[int(np.argmin(np.isfinite(column)))]
            raise Problem(f"{run}: image {worst} or its reconstruction is uniform: it has no {name}",
                          "look at the picture")
    lines = ["imgidx," + ",".join(values)]
    lines += [f"{image}," + ",".join(f"{column[row]:.6f}" for column in values.values())
              for row, image in enumerate(pictures.images)]
    with writing.atomic(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        provenance.finish(path, wanted, pictures_digest=digest, samples=pictures.per_image, chance=chance, notes=notes,
                          absent={m.name: absent[m.role] for m in METRICS if m.role in absent})
    return path


def measure(ws, run, pictures, metrics, networks, device):
    """({metric: (n,) float64 per image}, {metric: chance}, {metric: note}) of a run's pictures.

    The pictures are read once, the originals twice. Features that img2feat_decoded.py left whole, of the same pictures
    and networks, are used; the others are computed and not kept. Memory: the originals' features, 1.3 GB for 982.
    """
    r, todo = {}, []
    for metric in metrics:
        if metric.feature:
            kept = stored(ws, run, metric, pictures, networks)
            if kept is None:
                todo.append(metric.feature)
            else:
                r[metric.feature] = identification.correlations(pictures.images, kept.original, kept.reconstructions)
    pixels, others, computed = look(pictures, judging_networks.Evaluators(todo, device) if todo else None, run)
    r |= computed
    values, chance, notes = {}, {}, {}
    n = len(pictures)
    for metric in metrics:
        name, similar = metric.name, r.get(metric.feature)
        if metric.kind == "pixels":
            values[name], chance[name] = pixels[name], float(np.mean(others[name]))
        elif metric.kind == "identification":
            values[name], chance[name] = 100 * identification.accuracy(similar), 100 * identification.CHANCE
            other_way = 100 * identification.accuracy(similar.T).mean()
            notes[name] = f"a reconstruction among originals: {other_way:.1f}"
        else:
            values[name] = 1 - np.diagonal(similar)
            chance[name] = float(1 - (similar.sum() - np.trace(similar)) / (n * (n - 1)))
    return values, chance, notes


def stored(ws, run, metric, pictures, networks):
    """identification.Features that img2feat_decoded.py extracted from these pictures by this network, or None."""
    folder = ws.identification(run)
    records = [layout.manifest(each) for each in (folder, folder / "networks", ws.samples(run))]
    if metric.feature not in layout.EVALUATION_FEATURES or not all(path.exists() for path in records):
        return None
    extracted, judged, made = map(text_files.read_json, records)
    if judged.get(metric.role) != networks[metric.role] or extracted.get("pictures") != made:
        return None
    found = image_features.ImageFeatures(folder, metric.feature).pictures
    if {layout.image_stem(*picture) for picture in found} != {path.stem for path in pictures.paths()}:
        return None
    return identification.Features(folder, metric.feature, "img2feat_decoded.py")


def look(pictures, judges, run):
    """({pixel metric: (n,)}, {pixel metric: (n,) of the next image's original}, {feature: r (n, n)}) in one pass.

    Each is averaged over an image's samples, but the second takes the first sample alone. judges: Evaluators or None.
    """
    n, size = len(pictures), max(1, FORWARD // pictures.per_image)
    batches = [range(start, min(start + size, n)) for start in range(0, n, size)]
    units, r = {}, {}
    with cli.progress(desc=f"evaluate {run}", total=n * (2 if judges else 1), unit="image") as bar:
        if judges:
            for batch, loaded in images.prefetch(
                    lambda some: np.stack([images.load(pictures.originals[i]) for i in some]), batches):
                for name, vectors in judges(loaded).items():
                    kept = units.setdefault(name, np.empty((n, vectors.shape[1]), np.float32))
                    kept[batch] = [identification.standardised(vector[None], pictures.originals[i])
                                   for i, vector in zip(batch, vectors)]
                bar.update(len(batch))
        own = {name: np.empty(n) for name in PIXELS}
        others = {name: np.empty(n) for name in PIXELS}
        for batch, (loaded, found) in images.prefetch(lambda some: _read(pictures, some), batches):
            for name in PIXELS:
                own[name][batch], others[name][batch] = zip(*found[name])
            for name, vectors in (judges(loaded) if judges else {}).items():
                averages = np.stack([identification.standardised(each, pictures.samples[i][0])
                                     for i, each in zip(batch, np.split(vectors, len(batch)))])
                r.setdefault(name, np.empty((n, n)))[:, batch] = identification.products(units[name], averages)
            bar.update(len(batch))
    return own, others, {name: np.round(each, identification.DECIMALS) for name, each in r.items()}


def _read(pictures, batch):
    """Reconstructions (images × samples, H, W, 3) of a batch; per pixel metric and image (own, next original's)."""
    samples = [[images.load(path) for path in pictures.samples[i]] for i in batch]
    originals = [picture_metrics.prepared(images.load(pictures.originals[i % len(pictures)]))
                 for i in [*batch, batch[-1] + 1]]
    small = [[picture_metrics.prepared(sample) for sample in each] for each in samples]
    found = {name: [(np.mean([compare(original, sample) for sample in each]), compare(following, each[0]))
                    for original, following, each in zip(originals, originals[1:], small)]
             for name, compare in PIXELS.items()}
    return np.stack([sample for each in samples for sample in each]), found


# rows


def expected_runs(ws):
    """Names of the runs there are, and of those that run_pipeline.py --controls would make besides."""
    found = ws.found_runs()
    usual = [layout.run_name(method, dataset) for dataset in layout.DATASETS for method in layout.METHODS]
    usual.append(layout.run_name("cvpr", true_features=True))
    if not any(name.startswith("cvpr-shuffled") for name in found):
        usual.append(layout.run_name("cvpr", control=f"shuffled{layout.CONTROL_SEED}"))
    order = {kind: number for number, kind in enumerate(CONTROLS)}
    known = {name: run_records.Run.of(name) for name in {*found, *usual}}
    methods = {method: number for number, method in enumerate(layout.METHODS)}
    return sorted(known, key=lambda name: (known[name].occluded, order[known[name].kind],
                                           methods.get(known[name].method, len(methods)), name))


def rows_of(run, path, seed, reason=""):
    """Rows (dicts of FIELDS) of one run, from its per-image CSV; path None: not evaluated, for a reason."""
    about = run_records.Run.of(run)
    made = {} if path is None else text_files.read_json(layout.sidecar(path))
    table = {} if path is None else columns(path)
    rows = []
    for metric in METRICS:
        row = dict.fromkeys(FIELDS, "") | {
            "run": run, "method": about.method, "dataset": "occluded" if about.occluded else "nsd",
            "control": CONTROLS[about.kind], "metric": metric.name, "direction": metric.better}
        if path is None:
            row["note"] = reason
        elif metric.name not in table:
            row |= {"n_images": len(table["imgidx"]), "note": f"absent: {made['absent'][metric.name]}"}
        else:
            values = table[metric.name]
            low, high = map(float, identification.interval(values, seed))
            row |= {"value": float(values.mean()), "low": low, "high": high, "chance": made["chance"][metric.name],
                    "n_images": len(values), "note": made["notes"].get(metric.name, "")}
        rows.append(row)
    return rows


def columns(path):
    """{column: (n,) float64} of a per-image CSV."""
    lines = text_files.read_csv(path)
    return {name: np.array([float(line[name]) for line in lines]) for name in lines[0]}


# Markdown


def markdown(ws, rows):
    """The table in Markdown, a row per run and a column per metric, ready for a paper: value and 95% interval."""
    arrows = {"higher": "↑", "lower": "↓"}
    lines = [f"# Reconstructions of {run_records.who(ws)}", "",
             "| | images | " + " | ".join(f"{m.name} {arrows[m.better]}" for m in METRICS) + " |",
             "|---" * (2 + len(METRICS)) + "|"]
    marks = {}
    for start in range(0, len(rows), len(METRICS)):
        cells = rows[start:start + len(METRICS)]
        count = cells[0]["n_images"] or _mark("not run", cells[0]["note"], marks)
        shown = [_cell(metric, row, marks) if row["n_images"] else "–" for metric, row in zip(METRICS, cells)]
        lines.append(f"| {run_records.Run.of(cells[0]['run']).label} | {count} | " + " | ".join(shown) + " |")
    lines += ["", "Mean over images [95% bootstrap interval over images]; samples of an image averaged first. AlexNet, "
              "Inception, CLIP: two-way identification in percent among the run's images, chance 50; compare runs of "
              "the same images only. PixCorr, SSIM at 425 px. EffNet-B, SwAV: correlation distance. Occluded runs are "
              "compared with the whole image. \"true features\" is the recovery check, an upper bound; \"shuffled "
              "trials\" the control."]
    chances = {row["run"]: row["run"] for row in rows if row["chance"] != ""}
    for name in ("PixCorr", "SSIM", "EffNet-B", "SwAV"):
        levels = [f"{run_records.Run.of(run).label} {row['chance']:.3f}" for run in chances for row in rows
                  if row["run"] == run and row["metric"] == name and row["chance"] != ""]
        if levels:
            lines += ["", f"{name} of another image's reconstruction: {'; '.join(levels)}."]
    lines += ["", *(f"{mark} {why}." for why, mark in marks.items())]
    return "\n".join(lines).rstrip() + "\n"


def _cell(metric, row, marks):
    if row["value"] != "":
        return f"{row['value']:.{metric.digits}f} [{row['low']:.{metric.digits}f}, {row['high']:.{metric.digits}f}]"
    return _mark("absent", row["note"], marks)


def _mark(word, why, marks):
    return f"{word} {marks.setdefault(why, f'({len(marks) + 1})')}"
