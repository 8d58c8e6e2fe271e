"""Optimisers by name, and the learning rate along training."""

import functools
import inspect
from typing import Any

import equinox as eqx
import numpy as np
import optax

from ntkcollapse._checks import check_choice, check_positive
from ntkcollapse._options import check_options

# The update of Fromage is no multiple of its rate, and the state of noisy_sgd holds a key, which is no array to save.
_LEFT_OUT = ("fromage", "noisy_sgd")


def _offered() -> tuple[str, ...]:
    """Names of optax that make an optimiser from a learning rate, with updates that are linear in it."""
    found = []
    for name in sorted(dir(optax)):
        value = getattr(optax, name)
        if inspect.isfunction(value) and not name.startswith(("_", "scale_by")) and name not in _LEFT_OUT:
            parameters = inspect.signature(value).parameters
            if next(iter(parameters), None) == "learning_rate":
                found.append(name)
    return tuple(found)


OPTIMIZERS = _offered()


def optimizer(
    name: str, *, momentum: float = 0.9, nesterov: bool = True, options: tuple[tuple[str, Any], ...] = ()
) -> optax.GradientTransformation:
    """The optimiser of this name with learning rate 1; `Stepper` multiplies its updates by the rate of the step.

    Equal arguments give the same object, so that runs that differ in learning rate alone compile once. "sgd" takes
    `momentum` and `nesterov`; every other name takes `options` only, as its function in optax names them. "lbfgs" finds
    its step by line search: leave the learning rate at 1.

    Raises:
        ValueError: an unknown name, an option that the optimiser does not have or of another type than its
            function asks for, or a momentum outside [0, 1).
    """
    check_choice("optimizer", name, OPTIMIZERS)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: expected a number in [0, 1), got {momentum}.")
    # The clock of sgd reads its momentum from the settings.
    taken = ("learning_rate", *(("momentum", "nesterov") if name == "sgd" else ()))
    checked = check_options(name, getattr(optax, name), dict(options), taken=taken)
    if name == "sgd":
        checked |= {"momentum": momentum or None, "nesterov": nesterov}
    return _built(name, tuple(sorted(checked.items())))


@functools.cache
def _built(name: str, options: tuple[tuple[str, Any], ...]) -> optax.GradientTransformation:
    rate = () if name == "lbfgs" else (1.0,)
    return getattr(optax, name)(*rate, **dict(options))


class Staircase(eqx.Module):
    """A learning rate multiplied by `factor` after every so many steps.

        η(s) = learning_rate · factor^⌊s / every⌋;  constant where `every` is 0

    Raises:
        ValueError: a learning rate or factor not above zero, or a negative number of steps.
    """

    learning_rate: float = eqx.field(static=True)
    factor: float = eqx.field(static=True, default=1.0)
    every: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        check_positive("learning_rate", self.learning_rate)
        check_positive("factor", self.factor)
        check_positive("every", self.every, zero=True)

    def __call__(self, step: int) -> float:
        """η(step)."""
        return self.learning_rate * self.factor ** (step // self.every if self.every else 0)

    def elapsed(self, step: Any) -> np.ndarray:
        """Σ_{s < step} η(s), for one step or an array of them, at a cost that does not grow with them."""
        step = np.asarray(step)
        if not self.every:
            return np.asarray(self.learning_rate * step)
        stairs, rest = np.divmod(step, self.every)
        whole = stairs if self.factor == 1 else (1 - self.factor**stairs) / (1 - self.factor)
        return np.asarray(self.learning_rate * (self.every * whole + rest * self.factor**stairs))
