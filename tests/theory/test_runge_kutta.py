"""Explicit steps in a loop of our own: closed forms, and diffrax's own loop."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse.theory.integrate import integrate
from ntkcollapse.theory.outcome import Outcome
from ntkcollapse.theory.retraction import Retracted

TIMES = np.array([0.0, 0.3, 1.1, 1.2, 6.0])
FIRST = np.array([0.01, 0.3, 0.9])
START = {"p": jnp.asarray(FIRST), "q": jnp.zeros((1, 3))}


def logistic(t, state, args=None):
    """p' = p (1 − p), and q' = p from zero: p = p_0 eᵗ/(1 + p_0 (eᵗ − 1)), q = log(1 + p_0 (eᵗ − 1))."""
    del t, args
    return {"p": state["p"] * (1 - state["p"]), "q": state["p"][None]}


def along(solver, *, flow=logistic, start=START, times=TIMES, differentiable=False, **options):
    options = {"rtol": 1e-6, "atol": 0.0, "max_steps": 1000} | options
    run = lambda: integrate(  # noqa: E731
        flow, start, jnp.asarray(times), solver=solver, differentiable=differentiable, **options
    )
    return jax.jit(run)()


@pytest.mark.parametrize(
    ("solver", "rtol"), [(diffrax.Tsit5(), 1e-8), (diffrax.Dopri8(), 1e-6), (diffrax.Heun(), 1e-4)], ids=repr
)
def test_closed_forms_also_between_steps(solver, rtol):
    out = along(solver, rtol=rtol)
    grown = 1 + FIRST * (np.exp(TIMES)[:, None] - 1)
    for name, exact in (("p", FIRST * np.exp(TIMES)[:, None] / grown), ("q", np.log(grown)[:, None])):
        got = np.asarray(out.states[name])
        assert got.shape == exact.shape
        size = np.sqrt(np.mean(exact**2, axis=tuple(range(1, exact.ndim)), keepdims=True))
        assert np.abs(got - exact).max() < 10 * rtol * size.max()
        np.testing.assert_array_less(np.abs(got[1:] - exact[1:]) / size[1:], 10 * rtol)
    assert int(out.outcome) == Outcome.SUCCESSFUL
    taken, rejected = (int(out.statistics[f"num_{kind}steps"]) for kind in ("", "rejected_"))
    assert int(out.statistics["num_accepted_steps"]) == taken - rejected
    assert taken < 300


@pytest.mark.parametrize("solver", [diffrax.Tsit5(), diffrax.Heun()], ids=repr)
def test_steps_are_those_of_the_loop_that_can_be_differentiated(solver):
    """Of diffrax: another implementation of the same table, interpolation and choice of steps."""
    ours, theirs = (along(solver, rtol=1e-4, differentiable=which) for which in (False, True))
    assert {k: int(v) for k, v in ours.statistics.items()} == {k: int(v) for k, v in theirs.statistics.items()}
    for name in START:
        np.testing.assert_allclose(ours.states[name], theirs.states[name], rtol=1e-12, atol=1e-14)


def test_ends_of_steps_are_put_back_on_a_surface():
    """The unit circle, along which (cos t, sin t) goes; by diffrax's loop with the same table too."""

    def on_circle(y):
        return y / jnp.sqrt(jnp.sum(y**2))

    def around(t, y, args=None):
        del t, args
        p, q = on_circle(y)
        return jnp.stack([-q, p])

    solver, problem = Retracted(diffrax.Bosh3(), on_circle), {"flow": around, "start": jnp.array([1.0, 0.0])}
    ours, theirs = (along(solver, rtol=1e-3, differentiable=which, **problem) for which in (False, True))
    np.testing.assert_allclose(ours.states, np.stack([np.cos(TIMES), np.sin(TIMES)], axis=1), atol=1e-2)
    np.testing.assert_allclose(np.linalg.norm(ours.states, axis=1), 1.0, rtol=1e-15)
    np.testing.assert_allclose(ours.states, theirs.states, rtol=1e-12, atol=1e-14)
    assert ours.statistics.keys() == theirs.statistics.keys()
    assert 1e-6 < float(ours.statistics["largest_correction"]) < 1e-3
    for name, value in theirs.statistics.items():
        np.testing.assert_allclose(ours.statistics[name], value, rtol=1e-9)


def test_errors_by_number_hold_the_smallest():
    """The first of the three is a hundredth of the others, and as good."""
    out = along(diffrax.Tsit5(), rtol=1e-7, atol=1e-12, by_part=False)
    exact = FIRST * np.exp(TIMES)[:, None] / (1 + FIRST * (np.exp(TIMES)[:, None] - 1))
    np.testing.assert_allclose(out.states["p"], exact, rtol=1e-6)


def test_times_that_are_not_reached_are_infinite_and_the_reason_is_told():
    """y' = y² from 1 is 1/(1 − t), which ends at t = 1."""
    problem = {"flow": lambda t, y, args=None: y**2, "start": jnp.ones(2), "times": [0.0, 0.5, 2.0]}
    out = along(diffrax.Dopri5(), rtol=1e-9, max_steps=100_000, **problem)
    np.testing.assert_allclose(out.states[:2, 0], [1.0, 2.0], rtol=1e-8)
    assert np.isinf(np.asarray(out.states[2])).all()
    assert int(out.outcome) == Outcome.STEP_TOO_SMALL
    assert not bool(out.successful)
    out = along(diffrax.Dopri5(), rtol=1e-9, max_steps=3, **problem)
    assert int(out.outcome) == Outcome.TOO_MANY_STEPS
    assert int(out.statistics["num_steps"]) == 3
    assert np.isinf(np.asarray(out.states[1:])).all()
