"""Numeric arrays of MATLAB's level 5 MAT files, read without trusting the file.

scipy.io.loadmat crashes the process on some damaged files; this reader checks every length. Layout: "MAT-File Format",
The MathWorks, R2019b.
"""
import struct
import zlib

import numpy as np

NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
MATRIX, COMPRESSED = 14, 15
NUMERIC_CLASSES = range(6, 16)  # mxDOUBLE … mxUINT64
COMPLEX = 0x0800
HEADER = 128  # bytes
LIMIT = 1 << 28  # bytes of an unpacked variable


def read(content, names):
    """{name: array} of those real numeric variables of `names` that the file holds.

    content: the file's bytes. Raises ValueError for whatever is not a whole level 5 MAT file.
    """
    if len(content) < HEADER or content[126:128] not in (b"IM", b"MI"):
        raise ValueError("no MAT file of level 5")
    order = "<" if content[126:128] == b"IM" else ">"
    found = {}
    for kind, data in _elements(content[HEADER:], order, padded=False):
        if kind == COMPRESSED:
            kind, data = next(_elements(_unpack(data), order), (None, b""))
        if kind == MATRIX:
            name, values = _matrix(data, order, names)
            if values is not None:
                found[name] = values
    return found


def _unpack(data):
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(data, LIMIT)
    except zlib.error as error:
        raise ValueError(f"corrupt variable ({error})") from error
    if not unpacker.eof:
        raise ValueError("truncated or too large variable")
    return content


def _elements(data, order, padded=True):
    """Yield (type, bytes) of each data element. At the top level compressed elements are not padded to 8 bytes."""
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise ValueError("truncated tag")
        kind, size = struct.unpack_from(order + "II", data, at)
        if kind >> 16:  # small element: size and up to four bytes of data share the tag
            kind, size, start, step = kind & 0xFFFF, kind >> 16, at + 4, 8
            if size > 4:
                raise ValueError("small element that is too large")
        else:
            start, step = at + 8, 8 + size + (-size % 8 if padded or kind != COMPRESSED else 0)
        if start + size > len(data):
            raise ValueError("truncated element")
        yield kind, data[start:start + size]
        at += step


def _matrix(data, order, names):
    """(name, array), the array None for a variable that is not asked for."""
    parts = _elements(data, order)
    try:
        (_, flags), (_, shape), (_, name) = next(parts), next(parts), next(parts)
        name = name.decode("latin-1")
        if name not in names:
            return name, None
        if len(flags) < 4 or len(shape) < 8 or len(shape) % 4:
            raise ValueError(f"{name} has a broken head")
        flags, shape = struct.unpack_from(order + "I", flags)[0], np.frombuffer(shape, order + "i4")
        kind, numbers = next(parts)
    except StopIteration:
        raise ValueError("truncated variable") from None
    if flags & 0xFF not in NUMERIC_CLASSES or flags & COMPLEX or kind not in NUMBERS:
        raise ValueError(f"{name} is not an array of real numbers")
    dtype = np.dtype(order + NUMBERS[kind])
    values = np.frombuffer(numbers, dtype, count=len(numbers) // dtype.itemsize)
    if shape.min() < 0 or np.prod(shape, dtype=object) != values.size:
        raise ValueError(f"{name} has {values.size} numbers, not shape {shape.tolist()}")
    return name, values.reshape(shape, order="F")
