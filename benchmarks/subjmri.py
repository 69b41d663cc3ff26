"""Streaming NSD's betas at real size: memory, speed and disk, against gzip -dc and against loading whole sessions.

Makes sessions of subj01's shape (81, 104, 83) with a brain-shaped region of noise, serves them over S3 on loopback, and
runs make_subjmri.py on them. Time is also given as processor seconds, which other work on the machine changes less.

    python benchmarks/subjmri.py            # 200 volumes a session
    python benchmarks/subjmri.py --full     # 750, as NSD: two minutes more

What two workers can gain is what two processes side by side gain that unpack a session each and do nothing else: on two
threads of one core, or beside other work, less than 2. It is measured in turn with the workers, and so are they.
"""
import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import boto3
import botocore.config
import nibabel
import numpy as np
import psutil
import scipy.io
from isal import igzip

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from utils.nsd import object_keys, s3  # noqa: E402
from utils.storage import provenance  # noqa: E402

SHAPE = (81, 104, 83)  # subj01, func1pt8mm (docs/nsd_formats.md)
BRAIN = 0.32  # share of the volume inside NSD's brain mask, about: 0.22 of 0.70 million voxels
ROIS = {"early": 5917, "midventral": 986, "midlateral": 834, "midparietal": 950, "ventral": 7604, "lateral": 7799,
        "parietal": 3548}  # voxels of subj01 (docs/nsd_formats.md)
SHARED = 1000
BUCKET = "natural-scenes-dataset"


def write_world(folder, sessions, volumes):
    """subj01's files for make_subjmri.py, each session with `volumes` trials; returns the path of one session."""
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    distance = np.sqrt(sum(axis ** 2 for axis in axes))
    brain = np.flatnonzero((distance <= np.quantile(distance, BRAIN)).ravel(order="F"))
    labels = np.zeros(np.prod(SHAPE), np.int16)
    chosen, start = rng.permutation(brain), 0
    for label, size in enumerate(ROIS.values(), start=1):
        labels[chosen[start:start + size]] = label
        start += size
    affine = np.diag([1.8, 1.8, 1.8, 1])
    files = Files(folder)
    atlas = nibabel.Nifti1Image(labels.reshape(SHAPE, order="F"), affine)
    nibabel.save(atlas, files.path(object_keys.atlas_key("subj01", "streams")))
    files.path(object_keys.table_keys("subj01", "streams")[0]).write_text(
        "0 Unknown\n" + "".join(f"{label} {name}\n" for label, name in enumerate(ROIS, start=1)))
    ids = rng.permutation(np.repeat(np.arange(1, sessions * volumes // 3 + 2), 3))[:sessions * volumes]
    rows = ["SESSION\tRUN\tTRIAL\t73KID"]
    rows += [f"{1 + trial // volumes}\t1\t{1 + trial % volumes}\t{stimulus}" for trial, stimulus in enumerate(ids)]
    files.path(object_keys.responses_key("subj01")).write_text("\n".join(rows) + "\n")
    scipy.io.savemat(files.path(object_keys.DESIGN_KEY),
                     {"sharedix": np.arange(1, min(SHARED, ids.max() // 2) + 1)[None]})
    session = files.path(object_keys.betas_key("subj01", 1))
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((*SHAPE, volumes))
    header.set_zooms((1.8, 1.8, 1.8, 1))
    header.set_sform(affine, 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    volume = np.zeros(np.prod(SHAPE), np.int16)
    with igzip.open(session, "wb", compresslevel=2) as file:
        file.write(header.binaryblock + bytes(4))
        for _ in range(volumes):
            volume[brain] = rng.normal(0, 600, len(brain)).astype(np.int16)  # 2% signal change × 300
            file.write(volume.tobytes())
    for number in range(2, sessions + 1):
        os.link(session, files.path(object_keys.betas_key("subj01", number)))
    return session


class Files:
    def __init__(self, folder):
        self.folder = Path(folder)

    def path(self, key):
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@contextlib.contextmanager
def serving(folder):
    """A loopback S3 server with the folder's files, in a process of its own; yields its URL."""
    code = ("from moto.server import ThreadedMotoServer; import time\n"
            "server = ThreadedMotoServer(port=0, verbose=False); server.start()\n"
            "print(server.get_host_and_port()[1], flush=True); time.sleep(1e6)")
    process = subprocess.Popen([sys.executable, "-c", code], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="x",
                              aws_secret_access_key="x", config=botocore.config.Config(read_timeout=600))
        client.create_bucket(Bucket=BUCKET, ACL="public-read")
        for key, _ in s3.Folder(folder).list():
            client.upload_file(str(folder / key), BUCKET, key, ExtraArgs={"ACL": "public-read"})
        yield url
    finally:
        process.terminate()
        process.wait()


def measure(command, **environment):
    """(wall seconds, processor seconds, peak memory in MB) of a command with its children."""
    before, start = os.times(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT,
                               env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, text=True)
    errors = []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))
    reader.start()
    peak = 0
    while process.poll() is None:
        peak = max(peak, _memory(process.pid))
        time.sleep(0.02)
    reader.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed: {errors[0][-2000:]}")
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, used, peak / 1e6


def _memory(pid):
    total = 0
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.NoSuchProcess:
        return total  # it ended while it was looked at
    return total


def side_by_side(sessions, processes):
    """Wall seconds of unpacking so many times a session, by so many processes at a time, with the library of ours."""
    code = "import sys; from isal import igzip; file = igzip.open(sys.argv[1])\nwhile file.read(1 << 20): pass"
    start = time.perf_counter()
    for first in range(0, len(sessions), processes):
        running = [subprocess.Popen([sys.executable, "-c", code, session])
                   for session in sessions[first:first + processes]]
        if any(process.wait() for process in running):
            raise SystemExit("unpacking a session failed")
    return time.perf_counter() - start


def workers(folder, temporary, sessions, repeats, environment, where):
    """Print what two workers gain over one, and what is to be gained; the fastest of a few, in turn, counts.

    environment: of make_subjmri.py, to find the sessions. Raises SystemExit if the artifacts differ.
    """
    paths = [str(Path(folder, object_keys.betas_key("subj01", number))) for number in range(1, sessions + 1)]
    ours, unpacking, found = {1: [], 2: []}, {1: [], 2: []}, []
    for repeat in range(repeats):
        for count in (1, 2):
            workdir = Path(temporary, f"{where}{count}{repeat}")
            wall, used, peak = measure([sys.executable, "make_subjmri.py", "--workdir", str(workdir),
                                        "--workers", str(count), "--sessions", str(sessions)], **environment)
            ours[count].append((wall, used, peak))
            unpacking[count].append(side_by_side(paths, count))
            found.append({path.name: provenance.digest(path) for path in workdir.rglob("*.npy")})
            shutil.rmtree(workdir)
    if any(each != found[0] for each in found):
        raise SystemExit("the artifacts of one worker and of two differ")
    (one, _, alone), (two, _, both) = min(ours[1]), min(ours[2])
    most = min(unpacking[1]) / min(unpacking[2])
    print(f"{where}, {sessions} sessions: --workers 1 {one:.1f} s, {alone:.0f} MB; --workers 2 {two:.1f} s, "
          f"{both:.0f} MB: {one / two:.2f}×; two processes that only unpack gain {most:.2f}×", flush=True)


def size_of(folder):
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="750 volumes a session, as NSD")
    parser.add_argument("--sessions", type=int, default=4, help="sessions of the longer runs (default: 4)")
    parser.add_argument("--repeats", type=int, default=2, help="runs with one worker and with two (default: 2)")
    args = parser.parse_args()
    if args.sessions < 2:
        parser.error("--sessions must be at least 2: what a further session takes is the difference to one")
    volumes = 750 if args.full else 200

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "nsd")
        session = write_world(folder, args.sessions, volumes)
        raw = np.prod(SHAPE) * 2 * volumes / 1e6
        print(f"a session: {SHAPE} × {volumes} int16, {raw:,.0f} MB, {session.stat().st_size / 1e6:,.0f} MB compressed")
        with serving(folder) as url:
            rows = [("gzip -dc > /dev/null", 1, *measure(["gzip", "-dc", str(session)]), 0)]
            load = f"import nibabel, numpy; numpy.asarray(nibabel.load({str(session)!r}).dataobj)"
            rows.append(("nibabel, whole session in memory", 1, *measure([sys.executable, "-c", load]), raw))
            over_s3 = {"NSD_ROOT": f"s3://{BUCKET}", "AWS_ENDPOINT_URL_S3": url}
            for sessions in (1, args.sessions):
                workdir = Path(temporary, f"out{sessions}")
                taken = measure([sys.executable, "make_subjmri.py", "--workdir", str(workdir),
                                 "--sessions", str(sessions)], **over_s3)
                rows.append(("make_subjmri.py over S3", sessions, *taken, size_of(workdir)))
            workers(folder, temporary, args.sessions, args.repeats, over_s3, "over S3")
        workers(folder, temporary, args.sessions, args.repeats, {"NSD_ROOT": str(folder)}, "local folder")

    print(f"{'':36}{'sessions':>9}{'wall s':>9}{'CPU s':>9}{'MB/s wall':>11}{'MB/CPU s':>10}{'peak MB':>9}"
          f"{'disk MB':>9}")
    for name, sessions, wall, used, peak, disk in rows:
        print(f"{name:36}{sessions:9}{wall:9.1f}{used:9.1f}{raw * sessions / wall:11.0f}{raw * sessions / used:10.0f}"
              f"{peak:9.0f}{disk:9.0f}")
    one, more = rows[2], rows[3]
    wall, used = ((more[column] - one[column]) / (args.sessions - 1) for column in (2, 3))
    print(f"a further session takes {wall:.1f} s, {used:.2f} processor s: {raw / used:,.0f} MB a processor second, "
          f"{rows[0][3] / used:.1f}× gzip -dc (bar: 1×)\n"
          f"peak with one worker {max(one[4], more[4]):.0f} MB (bar: 600 MB); "
          f"40 sessions of 750 at this rate: {wall / volumes * 750 * 40 / 60:.0f} min with one worker")


if __name__ == "__main__":
    main()
