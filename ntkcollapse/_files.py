"""Files that are there whole or not at all."""

import errno
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def user_cache() -> Path:
    """The folder of this package in the user's cache folder: $XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ntkcollapse"


@contextmanager
def replacing(file: Path, mark: str | None = None, *, new: bool = False) -> Iterator[Path]:
    """A path beside `file` to write to, which takes its place when the block ends without an error, and goes otherwise.

    Whoever reads `file` meanwhile, or after the process was killed, finds the old one. What was written is on the disk
    before it takes the place of `file`, and the new name before the block is left: a machine that loses its power has
    the old file or the new one. Permissions are those of any file that the user makes. An `OSError` of the block
    names `file`, where the system names none: of a full disk.

    mark: in the name of the path, for files that have one writer: what a killed process left of it is then written
        over by the next, where names of their own, the default, would pile up until `remove_leftovers`.
    new: whether a file that is there by then stays, and what was written goes.

    Raises:
        FileExistsError: with `new`, somebody else was faster.
    """
    part = file.with_name(f".{file.stem}-{mark or uuid.uuid4().hex[:8]}{file.suffix}")
    try:
        yield part
        _to_disk(part)
        _link(part, file) if new else os.replace(part, file)
        _to_disk(file.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(file)
        raise
    finally:
        part.unlink(missing_ok=True)


def _link(part: Path, file: Path) -> None:
    """Gives what was written its name, unless that is taken: of two who do, one fails."""
    try:
        os.link(part, file)
    except FileExistsError:
        raise
    except OSError:
        # A file system without links.
        if file.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(file)) from None
        os.replace(part, file)


def remove_leftovers(folder: Path, files: str, *, idle: float = 0) -> None:
    """Removes what killed processes left in a folder of the files that match `files` while they wrote them.

    idle: for files that somebody may be writing now: only what nobody has written to for so many seconds.
    """
    name = re.compile(r"\.(?P<stem>.+)-([0-9a-f]{8}|part\d*)(?P<suffix>\.\w+)")
    for part in folder.iterdir() if folder.is_dir() else ():
        of = name.fullmatch(part.name)
        if of and re.fullmatch(files, of["stem"] + of["suffix"]) and part.is_file():
            with suppress(FileNotFoundError):
                if time.time() - part.stat().st_mtime >= idle:
                    part.unlink()


def _to_disk(path: Path) -> None:
    """Waits until a file's bytes, or the names in a folder, have reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
