"""Rung 6: the gradient flow of the network itself, which the optimiser follows in finite steps."""

import itertools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from ntkcollapse._arrays import entry, stacked
from ntkcollapse._checks import check_positive
from ntkcollapse.comparison.parametric import FullNetwork, Parameters, ParametricFlow
from ntkcollapse.comparison.rungs._course import Course, course_of, evaluated
from ntkcollapse.comparison.start import MeasuredStart
from ntkcollapse.theory.chebyshev import SAFETY, SERVES, scattered_direction, spectral_radius


def network_flow(
    start: MeasuredStart, times: Any, *, step: float = 0.5, max_steps: int = 1_000_000, progress: bool = False
) -> Course:
    r"""dp/dt = −∂(½‖R‖²)/∂p of all parameters. What separates it from the run is the optimiser alone.

    Step size, momentum, mini-batches and the rest of what the optimiser does. Batch normalisation is that of training,
    by the statistics of the whole set at every moment.

    Heun's method in steps of `step` / ρ, ρ the Hessian's eigenvalue of largest size, estimated by power iteration at
    every tenth step and raised by a fifth: stable to 2, and far enough below it the stiffest direction is damped as it
    should be. Of second order where the network is smooth and of first at the switches of ReLU units, at every step
    those of some sample: half the step says how far it can be trusted. A solver that controls its error takes a step
    for each of the switches, is three times as slow for the same error, and leaves too much in the stiffest direction,
    ‖R_global‖.

    Args:
        step: in units of 1/ρ, below 2.
        max_steps: after which it ends, with the times that it reached.
    Raises:
        ValueError: a step that is not stable.
    """
    check_positive("step", step)
    if not step < 2:
        raise ValueError(f"step: expected less than 2, above which Heun's method is not stable, got {step}.")
    model, one_by_one = evaluated(
        FullNetwork(start.network.in_training), rung="network-flow", num_times=len(np.asarray(times))
    )
    flow = ParametricFlow(model, jnp.asarray(start.weight_decay))
    state = Parameters.of(model.start)
    states, direction, taken, largest = [state], scattered_direction(state), 0, 0.0
    with tqdm(total=float(times[-1] - times[0]), disable=not progress, bar_format=_BAR) as bar:
        for begin, end in itertools.pairwise(map(float, times)):
            t = begin
            while t < end and taken < max_steps:
                ρ, direction = spectral_radius(flow, jnp.asarray(t), state, direction, on_host=one_by_one)
                if not math.isfinite(ρ):
                    break
                largest = max(largest, float(ρ) / SAFETY)
                left = max(1, math.ceil((end - t) * float(ρ) / step))
                h, several = (end - t) / left, min(left, SERVES, max_steps - taken)
                state = _heun_steps(flow, state, h, several, one_by_one)
                taken, t = taken + several, end if several == left else t + several * h
                bar.update(several * h)
            if t < end or not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)):
                break
            states.append(state)
    statistics = {
        "num_steps": jnp.asarray(taken),
        "eigenvalue_largest": jnp.asarray(largest),
        "successful": jnp.asarray(len(states) == len(times)),
    }
    path = jax.tree.map(stacked, *states)
    return course_of(model, entry(times, slice(0, len(states))), path, statistics, one_by_one=one_by_one)


_BAR = "{l_bar}{bar}| t = {n:.4g}/{total:.4g}"


def _heun_steps(flow: ParametricFlow, state: Parameters, h: float, count: int, one_by_one: bool) -> Parameters:
    if not one_by_one:
        return _heun_loop(flow, state, jnp.asarray(h), jnp.asarray(count))
    for _ in range(count):
        state = _heun(flow, state, jnp.asarray(h))
    return state


@eqx.filter_jit
def _heun(flow, state, h):
    """y + h (f(y) + f(y + h f(y))) / 2."""
    first = flow(0.0, state)
    second = flow(0.0, jax.tree.map(lambda y, f: y + h * f, state, first))
    return jax.tree.map(lambda y, f, g: y + h / 2 * (f + g), state, first, second)


@eqx.filter_jit
def _heun_loop(flow, state, h, count):
    return jax.lax.fori_loop(0, count, lambda _, y: _heun(flow, y, h), state)
