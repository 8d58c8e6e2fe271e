"""The clock that turns optimiser steps into flow time, and learning rates that fall in stairs."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import numpy as np

from ntkcollapse._checks import check_choice, check_positive
from ntkcollapse.classes import Classes


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


class Clock(eqx.Module):
    """Flow time of optimiser steps, in units of the loss ½‖R‖² summed over the data set.

        t(step) = scale · Σ_{s < step} learning_rate(s) / (1 − momentum)

    A step of gradient descent on loss · scale moves parameters as the flow moves them in a time of
    learning_rate · scale. For the mean over samples and outputs of half the squared error scale = 1/(N C). With heavy
    ball or Nesterov momentum β the effective step is longer by 1/(1 − β): exact in the limit of small steps, after a
    start of about 1/(1 − β) steps. It stops being true for modes faster than `fastest_mode`, which oscillate instead of
    decaying (`mode_rate` is exact for every mode). Mini-batches change nothing here, as long as every sample comes
    equally often (`Batches.represent_all`): N is that of the data set.

    Optimisers that rescale gradients (Adam and its kin, sign descent) have no such clock: their steps do not follow the
    gradient flow of the loss, at any speed. `Clock.of_optimizer` says so.

    Args:
        learning_rate: constant, or a schedule: step ↦ learning rate.
        scale: of the loss that the optimiser sees, against ½‖R‖² summed.
        momentum: β in [0, 1).
        nesterov: Nesterov's form of the momentum; the clock is the same, its limits are not.

    Raises:
        ValueError: a learning rate or scale not above zero, or β outside [0, 1).

    >>> clock = Clock(learning_rate=0.5, scale=1 / 100, momentum=0.9)
    >>> float(clock.time(200).round(6))
    10.0
    """

    learning_rate: float | Callable = eqx.field(static=True)
    scale: float = 1.0
    momentum: float = 0.0
    nesterov: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if not callable(self.learning_rate):
            check_positive("learning_rate", self.learning_rate)
        check_positive("scale", self.scale)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: expected a number in [0, 1), got {self.momentum}.")

    @classmethod
    def of_loss(
        cls, loss: str, classes: Classes, *, learning_rate, momentum: float = 0.0, nesterov: bool = False
    ) -> "Clock":
        """The clock of "sum" (½‖R‖²), "mean" (over N samples and C outputs) or "sample-mean" (over N samples)."""
        N, C = classes.num_samples, classes.num_classes
        scales = {"sum": 1.0, "mean": 1.0 / (N * C), "sample-mean": 1.0 / N}
        check_choice("loss", loss, scales)
        return cls(learning_rate=learning_rate, scale=scales[loss], momentum=momentum, nesterov=nesterov)

    @classmethod
    def of_optimizer(cls, name: str, loss: str, classes: Classes, *, learning_rate, **options) -> "Clock":
        """The clock of an optimiser by its name: "sgd" (full batch or mini-batches, momentum in `options`).

        Raises:
            ValueError: any other name: it has no clock.
        """
        if name != "sgd":
            raise ValueError(
                f"optimizer: expected 'sgd', whose steps follow the gradient flow, got {name!r}: no clock can be "
                "derived for an optimiser that rescales or replaces gradients. Compare at equal loss instead."
            )
        return cls.of_loss(loss, classes, learning_rate=learning_rate, **options)

    def time(self, step) -> np.ndarray:
        """Flow time after this many steps (an integer, or an array of them)."""
        step = np.asarray(step)
        check_positive("step", step, zero=True)
        if isinstance(self.learning_rate, Staircase):
            elapsed = self.learning_rate.elapsed(step)
        elif callable(self.learning_rate):
            rates = [float(self.learning_rate(s)) for s in range(int(step.max(initial=0)))]
            elapsed = np.concatenate([[0.0], np.cumsum(rates)])[step]
        else:
            elapsed = step * float(self.learning_rate)
        return np.asarray(elapsed * self.scale / (1 - self.momentum))

    def decay_rate(self, weight_decay: float, *, decoupled: bool = False) -> float:
        """λ of the flow, ẇ = … − λ w, that a weight decay amounts to, in units of 1/flow time.

        A penalty wd/2 ‖w‖² in the loss is λ = wd / scale, with or without momentum: N C wd for the mean loss. Decoupled
        decay, w ← (1 − learning_rate wd) w beside the step, does not pass through the momentum: λ = (1 − β) wd / scale.
        """
        check_positive("weight_decay", weight_decay, zero=True)
        return weight_decay / self.scale * (1 - self.momentum if decoupled else 1.0)

    @property
    def fastest_mode(self) -> float:
        r"""Rate ν, per flow time of ½‖R‖², above which a mode no longer decays monotonically.

            gradient descent 1;   heavy ball (1 − √β)²;   Nesterov (1 − β)²/(1 + β)²;   each over learning_rate · scale

        A mode obeys ẋ = −ν x; modes well below this keep to the clock. Constant learning rates only.
        """
        β = self.momentum
        reach = ((1 - β) / (1 + β)) ** 2 if self.nesterov else (1 - β**0.5) ** 2
        return reach / (self._constant_rate() * self.scale)

    def mode_rate(self, rate) -> np.ndarray:
        r"""Decay rate, per flow time, that the optimiser's steps really give a mode of rate ν: exact late in a run.

            −ln ρ / Δt,   x = learning_rate scale ν,   Δt = learning_rate scale / (1 − β),   ρ the largest root in
            modulus of r² − (1 + β − x) r + β (heavy ball) or of r² − (1 + β)(1 − x) r + β (1 − x) (Nesterov)

        Equal to ν for small ν; negative where the steps diverge. Constant learning rates only.
        """
        β, step = self.momentum, self._constant_rate() * self.scale
        x = step * np.asarray(rate, dtype=float)
        trace, product = ((1 + β) * (1 - x), β * (1 - x)) if self.nesterov else (1 + β - x, np.full_like(x, β))
        root = np.sqrt(trace.astype(complex) ** 2 - 4 * product)
        modulus = np.maximum(np.abs(trace + root), np.abs(trace - root)) / 2
        return np.asarray(-np.log(modulus) * (1 - β) / step)

    def _constant_rate(self) -> float:
        if callable(self.learning_rate):
            raise ValueError("learning_rate: expected a constant one, got a schedule; ask at the rate of one moment.")
        return float(self.learning_rate)
