"""Files that are there whole or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(file: Path, mark: str | None = None) -> Iterator[Path]:
    """A path beside `file` to write to, which takes its place when the block ends without an error, and goes otherwise.

    Whoever reads `file` meanwhile, or after the process was killed, finds the old one. Permissions are those of any
    file that the user makes.

    mark: in the name of the path, for files that have one writer: what a killed process left of it is then written
        over by the next, where names of their own, the default, would pile up.
    """
    part = file.with_name(f".{file.stem}-{mark or uuid.uuid4().hex[:8]}{file.suffix}")
    try:
        yield part
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
