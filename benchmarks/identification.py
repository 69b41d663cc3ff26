"""Identification at NSD's size: one matrix product against the pairwise loop, and the memory of the largest feature.

    python benchmarks/identification.py

982 test images × 5 samples. The loop (np.corrcoef, a pair of vectors at a time, as published pipelines do) is timed on
a part of its 4.8 million pairs and scaled. Features are random; the large ones are generated as they are asked for, in
a process of its own so that its peak memory is its own.
"""
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from utils import identification  # noqa: E402

IMAGES, SAMPLES = 982, 5  # NSD's shared images seen three times by subj01; samples per image
DIMS, LARGE_DIMS = 2048, 1024 * 257  # inception; clip_h12: 257 tokens × 1,024
LOOP_ROWS, LOOP_IMAGES = 4, 200  # the part of the loop that is timed
REPEATS = 7  # the fastest counts, for both


def features(dims, seed):
    random = np.random.default_rng(seed)
    originals = random.standard_normal((IMAGES, dims), np.float32)
    samples = 0.1 * originals[:, None] + random.standard_normal((IMAGES, SAMPLES, dims), np.float32)
    return originals, samples


def ours(originals, samples):
    r = identification.correlations(range(len(originals)), originals.__getitem__, samples.__getitem__)
    return r, identification.accuracy(r)


def pairwise(originals, samples):
    """(rows, images) r of the first rows, as the loop computes them."""
    return np.array([[np.mean([np.corrcoef(originals[i], sample)[0, 1] for sample in samples[j]])
                      for j in range(LOOP_IMAGES)] for i in range(LOOP_ROWS)])


def large():
    """Peak memory in MiB and seconds of the largest feature: print them, for the parent process."""
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


def main():
    originals, samples = features(DIMS, 0)
    ours_seconds, (r, _) = fastest(ours, originals, samples)
    part_seconds, part = fastest(pairwise, originals, samples)
    loop = part_seconds * IMAGES**2 / part.size
    apart = np.abs(part - r[:LOOP_ROWS, :LOOP_IMAGES]).max()
    peak, seconds = map(float, subprocess.run([sys.executable, __file__, "--large"], check=True, capture_output=True,
                                              text=True).stdout.split())
    size = f"{IMAGES} × {SAMPLES} ×"
    print(f"{'identification':<28} {'seconds':>10} {'peak MiB':>9}")
    print(f"{'ours, ' + f'{size} {DIMS:,}':<28} {ours_seconds:>10.3f}")
    print(f"{'pairwise loop, same':<28} {loop:>10.1f}   "
          f"(scaled from {part.size * SAMPLES:,} pairs in {part_seconds:.2f} s)")
    print(f"{'ratio':<28} {loop / ours_seconds:>9,.0f}×   (r differs by at most {apart:.0e})")
    print(f"{'ours, ' + f'{size} {LARGE_DIMS:,}':<28} {seconds:>10.1f} {peak:>9,.0f}")


if __name__ == "__main__":
    large() if "--large" in sys.argv else main()
