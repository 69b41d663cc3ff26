"""Identification at NSD's size: the whole script against the published way, its kernel alone, the largest feature.

    python benchmarks/identification.py

982 test images × 5 samples. First what a user gets: identification.py as a process, from a run's feature files on disk
to its scores, interval and p, against a plain process that does what the published script does with the same files: it
loads them, calls np.corrcoef for each of the 982² pairs of an original with an image's five samples, averages, and
counts. It computes neither interval nor p. Both run to their end and must agree.

Then the kernel alone, in memory, against a loop of one np.corrcoef for each pair of vectors, timed on a part of its 4.8
million pairs and scaled: no user sees that ratio. Features are random; the large ones are generated as they are asked
for, in a process of its own so that its peak memory is its own.
"""
import csv
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

IMAGES, SAMPLES = 982, 5  # NSD's shared images seen three times by subj01; samples per image
DIMS, LARGE_DIMS = 2048, 1024 * 257  # inception; clip_h12: 257 tokens × 1,024
LOOP_ROWS, LOOP_IMAGES = 4, 200  # the part of the loop that is timed
REPEATS = 7  # the fastest counts, for both
RUNS = 3  # of the whole script; the published way, a minute or two, runs once
FEATURE, RUN, SUBJECT = "inception", "cvpr", "subj01"


def features(dims, seed):
    random = np.random.default_rng(seed)
    originals = random.standard_normal((IMAGES, dims), np.float32)
    samples = 0.1 * originals[:, None] + random.standard_normal((IMAGES, SAMPLES, dims), np.float32)
    return originals, samples


def ours(originals, samples):
    from utils.evaluate import identification

    r = identification.correlations(range(len(originals)), originals.__getitem__, samples.__getitem__)
    return r, identification.accuracy(r)


def pairwise(originals, samples):
    """(rows, images) r of the first rows, as the loop computes them."""
    return np.array([[np.mean([np.corrcoef(originals[i], sample)[0, 1] for sample in samples[j]])
                      for j in range(LOOP_IMAGES)] for i in range(LOOP_ROWS)])


def large():
    """Peak memory in MiB and seconds of the largest feature: print them, for the parent process."""
    from utils.evaluate import identification

    noise = np.random.default_rng(0).standard_normal(LARGE_DIMS, np.float32)  # shifted, it is as good as new

    def vectors(count, first):
        return np.stack([np.roll(noise, first + shift) for shift in range(count)])
    start = time.perf_counter()
    identification.correlations(range(IMAGES), lambda i: vectors(1, i),
                                lambda j: vectors(SAMPLES, IMAGES + SAMPLES * j))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.perf_counter() - start)


def fastest(function, *arguments):
    """(seconds, result) of the fastest of REPEATS calls: other work on the machine only ever adds time."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = function(*arguments)
        times.append(time.perf_counter() - start)
    return min(times), result


def write_run(workdir, originals, samples):
    """A run's feature files, one a picture, as the published pipeline has them; returns their folder."""
    from utils import layout

    folder = layout.Workspace(workdir, SUBJECT).identification(RUN)
    folder.mkdir(parents=True)
    for image, (original, repeats) in enumerate(zip(originals, samples)):
        np.save(layout.image_feature(folder, f"{image:05}_org", FEATURE), original)
        for repeat, sample in enumerate(repeats):
            np.save(layout.image_feature(folder, f"{image:05}_{repeat:03}", FEATURE), sample)
    return folder


def published(folder, images):
    """The published way, after its description; prints each image's accuracy, for the parent process."""
    originals = [np.load(f"{folder}/{i:05}_org_{FEATURE}.npy").flatten() for i in range(images)]
    samples = [[np.load(f"{folder}/{i:05}_{k:03}_{FEATURE}.npy").flatten() for k in range(SAMPLES)]
               for i in range(images)]
    r = np.empty((images, images))
    for i in range(images):
        for j in range(images):
            r[i, j] = np.corrcoef([originals[i], *samples[j]])[0, 1:].mean()
    for i in range(images):
        print(np.mean([r[i, j] < r[i, i] for j in range(images) if j != i]))


def whole(images):
    """The table's lines of both processes on `images` images. Raises AssertionError if they disagree."""
    from benchmarks._shared import process
    from utils import layout

    originals, samples = (each[:images] for each in features(DIMS, 0))
    with tempfile.TemporaryDirectory() as temporary:
        workdir = Path(temporary)
        folder = write_run(workdir, originals, samples)
        command = ("identification.py", "--workdir", workdir, "--subject", SUBJECT, "--method", RUN,
                   "--usefeat", FEATURE, "--overwrite")
        mine = min(process(*command) for _ in range(RUNS))
        theirs = process(__file__, "--published", folder, images)
        with open(layout.Workspace(workdir, SUBJECT).per_image_scores(RUN, FEATURE)) as file:
            scores = [float(row["accuracy"]) for row in csv.DictReader(file)]
    assert np.allclose(scores, [float(line) for line in theirs[-1].split()], atol=1e-5)
    yield f"{'whole process':<38} {'wall s':>10} {'cpu s':>10}"
    yield f"{f'identification.py, {images} × {SAMPLES} × {DIMS:,}':<38} {mine[0]:>10.2f} {mine[1]:>10.2f}"
    yield f"{'the published way, same files':<38} {theirs[0]:>10.1f} {theirs[1]:>10.1f}   (same accuracies)"
    yield f"{'ratio':<38} {theirs[0] / mine[0]:>9.0f}× {theirs[1] / mine[1]:>9.0f}×"


def main():
    for line in whole(IMAGES):
        print(line, flush=True)
    originals, samples = features(DIMS, 0)
    ours_seconds, (r, _) = fastest(ours, originals, samples)
    part_seconds, part = fastest(pairwise, originals, samples)
    loop = part_seconds * IMAGES**2 / part.size
    apart = np.abs(part - r[:LOOP_ROWS, :LOOP_IMAGES]).max()
    peak, seconds = map(float, subprocess.run([sys.executable, __file__, "--large"], check=True, capture_output=True,
                                              text=True).stdout.split())
    size = f"{IMAGES} × {SAMPLES} ×"
    print(f"\n{'kernel alone, in memory':<38} {'seconds':>10} {'peak MiB':>9}")
    print(f"{'ours, ' + f'{size} {DIMS:,}':<38} {ours_seconds:>10.3f}")
    print(f"{'a loop of pairs of vectors, same':<38} {loop:>10.1f}   "
          f"(scaled from {part.size * SAMPLES:,} pairs in {part_seconds:.2f} s)")
    print(f"{'ratio':<38} {loop / ours_seconds:>9,.0f}×   (r differs by at most {apart:.0e})")
    print(f"{'ours, ' + f'{size} {LARGE_DIMS:,}':<38} {seconds:>10.1f} {peak:>9,.0f}")


if __name__ == "__main__":
    if "--published" in sys.argv:
        published(sys.argv[2], int(sys.argv[3]))
    elif "--large" in sys.argv:
        large()
    else:
        main()
