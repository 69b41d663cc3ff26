"""How often the completion index is wrong, and how often it finds what is there. All brains are SIMULATED.

For each completion kappa, the same in every ROI, data sets are drawn: other test scenes each time (a random subset of
the pool's), other noise in every trial, and decoders trained anew on other training trials every so often. Each is
analysed as amodal_completion.py does. The table gives, per ROI and kappa, the mean index, its bias, the share of
intervals that hold kappa, and how often p < 0.05: at kappa 0 the false positives, uncorrected and corrected over the
ROIs (in any ROI), with the 95% interval of a share over that many sets; above it the power. Then the control: the index
along objects that are wholly hidden, which the simulated brain never completes, and how often its interval leaves 0 out
(0.05 is nominal); and closeness: how much higher what is decoded correlates with the truth than with the occluder, with
the context's guess and with other images' hidden content. Some of it is above 0 at kappa 0, which is why it is not the
index.

The sets are not independent brains: all are of one simulated subject with one draw of gaze for each trial, and two sets
share scenes as two random subsets of the pool do.

--null N is the quick part, without a brain: N sets of random activity for each size (scenes × masks), with the share of
them at p <= 0.05 and 0.01, and how often the bootstrap interval of the mean holds the truth. Scenes differ in how
strongly they drive activity and in how much they hide, and a scene's activity is alike behind all masks in part.

    python benchmarks/completion_power.py [--sets 40] [--scenes 60] [--gaze 0.2] [--out table.csv]
    python benchmarks/completion_power.py --null 4000
    python benchmarks/completion_power.py --sets 200 --levels 0
"""
import argparse
import csv
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from mini_nsd import brain_making, occluded_viewing
from utils import cli, layout, permutations
from utils.completion import closeness, completion_index, linear_readouts

REFITS = 5              # times that the decoders are trained anew, for each kappa
DRAWS = 500             # permutations a set; the stage makes 2,000
LEVELS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
SIZES = (4, 3), (5, 3), (6, 3), (8, 3), (12, 7), (24, 7), (60, 7), (120, 7)    # scenes × masks of the null alone
DIMS = 6                # hidden dims of the null alone
RIVALS = closeness.REFERENCES[1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=40,
                        help="data sets at kappa 0; a quarter at each other (default: 40, minutes; "
                        "docs/amodal_completion.md has 200)")
    parser.add_argument("--scenes", type=int, default=60, help="test scenes a set (default: 60)")
    parser.add_argument("--pool", type=int, default=160, help="test scenes to draw them from (default: 160)")
    parser.add_argument("--gaze", type=float, default=occluded_viewing.GAZE,
                        help="sd of fixation, degrees (default: 0.2)")
    parser.add_argument("--levels", type=float, nargs="+", choices=LEVELS, default=LEVELS, metavar="KAPPA",
                        help="completions to simulate (default: all)")
    parser.add_argument("--null", type=int, metavar="N", help="only the statistic's own null, N sets of each size")
    parser.add_argument("--out", type=Path, help="CSV for the table")
    args = parser.parse_args()
    if args.null:
        null_table(args.null)
        return

    started = time.monotonic()
    one = brain_making.make("subj01")
    experiment = occluded_viewing.experiment(one, 930, args.pool, gaze=args.gaze)
    rows, sets = [], {level: args.sets if level == 0 else args.sets // 4 for level in args.levels}
    with cli.progress(total=sum(sets.values()), desc="data sets") as bar:
        found = {level: [] for level in args.levels}
        for refit in range(REFITS):
            readers = fitted(experiment, refit)
            for level in args.levels:
                for number in range(refit, sets[level], REFITS):
                    rng = np.random.default_rng((number, int(1000 * level), 11))
                    found[level].append(analysed(experiment, readers, level, args.scenes, rng))
                    bar.update()
    print(f"SIMULATED: {args.scenes} scenes × {len(occluded_viewing.PAIRS) * 2 + 1} occluders × "
          f"{occluded_viewing.REPEATS} trials, gaze sd {args.gaze:g} deg")
    print(f"{'kappa':>6} {'ROI':12} {'feature':8} {'sets':>4} {'index':>7} {'sd':>6} {'bias':>6} {'covered':>8} "
          f"{'p<.05':>6} {'corr.':>6} {'signal':>6} {'control':>8} {'not 0':>6} "
          + " ".join(f"{name:>8}" for name in RIVALS))
    for level in args.levels:
        for roi in layout.ROIS:
            each = [one[roi] for one in found[level]]
            index = np.array([one["index"] for one in each])
            row = [level, roi, completion_index.feature_of(roi), len(each), np.median(index), index.std(),
                   np.median(index) - level, np.mean([one["low"] <= level <= one["high"] for one in each]),
                   np.mean([one["p"] < 0.05 for one in each]), np.mean([one["corrected"] < 0.05 for one in each]),
                   np.mean([one["signal"] for one in each]), np.median([one["control"] for one in each]),
                   np.mean([one["control_low"] > 0 or one["control_high"] < 0 for one in each]),
                   *np.mean([one["closeness"] for one in each], axis=0)]
            rows.append(row)
            print(f"{level:6.2f} {roi:12} {row[2]:8} {row[3]:4} {row[4]:7.3f} {row[5]:6.3f} {row[6]:6.3f} "
                  f"{row[7]:8.2f} {row[8]:6.3f} {row[9]:6.3f} {row[10]:6.2f} {row[11]:8.3f} {row[12]:6.2f} "
                  + " ".join(f"{value:8.3f}" for value in row[13:]))
        any_roi = sum(any(one[roi]["corrected"] < 0.05 for roi in layout.ROIS) for one in found[level])
        print(f"{level:6.2f} any ROI, corrected: {any_roi} of {len(found[level])} = "
              f"{share(any_roi, len(found[level]))}")
    cli.say(f"{time.monotonic() - started:.0f} s")
    if args.out:
        with open(args.out, "w", newline="") as file:
            csv.writer(file).writerows([["kappa", "roi", "feature", "sets", "index", "sd", "bias", "covered",
                                         "p_below_05", "corrected_below_05", "enough_signal", "control",
                                         "control_not_0", *(f"over_{name}" for name in RIVALS)], *rows])


def null_table(sets):
    """Print how often a null of the statistic alone is rejected, by size, with the 95% interval of the share."""
    print("SIMULATED: no brain, activity that says nothing of what is hidden")
    print(f"{'scenes':>6} {'masks':>5} {'sets':>6} {'smallest p':>10} {'p <= .05':>24} "
          f"{'p <= .01':>24} {'interval holds 0':>24}")
    for scenes, masks in SIZES:
        found = [null_set(scenes, masks, number) for number in range(sets)]
        p = np.array([each[0] for each in found])
        shares = [(p <= 0.05).sum(), (p <= 0.01).sum(), sum(each[1] for each in found)]
        print(f"{scenes:6} {masks:5} {sets:6} {permutations.smallest_p(scenes, DRAWS):10.2g} "
              + " ".join(f"{share(int(count), sets):>24}" for count in shares))


def null_set(scenes, masks, number):
    """(p, whether the interval of the sum of numerators holds 0) of one set of random activity."""
    rng = np.random.default_rng((number, scenes, masks, 13))
    drive, hides = (rng.lognormal(0, 0.5, scenes) for _ in range(2))
    shared, content = (rng.standard_normal((scenes, DIMS)) for _ in range(2))
    images, above, tables = np.arange(scenes), np.zeros(scenes), []
    for _ in range(masks):
        hidden = (content + rng.standard_normal((scenes, DIMS))) * hides[:, None]
        seen = (shared + rng.standard_normal((scenes, DIMS))) * drive[:, None]
        table = seen @ (hidden - hidden.mean(0)).T
        above += np.diagonal(table)
        tables.append((images, table))
    observed, null = completion_index.permuted(completion_index.Scores(above, np.ones(scenes), tables), None, number,
                                               DRAWS)
    low, high = completion_index.interval(above, np.ones(scenes), number)
    return permutations.p_value(observed, null), low <= 0 <= high


def share(count, sets):
    """"0.048 [0.042, 0.055]", exact binomial interval."""
    low, high = stats.binomtest(count, sets).proportion_ci(method="exact")
    return f"{count / sets:.3f} [{low:.3f}, {high:.3f}]"


def fitted(experiment, refit):
    """{ROI: (voxels, Readout, what it decodes from the visible-only model)}, trained on trials of their own."""
    found, rng = {}, np.random.default_rng((refit, 12))
    for label, roi in enumerate(layout.ROIS, 1):
        here = np.flatnonzero(experiment.one.roi == label)
        feature = completion_index.feature_of(roi)
        betas = 300 * (experiment.trained[experiment.rows][:, here] + experiment.noise(len(experiment.rows), here, rng))
        readout = linear_readouts.readouts(betas, experiment.rows,
                                           {feature: experiment.material.features[feature][0]})[feature]
        visible, _ = linear_readouts.visible_only(experiment.material, betas, experiment.rows)
        found[roi] = here, readout, visible @ readout.weights + readout.offset
    return found


def analysed(experiment, readers, level, scenes, rng):
    """{ROI: what the stage would report} of one data set."""
    material = experiment.material
    images = material.views.rows
    count = experiment.whole.shape[1]
    kept = np.isin(images, rng.choice(count, scenes, replace=False))
    views, present = images[kept], np.unique(images[kept])
    position = np.searchsorted(present, views)
    taking_part = completion_index.taking_part(material)[present]
    found, observed, null = {}, {}, {}
    for roi, (here, readout, visible) in readers.items():
        feature = completion_index.feature_of(roi)
        clean = ((1 - level) * experiment.visible + level * experiment.filled)[:, kept][:, :, here].mean(0)
        seen = readout(300 * (clean + experiment.noise(kept.sum(), here, rng) / np.sqrt(occluded_viewing.REPEATS)))
        noise = experiment.noise(len(present), here, rng) / np.sqrt(occluded_viewing.REPEATS)
        whole = readout(300 * (experiment.whole[:, present][:, :, here].mean(0) + noise))
        axes = [axis for each in material.axes[feature] if (axis := each.take(kept)) is not None]
        scores = completion_index.score(seen, whole[position], visible[kept], axes, position, len(present))
        low, high = completion_index.interval(scores.above, scores.below, int(rng.integers(1 << 31)))
        observed[roi], null[roi] = completion_index.permuted(scores, taking_part, 42, DRAWS)
        r2 = completion_index.explained(whole, material.features[feature][1][present])
        lost = completion_index.score(seen, whole[position], visible[kept], _kept(material.control[feature], kept),
                                      position,
                                      len(present))
        there = lost.below != 0
        _, r = closeness.correlations(material, feature, np.flatnonzero(kept), seen)
        found[roi] = {"index": scores.index, "low": low, "high": high,
                      "signal": completion_index.enough_signal(r2, scores.below),
                      "closeness": (r[:, :1] - r[:, 1:]).mean(0),
                      "control": lost.index, **dict(zip(("control_low", "control_high"), completion_index.interval(
                          lost.above[there], lost.below[there], int(rng.integers(1 << 31)))))}
    for roi, (p, corrected) in completion_index.p_values(observed, null).items():
        found[roi] |= {"p": p, "corrected": corrected}
    return found


def _kept(axes, kept):
    """Axes of single views, those of the views kept, renumbered."""
    return [replace(axis, rows=(np.cumsum(kept) - 1)[axis.rows]) for axis in axes if kept[axis.rows[0]]]


if __name__ == "__main__":
    main()
