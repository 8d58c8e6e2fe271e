"""Writers that are killed at each of their steps, or run into a full disk: in a process of their own."""

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator

Write = Callable[[], object]


def killed_at_each_step(write: Write) -> Iterator[str]:
    """Runs `write` again and again, killed before its first, second, ... call that changes a file; until it ends.

    Yields what it was killed before. The calls: opening, renaming and removing files and folders, waiting for the disk.
    """
    for count in range(1, 200):
        said = _apart(write, lambda count=count: _die_before(count))
        if said is None:
            return
        yield said
    raise AssertionError("a writer that does not end")


def killed_while_writing(write: Write, size: int) -> bool:
    """Runs `write`, killed when any of its files grows beyond so many bytes; whether it was."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return _apart(write, limit) is not None


def said_of_a_full_disk(write: Write, size: int) -> str | None:
    """Runs `write` with no room for more than so many bytes in a file; its OSError, None where it has room enough."""

    def failing():
        try:
            write()
        except OSError as error:
            os.write(_to_parent, str(error).encode())
            os.kill(os.getpid(), signal.SIGKILL)

    # Python ignores the signal: writing fails, as on a full disk.
    return _apart(failing, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))


_to_parent = -1


def _apart(write: Write, prepare: Write) -> str | None:
    """Runs `write` in a forked process; None where it came to its end, what it said before it was killed otherwise."""
    global _to_parent
    ours, _to_parent = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            prepare()
            write()
            status = 0
        finally:
            os._exit(status)
    os.close(_to_parent)
    with os.fdopen(ours) as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        return None
    assert status in (-signal.SIGKILL, -signal.SIGXFSZ), (status, said)
    return said


def _die_before(count: int) -> None:
    steps, fsync = 0, os.fsync

    def step(event, arguments):
        nonlocal steps
        steps += 1
        if steps == count:
            os.write(_to_parent, f"{event} {arguments}".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event, arguments):
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            step(event, arguments)

    def counted(handle):
        step("fsync", handle)
        fsync(handle)

    os.fsync = counted
    sys.addaudithook(audit)
