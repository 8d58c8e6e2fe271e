"""The idx format of MNIST and Fashion-MNIST: a big-endian header, then the numbers."""

import math
from pathlib import Path

import numpy as np

from ntkcollapse.data.formats.errors import DataFileError
from ntkcollapse.data.formats.packed import unpacked

# The third byte of the magic number.
_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: Path | str, *, ndim: int | None = None) -> np.ndarray:
    """The array of an idx file, gzipped (by its content, not its name) or not.

    Args:
        path: the file.
        ndim: number of axes that it must have: 3 for images, 1 for labels.
    Raises:
        DataFileError: not an idx file, one of other axes, or one with fewer or more bytes than its header says.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    raw = unpacked(path)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _DTYPES:
        raise DataFileError(path, f"not an idx file: expected a header 00 00 type axes, got {raw[:4].hex(' ')!r}.")
    axes = raw[3]
    if ndim is not None and axes != ndim:
        raise DataFileError(path, f"expected {ndim} axes ({'images' if ndim == 3 else 'labels'}), got {axes}.")
    start = 4 + 4 * axes
    if len(raw) < start:
        raise DataFileError(path, f"truncated within its header: {len(raw)} bytes.")
    shape = tuple(int(n) for n in np.frombuffer(raw, dtype=">u4", count=axes, offset=4))
    dtype = np.dtype(_DTYPES[raw[2]])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise DataFileError(
            path, f"its header says shape {shape}, {expected} bytes in all, but it has {len(raw)}; get the file again."
        )
    return np.frombuffer(raw, dtype=dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
