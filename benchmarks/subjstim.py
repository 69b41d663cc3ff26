"""make_subjstim_vgg19.py as a process against the published way: np.load of a file a stimulus, one matrix, np.save.

    python benchmarks/subjstim.py

fc8 of all 9,841 stimuli of a subject, and conv5_4 of 2,048. The features are random float16, the same numbers in our
shards and in the published layout's files. Wall and processor seconds of the whole process, and its peak memory: ours
holds a block of stimuli whatever their number, the published way the matrix.
"""
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SUBJECT, SHARD = "subj01", 256
RUNS = 3  # the fastest counts, of both
SIZES = (("fc8", 9_841, (1_000,)), ("conv5_4", 2_048, (512, 14, 14)))


def write(workdir, layer, count, shape):
    """Trials of `count` stimuli, a tenth of them test; the layer's features in shards, and a .npy file a stimulus."""
    from utils import layout
    from utils.storage import arrays, feature_shards

    ws, ids, random = layout.Workspace(workdir, SUBJECT), np.arange(count), np.random.default_rng(0)
    arrays.write_npy(ws.stims, ids)
    arrays.write_npy(ws.stims_ave, ids)
    arrays.write_npy(ws.stims_ave_test, ids % 10 == 0)
    shards, files = feature_shards.Shards(layout.features(workdir, layer)), workdir / "published"
    files.mkdir()
    for start in range(0, count, SHARD):
        part = ids[start:start + SHARD]
        found = random.standard_normal((len(part), *shape), np.float32).astype(np.float16)
        shards.write(part, found, {"stimuli": "nsd"})
        for stimulus, each in zip(part, found):
            np.save(files / f"{stimulus:06}.npy", each)


def published(workdir, layer):
    """The published way, after its description."""
    stimuli, test = (np.load(f"{workdir}/mrifeat/{SUBJECT}/{SUBJECT}_stims_ave{what}.npy") for what in ("", "_test"))
    for split, chosen in (("tr", stimuli[~test]), ("te", stimuli[test])):
        matrix = np.stack([np.load(f"{workdir}/published/{stimulus:06}.npy").flatten() for stimulus in chosen])
        np.save(f"{workdir}/{SUBJECT}_ave_{layer}_{split}.npy", matrix)


def main():
    from benchmarks._shared import process

    print(f"{'a layer of VGG19, whole process':<44} {'wall s':>8} {'cpu s':>8} {'peak MiB':>9}")
    for layer, count, shape in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            process(__file__, "--write", folder, layer, count, *shape)  # or its memory would be counted as theirs
            size = f"{layer}, {count:,} × {int(np.prod(shape)):,}"
            for who, command in (
                    ("ours", ("make_subjstim_vgg19.py", "--layer", layer, "--subject", SUBJECT, "--workdir", folder,
                              "--overwrite")),
                    ("published", (__file__, "--published", folder, layer))):
                wall, cpu, peak, _ = min(process(*command) for _ in range(RUNS))
                print(f"{f'{size}, {who}':<44} {wall:>8.2f} {cpu:>8.2f} {peak:>9,.0f}", flush=True)


if __name__ == "__main__":
    if "--write" in sys.argv:
        folder, layer, count, *shape = sys.argv[2:]
        write(Path(folder), layer, int(count), tuple(map(int, shape)))
    elif "--published" in sys.argv:
        published(*sys.argv[2:])
    else:
        main()
