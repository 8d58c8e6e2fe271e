"""Rung 6: the gradient flow of the network itself, which the optimiser follows in finite steps."""

from typing import Any

import jax
import jax.numpy as jnp

from ntkcollapse.comparison.parametric import FullNetwork
from ntkcollapse.comparison.rungs._course import Course, integrate_parameters
from ntkcollapse.comparison.start import MeasuredStart


def network_flow(
    start: MeasuredStart,
    times: Any,
    *,
    rtol: float = 1e-4,
    atol: float | None = None,
    max_steps: int = 100_000,
    progress: bool = False,
) -> Course:
    """dp/dt = −∂(½‖R‖²)/∂p of all parameters, as an ODE. What separates it from the run is the optimiser alone.

    Step size, momentum, mini-batches and the rest of what the optimiser does. Batch normalisation is that of training,
    by the statistics of the whole set at every moment.

    atol: of each parameter; rtol times their root mean square at the start by default. With ReLU the field jumps
        wherever a unit of a sample switches, and a tolerance relative to each parameter, many of which are near 0,
        lets steps crawl from jump to jump. The number of steps grows like 1/rtol.
    """
    network = start.network
    if atol is None:
        squares = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(network.params))
        atol = rtol * float(jnp.sqrt(squares / network.num_params))
    model = FullNetwork(network.in_training)
    return integrate_parameters(
        model,
        times,
        rung="network-flow",
        weight_decay=start.weight_decay,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
        progress=progress,
    )
