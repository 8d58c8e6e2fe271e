"""Bytes of a file that may be gzipped."""

import gzip
from pathlib import Path

from ntkcollapse.data.formats.errors import reading


def unpacked(path: Path) -> bytes:
    """What is in a file, unpacked where it is gzipped (by its content, not its name).

    Unpacked to its very end, where the checksum is: readers that stop where they have what they look for, as that of
    tar archives, take changed bytes for data.

    Raises:
        DataFileError: truncated or corrupt.
        FileNotFoundError: no such file.
    """
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        return raw
    with reading(path):
        return gzip.decompress(raw)
