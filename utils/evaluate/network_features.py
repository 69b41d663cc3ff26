"""Features of a run's pictures, one file per feature, resumable; ranges of images side by side."""
import sys

import numpy as np

from utils import cli, images, layout
from utils.errors import Problem
from utils.evaluate import judging_networks
from utils.models import loading
from utils.nsd import trials
from utils.storage import arrays, image_features, locks, mounts, provenance, text_files, writing

EVERY = sys.maxsize  # images; a run without --imgidx keeps the other processes' ranges out, and they it


def pictures_of(samples, chosen=None):
    """{(image, "org" or repeat): path} of the pictures in a samples folder, in order; of the images `chosen` only."""
    return {(image, what): path for image, paths in layout.found_images(samples).items()
            if chosen is None or image in chosen for what, path in paths.items() if what != "occ"}


def extract(args):
    """Write the missing features of the pictures that the arguments name: of a run's all, or of --imgidx."""
    ws, run = layout.Workspace.of(args), cli.run_name(args)
    samples, folder = ws.samples(run), ws.identification(run)
    chosen = None if args.imgidx is None else cli.image_range(args.imgidx, len(trials.test_stimuli(ws)), "test image")
    pictures = _asked_for(args, ws, run, chosen)
    judges = judging_networks.Evaluators(args.usefeat, cli.device(args.gpu))
    made_from = text_files.read_json(layout.manifest(samples))
    provenance.claim_folder(folder, provenance.record("img2feat_decoded.py", {"run": run}, pictures=made_from),
                            args.overwrite,
                            layout.identification_files)
    parts = image_features.Parts(folder)
    with writing.working(folder, *((0, EVERY) if chosen is None else (chosen.start, chosen.stop))):
        with parts.alone():
            for each in (folder, folder / "networks"):
                writing.sweep(each)
            _claim_networks(folder, parts, judges.identities() | loading.arithmetic(judges.device), args.overwrite)
            if args.overwrite and chosen is None:
                # The record is the same: what is made now could not be told from what was there.
                parts.clear()
                _remove(folder, args.usefeat)
            there = {name: image_features.ImageFeatures(folder, name).pictures | parts.pictures(name)
                     for name in args.usefeat}
            if args.overwrite:  # of a range: what is made now takes the place of the old when it is joined
                there = {name: found - pictures.keys() for name, found in there.items()}
                for path in (layout.image_feature(folder, layout.image_stem(*each), name)
                             for each in pictures for name in args.usefeat):
                    path.unlink(missing_ok=True)
        computed = _compute(args, run, pictures, judges, parts, there)
    with parts.alone():
        # Each process that joins writes the whole file anew: the last one does it for all.
        if args.npy or not locks.is_held(folder, locks.items(0, EVERY)):
            networks = text_files.read_json(layout.manifest(folder / "networks"))
            for name in sorted({*args.usefeat, *parts.features()}):
                parts.assemble(name, networks[judging_networks.role(name)])
            parts.clear()
            if args.npy:
                _write_npy(folder, args.usefeat)
        else:
            cli.say(f"{run}: another process is at work on other images of it, and will join the files")
    print(f"{run}: {computed} pictures × {len(args.usefeat)} features computed, {len(pictures) - computed} already "
          "there")


def _asked_for(args, ws, run, chosen):
    """The pictures to read, as `pictures_of`. Raises Problem where those of --imgidx are not all there.

    Without --imgidx they are what the run has; says what it lacks beside the others.
    """
    samples = ws.samples(run)
    stage = f"diffusion_decoding{'_occluded' if args.dataset == 'occluded' else ''}.py --method {args.method}"

    def lacking():
        there = pictures_of(samples, chosen)
        repeats = 1 + max((what for _, what in there if what != image_features.ORIGINAL), default=0)
        asked = sorted({image for image, _ in there}) if chosen is None else chosen
        return [(image, what) for image in asked for what in (image_features.ORIGINAL, *range(repeats))
                if (image, what) not in there]
    missing = mounts.patiently(lacking, samples)
    pictures = pictures_of(samples, chosen)
    if chosen is None and not pictures:
        raise Problem(f"{samples} holds no pictures", f"run {stage} first")
    if missing:
        what = (f"{samples} lacks pictures of {len({image for image, _ in missing})} images (the first is "
                f"{layout.image_stem(*missing[0])}.png)")
        if chosen is not None:
            raise Problem(what, f"run {stage} --imgidx {' '.join(map(str, args.imgidx))} first")
        cli.say(f"warning: {what}, which others have: let {stage} finish, then run this again")
    if chosen is None and ws.stims_ave_test.exists():
        count, found = len(trials.test_stimuli(ws)), len({image for image, _ in pictures})
        if found < count:
            cli.say(f"{run}: {found} of the {count} test images have pictures")
    return pictures


def _load(paths):
    return np.stack([images.load(path, side=images.SAMPLE_SIZE) for path in paths])


def _compute(args, run, pictures, judges, parts, there):
    """Write parts with the features that pictures lack; returns of how many pictures.

    there: {feature: the pictures whose features are there}.
    """
    lacking = {picture for picture in pictures if any(picture not in found for found in there.values())}
    # Each batch has the same size, and a picture the same place in it whatever the range and whoever makes the rest:
    # kernels round differently for another batch.
    each = 2 + max((what for _, what in pictures if what != image_features.ORIGINAL), default=-1)
    batches = {}
    for image, what in pictures:
        number = image * each + (0 if what == image_features.ORIGINAL else 1 + what)
        batches.setdefault(number // args.batch_size, {})[number % args.batch_size] = (image, what)
    todo = [batch for batch in batches.values() if lacking & set(batch.values())]
    with cli.progress(desc=f"features of {run}", total=len(pictures), initial=len(pictures) - len(lacking),
                      unit="img") as bar:
        reading = images.prefetch(lambda batch: _load([pictures[picture] for picture in batch.values()]), todo)
        for batch, loaded in reading:
            rows = {place: row for row, place in enumerate(batch)}
            found = judges(loaded[[rows.get(place, 0) for place in range(args.batch_size)]])
            parts.write({name: new for name, vectors in found.items()
                         if (new := {picture: vectors[place] for place, picture in batch.items()
                                     if picture not in there[name]})})
            bar.update(len(lacking & set(batch.values())))
    return len(lacking)


def _claim_networks(folder, parts, wanted, overwrite):
    """Say which networks judge and how they multiply: {role: identity} of those that ever did in this folder.

    Raises Problem if one is another than before; with overwrite the features it left are removed, of all pictures, and
    all features if they were multiplied otherwise.
    """
    path = layout.manifest(folder / "networks")
    known = text_files.read_json(path) if path.exists() else {}
    differ = provenance.difference(known, {role: network for role, network in wanted.items() if role in known})
    if differ and not overwrite:
        raise Problem("{} was made with {} {}, now {}".format(path.parent, *differ),
                      "pass --overwrite to make it again, or use another --workdir")
    changed = {role for role, network in wanted.items() if known.get(role, network) != network}
    roles = {judging_networks.role(name) for name in layout.EVALUATION_FEATURES}
    gone = [name for name in layout.EVALUATION_FEATURES if judging_networks.role(name) in changed or changed - roles]
    if gone:
        _remove(folder, gone)
        parts.drop(gone)
    if known | wanted != known:
        text_files.write_json(path, known | wanted)


def _remove(folder, names):
    for name in names:
        for old in layout.files_of_image_feature(folder, name):
            old.unlink()


def _write_npy(folder, names):
    """The original pipeline's file for each picture and feature."""
    for name in names:
        found = image_features.ImageFeatures(folder, name)
        for picture in sorted(found.whole, key=image_features.order):
            path = layout.image_feature(folder, layout.image_stem(*picture), name)
            if not path.exists():
                arrays.write_npy(path, found[picture])
