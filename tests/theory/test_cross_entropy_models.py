"""Models with cross-entropy, each on its exact answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import Classes, CrossEntropy, LastLayer
from ntkcollapse.simulation import simulate
from ntkcollapse.theory import models
from ntkcollapse.theory.method import Method
from ntkcollapse.theory.models.layer_peeled import collapsed_odds
from ntkcollapse.theory.models.losses import LogCrossEntropy
from tests.cases import random_state
from tests.theory.model_cases import penalised, scaled_start, simplex


def test_cross_entropy_minimiser_from_any_start():
    C, m, λW, λH = 3, 4, 0.04, 0.01
    classes = Classes.balanced(C, m)
    flow = models.cross_entropy_features(classes, λW, λH)
    answer = models.cross_entropy_features.minimizer(classes, λW, λH)
    starts = [scaled_start(4, classes, size, seed, bias=True) for seed, size in enumerate((0.1, 1.0, 3.0))]
    times = jnp.asarray([0.0, 1000.0, 2000.0])
    method = Method(solver="kvaerno5", rtol=1e-8, atol=1e-10)
    runs = [simulate(s, flow, classes, times, method=method, observed=False) for s in starts]
    H, W, b = (np.stack([getattr(run.states, name)[-1] for run in runs]) for name in "HWb")
    for i in range(3):
        # Slowest rate λ_H = 0.01: e^{−20} of the start.
        np.testing.assert_allclose(W[i] @ W[i].T, answer.weight_scale * simplex(C), atol=1e-6)
        np.testing.assert_allclose(W[i] @ H[i], answer.scale * classes.expand(jnp.asarray(simplex(C))), atol=1e-6)
        end = LastLayer(H=H[i], W=W[i], b=b[i])
        np.testing.assert_allclose(penalised(flow, end), answer.value, rtol=1e-9)
    with pytest.warns(UserWarning, match="nothing is learned"):
        models.cross_entropy_features(classes, 1.0, 1.0)


def test_log_cross_entropy_where_cross_entropy_underflows():
    classes = Classes(sizes=(2, 3, 1))
    f = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)))
    Y, log_loss, loss = classes.Y, LogCrossEntropy(), CrossEntropy()
    np.testing.assert_allclose(log_loss.value(f, Y), np.log(loss.value(f, Y)), rtol=1e-12)
    np.testing.assert_allclose(log_loss.gradient(f, Y), loss.gradient(f, Y) / loss.value(f, Y), rtol=1e-11, atol=1e-14)
    # Margins of 5000: L = e^{−5000}. There log L = log Σ e^{−margin}, and moving all logits scales it.
    far = 5000 * Y + f
    excess = np.asarray(far - jnp.sum(far * Y, 0)[None, :] - 1e9 * Y)
    top = excess.max()
    np.testing.assert_allclose(log_loss.value(far, Y), top + np.log(np.exp(excess - top).sum()), rtol=1e-13)
    slope = jax.grad(lambda f: log_loss.value(f, Y))(far)
    np.testing.assert_allclose(log_loss.gradient(far, Y), slope, atol=1e-12)
    assert float(jnp.abs(slope).max()) > 0.01


def test_margin_of_unregularised_cross_entropy():
    classes = Classes.balanced(3, 2)
    flow = models.max_margin(classes)
    start = scaled_start(3, classes, 0.5)
    times = np.linspace(0.0, 18.0, 13)
    # Without an absolute tolerance: numbers near zero are as near as the rest of their part.
    run = simulate(start, flow, classes, times, method=Method(solver="kvaerno5", rtol=1e-6))
    assert float(run["loss"][-1]) < -1500
    seen = [models.max_margin.margins(H, W, classes) for H, W in zip(run.states.H, run.states.W, strict=True)]
    limit = float(models.max_margin.limit(classes))
    assert float(models.max_margin.limit(Classes.balanced(4, 5))) == pytest.approx(0.074536, abs=5e-7)
    # Approached like 1/log(1/L), here L < e^{−1500}: the smoothed margin lacks log(N(C − 1))/1500 = 1.7e-3, and
    # both what the start has left in log-slow directions.
    assert float(seen[-1].smoothed) / limit == pytest.approx(1, abs=5e-3)
    assert float(seen[-1].normalised) / limit == pytest.approx(1, abs=5e-3)
    assert float(seen[-1].normalised) < limit
    # The invariant of the flow is that of plain cross-entropy: the orbits are the same.
    assert float(run["invariant_drift"][-1]) < 1e-5
    smoothed = np.array([s.smoothed for s, log_loss in zip(seen, run["loss"], strict=True) if log_loss < 0])
    assert (np.diff(smoothed) > 0).all()
    assert float(run["nc2_seleznova2023"][-1]) < 0.05


def test_layer_peeled_minority_collapse():
    key = jax.random.key(0)
    balanced = models.layer_peeled.minimizer(np.ones(10), 5.0, 1.0, key=key)
    np.testing.assert_allclose(balanced.value, 0.5597815240, atol=5e-11)
    np.testing.assert_allclose(balanced.W @ balanced.W.T, 10 / 9 * simplex(10), atol=1e-5)
    curve = models.layer_peeled.cosine_curve(10 ** (np.arange(6) / 4), 10, 5, 5.0, 1.0, key=key)
    # The published curve to its printed digits.
    np.testing.assert_allclose(curve, [-0.111, -0.077, -0.017, 0.108, 0.518, 1.0], atol=1e-3)


@pytest.mark.parametrize(
    ("num_classes", "majority", "energy", "published", "digit"),
    [
        (10, 5, 5.0, 12.1924, 1e-4),
        (10, 5, 10.0, 81, 1),
        (10, 3, 5.0, 245, 1),
        (10, 7, 5.0, 4.0, 0.1),
        (4, 2, 5.0, 47.685, 1e-3),
    ],
)
def test_layer_peeled_thresholds(num_classes, majority, energy, published, digit):
    found = models.layer_peeled.threshold(num_classes, majority, energy, 1.0)
    # To the printed digits.
    np.testing.assert_allclose(found, published, rtol=0, atol=0.6 * digit)


@pytest.mark.parametrize(
    ("case", "in_60_digits"),
    [
        ((5, 2, 10, 3), 975749.04658299315979),
        ((10, 5, 20, 5), 162541217.80328598605),
        ((10, 5, 30, 8), 19153701200781.58358),
        ((10, 5, 500, 10), 1.80029695739175233e64),
    ],
)
def test_layer_peeled_thresholds_at_large_energies(case, in_60_digits):
    """From the optimality conditions of the nuclear-norm problem: four equations in 60 digits, no minimiser."""
    assert models.layer_peeled.threshold(*case) == pytest.approx(in_60_digits, rel=1e-10)
    with jax.enable_x64(False):
        assert models.layer_peeled.threshold(*case) == pytest.approx(in_60_digits, rel=1e-10)


def test_layer_peeled_minima_at_large_ratios_are_reached_or_said_not_to_be():
    """Once the minority's cosine stopped at 0.981 and 0.998, where it is 1."""
    case, key = (5, 2, 10.0, 3.0), jax.random.key(0)
    ratios = jnp.asarray([0.97, 1.03, 1.5]) * 975749.0466
    below, *above = models.layer_peeled.cosine_curve(ratios, *case, key=key)
    assert 0.9 < float(below) < 0.99
    np.testing.assert_allclose(above, 1.0, atol=1e-6)
    sizes = np.array([3.0, 3.0, 1.0, 1.0])
    best = models.layer_peeled.minimizer(sizes, 2.0, 1.0, key=key)
    assert abs(float(best.gap)) < 1e-12
    with pytest.warns(RuntimeWarning, match=r"raise max_steps \(now 2\)"):
        early = models.layer_peeled.minimizer(sizes, 2.0, 1.0, key=key, max_steps=2)
    # The gap is a bound on what is missing, from the result alone.
    missing = float(1 - best.value / early.value)
    assert 1e-8 < missing <= float(early.gap)
    with pytest.raises(ValueError, match=r"expected energies whose threshold is below e\^700, got 50000, 100"):
        models.layer_peeled.threshold(10, 5, 50000, 100)


def test_layer_peeled_threshold_is_where_minority_classifiers_merge():
    """Found by the criterion at the collapsed optimum, seen in the free minimum, where nothing is tied."""
    key, R0 = jax.random.key(0), models.layer_peeled.threshold(4, 2, 2.0, 1.0)
    below, above = models.layer_peeled.cosine_curve(jnp.asarray([0.97 * R0, 1.03 * R0]), 4, 2, 2.0, 1.0, key=key)
    assert float(below) < 0.98
    np.testing.assert_allclose(above, 1.0, atol=1e-6)
    # The collapsed optimum in its three angles, against descent in all coordinates with the minority tied together.
    ratio = 1.03 * R0
    sizes = np.array([ratio, ratio, 1.0, 1.0])
    free = models.layer_peeled.minimizer(sizes, 2.0, 1.0, key=key)
    tied = models.layer_peeled.minimizer(sizes, 2.0, 1.0, key=key, tied=(0, 1, 2, 2))
    odds = collapsed_odds(ratio, 4, 2, 2.0, 1.0)
    np.testing.assert_allclose(odds.value, tied.value, rtol=1e-10)
    np.testing.assert_allclose(odds.value, free.value, rtol=1e-10)
    P = jax.nn.softmax(tied.W @ tied.M, axis=0)
    np.testing.assert_allclose((odds.own, odds.other), (P[0, 0], P[1, 0]), rtol=1e-5)
    with pytest.raises(ValueError, match="majority: expected 2 to C - 2 = 2 classes, got 3"):
        models.layer_peeled.threshold(4, 3, 2.0, 1.0)


def test_layer_peeled_flow_stays_in_its_budgets():
    classes = Classes(sizes=(6, 3, 3))
    flow = models.layer_peeled(classes, 3.0, 1.0)
    start = flow.retract(scaled_start(4, classes, 1.0))
    run = simulate(start, flow, classes, np.array([0.0, 3000.0, 6000.0]), method=Method(solver="tsit5"))
    best = models.layer_peeled.minimizer(np.array(classes.sizes), 3.0, 1.0, key=jax.random.key(1))
    # Exponentially near the minimum by then; the rest is the solver's tolerance.
    np.testing.assert_allclose(run["loss"][-1], best.value, rtol=1e-6)
    for H, W in zip(run.states.H, run.states.W, strict=True):
        assert float(jnp.sum(W**2) / 3) <= 1 + 1e-12
        assert float(classes.means(jnp.sum(H**2, axis=0)).mean()) <= 3 + 1e-12


@pytest.mark.parametrize("loss", ["cross-entropy", "dot-regression"])
def test_fixed_etf_aligns_every_class(loss):
    classes = Classes(sizes=(6, 2, 1))
    W = np.sqrt(2.0) * models.fixed_etf.classifier(3, 4, key=jax.random.key(0))
    np.testing.assert_allclose(W @ W.T / 2, 1.5 * simplex(3), atol=1e-12)
    flow = models.fixed_etf(classes, 3.0, 2.0, loss=loss)
    start = LastLayer(H=0.3 * random_state(4, classes).H, W=W, b=jnp.zeros(3))
    run = simulate(start, flow, classes, np.array([0.0, 1e3, 1e5]), method=Method(solver="tsit5"), observed=False)
    limit = models.fixed_etf.limit(W, 3.0, classes)
    np.testing.assert_array_equal(run.states.W[-1], W)
    # Cross-entropy pulls along the sphere exponentially; the pull of dot regression vanishes as the square of the
    # angle, so that the angle falls like t^{−1/2}.
    np.testing.assert_allclose(run.states.H[-1], limit, atol=1e-5 if loss == "cross-entropy" else 3e-2)


def test_spherical_features_and_logit_ball():
    classes = Classes.balanced(4, 2)
    flow = models.spherical_features(classes, 2.0, 1.5)
    answer = models.spherical_features.minimizer(classes, 2.0, 1.5)
    run = simulate(flow.retract(scaled_start(3, classes, 1.0)), flow, classes, np.array([0.0, 5e3, 1e4]))
    np.testing.assert_allclose(run["loss"][-1], answer.value, rtol=1e-7)
    end = run.last_layer(-1)
    np.testing.assert_allclose(end.W @ end.W.T, answer.weight_scale * simplex(4), atol=1e-4)
    np.testing.assert_allclose(end.W @ end.H, answer.scale * classes.expand(jnp.asarray(simplex(4))), atol=1e-4)
    np.testing.assert_allclose(jnp.linalg.norm(end.H, axis=0), 2.0, rtol=1e-12)
    # Unit vectors: the printed value of Lu and Steinerberger per class.
    unit = models.spherical_features.minimizer(classes, 1.0, 1.0)
    np.testing.assert_allclose(unit.value, np.log1p(3 * np.exp(-4 / 3)), rtol=1e-14)

    ball = models.logit_ball(classes, 2.0)
    lowest = models.logit_ball.minimizer(classes, 2.0)
    start = LastLayer(H=0.1 * random_state(4, classes).H, W=jnp.eye(4), b=jnp.zeros(4))
    run = simulate(start, ball, classes, np.array([0.0, 5e3, 1e4]))
    np.testing.assert_allclose(run["loss"][-1], lowest.value, rtol=1e-7)
    np.testing.assert_allclose(run.states.H[-1], classes.expand(lowest.scale * jnp.asarray(simplex(4))), atol=1e-4)


def test_cross_entropy_is_tied_to_its_minimum_in_balls():
    """Three bounds, each by a sum over samples, on any last layer; all reached by a balanced simplex ETF."""
    C = 4
    for sizes in ((3, 3, 3, 3), (5, 1, 2, 4)):
        classes = Classes(sizes=sizes)
        labels = np.asarray(classes.labels)
        for seed in range(10):
            state = scaled_start(5, classes, 0.1 + 0.3 * seed, seed, bias=True)
            floor = np.array(models.spherical_features.floor(state, classes))
            f = np.asarray(state.logits)
            losses = [np.log(np.exp(f[:, i] - f[y, i]).sum()) for i, y in enumerate(labels)]
            margins = [f[y, i] - np.delete(f[:, i], y).mean() for i, y in enumerate(labels)]
            W, sums = np.asarray(state.W), [np.asarray(state.H)[:, labels == c].sum(1) for c in range(C)]
            norms = np.linalg.norm(W - W.mean(0)) * np.linalg.norm(sums - np.mean(sums, axis=0))
            bias = np.dot(state.b, np.array(sizes) - np.mean(sizes))
            shares = np.mean(margins), C / (C - 1) * (norms + bias) / len(labels)
            exact = np.mean(losses), *(np.log1p(3 * np.exp(-x)) for x in shares)
            np.testing.assert_allclose(floor[:3], exact, rtol=1e-12)
            assert np.all(np.diff(floor) < 0)
    # A simplex of radii 2 and 3, and what the third bound is for balanced classes.
    classes = Classes.balanced(C, 3)
    W = np.asarray(models.fixed_etf.classifier(C, 5, key=jax.random.key(0)))
    collapsed = LastLayer(H=classes.expand(2 * jnp.asarray(W).T), W=3 * W, b=np.full(C, 0.7))
    floor = models.spherical_features.floor(collapsed, classes)
    value = models.spherical_features.minimizer(classes, 2.0, 3.0).value
    np.testing.assert_allclose(floor, np.full(4, value), rtol=1e-12)
