"""Files that are there whole or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to, which takes its place when the block ends without an error, and goes otherwise.

    Whoever reads `file` meanwhile, or after the process was killed, finds the old one. Permissions are those of any
    file that the user makes.
    """
    part = file.with_name(f".{file.stem}-{uuid.uuid4().hex[:8]}{file.suffix}")
    try:
        yield part
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
