""".npy and new HDF5 files: never unpickled, their room on the disk asked for first."""
import contextlib
import io
import os
import tokenize
import zipfile

import h5py
import numpy as np

from utils import system
from utils.errors import Problem
from utils.storage import writing

NPY_FAULTS = (ValueError, EOFError, TypeError, OverflowError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile)
H5_OVERHEAD = 64 << 10  # bytes beside the data


def write_npy(path, array):
    whole = io.BytesIO()  # numpy writes to a real file past Python, and then cannot say why it failed
    np.save(whole, array, allow_pickle=False)
    with writing.atomic(path) as temporary:
        temporary.write_bytes(whole.getbuffer())


def new_npy(temporary, shape, dtype=np.float32):
    """A memory map of a new .npy file whose room on the disk is reserved:
    writing to a full disk would end in SIGBUS."""
    out = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
    with open(temporary, "rb+") as file:
        system.reserve(file, os.fstat(file.fileno()).st_size)
    return out


@contextlib.contextmanager
def new_h5(temporary, size):
    """A new HDF5 file for about `size` bytes. The room is asked for first: HDF5 crashes when the disk fills up."""
    with open(temporary, "wb") as file:
        system.reserve(file, size + H5_OVERHEAD)
    with h5py.File(temporary, "w") as file:
        yield file


def read_npy(path, mmap=False, made_by=None):
    """An array of numbers; never unpickled. made_by: the command to name when the file is missing.

    It is mapped even to be read whole: a header that promises more than the file holds is then found out before any
    memory is set aside.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf":
            raise ValueError("no array of numbers")
    except FileNotFoundError as error:
        raise Problem(f"{path} is missing", f"run {made_by}" if made_by else "run the stage that writes it") from error
    except NPY_FAULTS as error:
        raise Problem(f"{path} is not a whole .npy file ({error})", "delete it and run its stage again") from error
    return found if mmap else np.array(found)
