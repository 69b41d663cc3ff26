"""Stages as processes that can be killed at any moment: forked from a server that has imported the libraries
already."""
import ctypes
import hashlib
import io
import json
import multiprocessing
import os
import resource
import runpy
import signal
import sys
from pathlib import Path
from unittest import mock

from tests import tiny_nsd

ROOT = Path(__file__).resolve().parent.parent
SUBJECT = "subj01"
LIBRARIES = [
    "boto3", "nibabel", "scipy.io", "scipy.ndimage", "torchvision.models.feature_extraction",
    "diffusers.models.autoencoders.autoencoder_kl", "diffusers.models.unets.unet_2d_condition",
    "diffusers.schedulers.scheduling_ddim", "matplotlib.backends.backend_pdf",
    "transformers.models.bert.tokenization_bert", "transformers.models.blip.image_processing_blip",
    "transformers.models.blip.modeling_blip",
    "transformers.models.clip.modeling_clip", "transformers.models.dpt.image_processing_dpt",
    "transformers.models.dpt.modeling_dpt", "utils.generate.captioning", "utils.generate.depth_maps",
    "utils.generate.gan_inversion", "utils.generate.reconstruction", "utils.evaluate.network_features",
    "utils.features.subjstim", "utils.nsd.mrifeat", "utils.occlusion.occluders", "utils.report.figures",
    "utils.ridge.combine_rois", "utils.ridge.fit_targets"]
IMAGES, SIDE = 104, 24
NO_DISK = 77
START = multiprocessing.get_context("forkserver")
START.set_forkserver_preload(LIBRARIES)


def build_world(folder):
    """subj01 of `tiny_nsd` with everything that the stages read: stimuli and COCO's captions, of random numbers."""
    tiny_nsd.build(folder)
    tiny_nsd.build_stimuli(folder, IMAGES, SIDE)
    info = "".join(f"{stimulus},{1000 + stimulus},train2017\n" for stimulus in range(IMAGES))
    tiny_nsd.put(folder, tiny_nsd.INFO, f"nsdId,cocoId,cocoSplit\n{info}".encode())
    said = [{"image_id": 1000 + stimulus, "id": stimulus, "caption": f"ball {stimulus} on a hill"}
            for stimulus in range(IMAGES)]
    for split, captions in (("train2017", said), ("val2017", [])):
        tiny_nsd.put(folder, f"nsddata_stimuli/stimuli/nsd/annotations/captions_{split}.json",
                     json.dumps({"annotations": captions}).encode())
    return folder


class Run:
    """One stage, started in a working folder. kill_at: at which of its renames it dies, and on which side of it."""

    def __init__(self, command, workdir, world, kill_at=None, **settings):
        environment = ({"NSD_ROOT": str(world), "NSD_MODELS": "tiny", "OMP_NUM_THREADS": "1"}
                       | settings.pop("environment", {}))
        script, *flags = map(str, command)
        argv = [str(ROOT / script), *flags, "--workdir", str(workdir)]
        self._said, reply = START.Pipe(duplex=False)
        self.process = START.Process(target=_stage, args=(argv, environment, reply, kill_at, settings))
        with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):  # for the server, which the first run starts
            self.process.start()
        reply.close()

    def kill(self):
        self.process.kill()

    def wait(self, timeout=120):
        """(exit status, stdout, stderr, renames made); status -9 for a killed stage."""
        assert self._said.poll(timeout), "the stage hangs"
        try:
            said = self._said.recv()
        except EOFError:  # it was killed
            said = ("", "", 0)
        self.process.join()
        return self.process.exitcode, *said


def run(command, workdir, world, expect=0, **settings):
    """Run a stage to its end; returns (stdout, stderr, renames made)."""
    status, out, err, renames = Run(command, workdir, world, **settings).wait()
    assert status == expect, err
    return out, err, renames


def _stage(argv, environment, reply, kill_at, settings):
    multiprocessing.set_start_method("fork", force=True)  # else tqdm's lock outlives a killed stage
    os.environ.update(environment)
    os.chdir(ROOT)
    out, err, count = io.StringIO(), io.StringIO(), [0]
    sys.argv, sys.stdout, sys.stderr = argv, out, err
    _count_renames(count, kill_at)
    if settings.get("shard"):
        from utils.features import extraction
        from utils.occlusion import occluded_stimuli
        extraction.SHARD, occluded_stimuli.PART_IMAGES = settings["shard"], 10 * settings["shard"]
    if settings.get("file_size"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (settings["file_size"],) * 2)
    if settings.get("disk"):
        _mount(*settings["disk"])
    if settings.get("unprivileged") and os.geteuid() == 0:
        _obey_permissions()
    status, leave, os._exit = 0, os._exit, sys.exit  # so that what was said still goes home
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as stop:
        status = stop.code or 0
    reply.send((out.getvalue(), err.getvalue(), count[0]))
    leave(status)


def _mount(folder, size):
    """A disk of `size` bytes at `folder` that this process alone sees;
    exit status NO_DISK where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    system = ctypes.CDLL(None, use_errno=True)
    new_namespace, private = 0x20000, 0x44000  # CLONE_NEWNS; MS_REC | MS_PRIVATE
    if (system.unshare(new_namespace) or system.mount(b"none", b"/", None, private, None)
            or system.mount(b"none", bytes(folder), b"tmpfs", 0, f"size={size}".encode())):
        os._exit(NO_DISK)


def _obey_permissions():
    """Take from root the capabilities by which it may read and write any file (CAP_DAC_OVERRIDE,
    CAP_DAC_READ_SEARCH)."""
    system = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert system.capget(header, sets) == 0
    for which in range(3):
        sets[which] &= ~0b110
    assert system.capset(header, sets) == 0


def _count_renames(count, kill_at):
    replace = os.replace

    def counted(*names):
        count[0] += 1
        if kill_at == (count[0], "before"):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*names)
        if kill_at == (count[0], "after"):
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = counted


def contents(folder):
    """{name: digest} of every file below a working folder but locks; leftovers of killed stages included."""
    return {path.relative_to(folder).as_posix(): hashlib.md5(path.read_bytes()).hexdigest()
            for path in sorted(Path(folder).rglob("*")) if path.is_file() and path.suffix != ".lock"}


def finished(folder):
    """{path: (inode, time)} of the finished artifacts: what no later run may make again."""
    found = {}
    for path in Path(folder).rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.suffix != ".json":
            stat = path.stat()
            found[path] = (stat.st_ino, stat.st_mtime_ns)
    return found
