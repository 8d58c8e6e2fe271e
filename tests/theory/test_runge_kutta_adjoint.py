"""Derivatives of full runs, and of what is observed of them, against differences of tight runs."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import BlockKernel, Classes, CrossEntropy, KernelPath, LastLayer, Method, simulate
from ntkcollapse.theory import Flow, adjoint
from tests.cases import random_state

UNEQUAL = Classes((4, 3, 5))
START = random_state(3, UNEQUAL)
POINT = jnp.array([0.6, 0.1, 0.05, 1.1, 0.2, 0.1, 0.5])
ALONG = np.random.default_rng(0).normal(size=(2, 7))
TIGHT = Method(solver="dopri8", rtol=1e-12, atol=1e-14)


def final(p, method):
    """Parts of a run of cross-entropy with decay under a kernel that moves, saved between steps, at times that move."""
    kernels = [BlockKernel(3.0, 2.0, p[0]), BlockKernel(3.5 + p[1], 2.0, 0.7)]
    path = KernelPath.through(jnp.array([0.0, 3.0]), jax.tree.map(lambda *x: jnp.stack(x), *kernels))
    flow = Flow(path, UNEQUAL, loss=CrossEntropy(), weight_decay=(p[2], 0.02, 0.01))
    start = LastLayer(H=p[3] * START.H, W=START.W, b=START.b + p[4])
    times = jnp.stack([p[5], p[6], p[6] + 0.01, p[6] + 0.02, jnp.asarray(2.0)])
    run = simulate(start, flow, times=times, method=method, observed=False)
    H, W, b = run.states.H, run.states.W, run.states.b
    weights = np.cos(np.arange(H[1].size)).reshape(H[1].shape)
    return (
        jnp.sum(H[1] * weights)
        + jnp.sum(jnp.sin(W[2] + 2 * W[3]))
        + jnp.sum(H[4] ** 2)
        + jnp.sum(b[4] ** 3)
        + jnp.sum(W[0] * H[0, :, :3])
    )


@pytest.fixture(scope="module")
def differences():
    """In two directions among all that is differentiated."""
    h = 1e-5
    run = jax.jit(lambda p: final(p, TIGHT))
    return np.array([float(run(POINT + h * e) - run(POINT - h * e)) / (2 * h) for e in ALONG])


@pytest.mark.parametrize(
    ("solver", "rtol", "block"),
    [("tsit5", 1e-6, 64), ("tsit5", 1e-9, 64), ("tsit5", 1e-9, 6), ("dopri8", 1e-9, 64), (diffrax.Bosh3(), 1e-7, 64)],
)
def test_gradient_is_that_of_the_flow_to_the_tolerance(solver, rtol, block, differences, monkeypatch):
    """By pairs that end with the first slope of the next step, and by some that do not; and with states made again."""
    monkeypatch.setattr(adjoint, "BLOCK", block)
    jax.clear_caches()
    slopes = ALONG @ jax.jit(jax.grad(lambda p: final(p, Method(solver=solver, rtol=rtol))))(POINT)
    # Differences of runs at rtol 1e-12 leave about 1e-8.
    np.testing.assert_allclose(slopes, differences, rtol=50 * rtol + 5e-8)


def test_more_steps_than_are_kept_are_told_by_nan(monkeypatch):
    monkeypatch.setattr(adjoint, "BLOCK", 2)
    jax.clear_caches()
    gradient = jax.jit(jax.grad(lambda p: final(p, Method(rtol=1e-6))))(POINT)
    assert bool(jnp.all(jnp.isnan(gradient)))


def test_second_derivatives_and_batches_are_those_of_the_flow():
    """Of two observed numbers: gradients, of many starts at once, against differences, and forward over reverse."""

    def loss(p):
        start = LastLayer(H=(1 + p[1]) * START.H, W=START.W, b=START.b)
        times = jnp.stack([jnp.asarray(0.0), 0.4 + p[2]])
        flow = Flow(BlockKernel(3.0, 2.0, 0.6 + p[0]), UNEQUAL, loss=CrossEntropy())
        run = simulate(start, flow, times=times, method=Method(rtol=1e-9))
        return run["loss"][-1] + run["weight_norm"][-1]

    h = 1e-4
    steps = h * jnp.concatenate([jnp.eye(3), -jnp.eye(3)])
    gradients = jax.jit(jax.vmap(jax.grad(loss)))(steps)
    for step, gradient in zip(steps[:2], gradients[:2], strict=True):
        np.testing.assert_allclose(gradient, jax.grad(loss)(step), rtol=1e-10)
    values = jax.jit(jax.vmap(loss))(steps)
    np.testing.assert_allclose(gradients[0], (values[:3] - values[3:]) / (2 * h), rtol=1e-3)
    differences = (gradients[:3] - gradients[3:]) / (2 * h)
    hessian = jax.jit(jax.hessian(loss))(jnp.zeros(3))
    np.testing.assert_allclose(hessian, differences, rtol=0, atol=1e-5 * np.abs(differences).max())


def test_times_that_are_not_reached_have_no_part_in_a_gradient():
    """A run that gives up leaves infinite states; the derivative is that of a run that ends before."""
    times = jnp.array([0.0, 0.5, 1.0, 1e6])

    def total(scale, times, max_steps):
        start = LastLayer(H=scale * START.H, W=START.W, b=START.b)
        flow = Flow(BlockKernel(3.0, 2.0, 0.6), UNEQUAL, loss=CrossEntropy())
        run = simulate(start, flow, times=times, method=Method(rtol=1e-6, max_steps=max_steps), observed=False)
        return jnp.sum(run.states.W**2), run.states.W

    (of_scale, of_times), W = jax.jit(jax.grad(lambda scale, times: total(scale, times, 60), (0, 1), has_aux=True))(
        1.0, times
    )
    assert np.isfinite(W).all(axis=(1, 2)).tolist() == [True, True, True, False]
    expected = jax.jit(jax.grad(lambda scale, times: total(scale, times, 1000), (0, 1), has_aux=True))(1.0, times[:3])[
        0
    ]
    np.testing.assert_allclose(of_scale, expected[0], rtol=1e-5)
    np.testing.assert_allclose(of_times, [*expected[1], 0], rtol=1e-5)
