"""The clock on quadratic problems, whose flow and whose steps are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntkcollapse import Classes, Clock

CLASSES = Classes.balanced(num_classes=3, per_class=4)
NC = 36
RATES = np.array([0.5, 2.0, 5.0])


def descend(optimizer: optax.GradientTransformation, steps: int, penalty: float = 0.0) -> np.ndarray:
    """x after the steps, on the mean loss whose flow in units of ½‖R‖² is ẋ = −ν x: x² ν / (2 N C), from x = 1."""
    loss = lambda x: jnp.sum(RATES * x**2) / (2 * NC) + penalty * jnp.sum(x**2) / 2  # noqa: E731

    def body(carry, _):
        x, state = carry
        updates, state = optimizer.update(jax.grad(loss)(x), state, x)
        return (optax.apply_updates(x, updates), state), None

    x = jnp.ones(3)
    # optax's schedules mix integers and floats.
    with jax.numpy_dtype_promotion("standard"):
        return np.asarray(jax.lax.scan(body, (x, optimizer.init(x)), None, length=steps)[0][0])


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_small_steps_follow_the_flow_at_first_order(momentum, nesterov):
    errors = []
    for learning_rate in (0.04, 0.02, 0.01):
        clock = Clock.of_optimizer("sgd", "mean", CLASSES, learning_rate=learning_rate, momentum=momentum)
        steps = round(1.0 / float(clock.time(1)))
        x = descend(optax.sgd(learning_rate, momentum or None, nesterov), steps)
        errors.append(np.abs(x - np.exp(-RATES * clock.time(steps))).max())
    # Errors halve with the step.
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 2, rtol=0.15)
    assert errors[-1] < 0.02


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.8, False), (0.8, True)])
def test_mode_rate_is_that_of_long_runs(momentum, nesterov):
    # All three modes slower than `fastest_mode`, so that their logarithms fall along a line.
    learning_rate = 0.05
    clock = Clock.of_loss("mean", CLASSES, learning_rate=learning_rate, momentum=momentum, nesterov=nesterov)
    a, b = (descend(optax.sgd(learning_rate, momentum or None, nesterov), steps) for steps in (400, 800))
    seen = np.log(a / b) / (clock.time(800) - clock.time(400))
    np.testing.assert_allclose(clock.mode_rate(RATES), seen, rtol=1e-9)
    # Slow modes keep to the clock.
    np.testing.assert_allclose(clock.mode_rate(1e-3), 1e-3, rtol=1e-3)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.5, False), (0.5, True)])
def test_modes_oscillate_beyond_the_fastest(momentum, nesterov):
    clock = Clock(learning_rate=0.1, scale=1.0, momentum=momentum, nesterov=nesterov)
    β, limit = momentum, clock.fastest_mode
    for factor, complex_roots in ((0.99, False), (1.01, True)):
        x = 0.1 * limit * factor
        companion = (
            np.array([[(1 + β) * (1 - x), -β * (1 - x)], [1, 0]]) if nesterov else np.array([[1 + β - x, -β], [1, 0]])
        )
        assert np.iscomplexobj(np.linalg.eigvals(companion)) == complex_roots


def test_schedule_adds_up():
    schedule = optax.piecewise_constant_schedule(0.02, {50: 0.1})
    clock = Clock.of_loss("mean", CLASSES, learning_rate=schedule)
    np.testing.assert_allclose(clock.time(150), (50 * 0.02 + 100 * 0.002) / NC)
    x = descend(optax.sgd(schedule), 150)
    np.testing.assert_allclose(x, np.exp(-RATES * clock.time(150)), rtol=1e-3)
    with pytest.raises(ValueError, match="got a schedule"):
        clock.mode_rate(1.0)


@pytest.mark.parametrize("decoupled", [False, True])
def test_weight_decay_is_a_decay_of_the_flow(decoupled):
    learning_rate, momentum, decay = 0.001, 0.8, 0.02
    clock = Clock.of_loss("mean", CLASSES, learning_rate=learning_rate, momentum=momentum)
    steps = round(1.0 / float(clock.time(1)))
    sgd = optax.sgd(learning_rate, momentum)
    if decoupled:
        x = descend(optax.chain(sgd, optax.add_decayed_weights(-learning_rate * decay)), steps)
    else:
        x = descend(sgd, steps, penalty=decay)
    rate = clock.decay_rate(decay, decoupled=decoupled)
    # First order in the step: 1.7% for the fastest mode, where decay by the wrong factor would be 50% or more.
    np.testing.assert_allclose(x, np.exp(-(RATES + rate) * clock.time(steps)), rtol=3e-2)
    assert rate == pytest.approx(decay * NC * (0.2 if decoupled else 1))


def test_an_optimiser_without_a_clock_is_refused():
    with pytest.raises(ValueError, match=r"expected 'sgd', .* got 'adam': no clock can be derived"):
        Clock.of_optimizer("adam", "mean", CLASSES, learning_rate=0.1)
