"""Pictures between files, arrays and networks; prefetching them while a network computes."""
import concurrent.futures
import struct
import zlib

import numpy as np
from PIL import ExifTags, Image

from utils import lazy
from utils.errors import Problem

torch = lazy.module("torch")

SAMPLE_SIZE = 512  # px; every reconstruction is saved at Stable Diffusion's size
READERS = 4
LARGEST = 8192  # px a side of a picture that is read; samples have 512
ORIENTATION = ExifTags.Base.Orientation
FAULTS = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError,
          MemoryError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError)


def resize(image, size, resample=Image.Resampling.LANCZOS):
    """(H, W, 3) uint8 → (size, size, 3) uint8; Lanczos as Takagi & Nishimoto's preprocessing."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), resample=resample))


def to_network(images, size):
    """(n, H, W, 3) uint8 → (n, 3, size, size) float32 in [-1, 1]."""
    resized = np.stack([resize(image, size) for image in images])
    return torch.from_numpy(resized).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_processor(images, size, processor):
    """(n, H, W, 3) uint8 → (n, 3, size, size) float32, resized and normalised as a transformers image processor
    says."""
    resample = Image.Resampling(int(processor.resample))
    resized = np.stack([resize(image, size, resample) for image in images])
    mean, sd = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    return torch.from_numpy(resized).permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(sd)


def to_pixels(tensor, size=SAMPLE_SIZE):
    """(n, 3, h, w) in [-1, 1] → (n, size, size, 3) uint8, bicubic."""
    levels = tensor.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return np.stack([resize(image, size, Image.Resampling.BICUBIC) for image in levels])


def load(path, modes=("RGB",), side=None):
    """A picture file → (H, W, 3) uint8 (or (H, W) for mode L, where `modes` has it).

    Raises Problem for what is not a whole upright 8-bit picture of one of `modes`, side × side px if that is given:
    nothing is converted, cropped, scaled or turned unseen.
    """
    try:
        with Image.open(path) as image:
            if max(image.size) > LARGEST:
                raise Problem(f"{path} is {image.size[0]}×{image.size[1]} px", f"give at most {LARGEST} px a side")
            if side not in (None, image.size[0]) or side not in (None, image.size[1]):
                raise Problem(f"{path} is {image.size[0]}×{image.size[1]} px, not {side}×{side}",
                              "delete it and run its stage again")
            if image.mode not in modes:
                raise Problem(f"{path} is {image.mode}, not {' or '.join(modes)}", "save it as 8-bit RGB")
            if ";16" in str(image.tile):
                raise Problem(f"{path} has 16 bits a channel", "save it as 8-bit RGB")
            if image.getexif().get(ORIENTATION, 1) != 1:
                raise Problem(f"{path} is turned by its EXIF orientation", "save it upright")
            return np.asarray(image)
    except FAULTS as error:
        raise Problem(f"{path} is not a whole picture ({error})", "delete it and run its stage again") from error


def prefetch(read, items, ahead=2):
    """Yield (item, read(item)) in order, reading `ahead` items while the caller computes."""
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        pending = []
        for item in items:
            pending.append((item, pool.submit(read, item)))
            if len(pending) > ahead:
                item, future = pending.pop(0)
                yield item, future.result()
        for item, future in pending:
            yield item, future.result()
