"""Elastic features and SVAG against their exact means, variances and thresholds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from ntkcollapse import Classes, LastLayer
from ntkcollapse.simulation import simulate
from ntkcollapse.theory import models
from ntkcollapse.theory.method import Method
from tests.cases import random_state
from tests.theory.model_cases import simplex


def looked_on(H, classes: Classes) -> LastLayer:
    """Features beside a classifier that only looks on."""
    C = classes.num_classes
    return LastLayer(H=H, W=jnp.zeros((C, H.shape[0])), b=jnp.zeros(C))


def test_elastic_means_and_their_estimated_intensities():
    classes = Classes.balanced(3, 4)
    flow = models.elastic(classes, 0.9, 0.2)
    start = random_state(2, classes)
    times = np.linspace(0.0, 2.0, 5)
    run = simulate(start, flow, classes, times, method=Method(rtol=1e-9, atol=1e-11), observed=False)
    means = jax.vmap(classes.means)(run.states.H)
    np.testing.assert_allclose(means, models.elastic.solution(times, classes.means(start.H), flow), rtol=1e-7)
    # All samples of a class get the same push: deviations stay. So does the classifier.
    np.testing.assert_allclose(classes.deviations(run.states.H[-1]), classes.deviations(start.H), atol=1e-12)
    np.testing.assert_array_equal(run.states.W[-1], start.W)
    estimate = models.elastic.estimate(times, means)
    np.testing.assert_allclose(estimate.intra, 0.9, rtol=1e-6)
    np.testing.assert_allclose(estimate.inter, 0.2, rtol=1e-6)


def test_elasticity_from_measured_trajectories():
    """Intensities that fall like 1/t, an L-model, and class means that carry noise."""
    classes = Classes.balanced(3, 4)
    times = np.linspace(1.0, 3.0, 5)
    for kind in ("I", "L"):
        flow = models.elastic(classes, 0.9, 0.2, kind=kind, power=1.0)
        run = simulate(
            random_state(3, classes), flow, classes, times, method=Method(rtol=1e-9, atol=1e-11), observed=False
        )
        means = jax.vmap(classes.means)(run.states.H)
        estimate = models.elastic.estimate(times, means, kind=kind)
        # Means over each interval of α/t and β/t.
        falling = np.diff(np.log(times)) / np.diff(times)
        np.testing.assert_allclose(estimate.intra, 0.9 * falling, rtol=1e-6)
        np.testing.assert_allclose(estimate.inter, 0.2 * falling, rtol=1e-6)
    with pytest.raises(ValueError, match="n = C features for the L-model"):
        models.elastic.estimate(times, means[:, :2], kind="L")

    # Simulated with noise, and estimated from class means of 100 samples.
    classes = Classes.balanced(3, 100)
    flow = models.elastic(classes, 0.9, 0.2, 0.1)
    start = looked_on(classes.expand(jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))), classes)
    times = np.array([0.0, 1.0, 2.0])
    run = simulate(
        start,
        flow,
        classes,
        times,
        method=Method(rtol=1e-3, atol=1e-2),
        key=jax.random.key(0),
        columns=False,
        observed=False,
    )
    estimate = models.elastic.estimate(times, jax.vmap(classes.means)(run.states.H))
    # Noise σ/√m = 0.01 in each coordinate beside ‖x‖ of about 2: 0.5% of growth, times C in α, √2 in β; thrice that.
    np.testing.assert_allclose(estimate.intra, 0.9, atol=0.05)
    np.testing.assert_allclose(estimate.inter, 0.2, atol=0.03)


def test_elastic_l_model_tends_to_a_simplex():
    classes = Classes.balanced(4, 2)
    flow = models.elastic(classes, 3.0, 1.0, kind="L")
    run = simulate(
        random_state(4, classes),
        flow,
        classes,
        np.array([0.0, 30.0, 60.0]),
        method=Method(rtol=1e-8, atol=1e-10),
        observed=False,
    )
    M = np.asarray(classes.means(run.states.H[-1]))
    unit = M / np.linalg.norm(M, axis=0)
    # Differences die out relative to the mean as exp(−t β) ≥ e^{−60}.
    np.testing.assert_allclose(unit.T @ unit, 4 / 3 * simplex(4), atol=1e-6)
    # Noise spreads samples about those vertices and no more: variance σ² t in every entry.
    noisy = models.elastic(Classes.balanced(4, 100), 3.0, 1.0, 0.1, kind="L")
    start = looked_on(noisy.classes.expand(classes.means(random_state(4, classes).H)), noisy.classes)
    times = np.array([0.0, 5.0, 10.0])
    run = simulate(
        start, noisy, noisy.classes, times, method=Method(rtol=1e-2, atol=3e-2), key=jax.random.key(0), observed=False
    )
    M = np.asarray(noisy.classes.means(run.states.H[-1]))
    unit = M / np.linalg.norm(M, axis=0)
    np.testing.assert_allclose(unit.T @ unit, 4 / 3 * simplex(4), atol=2e-3)
    # Relative error of a variance from 1,600 numbers: 3.5%; thrice that.
    scatter = jnp.mean(jnp.square(noisy.classes.deviations(run.states.H[-1])))
    np.testing.assert_allclose(scatter, 0.1**2 * 10 * (1 - 1 / 100), rtol=0.1)


@pytest.fixture
def optimised():
    """Compiled as for users: what is drawn takes longer than that."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.usefixtures("optimised")
def test_elastic_sde_separates_at_the_threshold():
    """Error of telling two classes apart at t = 10⁴, against Φ(−t^{c/2 − 1/2}/2): falls only above c = C/2 = 1."""
    C, m, end = 2, 2000, 1e4
    classes = Classes.balanced(C, m)
    assert models.elastic.threshold(C) == 1.0
    start = looked_on(classes.expand(jnp.asarray([[-0.5, 0.5]])), classes)
    for c, published in ((0.5, 0.480), (1.0, 0.309), (1.5, 3e-7)):
        flow = models.elastic(classes, jnp.asarray(c), 0.0, 1.0, power=1.0)
        times = np.array([1.0, 3.0, end])
        run = simulate(
            start, flow, classes, times, method=Method(rtol=1e-3, atol=1e-1), key=jax.random.key(3), observed=False
        )
        # Pure Brownian motion about the class means; times between the solver's own steps are no less noisy.
        middle_of_run = classes.deviations(run.states.H[1])
        np.testing.assert_allclose(jnp.var(middle_of_run) / 2, 1, rtol=0.1)
        H = np.asarray(run.states.H[-1][0])
        sign = np.repeat([-1.0, 1.0], m)
        middle = H.mean()
        error = np.mean((H - middle) * sign < 0)
        predicted = float(models.elastic.error(end, 1.0, c, 1.0, C))
        assert predicted == pytest.approx(published, abs=1e-3)
        # Binomial error of 4000 samples, 0.008, and of the means' own noise √(t/m) = 2.2 beside D(t) ≥ 10, thrice.
        assert error == pytest.approx(predicted, abs=0.03)


def test_svag_stationary_variance():
    η, k, s = 0.5, 1.0, 1.0
    exact = models.svag.variance(k, s**2, η, jnp.asarray([1.0, 2.0, 4.0, 8.0, 16.0]))
    np.testing.assert_allclose(exact, [0.3333, 0.2857, 0.2667, 0.2581, 0.2540], atol=5e-5)
    # Towards the SDE's 1/4, in proportion to 1/l.
    np.testing.assert_allclose(models.svag.variance(k, s**2, η, 1e12), η * s**2 / (2 * k), rtol=1e-11)
    assert np.all(np.diff(exact) < 0)
    for l, variance in zip((1, 2, 4, 8, 16), exact, strict=True):
        transform = models.svag(η, l)

        def pair(w, g1, g2, transform=transform):
            state = transform.init(w)
            first, state = transform.update(g1, state)
            second, _ = transform.update(g2, state)
            assert float(jnp.abs(first)) == 0
            return float(w + second)

        # A step is linear in (w, noise, noise): read off its coefficients, and solve for the variance exactly.
        zero, one = jnp.zeros(()), jnp.ones(())
        contraction = pair(one, k * one, k * one)
        noise = pair(zero, s * one, zero) ** 2 + pair(zero, zero, s * one) ** 2
        np.testing.assert_allclose(noise / (1 - contraction**2), variance, rtol=1e-12)


def test_svag_with_l_1_is_sgd_and_drifts_like_it_for_all_l():
    """A small network: the same mean displacement over l double steps as one step of SGD, to first order."""
    rng = np.random.default_rng(0)
    params = {"V": jnp.asarray(rng.normal(size=(4, 3))), "w": jnp.asarray(rng.normal(size=4))}
    x, y = jnp.asarray(rng.normal(size=(3, 40))), jnp.asarray(rng.normal(size=40))

    def gradient(params, batch):
        return jax.grad(lambda p: jnp.mean((p["w"] @ jnp.tanh(p["V"] @ x[:, batch]) - y[batch]) ** 2))(params)

    def displacement(l, steps):
        transform, p = models.svag(0.01, l), params
        state = transform.init(p)
        for i in range(2 * steps):
            updates, state = transform.update(gradient(p, slice(4 * (i % 10), 4 * (i % 10) + 4)), state)
            p = jax.tree.map(jnp.add, p, updates)
        return ravel_pytree(jax.tree.map(jnp.subtract, p, params))[0]

    one = displacement(1, 1)
    sgd = ravel_pytree(gradient(params, slice(0, 4)))[0]
    np.testing.assert_allclose(one, -0.01 * sgd, rtol=1e-12)
    # Every batch of ten comes once as g₁ or g₂ in five double steps; noise of mean 0 is amplified by √(2l − 1)/2.
    assert float(jnp.linalg.norm(displacement(3, 15))) < 10 * float(jnp.linalg.norm(displacement(1, 5)))


def test_svag_on_a_small_network_tends_to_its_sde():
    """Excess loss of a network around its minimum under mini-batch noise, against exact second moments.

    Linear in the displacement δ around the minimum, a double step multiplies δ by 1 − (η/l)(c₁ H_B + c₂ H_B') and adds
    −(η/l)(c₁ g_B + c₂ g_B'), with Hessians H_B and gradients g_B of the batches, which are few: their second moments
    follow a linear recursion without sampling. The SDE's limit is Ṡ = −H S − S H + η cov(g_B + H_B δ).
    """
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 2, 3)))
    params = {"V": jnp.asarray(rng.normal(size=(2, 2))), "w": jnp.asarray([1.5, -1.0])}
    teacher = jnp.einsum("k,kib->ib", params["w"], jnp.tanh(jnp.einsum("kj,ijb->kib", params["V"], x)))
    y = teacher + 0.003 * jnp.asarray(rng.normal(size=(8, 3)))
    flat, unravel = ravel_pytree(params)
    P, η, steps = flat.size, 0.6, 40

    def batch_loss(theta, i):
        p = unravel(theta)
        return jnp.mean((p["w"] @ jnp.tanh(p["V"] @ x[i]) - y[i]) ** 2) / 2

    batches = jnp.arange(8)

    def loss(theta):
        return jnp.mean(jax.vmap(batch_loss, (None, 0))(theta, batches)) + 0.05 * jnp.sum((theta - flat) ** 2)

    def gradient(theta, i):
        return jax.grad(batch_loss)(theta, i) + 0.1 * (theta - flat)

    best = flat
    for _ in range(5):
        best = best - jnp.linalg.solve(jax.hessian(loss)(best), jax.grad(loss)(best))
    hessian = np.asarray(jax.hessian(loss)(best))
    g = np.asarray(jax.vmap(lambda i: gradient(best, i))(batches))
    h = np.asarray(jax.vmap(lambda i: jax.jacfwd(gradient)(best, i))(batches))
    np.testing.assert_allclose(g.mean(0), 0, atol=1e-12)
    assert 0.5 < η * np.linalg.eigvalsh(hessian).max() < 1.5

    def excess(l):
        S, rate, root = np.zeros((P, P)), η / l, (2 * l - 1) ** 0.5
        c = (1 + root) / 2, (1 - root) / 2
        for _ in range(steps * l):
            # Batches are independent with mean Hessian and mean gradient 0: products of two means are the rest.
            moved = S - rate * (hessian @ S + S @ hessian)
            single = np.einsum("bij,jk,blk->il", h, S, h) / 8 + g.T @ g / 8
            moved += rate**2 * ((c[0] ** 2 + c[1] ** 2) * single + 2 * c[0] * c[1] * hessian @ S @ hessian)
            S = moved
        return np.trace(hessian @ S) / 2

    def simulated(l, chains=4000):
        transform = models.svag(η, l)

        def chain(key):
            picks = jax.random.randint(key, (2 * steps * l,), 0, 8)

            def step(carry, i):
                theta, state = carry
                updates, state = transform.update(gradient(theta, i), state)
                return (optax.apply_updates(theta, updates), state), None

            return jax.lax.scan(step, (best, transform.init(best)), picks)[0][0]

        ends = jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(l), chains))
        return np.asarray(jax.vmap(loss)(ends) - loss(best))

    exact = {l: excess(l) for l in (1, 2, 4, 8, 64)}
    for l in (1, 4):
        seen = simulated(l)
        # Three standard errors of the mean over chains; what is of third order in δ is 0.3% of it.
        np.testing.assert_allclose(seen.mean(), exact[l], rtol=0, atol=3.5 * seen.std() / len(seen) ** 0.5)
    # SGD is off the SDE by more than a tenth, and the distance falls like 1/l.
    gaps = np.array([exact[l] - exact[64] for l in (1, 4)])
    assert gaps[0] > 0.1 * exact[64]
    assert gaps[1] < gaps[0] / 3
