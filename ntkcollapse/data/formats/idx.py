"""The idx format of MNIST and Fashion-MNIST: a big-endian header, then the numbers."""

import math
from pathlib import Path

import numpy as np

from ntkcollapse.data.formats.errors import DataFileError
from ntkcollapse.data.formats.packed import opened
from ntkcollapse.data.memory import affordable, spelled

# The third byte of the magic number.
_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: Path | str, *, ndim: int | None = None) -> np.ndarray:
    """The array of an idx file, gzipped (by its content, not its name) or not.

    Args:
        path: the file.
        ndim: number of axes that it must have: 3 for images, 1 for labels.
    Raises:
        DataFileError: not an idx file, one of other axes, one with fewer or more bytes than its header
            says, or than fit into memory.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    with opened(path) as stream:
        head = stream.read(4)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _DTYPES:
            raise DataFileError(path, f"not an idx file: expected a header 00 00 type axes, got {head.hex(' ')!r}.")
        axes = head[3]
        if ndim is not None and axes != ndim:
            raise DataFileError(path, f"expected {ndim} axes ({'images' if ndim == 3 else 'labels'}), got {axes}.")
        lengths = stream.read(4 * axes)
        if len(lengths) < 4 * axes:
            raise DataFileError(path, f"truncated within its header: {4 + len(lengths)} bytes.")
        shape = tuple(int(n) for n in np.frombuffer(lengths, dtype=">u4"))
        dtype = np.dtype(_DTYPES[head[2]])
        size = math.prod(shape) * dtype.itemsize
        told = f"its header says shape {shape}, {spelled(4 + len(lengths) + size)} in all"
        if size > affordable():
            raise DataFileError(path, f"{told}, more than fits into memory ({spelled(affordable())} for one array).")
        raw = stream.read(size)
        # The end is read too: the checksum is there.
        if len(raw) != size or stream.read(1):
            more = "more" if len(raw) == size else f"{4 + len(lengths) + len(raw)} bytes"
            raise DataFileError(path, f"{told}, but it has {more}; get the file again.")
    return np.frombuffer(raw, dtype=dtype).reshape(shape).astype(dtype.newbyteorder("="))
