"""From stimuli to shards of features: what every img2feat_* stage does around its network."""
import contextlib
import itertools
from pathlib import Path

import numpy as np

from utils import __version__, cli, images, layout, lazy, memory
from utils.errors import Problem
from utils.models import checkpoints, loading
from utils.nsd import coco_captions, s3, stimulus_file, trials
from utils.occlusion import occluded_stimuli
from utils.storage import feature_shards, text_files, writing

torch = lazy.module("torch")

SHARD = 256  # stimuli a file: the most that a killed run has to redo
AUTO_BATCH = {"cuda": 64, "mps": 16, "cpu": 16}


def add_arguments(parser, dataset="nsd"):
    """The flags that every img2feat_* stage has."""
    cli.add_imgidx(parser, "the 73k stimuli")
    cli.add_gpu(parser)
    checkpoints.add_revision(parser)
    parser.add_argument("--dataset", choices=layout.DATASETS, default=dataset,
                        help=f"whole or occluded images (default: {dataset})")
    parser.add_argument("--subject", choices=layout.SUBJECTS, metavar="subjNN",
                        help="only the stimuli that this subject saw (needs make_subjmri.py)")
    parser.add_argument("--batch_size", default="auto", help="images a forward pass, or auto (default)")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16", "float16"], default="auto",
                        help="auto: float16 on a GPU, bfloat16 on a CPU that has it, else float32")
    add_images(parser)


def add_images(parser):
    """Where the whole and the occluded images are, if not where the stages before leave them."""
    parser.add_argument("--stimuli_path", type=Path, metavar="HDF5",
                        help="whole images: a file like nsd_stimuli.hdf5 (default: NSD_ROOT's, or its copy in "
                        "--workdir)")
    parser.add_argument("--occluded_path", type=Path, metavar="HDF5",
                        help="occluded images (default: nsd_stimuli_occluded.hdf5)")
    cli.add_occluded_dir(parser)


def batch_size(args, device, auto, probe, sliced=None):
    """Items a forward pass: --batch_size, or what `auto` says for the device; on a GPU as many as its memory holds.

    probe, sliced: compute one item; see memory.batch.
    """
    if args.batch_size == "auto":
        return memory.batch(device, auto, probe, sliced)
    if not args.batch_size.isdecimal() or int(args.batch_size) < 1:
        raise Problem(f"--batch_size {args.batch_size} is no number of images", "give a whole number from 1, or auto")
    return int(args.batch_size)


def open_stimuli(args):
    """(stimuli, attributes): the whole or the occluded images, and what distinguishes them from the others.

    Says how many of the subject's stimuli the file lacks, if --subject is given without --imgidx.
    """
    if args.dataset == "nsd":
        if args.occluded_path or args.occluded_dir:
            raise Problem("--occluded_path or --occluded_dir with whole images", "pass --dataset occluded too")
        stimuli = stimulus_file.Stimuli(args.stimuli_path
                                        or stimulus_file.stimuli_path(s3.Root.from_env(), args.workdir))
        if args.stimuli_path and occluded_stimuli.is_occluded(args.stimuli_path):
            raise Problem(f"{args.stimuli_path} holds occluded images",
                          f"pass --dataset occluded --occluded_path {args.stimuli_path}")
        attributes = {"stimuli": "nsd"}
    else:
        if args.stimuli_path:
            raise Problem("--stimuli_path with occluded images", "name their file with --occluded_path")
        stimuli = occluded_stimuli.open_occluded(occluded_stimuli.path_of(args))
        attributes = {"stimuli": "occluded", "occlusion": stimuli.settings}
    if getattr(args, "subject", None) and getattr(args, "imgidx", None) is None:
        lacking = np.setdiff1d(_seen(args), stimuli.ids)
        if len(lacking):
            cli.say(f"warning: {stimuli.path} lacks {len(lacking)} of the stimuli that {args.subject} saw "
                    f"(the first is 73k id {lacking[0]})")
    return stimuli, attributes


def _seen(args):
    """(stimuli,) 73k ids that the subject saw."""
    return trials.seen([layout.Workspace.of(args)])


def wanted(args, stimuli):
    """Ascending 73k ids that --imgidx and --subject ask for and the file has; says how many of a range it lacks."""
    chosen = cli.image_range(args.imgidx, stimuli.stop, "stimulus")
    asked = np.arange(chosen.start, chosen.stop)
    if args.subject:
        asked = np.intersect1d(asked, _seen(args))
    ids = np.intersect1d(asked, stimuli.ids)
    if args.imgidx and 0 < len(ids) < len(asked):
        cli.say(f"{stimuli.path} has {len(ids):,} of the {len(asked):,} stimuli asked for")
    if not len(ids):
        raise Problem("none of the stimuli asked for is there",
                      "check --imgidx, --subject and the occluded images' range")
    return ids


def extract(args, stimuli, attributes, role, feature, dtype, compute, batch, prepare=None, folder=None):
    """Compute one feature for the stimuli that are missing: `extract_all` for a single name and array.

    folder: of its shards, default nsdfeat/{feature}.
    """
    extract_all(args, stimuli, attributes, role, [feature], dtype, lambda *given: [compute(*given)], batch, prepare,
                {feature: folder})


def extract_all(args, stimuli, attributes, role, names, dtype, compute, batch, prepare=None, folders=None):
    """Compute features that come from one forward pass, for the stimuli that lack any, shard by shard, reading ahead.

    role: whose identity the shards record; None for features that take no network. names: of the features below
    nsdfeat/. compute(prepared, ids) → one (n, …) array per name for at most `batch` stimuli; prepare(ids) → what
    compute takes (default: the stimuli's pixels), run in a thread. folders: {name: folder} of shards that do not lie in
    nsdfeat/.
    """
    attributes = attributes | (checkpoints.identity(role) if role else {}) | {
        "dtype": loading.dtype_name(dtype), "code_version": __version__}
    shards = {name: feature_shards.Shards((folders or {}).get(name) or layout.features(args.workdir, name))
              for name in names}
    ids = wanted(args, stimuli)
    for name, each in shards.items():
        if args.overwrite:
            each.remove_others(attributes | {"feature": name}, SHARD)
            ids = np.union1d(ids, each.renew(ids))
        each.check(attributes | {"feature": name})
    missing = sorted({stimulus for each in shards.values() for stimulus in each.missing(ids)})
    parts = [[part[start:start + batch] for start in range(0, len(part), batch)]
             for part in feature_shards.shard_ranges(missing, SHARD)]
    reading = images.prefetch(prepare or stimuli.read, [block for part in parts for block in part])
    computed = 0
    title = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
    with cli.progress(desc=title, total=len(ids), initial=len(ids) - len(missing), unit="img") as bar:
        for part in parts:
            stimuli_of_part = [stimulus for block in part for stimulus in block]
            with contextlib.ExitStack() as alone:
                cell = part[0][0] // SHARD
                for name in sorted(names):
                    alone.enter_context(writing.working(shards[name].folder, cell, cell + 1))
                    shards[name].refresh(cell * SHARD, (cell + 1) * SHARD)
                made_meanwhile = not any(each.missing(stimuli_of_part) for each in shards.values())
                held = []
                for block, prepared in itertools.islice(reading, len(part)):
                    if not made_meanwhile:
                        held.append([np.asarray(feature) for feature in compute(prepared, block)])
                    bar.update(len(block))
                if not made_meanwhile:
                    for (name, each), found in zip(shards.items(), zip(*held, strict=True), strict=True):
                        _write(each, stimuli_of_part, np.concatenate(found), attributes | {"feature": name})
                    computed += len(stimuli_of_part)
                for each in shards.values():
                    each.retire()
    for name, each in shards.items():
        print(f"{name}: {computed} computed, {len(ids) - computed} already there, {each.item_shape()} each")


def _write(shards, done, computed, attributes):
    """Write the rows that `shards` lacks: a run killed between two features of one pass leaves them at odds."""
    lacking = shards.missing(done)
    if lacking:
        shards.write(lacking, computed[np.isin(done, lacking)], attributes)


def add_store(parser, default="float16"):
    """--store: the dtype of the numbers in the shards, for features whose size is a burden."""
    parser.add_argument("--store", choices=["float16", "float32"], default=default,
                        help=f"precision in which features are kept (default: {default}; the shards say so)")


def stored_otherwise(args):
    """The attribute of shards that are not kept in float32, where --store has that default: those of before it was a
    flag do not say."""
    return {} if args.store == "float32" else {"stored": args.store}


def stored(tensor, dtype):
    """A tensor → array in the dtype named by --store. Raises Problem on NaN, infinity and what float16 cannot hold."""
    found = as_numpy(tensor)
    if dtype == "float16" and np.abs(found).max() > np.finfo(np.float16).max:
        raise Problem(f"a feature of {np.abs(found).max():g} is too large for float16",
                      "run again with --store float32")
    return found.astype(dtype)


def captions(args):
    """({73k id: [caption]} by people or by BLIP, as --captions asks; attributes that say so and what was left out)."""
    if args.captions == "blip":
        return blip_captions(args), {"captions": "blip"}
    found = coco_captions.captions(s3.Root.from_env(), args.workdir)
    left_out = sum(found.empty.values())
    return found, {"captions": "coco"} | ({"empty_captions_left_out": left_out} if left_out else {})


def blip_captions(args):
    """{73k id: [caption]} that BLIP gave the images of args.dataset."""
    path = layout.blip_captions(args.workdir, args.dataset)
    stage = "img2feat_blip_occlusion.py" if args.dataset == "occluded" else "img2feat_blip.py"
    if not path.exists():
        raise Problem(f"{path} is missing", f"run {stage}, or leave --captions at coco")
    found = text_files.read_json(path)
    if not all(stimulus.isdecimal() and isinstance(said, list) and said
               and all(isinstance(caption, str) for caption in said)
               for stimulus, said in found.items()):
        raise Problem(f"{path} does not hold captions by 73k id", f"run {stage} --overwrite")
    return {int(stimulus): said for stimulus, said in found.items()}


def as_numpy(tensor):
    """A network's features → float32 array. Raises Problem on NaN or infinity: half precision can overflow unseen."""
    return finite(tensor, "the network", "run again with --precision float32")


def finite(tensor, who, todo):
    """A tensor → float32 array. Raises Problem on NaN or infinity, which `who` returned."""
    if not torch.isfinite(tensor).all():
        raise Problem(f"{who} returned NaN or infinite numbers", todo)
    return tensor.float().cpu().numpy()
