"""Features of a run's pictures, one file per feature, resumable."""
import numpy as np

from utils import cli, images, layout
from utils.errors import Problem
from utils.evaluate import judging_networks
from utils.models import loading
from utils.storage import arrays, image_features, provenance, text_files, writing


def pictures_of(samples):
    """{(image, "org" or repeat): path} of the pictures in a samples folder, in order."""
    return {(image, what): path for image, paths in layout.found_images(samples).items()
            for what, path in paths.items() if what != "occ"}


def extract(args):
    """Write the missing features of every picture of the run that the arguments name."""
    ws, run = layout.Workspace.of(args), cli.run_name(args)
    samples, folder = ws.samples(run), ws.identification(run)
    pictures = pictures_of(samples)
    if not pictures:
        raise Problem(f"{samples} holds no pictures", f"run diffusion_decoding.py --method {args.method} first")
    judges = judging_networks.Evaluators(args.usefeat, cli.device(args.gpu))
    made_from = text_files.read_json(layout.manifest(samples))
    provenance.claim_folder(folder, provenance.record("img2feat_decoded.py", {"run": run}, pictures=made_from),
                            args.overwrite,
                            layout.identification_files)

    with writing.working(folder, 0, 1):
        for each in (folder, folder / "networks"):
            writing.sweep(each)
        networks = _claim_networks(folder, judges.identities() | loading.arithmetic(judges.device), args.overwrite)
        parts = image_features.Parts(folder)
        if args.overwrite:  # the record is the same: what is made now could not be told from what was there
            parts.clear()
            _remove(folder, args.usefeat)
        computed = _compute(args, run, pictures, judges, parts)
        _assemble(parts, args.usefeat, networks)
        parts.clear()
        if args.npy:
            _write_npy(folder, args.usefeat)
    print(f"{run}: {computed} pictures × {len(args.usefeat)} features computed, {len(pictures) - computed} already "
          "there")


def _assemble(parts, names, networks):
    for name in sorted({*names, *parts.features()}):
        parts.assemble(name, networks[judging_networks.role(name)])


def _load(paths):
    return np.stack([images.load(path, side=images.SAMPLE_SIZE) for path in paths])


def _compute(args, run, pictures, judges, parts):
    """Write parts with the features that pictures lack; returns of how many pictures."""
    there = {name: image_features.ImageFeatures(parts.run, name).pictures | parts.pictures(name)
             for name in args.usefeat}
    lacking = {picture for picture in pictures if any(picture not in found for found in there.values())}
    # A batch with any feature missing is made whole: see diffusion_decoding.py.
    ordered = list(pictures)
    batches = [batch for start in range(0, len(ordered), args.batch_size)
               if lacking & set(batch := ordered[start:start + args.batch_size])]
    with cli.progress(desc=f"features of {run}", total=len(pictures), initial=len(pictures) - len(lacking),
                      unit="img") as bar:
        reading = images.prefetch(lambda batch: _load([pictures[picture] for picture in batch]), batches)
        for batch, loaded in reading:
            parts.write({name: new for name, found in judges(loaded).items()
                                 if (new := {picture: vector for picture, vector in zip(batch, found)
                                             if picture not in there[name]})})
            bar.update(len(lacking & set(batch)))
    return len(lacking)


def _claim_networks(folder, wanted, overwrite):
    """Say which networks judge and how they multiply, and return
    {role: identity} of those that ever did in this folder.

    Raises Problem if one is another than before; with overwrite the features it left are removed.
    """
    path = layout.manifest(folder / "networks")
    known = text_files.read_json(path) if path.exists() else {}
    differ = provenance.difference(known, {role: network for role, network in wanted.items() if role in known})
    if differ and not overwrite:
        raise Problem("{} was made with {} {}, now {}".format(path.parent, *differ),
                      "pass --overwrite to make it again, or use another --workdir")
    changed = {role for role, network in wanted.items() if known.get(role, network) != network}
    _remove(folder, [name for name in layout.EVALUATION_FEATURES if judging_networks.role(name) in changed])
    if known | wanted != known:
        text_files.write_json(path, known | wanted)
    return known | wanted


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
