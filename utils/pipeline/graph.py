"""The plan as a graph: what each step reads and writes, and how it may be cut. Paths alone; no file is opened.

A step follows those that write what it reads. Every path is a file (with the record beside it) or a folder (with all
that is in it). NSD's own files and the checkpoints are no step's, and are not named.
"""
from dataclasses import dataclass
from pathlib import Path

from utils import cli, layout
from utils.features import extraction
from utils.generate import depth_maps, gan_inversion, reconstruction
from utils.nsd import trials
from utils.occlusion import occluded_stimuli, occluded_viewing
from utils.pipeline import stages
from utils.ridge import decoded_features


@dataclass(frozen=True)
class Cut:
    """How a step may be spread over processes that give the same bytes. by: "imgidx", a range of the flag of that name,
    or "target", words of the flag. multiple: of a range's ends. of: what the range counts, "stimuli" or "test"."""

    by: str
    multiple: int = 1
    of: str = ""


@dataclass(frozen=True)
class Step:
    """A command of the plan. kind: see `stages.KIND`. command: script and flags. args: what they come to.

    reads, writes: paths. cut: None if it must run whole. after: numbers (from 0) of the steps that write what it reads.
    """

    kind: str
    command: tuple
    args: object
    reads: tuple
    writes: tuple
    cut: Cut | None
    after: tuple = ()


def of(commands, arguments):
    """[Step] of the commands in order. arguments(command) → the arguments it would run with."""
    steps = []
    for command in commands:
        args, kind = arguments(command), stages.KIND[command[0]]
        reads, writes = globals()[f"_{kind}"](args)  # one of the functions below
        after = tuple(number for number, step in enumerate(steps) if touches(step.writes, reads))
        steps.append(Step(kind, tuple(command), args, tuple(reads), tuple(writes), _cut(kind, args), after))
    return steps


def touches(writes, reads):
    """Whether something that is written is read: the same file, or one within the other."""
    return any(one == other or one in other.parents or other in one.parents for one in writes for other in reads)


def _cut(kind, args):
    if kind in ("sd", "blip", "vgg19", "dpt"):
        return Cut("imgidx", extraction.SHARD, "stimuli")
    if kind in ("gan", "depth", "images", "features"):
        return Cut("imgidx", 1, "test")
    if kind == "ridge" and len(args.target) > 1:
        return Cut("target")
    return None


# what each script reads and writes


def _design(ws):
    return [ws.stims, ws.stims_ave, ws.stims_ave_test]


def _mri(args):
    ws = layout.Workspace.of(args)
    return [], [ws.mrifeat]


def _stimuli(args):
    return [], [layout.stimuli(args.workdir)]


def _occluded(args):
    seen = [layout.Workspace(args.workdir, subject).stims_ave for subject in args.subject or ()]
    source = args.h5_path or args.input_path or layout.stimuli(args.workdir)
    return [source, *seen], [args.outdir or args.output_path or layout.occluded_stimuli(args.workdir)]


def _pictures(args):
    """The files of images that a step on whole or on occluded images reads."""
    # Images that are occluded when they are read need the whole ones.
    found = [getattr(args, "stimuli_path", None) or layout.stimuli(args.workdir)]
    return found + ([occluded_stimuli.path_of(args)] if args.dataset == "occluded" else [])


def _shown(args):
    """The images that an extraction reads, and what of them the subject saw."""
    return _pictures(args) + ([layout.Workspace.of(args).stims_ave] if args.subject else [])


def _extracted(args, names):
    return [getattr(args, "outdir", None) or layout.features(args.workdir, layout.of_dataset(name, args.dataset))
            for name in names]


def _sd(args):
    told = (layout.blip_captions(args.workdir, args.dataset).parent if args.captions == "blip"
            else layout.annotations(args.workdir))
    return [*_shown(args), told], _extracted(args, ["init_latent", "c"])


def _blip(args):
    told = [] if args.skip_captions else [layout.blip_captions(args.workdir, args.dataset).parent]
    return _shown(args), _extracted(args, ["blip"]) + told


def _vgg19(args):
    return _shown(args), _extracted(args, gan_inversion.layer_names(args.layers))


def _dpt(args):
    return _shown(args), _extracted(args, depth_maps.NAMES)


def _pair(args):
    ws = layout.Workspace.of(args)
    folder = args.input_dir or layout.features(args.workdir, args.featname)
    return [*_design(ws), Path(folder)], [ws.subject_features(args.use_stim, args.featname)]


def _pair_vgg19(args):
    ws = layout.Workspace.of(args)
    names = [layout.of_dataset(layer, args.dataset) for layer in gan_inversion.LAYERS
             if "all" in args.layer or layer in args.layer]
    return ([*_design(ws), *(layout.features(args.workdir, name) for name in names)],
            [ws.subject_features("ave", name) for name in names])


def _matrices(ws, name):
    """A feature's matrices: either will do."""
    return [ws.subject_features(use, name) for use in ("each", "ave")]


def _betas(ws, choice, rois):
    return [ws.betas(choice.tag(roi), split, average) for roi in rois for split in trials.SPLITS
            for average in (False, True)]


def _ridge(args):
    ws, choice = layout.Workspace.of(args), layout.VoxelChoice.of(args)
    occluded = "occluded" if args.dataset == "occluded" else None
    tags = [choice.tag(roi) for roi in args.roi]
    reads = [*_design(ws), *_betas(ws, choice, args.roi)]
    for target in args.target:
        reads += _matrices(ws, target)
    return reads, [ws.scores(tags, target, occluded, cli.control(args)) for target in args.target]


def _decoded(args, ws, target):
    """What decoded_features.read reads of a target; and the images that tell which occluder it is of."""
    found = _matrices(ws, target) if args.true_features else [decoded_features.scores(args, ws, target)]
    return found + (_pictures(args) if args.dataset == "occluded" else [])


def _own(args):
    return args.dataset, decoded_features.suffix(args)


def _captions(args):
    ws = layout.Workspace.of(args)
    target = args.target or layout.of_dataset("blip", args.dataset)
    path = ws.captions(*(() if target == "blip" else (target, args.dataset)), control=decoded_features.suffix(args))
    return ([*_design(ws), *_decoded(args, ws, target), layout.annotations(args.workdir)],
            [path, ws.captions_people()])


def _mat(args):
    ws, layers = layout.Workspace.of(args), gan_inversion.layer_names(args.layers)
    reads = _design(ws)
    for layer in layers:
        reads += _decoded(args, ws, layout.of_dataset(layer, args.dataset))
    return reads, [ws.gan_features(layer, 0, *_own(args)).parent for layer in layers]


def _gan(args):
    ws = layout.Workspace.of(args)
    features = [ws.gan_features(layer, 0, *_own(args)).parent for layer in gan_inversion.LAYERS]
    return [*_design(ws), *_pictures(args), *features], [ws.gan_image(0, *_own(args)).parent]


def _depth(args):
    ws = layout.Workspace.of(args)
    reads = _design(ws)
    for name in depth_maps.NAMES:
        target = layout.of_dataset(name, args.dataset)
        reads += [*_decoded(args, ws, target), *_matrices(ws, target)]
    return reads, [ws.depth_folder(*_own(args), image=image) for image in (False, True)]


def _images(args):
    ws, method = layout.Workspace.of(args), "cvpr" if args.method == "latent" else args.method
    reads = [*_design(ws), *_pictures(args)]
    wanted = {"init_latent": args.conditioning != "c" and reconstruction.START[method] == "latent",
              "c": args.conditioning != "z" and reconstruction.TEXT[method] == "c"}
    for name, rois in (("init_latent", args.roi_init_latent), ("c", args.roi_c)):
        if wanted[name]:
            reads += _decoded(decoded_features.of_rois(args, rois), ws, layout.of_dataset(name, args.dataset))
    if reconstruction.TEXT[method] == "captions":
        told = ("blip_occluded", "occluded") if args.dataset == "occluded" else ()
        reads.append(ws.captions(*told, control=decoded_features.suffix(args)))
    if reconstruction.START[method] == "picture":
        reads.append(ws.gan_image(0, *_own(args)).parent)
    if method == "depth":
        reads.append(ws.depth_folder(*_own(args)))
    return reads, [ws.samples(cli.run_name(args))]


def _features(args):
    ws, run = layout.Workspace.of(args), cli.run_name(args)
    return [*_design(ws), ws.samples(run)], [ws.identification(run)]


def _identification(args):
    ws, run = layout.Workspace.of(args), cli.run_name(args)
    return [ws.identification(run)], [ws.per_image_scores(run, feature) for feature in args.usefeat]


def _results(args):
    """All that the stages before left of a subject: what tables, figures and the page are made of."""
    ws, run, feature = layout.Workspace.of(args), layout.METHODS[0], layout.EVALUATION_FEATURES[0]
    return [ws.mrifeat, layout.stimuli(args.workdir), layout.occluded_stimuli(args.workdir),
            layout.annotations(args.workdir), ws.decoded.parent, ws.identification(run).parents[1],
            ws.per_image_scores(run, feature).parent]


def _with_features(args):
    """`_results`, and the subject's matrices of true features."""
    ws = layout.Workspace.of(args)
    return [*_results(args), ws.subject_features("ave", next(iter(reconstruction.ROI_OF))).parent]


def _completion(args):
    ws = layout.Workspace.of(args)
    rois = args.roi or layout.ROIS
    reads = [*_design(ws), *_betas(ws, layout.VoxelChoice(), rois), layout.stimuli(args.workdir),
             layout.annotations(args.workdir)]
    for name in reconstruction.ROI_OF:
        reads += _matrices(ws, name)
    return reads, [ws.completion, layout.occluded_viewing_copy(args.workdir, occluded_viewing.SHOWN_KEY).parent]


def _evaluation(args):
    return _with_features(args), [layout.Workspace.of(args).evaluation]


def _figures(args):
    return _with_features(args), [layout.Workspace.of(args).figure("reconstructions", "png").parent]


def _report(args):
    ws = layout.Workspace.of(args)
    results = [ws.completion, ws.evaluation, ws.figure("reconstructions", "png").parent]
    return [*_results(args), *results], [ws.report.parent]
