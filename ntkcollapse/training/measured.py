"""A network in training as a producer of trajectories: its last layer and its kernels, measured on the way."""

from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ntkcollapse.classes import Classes
from ntkcollapse.clock import Clock
from ntkcollapse.data import Dataset
from ntkcollapse.equation import Equation
from ntkcollapse.kernel_path import KernelPath
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.networks import Network, Variables
from ntkcollapse.ntk import block_statistics
from ntkcollapse.observables import Observables, kernel_observables, observe, stack
from ntkcollapse.sample_kernel import SampleKernel
from ntkcollapse.training.gradient_descent import Snapshot, gradient_descent
from ntkcollapse.trajectory import Trajectory


def measure(network: Network, variables: Variables, data: Dataset) -> tuple[LastLayer, SampleKernel, Observables]:
    """The last layer on all of `data`, its feature kernel κ, and everything observed of both.

    κ and γ are the means over all pairs of samples and over outputs, of the feature kernel Θ^h and of the output kernel
    Θ. State and observables are in float64 where jax has it switched on.
    """
    features, outputs = network.evaluation(variables.batch_stats)
    state, classes = network.last_layer(variables, data.inputs, data.labels)
    kappa = block_statistics(features, variables.params, data.inputs, data.labels).kernel
    gamma = block_statistics(outputs, variables.params, data.inputs, data.labels).kernel
    state, kappa, gamma = jax.tree.map(lambda x: x.astype(jnp.result_type(float)), (state, kappa, gamma))
    seen = _observe(state, classes, kappa) | kernel_observables(gamma, "gamma")
    return state, kappa, seen


def measured_descent(
    network: Network,
    variables: Variables,
    data: Dataset,
    *,
    learning_rate: float,
    at: Iterable[int],
    settings: dict[str, Any] | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
) -> Trajectory:
    """Full-batch gradient descent on the squared loss, measured at the steps named, on the clock of the flow.

    Args:
        network, variables: to train, and where from.
        data: trained on, and measured on.
        learning_rate: of the mean over samples and outputs of half the squared error.
        at: steps to measure at, increasing, the first one 0 or later.
        settings: what the trajectory should say of how it was made, besides what is known here.
        on_snapshot: called with the network at the step after each measurement (for a progress bar, or to keep it).
    Returns:
        States, observables (with "step"), and the measured path of κ as kernel; times in flow time.
    Raises:
        NonFiniteLoss: the training diverged.
    """
    clock = Clock.of_loss("mean", data.classes, learning_rate=learning_rate)
    steps, states, kernels, records = [], [], [], []
    for snapshot in gradient_descent(network, variables, data, learning_rate=learning_rate, at=at):
        state, kappa, seen = measure(network, snapshot.variables, data)
        steps.append(snapshot.step)
        states.append(state)
        kernels.append(kappa)
        records.append(seen)
        if on_snapshot is not None:
            on_snapshot(snapshot)
    times = clock.time(np.asarray(steps))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    return Trajectory(
        times,
        stack(records) | {"step": jnp.asarray(steps)},
        data.classes,
        states=stacked,
        kernel=KernelPath.of(times, kernels) if len(kernels) > 1 else kernels[0],
        equation=Equation(producer="network", clock=clock, bias="free" if network.use_bias else "absent"),
        settings={
            "optimizer": "gradient descent",
            "learning_rate": learning_rate,
            "data": data.name,
            **(settings or {}),
        },
    )


@eqx.filter_jit
def _observe(state: LastLayer, classes: Classes, kappa: SampleKernel) -> Observables:
    return observe(state, classes, kappa)
