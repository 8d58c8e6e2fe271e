"""Partial results of long work in a folder, from which it is taken up again."""

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from ntkcollapse._checks import check_path
from ntkcollapse._files import remove_leftovers
from ntkcollapse.checkpoints import load_arrays, save_arrays
from ntkcollapse.ntk._problem import Problem, one_like

_SECONDS_BETWEEN_SAVES = 60.0
# Of the time, what may go into saving.
_SHARE = 0.05
# Seconds after which a file that nobody has written to is what a killed process left.
_IDLE = 60.0


class PartialResults:
    """Named lists of arrays with a count of what is done; each a file, written to one side and moved into place.

    Nothing is written where `folder` is None. `fingerprint` tells the work of these files from any other. All
    processes write the same numbers, each under a name of its own until the file is whole, when the first one says so.
    """

    def __init__(self, folder: str | Path | None, fingerprint: Callable[[], str]):
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        check_path("checkpoint", self.folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise FileExistsError(f"checkpoint: expected a folder, {folder} is a file; give another name.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._fingerprint = fingerprint()
        self._last = time.monotonic()
        self._took = 0.0

    def load(self, name: str) -> tuple[int, list[np.ndarray]]:
        """(how much is done, arrays), or (0, []) where there is nothing yet.

        Raises:
            ValueError: the file is of other work, or cannot be read.
        """
        path = self._path(name)
        done, arrays = 0, []
        if self.folder is not None:
            remove_leftovers(self.folder, re.escape(f"{name}.npz"), idle=_IDLE)
        if path is not None and path.exists():
            try:
                saved, notes = load_arrays(path)
            except (OSError, ValueError) as error:
                raise ValueError(f"checkpoint: {path} cannot be read ({error}); remove it to start anew.") from error
            done, arrays = int(notes["done"]), list(saved.values())
            if notes["fingerprint"] != self._fingerprint:
                raise ValueError(
                    f"checkpoint: {path} holds partial results of another computation (another function, other "
                    "parameters, samples or settings, to which `memory` belongs: its default follows what is free); "
                    "give another folder, or remove it."
                )
        if path is not None and of_first_process(done) != done:
            raise ValueError(f"checkpoint: {path} must be the same for all processes; give a folder that they share.")
        return done, arrays

    def save(self, name: str, done: int, arrays: Callable[[], Sequence[Any]], *, at_once: bool = False) -> None:
        """Writes where the last time was long ago."""
        path = self._path(name)
        if path is None:
            return
        wait = max(_SECONDS_BETWEEN_SAVES, self._took / _SHARE)
        if not (at_once or of_first_process(time.monotonic() - self._last > wait)):
            return
        began = time.monotonic()
        named = {str(i): array for i, array in enumerate(arrays())}
        notes = {"fingerprint": self._fingerprint, "done": done}
        # Each under a name of its own: several processes may do the same work, on a cluster or by mistake.
        save_arrays(path, named, notes, mark=None)
        self._last = time.monotonic()
        self._took = self._last - began

    def remove(self, *names: str) -> None:
        """The files are of no use once the work is done."""
        for name in names:
            path = self._path(name)
            if path is not None:
                path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}.npz"


def fingerprint(problem: Problem, samples: Sequence[Any], *settings: Any) -> str:
    """A digest of f as JAX sees it, and of all numbers and settings that the result depends on."""

    def with_gradient(params, x):
        # Rules of differentiation of f's own are functions in its trace: only the gradient shows what they do.
        outputs, pullback = jax.vjp(lambda params: problem.f(params, x), params)
        return outputs, pullback(jnp.ones_like(outputs))

    traced = jax.make_jaxpr(with_gradient)(problem.params, one_like(samples[0]))
    digest = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", str(traced)).encode())
    for value in [*_arrays_in(traced), *jax.tree.leaves(eqx.filter(problem, eqx.is_array)), *samples]:
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        array = np.ascontiguousarray(np.asarray(value))
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    digest.update(repr(settings).encode())
    return digest.hexdigest()


def _arrays_in(part: Any) -> Iterator[Any]:
    """Arrays that a trace and the functions called in it hold: its text shows their shapes, not their numbers."""
    if isinstance(part, ClosedJaxpr | Jaxpr):
        # In newer versions of JAX both are one class.
        yield from getattr(part, "consts", ())
        for eqn in part.eqns:
            yield from (v.val for v in eqn.invars if isinstance(v, Literal))
            for name in sorted(eqn.params):
                yield from _arrays_in(eqn.params[name])
    elif isinstance(part, list | tuple):
        for value in part:
            yield from _arrays_in(value)
    elif isinstance(part, np.ndarray | jax.Array):
        yield part


def of_first_process(value):
    """What the first process has: clocks differ, and all must do the same."""
    if jax.process_count() == 1:
        return value
    return type(value)(multihost_utils.broadcast_one_to_all(np.asarray(value)))
