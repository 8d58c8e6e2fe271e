"""Explicit steps of reduced flows against scipy's method of order 8 on the equations as they stand."""

import itertools

import numpy as np
import pytest
from scipy.integrate import DOP853

from ntkcollapse.theory.explicit import _Steps
from ntkcollapse.theory.extrapolation import _ON_HOST, _Problem

C, K, G, n = 3, 2, 2, 4
SHAPES = [(n, C), (n, K), (G, n, n), (C, n), (C,)]
ENDS = list(itertools.accumulate((int(np.prod(shape)) for shape in SHAPES), initial=0))


def flow(*, free, moving):
    """A problem of two groups, two further directions and three decays under a kernel in time, its start and speed."""
    random = np.random.default_rng(0)
    A, Sigma = random.normal(size=(C + K, C + K)), random.normal(size=(G, n, n))
    d, S, decay = random.uniform(1, 4, C + K), Sigma @ Sigma.swapaxes(1, 2), (0.3, 0.2, 0.1)
    ones = (np.arange(C + K) < C).astype(float)

    def terms(t):
        return (1 + moving * t) * A @ A.T, np.array([1.0, 2.0]) * (1 + moving * t)

    def speed(t, y):
        M, X, P, W, b = (y[i:j].reshape(shape) for i, j, shape in zip(ENDS, ENDS[1:], SHAPES, strict=False))
        Γ, rates = terms(t)
        MX = np.hstack([M, X])
        RD = (W @ MX + np.outer(b, ones) - np.eye(C, C + K)) * d
        down = -W.T @ RD @ Γ - decay[0] * MX
        P_t = [-rate * W.T @ W @ p - decay[0] * p for rate, p in zip(rates, P, strict=True)]
        W_t = -RD @ MX.T - sum(W @ p @ s @ p.T for p, s in zip(P, S, strict=True)) - decay[1] * W
        b_t = (-RD @ ones - decay[2] * b) * free
        return np.concatenate([np.ravel(x) for x in (down[:, :C], down[:, C:], P_t, W_t, b_t)])

    decays = np.repeat([0.3, 0.3, 0.3, 0.2, 0.1 * free], np.diff(ENDS))
    places = tuple((slice(i, j), shape) for i, j, shape in zip(ENDS, ENDS[1:], SHAPES, strict=False))
    parts = (d, S, decay, decays, free, terms, np.eye(C, C + K), ones, places)
    return _Problem(_ON_HOST, *parts), 0.3 * random.normal(size=ENDS[-1]), speed


@pytest.mark.parametrize(("free", "moving"), [(True, 0.0), (False, 2.0)])
def test_a_step_and_what_is_between_its_ends_are_scipys(free, moving):
    problem, start, speed = flow(free=free, moving=moving)
    t, h = 0.125, 1 / 128
    theirs = DOP853(speed, t, start, t + h, first_step=h, rtol=1.0, atol=1.0)
    theirs.step()
    assert theirs.t == t + h
    steps = _Steps(problem, t, start)
    np.testing.assert_allclose(steps.y, start, rtol=0, atol=1e-15)
    steps.attempt(t, h)
    between, θ = theirs.dense_output(), np.array([0.2, 0.7, 1.0])
    np.testing.assert_allclose(steps.between(t, h, θ), between(t + h * θ).T, rtol=1e-12, atol=1e-14)
    steps.accept()
    np.testing.assert_allclose(steps.y, theirs.y, rtol=1e-12, atol=1e-14)
    # The slope at its end begins the next one.
    assert steps.evaluations == 1 + 12 + 3
    steps.attempt(t + h, h)
    steps.accept()
    again = DOP853(speed, t + h, theirs.y, t + 2 * h, first_step=h, rtol=1.0, atol=1.0)
    again.step()
    np.testing.assert_allclose(steps.y, again.y, rtol=1e-12, atol=1e-14)


def test_error_is_of_the_part_that_errs_most_over_what_it_is_allowed():
    """Its square is h² e5⁴/(e5² + 0.01 e3²) by scipy's two estimates, root mean squares of one part."""
    problem, start, speed = flow(free=True, moving=2.0)
    t, h = 0.125, 1 / 64
    theirs = DOP853(speed, t, start, t + h, first_step=h, rtol=1.0, atol=1.0)
    theirs.step()
    estimates = [theirs.K.T @ weights for weights in (theirs.E5, theirs.E3)]
    allowed = np.array([1.0, 2.0, 0.1, 3.0, 1.0])
    e5, e3 = ([np.mean(x[i:j] ** 2) for i, j in itertools.pairwise(ENDS)] / allowed**2 for x in estimates)
    steps = _Steps(problem, t, start)
    steps.attempt(t, h)
    np.testing.assert_allclose(steps.error(h, lambda *_: allowed), h * (e5 / np.sqrt(e5 + 0.01 * e3)).max(), rtol=1e-6)
    steps.rows[3] = np.inf
    with np.errstate(all="ignore"):
        assert steps.error(h, lambda *_: allowed) == np.inf
