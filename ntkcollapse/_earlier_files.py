"""Files that earlier versions wrote: their notes read once more as the equation that they meant."""

from collections.abc import Mapping
from typing import Any

from ntkcollapse.classes import Classes
from ntkcollapse.clock import Clock, Staircase
from ntkcollapse.equation import Equation, UnknownLoss
from ntkcollapse.losses import CrossEntropy, SquaredError


def equation_of_settings(settings: Mapping[str, Any], class_sizes: tuple[int, ...]) -> Equation:
    """Reads the equation of a trajectory from the settings that files kept in its place.

    Args:
        settings: as the file has them.
        class_sizes: of the samples behind the columns.
    """
    network = settings.get("producer") == "network"
    name = settings.get("loss", "squared")
    scale = float(settings.get("scale", 1.0))
    known = {"squared": SquaredError, "SquaredError": SquaredError}
    known |= {"cross-entropy": CrossEntropy, "CrossEntropy": CrossEntropy}
    # A network's flow time is that of the summed loss, whatever scale its optimiser saw.
    loss = known[name](1.0 if network else scale) if name in known else UnknownLoss(name=name)
    decay = settings.get("weight_decay", 0.0)
    bias = settings.get("bias", "free")
    sizes = settings.get("training_class_sizes")
    samples = settings.get("training_samples", sum(class_sizes))
    if sizes is None and samples != sum(class_sizes):
        # The oldest files say how many samples there were, in equal classes.
        sizes = [samples // len(class_sizes)] * len(class_sizes)
    steps = settings.get("clock", "flow") != "flow"
    own = ("network", "data")
    return Equation(
        producer="network" if network else "theory",
        loss=loss,
        weight_decay={"W": float(decay) / scale} if network else decay,
        bias=bias if isinstance(bias, str) else ("free" if bias else "absent"),
        clock=_clock(settings, scale) if network and not steps else None,
        without_clock=settings.get("without_clock", "no clock is known for the optimiser") if steps else "",
        training_classes=None if sizes is None else Classes(sizes=tuple(sizes)),
        plain=bool(settings.get("plain", True)),
        own=tuple(part for part in own if f"own_{part}" in settings),
    )


def names_of_settings(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """Reads what the entries of array observables are called."""
    return dict(settings.get("names", {}))


def _clock(settings: Mapping[str, Any], scale: float) -> Clock | None:
    rate = settings.get("learning_rate")
    if rate is None:
        return None
    every = int(settings.get("decay_every", 0)) * int(settings.get("steps_per_epoch", 0))
    schedule = Staircase(float(rate), float(settings.get("decay_factor", 1.0)), every)
    # Plain gradient descent named no momentum.
    momentum, nesterov = float(settings.get("momentum", 0.0)), bool(settings.get("nesterov", False))
    return Clock(schedule, scale, momentum, nesterov)
