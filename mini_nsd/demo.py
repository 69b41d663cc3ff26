"""The main job on the embedded default: build the simulated world, serve it over S3, and run the pipeline on it.

`python -m mini_nsd.demo DIR` is what `make demo` runs. DIR/world holds the simulated data set, DIR/work every artifact.
"""
import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from mini_nsd import serve
from utils import layout

ROOT = Path(__file__).resolve().parent.parent
SUBJECT = "subj01"
FEWER = 24  # test images of the costlier methods; the cvpr method and its controls take all


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the world and the results go")
    args = parser.parse_args()
    world, work = layout.demo(args.folder)
    started = time.monotonic()
    run("-m", "mini_nsd.build", world, "--subjects", SUBJECT)
    with serve.serving(world) as endpoint:
        environment = os.environ | {
            "NSD_ROOT": "s3://natural-scenes-dataset", "AWS_ENDPOINT_URL_S3": endpoint, "NSD_MODELS": "tiny"}
        pipeline = ["run_pipeline.py", "--subject", SUBJECT, "--workdir", work, "--gpu", "-1", "--n_samples", "2",
                    "--scheduler", "dpm", "--steps", "10", "--datasets", "nsd", "occluded"]
        run(*pipeline, "--methods", "text", "gan", "depth", "--imgidx", "0", str(FEWER),
            "--skip", "evaluate.py", "make_figures.py", "make_report.py", environment=environment)
        run(*pipeline, "--methods", "cvpr", "--controls", "--by_roi", "--completion", environment=environment)
    print(f"\nSimulated subject {SUBJECT}, from fMRI in NSD's format to images and back, "
          f"in {(time.monotonic() - started) / 60:.1f} minutes.\nFigures: {work / 'figures'}\n"
          f"Open in a browser: {layout.Workspace(work, SUBJECT).report.resolve()}")


def run(*command, environment=None):
    """A Python command from the repository's root; its failure is ours."""
    result = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, env=environment)
    if result.returncode:
        sys.exit(result.returncode)


if __name__ == "__main__":
    main()
