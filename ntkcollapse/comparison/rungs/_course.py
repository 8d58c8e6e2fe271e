"""What a rung gives back: states and logits at the times asked for."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkcollapse.comparison._memory import require_memory
from ntkcollapse.comparison.parametric import Parameters, ParametricFlow, ParametricModel
from ntkcollapse.comparison.start import MeasuredStart
from ntkcollapse.kernel_path import KernelPath
from ntkcollapse.sample_kernel import SampleKernel
from ntkcollapse.simulation import simulate
from ntkcollapse.theory.chebyshev import RungeKuttaChebyshev
from ntkcollapse.theory.integrate import integrate


class Course(NamedTuple):
    """States of a rung at T times, fewer where its integration ended early.

    logits: f where they are not W H + b 1ᵀ; statistics: of the solver; kernel: K where the rung
    assumes one.
    """

    times: Float[Array, " T"]
    H: Float[Array, "T n N"]
    W: Float[Array, "T C n"]
    b: Float[Array, "T C"]
    logits: Float[Array, "T C N"] | None
    statistics: dict[str, Array]
    kernel: SampleKernel | KernelPath | None = None

    @classmethod
    def by_kernel(
        cls, rung: str, start: MeasuredStart, kernel: SampleKernel | KernelPath, times: Any, **options: Any
    ) -> "Course":
        """The last layer by the theory's equations with this kernel, from the measured state.

        What is integrated is as small as the kernel allows; the T n N numbers of all columns are recovered after it.

        Raises:
            MemoryError: they do not fit.
        """
        n, N = start.state.H.shape
        require_memory(rung, 8 * 3 * len(times) * n * N, fits=None)
        # What is observed of it is the ladder's affair, with the run's own kernel and alike for all rungs.
        run = simulate(start.state, kernel, start.classes, times, observed=False, **(start.flow_options | options))
        states = [run.last_layer(i) for i in range(len(run.times))]
        H, W, b = (jnp.stack([getattr(s, name) for s in states]) for name in "HWb")
        return cls(run.times, H, W, b, None, run.statistics, run.kernel)


def integrate_parameters(
    model: ParametricModel,
    times: Float[Array, " T"],
    *,
    rung: str,
    weight_decay: float = 0.0,
    rtol: float,
    atol: float,
    max_steps: int,
    progress: bool = False,
) -> Course:
    """The gradient flow of a model in its parameters, by stabilised explicit steps.

    The flow's Jacobian is minus a Hessian: its spectrum is real, and the solver estimates its size as it goes, by
    products alone. Memory: T P + T n N numbers.
    """
    start = model.start
    N, (C, n) = start.classes.num_samples, start.W.shape
    require_memory(
        rung, 8 * (len(times) * (start.num_params + n * N + C * N) + 8 * start.num_params), fits="sample-frozen"
    )
    out = solve(
        ParametricFlow(model, jnp.asarray(weight_decay)),
        Parameters.of(start),
        jnp.asarray(times),
        rtol,
        atol,
        max_steps,
        progress,
    )
    reached = int(np.isfinite(np.asarray(out.states.b)).all(axis=1).sum())
    H, f = _observe(model, jax.tree.map(lambda x: x[:reached], out.states))
    statistics = out.statistics | {"successful": jnp.asarray(out.successful)}
    return Course(times[:reached], H, out.states.W[:reached], out.states.b[:reached], f, statistics)


@eqx.filter_jit
def solve(flow, start, times, rtol, atol, max_steps, progress):
    """A gradient flow by stabilised explicit steps, for any state that is a pytree of arrays."""
    solver = RungeKuttaChebyshev(scan_kind="lax")
    return integrate(flow, start, times, solver=solver, rtol=rtol, atol=atol, max_steps=max_steps, progress=progress)


@eqx.filter_jit
def _observe(model, states: Parameters):
    return jax.lax.map(model, states)
