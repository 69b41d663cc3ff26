"""What a card's memory allows: how many items a forward pass, and which device a ridge is fitted on.

What an item takes is not guessed but tried: `probe` runs the stage's own computation on one blank item, and PyTorch's
allocator says how much more it held at most, kernels' workspaces included. That is taken for every item, though a part
of it is needed only once, so the batch is rather too small than too large.
"""
import gc

from utils import cli, lazy

torch = lazy.module("torch")

SHARE = 0.85  # of the free memory that is planned with; the rest is for what fragmentation and other libraries take

# Bytes a number of the Gram matrix, (voxels, voxels) or, for fewer trials than voxels, (trials, trials), while a ridge
# is fitted. The peak is at the eigenvectors of the last fold, in float64: the matrix, the fold's own, its eigenvectors
# and cuSOLVER's workspace of twice that; in single precision the factors of six folds.
RIDGE_BYTES = 5 * 8 + 6 * 4
RIDGE_TRIAL_BYTES = 2 * 4  # a number of the voxels: held-out trials and sums over stimuli, in single precision
RIDGE_REST = 1 << 30  # blocks of targets and voxels, and the linear-algebra libraries themselves


def free(device):
    """Bytes that can still be allocated on a CUDA device, PyTorch's own unused cache included."""
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def batch(device, auto, probe, sliced=None):
    """Items a forward pass: auto[device.type]; on a CUDA device the largest power of two up to that which it can hold.

    probe: runs the computation for one item. sliced: (another, of one item; the most that it ever takes at once), as
    the VAE has. A power of two, so that a little more or less free memory changes nothing. Says the number where memory
    sets it; 1 is tried even where one item seems too large.
    """
    most = auto[device.type]
    if device.type != "cuda":
        return most
    item = _item_bytes(device, probe)
    part, slice_size = (_item_bytes(device, sliced[0]), sliced[1]) if sliced else (0, 0)
    room = free(device)
    size = 1
    while 2 * size <= most and max(2 * size * item, min(2 * size, slice_size) * part) <= SHARE * room:
        size *= 2
    if size < most:
        cli.say(f"{size} at once: {room / 2 ** 20:,.0f} MiB are free, one takes {max(item, part) / 2 ** 20:,.0f} "
                "(--batch_size sets another number)")
    return size


def _item_bytes(device, probe):
    """Bytes that a computation holds at most beside what was there before."""
    probe()  # the networks are loaded, and the libraries set up, by the first
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    probe()
    return max(1, torch.cuda.max_memory_allocated(device) - before)


def ridge_bytes(n_trials, n_voxels):
    """Bytes of device memory that fitting a `ridge_decoder.Decoder` takes at most."""
    return RIDGE_BYTES * min(n_trials, n_voxels) ** 2 + RIDGE_TRIAL_BYTES * n_trials * n_voxels + RIDGE_REST


def ridge_device(device, n_trials, n_voxels):
    """The device to fit a ridge on: the one asked for, or the CPU, said in one line, where a card is too small."""
    if device.type != "cuda":
        return device
    needed, room = ridge_bytes(n_trials, n_voxels), free(device)
    if needed <= room:
        return device
    cli.say(f"ridge of {n_trials:,} trials × {n_voxels:,} voxels on the CPU: it takes {needed / 2 ** 30:.1f} GiB, the "
            f"card has {room / 2 ** 30:.1f} free")
    return torch.device("cpu")
