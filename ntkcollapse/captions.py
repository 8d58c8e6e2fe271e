"""What a run and its quantities are called: names and labels that follow from the equation that it obeys."""

import dataclasses

from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.kernel_path import KernelPath
from ntkcollapse.krylov_kernel import KrylovKernel
from ntkcollapse.losses import CrossEntropy, Loss, SquaredError
from ntkcollapse.observable_table import OBSERVABLES, Observable, described, shown_in
from ntkcollapse.sample_kernel import DenseKernel, GroupedKernel
from ntkcollapse.trajectory import Trajectory

# In a terminal, and with LaTeX.
_LOSSES = {SquaredError: ("½‖R‖²", r"$\frac{1}{2}\|R\|^2$"), CrossEntropy: ("cross-entropy", "cross-entropy")}
_KERNELS = {
    BlockKernel: "block-structured gradient flow",
    DenseKernel: "gradient flow under a dense kernel",
    GroupedKernel: "gradient flow under a kernel in groups",
    KrylovKernel: "gradient flow under a kernel in Krylov blocks",
}


def time_axis(*runs: Trajectory) -> Observable:
    """Describes the times of a run: flow time of its loss, or steps of the optimiser.

    Of several runs the loss is named where they share it; steps, where one of them has no flow time.
    """
    if not all(run.equation.in_flow_time for run in runs):
        return dataclasses.replace(described("step"), name="time", meaning="optimiser steps")
    words = {_loss_words(run.equation.loss) for run in runs}
    text, label = words.pop() if len(words) == 1 else ("", "")
    named = f" ({'loss ' if label.startswith('$') else ''}{label})" if label else ""
    meaning = f"flow time of the loss {text}".removesuffix(" ")
    return Observable("time", "flow time t", f"flow time $t${named}", meaning, unit="1")


def caption(name: str, *runs: Trajectory) -> Observable:
    """Describes an observable of these runs: `loss` by the loss of their equation, where they share it."""
    entry = described(name)
    if name != "loss":
        return entry
    words = {_loss_words(run.equation.loss) for run in runs}
    text, label = words.pop() if len(words) == 1 else ("loss", "loss")
    return dataclasses.replace(
        entry, label=label, meaning=f"{entry.meaning}: {text}" if text != "loss" else entry.meaning
    )


def shown(run: Trajectory, place: str) -> list[str]:
    """Names of the observables that a run has among those shown in a place, and that mean something under its loss.

    Raises:
        ValueError: an unknown place.
    """
    return [name for name in shown_in(place) if has(run, name)]


def has(run: Trajectory, name: str) -> bool:
    """Whether a run has an observable that means something under its loss."""
    squared = run.equation.is_squared or not (name in OBSERVABLES and OBSERVABLES[name].needs_squared_loss)
    return name in run.observables and squared


def run_name(run: Trajectory) -> str:
    """What a run is called in a legend: network, or gradient flow under its kernel."""
    if run.equation.of_network:
        return "network"
    if isinstance(run.kernel, KernelPath):
        return "gradient flow along a path of kernels"
    kind = type(run.kernel)
    return _KERNELS.get(kind, "gradient flow" if run.kernel is None else f"gradient flow under a {kind.__name__}")


def _loss_words(loss: Loss) -> tuple[str, str]:
    """The loss in a terminal, and with LaTeX; with its scale where that is not 1."""
    if type(loss) not in _LOSSES:
        name = str(getattr(loss, "name", type(loss).__name__))
        return name, name
    text, label = _LOSSES[type(loss)]
    scale = float(loss.scale)
    if scale == 1:
        return text, label
    product = rf"${scale:g}\,{label[1:]}" if label.startswith("$") else f"{scale:g} {label}"
    return f"{scale:g} {text}", product
