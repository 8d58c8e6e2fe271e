"""Processes of tests, none of which outlives its test."""

import multiprocessing
import os
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["jax", "ntkcollapse.training", "ntkcollapse.ntk", "tests.training.settings"])


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


class Fork:
    """A process that calls a function of a module; it has imported everything, and started nothing.

    It is forked from one that does nothing else: imports take longer than most of what is tested.
    """

    def __init__(self, function: Callable[..., None], *args: Any, **variables: str) -> None:
        """variables: of the environment, beside those of here."""
        handle, name = tempfile.mkstemp()
        os.close(handle)
        self._said = Path(name)
        self._process: BaseProcess = _FORKS.Process(target=_call, args=(name, variables, function, args))
        self._process.start()

    def is_running(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()

    def end(self, timeout: float = 300) -> int:
        """The status with which it ended."""
        self._process.join(timeout)
        status = self._process.exitcode
        assert status is not None, f"still running after {timeout} s"
        return status

    @property
    def said(self) -> str:
        """What it wrote to standard error."""
        return self._said.read_text()

    def __enter__(self) -> "Fork":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self._said.unlink()


def _call(said: str, variables: dict[str, str], function: Callable[..., None], args: tuple[Any, ...]) -> None:
    from jax._src import xla_bridge

    os.dup2(os.open(said, os.O_WRONLY), 2)
    os.environ.update(variables)
    try:
        assert not xla_bridge.backends_are_initialized()
        function(*args)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
