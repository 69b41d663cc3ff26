"""Betas over a home connection: by voxel from the .hdf5 against streaming the .nii.gz, through the same slow link.

Writes sessions of subj01's shape as NSD does, (81, 104, 83) × 750 int16, as .hdf5 with a chunk per voxel and as
.nii.gz, with ROIs in a folded ribbon, serves them over S3 on loopback behind a relay that holds each request back by
40 ms and caps a connection at 20 Mbit/s and the link at 100 Mbit/s, and runs make_subjmri.py. What passed is counted at
the relay.

    python benchmarks/slow_link.py              # one session, seven stream ROIs: five minutes
    python benchmarks/slow_link.py --full       # also nsdgeneral, --ncsnr_min, and four sessions with several workers
"""
import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import nibabel
import numpy as np
import scipy.io
from isal import igzip

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import subjmri  # noqa: E402
from tests import tiny_nsd  # noqa: E402
from utils.nsd import object_keys  # noqa: E402

SHAPE, ROIS = subjmri.SHAPE, subjmri.ROIS
FILLED = 0.55  # share of voxels that are not zero at which a .nii.gz has the 0.5 GB that others list for NSD's
THICK = 2.4  # voxels of 1.8 mm that a cortex of 2.5 mm reaches into
GENERAL = 15_724  # voxels of subj01's nsdgeneral, about
AFFINE = np.diag([1.8, 1.8, 1.8, 1])


def anatomy(filled):
    """(brain, ribbon, filled): (x, y, z) bool of subjmri.BRAIN of the volume, the distance in voxels from the middle of
    a folded sheet below its surface, infinite outside the brain, and bool of the share `filled` of the volume."""
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    radius = np.sqrt(sum(axis ** 2 for axis in axes))
    brain = radius <= np.quantile(radius, subjmri.BRAIN)
    edge = radius[brain].max()
    x, y, z = axes
    folds = 0.11 * np.sin(16 * x + 3 * z) * np.sin(15 * y - 2 * x) + 0.07 * np.sin(18 * z + 4 * y)
    level = radius / edge - 0.82 - folds
    steep = np.sqrt(sum(part ** 2 for part in np.gradient(level)))
    return brain, np.where(brain, np.abs(level) / steep, np.inf), radius <= np.quantile(radius, filled)


def ribbon_labels(away):
    """(x, y, z) int16: ROIs of the sizes of subj01's, side by side in the posterior part of a sheet of cortex."""
    sheet = np.flatnonzero((away < THICK / 2).ravel(order="F"))
    y = np.unravel_index(sheet, SHAPE, order="F")[1]
    sheet = sheet[np.argsort(y, kind="stable")][:sum(ROIS.values())]
    if len(sheet) < sum(ROIS.values()):
        raise SystemExit(f"the ribbon has {len(sheet)} voxels, too few")
    labels, start = np.zeros(np.prod(SHAPE), np.int16), 0
    for label, size in enumerate(ROIS.values(), start=1):
        labels[sheet[start:start + size]] = label
        start += size
    return labels.reshape(SHAPE, order="F")


def write_world(folder, sessions, trials, filled):
    """subj01's files; returns the paths of one session, .hdf5 and .nii.gz. filled: share of voxels not zero."""
    rng = np.random.default_rng(0)
    brain, away, inside = anatomy(filled)
    labels = ribbon_labels(away)
    files = subjmri.Files(folder)

    def save(values, key):
        nibabel.save(nibabel.Nifti1Image(values, AFFINE), files.path(key))

    general = np.zeros(np.prod(SHAPE), np.int16)
    general[np.flatnonzero(labels.ravel(order="F") > 0)[:GENERAL]] = 1
    save(labels, object_keys.atlas_key("subj01", "streams"))
    save(general.reshape(SHAPE, order="F"), object_keys.atlas_key("subj01", "nsdgeneral"))
    save(brain.astype(np.int16), object_keys.atlas_key("subj01", "brain"))
    save(rng.uniform(0, 1, SHAPE).astype(np.float32), object_keys.ncsnr_key("subj01"))
    files.path(object_keys.table_keys("subj01", "streams")[0]).write_text(
        "0 Unknown\n" + "".join(f"{label} {name}\n" for label, name in enumerate(ROIS, start=1)))
    ids = rng.permutation(np.repeat(np.arange(1, sessions * trials // 3 + 2), 3))[:sessions * trials]
    rows = ["SESSION\tRUN\tTRIAL\t73KID"]
    rows += [f"{1 + trial // trials}\t1\t{1 + trial % trials}\t{stimulus}" for trial, stimulus in enumerate(ids)]
    files.path(object_keys.responses_key("subj01")).write_text("\n".join(rows) + "\n")
    scipy.io.savemat(files.path(object_keys.DESIGN_KEY), {"sharedix": np.arange(1, ids.max() // 2)[None]})
    inside = np.flatnonzero(inside.ravel(order="F"))
    betas = np.empty((trials, len(inside)), np.int16)
    for trial in betas:
        trial[:] = rng.normal(0, 600, len(inside))  # 2% signal change × 300
    whole, packed = (files.path(key("subj01", 1)) for key in (object_keys.betas_hdf5_key, object_keys.betas_key))
    write_hdf5(whole, inside, betas)
    write_nifti(packed, inside, betas)
    for number in range(2, sessions + 1):
        os.link(whole, files.path(object_keys.betas_hdf5_key("subj01", number)))
        os.link(packed, files.path(object_keys.betas_key("subj01", number)))
    return whole, packed


def write_hdf5(path, inside, betas):
    """As NSD's export code: /betas, `h5create(…, 'ChunkSize', [1 1 1 trials])`."""
    x, y, z = SHAPE
    with h5py.File(path, "w") as file:
        data = file.create_dataset("betas", (len(betas), z, y, x), np.int16, chunks=(len(betas), 1, 1, 1))
        for layer in range(z):
            here = (inside >= layer * x * y) & (inside < (layer + 1) * x * y)
            slab = np.zeros((len(betas), x * y), np.int16)
            slab[:, inside[here] - layer * x * y] = betas[:, here]
            data[:, layer] = slab.reshape(-1, y, x)


def write_nifti(path, inside, betas):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((*SHAPE, len(betas)))
    header.set_zooms((1.8, 1.8, 1.8, 1))
    header.set_sform(AFFINE, 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    volume = np.zeros(np.prod(SHAPE), np.int16)
    with igzip.open(path, "wb", compresslevel=3) as file:
        file.write(header.binaryblock + bytes(4))
        for trial in betas:
            volume[inside] = trial
            file.write(volume.tobytes())


@contextlib.contextmanager
def slow_link(folder):
    """Serve the folder behind a slow link, each in a process of its own; yields (URL, function of what passed)."""
    code = ("import sys; from tests import tiny_nsd\n"
            "with tiny_nsd.FaultyS3(sys.argv[1]) as server: print(server.url, flush=True); sys.stdin.read()")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], **pipes) as server:
        with subprocess.Popen([sys.executable, "-m", "tests.slow_link", server.stdout.readline().strip()],
                              **pipes) as link:
            def passed():
                link.stdin.write("\n")
                link.stdin.flush()
                return json.loads(link.stdout.readline())

            try:
                yield link.stdout.readline().strip(), passed
            finally:
                link.stdin.close()
                server.stdin.close()


def measure(url, passed, workdir, flags):
    before = passed()
    wall, used, peak = subjmri.measure([sys.executable, "make_subjmri.py", "--workdir", str(workdir), *flags],
                                       NSD_ROOT=f"s3://{tiny_nsd.BUCKET}", AWS_ENDPOINT_URL_S3=url)
    after = passed()
    return after["received"] - before["received"], after["requests"] - before["requests"], wall, used, peak


def same(one, other):
    """Whether two working folders hold the same arrays, byte for byte."""
    names = sorted(path.relative_to(one) for path in one.rglob("*.npy"))
    return bool(names) and names == sorted(path.relative_to(other) for path in other.rglob("*.npy")) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="also other choices of voxels, and several sessions")
    parser.add_argument("--trials", type=int, default=750, help="of a session (default: 750, as NSD)")
    parser.add_argument("--filled", type=float, default=FILLED, metavar="SHARE",
                        help=f"of the voxels that are not zero (default: {FILLED}, a .nii.gz of 0.5 GB; "
                        f"{subjmri.BRAIN}, the brain alone, of 0.3 GB)")
    args = parser.parse_args()

    choices = [("seven stream ROIs", ["--sessions", "1"])]
    if args.full:
        choices += [("nsdgeneral", ["--sessions", "1", "--atlas", "nsdgeneral"]),
                    ("--ncsnr_min 0.5", ["--sessions", "1", "--ncsnr_min", "0.5"]),
                    ("four sessions", ["--sessions", "4", "--workers", "4"])]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "nsd")
        whole, packed = write_world(folder, 4 if args.full else 1, args.trials, args.filled)
        sizes = {"hdf5": whole.stat().st_size, "nifti": packed.stat().st_size}
        print(f"a session: {SHAPE} × {args.trials} int16, .hdf5 {sizes['hdf5'] / 1e6:,.0f} MB, .nii.gz "
              f"{sizes['nifti'] / 1e6:,.0f} MB\n"
              f"{'':34}{'MB':>8}{'requests':>10}{'wall s':>9}{'CPU s':>8}{'peak MB':>9}")
        with slow_link(folder) as (url, passed):
            for what, flags in choices:
                rows = {}
                for source in ("nifti", "hdf5"):
                    workdir = Path(temporary, what.replace(" ", "_"), source)
                    rows[source] = measure(url, passed, workdir, [*flags, "--source", source])
                    size, requests, wall, used, peak = rows[source]
                    print(f"{f'{what}, {source}':34}{size / 1e6:8.1f}{requests:10,}{wall:9.1f}{used:8.1f}{peak:9.0f}",
                          flush=True)
                verdict(rows, sizes, int(flags[1]), same(workdir.parent / "nifti", workdir))


def verdict(rows, sizes, sessions, equal):
    new, old = rows["hdf5"], rows["nifti"]
    print(f"  {new[0] / sizes['hdf5'] / sessions:.1%} of the .hdf5, {new[0] / old[0]:.2f} of the .nii.gz's bytes, "
          f"{old[2] / new[2]:.1f}× faster, arrays {'equal' if equal else 'DIFFER'}"
          "  (bars for the ROIs: 15%, 0.20, 4×, 600 MB)")
    if not equal:
        raise SystemExit("the two sources gave other arrays")


if __name__ == "__main__":
    main()
