"""The state equation itself, what all models share, and the registry."""

import warnings
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkcollapse import BlockKernel, Classes, CrossEntropy, DenseKernel, LastLayer, SquaredError
from ntkcollapse.commands.simulate import SimulateConfig, simulate_command
from ntkcollapse.simulation import simulate
from ntkcollapse.theory import models
from ntkcollapse.theory.flow import Flow
from ntkcollapse.theory.integrate import integrate, named_solver
from ntkcollapse.theory.invariant import invariant
from ntkcollapse.theory.method import Method
from tests.cases import random_state
from tests.theory.model_cases import scaled_start, simplex


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    sizes=st.sampled_from([(2, 3, 1), (3, 3, 3)]),
    n=st.sampled_from([2, 4]),
    seed=st.integers(0, 10_000),
    loss=st.sampled_from([SquaredError(0.7), CrossEntropy(), CrossEntropy(0.3)]),
    decay=st.sampled_from([0.0, 0.4]),
)
def test_the_invariant_for_random_kernels_losses_and_sizes(sizes, n, seed, loss, decay):
    """d/dt (WᵀW − H K⁻¹ Hᵀ) = −2λ (WᵀW − H K⁻¹ Hᵀ), for any positive K and any loss of the logits."""
    classes = Classes(sizes=sizes)
    A = np.random.default_rng(seed).normal(size=(classes.num_samples, classes.num_samples))
    kernel = DenseKernel(A @ A.T + 0.5 * np.eye(len(A)))
    state = random_state(n, classes, seed)
    flow = models.ntk_collapse(classes, kernel, weight_decay=decay, loss=loss)
    E, dE = jax.jvp(lambda s: invariant(s, kernel, classes), (state,), (flow(0.0, state),))
    # Terms of size ‖W‖‖G‖‖H‖ cancel: rounding of their size, times the condition of K (at most about 1e2).
    np.testing.assert_allclose(dE, -2 * decay * E, rtol=0, atol=1e-10 * max(1, float(jnp.abs(E).max())))


@eqx.filter_jit
def in_full(flow, start: LastLayer, times):
    return integrate(flow, start, times, solver=named_solver("tsit5"), rtol=1e-9, atol=1e-11, max_steps=20_000)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    sizes=st.sampled_from([(2, 3, 1), (2, 2, 2)]),
    n=st.just(4),
    seed=st.integers(0, 10_000),
    loss=st.sampled_from([SquaredError(0.7), CrossEntropy(1.3)]),
    decay=st.sampled_from([0.0, 0.3]),
)
def test_the_invariant_along_integrations(sizes, n, seed, loss, decay):
    """E(t) = E(0) e^{−2λt} at every saved time of an integration in full, for any positive K, balanced or not."""
    classes = Classes(sizes=sizes)
    A = np.random.default_rng(seed).normal(size=(6, 6))
    K = A @ A.T / 6 + 0.5 * np.eye(6)
    flow = models.ntk_collapse(classes, DenseKernel(K), weight_decay=jnp.asarray(decay), loss=loss)
    times = jnp.asarray([0.0, 0.5, 3.0])
    out = in_full(flow, random_state(n, classes, seed), times)
    H, W = np.asarray(out.states.H), np.asarray(out.states.W)
    E = np.swapaxes(W, 1, 2) @ W - H @ np.linalg.solve(K, np.swapaxes(H, 1, 2))
    # The state moves by its own size; E does not, but for the solver's 1e-9 a step over up to some hundred steps.
    assert np.linalg.norm(W[-1] - W[0]) > 0.1 * np.linalg.norm(W[0])
    expected = E[0] * np.exp(-2 * decay * times)[:, None, None]
    np.testing.assert_allclose(E, expected, rtol=0, atol=3e-7 * float(np.linalg.norm(E[0])))


def test_weight_decay_takes_the_invariant_to_zero():
    classes, λ = Classes(sizes=(2, 4, 3)), 0.3
    kernel = BlockKernel(3.0, 2.0, 0.6)
    flow = models.ntk_collapse(classes, kernel, weight_decay=λ, loss=CrossEntropy())
    start, times = random_state(5, classes), np.linspace(0.0, 4.0, 5)
    run = simulate(start, flow, classes, times, method=Method(solver="tsit5", rtol=1e-9, atol=1e-11))
    first = float(run["invariant_norm"][0])
    # Solver error at rtol 1e-9 over this time, relative to a norm that falls by e^{−2.4}.
    np.testing.assert_allclose(run["invariant_norm"], first * np.exp(-2 * λ * times), rtol=1e-6)


def test_relative_rates_and_frozen_classifier():
    classes = Classes(sizes=(2, 3))
    state = random_state(3, classes)
    plain = models.unconstrained_features(classes)
    other = eqx.tree_at(lambda f: (f.rate_W, f.rate_b), plain, (0.25, 3.0))
    a, b = plain(0.0, state), other(0.0, state)
    np.testing.assert_allclose(b.H, a.H)
    np.testing.assert_allclose(b.W, 0.25 * a.W)
    np.testing.assert_allclose(b.b, 3.0 * a.b)
    assert plain.is_plain
    assert not other.is_plain


UNEVEN = Classes(sizes=(2, 3))


@pytest.mark.parametrize(
    "ask",
    [
        lambda: models.ntk_collapse.limit(BlockKernel(3.0, 2.0, 0.6), UNEVEN),
        lambda: models.ntk_collapse.minimizer(BlockKernel(3.0, 2.0, 0.6), UNEVEN, weight_decay=0.1),
        lambda: models.unconstrained_features.limit(UNEVEN),
        lambda: models.cross_entropy_features.minimizer(UNEVEN, 0.1, 0.1),
        lambda: models.max_margin.limit(UNEVEN),
        lambda: models.central_path.law(1.0, jnp.ones(1), UNEVEN),
        lambda: models.central_path.signal_to_noise(random_state(2, UNEVEN).H, UNEVEN),
        lambda: models.batch_norm_head(UNEVEN, 0.1),
        lambda: models.batch_norm_head.minimizer(UNEVEN, 0.1),
        lambda: models.spherical_features.minimizer(UNEVEN, 1.0, 1.0),
    ],
)
def test_models_that_need_balance_say_so(ask):
    with pytest.raises(ValueError, match="expected classes of one size, got sizes from 2 to 3"):
        ask()


@pytest.mark.parametrize("bias", ["free", "absent"])
def test_the_warning_of_a_trivial_minimiser_comes_at_its_threshold(bias):
    """Just where the closed form loses its last mode; unequal classes."""
    classes = Classes(sizes=(7, 4, 2))
    modes = np.eye(3) - (np.array(classes.sizes)[:, None] / 13 if bias == "free" else 0)
    largest = np.linalg.norm(modes * np.sqrt(classes.sizes)[None, :], ord=2)
    for factor, alive in ((0.999, 1), (1.001, 0)):
        decay = factor * largest / 13
        assert int(models.regularised_features.minimizer(classes, decay, decay, bias=bias).alive) == alive
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            models.regularised_features(classes, decay, decay, bias=bias)
        assert len(seen) == 1 - alive


CONSTRAINED = {
    "spherical_features": lambda classes: models.spherical_features(classes, 1.0, 1.0),
    "layer_peeled": lambda classes: models.layer_peeled(classes, 0.5, 0.5),
    "central_path": models.central_path,
    "fixed_etf": lambda classes: models.fixed_etf(classes, 0.5, 1.0, loss="cross-entropy"),
    "logit_ball": lambda classes: models.logit_ball(classes, 0.5),
}


@pytest.mark.parametrize("name", CONSTRAINED)
def test_constraints_are_checked_at_the_start_and_corrected_on_the_way(name):
    classes = Classes(sizes=(6, 5, 4))
    flow = CONSTRAINED[name](classes)
    start, times = scaled_start(3, classes, 1.0), np.array([0.0, 1.0, 5.0])
    with pytest.raises(ValueError, match=r"start: expected a state that satisfies .*off by .*retract"):
        simulate(start, flow, classes, times)
    run = simulate(flow.retract(start), flow, classes, times, method=Method(rtol=1e-4, atol=1e-6), observed=False)
    # Steps of a part in 10⁴ leave a curved surface by about that, which is on record; what is saved lies on it.
    assert 0 < float(run.statistics["largest_correction"]) < 1e-2
    for H, W, b in zip(run.states.H, run.states.W, run.states.b, strict=True):
        assert float(flow.constraint.violation(LastLayer(H=H, W=W, b=b), classes)) < 1e-9


def test_a_fixed_classifier_is_checked_and_mended():
    """Features in their ball do not make up for a classifier that is no simplex ETF."""
    classes, energy = Classes(sizes=(6, 5, 4)), 2.0
    flow = models.fixed_etf(classes, 3.0, energy, loss="cross-entropy")
    start = scaled_start(4, classes, 0.1)
    with pytest.raises(ValueError, match=r"start: expected a state that satisfies FixedFrame.*off by .*retract"):
        simulate(start, flow, classes, np.array([0.0, 1.0]))
    mended = flow.retract(start)
    np.testing.assert_array_equal(mended.H, start.H)
    np.testing.assert_allclose(mended.W @ mended.W.T, 1.5 * energy * simplex(3), atol=1e-12)
    # Nearest among them: no rotation of it is nearer. Of W = V Q, V fixed, the best Q maximises tr(Wᵀ start.W).
    rng = np.random.default_rng(0)
    for _ in range(20):
        A = 1e-2 * rng.normal(size=(4, 4))
        turned = mended.W @ jax.scipy.linalg.expm(A - A.T)
        assert jnp.linalg.norm(turned - start.W) >= jnp.linalg.norm(mended.W - start.W)
    again = flow.retract(mended)
    np.testing.assert_array_equal(again.W, mended.W)


def test_too_few_dimensions():
    with pytest.raises(ValueError, match="at least C - 1 = 3 dimensions, got 2"):
        models.fixed_etf.classifier(4, 2, key=jax.random.key(0))
    for minimiser in (models.cross_entropy_features.minimizer, models.spherical_features.minimizer):
        with pytest.raises(ValueError, match="at least C - 1 = 3 dimensions, got 2"):
            minimiser(Classes.balanced(4, 2), 0.01, 0.01, num_features=2)
    uneven = Classes(sizes=(3, 2, 2, 2))
    with pytest.raises(ValueError, match="at least C - 1 = 3 dimensions, got 2"):
        models.regularised_features.minimizer(uneven, 0.01, 0.01, num_features=2)
    with pytest.raises(ValueError, match="orthogonal frame of C = 4 vectors needs as many dimensions, got 3"):
        models.regularised_features.minimizer(uneven, 0.01, 0.01, bias="absent", num_features=3)
    flow = models.unconstrained_features(uneven)
    with pytest.warns(UserWarning, match=r"2 features cannot hold a simplex ETF of C = 4 vectors, which needs n ≥ C"):
        simulate(random_state(2, uneven), flow, uneven, np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"H: expected at most N - C = 5 features.*got 6"):
        models.central_path(uneven).retract(random_state(6, uneven))


def test_bad_input_is_named():
    flow = models.spherical_features(UNEVEN, 1.0, 1.0)
    with pytest.raises(TypeError, match="kernel: expected a kernel, got the function"):
        Flow(flow, UNEVEN, weight_decay=0.1)
    with pytest.raises(AttributeError, match="has no 'minimiser', but minimizer"):
        _ = models.spherical_features.minimiser
    with pytest.raises(ValueError, match=r"kind: expected one of 'I', 'L', 'softmax'; got 'M'"):
        models.elastic(Classes.balanced(2, 2), 1.0, 0.0, 0.1, kind="M")
    with pytest.raises(ValueError, match="amplification: expected a whole number of at least 1, got 0"):
        models.svag(0.1, 0)
    with pytest.raises(
        ValueError, match=r"2 - learning_rate \* curvature / amplification: expected numbers above zero"
    ):
        models.svag.variance(1.0, 1.0, 2.5, 1.0)
    with pytest.raises(ValueError, match="layers: expected at least 2"):
        models.homogeneous(UNEVEN, 0.1, layers=1)


def test_every_model_names_a_test_that_exists():
    for entry in models.MODELS.values():
        file, name = entry.test.split("::")
        assert f"def {name}(" in (Path(__file__).parents[2] / file).read_text()
        assert entry.__doc__


def test_the_table_in_the_documentation_is_that_of_the_registry():
    page = Path(__file__).parents[2] / "docs" / "models.md"
    assert page.read_text() == models.table(), "python -m ntkcollapse.theory.models > docs/models.md"


def test_models_on_the_command_line(tmp_path):
    def command(**settings):
        simulate_command(SimulateConfig(classes=2, per_class=(3,), features=2, out=str(tmp_path / "run"), **settings))

    with pytest.raises(ValueError, match=r"option of layer_peeled: expected one of 'energy_H', 'energy_W'"):
        command(model="layer_peeled", parameters=("energy=3",))
    with pytest.raises(ValueError, match=r"parameters: layer_peeled takes energy_H, energy_W; .*missing"):
        command(model="layer_peeled", parameters=("energy_H=3",))
    with pytest.raises(ValueError, match=r"decay \(option of batch_norm_head\): expected a number, got 'abc' \(str\)"):
        command(model="batch_norm_head", parameters=("decay=abc",))
    with pytest.raises(ValueError, match="parameters: expected every option once, got energy_H again"):
        command(model="layer_peeled", parameters=("energy_H=3", "energy_W=3", "energy_H=4"))
    with pytest.raises(ValueError, match="weight_decay, bias: expected none beside model 'max_margin'"):
        command(model="max_margin", weight_decay=(0.1,))
    assert not (tmp_path / "run").exists()
