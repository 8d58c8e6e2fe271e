"""The Runge-Kutta-Chebyshev solver against closed forms, against its own order, and against what stiffness costs."""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse.theory.chebyshev import RungeKuttaChebyshev
from ntkcollapse.theory.integrate import integrate, integrate_by_steps

# The heat equation on n inner points of (0, 1): y' = −L y with the eigenvalues of L known.
N_POINTS = 100
GRID = np.arange(1, N_POINTS + 1) / (N_POINTS + 1)


def heat_eigenvalue(k):
    return 4 * (N_POINTS + 1) ** 2 * np.sin(k * np.pi / (2 * (N_POINTS + 1))) ** 2


RHO = 4.0 * (N_POINTS + 1) ** 2


def heat(t, y, conductivity):
    del t
    inner = jnp.pad(y["u"], 1)
    return {"u": conductivity * (N_POINTS + 1.0) ** 2 * (inner[2:] - 2 * inner[1:-1] + inner[:-2])}


def heat_start():
    return {"u": jnp.asarray(np.sin(np.pi * GRID) + 0.5 * np.sin(5 * np.pi * GRID))}


def heat_solution(t, conductivity=1.0):
    first, fifth = (np.exp(-conductivity * heat_eigenvalue(k) * t) for k in (1, 5))
    return first * np.sin(np.pi * GRID) + 0.5 * fifth * np.sin(5 * np.pi * GRID)


def heat_radius(t, y, conductivity):
    del t, y
    return RHO * conductivity


class Outcome(NamedTuple):
    y: Any
    accepted: int
    evaluations: int
    successful: bool


@eqx.filter_jit
def _solve(field, solver, start, end, step, controller, args):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        0.0,
        end,
        step,
        start,
        args=args,
        stepsize_controller=controller,
        saveat=diffrax.SaveAt(t1=True, solver_state=True),
        max_steps=20_000,
        throw=False,
    )


def solve(field, start, end, *, solver, steps=None, rtol=1e-5, args=None) -> Outcome:
    """Constant steps where their number is given, adaptive ones otherwise. Compiles once for each field and solver."""
    if steps:
        controller, step = diffrax.ConstantStepSize(), jnp.asarray(end / steps)
    else:
        controller, step = diffrax.PIDController(rtol=jnp.asarray(rtol), atol=jnp.asarray(rtol)), None
    out = _solve(field, solver, start, jnp.asarray(end), step, controller, args)
    return Outcome(
        y=jax.tree.map(lambda y: y[0], out.ys),
        accepted=out.stats["num_accepted_steps"],
        evaluations=getattr(out.solver_state, "evaluations", None),  # pyright: ignore[reportArgumentType]
        successful=diffrax.is_successful(out.result),  # pyright: ignore[reportArgumentType]
    )


BOUND = RungeKuttaChebyshev(heat_radius)
ESTIMATED = RungeKuttaChebyshev()
ONE = jnp.asarray(1.0)


def counted(field):
    """The field, and a list that grows by one with every evaluation at run time."""
    calls = []

    def counting(t, y, args):
        jax.debug.callback(lambda: calls.append(None))
        return field(t, y, args)

    return counting, calls


@pytest.mark.parametrize("stages", [2, 5, 40])
def test_second_order_with_every_number_of_stages(stages):
    # y' = −(1 + cos t) y², so y = 1/(1/y₀ + t + sin t): nonlinear, and it reads the times of the stages.
    # It is not stiff: the radius that is pretended sets the number of stages.
    def error(steps):
        radius = jnp.asarray(0.65 * (stages**2 - 1) * steps / 2.0)
        out = solve(riccati, ONE, 2.0, solver=PRETENDED, steps=steps, args=radius)
        # Each step is `stages` evaluations: its first is the last one's closing slope.
        assert int(out.evaluations) == 1 + steps * stages
        return abs(float(out.y) - 1 / (1 + 2 + np.sin(2.0)))

    errors = np.array([error(steps) for steps in (40, 80, 160)])
    # The error is c h² (1 + O(h)): at these steps the O(h) moves the observed order by a few hundredths.
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), 2.0, atol=0.1)


def riccati(t, y, args):
    del args
    return -(1 + jnp.cos(t)) * jnp.square(y)


PRETENDED = RungeKuttaChebyshev(lambda t, y, radius: radius)


@pytest.mark.parametrize("stages", [2, 3, 17])
def test_stages_are_evaluated_at_consistent_times(stages):
    # For y' = g(t) the method is a quadrature: exact for linear g, whatever the number of stages.
    radius = jnp.asarray(0.65 * (stages**2 - 1))
    out = solve(lambda t, y, args: 3.0 + 2.0 * t, jnp.asarray(0.0), 2.0, solver=PRETENDED, steps=2, args=radius)
    np.testing.assert_allclose(float(out.y), 10.0, rtol=1e-12)


@pytest.mark.parametrize("stages", [3, 7, 60])
def test_stability_polynomial_up_to_the_promised_bound(stages):
    # One step of y' = −z y from 1 is the stability polynomial R(z).
    bound = 2 / 3 * (stages**2 - 1) * (1 - 2 / 15 * 2 / 13)
    z = jnp.linspace(0.0, bound * (1 - 1e-12), 2000)
    field = lambda t, y, args: -args[0] * y  # noqa: E731
    solver = RungeKuttaChebyshev(lambda t, y, args: args[1])
    out = solve(field, jnp.ones_like(z), 1.0, solver=solver, steps=1, args=(z, z[-1]))
    assert int(out.evaluations) == 1 + stages
    R = np.asarray(out.y)
    # Second order at the origin, and past the first mode a damping of 1 − ε/3 (to the order of ε²).
    np.testing.assert_allclose(R[1], np.exp(-z[1]), atol=float(z[1]) ** 3)
    assert np.abs(R[np.asarray(z) > 2.0]).max() < 1 - 2 / 13 / 3 + (2 / 13) ** 2


def first_mode():
    return {"u": jnp.asarray(np.sin(np.pi * GRID))}


def test_heat_equation_at_large_steps():
    """h ρ = 816, where ordinary explicit pairs are stable to h ρ of about 3, against the closed form."""
    end, steps = 0.1, 5
    out = solve(heat, first_mode(), end, solver=BOUND, steps=steps, args=ONE)
    # Global error of second order with λ₁h = 0.2: (λ₁h)² λ₁T / 15 = 2.6e-3, relative.
    exact = np.exp(-heat_eigenvalue(1) * end) * np.sin(np.pi * GRID)
    np.testing.assert_allclose(np.asarray(out.y["u"]), exact, rtol=4e-3)
    assert int(out.evaluations) < 5 * 40


def test_an_underestimated_radius_is_unstable():
    """With a quarter of ρ the same steps blow up: the bound is what keeps the test above stable."""
    rough = {"u": first_mode()["u"] + 1e-3 * jnp.cos(np.pi * jnp.arange(float(N_POINTS)))}
    assert np.abs(solve(heat, rough, 0.1, solver=BOUND, steps=5, args=ONE).y["u"]).max() < 1
    short = RungeKuttaChebyshev(lambda t, y, args: RHO / 4)
    assert not np.abs(solve(heat, rough, 0.1, solver=short, steps=5, args=ONE).y["u"]).max() < 1e3


def test_far_fewer_evaluations_than_an_explicit_pair():
    field, calls = counted(heat)
    errors, evaluations = {}, {}
    for name, solver in (("rkc", BOUND), ("tsit5", diffrax.Tsit5())):
        calls.clear()
        out = jax.block_until_ready(solve(field, heat_start(), 0.2, solver=solver, args=ONE))
        jax.effects_barrier()
        evaluations[name] = len(calls)
        errors[name] = np.abs(np.asarray(out.y["u"]) - heat_solution(0.2)).max()
        if name == "rkc":
            # What the solver says of itself, beside what really ran: diffrax's choice of the first step takes two,
            # and rejected steps are not in the solver's count.
            assert 0 <= evaluations["rkc"] - int(out.evaluations) < 0.1 * evaluations["rkc"]
    assert max(errors.values()) < 1e-4
    # ρT = 8160: Tsit5 needs about 2 ρT evaluations, this method a few √(ρT).
    assert evaluations["tsit5"] > 8160
    assert evaluations["rkc"] < evaluations["tsit5"] / 15


@pytest.mark.parametrize("solver", [BOUND, ESTIMATED], ids=["bound", "power iteration"])
def test_global_error_falls_with_the_tolerance(solver):
    errors, steps = [], []
    for rtol in (1e-4, 1e-6, 1e-8):
        out = solve(heat, heat_start(), 0.1, solver=solver, rtol=rtol, args=ONE)
        errors.append(np.abs(np.asarray(out.y["u"]) - heat_solution(0.1)).max())
        steps.append(int(out.accepted))
    # Local errors of third order: steps go as rtol^(−1/3), the global error as rtol^(2/3): factors of 4.6 and 21.5
    # for each hundredfold, approached from below.
    assert errors[0] < 1e-3
    assert errors[1] < errors[0] / 8
    assert errors[2] < errors[1] / 12
    assert 4 < steps[2] / steps[1] < 5


def test_power_iteration_finds_the_radius_and_counts_its_work():
    bound = solve(heat, heat_start(), 0.1, solver=BOUND, args=ONE)
    own = solve(heat, heat_start(), 0.1, solver=ESTIMATED, args=ONE)
    # Accuracy sets the steps, so both take about the same ones; the estimate costs at least two products each time,
    # once in ten steps.
    assert abs(int(own.accepted) - int(bound.accepted)) <= 0.1 * int(bound.accepted)
    assert int(own.evaluations) > int(bound.evaluations) + 4 * (int(own.accepted) // 10)


@pytest.mark.parametrize("solver", [BOUND, ESTIMATED], ids=["bound", "power iteration"])
def test_gradient(solver):
    """Of the final heat with respect to the conductivity, at constant steps."""

    def final_heat(conductivity):
        return jnp.sum(solve(heat, heat_start(), 0.05, solver=solver, steps=25, args=conductivity).y["u"])

    c, h = 1.3, 1e-4
    gradient = float(jax.grad(final_heat)(jnp.asarray(c)))
    up, down = (float(final_heat(jnp.asarray(c + d))) for d in (h, -h))
    # Central differences: h² f‴/6 ≈ 1e-9 relative; rounding 1e-16 √1000/h. The closed form is missed by the error of
    # 25 steps of second order.
    np.testing.assert_allclose(gradient, (up - down) / (2 * h), rtol=1e-7)
    exact = (heat_solution(0.05, c + h).sum() - heat_solution(0.05, c - h).sum()) / (2 * h)
    np.testing.assert_allclose(gradient, exact, rtol=2e-3)


def test_gradient_through_adaptive_steps():
    gradient = jax.grad(lambda c: jnp.sum(solve(heat, heat_start(), 0.05, solver=BOUND, rtol=1e-7, args=c).y["u"]))(ONE)
    h = 1e-4
    exact = (heat_solution(0.05, 1 + h).sum() - heat_solution(0.05, 1 - h).sum()) / (2 * h)
    np.testing.assert_allclose(float(gradient), exact, rtol=1e-4)


def test_vmap_over_radii_that_need_different_numbers_of_stages():
    def run(conductivity):
        return solve(heat, heat_start(), 0.05, solver=BOUND, args=conductivity)

    conductivities = jnp.asarray([0.01, 1.0, 3.0])
    together = jax.vmap(run)(conductivities)
    for i, c in enumerate(conductivities):
        alone = run(c)
        # The same steps: operations may be reordered, no more.
        np.testing.assert_allclose(np.asarray(together.y["u"][i]), np.asarray(alone.y["u"]), atol=1e-11)
        assert int(together.evaluations[i]) == int(alone.evaluations)  # pyright: ignore[reportIndexIssue]


def test_steps_beyond_the_largest_number_of_stages_are_refused():
    few = RungeKuttaChebyshev(heat_radius, max_stages=8)
    adaptive = solve(heat, heat_start(), 0.05, solver=few, args=ONE)
    np.testing.assert_allclose(np.asarray(adaptive.y["u"]), heat_solution(0.05), atol=1e-4)
    # No step beyond h ρ = 0.653 (8² − 1) = 41, so at least ρT/41 of them.
    assert int(adaptive.accepted) >= RHO * 0.05 / 41.2
    assert int(adaptive.accepted) > 1.5 * int(solve(heat, heat_start(), 0.05, solver=BOUND, args=ONE).accepted)
    assert bool(adaptive.successful)
    assert not bool(solve(heat, heat_start(), 0.05, solver=few, steps=5, args=ONE).successful)


def test_dense_output_between_steps():
    times = jnp.linspace(0.0, 0.1, 23)
    out = diffrax.diffeqsolve(
        diffrax.ODETerm(heat),
        BOUND,
        0.0,
        0.1,
        None,
        heat_start(),
        args=ONE,
        stepsize_controller=diffrax.PIDController(rtol=1e-7, atol=1e-7),
        saveat=diffrax.SaveAt(ts=times),
    )
    assert out.ys is not None
    exact = np.stack([heat_solution(t) for t in np.asarray(times)])
    # Cubic Hermite interpolation, of order 4 in the step, does not exceed the solver's own error.
    np.testing.assert_allclose(np.asarray(out.ys["u"]), exact, atol=1e-5)


def test_the_slope_is_taken_anew_after_a_jump():
    def field(t, y, args):
        del y, args
        return jnp.where(t < 0.5, 0.0, 1.0)

    # Two steps, a jump between them where the controller knows of it. Then 0.5 is exact: the field is constant on each
    # side; with the stale slope it is not.
    controller = diffrax.ClipStepSizeController(diffrax.PIDController(rtol=1e3, atol=1e3), jump_ts=jnp.asarray([0.5]))
    out = _solve(field, PRETENDED, jnp.asarray(0.0), ONE, jnp.asarray(0.5), controller, jnp.asarray(4.0))
    assert out.ys is not None
    np.testing.assert_allclose(float(out.ys[0]), 0.5, rtol=1e-9)


class Cooling(eqx.Module):
    """The heat equation as a flow (t, state); its decay is the one number that the closed form does not have."""

    conductivity: jax.Array

    def __call__(self, t, state):
        return heat(t, state, self.conductivity)


def test_steps_that_python_takes_are_those_of_the_compiled_loop():
    times = jnp.linspace(0.0, 0.1, 7)
    flow, start = Cooling(ONE), heat_start()
    taken = integrate_by_steps(flow, start, times, rtol=1e-6, atol=1e-6, max_steps=1000, by_part=False)
    assert bool(taken.successful)
    field, controller = diffrax.ODETerm(lambda t, y, flow: flow(t, y)), diffrax.PIDController(rtol=1e-6, atol=1e-6)
    # diffrax begins every run with a step of 0.01 where none is named; this one looks at the field first.
    first = controller.init(field, times[0], times[-1], start, None, flow, ESTIMATED.func, 3)[0]
    loop = diffrax.diffeqsolve(
        field, ESTIMATED, 0.0, 0.1, first, start, flow, saveat=diffrax.SaveAt(ts=times), stepsize_controller=controller
    )
    for name in ("num_steps", "num_accepted_steps", "num_rejected_steps"):
        assert int(taken.statistics[name]) == int(loop.stats[name]), name
    # The same operations in another order.
    assert loop.ys is not None
    np.testing.assert_allclose(taken.states["u"], loop.ys["u"], atol=1e-11)
    np.testing.assert_allclose(taken.states["u"], np.stack([heat_solution(float(t)) for t in times]), atol=1e-4)


def test_errors_of_a_part_are_not_those_of_its_smallest_numbers():
    """Heat spreading from one point, 0 elsewhere at the start: numbers of every size in one array."""
    times = jnp.linspace(0.0, 0.02, 3)
    flow, start = Cooling(ONE), {"u": jnp.zeros(N_POINTS).at[N_POINTS // 3].set(1.0)}
    options: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-14, "max_steps": 100_000}
    loop = {"solver": RungeKuttaChebyshev(), **options}
    k = np.arange(1, N_POINTS + 1)
    modes = np.sin(np.pi * np.outer(GRID, k)) * np.sqrt(2 / (N_POINTS + 1))
    exact = modes @ (np.exp(-heat_eigenvalue(k) * 0.02) * (modes.T @ np.asarray(start["u"])))
    part = integrate(flow, start, times, by_part=True, **loop)
    by_steps = integrate_by_steps(flow, start, times, by_part=True, **options)
    entries = integrate(flow, start, times, by_part=False, **loop)
    for found in (part, by_steps):
        # A few hundred steps of 1e-6 each, most of which the heat forgets.
        np.testing.assert_allclose(found.states["u"][-1], exact, atol=3e-5 * np.sqrt(np.mean(exact**2)))
        assert int(found.statistics["num_steps"]) < int(entries.statistics["num_steps"]) / 2


def test_steps_by_python_that_run_out_are_a_result():
    times = jnp.linspace(0.0, 0.1, 7)
    out = integrate_by_steps(Cooling(ONE), heat_start(), times, rtol=1e-6, atol=1e-6, max_steps=30)
    assert not bool(out.successful)
    last = np.asarray(out.states["u"])[[0, -1]]
    assert np.isfinite(last[0]).all()
    assert not np.isfinite(last[1]).any()
    assert int(out.statistics["num_steps"]) == 30


def test_too_few_stages():
    with pytest.raises(ValueError, match="max_stages: expected at least 2, got 1"):
        RungeKuttaChebyshev(heat_radius, max_stages=1)
