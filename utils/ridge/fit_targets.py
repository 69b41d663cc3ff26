"""From voxels to features: what ridge.py and its twin do around the regression."""
import functools

import numpy as np

from utils import cli, layout, memory
from utils.errors import Problem
from utils.nsd import trials
from utils.ridge import correlation, penalties, ridge_decoder
from utils.storage import arrays, provenance, subject_matrices, text_files, writing

DATASETS = ("original", "occluded")
DRAW_SHUFFLE = 2  # keeps the streams of random numbers of different draws apart


def add_arguments(parser, dataset):
    """The flags of ridge.py and its twin."""
    cli.add_subject(parser)
    cli.add_gpu(parser)
    cli.add_voxel_choice(parser)
    parser.add_argument("--target", type=cli.name, nargs="+", required=True,
                        help="features to decode: init_latent, c, blip, …")
    parser.add_argument("--roi", type=cli.name, nargs="+", required=True, help=f"ROIs, joined: {' '.join(layout.ROIS)}")
    parser.add_argument("--dataset", choices=DATASETS, default=dataset,
                        help=f"whether the features are of whole or occluded images (default: {dataset})")
    parser.add_argument("--use_stim", choices=["each", "ave"],
                        help="train on single trials or on stimulus averages (default: each; ave for VGG19's layers, "
                        "in paper mode for conv* only)")
    parser.add_argument("--mode", choices=["fixed", "paper"], default="fixed",
                        help="fixed: intercept, folds by stimulus, alphas 1 … 1e6; paper: as published (default: "
                        "fixed)")
    parser.add_argument("--alphas", type=float, nargs="+", help="ridge penalties to choose from, per dim")
    parser.add_argument("--shuffle_trials", type=int, metavar="SEED",
                        help="control: break the link between brain and image in the training set")
    parser.add_argument("--stream", action="store_true",
                        help="never store the training features of VGG19's layers: run the network again for each "
                        "block of dims that --stream_memory holds")
    parser.add_argument("--shared_alpha", action="store_true",
                        help="with --stream: one alpha for all dims of a target, in two passes whatever its size")
    parser.add_argument("--stream_memory", type=float, default=2, metavar="GB",
                        help="with --stream: memory for a block of training features (default: 2)")


def decode(args, streamed):
    """Fit each target and write the test images' predictions. Prints the two mean test correlations of each.

    streamed: what --stream computes training features by, as they are needed: `generate.icnn.Streamed`.
    """
    ws, choice = layout.Workspace.of(args), layout.VoxelChoice.of(args)
    voxels = trials.load_voxels(ws, args.roi, choice)
    tags = [choice.tag(roi) for roi in args.roi]
    betas = [ws.betas(tag, split, average) for tag in tags for split, average in (("tr", False), ("te", True))]
    device = cli.device(args.gpu)

    @functools.lru_cache(maxsize=1)
    def decoder(use):
        rows = voxels.train_rows if use == "each" else np.arange(len(voxels.train_stimuli))
        if args.shuffle_trials is not None:
            draw = np.random.default_rng((args.shuffle_trials, DRAW_SHUFFLE))
            rows = draw.permutation(len(voxels.train_stimuli))[rows]
        shown = voxels.train if use == "each" else voxels.train_average
        return ridge_decoder.Decoder(shown, rows, mode=args.mode, device=memory.ridge_device(device, *shown.shape),
                                     n_stimuli=len(voxels.train_stimuli))

    for target in args.target:
        use, alphas = use_of(args, target), alphas_of(args, target)
        path = ws.scores(tags, target, "occluded" if args.dataset == "occluded" else None, cli.control(args))
        check_dataset(target, args.dataset)
        with (streamed(args, target, device) if args.stream
              else open_features(ws, use, target, args.dataset)) as matrix:
            options = {"rois": args.roi, "target": target, "use_stim": use, "mode": args.mode, "alphas": alphas,
                       "dataset": args.dataset, "shuffle_trials": args.shuffle_trials,
                       "voxels": {"atlas": choice.atlas, "zscore": choice.zscore, "ncsnr_min": choice.ncsnr_min}}
            if args.stream:
                options["shared_alpha"] = args.shared_alpha
            wanted = provenance.record("ridge.py", options, [*betas, *([matrix.path] if matrix.path else [])],
                                       features=matrix.attributes)
            with writing.locked(path):
                if provenance.is_done(path, wanted, args.overwrite):
                    print(f"{path.stem}: done before")
                    continue
                if args.stream:
                    report = fit_streamed(decoder(use), alphas, matrix, voxels, path, wanted, args)
                else:
                    check_pairing(matrix, voxels)
                    report = fit(decoder(use), alphas, matrix, voxels, path, wanted)
        if report.at_edge:
            cli.say(f"{target}: {report.at_edge} of {len(report.alphas)} dims chose an alpha at the grid's edge; "
                    "give a wider --alphas if that is more than a few")
        found = report.summary()
        print(f"{path.stem}: {correlation.sentence(found['test_correlation'], found['test_pattern_correlation'])}")


def use_of(args, target):
    """Whether a target is decoded from single trials ("each") or stimulus averages ("ave").

    Averages for VGG19's layers, whose dims are many. In paper mode for its convolutions alone, as published.
    """
    layer = target.removesuffix("_occluded")
    averaged = layer in layout.VGG19_LAYERS and not (args.mode == "paper" and layer.startswith("fc"))
    return args.use_stim or ("ave" if averaged else "each")


def alphas_of(args, target):
    """The penalties to choose from, those of --mode unless --alphas gives others."""
    return tuple(args.alphas or (penalties.paper_alphas(target) if args.mode == "paper" else penalties.FIXED_ALPHAS))


def fit(decoder, alphas, matrix, voxels, path, wanted):
    """Predict the test images' features into `path` (test stimuli, dims) float32, and its record beside it."""
    dims = matrix.features("tr").shape[1]
    with writing.atomic(path) as temporary:
        out = arrays.new_npy(temporary, (len(voxels.test_stimuli), dims))
        with cli.progress(desc=path.stem, total=dims, unit="dim") as bar:
            report = decoder.predict_to(matrix.features("tr"), voxels.test, out, test_features=matrix.features("te"),
                                        alphas=alphas, progress=lambda done, _: bar.update(done - bar.n))
        out.flush()
        del out  # Windows renames no file that is mapped
        provenance.finish(path, wanted, temporary, **report.summary())
    return report


def fit_streamed(decoder, alphas, streamed, voxels, path, wanted, args):
    """As `fit`, for features that are computed as they are needed: a `generate.icnn.Streamed`."""
    with writing.atomic(path) as temporary:
        out = arrays.new_npy(temporary, (len(voxels.test_stimuli), streamed.dims))
        with cli.progress(desc=path.stem, total=streamed.dims, unit="dim") as bar:
            report = decoder.predict_streamed(
                lambda: streamed.replay(voxels.train_stimuli), streamed.dims, voxels.test, out, alphas=alphas,
                memory_bytes=int(args.stream_memory * 2 ** 30), shared_alpha=args.shared_alpha,
                progress=lambda done, _: bar.update(done - bar.n))
        found = streamed.correlations(out, voxels.test_stimuli)
        report.test_correlation, report.test_pattern_correlation = found.profile, found.pattern
        out.flush()
        del out  # Windows renames no file that is mapped
        provenance.finish(path, wanted, temporary, **report.summary())
    return report


def open_features(ws, use, target, dataset):
    """The subject's features of a target. Each file stores each stimulus once, so either use_stim's will do."""
    stage = "make_subjstim_occluded.py" if dataset == "occluded" else "make_subjstim.py"
    path = ws.found_subject_features(target, use)
    made_by = f"{stage} --featname {target} --use_stim {use} --subject {ws.subject}"
    matrix = subject_matrices.SubjectFeatures(path, made_by)
    said = text_files.read_json(layout.sidecar(path))["options"] if layout.sidecar(path).exists() else {}
    for what, wanted in (("subject", ws.subject), ("feature", target)):
        if said.get(what, wanted) != wanted:
            matrix.file.close()
            raise Problem(f"{path} is of {what} {said[what]}, not {wanted}", f"run {made_by} --overwrite")
    return matrix


def check_dataset(target, dataset):
    """Raises Problem where --dataset and the target's name disagree (docs/published_defects.md#occluded-over-whole)."""
    if target.endswith("_occluded") != (dataset == "occluded"):
        other = "ridge_occlusion.py (--dataset occluded)" if dataset == "original" else "ridge.py (--dataset original)"
        raise Problem(f"target {target} with --dataset {dataset}", f"use {other}, or the other target")


def check_pairing(matrix, voxels):
    """Raises Problem unless features and voxels are of the same stimuli in the same order.

    docs/published_defects.md#paired-by-position says what happens otherwise."""
    for split, stimuli in (("tr", voxels.train_stimuli), ("te", voxels.test_stimuli)):
        if not np.array_equal(matrix.stimuli(split), stimuli):
            raise Problem(f"{matrix.path} and mrifeat hold different {split} stimuli "
                          f"({len(matrix.stimuli(split))} and {len(stimuli)})",
                          "run make_subjstim.py again with --overwrite")
