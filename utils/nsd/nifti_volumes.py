"""NIfTI volumes: single-trial betas as a stream, small volumes whole, and the grid they lie on.

Volumes are returned as (z, y, x) in C order, which is the order of the bytes in a NIfTI file (x fastest).
"""
import io
import math
import zlib
from dataclasses import dataclass

import numpy as np
from isal import igzip, isal_zlib

from utils import lazy
from utils.errors import Problem
from utils.nsd import object_keys

nibabel = lazy.module("nibabel")

VOLUME_LIMIT = 1 << 30  # bytes of an unpacked label or noise-ceiling volume
HEADER = 348  # bytes of a NIfTI-1 header
OFFSET_LIMIT = 1 << 20  # bytes before the data: the header and its extensions
GZIP_FAULTS = (EOFError, igzip.BadGzipFile, isal_zlib.error, zlib.error)


@dataclass(frozen=True)
class Grid:
    """A volume's voxels: shape (x, y, z) and affine (4, 4) to mm, or None where the header declares none."""

    name: str
    shape: tuple
    zooms: tuple
    affine: np.ndarray | None

    @classmethod
    def of(cls, header, name):
        declared = header["sform_code"] > 0 or header["qform_code"] > 0
        try:
            affine = header.get_best_affine() if declared else None
        except (ValueError, nibabel.spatialimages.HeaderDataError) as error:
            raise Problem(f"{name} declares no valid orientation ({error})", object_keys.AGAIN) from error
        return cls(name, header.get_data_shape()[:3], tuple(float(zoom) for zoom in header["pixdim"][1:4]), affine)

    def must_match(self, other):
        """Raises Problem if `other` is another space: shape, voxel size, orientation, or origin by half a voxel."""
        for what, ours, theirs, same in (
            ("shape", self.shape, other.shape, self.shape == other.shape),
            ("voxel size (mm)", self.zooms, other.zooms, np.allclose(self.zooms, other.zooms, rtol=1e-3)),
            ("orientation", *self._placed(other)),
        ):
            if not same:
                raise Problem(f"{self.name} is in another space than {other.name}: {what} {_short(ours)} and "
                              f"{_short(theirs)}", f"use volumes of the same preparation ({object_keys.PREPARATION})")

    def _placed(self, other):
        if self.affine is None or other.affine is None:
            return None, None, True
        half = min(self.zooms) / 2
        same = (np.allclose(self.affine[:3, :3], other.affine[:3, :3], atol=1e-2 * half)
                and np.allclose(self.affine[:3, 3], other.affine[:3, 3], atol=half))
        return self.affine[:3].tolist(), other.affine[:3].tolist(), same


def _short(numbers):
    return np.array2string(np.asarray(numbers), precision=3, separator=", ").replace("\n", "")


class BetaVolumes:
    """The betas of one key, streamed: iterating yields one (z, y, x) int16 array per trial, in trial order.

    Opening reads the header alone. Nothing is kept: a volume is valid until the next is asked for. After the last
    volume the gzip stream must end, with its checksum right. Raises Problem that names the key for whatever is wrong.
    raw: the key's bytes, if they are not to be read as one stream.
    """

    def __init__(self, root, key, raw=None):
        self.key = key
        self.name = root.name(self.key)
        self._raw = root.open(self.key) if raw is None else raw
        self._stream = igzip.open(self._raw, "rb")
        header = header_of(self._read(HEADER), self.name)
        self.count, self._dtype = self._checked(header)
        self.grid = Grid.of(header, self.name)
        self._skip(data_at(header, self.name) - HEADER)

    def _checked(self, header):
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        if len(shape) != 4 or min(shape) < 1:
            raise Problem(f"{self.name} has shape {shape}, not (x, y, z, trials)", object_keys.AGAIN)
        if dtype.newbyteorder("=") != np.int16:
            raise Problem(f"{self.name} is {dtype.name}, not int16", "get NSD's volumes of betas")
        slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
        if slope not in (0, 1) and not np.isnan(slope) or slope == 1 and inter != 0 and not np.isnan(inter):
            raise Problem(f"{self.name} rescales its integers (slope {slope:g}, intercept {inter:g})",
                          object_keys.AGAIN)
        if math.prod(shape[:3]) * dtype.itemsize > VOLUME_LIMIT:
            raise Problem(f"{self.name} has volumes {shape[:3]} of more than {VOLUME_LIMIT >> 20} MiB",
                          object_keys.AGAIN)
        return shape[3], dtype

    def __iter__(self):
        x, y, z = self.grid.shape
        size = x * y * z * 2
        for trial in range(self.count):
            data = self._read(size, f"volume {trial + 1} of {self.count}")
            yield np.frombuffer(data, self._dtype).astype(np.int16, copy=False).reshape(z, y, x)
        if self._read(1, "the end", short=True):
            raise Problem(f"{self.name} goes on after its {self.count} volumes", object_keys.AGAIN)

    def _skip(self, count):
        if count:
            self._read(count)

    def _read(self, count, what="the header", short=False):
        try:
            data = self._stream.read(count)
        except GZIP_FAULTS as error:
            raise Problem(f"{self.name} is truncated or corrupt in {what} ({error})", object_keys.AGAIN) from error
        if len(data) < count and not short:
            raise Problem(f"{self.name} ends in {what}", object_keys.AGAIN)
        return data

    def close(self):
        self._stream.close()
        self._raw.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def beta_volumes(root, subject, session, raw=None):
    """A session's betas, streamed; see BetaVolumes."""
    return BetaVolumes(root, object_keys.betas_key(subject, session), raw)


def header_of(data, name):
    """A NIfTI-1 header of either byte order."""
    try:
        header = nibabel.Nifti1Header(data, check=False)
        if header["sizeof_hdr"] != HEADER or bytes(header["magic"].tobytes())[:3] not in (b"n+1", b"ni1"):
            raise ValueError("no NIfTI-1 header")
        header.get_data_dtype()
        header.get_data_shape()
    except (ValueError, KeyError, nibabel.wrapstruct.WrapStructError, nibabel.spatialimages.HeaderDataError) as error:
        raise Problem(f"{name} is not a NIfTI-1 file ({error})", object_keys.AGAIN) from error
    return header


def read_volume(root, key):
    """A small volume: (z, y, x) array of its stored dtype, scaled if its header says so, and its Grid.

    No more is unpacked than the header's shape takes.
    """
    name = root.name(key)
    content = io.BytesIO(root.read(key))
    try:
        with igzip.open(content, "rb") as stream:
            header = header_of(stream.read(HEADER), name)
            grid, shape, dtype = Grid.of(header, name), header.get_data_shape(), header.get_data_dtype()
            if len(shape) == 4 and shape[3] == 1:
                shape = shape[:3]
            if len(shape) != 3 or min(shape) < 1 or dtype.kind not in "iuf":
                raise Problem(f"{name} has {dtype} of shape {shape}, not numbers (x, y, z)", object_keys.AGAIN)
            size = math.prod(shape) * dtype.itemsize
            if size > VOLUME_LIMIT:
                raise Problem(f"{name} unpacks to more than {VOLUME_LIMIT >> 20} MiB",
                              "check that it is the file it should be")
            stream.read(data_at(header, name) - HEADER)
            data = stream.read(size + 1)
    except GZIP_FAULTS as error:
        raise Problem(f"{name} is truncated or corrupt ({error})", object_keys.AGAIN) from error
    if len(data) != size:
        raise Problem(f"{name} holds {'more' if len(data) > size else 'less'} than its shape {shape} takes",
                      object_keys.AGAIN)
    try:
        slope, inter = header.get_slope_inter()
    except nibabel.spatialimages.HeaderDataError as error:
        raise Problem(f"{name} is not a whole NIfTI-1 file ({error})", object_keys.AGAIN) from error
    values = np.frombuffer(data, dtype).reshape(shape[::-1])
    return nibabel.volumeutils.apply_read_scaling(values, slope, inter), grid


def data_at(header, name):
    """The byte at which the data begin."""
    if not HEADER <= header["vox_offset"] <= OFFSET_LIMIT:
        raise Problem(f"{name} puts its data at byte {header['vox_offset']}", object_keys.AGAIN)
    return int(header["vox_offset"])
