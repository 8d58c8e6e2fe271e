"""Processes of tests, none of which outlives its test."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def ended(*processes: subprocess.Popen) -> Iterator[None]:
    """Whatever the block does, at its end the processes are gone, and waited for: a failure is not followed by others.

    A process that nobody waits for gives a warning in whichever test the interpreter collects it.
    """
    with ExitStack() as stack:
        for process in processes:
            # Closes its pipes and waits for it, once it has been killed.
            stack.enter_context(process)
            stack.callback(process.kill)
        yield
