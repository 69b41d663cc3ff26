"""Train the small models in mini_nsd/models from scratch, or measure the ones that are there.

    python -m mini_nsd.train                    # every role, in order
    python -m mini_nsd.train vae unet           # these
    python -m mini_nsd.train --evaluate         # print what each reaches on held-out scenes

Reads   nothing: scenes are rendered into --cache first (about a minute, 1.5 GB)
Writes  mini_nsd/models/{role}/: weights, configuration and a model card. An interrupted run resumes from --cache.
"""
import argparse
import importlib
import tempfile
from pathlib import Path

from mini_nsd.training import export

# Each is a module of mini_nsd.training with train(cache) and evaluate(); later ones build on earlier ones.
ROLES = ("vae", "clip", "unet", "inception", "alexnet", "blip", "dpt", "vgg19", "generator", "sd_depth")


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roles", nargs="*", metavar="role", help=f"any of: {' '.join(ROLES)} (default: all)")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "mini_nsd_cache",
                        help="folder for rendered scenes and checkpoints (default: %(default)s)")
    parser.add_argument("--evaluate", action="store_true", help="measure the trained models; train nothing")
    args = parser.parse_args(argv)
    unknown = set(args.roles) - set(ROLES)
    if unknown:
        parser.error(f"no such role: {' '.join(sorted(unknown))}; choose from {' '.join(ROLES)}")
    for role in args.roles or ROLES:
        module = importlib.import_module(f"mini_nsd.training.{role}")
        if args.evaluate:
            for name, value in module.evaluate().items():
                print(f"{role:10} {name}: {value}", flush=True)
        else:
            module.train(args.cache)
            export.copy_parts()


if __name__ == "__main__":
    main()
