"""Decoded features, as the stages after ridge.py read them; or the true ones, for a recovery check."""
import argparse

import numpy as np

from utils import cli, layout
from utils.errors import Problem
from utils.models import checkpoints
from utils.nsd import trials
from utils.occlusion import occluded_stimuli
from utils.storage import arrays, provenance, subject_matrices, text_files

# The ROIs that the later methods decode from (Takagi & Nishimoto, arXiv 2306.11536).
ROIS = ("early", "ventral", "midventral", "midlateral", "lateral", "parietal")


def add_arguments(parser, dataset):
    """The flags that say which decoded features to read."""
    cli.add_subject(parser)
    cli.add_gpu(parser)
    checkpoints.add_revision(parser)
    add_source(parser, dataset)
    parser.add_argument("--batch_size", default="auto", help="test images a forward pass, or auto (default)")


def add_source(parser, dataset):
    """As add_arguments, without subject, device and batch."""
    cli.add_voxel_choice(parser)
    parser.add_argument("--roi", "--roi_str", dest="roi", type=cli.name, nargs="+", default=list(ROIS), metavar="ROI",
                        help="ROIs that the features were decoded from, as given to ridge.py (default: "
                        f"{' '.join(ROIS)})")
    cli.add_dataset(parser, dataset)
    cli.add_occluded_dir(parser)
    parser.add_argument("--true_features", action="store_true",
                        help="the recovery check: true features instead of decoded ones, in files of their own")
    parser.add_argument("--shuffle_trials", type=int, metavar="SEED",
                        help="the control: features decoded by ridge.py --shuffle_trials SEED, in files of their own")


def suffix(args):
    """What sets the artifacts of a recovery check or a control apart: "true_features", "shuffled7" or None."""
    if args.true_features and args.shuffle_trials is not None:
        raise Problem("--true_features with --shuffle_trials", "choose the recovery check or the control")
    return "true_features" if args.true_features else cli.control(args)


def flags(args):
    """The flags that ask for the same recovery check or control, for a command in a message."""
    return (" --true_features" if args.true_features else "") + (
        "" if args.shuffle_trials is None else f" --shuffle_trials {args.shuffle_trials}")


def of_rois(args, roi):
    """The arguments, with the ROIs that one feature was decoded from."""
    return argparse.Namespace(**vars(args) | {"roi": roi})


def options(args):
    """What an artifact's record says of the features that it was made from."""
    return {name: getattr(args, name) for name in (
        "roi", "dataset", "true_features", "shuffle_trials", "atlas", "zscore", "ncsnr_min")}


def check_dataset(target, dataset):
    """Raises Problem where --dataset and the target's name disagree (docs/published_defects.md#occluded-over-whole)."""
    if target.endswith("_occluded") != (dataset == "occluded"):
        right = layout.of_dataset(target.removesuffix("_occluded"), dataset)
        raise Problem(f"--target {target} with --dataset {dataset}", f"use --target {right}, or the other dataset")


def read(args, ws, target, shape, model):
    """((test images, *shape) float32, path of the file) of a target: decoded, or true with --true_features.

    Decoded features are memory-mapped, read when indexed. model: the identity (`checkpoints.identity`) of the model
    that they are for. Raises Problem for a missing file, for features that their record says are of another model,
    subject, ROI, data set or occluder, or of inputs that changed since, and for numbers that do not fill `shape`.
    """
    if args.true_features:
        found, path = true(ws, target, model)
    else:
        path = scores(args, ws, target)
        found = arrays.read_npy(path, mmap=True, made_by=command(args, ws, [target]))
        _check_origin(args, ws, target, path, model)
    if found.ndim != 2 or found.shape[1] != np.prod(shape):
        raise Problem(f"{path} is {found.shape} but a {target} is {tuple(shape)} numbers",
                      "decode features of the same model (NSD_MODELS)")
    return found.astype(np.float32, copy=False).reshape(-1, *shape), path


def _check_origin(args, ws, target, path, model):
    """A file without a record is taken as it is: the original pipeline wrote none."""
    if not layout.sidecar(path).exists():
        return
    record, again = text_files.read_json(layout.sidecar(path)), f"run {command(args, ws, [target])} --overwrite"
    options, features = record.get("options", {}), record.get("features") or {}
    inputs = " ".join(record.get("inputs", {}))
    _must_agree(path, again, [
        ("subject", " ".join(subject for subject in layout.SUBJECTS if subject in inputs) or None, ws.subject),
        ("ROI", "+".join(options["rois"]) if "rois" in options else None, "+".join(args.roi)),
        ("feature", options.get("target"), target),
        ("voxels", options.get("voxels"), {name: getattr(args, name) for name in ("atlas", "zscore", "ncsnr_min")}),
        ("--shuffle_trials", options.get("shuffle_trials", args.shuffle_trials), args.shuffle_trials),
        *((key, features.get(key), model[key]) for key in model),
        ("occluder", features.get("occlusion"), _occluder(args))])
    changed = provenance.changed_input(record, args.workdir)
    if changed:
        raise Problem(f"{path} was decoded from {changed}, which changed since", again)


def _must_agree(path, again, sides):
    """sides: (what, what the record says or None, what is asked or None); where both speak they must say the same."""
    for what, found, wanted in sides:
        if None not in (found, wanted) and found != wanted:
            raise Problem(f"{path} is of {what} {found}, not {wanted}", again)


def _occluder(args):
    """The settings of the occluded images as features record them; None for whole images, or where there are none."""
    path = occluded_stimuli.path_of(args)
    if args.dataset != "occluded" or not path.exists():
        return None
    with occluded_stimuli.open_occluded(path) as stimuli:
        return str(stimuli.settings)


def scores(args, ws, target):
    """Path of a target's decoded features."""
    tags = [layout.VoxelChoice.of(args).tag(roi) for roi in args.roi]
    return ws.scores(tags, target, "occluded" if args.dataset == "occluded" else None, cli.control(args))


def command(args, ws, targets):
    """The command that decodes `targets`."""
    return " ".join(["ridge_occlusion.py" if args.dataset == "occluded" else "ridge.py", "--target", *targets,
                     "--roi", *args.roi, "--subject", ws.subject,
                     *([] if cli.control(args) is None else ["--shuffle_trials", str(args.shuffle_trials)])])


def true(ws, target, model):
    """((test images, dims), path) of a target's true features of the test images. model: as for `read`."""
    path = ws.found_subject_features(target)
    twin = "make_subjstim_occluded.py" if target.endswith("_occluded") else "make_subjstim.py"
    made_by = f"{twin} --featname {target} --use_stim ave --subject {ws.subject}"
    with subject_matrices.SubjectFeatures(path, made_by) as matrix:
        _must_agree(path, f"run {made_by} --overwrite",
                    [*((key, matrix.attributes.get(key), model[key]) for key in model),
                     ("feature", matrix.attributes.get("feature"), target)])
        if not np.array_equal(matrix.stimuli("te"), trials.test_stimuli(ws)):
            raise Problem(f"{path} and {ws.stims_ave_test} hold different test stimuli", f"run {made_by} --overwrite")
        return matrix.features("te")[:], path
