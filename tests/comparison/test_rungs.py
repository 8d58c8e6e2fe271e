"""Rungs against closed forms: where an assumption holds exactly, dropping it changes nothing."""

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
import pytest

from ntkcollapse import Trajectory
from ntkcollapse.comparison import RUNGS, MeasuredStart, NetworkAt, attribute, available_rungs, climb
from ntkcollapse.comparison.rungs.network_linearised import network_linearised
from tests.comparison import cases
from tests.comparison.cases import CLASSES, TIMES

NAMES = ("loss", "residual_single", "residual_class", "residual_global", "nc1_seleznova2023", "weight_norm")
TIGHT = {name: {"rtol": 1e-8, "atol": 1e-10} for name in RUNGS if name != "network-linearised"}


def parameter_flow(network: NetworkAt, step: float = 2e-3) -> list:
    """States along the gradient flow in (θ, W, b), by classical Runge-Kutta steps: written out, no code shared."""
    Y = CLASSES.Y

    def loss(p):
        θ, W, b = p
        return jnp.sum((W @ network.features(θ, network.inputs).T + b[:, None] - Y) ** 2) / 2

    def moved(p, h, g):
        return jax.tree.map(lambda x, d: x - h * d, p, g)

    @jax.jit
    def advance(p):
        k1 = jax.grad(loss)(p)
        k2 = jax.grad(loss)(moved(p, step / 2, k1))
        k3 = jax.grad(loss)(moved(p, step / 2, k2))
        k4 = jax.grad(loss)(moved(p, step, k3))
        return moved(p, step / 6, jax.tree.map(lambda a, b, c, d: a + 2 * b + 2 * c + d, k1, k2, k3, k4))

    p, states, done = (network.params, network.W, network.b), [], 0
    for t in TIMES:
        while done < round(float(t) / step):
            p, done = advance(p), done + 1
        states.append(NetworkAt(network.features, p[0], network.inputs, p[1], p[2], CLASSES).last_layer)
    return states


@pytest.fixture(scope="module")
def linear() -> tuple[Trajectory, NetworkAt]:
    network = cases.linear_network()
    return cases.run_of(parameter_flow(network), TIMES), network


def test_all_rungs_coincide_on_a_linear_network_with_a_block_kernel(linear):
    run, network = linear
    start = MeasuredStart(run, 0, {0: network})
    names = [name for name in RUNGS if name not in ("network-linearised", "sample-path")]
    ladder = climb(start, names, options=TIGHT, throw=True)
    assert list(ladder.rungs) == names
    for name, rung in ladder.rungs.items():
        for observable in NAMES:
            np.testing.assert_allclose(
                # Adaptive solvers at rtol 1e-8 a step leave some 1e-6 at the end, fourth-order steps far less.
                rung[observable],
                run[observable],
                rtol=2e-5,
                err_msg=f"{name} {observable}",
            )
        # The kernel that a rung assumes stands beside the measured one; the last rungs assume none.
        assert ("kappa_within" in rung.observables) == (RUNGS[name].number[0] in "123")
        for observable in ("kappa_diagonal", "kappa_within", "kappa_between"):
            if observable in rung.observables:
                np.testing.assert_allclose(rung[observable], run[observable], rtol=1e-12, err_msg=observable)


def test_rung_5_is_the_matrix_exponential_of_the_ntk(linear):
    run, network = linear
    W, X, H = network.W, network.inputs, network.last_layer.H
    N, C = CLASSES.num_samples, CLASSES.num_classes
    # Θ = WWᵀ ⊗ K + I ⊗ (HᵀH + 11ᵀ), K = X Xᵀ, at the start and for ever.
    theta = jnp.kron(W @ W.T, X @ X.T) + jnp.kron(jnp.eye(C), H.T @ H + 1)
    R = network.last_layer.residual(CLASSES).reshape(-1)
    expected = [jnp.reshape(jsl.expm(-t * theta) @ R, (C, N)) for t in TIMES]
    start = MeasuredStart(run, 0, {0: network})
    for method in ("eigen", "integrate"):
        course = network_linearised(start, jnp.asarray(TIMES), method=method, rtol=1e-8, atol=1e-10)
        assert course.logits is not None
        for f, R_t in zip(course.logits, expected, strict=True):
            np.testing.assert_allclose(f - CLASSES.Y, R_t, atol=1e-6, err_msg=method)


def test_nonlinear_network_separates_the_rungs_and_attribution_sums_to_the_gap():
    network = cases.tanh_network()
    run = cases.run_of(parameter_flow(network), TIMES)
    start = MeasuredStart(run, 0, {0: network})
    names = ["sample-frozen", "features-linearised", "network-flow"]
    ladder = climb(start, names, options=TIGHT, throw=True)
    # The flow of the network is what the small steps followed.
    np.testing.assert_allclose(ladder.rungs["network-flow"]["loss"], run["loss"], rtol=1e-4)
    # Averages over features and lazy features do cost something here, so the shares below are not trivially zero.
    assert abs(float(ladder.rungs["sample-frozen"]["loss"][-1] / run["loss"][-1]) - 1) > 1e-2
    assert abs(float(ladder.rungs["features-linearised"]["loss"][-1] / run["loss"][-1]) - 1) > 1e-3
    for scale in ("log", "linear"):
        found = attribute(ladder, "residual_class", scale=scale)
        assert [share.to for share in found.shares] == ["features-linearised", "network-flow", "network"]
        np.testing.assert_allclose(sum(s.change for s in found.shares), found.gap, atol=1e-14)
        assert found.shares[1].assumption == "lazy features"
    assert found.horizons["network-flow"] == TIMES[-1]


def test_lazy_limit_rungs_4_5_and_6_coincide():
    """A large W where features do not see it yet: moving them by 1/α fits the targets, and little is left to bend."""
    α, network = 300.0, cases.tanh_network(width=24, n=16)
    H = network.last_layer.H
    inverse = jnp.linalg.pinv(H)
    # W H stays as it is; only what is orthogonal to the features at the start grows.
    W = network.W + α * network.W @ (jnp.eye(16) - H @ inverse)
    lazy = NetworkAt(network.features, network.params, network.inputs, W, network.b, CLASSES)
    times = TIMES / α**2
    run = cases.run_of([lazy.last_layer] * 4, times)
    start = MeasuredStart(run, 0, {0: lazy})
    rungs = climb(start, ["features-linearised", "network-linearised", "network-flow"], options=TIGHT, throw=True).rungs
    reference = np.asarray(rungs["network-flow"]["loss"])
    assert reference[-1] < 0.8 * reference[0]
    for name in ("features-linearised", "network-linearised"):
        # What is dropped is of relative order 1/α.
        np.testing.assert_allclose(rungs[name]["loss"], reference, rtol=10 / α, err_msg=name)


def test_what_is_missing_is_said(linear):
    run, network = linear
    alone = MeasuredStart(run, 0)
    assert available_rungs(alone) == ("block-frozen", "block-path")
    with pytest.raises(ValueError, match="networks: expected the network at record 0"):
        climb(alone, ["features-linearised"])
    with pytest.raises(ValueError, match="got none for \\[1, 2, 3\\]"):
        climb(MeasuredStart(run, 0, {0: network}), ["sample-path"])
    with pytest.raises(ValueError, match="start: expected a record from 0 to 2"):
        MeasuredStart(run, 3)
    with pytest.raises(ValueError, match="rungs: expected one of"):
        climb(alone, ["rung-7"])
    other = cases.linear_network(seed=5)
    with pytest.raises(ValueError, match="logits differ"):
        MeasuredStart(run, 0, {0: other})
    steps = Trajectory(
        run.times, run.observables, run.classes, states=run.states, kernel=run.kernel, settings={"clock": "steps"}
    )
    with pytest.raises(ValueError, match="no clock is known"):
        MeasuredStart(steps, 0)


def test_too_large_a_rung_says_what_it_needs_and_which_fits(linear, monkeypatch):
    run, network = linear
    monkeypatch.setattr("ntkcollapse.comparison._memory.available_memory", lambda: 1000)
    start = MeasuredStart(run, 0, {0: network})
    with pytest.raises(MemoryError, match=r"'sample-frozen': needs about .* GiB, .* 'class-pairs', which fits"):
        climb(start, ["sample-frozen"], throw=True)
    ladder = climb(start, ["sample-frozen"])
    assert not ladder.rungs
    assert "sample-frozen" in ladder.failures
