"""What of a pipeline is done, in part, stale or missing: from names, sizes and records; nothing is run.

A step is *stale* if what it left was made otherwise than its command says now, or of inputs that have changed since. A
large file is not read: its digest stands in its record, which counts if the file is no younger.
"""
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils import cli, layout
from utils.completion import completion_stage
from utils.errors import Problem
from utils.evaluate import network_features
from utils.features import extraction
from utils.generate import depth_maps, gan_inversion, reconstruction
from utils.models import checkpoints
from utils.nsd import object_keys, s3, stimulus_file, trials
from utils.occlusion import occluded_stimuli
from utils.ridge import decoded_features, fit_targets
from utils.storage import arrays, feature_shards, image_features, provenance, text_files

STATES = DONE, PARTIAL, STALE, MISSING = "done", "partial", "stale", "missing"
WEIGHTS_READ = 256 << 20  # bytes of a model's weights up to which they are read to see whether they are the same


@dataclass(frozen=True)
class Left:
    """What one command is to leave, and what that must say of itself.

    files: those that must be there. records: [(JSON of what made them, what it must hold)]. note: what there is to say.
    state: where it is known already.
    """

    files: list
    records: list = field(default_factory=list)
    note: str = ""
    state: str = ""


def of(steps):
    """Yield (state, note) of each `graph.Step`, in order."""
    stale = set()
    for number, step in enumerate(steps):
        try:
            state, note = _judge(globals()[f"_{step.kind}"](step.args), step.reads, step.args.workdir)
        except Problem as problem:
            note, state = problem.what, MISSING if isinstance(problem.__cause__, FileNotFoundError) else STALE
        behind = [before for before in step.after if before in stale]
        if state in (DONE, PARTIAL) and behind:
            state, note = STALE, f"step {behind[0] + 1}, which it builds on, is stale"
        if state == STALE:
            stale.add(number)
        yield state, note


def _judge(left, reads, workdir):
    if left.state:
        return left.state, left.note
    there = [path for path in left.files if path.exists()]
    known = [(path, wanted) for path, wanted in left.records if path.exists()]
    if not there:
        return (PARTIAL, left.note) if left.note else (MISSING, "")
    for path, wanted in known:
        differ = _otherwise(text_files.read_json(path), wanted) or _changed(path, text_files.read_json(path), reads,
                                                                            workdir)
        if differ:
            return STALE, differ
    if len(there) < len(left.files):
        return PARTIAL, left.note or f"{len(there):,} of {len(left.files):,} files"
    if len(known) < len(left.records):
        return STALE, f"{left.records[0][0].name} is missing: nothing says what made it"
    return DONE, left.note


def _otherwise(found, wanted, where=""):
    """In which point a record says something else than `wanted`, whose dicts may name fewer keys than the record's."""
    for key, value in wanted.items():
        if isinstance(value, dict) and isinstance(found.get(key), dict):
            differ = _otherwise(found[key], value, f"{where}{key} ")
            if differ:
                return differ
        elif found.get(key) != value:
            return f"made with {where}{key} {found.get(key)}, now {value}"
    return ""


def _changed(side, record, reads, workdir):
    """Which file is not what the record says: the artifact itself, or an input."""
    for path in side.parent.glob(f"{side.stem}.*"):
        if path.stem == side.stem and path.suffix in (".npy", ".h5", ".csv") and provenance.is_altered(path, record):
            return f"{path.name} changed after {record.get('made_by')} wrote it"
    changed = provenance.changed_input(record, workdir, reads)
    return f"{changed} changed since" if changed else ""


def _model(role):
    """What a record must say of a model: its name, and its revision where that costs little."""
    where = checkpoints.source(role)
    small = (isinstance(where, Path)
             and sum(path.stat().st_size for path in checkpoints.all_weights(where)) < WEIGHTS_READ)
    return checkpoints.identity(role) if small or checkpoints.pinned(role) else {"model": checkpoints.name(role)}


# the stages: what each leaves


def _mri(args):
    ws, choice = layout.Workspace.of(args), layout.VoxelChoice.of(args)
    rois = args.roi or (layout.ROIS if choice.atlas == "streams" else [])
    known = [text_files.read_json(side) for roi in rois
             if (side := layout.sidecar(ws.betas(choice.tag(roi), "tr"))).exists()]
    without = {roi for record in known for roi in record.get("left_out", {}).get("rois", ())}
    rois = [roi for roi in rois if roi not in without]
    betas = [ws.betas(choice.tag(roi), split, average) for roi in rois for split in trials.SPLITS
             for average in (False, True)]
    design = [ws.stims, ws.stims_ave, ws.stims_ave_test, ws.train_index(), ws.train_index(average=True)]
    options = {"atlas": choice.atlas, "zscore": choice.zscore, "ncsnr_min": choice.ncsnr_min}
    sessions = len(list(ws.betas_parts(choice).glob("session*.json")))
    return Left([*design, *betas], [(layout.sidecar(path), {}) for path in design]
                + [(layout.sidecar(path), {"options": options}) for path in betas],
                note=f"{sessions} sessions read" if sessions else "")


def _stimuli(args):
    root = s3.Root.from_env()
    if root.local:
        there = root.exists(object_keys.STIMULI_KEY)
        return Left([], state=DONE if there else MISSING, note="used in place" if there else "")
    path = layout.stimuli(args.workdir)
    if path.exists() and (lacking := _stimuli_lacking(args, path)):
        return Left([], state=PARTIAL, note=f"{path.name} lacks {lacking:,} images")
    part = layout.fetched(path)
    return Left([path], note=f"{part.stat().st_size:,} bytes fetched" if part.exists() else "")


def _stimuli_lacking(args, path):
    """How many of the images asked for a copy lacks, as far as mrifeat/ tells what the subjects saw."""
    with stimulus_file.Stimuli(path) as stimuli:
        if stimuli.whole:
            return 0
        if not args.subject:
            return object_keys.STIMULI - stimuli.count
        known = [ws for subject in args.subject if (ws := layout.Workspace(args.workdir, subject)).stims_ave.exists()]
        wanted = [trials.test_stimuli(ws) if args.images == "test" else arrays.read_npy(ws.stims_ave) for ws in known]
        return len(np.setdiff1d(np.concatenate([np.zeros(0, np.int64), *wanted]), stimuli.ids))


def _stimuli_read(args):
    """The file of whole images that a stage reads, whether it is there or not."""
    return Path(getattr(args, "input_path", None) or stimulus_file.stimuli_place(s3.Root.from_env(), args.workdir))


def _occluded(args):
    path = args.output_path or layout.occluded_stimuli(args.workdir)
    options = {"kind": args.occluder, "ratio": args.occlusion_ratio, "place": args.place, "fill": args.fill,
               "seed": args.seed, "image_size": args.image_size}
    parts = len(list(layout.parts(path).glob("*.h5")))
    made = text_files.read_json(layout.sidecar(path)) if layout.sidecar(path).exists() else {}
    lacking = sorted({*(args.subject or layout.SUBJECTS)} - {*(made.get("subjects") or layout.SUBJECTS)})
    if lacking and path.exists():
        raise Problem(f"{path.name} holds the stimuli of {' '.join(made['subjects'])}, not yet of "
                      f"{' '.join(lacking)}", "")
    whole, wanted = _stimuli_read(args), {"options": options, "on_read": args.on_read or None}
    if path.exists() and whole.exists():
        with stimulus_file.Stimuli(whole) as stimuli:
            wanted["input"] = occluded_stimuli.fingerprint(stimuli)
    return Left([path], [(layout.sidecar(path), wanted)], note=f"{parts} parts" if parts else "")


def _shards(args, names, role, own, more=None):
    """Shards of features; `own` {name: attributes}, `more` of all. What makes them stands in the shards themselves."""
    folders = [getattr(args, "outdir", None) or layout.features(args.workdir, name) for name in names]
    occluded = occluded_stimuli.path_of(args)
    ids = arrays.read_npy(layout.Workspace.of(args).stims_ave) if args.subject else None
    if args.imgidx:
        chosen = cli.image_range(args.imgidx, object_keys.STIMULI, "stimulus")
        ids = np.arange(chosen.start, chosen.stop) if ids is None else ids[(ids >= chosen.start) & (ids < chosen.stop)]
    images = {"stimuli": args.dataset} | (more or {})
    if args.dataset == "occluded" and Path(occluded).exists():
        with occluded_stimuli.open_occluded(occluded) as stimuli:
            images["occlusion"] = str(stimuli.settings)
            ids = None if ids is None else np.intersect1d(ids, stimuli.ids)
    missing, count = 0, 0
    for name, folder in zip(names, folders):
        shards = feature_shards.Shards(folder)
        found = shards.attributes()
        wanted = _model(role) | own.get(name, images) | {"feature": name}
        differ = _otherwise(found, {key: str(value) for key, value in wanted.items()}) if found else ""
        if differ:
            raise Problem(f"{folder.name}: {differ}", "")
        count += len(ids) if ids is not None else 1
        missing += len(shards.missing(ids)) if ids is not None else not found
    state = DONE if not missing else PARTIAL if missing < count else MISSING
    return Left([], state=state, note=f"{count - missing:,} of {count:,} features" if state == PARTIAL else "")


def _sd(args):
    latent, c = (layout.of_dataset(name, args.dataset) for name in ("init_latent", "c"))
    stored = extraction.stored_otherwise(args)
    return _shards(args, [latent, c], "sd", {c: {"captions": args.captions} | stored}, stored)


def _blip(args):
    return _shards(args, [layout.of_dataset("blip", args.dataset)], "blip", {})


def _vgg19(args):
    return _shards(args, [layout.of_dataset(layer, args.dataset) for layer in gan_inversion.layer_names(args.layers)],
                   "vgg19", {})


def _dpt(args):
    return _shards(args, [layout.of_dataset(name, args.dataset) for name in depth_maps.NAMES], "dpt", {})


def _subject_matrices(args, names, use_stim, folder=None):
    ws = layout.Workspace.of(args)
    paths = [ws.subject_features(use_stim, name) for name in names]
    stimuli = trials.load_design(ws).stims_ave
    records = []
    for name, path in zip(names, paths):
        shards = feature_shards.Shards(Path(folder) if folder else layout.features(args.workdir, name))
        wanted = {"options": {"subject": args.subject, "feature": name, "use_stim": use_stim}}
        if not shards.missing(stimuli):  # what is gone from the disk cannot have changed
            wanted |= {"features": shards.attributes(), "shards": shards.files(stimuli)}
        records.append((layout.sidecar(path), wanted))
    return Left(paths, records)


def _pair(args):
    return _subject_matrices(args, [args.featname], args.use_stim, args.input_dir)


def _pair_vgg19(args):
    layers = gan_inversion.layers_to_gather(args)
    return _subject_matrices(args, [layout.of_dataset(layer, args.dataset) for layer in layers], "ave")


def _ridge(args):
    ws, choice = layout.Workspace.of(args), layout.VoxelChoice.of(args)
    tags = [choice.tag(roi) for roi in args.roi]
    occluded = "occluded" if args.dataset == "occluded" else None
    paths, records = [], []
    for target in args.target:
        use = fit_targets.use_of(args, target)
        paths.append(ws.scores(tags, target, occluded, cli.control(args)))
        options = {"rois": args.roi, "target": target, "use_stim": use, "mode": args.mode, "dataset": args.dataset,
                   "shuffle_trials": args.shuffle_trials, "alphas": list(fit_targets.alphas_of(args, target))}
        records.append((layout.sidecar(paths[-1]), {"options": options}))
    return Left(paths, records)


def _captions(args):
    ws = layout.Workspace.of(args)
    target = args.target or layout.of_dataset("blip", args.dataset)
    path = ws.captions(*(() if target == "blip" else (target, args.dataset)), control=decoded_features.suffix(args))
    options = decoded_features.options(args) | {"target": target, "prompt": args.prompt}
    return Left([path], [(layout.sidecar(path), {"options": options} | _model("blip"))])


def _mat(args):
    ws, own = layout.Workspace.of(args), (args.dataset, decoded_features.suffix(args))
    count, files, records = len(trials.test_stimuli(ws)), [], []
    for layer in gan_inversion.layer_names(args.layers):
        folder = ws.gan_features(layer, 0, *own).parent
        files += [ws.gan_features(layer, index, *own) for index in range(count)]
        records.append((layout.manifest(folder), {"options": decoded_features.options(args)} | _model("vgg19")))
    return Left(files, records)


def _gan(args):
    ws, own = layout.Workspace.of(args), (args.dataset, decoded_features.suffix(args))
    chosen = cli.image_range(args.imgidx, len(trials.test_stimuli(ws)), "test image")
    sources = {layer: layout.manifest(ws.gan_features(layer, 0, *own).parent) for layer in gan_inversion.LAYERS}
    options = gan_inversion.recorded(args) | ({} if args.levels == "auto" else {"levels": args.levels})
    wanted = {"options": options, "generator": _model("generator")} | _model("vgg19")
    if all(path.exists() for path in sources.values()):
        wanted["features"] = {layer: provenance.digest(path) for layer, path in sources.items()}
    manifest = layout.manifest(ws.gan_image(0, *own).parent)
    return Left([ws.gan_image(index, *own) for index in chosen], [(manifest, wanted)])


def _depth(args):
    ws, own = layout.Workspace.of(args), (args.dataset, decoded_features.suffix(args))
    chosen = cli.image_range(args.imgidx, len(trials.test_stimuli(ws)), "test image")
    manifests = [layout.manifest(ws.depth_folder(*own, image=image)) for image in (False, True)]
    wanted = {"options": decoded_features.options(args)} | _model("dpt")
    return Left([path(index, *own) for index in chosen for path in (ws.depth, ws.depth_image)],
                [(manifest, wanted) for manifest in manifests])


def _images(args):
    ws, run = layout.Workspace.of(args), cli.run_name(args)
    method = "cvpr" if args.method == "latent" else args.method
    folder = ws.samples(run)
    chosen = cli.image_range(args.imgidx, len(trials.test_stimuli(ws)), "test image")
    files = [layout.original_image(folder, image) for image in chosen]
    files += [layout.sample_image(folder, image, sample) for image in chosen for sample in range(args.n_samples)]
    wanted = ({"options": {"method": method} | reconstruction.options(args)}
              | _model("sd_depth" if method == "depth" else "sd"))
    return Left(files, [(layout.manifest(folder), wanted)])


def _features(args):
    ws, run = layout.Workspace.of(args), cli.run_name(args)
    samples, folder = ws.samples(run), ws.identification(run)
    chosen = args.imgidx and cli.image_range(args.imgidx, len(trials.test_stimuli(ws)), "test image")
    pictures = network_features.pictures_of(samples, chosen)
    wanted = {"options": {"run": run}}
    if layout.manifest(samples).exists():
        wanted["pictures"] = text_files.read_json(layout.manifest(samples))
    files, parts = [], len(image_features.Parts(folder).found())
    for name in args.usefeat:
        there = image_features.ImageFeatures(folder, name).pictures
        lacking = {(image, image_features.ORIGINAL) for image in chosen or ()} - pictures.keys()
        files += [folder if picture in there else layout.image_feature(folder, layout.image_stem(*picture), name)
                  for picture in [*pictures, *lacking]]
    return Left(files, [(layout.manifest(folder), wanted)],
                note=f"{parts} batches of pictures not joined yet" if parts else "")


def _identification(args):
    ws, run = layout.Workspace.of(args), cli.run_name(args)
    folder = ws.identification(run)
    paths, records = [], []
    for feature in args.usefeat:
        found = image_features.by_image(image_features.ImageFeatures(folder, feature).pictures)
        wanted = {"options": {"subject": args.subject, "run": run, "feature": feature, "seed": args.seed}}
        if layout.manifest(folder).exists():
            wanted |= {"source": text_files.read_json(layout.manifest(folder)), "images": len(found)}
        paths.append(ws.found_per_image_score(run, feature))
        records.append((layout.sidecar(paths[-1]), wanted))
    return Left(paths, records)


def _figures(args):
    ws = layout.Workspace.of(args)
    found = [path for name in ("reconstructions", "identification", "decoding") for ending in ("pdf", "png")
             if (path := ws.figure(name, ending)).exists()]
    return Left(found or [ws.figure("reconstructions", "png")],
                note="drawn anew by every run" if found else "")


def _completion(args):
    ws = layout.Workspace.of(args)
    table = ws.completion_result("index", "csv")
    return Left([table], [(layout.sidecar(table), {"options": completion_stage.options(args)})])


def _evaluation(args):
    ws = layout.Workspace.of(args)
    tables = [ws.evaluation_result(name, "csv")
              for name in ("evaluation", *(["held_out"] if args.held_out_clusters else []))]
    runs = {run: layout.manifest(ws.samples(run)) for run in ws.found_runs()}
    lacks = [run for run in runs if not ws.evaluation_per_image(run).exists()]
    return Left(tables + [ws.evaluation_per_image(run) for run in runs],
                [(layout.sidecar(tables[0]), {"options": {"subject": args.subject, "seed": args.seed}})],
                note=f"not evaluated: {' '.join(lacks)}" if lacks else "")


def _report(args):
    ws = layout.Workspace.of(args)
    options = {name: getattr(args, name) for name in ("subject", "n_samples", "megabytes")}
    return Left([ws.report], [(layout.sidecar(ws.report), {"options": options})])
