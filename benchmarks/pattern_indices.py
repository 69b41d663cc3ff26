"""The control of the pattern indices: do unsteady gaze and large receptive fields lift them without any completion?

All brains are SIMULATED. The object completion index and the occlusion invariance index (Coggan & Tong 2024, as
`utils.completion.pattern_indices` has them) of one brain that completes nothing (kappa 0) and of one that completes
everything (kappa 1), for several sds of gaze and sizes of receptive fields; with the noise of single trials, and
without any.

    python benchmarks/pattern_indices.py [--scenes 40] [--out table.csv]
"""
import argparse
import csv
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from mini_nsd import brain_making, brain_model, brain_responses, occluded_viewing, scene_rendering, scene_sampling
from utils import cli, layout
from utils.completion import completion_stage, pattern_indices

# sd of gaze (degrees), factor on receptive fields
SETTINGS = ((0.0, 1.0), (0.2, 1.0), (0.5, 1.0), (1.0, 1.0), (0.0, 2.0), (0.2, 2.0))
KAPPAS = (0.0, 1.0)
REFERENCE = 200         # scenes that say what a voxel's mean and sd are
SIDE = 200              # px
FIELDS = ("gaze", "fields", "roi", "kappa", "noise", "completion", "completion_low", "completion_high",
          "invariance", "invariance_low", "invariance_high")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=40, help="test scenes (default: 40)")
    parser.add_argument("--out", type=Path, help="CSV for the table")
    args = parser.parse_args()

    started = time.monotonic()
    drawn, rendered = scenes_of(occluded_viewing.TRAIN_SEED, REFERENCE)
    pictures = [picture.image for picture in rendered], drawn, [brain_responses.visibility(picture)
                                                                for picture in rendered]
    tests = list(zip(*scenes_of(occluded_viewing.TEST_SEED, args.scenes)))
    names = [name for pair in occluded_viewing.PAIRS for name in pair]
    shown = [occluded_viewing.view(row, scene, rendering, name, occluded_viewing.mask(name, SIDE))
             for row, (scene, rendering) in enumerate(tests) for name in names]
    plain = [occluded_viewing.unoccluded(row, scene, rendering) for row, (scene, rendering) in enumerate(tests)]
    print(f"SIMULATED: {args.scenes} scenes, single trials; completion / invariance [95% interval over scenes]")
    print(f"{'gaze':>5} {'RF':>3} {'ROI':12} {'kappa':>5}  {'object completion':22} {'occlusion invariance':22} "
          "noise-free")
    rows = []
    for gaze, fields in cli.progress(SETTINGS, desc="settings"):
        rows += measured(brain_making.make("subj01", fields=fields), gaze, fields, pictures, shown, plain)
    cli.say(f"{time.monotonic() - started:.0f} s")
    if args.out:
        with open(args.out, "w", newline="") as file:
            csv.writer(file).writerows([FIELDS, *rows])


def scenes_of(seed, count):
    """([scene], [rendering])."""
    drawn = [scene_sampling.sample(seed, index) for index in range(count)]
    return drawn, [scene_rendering.render(scene, SIDE) for scene in drawn]


def measured(one, gaze, fields, pictures, shown, plain):
    """Rows of FIELDS for one setting; prints a line for each ROI and kappa."""
    rng = np.random.default_rng((int(100 * gaze), int(10 * fields), 13))

    def looked_at(views):
        return occluded_viewing.respond(one, views, rng.normal(0, gaze / brain_model.FIELD, (len(views), 2)))

    twice, whole = [looked_at(shown) for _ in range(2)], looked_at(plain)[1]
    reference = brain_responses.respond(one, *pictures)
    sd = one.noise_sd[one.anatomy.label > 0]
    scale = np.sqrt(reference.var(0) + sd ** 2)
    views = occluded_viewing.as_views(shown)
    pairs = completion_stage.complementary(views)
    rows = []
    for label, roi in enumerate(layout.ROIS, 1):
        here = one.roi == label

        def standard(clean, noisy):
            noise = rng.standard_normal(clean[:, here].shape) * sd[here]
            return (clean[:, here] - reference[:, here].mean(0) + noisy * noise) / scale[here]

        for kappa in KAPPAS:
            trials = [(1 - kappa) * visible + kappa * filled for visible, filled in twice]
            both = [pattern_indices.indices(*(standard(each, noisy) for each in (*trials, whole)), views.rows,
                                               views.masks, pairs) for noisy in (True, False)]
            rows += [(gaze, fields, roi, kappa, noisy, *found, *invariance)
                     for noisy, (found, invariance) in zip((True, False), both)]
            told = ["{:.2f} [{:.2f}, {:.2f}]".format(*index) for index in both[0]]
            print(f"{gaze:5.1f} {fields:3.0f} {roi:12} {kappa:5.0f}  {told[0]:22} {told[1]:22} "
                  f"{both[1][0][0]:.2f} / {both[1][1][0]:.2f}")
    return rows


if __name__ == "__main__":
    main()
