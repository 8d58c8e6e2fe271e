"""Bytes of a file that may be gzipped, never more of them than are expected."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ntkcollapse.data.formats.errors import DataFileError, reading
from ntkcollapse.data.memory import affordable, spelled

_CHUNK = 1 << 20


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """The file as a stream, unpacked where it is gzipped (by its content, not its name).

    Raises:
        DataFileError: truncated or corrupt, found when that part is read.
        FileNotFoundError: no such file.
    """
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        with reading(path):
            if packed:
                with gzip.GzipFile(fileobj=file) as stream:
                    yield stream
            else:
                yield file


def unpacked(path: Path) -> bytes:
    """What is in a file, unpacked where it is gzipped.

    Unpacked to its very end, where the checksum is: readers that stop where they have what they look for, as that of
    tar archives, take changed bytes for data.

    Raises:
        DataFileError: truncated, corrupt, or more than fits into memory.
        FileNotFoundError: no such file.
    """
    limit, contents = affordable(), bytearray()
    with opened(path) as stream:
        while chunk := stream.read(_CHUNK):
            contents += chunk
            if len(contents) > limit:
                raise DataFileError(path, f"it has more than {spelled(limit)}, half of the memory that is available.")
    return bytes(contents)
