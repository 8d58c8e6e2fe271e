"""The trajectory that a run's records make: observables, states and κ on the clock that the settings allow."""

import warnings
from typing import Any

import numpy as np

from ntkcollapse._arrays import as_array
from ntkcollapse._config import as_mapping
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes
from ntkcollapse.clock import Clock, Staircase
from ntkcollapse.data import Batches
from ntkcollapse.equation import Equation
from ntkcollapse.kernel_path import KernelPath
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.training.config import TrainConfig
from ntkcollapse.training.objectives import loss_scale, summed_loss
from ntkcollapse.training.records import Records
from ntkcollapse.trajectory import Trajectory

STATES = ("H", "W", "b")


def recorded_trajectory(
    records: Records,
    config: TrainConfig,
    probe: Classes,
    training: Classes,
    batches: Batches,
    schedule: Staircase,
    own: tuple[str, ...] = (),
    clock: Clock | None = None,
    **settings: Any,
) -> Trajectory:
    """Everything measured so far.

    `probe` are the classes of what it was measured on, `own` the parts that were given from Python, `settings` what
    else to note.

    Times are those of `train`; `clock` is that of an optimiser of the caller's own.
    """
    steps = np.asarray(records.steps)
    scale = loss_scale(config.loss, training.num_samples, training.num_classes)
    known = clock or Clock(schedule, scale, config.momentum, config.nesterov)
    flow_times = known.time(steps)
    reason = _without_clock(config, batches, flow_times, own, clock)
    return trajectory_of(
        records,
        steps.astype(float) if reason else flow_times,
        probe,
        batches.per_epoch,
        Equation(
            producer="network",
            loss=summed_loss(config.loss),
            weight_decay={"W": config.weight_decay / scale},
            bias="free" if config.bias else "absent",
            clock=None if reason else known,
            without_clock=reason,
            training_classes=training,
            plain="network" in own or not config.departs_from_flow,
            own=own,
        ),
        as_mapping(config) | settings,
    )


def trajectory_of(
    records: Records,
    times: np.ndarray,
    probe: Classes,
    steps_per_epoch: int,
    equation: Equation,
    settings: dict[str, Any],
) -> Trajectory:
    """Records at these times as a trajectory of the equation, with its states and the path of κ."""
    values, steps = records.columns(), np.asarray(records.steps)
    kept = [values.pop(f"state_{name}") for name in STATES if f"state_{name}" in values]
    return Trajectory(
        times,
        values | {"step": steps, "epoch": steps / steps_per_epoch},
        probe,
        states=LastLayer.stacked(*kept) if kept else None,
        kernel=_kernel_path(times, values),
        statistics={f"seconds_{name}": value for name, value in records.seconds.items()},
        equation=equation,
        names=records.names,
        settings=settings,
    )


def stand_still(flow_times: np.ndarray) -> str:
    """Why steps are no flow times, where rates decay too far; empty where they are."""
    # Rates can decay until times are the same in jax's default precision, in which they are kept.
    if not (np.diff(np.asarray(as_array(flow_times), dtype=float)) > 0).all():
        return "learning rates decayed until flow times are the same in floating point"
    return ""


def _without_clock(
    config: TrainConfig, batches: Batches, flow_times: np.ndarray, own: tuple[str, ...], clock: Clock | None
) -> str:
    """Why the steps are not flow times; empty where they are."""
    if "network" not in own and config.departs_from_flow:
        return config.departs_from_flow
    if "optimizer" in own and clock is None:
        return "the optimiser was given from Python, without a clock"
    if "optimizer" not in own and config.optimizer != "sgd":
        return f"{config.optimizer} rescales or replaces gradients"
    if not batches.represent_all:
        return "balanced batches of unequal classes descend another loss, in which every class weighs the same"
    return stand_still(flow_times)


def _kernel_path(times: np.ndarray, values: dict[str, np.ndarray]) -> BlockKernel | KernelPath | None:
    names = [f"kappa_{part}" for part in ("diagonal", "within", "between")]
    if any(name not in values for name in names):
        return None
    measured = zip(*(values[name] for name in names), strict=True)
    try:
        with warnings.catch_warnings():
            # A measured kernel may violate the order that the theorem assumes.
            warnings.simplefilter("ignore", UserWarning)
            kernels = [BlockKernel(*three) for three in measured]
    except ValueError:
        # A network that no longer depends on its inputs has λ_single = 0, which is no kernel of the theory.
        return None
    return KernelPath.of(times, kernels) if len(kernels) > 1 else kernels[0]
