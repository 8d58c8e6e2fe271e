"""One step against a step computed by hand in numpy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax

from ntkcollapse.classes import Classes
from ntkcollapse.clock import Staircase
from ntkcollapse.data import Dataset, digits
from ntkcollapse.networks import Variables, mlp
from ntkcollapse.training import (
    NonFiniteLoss,
    Stepper,
    batch_loss,
    gradient_descent,
    log_spaced,
    optimizer,
)
from ntkcollapse.training.step import _advance, _advance_several

X = np.random.default_rng(0).normal(size=(8, 4))
LABELS = np.repeat(np.arange(2), 4).astype(np.int32)
Y = np.eye(2)[LABELS]


@pytest.fixture
def linear():
    """x ↦ W₂ W₁ x + b in float64."""
    net = mlp((3,), 2, activation="linear", param_dtype=jnp.float64)
    return net, net.init(jax.random.key(0), X)


def arrays(variables: Variables) -> list[np.ndarray]:
    """A (4, 3), its bias a, W (3, 2), its bias b."""
    hidden, last = variables.params["trunk"]["linear_0"], variables.params["last_layer"]
    return [np.asarray(v) for v in (hidden["kernel"], hidden["bias"], last["kernel"], last["bias"])]


def gradients(values, weight_decay):
    """Of 1/(BC) Σ ½ (f − Y)² + λ/2 (‖A‖² + ‖W‖²), by hand."""
    A, a, W, b = values
    H = X @ A + a
    G = (H @ W + b - Y) / Y.size
    return [X.T @ G @ W.T + weight_decay * A, (G @ W.T).sum(0), H.T @ G + weight_decay * W, G.sum(0)]


def test_nesterov_with_weight_penalty_on_weights_alone(linear):
    net, variables = linear
    momentum, decay = 0.9, 0.01
    schedule = Staircase(0.3, 0.1, 2)
    stepper = Stepper(net, optimizer("sgd", momentum=momentum), "squared", decay)
    state = stepper.start(variables)
    values = arrays(variables)
    velocity = [np.zeros_like(v) for v in values]
    for step in range(5):
        A, a, W, b = values
        state, record = stepper(state, jnp.asarray(X), jnp.asarray(LABELS), rate=schedule(step))
        loss = ((X @ A + a) @ W + b - Y) ** 2
        assert float(record.loss) == pytest.approx(loss.sum() / 2 / Y.size, rel=1e-10)
        gradient = gradients(values, decay)
        velocity = [momentum * v + g for v, g in zip(velocity, gradient, strict=True)]
        rate = 0.3 * 0.1 ** (step // 2)
        values = [p - rate * (g + momentum * v) for p, g, v in zip(values, gradient, velocity, strict=True)]
    for got, wanted in zip(arrays(state.variables), values, strict=True):
        # Five steps in float64.
        np.testing.assert_allclose(got, wanted, rtol=1e-10)
    assert int(state.step) == 5


def test_losses_are_means():
    f = np.random.default_rng(1).normal(size=(8, 2))
    squared = float(batch_loss("squared", jnp.asarray(f), jnp.asarray(Y)))
    assert squared == pytest.approx(float(optax.l2_loss(jnp.asarray(f), jnp.asarray(Y)).mean()), rel=1e-12)
    cross = float(batch_loss("cross-entropy", jnp.asarray(f), jnp.asarray(Y)))
    assert cross == pytest.approx(-log_softmax(f, axis=1)[np.arange(8), LABELS].mean(), rel=1e-12)
    with pytest.raises(ValueError, match="Did you mean 'squared'"):
        batch_loss("square", jnp.asarray(f), jnp.asarray(Y))


def test_rows_are_gathered(linear):
    net, variables = linear
    stepper = Stepper(net, optimizer("sgd"))
    rows = np.asarray([1, 3, 5, 7], np.int32)
    one, _ = stepper(stepper.start(variables), jnp.asarray(X), jnp.asarray(LABELS), rows)
    two, _ = stepper(stepper.start(variables), jnp.asarray(X[rows]), jnp.asarray(LABELS[rows]))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_step_that_is_not_finite_is_not_taken(linear):
    net, variables = linear
    stepper = Stepper(net, optimizer("sgd"))
    state, _ = stepper(stepper.start(variables), jnp.asarray(X), jnp.asarray(LABELS), rate=0.1)
    before = jax.tree.map(np.asarray, state)
    bad = X.copy()
    bad[0, 0] = np.inf
    state, record = stepper(state, jnp.asarray(bad), jnp.asarray(LABELS), rate=0.1)
    assert not np.isfinite(float(record.loss))
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, state))


def test_lbfgs_finds_the_least_squares_fit(linear):
    net, variables = linear
    stepper = Stepper(net, optimizer("lbfgs"))
    state = stepper.start(variables)
    loss = float("nan")
    for _ in range(60):
        state, record = stepper(state, jnp.asarray(X), jnp.asarray(LABELS))
        loss = float(record.loss)
    design = np.concatenate([X, np.ones((8, 1))], axis=1)
    fit = design @ np.linalg.lstsq(design, Y, rcond=None)[0]
    # The network is linear with enough hidden units, so its best loss is that of the linear fit.
    assert loss == pytest.approx(((fit - Y) ** 2).sum() / 2 / Y.size, rel=1e-6)


def test_runs_that_differ_in_rate_and_initial_weights_share_one_compiled_step():
    data = digits(3)
    # Calls of all functions are kept in one place: when it is full, each new one puts an old one out.
    jax.clear_caches()
    before = _advance._cache_size()  # pyright: ignore
    for seed, rate in ((0, 0.1), (1, 0.7)):
        net = mlp((5,), 10)
        stepper = Stepper(net, optimizer("sgd", momentum=0.8), "squared", 1e-3)
        state = stepper.start(net.init(jax.random.key(seed), data.inputs))
        inputs, labels = jnp.asarray(data.inputs), jnp.asarray(data.labels)
        for step in range(6):
            rows = np.arange(step, step + 20, dtype=np.int32)
            state, _ = stepper(state, inputs, labels, rows, rate / (1 + step))
    assert _advance._cache_size() == before + 1  # pyright: ignore


def test_staircase_and_its_sum():
    schedule = Staircase(0.4, 0.1, 3)
    assert [schedule(s) for s in (0, 2, 3, 6)] == pytest.approx([0.4, 0.4, 0.04, 0.004])
    steps = np.arange(14)
    np.testing.assert_allclose(schedule.elapsed(steps), [sum(map(schedule, range(s))) for s in steps], rtol=1e-12)
    assert Staircase(0.4).elapsed(10) == pytest.approx(4.0)
    with pytest.raises(ValueError, match="learning_rate: expected numbers above zero"):
        Staircase(-1.0)


def test_gradient_descent_is_plain(linear):
    net, variables = linear
    data = Dataset(X.astype(np.float32), Classes((4, 4)), "x")
    seen = list(gradient_descent(net, variables, data, learning_rate=0.5, at=(0, 1, 3)))
    assert [s.step for s in seen] == [0, 1, 3]
    values = arrays(variables)
    after = {}
    for step in range(1, 4):
        values = [p - 0.5 * g for p, g in zip(values, gradients(values, 0.0), strict=True)]
        after[step] = values
    for snapshot in seen[1:]:
        for got, wanted in zip(arrays(snapshot.variables), after[snapshot.step], strict=True):
            # Inputs in float32.
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="at: expected strictly increasing steps"):
        gradient_descent(net, variables, data, learning_rate=0.5, at=(0, 0))
    with pytest.raises(NonFiniteLoss, match="the run diverged") as caught:
        list(gradient_descent(net, variables, data, learning_rate=1e200, at=(0, 4)))
    assert caught.value.last.step == 0  # pyright: ignore


def test_log_spaced_steps():
    steps = log_spaced(1000, 10)
    assert steps[0] == 0
    assert steps[-1] == 1000
    assert list(steps) == sorted(set(steps))
    assert len(log_spaced(3, 50)) == 4


def test_a_step_takes_the_place_of_the_state_before(linear):
    """What parameters, averages and momentum hold is not there twice: the state before is given away."""
    net, variables = linear
    stepper, x, labels = Stepper(net, optimizer("sgd", momentum=0.9)), jnp.asarray(X), jnp.asarray(LABELS)
    one, several = stepper.start(variables), stepper.start(variables)
    stepper(one, x, labels)
    stepper.several(several, x, labels, None, np.ones(5), 0, 2)
    assert {leaf.is_deleted() for leaf in jax.tree.leaves((one, several))} == {True}
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(variables))


def test_several_steps_are_one_program(linear):
    """The same states as step by step, whatever number of them is taken; a bad one stops them where it is."""
    net, variables = linear
    stepper, x, labels = Stepper(net, optimizer("sgd")), jnp.asarray(X), jnp.asarray(LABELS)
    rows, rates = np.random.default_rng(2).integers(0, 8, (5, 4)).astype(np.int32), np.linspace(0.1, 0.5, 5)
    # Calls of all functions are kept in one place: when it is full, each new one puts an old one out.
    jax.clear_caches()
    compiled = _advance_several._cache_size()  # pyright: ignore
    for count in (5, 2):
        one, record = stepper.start(variables), None
        for step in range(count):
            one, record = stepper(one, x, labels, rows[step], rates[step], step)
        all_at_once, last = stepper.several(stepper.start(variables), x, labels, rows, rates, 0, count)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), (one, record), (all_at_once, last))
    bad = np.where(np.arange(8)[:, None] == 7, np.inf, X)
    rows[:2], rows[2:] = [0, 1, 2, 3], [4, 5, 6, 7]
    state, _ = stepper.several(stepper.start(variables), jnp.asarray(bad), labels, rows, rates, 0, 5)
    assert int(state.step) == 2
    assert _advance_several._cache_size() == compiled + 1  # pyright: ignore


def test_mixed_precision_keeps_what_it_should():
    """Passes in bfloat16; parameters, optimiser, batch statistics, loss and gradients are float32, and nearly those."""
    net, x = mlp((6,), 2, batch_norm=True), jnp.asarray(X, jnp.float32)
    variables = net.init(jax.random.key(0), X)
    states = {}
    for dtype, short in (("float32", "f32"), ("bfloat16", "bf16")):
        stepper = Stepper(net, optimizer("sgd", momentum=0.9), compute_dtype=dtype)
        state, record = stepper(stepper.start(variables), x, jnp.asarray(LABELS), rate=0.1)
        states[dtype] = state, record
        step = lambda s, stepper=stepper: _advance((stepper, x, LABELS, None, 0.1, None), s)  # noqa: E731
        assert set(re.findall(r"(\w+)\[[\d,]*\] = dot_general", str(jax.make_jaxpr(step)(state)))) == {short}
        kinds = {str(leaf.dtype) for leaf in jax.tree.leaves((state, record))}
        assert kinds == {"float32", "int32"}
    (full, of_full), (half, of_half) = states.values()
    # bfloat16 has eight binary digits, and there are a few products after one another.
    assert float(of_half.loss) == pytest.approx(float(of_full.loss), rel=0.05)
    assert float(of_half.loss) != float(of_full.loss)
    moved = [state.variables.batch_stats["trunk"] for state in (full, half)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.05, atol=0.01), *moved)
    with pytest.raises(ValueError, match="compute_dtype: expected one of 'float32', 'bfloat16'; got 'float16'"):
        Stepper(net, optimizer("sgd"), compute_dtype="float16")
