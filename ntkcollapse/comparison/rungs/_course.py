"""What a rung gives back: states and logits at the times asked for."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkcollapse._arrays import as_array, entry, stacked
from ntkcollapse.comparison._memory import columns, pairs, require_memory
from ntkcollapse.comparison.parametric import Parameters, ParametricFlow, ParametricModel
from ntkcollapse.comparison.start import MeasuredStart
from ntkcollapse.kernel_path import KernelPath
from ntkcollapse.sample_kernel import SampleKernel
from ntkcollapse.simulation import simulate
from ntkcollapse.theory.chebyshev import RungeKuttaChebyshev
from ntkcollapse.theory.flow import Flow
from ntkcollapse.theory.integrate import integrate, integrate_by_steps
from ntkcollapse.theory.method import Method
from ntkcollapse.trajectory import Trajectory


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
        require_memory(rung, columns(len(times), n, N))
        # What is observed of it is the ladder's affair, with the run's own kernel and alike for all rungs.
        # Tight, since what decays is followed far down.
        method = Method(**{"rtol": 1e-8, "atol": 1e-14, **options})
        flow = Flow(kernel, start.classes, **start.flow_options)
        return cls.of_run(simulate(start.state, flow, times=times, method=method, observed=False))

    @classmethod
    def of_run(cls, run: Trajectory) -> "Course":
        """The states of a run of `simulate`: with a flow of your own, a rung of your own."""
        states = [run.last_layer(i) for i in range(len(run.times))]
        H, W, b = (stacked(*(getattr(s, name) for s in states)) for name in "HWb")
        return cls(run.times, H, W, b, None, run.statistics, run.kernel)


def integrate_parameters(
    model: ParametricModel,
    times: Any,
    *,
    rung: str,
    weight_decay: float = 0.0,
    rtol: float,
    atol: float,
    max_steps: int,
    progress: bool = False,
) -> Course:
    """The gradient flow of a model that is linear in θ, by stabilised explicit steps.

    The flow's Jacobian is minus a Hessian: its spectrum is real, and the solver estimates its size as it goes, by
    products alone. Memory: T P + T n N numbers.
    """
    model, one_by_one = evaluated(model, rung=rung, num_times=len(times))
    flow = ParametricFlow(model, jnp.asarray(weight_decay))
    times, states, statistics = solve(
        flow, Parameters.of(model.start), times, rtol, atol, max_steps, progress, one_by_one=one_by_one
    )
    return course_of(model, times, states, statistics, one_by_one=one_by_one)


def evaluated(model: ParametricModel, *, rung: str, num_times: int) -> tuple[ParametricModel, bool]:
    """The model as it is integrated, and whether its steps are taken one by one rather than in a compiled loop.

    On a CPU, convolutions in float64 take ten times as long as in float32, and in a compiled loop ten times as long as
    outside of one: a network that has them is evaluated in the precision of its weights, while parameters and residual
    stay in that of the theory, and steps are taken one by one.

    Raises:
        MemoryError: its path and states do not fit.
    """
    start = model.start
    N, (C, n) = start.classes.num_samples, start.W.shape
    needed = 8 * (num_times * (start.num_params + n * N + C * N) + 8 * start.num_params)
    require_memory(rung, needed, {"sample-frozen": pairs(N), "block-frozen": columns(num_times, n, N)})
    one_by_one = jax.default_backend() == "cpu" and start.convolves
    return (type(model)(start.evaluated_as_trained) if one_by_one else model), one_by_one


def course_of(model: ParametricModel, times, states: Parameters, statistics: dict, *, one_by_one: bool) -> Course:
    """What a model says at these states of its parameters, stacked in time."""
    if one_by_one:
        seen = [_outputs(model, jax.tree.map(lambda x, i=i: entry(x, i), states)) for i in range(len(times))]
        H, f = jax.tree.map(stacked, *seen)
    else:
        H, f = _observe(model, states)
    return Course(times, H, states.W, states.b, f, statistics)


def solve(
    flow: Any,
    start: Any,
    times: Any,
    rtol: float,
    atol: float,
    max_steps: int,
    progress: bool,
    one_by_one: bool = False,
):
    """A gradient flow by stabilised explicit steps, in one compiled loop or one by one; for any pytree of arrays.

    Errors are relative to each array as a whole.

    Returns:
        (times that were reached, states at them, statistics of the solver and whether it was successful).
    """
    times = as_array(times)
    integrated = integrate_by_steps if one_by_one else _integrate
    out = integrated(flow, start, times, rtol=rtol, atol=atol, max_steps=max_steps, progress=progress, by_part=True)
    # Where it did not come to, all parts are infinite: the last is as good as any, and the smallest.
    last = np.asarray(jax.tree.leaves(out.states)[-1])
    reached = int(np.isfinite(last).all(axis=tuple(range(1, last.ndim))).sum())
    statistics = out.statistics | {"successful": jnp.asarray(out.successful)}
    to = slice(0, reached)
    return entry(times, to), jax.tree.map(lambda x: entry(x, to), out.states), statistics


@eqx.filter_jit
def _integrate(flow, start, times, **options):
    solver = RungeKuttaChebyshev(scan_kind="lax")
    return integrate(flow, start, times, solver=solver, differentiable=False, **options)


@eqx.filter_jit
def _observe(model, states: Parameters):
    return jax.lax.map(model, states)


@eqx.filter_jit
def _outputs(model, state: Parameters):
    return model(state)
