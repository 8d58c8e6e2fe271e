"""Derivatives through the default integration of reduced flows, against differences of tight runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import BlockKernel, Classes, KernelPath, LastLayer, Method, simulate
from ntkcollapse.theory import Flow, adjoint
from tests.cases import random_state

UNEQUAL = Classes((4, 3, 5))
TIGHT = Method(rtol=1e-12)
START = random_state(3, UNEQUAL)


def final(p, method):
    """Parts of a run with decay under a kernel that moves, at two times that move."""
    kernels = [BlockKernel(3.0, 2.0, p[0]), BlockKernel(3.5 + p[1], 2.0, 0.7)]
    path = KernelPath.through(jnp.array([0.0, 3.0]), jax.tree.map(lambda *x: jnp.stack(x), *kernels))
    flow = Flow(path, UNEQUAL, weight_decay=(p[2], 0.02, 0.01))
    start = LastLayer(H=p[3] * START.H, W=START.W, b=START.b + p[4])
    run = simulate(start, flow, times=jnp.stack([p[5], p[6], jnp.asarray(2.0)]), method=method, observed=False)
    weights = np.cos(np.arange(run.states.M[1].size)).reshape(run.states.M[1].shape)
    return jnp.sum(run.states.M[1] * weights) + jnp.sum(jnp.sin(run.states.W[2])) + jnp.sum(run.states.P[2] ** 2)


POINT = jnp.array([0.6, 0.1, 0.05, 1.1, 0.2, 0.1, 0.5])


ALONG = np.random.default_rng(0).normal(size=(2, 7))


@pytest.fixture(scope="module")
def differences():
    """In two directions among all that is differentiated."""
    h = 1e-5
    return np.array([float(final(POINT + h * e, TIGHT) - final(POINT - h * e, TIGHT)) / (2 * h) for e in ALONG])


@pytest.mark.parametrize(("rtol", "block"), [(1e-5, 64), (1e-9, 64), (1e-9, 6)])
def test_gradient_is_that_of_the_flow_to_the_tolerance(rtol, block, differences, monkeypatch):
    """Of kernels, decay, start and times; and where states are made again, block by block."""
    monkeypatch.setattr(adjoint, "BLOCK", block)
    jax.clear_caches()
    slopes = ALONG @ jax.jit(jax.grad(lambda p: final(p, Method(rtol=rtol))))(POINT)
    # Differences of runs at rtol 1e-12 leave about 1e-8.
    np.testing.assert_allclose(slopes, differences, rtol=50 * rtol + 5e-8)


def test_more_steps_than_are_kept_are_told_by_nan(monkeypatch):
    monkeypatch.setattr(adjoint, "BLOCK", 2)
    jax.clear_caches()
    gradient = jax.jit(jax.grad(lambda p: final(p, Method(rtol=1e-9))))(POINT)
    assert bool(jnp.all(jnp.isnan(gradient)))


def test_times_after_a_steady_state_have_no_part_in_a_gradient():
    """What was not reached is infinite; a sum over what was has a finite derivative, that of a run which ends there."""
    times = jnp.array([0.0, 2.0, 400.0, 500.0])

    def total(decay, times, steady):
        flow = Flow(BlockKernel(3.0, 2.0, 0.6), UNEQUAL, weight_decay=decay)
        run = simulate(START, flow, times=times, steady=steady, observed=False)
        return jnp.sum(jnp.where(jnp.isfinite(run.states.W), run.states.W**2, 0.0)), run.states.W

    gradient, W = jax.grad(total, has_aux=True)(0.3, times, 1e-5)
    assert np.isfinite(W).all(axis=(1, 2)).tolist() == [True, True, False, False]
    expected = jax.grad(total, has_aux=True)(0.3, times[:2], None)[0]
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)


def test_second_derivatives_are_those_of_the_flow():
    """Forward over reverse, of what is observed, against differences of gradients; of a kernel, a start and a time."""

    def loss(p):
        start = LastLayer(H=(1 + p[1]) * START.H, W=START.W, b=START.b)
        times = jnp.stack([jnp.asarray(0.0), 0.4 + p[2]])
        run = simulate(start, Flow(BlockKernel(3.0, 2.0, 0.6 + p[0]), UNEQUAL), times=times, method=Method(rtol=1e-9))
        return run["loss"][-1]

    gradient, h = jax.jit(jax.grad(loss)), 1e-4
    steps = h * jnp.eye(3)
    differences = [(gradient(steps[i]) - gradient(-steps[i])) / (2 * h) for i in range(3)]
    hessian = jax.jit(jax.hessian(loss))(jnp.zeros(3))
    np.testing.assert_allclose(hessian, differences, rtol=0, atol=1e-5 * np.abs(differences).max())
