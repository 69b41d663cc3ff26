"""Run the stages in order, each exactly as from a shell, and stop at the first that fails.

Every command is printed before it runs, so that any of them can be repeated by hand. Finished work is not redone.
With --status nothing runs: each step is said to be done, partial, stale (made otherwise than it would be now, or of
inputs that changed since) or missing. With --check nothing runs either: what each step will fetch, write, hold and take
on this machine is estimated, and what is missing is said with what mends it; it exits with 1 if something is.

Reads   NSD (NSD_ROOT) and the checkpoints (NSD_MODELS)
Writes  everything below --workdir
"""
import runpy
import shlex
import sys
import time
from pathlib import Path

from utils import cli, layout
from utils.generate import diffusion
from utils.models import checkpoints
from utils.pipeline import presets, stages

HERE = Path(__file__).resolve().parent


def main(argv=None):
    parser = cli.parser(__doc__,
                        "python run_pipeline.py --subject subj01 --methods cvpr text gan depth --datasets nsd occluded")
    cli.add_subject(parser)
    cli.add_gpu(parser)
    checkpoints.add_revision(parser)
    cli.add_seed(parser)
    cli.add_imgidx(parser, "the test images to reconstruct")
    parser.add_argument("--methods", nargs="+", choices=layout.METHODS, default=["cvpr"], help="default: cvpr")
    parser.add_argument("--datasets", nargs="+", choices=layout.DATASETS, default=["nsd"], help="default: nsd")
    parser.add_argument("--preset", choices=presets.PRESETS,
                        help="paper: 5 samples of 50 DDIM steps, what the stages do by themselves; night: one "
                        "sample of 5 UniPC steps and more, for a laptop (docs/night.md)")
    parser.add_argument("--n_samples", type=int, metavar="N", help="samples per image (default: the stage's own)")
    parser.add_argument("--steps", type=int, metavar="N", help="diffusion steps (default: the stage's own)")
    parser.add_argument("--scheduler", metavar="NAME", help="diffusion solver (default: the stage's own)")
    parser.add_argument("--size", type=float, metavar="SHARE",
                        help="side at which pictures are made, as a share of the checkpoint's own (default: 1)")
    parser.add_argument("--start", choices=diffusion.STARTS, help="how latents are enlarged (default: picture)")
    parser.add_argument("--guided_below", type=float, metavar="SHARE",
                        help="share of the noise schedule below which steps are guided (default: 1)")
    parser.add_argument("--n_iter", type=int, metavar="N", help="of the GAN inversion (default: 200)")
    parser.add_argument("--learning_rate", type=float, metavar="X", help="of the GAN inversion (default: 2)")
    parser.add_argument("--store", choices=["float16", "float32"],
                        help="precision in which init_latent and c are kept (default: float32)")
    parser.add_argument("--occlude_on_read", action="store_true",
                        help="keep no file of occluded images: each is occluded when it is read")
    cli.add_usefeat(parser, "features to extract and to identify by")
    parser.add_argument("--prompt", metavar="WAY", help="what captions start from (default: the stages' own)")
    parser.add_argument("--batch_size", type=int, metavar="N",
                        help="items a forward pass of every stage that has the flag (default: the stage's own)")
    parser.add_argument("--controls", action="store_true",
                        help="also the recovery check (true features) and the control (shuffled trials) of the cvpr "
                        "method")
    parser.add_argument("--by_roi", action="store_true", help="also decode init_latent and c from each ROI by itself")
    parser.add_argument("--completion", action="store_true",
                        help="also amodal_completion.py: NSD_ROOT has occluded_viewing/")
    parser.add_argument("--skip", nargs="+", default=[], metavar="SCRIPT",
                        help="leave these out, for instance make_report.py")
    parser.add_argument("--dry_run", action="store_true", help="print the commands only")
    parser.add_argument("--check", action="store_true",
                        help="say what each step will fetch, write, hold and take on this machine, and what is "
                        "missing; run nothing (docs/night.md)")
    parser.add_argument("--status", action="store_true",
                        help="say what is done, partial, stale or missing; run nothing")
    args = cli.parse(parser, argv)
    if args.batch_size is not None and args.batch_size < 1:
        parser.error("--batch_size must be at least 1")
    presets.apply(args)

    steps = stages.plan(args)
    if args.status or args.check:
        from utils.pipeline import check, graph

        planned = graph.of(steps, arguments)
        if args.status:
            show_status(planned)
            return
        sys.exit(0 if check.run(planned, args) else 1)
    for number, command in enumerate(steps, start=1):
        print(f"[{number}/{len(steps)}] python {shlex.join(command)}", flush=True)
        if not args.dry_run:
            started = time.monotonic()
            run(command)
            forget()
            print(f"        {time.monotonic() - started:.0f} s", flush=True)


def show_status(steps):
    """A line for each step, and for each that is not done why; then how many there are of each kind."""
    from utils.pipeline import status

    states = []
    for number, (step, (state, note)) in enumerate(zip(steps, status.of(steps), strict=True), start=1):
        states.append(state)
        print(f"{state:<8}[{number}/{len(steps)}] python {shlex.join(step.command)}"
              + (f"\n          {note}" if note else ""))
    print(", ".join(f"{states.count(state)} {state}" for state in status.STATES))


def arguments(command):
    """The arguments that a command would run with."""
    cli.parsing_only = True
    try:
        run(command)
    except cli.Parsed as parsed:
        return parsed.arguments
    finally:
        cli.parsing_only = False


def forget():
    """Free what a stage's networks hold, so that the run takes the memory of its largest stage, not of all of them."""
    if "utils.models.loading" in sys.modules:
        sys.modules["utils.models.loading"].forget()


def run(command):
    """Run a script in this process, so that torch and the models are loaded once, with its own argv."""
    saved, sys.argv = sys.argv, [str(HERE / command[0]), *command[1:]]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        sys.argv = saved


if __name__ == "__main__":
    cli.run(main)
