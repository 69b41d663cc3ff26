"""What this machine does in a second, by short measured probes; what it has of memory, disk and GPU."""
import os
import shutil
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from utils import cli, lazy
from utils.models import architectures, checkpoints, loading
from utils.storage import text_files

torch = lazy.module("torch")

PRODUCT = 2_048         # rows of the matrices whose product is timed
DISK = 128 << 20        # bytes that are written
QUICK = 5.0             # s: a UNet step that takes less is timed again, warm
FEW = 1.3               # memory that the UNet's step takes, as a multiple of its weights
ASSUMED_UNET = 0.7      # of the rate of products, where the UNet does not fit into memory
# What `processor` was where the plain seconds of utils/pipeline/costs.py were taken.
REFERENCE_PROCESSOR = 27e6


@dataclass(frozen=True)
class Machine:
    """float32, float64: floating-point operations a second of large matrix products. network: of one guided UNet step,
    in the precision that --precision auto chooses. write: bytes a second that reach the disk. processor: bytes a second
    that one core deflates, for all that is plain code. memory, disk: bytes that are free; gpu: of the card's memory,
    None without one. cores. device, dtype: as named in records. notes: what was assumed.
    """

    float32: float
    float64: float
    network: float
    write: float
    processor: float
    memory: int
    disk: int
    gpu: int | None
    cores: int
    device: str
    dtype: str
    notes: tuple = ()

    @property
    def plain(self):
        """Seconds here of a second of plain code where the costs were taken."""
        return REFERENCE_PROCESSOR / self.processor


def probe(workdir, gpu):
    """The Machine that this is; some 10 s, longer where a UNet step takes longer."""
    device = cli.device(gpu)
    dtype = loading.precision("auto", device)
    with cli.progress(desc="measuring this machine", total=5, unit="probe", leave=False) as bar:
        found = {}
        for name, measure in (("float32", lambda: products(np.float32)), ("float64", lambda: products(np.float64)),
                              ("write", lambda: written(workdir)), ("processor", deflated)):
            found[name] = measure()
            bar.update()
        rate, notes = unet(device, dtype, found["float32"])
        bar.update()
    return Machine(**found, network=rate, memory=psutil.virtual_memory().available,
                   disk=shutil.disk_usage(_existing(workdir)).free,
                   gpu=torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None, cores=os.cpu_count() or 1,
                   device=device.type, dtype=loading.dtype_name(dtype), notes=notes)


def _existing(folder):
    folder = Path(folder).resolve()
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def products(dtype):
    """Floating-point operations a second of a large product on the CPU, as torch does it."""
    size = PRODUCT if dtype == np.float32 else PRODUCT // 2
    one = torch.from_numpy(np.random.default_rng(0).standard_normal((size, size)).astype(dtype))
    one @ one
    return 2 * size ** 3 / _seconds(lambda: one @ one, 3)


def written(folder):
    """Bytes a second of a file that is written and flushed to the disk of `folder`."""
    piece = np.random.default_rng(0).bytes(1 << 20)

    def write():
        with tempfile.TemporaryFile(dir=_existing(folder)) as file:
            for _ in range(DISK >> 20):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    return DISK / _seconds(write, 1)


def deflated():
    """Bytes a second that one core packs as PNG does."""
    smooth = (np.add.outer(np.arange(1_024), np.arange(1_024)) // 3 % 256).astype(np.uint8)
    noisy = (smooth + np.random.default_rng(0).integers(0, 8, smooth.shape, np.uint8)).tobytes()
    return len(noisy) / _seconds(lambda: zlib.compress(noisy, 6), 3)


def unet(device, dtype, float32):
    """(operations a second of one guided step of the UNet, notes). Its weights are zeros: a step takes as long."""
    weights = architectures.of(architectures.WEIGHTS, "unet")
    needed = FEW * weights * torch.finfo(dtype).bits // 8
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        return ASSUMED_UNET * float32, (f"the UNet's {needed / 1e9:.1f} GB do not fit into the {free / 1e9:.1f} GB "
                                        "that are free: its speed is guessed from matrix products",)
    from diffusers import UNet2DConditionModel

    config = architectures.UNET
    if checkpoints.simulated():
        config = text_files.read_json(checkpoints.folder("sd", "unet") / "unet" / "config.json")
    with torch.device("meta"):
        network = UNet2DConditionModel.from_config(config)
    for each in network.parameters():
        each.data = each.data.to(dtype)
    network = network.to_empty(device=device).eval().requires_grad_(False)
    for each in (*network.parameters(), *network.buffers()):
        each.zero_()
    told = torch.zeros(2, 77, network.config.cross_attention_dim, device=device, dtype=dtype)

    @torch.inference_mode()
    def step(side):
        latents = torch.zeros(2, network.config.in_channels, side, side, device=device, dtype=dtype)
        network(latents, torch.tensor(500, device=device), encoder_hidden_states=told).sample.sum().item()
    step(2 ** len(network.config.block_out_channels))  # the libraries set themselves up
    side = network.config.sample_size
    seconds = _seconds(lambda: step(side), 1)
    if seconds < QUICK:
        seconds = _seconds(lambda: step(side), 2)
    return 2 * architectures.of(architectures.OPERATIONS, "unet") / seconds, ()


def _seconds(function, repeats):
    """Of the fastest of some calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)
