"""The kernel from the neural-tangents package: a peer, and a check."""

import warnings
from typing import ClassVar

import equinox as eqx
import jax

from ntkcollapse.ntk._memory import fit_sides
from ntkcollapse.ntk._neural_tangents import neural_tangents
from ntkcollapse.ntk._problem import Problem
from ntkcollapse.ntk.engines._contract import Outputs
from ntkcollapse.ntk.engines._engine import Chunks, Engine


class NeuralTangents(Engine):
    """Jacobian contraction of neural-tangents 0.6.5, sample by sample under `vmap`.

    Its structured derivatives need a JAX of 2024, and its NTK-vector products take memory far beyond the other ways on
    convolutional networks, so that neither is offered.

    Raises:
        ImportError: the package is not installed.
    """

    linear: ClassVar[bool] = False

    def __check_init__(self):
        neural_tangents()

    @property
    def name(self):
        return "neural-tangents"

    def chunks(self, problem, x, rows, columns, outputs, available):
        each = problem.num_outputs * problem.num_params * problem.dtype.itemsize
        return Chunks(samples=fit_sides(available, 2 * each, rows, columns), outputs=problem.num_outputs)

    def kernel(self, problem, x1, x2, outputs):
        with warnings.catch_warnings():
            # It calls JAX in ways that are to be removed.
            warnings.simplefilter("ignore", DeprecationWarning)
            return _kernel(problem, x1, x2, outputs)


@eqx.filter_jit
def _kernel(problem: Problem, x1: jax.Array, x2: jax.Array | None, outputs: Outputs):
    theta = neural_tangents().empirical_ntk_fn(
        lambda params, x: problem.f(params, x),
        trace_axes=(-1,) if outputs == "mean" else (),
        diagonal_axes=(-1,) if outputs == "diagonal" else (),
        vmap_axes=0,
        implementation=1,
    )(x1, x2, problem.params)
    # Its trace over an axis is a mean.
    theta = theta.astype(problem.dtype)
    return theta * problem.num_outputs if outputs == "mean" else theta
