"""`simulate` as a user meets it: compiled once, mapped, differentiated, refused, and cut short."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkcollapse.simulation as module
from ntkcollapse import BlockKernel, Classes, CrossEntropy, Flow, KernelPath, LastLayer, Method, SquaredError
from ntkcollapse.observables import invariant_observables
from ntkcollapse.simulation import SimulationError, simulate
from ntkcollapse.theory.initial import collapsed, zero_invariant
from ntkcollapse.theory.reduced import ReducedStart
from tests.cases import UNEQUAL, kernels, random_state

CLASSES = Classes.balanced(3, 4)
KAPPA = BlockKernel(3.0, 2.0, 0.6)
TIMES = np.linspace(0.0, 2.0, 9)
START = random_state(5, CLASSES)


@pytest.mark.parametrize("kind", ["per class", "grouped"])
def test_reduced_run_is_the_full_run(kind):
    """Every observable and every column, for kernels with several groups of rates, unequal classes and decay."""
    kernel, state = kernels(UNEQUAL)[kind], random_state(5, UNEQUAL)
    flow = Flow(kernel, UNEQUAL, weight_decay={"H": 0.1, "W": 0.05, "b": 0.2})
    method = Method(solver="dopri8", rtol=1e-11, atol=1e-13)
    fast, slow = (simulate(state, flow, times=TIMES, method=method, reduced=r) for r in (True, False))
    assert fast.settings["flow"] == "reduced"
    assert slow.settings["flow"] == "full"
    # Two integrations at rtol 1e-11 over rates of about 30: errors of 1e-10.
    np.testing.assert_allclose(fast.last_layer(-1).H, slow.last_layer(-1).H, rtol=0, atol=1e-9)
    assert set(fast.observables) == set(slow.observables)
    for name in fast.observables:
        np.testing.assert_allclose(fast[name], slow[name], rtol=1e-6, atol=1e-8, err_msg=name)


@pytest.mark.parametrize(("n", "sizes"), [(9, (2, 3, 5)), (8, (5, 1, 8)), (3, (4, 5, 2))])
@pytest.mark.parametrize("large", [False, True])
def test_spread_within_classes_from_columns_or_from_their_squares(n, sizes, large, monkeypatch):
    """Few columns (padded to eight), as many as features, and more: against numpy's deviations of all columns."""
    if large:
        monkeypatch.setattr(module, "_LARGE", 0)
    classes = Classes(sizes)
    start = random_state(n, classes)
    kernel = BlockKernel(3.0, 2.0, 0.4)

    def observed(H):
        return simulate(LastLayer(H=H, W=start.W, b=start.b), kernel, classes, TIMES[:5])

    run = observed(start.H)
    traced = jax.jit(lambda H: observed(H)["nc1_seleznova2023"])(start.H)
    for i in range(5):
        H = np.split(np.asarray(run.last_layer(i).H), np.cumsum(sizes)[:-1], axis=1)
        expected = np.mean([part.std(axis=1) for part in H])
        np.testing.assert_allclose(run["nc1_seleznova2023"][i], expected, rtol=1e-10)
        np.testing.assert_allclose(traced[i], expected, rtol=1e-4)


def test_what_is_known_is_simulated_while_a_function_around_is_traced():
    """Under `jit`: nothing of the run traced, and a start or times traced under a kernel that is known."""
    run = simulate(START, KAPPA, CLASSES, TIMES[:3], observed=False)

    def around(x):
        return x * simulate(START, KAPPA, CLASSES, TIMES[:3], observed=False).states.W[-1]

    np.testing.assert_allclose(jax.jit(around)(2.0), 2.0 * run.states.W[-1], rtol=1e-12)

    def within(x):
        start = LastLayer(H=x * START.H, W=START.W, b=START.b)
        return simulate(start, KAPPA, CLASSES, x * TIMES[:3], observed=False).states.W[-1]

    np.testing.assert_allclose(jax.jit(within)(1.0), run.states.W[-1], rtol=0, atol=1e-5)


def test_default_solver_reaches_its_tolerance_and_conserves_the_invariant():
    exact = simulate(START, KAPPA, CLASSES, TIMES, method=Method(solver="dopri8", rtol=1e-12, atol=1e-14))
    for steady in (None, 1e-12):
        errors, drifts = [], []
        for rtol in (1e-3, 1e-5, 1e-7):
            method = Method(rtol=rtol, atol=rtol * 1e-3)
            run = simulate(START, KAPPA, CLASSES, TIMES, method=method, steady=steady)
            errors.append(float(jnp.abs(run.last_layer(-1).H - exact.last_layer(-1).H).max()))
            drifts.append(float(run["invariant_drift"][-1]))
            # Entries of H are of size 1.
            assert errors[-1] < 10 * rtol
            assert drifts[-1] < rtol
        assert errors[-1] < 1e-5
    # Where a steady state is looked for all steps are implicit, a second-order method under error control per step: the
    # global error falls as rtol^(2/3), 21 for 100. Explicit steps are better than asked for, as long as it is stable.
    for values in (errors, drifts):
        assert values[0] > 8 * values[1] > 64 * values[2]
    assert float(exact["invariant_drift"].max()) < 1e-11


def test_collapse_needs_c_minus_one_features():
    """n > C is assumed by the paper; n = C − 1 ends collapsed as well, and a run without n > C says so."""
    start = zero_invariant(CLASSES, 2, KAPPA, key=jax.random.key(0))
    run = simulate(start, KAPPA, CLASSES, [0.0, 40.0], columns=False)
    # Slowest rate 2 √(m λ_class) > 4.
    assert float(run["nc2_seleznova2023"][-1]) < 1e-6
    assert float(run["nc3_seleznova2023"][-1]) < 1e-6
    assert float(run["loss"][-1]) < 1e-10
    why = "the paper assumes n > C; n ≥ C − 1 = 2 is enough"
    assert run.settings["note"] == f"n = 2 features for C = 3 classes: {why}"
    wide = zero_invariant(CLASSES, 4, KAPPA, key=jax.random.key(0))
    assert "note" not in simulate(wide, KAPPA, CLASSES, [0.0, 1.0], observed=False).settings


def test_weight_decay_shrinks_the_invariant_exponentially():
    run = simulate(
        START,
        Flow(KAPPA, CLASSES, weight_decay={"H": 0.3, "W": 0.3}),
        times=TIMES,
        method=Method(solver="dopri8", rtol=1e-11),
    )
    expected = float(run["invariant_norm"][0]) * np.exp(-2 * 0.3 * TIMES)
    np.testing.assert_allclose(run["invariant_norm"], expected, rtol=1e-8)


def test_cross_entropy_conserves_the_invariant_and_has_its_own_loss():
    run = simulate(START, Flow(KAPPA, CLASSES, loss=CrossEntropy()), times=TIMES, method=Method(rtol=1e-10, atol=1e-12))
    assert run.settings["flow"] == "full"
    logits = np.asarray(START.logits)
    expected = np.sum(np.log(np.exp(logits).sum(0)) - logits[np.asarray(CLASSES.labels), np.arange(12)])
    np.testing.assert_allclose(run["loss"][0], expected, rtol=1e-12)
    assert float(run["invariant_drift"].max()) < 1e-9
    assert np.all(np.diff(np.asarray(run["loss"])) < 0)


def test_without_observation_there_are_states_alone(monkeypatch):
    """And nothing of the observation is compiled, for reduced and full runs alike."""
    seen = {reduced: simulate(START, KAPPA, CLASSES, TIMES, reduced=reduced) for reduced in (True, False)}
    for name in ("_observe_reduced", "_observe_columns", "_observe_full"):
        monkeypatch.delattr(module, name)
    for reduced, run in seen.items():
        alone = simulate(START, KAPPA, CLASSES, TIMES, reduced=reduced, observed=False)
        assert not alone.observables
        np.testing.assert_array_equal(alone.last_layer(-1).H, run.last_layer(-1).H)


def test_loss_scale_is_the_unit_of_time():
    run = simulate(START, KAPPA, CLASSES, TIMES, method=Method(solver="dopri8", rtol=1e-10))
    slow = simulate(
        START, Flow(KAPPA, CLASSES, loss=SquaredError(0.2)), times=TIMES * 5, method=Method(solver="dopri8", rtol=1e-10)
    )
    np.testing.assert_allclose(slow.states.W, run.states.W, atol=1e-8)
    np.testing.assert_allclose(slow["loss"], 0.2 * run["loss"], rtol=1e-7)


def test_kernel_path_that_does_not_move_is_the_constant_kernel():
    path = KernelPath([0.0, 1.0, 2.0], diagonal=[3.0] * 3, within=[2.0] * 3, between=[0.6] * 3)
    # A step ends at t = 1 of the path: the same to the tolerance.
    constant, along = (simulate(START, k, CLASSES, TIMES, method=Method(rtol=1e-8)) for k in (KAPPA, path))
    np.testing.assert_allclose(along.states.W, constant.states.W, atol=1e-12)
    np.testing.assert_allclose(along["kappa_within"], 2.0)
    with pytest.raises(ValueError, match="within those of the kernel path, 0 to 2; got 0 to 4"):
        simulate(START, path, CLASSES, 2 * TIMES)


def test_moving_kernel_path_reduced_is_full():
    path = KernelPath([0.0, 0.5, 2.0], diagonal=[3.0, 4.0, 3.5], within=[2.0, 2.5, 1.0], between=[0.6, 0.1, 0.3])
    options = {"method": Method(solver="dopri8", rtol=1e-9, atol=1e-11), "observed": False}
    fast, slow = (simulate(START, path, CLASSES, TIMES, reduced=r, **options) for r in (True, False))
    # Steps across the kinks of the path are what limits the accuracy of both.
    np.testing.assert_allclose(fast.last_layer(-1).H, slow.last_layer(-1).H, atol=1e-7)
    frozen = simulate(START, path.at(0.0), CLASSES, TIMES, **options)
    assert float(jnp.abs(frozen.states.W[-1] - fast.states.W[-1]).max()) > 1e-2
    with pytest.raises(ValueError, match=r"index: expected a saved time from -9 to 8, got 9"):
        fast.last_layer(9)


def test_single_precision_runs_in_single_precision():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = LastLayer(*(np.asarray(x, np.float32) for x in (START.H, START.W, START.b)))
        run = simulate(start, KAPPA, CLASSES, TIMES, method=Method(rtol=1e-4, atol=1e-5))
    assert run.states.W.dtype == jnp.float32
    whole = simulate(START, KAPPA, CLASSES, TIMES, method=Method(rtol=1e-4, atol=1e-5))
    np.testing.assert_allclose(run["loss"], whole["loss"], rtol=1e-2, atol=1e-3)


def test_vmap_over_kernels_and_starts():
    betweens = jnp.array([0.0, 0.3, 0.6])
    scales = jnp.array([0.5, 1.0, 1.5])

    def final(between, scale):
        start = LastLayer(H=scale * START.H, W=START.W, b=START.b)
        return simulate(start, BlockKernel(3.0, 2.0, between), CLASSES, TIMES).observables["loss"][-1]

    together = jax.vmap(final)(betweens, scales)
    traced = jax.jit(final)
    apart = [traced(b, s) for b, s in zip(betweens, scales, strict=True)]
    # The members of a batch choose their steps alone: rounding apart, the same numbers.
    np.testing.assert_allclose(together, apart, rtol=1e-9)
    # Outside of transformations steps are others; the smallest loss is of a residual of 0.03.
    on_host = [final(b, s) for b, s in zip(betweens, scales, strict=True)]
    np.testing.assert_allclose(together, on_host, rtol=1e-4)


def test_gradient_against_finite_differences():
    def final(parameters):
        between, scale = parameters
        start = LastLayer(H=scale * START.H, W=START.W, b=START.b)
        run = simulate(
            start,
            BlockKernel(3.0, 2.0, between),
            CLASSES,
            TIMES[:3],
            method=Method(solver="dopri8", rtol=1e-9, atol=1e-11),
        )
        return run.observables["loss"][-1] + run.observables["nc1_tirer2022"][-1]

    point = jnp.array([0.6, 1.1])
    gradient = jax.jit(jax.grad(final))(point)
    h = 1e-5
    differences = [(final(point.at[i].add(h)) - final(point.at[i].add(-h))) / (2 * h) for i in range(2)]
    # Differences of runs at rtol 1e-9 with h = 1e-5 leave about 1e-5 of the derivative.
    np.testing.assert_allclose(gradient, differences, rtol=1e-4)


def test_gradient_is_finite_where_norms_vanish():
    """Zero invariant, zero mean and zero scatter: norms without a derivative, of which the loss must not hear."""
    start = collapsed(CLASSES, 5, KAPPA, key=jax.random.key(0))

    def final(scale):
        moved = LastLayer(H=start.H, W=scale * start.W, b=start.b)
        run = simulate(moved, KAPPA, CLASSES, TIMES[:3], method=Method(solver="dopri8", rtol=1e-9, atol=1e-11))
        return run.observables["residual_class"][-1] + run.observables["loss"][-1]

    # The step is 10⁵ times the error of a run, and its square still small.
    h = 1e-4
    difference = (final(1.1 + h) - final(1.1 - h)) / (2 * h)
    np.testing.assert_allclose(jax.jit(jax.grad(final))(1.1), difference, rtol=1e-4)

    def all_of_them(scale):
        gram, mean = scale * jnp.eye(5), scale * jnp.ones(5)
        return sum(invariant_observables(scale * start.W, gram, mean).values())

    assert np.isfinite(jax.grad(all_of_them)(0.0))


def test_state_that_overflows_says_until_when_it_was_finite(monkeypatch):
    """A solver that reports success and hands back infinite states is not believed."""
    original = module._solve

    def broken(*args):
        out = original(*args)
        return eqx.tree_at(lambda o: o.states.W, out, out.states.W.at[5:].set(jnp.nan))

    monkeypatch.setattr(module, "_solve", broken)
    with pytest.raises(SimulationError, match=r"stopped after t = 1 of 2 \(5 of 9 .*no longer finite") as caught:
        simulate(START, KAPPA, CLASSES, TIMES, method=Method(solver="chebyshev"))
    assert caught.value.trajectory is not None
    assert caught.value.trajectory.times.shape == (5,)


def test_chebyshev_has_a_name_and_is_not_the_default():
    default, named = (
        simulate(START, KAPPA, CLASSES, TIMES, method=Method(solver=name), observed=False)
        for name in (None, "chebyshev")
    )
    assert (default.settings["solver"], named.settings["solver"]) == ("Extrapolation", "RungeKuttaChebyshev")
    np.testing.assert_allclose(named.states.W, default.states.W, atol=1e-4)
    full = simulate(START, KAPPA, CLASSES, TIMES, method=Method(solver="chebyshev"), reduced=False, observed=False)
    # Without the bound of the reduced flow the spectral radius is estimated: the same method, other steps.
    np.testing.assert_allclose(full.states.W, named.states.W, atol=1e-4)


def test_one_compilation_for_each_shape(monkeypatch):
    count = []
    original = module.reduced_feature_gram

    def counted(*args, **kwargs):
        count.append("reduced_feature_gram")
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "reduced_feature_gram", counted)
    times = np.linspace(0.0, 0.5, 7)
    for m, between in ((4, 0.6), (4, 0.3), (400, 0.3)):
        classes = Classes.balanced(3, m)
        start = ReducedStart(M=START.class_means(CLASSES), scatter=m * jnp.eye(5), W=START.W, b=START.b)
        simulate(start, BlockKernel(3.0, 2.0, between), classes, times, method=Method(rtol=1e-5))
    # One trace of what is observed, none of the integration.
    assert count == ["reduced_feature_gram"]


def test_a_first_step_that_overflows_is_shortened():
    """N = 18,000 makes rates of 10⁵, and the first step that an explicit method tries over a long time overflows."""
    classes = Classes.balanced(3, 6000)
    start = ReducedStart(M=START.class_means(CLASSES), scatter=0.05 * jnp.eye(5), W=START.W, b=START.b)
    run = simulate(
        start, KAPPA, classes, np.array([0.0, 2e-3]), method=Method(solver="tsit5", max_steps=5000), observed=False
    )
    exact = simulate(start, KAPPA, classes, np.array([0.0, 2e-3]), observed=False)
    np.testing.assert_allclose(run.states.W, exact.states.W, atol=1e-5)


def test_steady_state_ends_the_run():
    times = np.concatenate([[0.0], np.geomspace(1e-2, 1e3, 60)])
    run = simulate(START, Flow(KAPPA, CLASSES, weight_decay=0.05), times=times, steady=1e-6)
    assert bool(run.statistics["steady"])
    assert bool(run.statistics["successful"])
    T = len(run.times)
    assert 10 < T < 61
    # What is left of the motion after the slowest rate, about 0.05, says how far the state still is from its limit.
    whole = simulate(START, Flow(KAPPA, CLASSES, weight_decay=0.05), times=times, steady=1e-100)
    assert len(whole.times) == 61
    np.testing.assert_array_equal(run["loss"], whole["loss"][:T])
    # Without, it begins with other steps.
    other = simulate(START, Flow(KAPPA, CLASSES, weight_decay=0.05), times=times)
    np.testing.assert_allclose(run["loss"], other["loss"][:T], rtol=1e-4)
    for limit in (whole, other):
        np.testing.assert_allclose(run.states.W[-1], limit.states.W[-1], atol=1e-3)


def test_failure_says_where_and_returns_what_it_has():
    with pytest.raises(SimulationError, match=r"stopped after t = .* of 2 .*raise `max_steps`") as caught:
        simulate(START, KAPPA, CLASSES, TIMES, method=Method(solver="tsit5", max_steps=40))
    reached = caught.value.trajectory
    assert reached is not None
    whole = simulate(START, KAPPA, CLASSES, TIMES, method=Method(solver="tsit5"))
    T = reached.times.shape[0]
    assert 1 <= T < 9
    np.testing.assert_array_equal(reached["loss"], whole["loss"][:T])
    part = simulate(START, KAPPA, CLASSES, TIMES, method=Method(solver="tsit5", max_steps=40), throw=False)
    assert not bool(part.statistics["successful"])
    assert part.times.shape[0] == T


def test_indefinite_kernel_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        indefinite = BlockKernel(3.0, 2.0, -5.0)
    unchecked = eqx.tree_at(lambda k: k.between, KAPPA, indefinite.between)
    with pytest.raises(ValueError, match="positive-definite"):
        simulate(START, unchecked, CLASSES, TIMES)


def test_bad_input_is_refused_before_any_compute():
    with pytest.raises(ValueError, match="12 samples of classes"):
        simulate(random_state(5, Classes.balanced(3, 5)), KAPPA, CLASSES, TIMES)
    with pytest.raises(ValueError, match="times: expected strictly increasing"):
        simulate(START, KAPPA, CLASSES, TIMES[::-1])
    with pytest.raises(ValueError, match="times: expected finite"):
        simulate(START, KAPPA, CLASSES, np.array([0.0, np.inf]))
    with pytest.raises(ValueError, match=r"solver: .* Did you mean 'tsit5'"):
        simulate(START, KAPPA, CLASSES, TIMES, method=Method(solver="tsit"))
    with pytest.raises(ValueError, match=r"weight_decay: expected one of 'H', 'W', 'b'; got 'h'"):
        simulate(START, Flow(KAPPA, CLASSES, weight_decay={"h": 0.1}), times=TIMES)
    with pytest.raises(ValueError, match="weight_decay: expected numbers zero or above"):
        simulate(START, Flow(KAPPA, CLASSES, weight_decay=-0.1), times=TIMES)
    with pytest.raises(ValueError, match="b = 0 where the bias is absent"):
        simulate(START, Flow(KAPPA, CLASSES, bias="absent"), times=TIMES)
    with pytest.raises(ValueError, match=r"bias: .* got 'fixed'"):
        simulate(START, Flow(KAPPA, CLASSES, bias="fixed"), times=TIMES)
    with pytest.raises(ValueError, match="reduction is exact for squared error"):
        simulate(START, Flow(KAPPA, CLASSES, loss=CrossEntropy()), times=TIMES, reduced=True)
    with pytest.raises(ValueError, match="rtol: expected a relative tolerance from 1e-14 to below 1, got 0"):
        simulate(START, KAPPA, CLASSES, TIMES, method=Method(rtol=0.0))
    start = ReducedStart.of(START, KAPPA, CLASSES)
    with pytest.raises(ValueError, match="has no columns to integrate in full"):
        simulate(start, KAPPA, CLASSES, TIMES, reduced=False)
    with pytest.raises(ValueError, match="one scatter for each of 3 groups"):
        simulate(start, kernels(CLASSES)["per class"], CLASSES, TIMES)


def test_single_precision_is_warned_of_once(monkeypatch):
    monkeypatch.setattr(module, "_warned", set())
    start = jax.tree.map(lambda x: x.astype(jnp.float32), START)
    with pytest.warns(UserWarning, match="float64"):
        module._warn_single_precision(start.W)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module._warn_single_precision(start.W)
