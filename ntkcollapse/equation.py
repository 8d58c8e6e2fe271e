"""The equation that a trajectory obeys: what was integrated, or trained on, in the trajectory's own time."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import equinox as eqx
import numpy as np

from ntkcollapse._checks import check_choice
from ntkcollapse.classes import Classes
from ntkcollapse.clock import Clock, Staircase
from ntkcollapse.losses import CrossEntropy, Loss, SquaredError, as_loss
from ntkcollapse.weight_decay import WeightDecay

Bias = Literal["free", "frozen", "absent"]
Producer = Literal["theory", "network"]


class Equation(eqx.Module):
    """What a trajectory obeys: dynamics of the last layer in its own time, by whom they were produced.

        d(H, W, b)/dt descends loss(W H + b 1ᵀ, Y), with decays λ_H H, λ_W W, λ_b b

    Everything that computes from a trajectory reads these fields; the trajectory's `settings` are a note only.

    Args:
        producer: "theory", which integrates the equation, or "network", whose training follows it in finite steps.
        loss: whose flow time the times are; for networks at scale 1, the loss summed over the training set.
        weight_decay: λ_H, λ_W, λ_b per flow time. Of a network λ_W is that of its penalty on weights; λ_H is 0, since
            what the decay of its other weights does to features is not known.
        bias: "free" moves, "frozen" stays, "absent" is 0.
        clock: steps ↦ flow time of a network's optimiser; None where there are no steps, or no clock is known.
        without_clock: why times are optimiser steps; empty where they are flow time.
        training_classes: behind the samples that the loss sums over; None: those behind the trajectory's columns.
        plain: whether it is the equation of `Flow` alone: no constraint, no noise, one learning rate, and no vector
            field of one's own.
        own: parts of a network run that were given from Python ("network", "data", "optimizer"); settings do not make
            a run with such parts again.

    Raises:
        ValueError: an unknown producer, bias or loss, or a decay that is negative.
    """

    producer: str = eqx.field(static=True, default="theory")
    loss: Loss = eqx.field(converter=as_loss, default_factory=SquaredError)
    weight_decay: WeightDecay = eqx.field(converter=WeightDecay.of, default=0.0)
    bias: str = eqx.field(static=True, default="free")
    clock: Clock | None = None
    without_clock: str = eqx.field(static=True, default="")
    training_classes: Classes | None = None
    plain: bool = eqx.field(static=True, default=True)
    own: tuple[str, ...] = eqx.field(static=True, converter=tuple, default=())

    def __check_init__(self):
        check_choice("producer", self.producer, get_args(Producer))
        check_choice("bias", self.bias, get_args(Bias))

    @property
    def is_squared(self) -> bool:
        """Whether the loss is `SquaredError` itself, which theorem, residual parts and rates are of."""
        return type(self.loss) is SquaredError

    @property
    def in_flow_time(self) -> bool:
        """Whether times are flow time of the loss; optimiser steps otherwise."""
        return not self.without_clock

    @property
    def of_network(self) -> bool:
        """Whether a network in training produced the trajectory."""
        return self.producer == "network"

    def as_mapping(self) -> dict[str, Any]:
        """Gives the equation as JSON can hold it; of a loss or a learning rate of one's own, its name alone."""
        name = self.loss.name if isinstance(self.loss, UnknownLoss) else type(self.loss).__name__
        loss: dict[str, Any] = {"name": name}
        if type(self.loss) in _SAVED_LOSSES.values():
            loss["scale"] = float(self.loss.scale)
        return {
            "producer": self.producer,
            "loss": loss,
            "weight_decay": {name: float(getattr(self.weight_decay, name)) for name in "HWb"},
            "bias": self.bias,
            "clock": None if self.clock is None else _clock_as_mapping(self.clock),
            "without_clock": self.without_clock,
            "training_classes": None if self.training_classes is None else list(self.training_classes.sizes),
            "plain": self.plain,
            "own": list(self.own),
        }

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Equation":
        """Makes the equation again from what `as_mapping` gave.

        Raises:
            ValueError: a key that is missing or unknown, or a value out of range.
        """
        fields = cls().as_mapping()
        if set(values) != set(fields):
            raise ValueError(f"equation: expected the keys {sorted(fields)}, got {sorted(values)}.")
        loss, clock, sizes = values["loss"], values["clock"], values["training_classes"]
        made = _SAVED_LOSSES.get(loss["name"])
        return cls(
            producer=values["producer"],
            loss=UnknownLoss(name=loss["name"]) if made is None else made(scale=float(loss["scale"])),
            weight_decay=values["weight_decay"],
            bias=values["bias"],
            clock=None if clock is None else _clock_from_mapping(clock),
            without_clock=values["without_clock"],
            training_classes=None if sizes is None else Classes(sizes=tuple(sizes)),
            plain=values["plain"],
            own=tuple(values["own"]),
        )


class UnknownLoss(Loss):
    """A loss of one's own, of which a file kept the name: it can be asked for nothing else."""

    scale: float = 1.0
    name: str = eqx.field(static=True, default="")

    def value(self, f, Y):
        raise ValueError(f"loss: expected {self.name} itself, got a file that keeps its name only; give it again.")

    def gradient(self, f, Y):
        raise ValueError(f"loss: expected {self.name} itself, got a file that keeps its name only; give it again.")


_SAVED_LOSSES: dict[str, type[SquaredError] | type[CrossEntropy]] = {
    "SquaredError": SquaredError,
    "CrossEntropy": CrossEntropy,
}


def _clock_as_mapping(clock: Clock) -> dict[str, Any] | None:
    rate = clock.learning_rate
    if isinstance(rate, Staircase):
        rate = {"learning_rate": rate.learning_rate, "factor": rate.factor, "every": rate.every}
    elif callable(rate):
        # A schedule of one's own has no spelling; the times that it led to are kept.
        return None
    else:
        rate = float(np.asarray(rate))
    return {
        "learning_rate": rate,
        "scale": float(clock.scale),
        "momentum": float(clock.momentum),
        "nesterov": clock.nesterov,
    }


def _clock_from_mapping(values: Mapping[str, Any]) -> Clock:
    rate = values["learning_rate"]
    return Clock(**{**values, "learning_rate": Staircase(**rate) if isinstance(rate, Mapping) else rate})
