"""The default integration of reduced flows: its Jacobian against a dense one, its errors against scipy's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from ntkcollapse import BlockKernel, Classes, Flow, KernelPath, LastLayer, Method, simulate
from ntkcollapse.theory import extrapolation
from ntkcollapse.theory.extrapolation import integrate_reduced
from ntkcollapse.theory.reduced import ReducedFlow, ReducedStart, ReducedState
from tests.references import CONSTANT, load

PARTS = ("M", "P", "W", "b")


def rms(x):
    return np.sqrt(np.mean(np.square(np.asarray(x))))


def small_problem(
    seed, *, scale=0.5, sizes=(3, 4, 6), n=5, kernel: Any = (3.0, 2.0, 0.6), decay: Any = 0.0, bias="free"
):
    keys = jax.random.split(jax.random.key(seed), 3)
    classes = Classes(sizes=sizes)
    start = LastLayer(
        H=scale * jax.random.normal(keys[0], (n, classes.num_samples)),
        W=scale * jax.random.normal(keys[1], (len(sizes), n)),
        b=np.zeros(len(sizes)),
    )
    return start, Flow(BlockKernel(*kernel), classes, weight_decay=decay, bias=bias)


def reduction(start, flow):
    kernel = flow.kernel.at(0.0)
    assert isinstance(kernel, BlockKernel)
    return ReducedStart.of(start, kernel, flow.classes)


def by_scipy(start, flow, until):
    """H, W, b at the end."""
    return [x[-1] for x in along_by_scipy(start, flow, [until])]


def along_by_scipy(start, flow, times, rtol=3e-14):
    """H, W, b at all times, by Dormand and Prince's method of order 8 on all of H, in numpy, near rounding."""
    shapes = [np.shape(x) for x in (start.H, start.W, start.b)]
    cuts = np.cumsum([np.prod(s) for s in shapes])[:-1].astype(int)
    path = flow.kernel if isinstance(flow.kernel, KernelPath) else None
    knots = [0.0] if path is None else list(map(float, path.times))
    matrices = np.stack([np.asarray(flow.kernel.at(t).as_matrix(flow.classes)) for t in knots])
    Y = np.asarray(flow.classes.Y)

    def kernel(t):
        i = max(int(np.searchsorted(knots, t)) - 1, 0)
        if path is None or i + 1 == len(knots):
            return matrices[i]
        return matrices[i] + (t - knots[i]) / (knots[i + 1] - knots[i]) * (matrices[i + 1] - matrices[i])

    decay = [float(x) for x in (flow.weight_decay.H, flow.weight_decay.W, flow.weight_decay.b)]

    def speed(t, y):
        H, W, b = (x.reshape(s) for x, s in zip(np.split(y, cuts), shapes, strict=True))
        R = W @ H + b[:, None] - Y
        moving = 1.0 if flow.bias == "free" else 0.0
        parts = (-W.T @ R @ kernel(t) - decay[0] * H, -R @ H.T - decay[1] * W, moving * (-R.sum(1) - decay[2] * b))
        return np.concatenate([part.ravel() for part in parts])

    y = np.concatenate([np.ravel(x) for x in (start.H, start.W, start.b)])
    scale = max(np.abs(y).max(), 1e-300)
    options = {"method": "DOP853", "rtol": rtol, "atol": rtol / 30 * scale, "t_eval": times}
    out = solve_ivp(speed, (0.0, times[-1]), y, **options).y.T
    return [x.reshape(-1, *s) for x, s in zip(np.split(out, cuts, axis=1), shapes, strict=True)]


def test_jacobian_is_the_dense_one_without_what_the_classifier_does_to_propagators():
    """(1 − τ J) solved by the classes' small systems, for unequal classes, two groups' rates and three decays."""
    start, flow = small_problem(
        0, kernel=(np.array([3.0, 2.5, 4.0]), np.array([2.0, 1.0, 3.0]), 0.6), decay={"H": 0.3, "W": 0.2, "b": 0.1}
    )
    reduced = reduction(start, flow)
    field = ReducedFlow(
        flow.kernel, flow.classes.weights.astype(float), reduced.scatter, scale=0.7, weight_decay=flow.weight_decay
    )
    problem = extrapolation._problem(field, extrapolation._ON_HOST, np.dtype(float))
    first = reduced.state
    keys = jax.random.split(jax.random.key(1), 2)
    state = ReducedState(
        M=first.M, P=first.P + 0.3 * jax.random.normal(keys[0], first.P.shape), W=first.W, b=first.b + 1
    )
    y = problem.join(*(np.asarray(getattr(state, name)) for name in PARTS))

    def speed(y):
        M, P, W, b = problem.split(y)
        out = field(0.0, ReducedState(M=M, P=P, W=W, b=b))
        return jnp.concatenate([getattr(out, name).ravel() for name in PARTS])

    np.testing.assert_allclose(problem.speed(0.0, y), speed(jnp.asarray(y)), rtol=1e-12)
    J = np.array(jax.jacobian(speed)(jnp.asarray(y)))
    (_, of_M), (of_P, _), (of_W, _), _ = problem.places
    del of_M
    J[of_P, of_W] = 0.0
    δ = np.asarray(jax.random.normal(keys[1], y.shape))
    jacobian = extrapolation._Jacobian.at(problem, 0.0, y)
    errors = []
    for τ in (1e-3, 1e-4):
        exact = np.linalg.solve(np.eye(len(y)) - τ * J, δ)
        errors.append(np.abs(jacobian.solver(τ)(δ) - exact).max())
    # Two corrections leave the third power of τ times the residual's part of J; all else is exact.
    assert errors[0] < 1e-4
    assert errors[1] < 2e-3 * errors[0]


@pytest.mark.parametrize("name", CONSTANT)
def test_final_error_is_within_ten_tolerances_on_references(name):
    """Stored runs, at 1e-10 or better, that other software made."""
    case = load(name)
    flow = Flow(case.kappa, case.classes, weight_decay=case.weight_decay)
    for rtol in (1e-4, 1e-7):
        run = simulate(case.start, flow, times=case["t"], method=Method(rtol=rtol), observed=False)
        last = run.last_layer(-1)
        for part in ("H", "W", "b"):
            expected = case[part][-1]
            error = rms(getattr(last, part) - expected)
            assert error < 10 * rtol * rms(expected) + 1e-9, (rtol, part, error / rms(expected))


@pytest.mark.parametrize("scale", [1e-11, 1e-7, 1e-3])
def test_small_starts_grow_with_the_same_relative_error(scale):
    """An absolute tolerance would hide the growth: at 1e-9, W ended 17% off from a start of size 1e-11."""
    start, flow = small_problem(3, scale=scale, sizes=(4, 4, 4))
    until = 1.5
    H, W, b = by_scipy(start, flow, until)
    assert rms(W) > 3 * scale
    last = simulate(start, flow, times=[0.0, until], observed=False).last_layer(-1)
    for got, expected in ((last.H, H), (last.W, W), (last.b, b)):
        assert rms(got - expected) < 1e-5 * rms(expected)


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (4, {"decay": {"H": 0.1, "W": 0.3, "b": 0.02}}),
        (5, {"bias": "frozen", "sizes": (2, 30, 7)}),
        (6, {"kernel": (90.0, 2.0, 0.6), "scale": 1.0}),
        (7, {"kernel": (3.0, 2.0, 1.9), "sizes": (20, 20, 20)}),
    ],
)
def test_final_error_is_within_ten_tolerances_on_random_flows(seed, options):
    start, flow = small_problem(seed, **options)
    exact = by_scipy(start, flow, 2.0)
    for rtol in (1e-3, 1e-6, 1e-11):
        last = simulate(start, flow, times=[0.0, 0.1, 2.0], method=Method(rtol=rtol), observed=False).last_layer(-1)
        for got, expected in zip((last.H, last.W, last.b), exact, strict=True):
            assert rms(got - expected) < 10 * rtol * rms(expected) + 1e-12


def test_work_grows_little_with_stiffness():
    """The same features with 10,000 times the samples: rates that much faster, fewer than four times the steps."""
    steps = []
    start, _ = small_problem(8)
    for m in (10, 100_000):
        reduced = ReducedStart(M=start.H[:, :3], scatter=0.1 * m * jnp.eye(5), W=start.W, b=start.b)
        run = simulate(reduced, BlockKernel(3.0, 2.0, 0.6), Classes.balanced(3, m), [0.0, 5.0], observed=False)
        steps.append(int(run.statistics["num_steps"]))
    assert steps[1] < 4 * steps[0]


def on_host(start, flow, times, **options):
    reduced = reduction(start, flow)
    field = ReducedFlow(flow.kernel, flow.classes.weights.astype(float), reduced.scatter)
    return integrate_reduced(field, reduced.state, times, **options)


def along(start, flow, times, exact_rtol=3e-14, **options):
    """The run on the host, and the largest error of M, W and b at all times over the size of the part then."""
    out = on_host(start, flow, times, **options)
    H, W, b = along_by_scipy(start, flow, times, exact_rtol)
    M = np.stack([H[..., i : i + 4].mean(-1) for i in (0, 4, 8)], axis=-1)
    errors = [
        max(rms(a - e) / rms(e) for a, e in zip(np.asarray(got)[1:], exact[1:], strict=True))
        for got, exact in zip((out.states.M, out.states.W, out.states.b), (M, W, b), strict=True)
    ]
    return out, max(errors)


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("rtol", [1e-4, 1e-7])
def test_times_between_steps_are_within_ten_tolerances(explicit, rtol):
    """Saved times take no steps of their own, by explicit steps or by extrapolation."""
    start, flow = small_problem(12, sizes=(4, 4, 4))
    times = np.linspace(0.0, 2.0, 81)
    out, error = along(start, flow, times, rtol=rtol, explicit=explicit)
    assert int(out.statistics["num_steps"]) < 60
    assert error < 10 * rtol


def test_times_between_steps_of_a_path_with_corners_are_within_ten_tolerances():
    """Steps end at the times of the kernel, between which alone polynomials go."""
    start, flow = small_problem(14, sizes=(4, 4, 4))
    knots, growth = np.linspace(0.0, 1.0, 4), np.array([1.0, 3.0, 0.5, 2.0])
    values = {name: size * growth for name, size in (("diagonal", 3.0), ("within", 2.0), ("between", 0.6))}
    flow = Flow(KernelPath(knots, **values), flow.classes)
    times, rtol = np.linspace(0.0, 1.0, 31), 1e-6
    _, W, b = along_by_scipy(start, flow, times, 1e-11)
    for explicit in (True, False):
        states = on_host(start, flow, times, rtol=rtol, explicit=explicit).states
        for got, exact in ((states.W, W), (states.b, b)):
            errors = [rms(a - e) / rms(e) for a, e in zip(np.asarray(got)[1:], exact[1:], strict=True)]
            assert max(errors) < 10 * rtol


def test_a_flow_that_becomes_stiff_is_taken_over(monkeypatch):
    """A kernel that grows a hundred times: explicit steps at first, fewer evaluations than theirs to the end."""
    start, flow = small_problem(13, sizes=(4, 4, 4))
    growth = np.array([1.0, 1.0, 100.0, 100.0])
    values = {name: size * growth for name, size in (("diagonal", 3.0), ("within", 2.0), ("between", 0.6))}
    flow = Flow(KernelPath([0.0, 0.5, 1.0, 3.0], **values), flow.classes)
    times, rtol = np.array([0.0, 0.5, 3.0]), 1e-6
    # As for matrices whose products are all that costs: for such small ones explicit steps are the better to the end.
    monkeypatch.setattr(extrapolation, "AFFORDABLE", extrapolation.AFFORDABLE * 14 / 50)
    out, error = along(start, flow, times, exact_rtol=1e-10, rtol=rtol)
    assert error < 10 * rtol
    evaluations = [int(out.statistics["num_evaluations"])]
    for affordable in (0.0, np.inf):
        monkeypatch.setattr(extrapolation, "AFFORDABLE", affordable)
        evaluations.append(int(on_host(start, flow, times, rtol=rtol).statistics["num_evaluations"]))
    mixed, extrapolated, explicit = evaluations
    assert mixed != extrapolated
    assert mixed < explicit / 2


def test_runs_under_vmap_and_jit_are_the_run_on_the_host():
    start, flow = small_problem(9, sizes=(4, 4, 4))
    reduced = reduction(start, flow)
    times = jnp.linspace(0.0, 1.0, 4)

    def final(scale, kernel):
        field = ReducedFlow(kernel, flow.classes.weights.astype(float), reduced.scatter)
        first = ReducedState(M=scale * reduced.M, P=reduced.state.P, W=reduced.W, b=reduced.b)
        out = integrate_reduced(field, first, times, rtol=1e-8, explicit=False)
        return out.states, out.outcome, out.statistics["num_steps"]

    path = KernelPath([0.0, 0.5, 1.0], diagonal=[3.0, 4.0, 2.0], within=[2.0, 2.5, 1.0], between=[0.6, 0.3, 0.1])
    scales = jnp.array([0.3, 1.0])
    for kernel in (flow.kernel, path):
        together, outcomes, steps = jax.jit(jax.vmap(lambda scale, kernel=kernel: final(scale, kernel)))(scales)
        assert outcomes.tolist() == [0, 0]
        for i, scale in enumerate(scales):
            alone, _, taken = final(scale, kernel)
            assert abs(int(taken) - int(steps[i])) <= 2
            for name in PARTS:
                np.testing.assert_allclose(getattr(together, name)[i], getattr(alone, name), rtol=1e-6, atol=1e-8)


def test_default_method_is_differentiable():
    """The derivative of the loss against a difference quotient of default runs."""
    start, flow = small_problem(10, sizes=(4, 4, 4))

    def loss(between):
        kernel = BlockKernel(3.0, 2.0, between)
        return simulate(start, kernel, flow.classes, [0.0, 0.5], method=Method(rtol=1e-8))["loss"][-1]

    h = 1e-3
    quotient = (loss(0.6 + h) - loss(0.6 - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(loss)(0.6), quotient, rtol=1e-4)


def test_unreached_times_are_infinite_and_the_reason_is_told():
    start, flow = small_problem(11, sizes=(4, 4, 4))
    reduced = reduction(start, flow)
    field = ReducedFlow(flow.kernel, flow.classes.weights.astype(float), reduced.scatter)
    out = integrate_reduced(field, reduced.state, np.array([0.0, 1e-3, 1.0]), rtol=1e-9, max_steps=12)
    assert int(out.outcome) == extrapolation.Outcome.TOO_MANY_STEPS
    assert not bool(out.successful)
    assert int(out.statistics["num_steps"]) == 12
    finite = np.isfinite(np.asarray(out.states.W)[:, 0, 0])
    assert (bool(finite[0]), bool(finite[-1])) == (True, False)
