"""A network on a whole set, in chunks of one shape."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ntkcollapse._platforms import behind
from ntkcollapse.data import Batches, Dataset
from ntkcollapse.networks import AbstractNetwork, Variables
from ntkcollapse.training.objectives import batch_loss

CHUNK = 500


def evaluate(network: AbstractNetwork, variables: Variables, data: Dataset, loss: str) -> tuple[float, float]:
    """Loss (as `batch_loss` scales it, over the whole set) and accuracy, in evaluation mode.

    Peaks at the activations of 500 samples.
    """
    total, hits, N = 0.0, 0.0, len(data.inputs)
    labels = data.labels

    def sent():
        for start in range(0, N, CHUNK):
            x, y = data.inputs[start : start + CHUNK], labels[start : start + CHUNK]
            real = len(x)
            if real < CHUNK <= N:
                # The last chunk is filled up with its first sample, which then weighs nothing: one compilation.
                fill = CHUNK - real
                x, y = np.concatenate([x, x[:1].repeat(fill, 0)]), np.concatenate([y, y[:1].repeat(fill)])
            yield real, _chunk(network, loss, variables, x, y)

    for real, seen in behind(sent()):
        losses, right = jax.device_get(seen)
        total += float(np.asarray(losses, dtype=np.float64)[:real].sum())
        hits += float(np.asarray(right)[:real].sum())
    return total / N, hits / N


@partial(jax.jit, static_argnums=1)
def _chunk(network: AbstractNetwork, loss: str, variables: Variables, x, y):
    outputs = network.outputs(variables.params, x, variables.batch_stats)
    targets = jax.nn.one_hot(y, network.num_classes, dtype=outputs.dtype)
    losses = jax.vmap(lambda f, t: batch_loss(loss, f[None], t[None]))(outputs, targets)
    return losses, jnp.argmax(outputs, 1).astype(y.dtype) == y


def recomputed_statistics(network: AbstractNetwork, variables: Variables, data: Dataset, batches: Batches) -> Variables:
    """Batch statistics replaced by their means over one epoch of batches of the training set, at fixed parameters.

    Running averages lag behind the parameters, the more so the faster they move; these do not. Epoch 0 of `batches`
    is used whatever the step, so that the result is a function of the parameters alone.
    """
    if not any(_floating(leaf) for leaf in jax.tree.leaves(variables.batch_stats)):
        return variables
    sums, count = None, 0
    for rows in batches.epoch(0):
        seen = _batch_statistics(network, variables, data.inputs[rows])
        sums = seen if sums is None else jax.tree.map(lambda a, b: a + b if _floating(a) else b, sums, seen)
        count += 1
    return Variables(variables.params, jax.tree.map(lambda s: s / count if _floating(s) else s, sums))


def _floating(leaf) -> bool:
    # What else is in a state counts passes, or draws random numbers.
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


@jax.jit
def _batch_statistics(network: AbstractNetwork, variables: Variables, x) -> PyTree:
    def moved(old: PyTree) -> PyTree:
        return network.training_outputs(Variables(variables.params, old), x)[1]

    fresh = network.fresh_state(variables)
    if fresh is not None:
        return moved(fresh)

    # Running averages move to β·old + (1 − β)·seen, with β known to each module alone: from old = 0 and another old
    # both β and what was seen follow. The other is as large as (1 − β)·seen at least, so that β does not drown in it.
    # Outputs in training mode do not read the averages, so the network runs once.
    def each(f, *trees: PyTree) -> PyTree:
        return jax.tree.map(lambda first, *more: f(first, *more) if _floating(first) else first, *trees)

    at_zero = moved(each(jnp.zeros_like, variables.batch_stats))
    old = each(lambda z: jnp.full_like(z, jnp.maximum(jnp.max(jnp.abs(z)), 1)), at_zero)
    start = jax.tree.map(lambda o, s: o if _floating(s) else s, old, variables.batch_stats)
    return each(lambda z, o, m: z / (1 - (m - z) / o), at_zero, old, moved(start))
