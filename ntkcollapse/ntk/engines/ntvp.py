"""Columns of the kernel as kernel-vector products."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ntkcollapse.ntk._memory import fit_sides
from ntkcollapse.ntk._problem import Problem
from ntkcollapse.ntk.engines._contract import Outputs
from ntkcollapse.ntk.engines._engine import Chunks, Engine, marked, unit_cotangents


class NTVP(Engine):
    """For each sample and output of one side, its gradient by `jax.vjp`, pushed through all of the other by `jax.jvp`.

    No Jacobian is held, so that it suits networks with very many parameters and few samples; the cost is one forward
    pass over one side for every sample and output of the other.

    Not for functions with a `jax.custom_vjp`, which JAX cannot differentiate forwards.

    Memory: for each sample and output of one side a gradient, and a forward pass over the other side.
    """

    linear: ClassVar[bool] = False

    def chunks(self, problem, x, rows, columns, outputs, available):
        # A pass over n samples for each of n samples: activations are not known here, parameters stand for them.
        each = problem.num_outputs * (problem.num_params + 4 * x.size) * problem.dtype.itemsize
        return Chunks(samples=fit_sides(available, 4 * each, rows, columns), outputs=problem.num_outputs)

    def kernel(self, problem, x1, x2, outputs):
        return _kernel(problem, x1, x1 if x2 is None else x2, outputs)


@eqx.filter_jit
def _kernel(problem: Problem, x1: jax.Array, x2: jax.Array, outputs: Outputs):
    K = problem.num_outputs

    def columns(sample, seed):
        """Θ_{k·}(x1, sample) for the output that the seed picks, (A, K)."""
        y, pullback = jax.vjp(lambda params: problem.f(params, sample[None])[0], problem.params)
        (gradient,) = pullback(marked(seed, y))
        return jax.jvp(lambda params: problem.f(params, x1), (problem.params,), (gradient,))[1]

    like = eqx.filter_eval_shape(problem.f, problem.params, x2[:1])
    seeds = unit_cotangents(K, 0, K, like.dtype)
    theta = jax.vmap(jax.vmap(columns, in_axes=(None, 0)), in_axes=(0, None))(x2, seeds)  # (B, K of x2, A, K of x1)
    theta = theta.transpose((2, 0, 3, 1)).astype(problem.dtype)
    if outputs == "full":
        return theta
    diagonal = jnp.diagonal(theta, axis1=2, axis2=3)
    return diagonal if outputs == "diagonal" else diagonal.sum(2)
