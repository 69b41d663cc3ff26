"""Flags that scripts share, the device, ranges of images, progress bars, one-line errors."""
import argparse
import errno
import io
import os
import re
import signal
import sys
import traceback
from pathlib import Path

from tqdm import tqdm

from utils import layout
from utils.errors import Problem


def parser(doc, example):
    """An argument parser whose --help shows the script's docstring and an example, with the flags every script has."""
    built = argparse.ArgumentParser(
        description=doc, epilog=f"example:\n  {example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    built.add_argument("--workdir", type=Path, default=Path("."), metavar="DIR",
                       help="folder that holds mrifeat/ nsdfeat/ decoded/ identification/ (default: .)")
    built.add_argument("--overwrite", action="store_true", help="redo finished work instead of resuming")
    built.add_argument("--debug", action="store_true", help="show a traceback with an error")
    return built


def name(text):
    """An argparse type: the name of a feature, a ROI or an atlas.
    It becomes part of paths, and must not lead elsewhere."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name: letters, digits, _ . + - only")
    return text


def add_subject(built, default=None):
    """--subject; required unless the script has a default."""
    built.add_argument("--subject", required=default is None, default=default, choices=layout.SUBJECTS,
                       metavar="subjNN", help=f"one of {' '.join(layout.SUBJECTS)}"
                       + (f" (default: {default})" if default else ""))


def add_gpu(built):
    """--gpu N, with -1 for the CPU."""
    built.add_argument("--gpu", type=int, default=0, metavar="N", help="CUDA device; -1 is the CPU (default: 0)")


def add_seed(built):
    """--seed, from which every random draw derives together with the item's own index."""
    built.add_argument("--seed", type=int, default=42, help="seed of every random draw (default: 42)")


def add_imgidx(built, what):
    """--imgidx A [B] (--imgidxs is the same flag): one index, or the half-open range A..B."""
    built.add_argument("--imgidx", "--imgidxs", dest="imgidx", type=int, nargs="+", metavar=("A", "B"),
                       help=f"one index or the half-open range A..B of {what} (default: all)")


def add_voxel_choice(built):
    """--atlas, --zscore and --ncsnr_min: which voxels, and scaled how. The choice is part of the artifacts' names."""
    built.add_argument("--atlas", type=name, default="streams",
                       help="label volume in NSD's roi/ folder (default: streams)")
    built.add_argument("--zscore", choices=["session"],
                       help="z-score each voxel within each session, by its training trials")
    built.add_argument("--ncsnr_min", type=float, metavar="X",
                       help="keep voxels whose NSD noise-ceiling SNR is at least X")


def add_run(built, dataset):
    """The flags that name one run of reconstructions, and so its folder: see `run_name`."""
    built.add_argument("--method", choices=["latent", *layout.METHODS], default="latent",
                       help="latent and cvpr are the same (default: latent)")
    built.add_argument("--dataset", choices=layout.DATASETS, default=dataset,
                       help=f"whole or occluded images (default: {dataset})")
    built.add_argument("--conditioning", choices=["zc", "z", "c"], default="zc",
                       help="ablation: z leaves out the conditioning, c starts from noise (default: zc)")
    built.add_argument("--true_features", action="store_true",
                       help="the recovery check: true features instead of decoded ones, in a folder of its own")
    built.add_argument("--shuffle_trials", type=int, metavar="SEED",
                       help="the control: features decoded by ridge.py --shuffle_trials SEED")


def add_occluded_dir(built):
    """--occluded_dir: occluded images as pictures in place of an HDF5 file."""
    built.add_argument("--occluded_dir", type=Path, metavar="DIR",
                       help="folder of occluded images, {73k id:06}.png or .jpg (generate_occluded_images.py "
                       "--outdir), in place of nsd_stimuli_occluded.hdf5")


def add_dataset(built, default):
    """--dataset; `original`, as ridge.py calls whole images, is the same as `nsd`."""
    built.add_argument("--dataset", choices=layout.DATASETS, default=default, metavar="{nsd,original,occluded}",
                       type=lambda text: "nsd" if text == "original" else text,
                       help=f"whole (nsd and original are the same) or occluded images (default: {default})")


def add_usefeat(built, what):
    """--usefeat: the evaluation's features, the usual ones unless others are asked for."""
    usual, more = (" ".join(names) for names in (layout.USUAL_FEATURES, layout.HIDDEN_FEATURES))
    built.add_argument("--usefeat", nargs="+", choices=layout.EVALUATION_FEATURES, default=list(layout.USUAL_FEATURES),
                       metavar="FEATURE", help=f"{what} (default: {usual}; {more} only when asked: 2.1 MB a picture)")


def control(args):
    """The name of the control that --shuffle_trials asks for, or None."""
    return None if args.shuffle_trials is None else f"shuffled{args.shuffle_trials}"


def run_name(args):
    """The name of the run that the flags of `add_run` describe."""
    return layout.run_name(args.method, args.dataset, true_features=args.true_features,
                           conditioning=args.conditioning, control=control(args))


NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What libraries say when memory is out, beside the exceptions of their own for it.
NO_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory|ALLOC_FAILED", re.IGNORECASE)
parsed = argparse.Namespace()  # the arguments of the script that runs, for what an error line says
parsing_only = False  # whether scripts end where they have parsed their arguments


class Parsed(BaseException):
    """Ends a script that was asked for its arguments only. No Exception, so that nothing takes it for a fault."""

    def __init__(self, args):
        super().__init__(args)
        self.arguments = args


def parse(built, argv=None):
    """Parse, and check what every script must: the range of images is written A or A B, the seed is not negative."""
    global parsed
    args = parsed = built.parse_args(argv)
    if getattr(args, "imgidx", None) is not None:
        if len(args.imgidx) > 2:
            built.error(f"--imgidx takes A or A B, got {len(args.imgidx)} numbers")
        if min(args.imgidx) < 0:
            built.error("--imgidx must not be negative")
        _must_ascend(args.imgidx)
    if getattr(args, "seed", None) is not None and args.seed < 0:
        built.error("--seed must not be negative")
    if parsing_only:
        raise Parsed(args)
    return args


def _must_ascend(imgidx):
    if len(imgidx) == 2 and imgidx[0] >= imgidx[1]:
        raise Problem(f"--imgidx {imgidx[0]} {imgidx[1]} is empty", "the range is half-open: give A < B")


def image_range(imgidx, count, what="image"):
    """The indices that --imgidx names, as a range over `count` images.

    None means all. An end past the last image means up to the last, and says so. Raises Problem for a start past
    the last image and for a reversed or empty range.
    """
    if imgidx is None:
        return range(count)
    _must_ascend(imgidx)
    start, stop = (imgidx[0], imgidx[0] + 1) if len(imgidx) == 1 else imgidx
    there = f"there are {count} {'stimuli' if what == 'stimulus' else what + 's'}"
    if start >= count:
        raise Problem(f"--imgidx starts at {start} but {there}", f"give a start of at most {count - 1}")
    if stop > count:
        say(f"--imgidx ends at {stop}: {there}, so up to {count}")
    return range(start, min(stop, count))


def device(gpu):
    """The torch device that --gpu asks for. No such GPU: one warning line, then MPS if there is one, else the CPU.

    float32 is then float32 on a GPU too: cuDNN's default for convolutions is TF32, with 10 bits of mantissa for 23.
    """
    import torch

    if gpu < 0:
        return torch.device("cpu")
    if gpu < torch.cuda.device_count():
        torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "ieee"
        return torch.device("cuda", gpu)
    fallback = torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    say(f"warning: no CUDA device {gpu}, using {fallback.type}")
    return fallback


def say(line):
    """A line for the person at the terminal. Results go to stdout by print; this goes to stderr."""
    tqdm.write(line, file=sys.stderr)


def progress(items=None, **options):
    """A tqdm bar on stderr; `desc`, `total` and `unit` as in tqdm."""
    return tqdm(items, file=sys.stderr, dynamic_ncols=True, **options)


def run(main, **options):
    """Run a stage's main and turn what goes wrong into one line on stderr and exit status 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a pipe on Windows may lack "→" or "×": no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        main(**options)
    except KeyboardInterrupt:
        print("error: interrupted — run the same command again to resume", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        print(f"error: {_one_line(error)}", file=sys.stderr)
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)  # HDF5 crashes at a normal exit after it could not write
        sys.exit(1)


def _one_line(error):
    if isinstance(error, Problem):
        text = str(error)
    elif isinstance(error, MemoryError) or isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)):
        flag = "a smaller --batch_size" if hasattr(parsed, "batch_size") else "--gpu -1 (the CPU)" if getattr(
            parsed, "gpu", -1) >= 0 else "other programs closed"
        text = (f"out of memory ({str(error).splitlines()[0][:160] if str(error) else 'the CPU'}) — "
                f"run the same command again with {flag}")
    elif isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        text = (f"{where}{error.strerror} — "
                "check the disk, the path and its permissions, then run the same command again")
    elif isinstance(error, ValueError) and " — " in str(error):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error} — run again with --debug for the traceback"
    return " ".join(text.split())
