"""Full-batch gradient descent: the theory's own setting, with nothing around it."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ntkcollapse._checks import check_positive, check_whole
from ntkcollapse._platforms import constant
from ntkcollapse.data import Dataset
from ntkcollapse.networks import AbstractNetwork, Variables
from ntkcollapse.training.errors import NonFiniteLoss
from ntkcollapse.training.step import Stepper


class Snapshot(NamedTuple):
    """A network at one step, the caller's to keep.

    `loss` is that of the step's batch in training mode (mean over samples and outputs of half the squared error, or
    mean cross-entropy); NaN at the last step, from which no further step was taken.
    """

    step: int
    variables: Variables
    loss: float


def gradient_descent(
    network: AbstractNetwork,
    variables: Variables,
    data: Dataset,
    *,
    learning_rate: float | optax.Schedule,
    at: Iterable[int],
    loss: str = "squared",
) -> Iterator[Snapshot]:
    """Plain gradient descent on all of `data`, seen at the steps named.

    The step is compiled once and driven from Python. Between the steps named nothing is read back.

    Args:
        network, variables: to train, and where from.
        data: every step is on all of it.
        learning_rate: constant or an optax schedule; of the mean loss (`Clock.of_loss("mean", ...)` has the time).
        at: steps to stop at, in increasing order; step 0 is the start.
        loss: "squared" or "cross-entropy".
    Yields:
        A snapshot at each step named.
    Raises:
        ValueError: steps that are negative or do not increase.
        NonFiniteLoss: at the first step named by which the loss is no longer finite.
    """
    steps = [int(s) for s in at]
    check_positive("at", steps, zero=True)
    if sorted(set(steps)) != steps:
        raise ValueError(f"at: expected strictly increasing steps, got {steps}; use sorted(set(at)).")
    return _descend(network, variables, data, learning_rate, steps, loss)


def _descend(network, variables, data, learning_rate, steps, loss) -> Iterator[Snapshot]:
    stepper = Stepper(network, optax.sgd(learning_rate), loss)
    state, inputs, labels = stepper.start(variables), jnp.asarray(data.inputs), jnp.asarray(data.labels)
    done, last, together = 0, None, constant("steps")
    for step in steps:
        while done < step:
            if together == 1:
                state, _ = stepper(state, inputs, labels, step=done)
                done += 1
            else:
                count = min(together, step - done)
                state, _ = stepper.several(state, inputs, labels, None, np.ones(together), done, count)
                done += count
        # The next step donates its state, so the caller gets a copy; its loss comes with that step.
        kept = jax.tree.map(jnp.copy, state.variables)
        value = float("nan")
        if step != steps[-1]:
            state, record = stepper(state, inputs, labels, step=done)
            done += 1
            value = float(record.loss)
        taken = int(state.step)
        if taken < step:
            raise NonFiniteLoss(taken, last)
        last = Snapshot(step, kept, value)
        yield last
        if taken < done:
            raise NonFiniteLoss(taken, last)


def log_spaced(last: int, count: int) -> tuple[int, ...]:
    """At most `count` distinct steps from 0 to `last`, evenly spaced in log(1 + step)."""
    check_whole("last", last)
    check_whole("count", count)
    grid = np.expm1(np.linspace(0, np.log1p(last), max(int(count), 2)))
    return tuple(int(s) for s in np.unique(np.rint(grid).astype(int)))
