"""What amodal_completion.py does around the completion index: reading, ROI after ROI, writing."""
from dataclasses import dataclass

import numpy as np

from utils import cli, layout, permutations
from utils.completion import (
    closeness,
    closeups,
    completion_index,
    completion_results,
    hidden_content,
    linear_readouts,
    pattern_indices,
    picture_features,
)
from utils.errors import Problem
from utils.generate import diffusion, inpainting, reconstruction
from utils.models import checkpoints, loading
from utils.nsd import coco_captions, mrifeat, s3, stimulus_file, trials
from utils.occlusion import occluded_pictures, occluded_viewing
from utils.ridge import fit_targets
from utils.storage import arrays, provenance, text_files

SCRIPT = "amodal_completion.py"


def run(args):
    """Analyse one subject and write every result; returns the rows of the index table, see FIELDS."""
    ws, root = layout.Workspace.of(args), s3.Root.from_env()
    device = cli.device(args.gpu) if args.inpaint or args.reconstruct else None
    rois = args.roi or layout.ROIS
    events = occluded_viewing.events(root, args.subject)
    found = _load_voxels(ws, root, rois, events)
    wanted = _record(args, ws, root, rois, device)
    table = ws.completion_result("index", "csv")
    if provenance.is_done(table, wanted, args.overwrite):
        return completion_results.read_table(ws), text_files.read_json(layout.sidecar(table))
    material, pairs, stimuli = _material(args, ws, root, events, found)
    if not any(material.axes.values()):
        raise Problem(f"no {hidden_content.MIN_GROUP} views of {args.subject} share a mask and hide no object wholly",
                      "show more scenes behind each occluder")
    results, curves, patterns, near, decoded = [], [], [], [], {}
    observed, null = {}, {}
    shown_again = _trials_of_views(events, pairs)
    with cli.progress(rois, desc=args.subject, unit="ROI") as bar:
        for roi in bar:
            brain = _one_roi(roi, found, material, events, shown_again, stimuli, args.seed)
            results += brain.rows
            curves += brain.margins
            near += brain.closeness
            patterns.append(brain.patterns)
            decoded[roi] = brain.local
            if brain.permuted is not None:
                observed[roi], null[roi] = brain.permuted
    _finish_p(results, observed, null, occluded_viewing.truth(root))
    model = _model(device) if device else None
    generator = _generator(args, root, model, material, pairs) if args.inpaint else {}
    closeups.clear(ws)
    pictures = {}
    if args.reconstruct:
        needed = list(reconstruction.ROI_OF.values())
        activity = found if set(needed) <= set(rois) else _load_voxels(ws, root, needed, events)
        rows, pictures = _closeups(args, ws, root, model, material, pairs, activity, shown_again, wanted)
        near += rows
    ws.completion.mkdir(parents=True, exist_ok=True)
    completion_results.write_decoded(ws, material, pairs, decoded)
    for name, fields, rows in (("margins", completion_results.MARGINS, curves),
                               ("patterns", completion_results.PATTERNS, patterns),
                               ("closeness", completion_results.CLOSENESS, near)):
        text_files.write_csv(ws.completion_result(name, "csv"), fields, rows, completion_results.FORM)
    summary = {"context_r2": material.context_r2, "generator": generator, "reconstructions": pictures,
               "simulated": occluded_viewing.truth(root) is not None,
               "views_with_a_hidden_object": int(material.lost.sum())}
    text_files.write_csv(table, completion_results.FIELDS, results, completion_results.FORM, wanted | summary)
    return completion_results.read_table(ws), text_files.read_json(layout.sidecar(table))


def options(args):
    """The options that make the results what they are."""
    names = ("subject", "seed", "inpaint", "reconstruct", *(("steps", "scheduler") if args.reconstruct else ()))
    return {name: getattr(args, name) for name in names} | {"rois": list(args.roi or layout.ROIS)}


def _record(args, ws, root, rois, device):
    """What makes the results; the diffusion model and its precision are part of it where one is used (on `device`)."""
    identity = {}
    if device:
        identity = checkpoints.identity("sd") | {"precision": loading.dtype_name(loading.precision("auto", device))}
    return provenance.record(SCRIPT, options(args), _inputs(args, ws, rois),
                             sources=_versions(root, args.subject), **identity)


def _versions(root, subject):
    keys = [occluded_viewing.events_key(subject), occluded_viewing.betas_key(subject), occluded_viewing.SHOWN_KEY]
    keys += [key for key in (occluded_viewing.OBJECTS_KEY, occluded_viewing.TRUTH_KEY) if root.exists(key)]
    return {key: root.version(key).tag for key in keys}


def _inputs(args, ws, rois):
    targets = reconstruction.ROI_OF if args.reconstruct else ("init_latent",)
    there = [path for target in targets if (path := ws.found_subject_features(target, "each")).exists()]
    read = dict.fromkeys([*rois, *(reconstruction.ROI_OF.values() if args.reconstruct else ())])
    return [ws.stims, *(ws.betas(roi, split) for roi in read for split in trials.SPLITS), *there]


@dataclass(frozen=True)
class Found:
    """Voxels of whole images (`trials.Voxels` and test trials by ROI) and of the occluded viewing, and the split."""

    voxels: dict
    test: dict
    test_split: trials.Split
    occluded: dict


def _load_voxels(ws, root, rois, events):
    choice = layout.VoxelChoice()
    voxels = {roi: trials.load_voxels(ws, [roi], choice) for roi in rois}
    positions, grid, *_ = mrifeat.choose_voxels(root, ws.subject, choice, rois)
    occluded = occluded_viewing.betas(root, ws.subject, positions, grid, len(events.stimuli))
    test = {roi: arrays.read_npy(ws.betas(roi, "te")) for roi in rois}
    for roi in rois:
        if occluded[roi].shape[1] != test[roi].shape[1]:
            raise Problem(f"{roi} has {test[roi].shape[1]} voxels in mrifeat and {occluded[roi].shape[1]} in its atlas",
                          f"run make_subjmri.py --subject {ws.subject} --overwrite")
    return Found(voxels, test, trials.load_design(ws).split("te"), occluded)


def _material(args, ws, root, events, found):
    """(`hidden_content.Material`, [(stimulus, mask)] of the views, (m,) test stimuli that have views)."""
    one = next(iter(found.voxels.values()))
    stimuli = np.unique(events.stimuli[~events.whole])
    shown_path = occluded_viewing.fetch(root, occluded_viewing.SHOWN_KEY, args.workdir)
    occluded_viewing.must_be_test(stimuli, one.test_stimuli)
    views, pairs = occluded_viewing.views(shown_path, events, stimuli)
    with stimulus_file.Stimuli(stimulus_file.stimuli_path(root, args.workdir)) as source:
        small = {name: np.concatenate([occluded_viewing.small(source.read(ids[start:start + 64]))
                                       for start in range(0, len(ids), 64)])
                 for name, ids in (("train", one.train_stimuli), ("test", stimuli))}
    train, test = occluded_pictures.Pictures(small["train"]), occluded_pictures.Pictures(small["test"])
    if root.exists(occluded_viewing.OBJECTS_KEY):
        noted = occluded_viewing.Annotation(occluded_viewing.fetch(root, occluded_viewing.OBJECTS_KEY, args.workdir))
        train, test = noted.pictures(train.images, one.train_stimuli), noted.pictures(test.images, stimuli)
    else:
        cli.say("no annotation of objects: local features only, and views that hide an object wholly are not known")
    count = len(np.unique(views.masks))
    with cli.progress(total=count, desc="hidden beyond context", unit="mask") as bar:
        return hidden_content.prepare(train, test, views, _latent(ws, one, stimuli), bar.update), pairs, stimuli


def _latent(ws, voxels, stimuli):
    """{"latent": …} for `hidden_content.prepare` if the subject's init_latent is there."""
    if not ws.found_subject_features("init_latent", "each").exists():
        return {}
    with fit_targets.open_features(ws, "each", "init_latent", "original") as matrix:
        fit_targets.check_pairing(matrix, voxels)
        train, test = matrix.features("tr")[:], matrix.features("te")[:]
    side = int(round(np.sqrt(train.shape[1] / 4)))
    rows = np.searchsorted(voxels.test_stimuli, stimuli, sorter=(order := np.argsort(voxels.test_stimuli)))
    return {"latent": (train, test[order[rows]], hidden_content.grid_depth(side, 4))}


def _trials_of_views(events, pairs):
    """[(trials of the view)] in scan order, for every view."""
    where = {pair: [] for pair in pairs}
    for trial in np.flatnonzero(~events.whole):
        where[int(events.stimuli[trial]), str(events.masks[trial])].append(trial)
    return [np.array(where[pair]) for pair in pairs]


@dataclass(frozen=True)
class Brain:
    rows: list
    margins: list
    closeness: list
    patterns: dict
    permuted: tuple | None
    local: np.ndarray


def _one_roi(roi, found, material, events, shown_again, stimuli, seed):
    """What one ROI says: see Brain. local (views, dims): its decoded local features, in their own units.

    permuted: of the feature that the ROI is judged by; None if nothing can be said by it.
    """
    voxels, occluded = found.voxels[roi], found.occluded[roi]
    train = voxels.train
    readout = linear_readouts.readouts(train, voxels.train_rows,
                                       {name: each[0] for name, each in material.features.items()})
    visible, _ = linear_readouts.visible_only(material, train, voxels.train_rows)
    whole, halves, single = _whole_images(found, roi, events, stimuli)
    average = np.stack([occluded[again].mean(0) for again in shown_again])
    images, count = material.views.rows, len(stimuli)

    rows, margins, near, permuted, scenes = [], [], [], None, completion_index.taking_part(material)
    every = np.arange(len(images))
    primary = completion_index.feature_of(roi) if "objects" in readout else "local"
    for feature, decode in readout.items():
        predicted = visible @ decode.weights + decode.offset
        decoded, of_whole = decode(average), decode(whole)

        def measured(axes, seen=decoded, reference=of_whole):
            return completion_index.score(seen, reference[images], predicted, axes, images, count)

        if feature == "local":
            local = decoded * material.units[feature][1] + material.units[feature][0]
        scores = measured(material.axes[feature])
        if not scores.below.any():
            continue
        for source, each in (("occluded viewing", decoded), ("visible-only model", predicted),
                             ("whole image seen", of_whole[images])):
            if (row := closeness.compare(material, feature, every, each, seed=seed)) is not None:
                near.append({"roi": roi, "feature": feature, "source": source} | row)
        bounds = completion_index.interval(*_present(scores), seed)
        truth = material.features[feature][1]
        r2 = completion_index.explained(of_whole, truth)
        ceiling = measured(material.axes[feature], decode(halves[0])[images], decode(halves[1]))
        hidden = measured(material.control[feature])
        hidden_bounds = completion_index.interval(*_present(hidden), seed) if hidden.below.any() else (np.nan, np.nan)
        there = scores.below != 0
        r = np.corrcoef(ceiling.above[there], ceiling.below[there])[0, 1]
        rows.append({
            "roi": roi, "feature": feature, "primary": feature == primary, "index": scores.index, "low": bounds[0],
            "high": bounds[1], "enough_signal": completion_index.enough_signal(r2, scores.below[there]),
            "decoded_r2": r2,
            "whole": ceiling.index,
            **dict(zip(("whole_low", "whole_high"), completion_index.interval(*_present(ceiling), seed))),
            "reliability": 2 * r / (1 + r), "hidden": hidden.index if hidden.below.any() else np.nan,
            "hidden_low": hidden_bounds[0], "hidden_high": hidden_bounds[1], "images": int(there.sum()),
            "views": int((~material.gone).sum()), "voxels": train.shape[1]})
        tested = completion_index.permuted(scores, scenes, seed)
        rows[-1] |= {"p": permutations.p_value(*tested),
                     "smallest_p": permutations.smallest_p(int(scenes.sum()), completion_index.PERMUTATIONS)}
        if feature == primary:
            permuted = tested
        if feature == "local":
            for margin in completion_index.MARGINS:
                axes = [axis for each in material.axes[feature] if (axis := each.eroded(margin)) is not None]
                if not axes:
                    continue
                eroded = measured(axes)
                low, high = completion_index.interval(*_present(eroded), seed)
                margins.append({"roi": roi, "margin": margin, "index": eroded.index, "low": low, "high": high})

    standard = next(iter(readout.values())).standardised
    first, second = (standard(np.stack([occluded[again[part::2]].mean(0) for again in shown_again]))
                     for part in (0, 1)) \
        if min(map(len, shown_again)) > 1 else (None, None)
    patterns = {"roi": roi}
    if first is not None:
        both = pattern_indices.indices(first, second, standard(single), images, material.views.masks,
                                          complementary(material.views), seed)
        for name, short, found_index in zip(("object_completion", "occlusion_invariance"),
                                            ("completion", "invariance"), both):
            patterns |= {name: found_index[0], f"{short}_low": found_index[1], f"{short}_high": found_index[2]}
    return Brain(rows, margins, near, patterns, permuted, local)


def _present(scores):
    there = scores.below != 0
    return scores.above[there], scores.below[there]


def _whole_images(found, roi, events, stimuli):
    """Test stimuli seen whole: mean over their trials (m, voxels), over either half of them, and the first trial.

    The trials are those of the occluded viewing's own sessions where every stimulus was seen whole there: the same eye
    in the same state, so that what unsteady gaze blurs is blurred alike. Else they are NSD's too. A stimulus seen once
    has equal halves.
    """
    test, split, occluded = found.test[roi], found.test_split, found.occluded[roi]
    groups = [occluded[events.whole & (events.stimuli == stimulus)] for stimulus in stimuli]
    if not all(map(len, groups)):
        position = {int(stimulus): row for row, stimulus in enumerate(split.stimuli)}
        groups = [np.concatenate([test[split.rows == position[int(stimulus)]], group])
                  for stimulus, group in zip(stimuli, groups)]
    means = np.stack([group.mean(0) for group in groups])
    halves = [np.stack([group[part::2].mean(0) if len(group) > 1 else group[0] for group in groups]) for part in (0, 1)]
    return means, halves, np.stack([group[0] for group in groups])


def complementary(views):
    """[(mask, mask)] of which one hides exactly what the other shows."""
    hidden = dict(zip(views.masks, views.hidden))
    names = sorted(hidden)
    return [(one, other) for k, one in enumerate(names) for other in names[k + 1:]
            if np.array_equal(hidden[one], ~hidden[other])]


def _finish_p(rows, observed, null, truth):
    """Corrected p of each ROI's primary feature; and the truth, where it is known."""
    corrected = completion_index.p_values(observed, null) if observed else {}
    for row in rows:
        row["p_corrected"] = corrected[row["roi"]][1] if row["primary"] else np.nan
        row["truth"] = np.nan if truth is None else truth[row["roi"]]


# the diffusion model: alone, and told by the brain


def _model(device):
    return diffusion.LatentDiffusion(loading.stable_diffusion(device, loading.precision("auto", device)))


def _generator(args, root, model, material, pairs):
    """{how it was told: [hallucination index, low, high]} of the diffusion model's own pictures of what is hidden.

    Without captions, and with those of the whole image: a caption names what is hidden, so this is what a
    reconstruction that is conditioned on them would show whatever the brain does.
    """
    chosen = closeups.spread(material, args.inpaint)
    shown, hidden = _as_shown(args, root, [pairs[view] for view in chosen])
    captions = coco_captions.captions(root, args.workdir)
    shape = (model.latent_channels, model.latent_side, model.latent_side)
    invented = {"no captions": [], "captions of the whole image": []}
    with cli.progress(total=2 * len(chosen), desc="inpainting without a brain", unit="img") as bar:
        for start in range(0, len(chosen), closeups.BATCH):
            part = slice(start, start + closeups.BATCH)
            noise = closeups.noise(args.seed, chosen[part], shape)
            told = model.caption_features([captions[pairs[k][0]] for k in chosen[part]])
            for how, conditioning in (("no captions", None), ("captions of the whole image", told)):
                made = inpainting.inpaint(model, shown[part], hidden[part], noise, conditioning)
                invented[how].append(picture_features.local(occluded_viewing.small(made)))
                bar.update(len(made))
    mean, sd = material.units["local"]
    return {how: completion_index.guessed(material, "local", chosen, (np.concatenate(made) - mean) / sd, args.seed)
            for how, made in invented.items()}


def _closeups(args, ws, root, model, material, pairs, activity, shown_again, wanted):
    """Reconstruct --reconstruct views; returns their rows of closeness, and the innovation that the pictures hold."""
    control = closeups.controls(material, args.reconstruct)
    chosen = np.concatenate([closeups.spread(material, args.reconstruct - len(control)), control])
    decoded = {target: closeups.decode(ws, activity.voxels[roi], np.stack(
        [activity.occluded[roi][shown_again[view]].mean(0) for view in chosen]), target)
        for target, roi in reconstruction.ROI_OF.items()}
    named = [pairs[view] for view in chosen]
    shown, hidden = _as_shown(args, root, named)
    brain, context = closeups.make(args, model, shown, hidden, chosen, decoded["init_latent"], decoded["c"])
    with stimulus_file.Stimuli(stimulus_file.stimuli_path(root, args.workdir)) as source:
        truth = source.read([stimulus for stimulus, _ in named])
    closeups.write(ws, wanted, chosen, named, material.lost[chosen],
                   {"shown": shown, "truth": truth, "brain": brain, "context": context,
                    "hidden": 255 * hidden.astype(np.uint8)})
    near, held = closeups.compare(material, chosen, brain, context, args.seed)
    regions = "+".join(reconstruction.ROI_OF.values())
    return [{"roi": regions if name == "brain" else "none", "feature": "reconstruction", "source": source} | near[name]
            for name, source in (("brain", "occluded viewing"), ("context", "inpainting"))], held


def _as_shown(args, root, pairs):
    return occluded_viewing.pictures(occluded_viewing.fetch(root, occluded_viewing.SHOWN_KEY, args.workdir), pairs)
