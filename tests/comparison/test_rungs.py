"""Rungs against closed forms: where an assumption holds exactly, dropping it changes nothing."""

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
import pytest

from ntkcollapse import Classes, DenseKernel, KernelPath, Method, Trajectory, simulate
from ntkcollapse.comparison import (
    RUNGS,
    Course,
    MeasuredStart,
    NetworkAt,
    _memory,
    attribute,
    available_rungs,
    climb,
    gaps,
)
from ntkcollapse.comparison.ladder import observed
from ntkcollapse.comparison.parametric import FullNetwork, Parameters, ParametricFlow
from ntkcollapse.comparison.rungs.features_linearised import features_linearised
from ntkcollapse.comparison.rungs.network_flow import network_flow
from ntkcollapse.comparison.rungs.network_linearised import network_linearised
from ntkcollapse.data import Dataset
from ntkcollapse.equation import Equation
from ntkcollapse.networks import Variables, mlp
from tests.comparison import cases
from tests.comparison.cases import CLASSES, TIMES

NAMES = ("loss", "residual_single", "residual_class", "residual_global", "nc1_seleznova2023", "weight_norm")
TIGHT = {name: {"rtol": 1e-8, "atol": 1e-10} for name in RUNGS if name != "network-linearised"}
TIGHT["network-flow"] = {"step": 0.01}


def parameter_flow(
    network: NetworkAt, step: float = 2e-3, times: np.ndarray = TIMES, decay: float = 0.0
) -> list[NetworkAt]:
    """The gradient flow in (θ, W, b), by classical Runge-Kutta steps: written out, no code shared."""
    Y = network.classes.Y

    def loss(p):
        θ, W, b = p
        shift = b[:, None] if network.bias else 0.0
        weights = sum(jnp.sum(leaf**2) for leaf in (*jax.tree.leaves(θ), W))
        return (jnp.sum((W @ network.features(θ, network.inputs).T + shift - Y) ** 2) + decay * weights) / 2

    def moved(p, h, g):
        return jax.tree.map(lambda x, d: x - h * d, p, g)

    slope = jax.jit(jax.grad(loss))

    @jax.jit
    def advance(p):
        k1 = slope(p)
        k2 = slope(moved(p, step / 2, k1))
        k3 = slope(moved(p, step / 2, k2))
        k4 = slope(moved(p, step, k3))
        return moved(p, step / 6, jax.tree.map(lambda a, b, c, d: a + 2 * b + 2 * c + d, k1, k2, k3, k4))

    p, networks, done = (network.params, network.W, network.b), [], 0
    for t in times:
        while done < round(float(t) / step):
            p, done = advance(p), done + 1
        networks.append(NetworkAt(network.features, p[0], network.inputs, p[1], p[2], network.classes))
    return networks


def flow_of(network: NetworkAt, **options) -> Trajectory:
    """The same as a measured run."""
    times = options.get("times", TIMES)
    states = [at.last_layer for at in parameter_flow(network, **options)]
    return cases.run_of(states, times, classes=network.classes)


@pytest.fixture(scope="module")
def linear() -> tuple[Trajectory, NetworkAt]:
    network = cases.linear_network()
    return flow_of(network), network


def test_all_rungs_coincide_on_a_linear_network_with_a_block_kernel(linear):
    run, network = linear
    start = MeasuredStart(run, 0, {0: network})
    names = [name for name in available_rungs(start) if name != "network-linearised"]
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


def relu_features(params, x):
    U, V, c = params
    return jax.nn.relu(x @ U.T + c[None, :]) @ V.T


def test_gradient_flow_of_a_relu_network_does_not_crawl_from_jump_to_jump():
    """Units switch on and off by samples, and biases start at 0; small steps of gradient descent are the oracle."""
    smooth = cases.tanh_network(width=24)
    params = (*smooth.params, jnp.zeros(24))
    network = NetworkAt(relu_features, params, smooth.inputs, smooth.W, smooth.b, CLASSES)
    times = np.array([0.0, 0.2, 0.4])
    start = MeasuredStart(cases.run_of([network.last_layer] * 3, times), 0, {0: network})
    course = network_flow(start, times)
    assert bool(course.statistics["successful"])
    assert int(course.statistics["num_steps"]) < 300
    assert course.logits is not None

    def loss(p):
        θ, W, b = p
        return jnp.sum((relu_features(θ, network.inputs) @ W.T + b[None, :] - CLASSES.Y.T) ** 2) / 2

    def descend(p, _):
        return jax.tree.map(lambda x, g: x - 2e-5 * g, p, jax.grad(loss)(p)), None

    p = (params, network.W, network.b)
    for i in (1, 2):
        p, _ = jax.jit(lambda p: jax.lax.scan(descend, p, None, 10_000))(p)
        found = float(jnp.sum((course.logits[i] - CLASSES.Y) ** 2)) / 2
        # First order at every switch.
        np.testing.assert_allclose(found, float(loss(p)), rtol=3e-3)


def test_steps_of_the_networks_flow_are_of_second_order():
    """Where the network is smooth; and what they need of its Hessian is its largest eigenvalue."""
    network = cases.tanh_network()
    run = flow_of(network)
    start = MeasuredStart(run, 0, {0: network})
    errors = []
    for step in (0.4, 0.2, 0.1):
        course = network_flow(start, TIMES, step=step)
        assert course.logits is not None
        loss = 0.5 * jnp.sum((course.logits[-1] - CLASSES.Y) ** 2)
        errors.append(abs(float(loss - run["loss"][-1])))

    # Steps divide intervals, so that they are not halved exactly.
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), 2, atol=0.25)

    def loss_of(p):
        θ, W, b = p
        return jnp.sum((W @ network.features(θ, network.inputs).T + b[:, None] - CLASSES.Y) ** 2) / 2

    flat, back = jax.flatten_util.ravel_pytree((network.params, network.W, network.b))
    largest = float(jnp.abs(jnp.linalg.eigvalsh(jax.hessian(lambda v: loss_of(back(v)))(flat))).max())
    short = network_flow(start, np.array([0.0, 1e-4]))
    # Settled to two percent.
    assert float(short.statistics["eigenvalue_largest"]) == pytest.approx(largest, rel=0.03)


def test_a_flow_that_runs_out_of_steps_ends_where_it_was():
    network = cases.tanh_network()
    start = MeasuredStart(flow_of(network), 0, {0: network})
    course = network_flow(start, TIMES, max_steps=12)
    assert len(course.times) < len(TIMES)
    assert int(course.statistics["num_steps"]) <= 12
    assert not bool(course.statistics["successful"])
    for step, said in ((0.0, "step: expected"), (2.0, "step: expected less than 2")):
        with pytest.raises(ValueError, match=said):
            network_flow(start, TIMES, step=step)


def convolved_features(params, x):
    kernel, V = params
    seen = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(seen).mean((1, 2)) @ V.T


@pytest.mark.parametrize("precision", [jnp.float64, jnp.float32])
def test_a_network_with_convolutions_is_followed_step_by_step(precision):
    """In the precision of its weights; classical Runge-Kutta steps of all of it in float64 are the oracle."""
    rng = np.random.default_rng(4)
    params = (rng.normal(size=(3, 3, 1, 6)), rng.normal(size=(4, 6)))
    params = tuple(jnp.asarray(p, precision) for p in params)
    layer = (rng.normal(size=(12, 5, 5, 1)), rng.normal(size=(3, 4)) / 2, np.zeros(3), CLASSES)
    network = NetworkAt(convolved_features, params, *layer)
    assert network.convolves
    assert network.precision == precision
    run = flow_of(network)
    names = ["features-linearised", "network-flow"]
    options = {"features-linearised": {"method": "products"}, "network-flow": {"step": 0.05}}
    start = MeasuredStart(run, 0, {0: network})
    rungs = climb(start, names, options=options, throw=True).rungs
    assert "num_evaluations" in rungs["features-linearised"].statistics
    np.testing.assert_allclose(rungs["network-flow"]["loss"], run["loss"], rtol=1e-4)
    # The same rung by its kernel as an array, which does not see the network.
    by_kernel = climb(start, names[:1], options={names[0]: {"method": "kernel"}}, throw=True).rungs[names[0]]
    np.testing.assert_allclose(rungs[names[0]]["loss"], by_kernel["loss"], rtol=1e-4)
    assert abs(float(rungs["features-linearised"]["loss"][-1] / run["loss"][-1]) - 1) > 1e-2


def test_a_network_without_bias_has_none_on_any_rung():
    network = cases.linear_network(bias=False)
    run = flow_of(network)
    names = ["block-frozen", "network-linearised"]
    ladder = climb(MeasuredStart(run, 0, {0: network}), names, throw=True, keep_states=True)
    for name, rung in ladder.rungs.items():
        assert not np.asarray(rung.states.b).any(), name
        # Lazy training is another flow; the theorem's is the network's own here, at its default tolerances.
        if name != "network-linearised":
            np.testing.assert_allclose(rung["residual_global"], run["residual_global"], rtol=1e-2, err_msg=name)
    # Its output kernel is W Wᵀ ⊗ K + I ⊗ HᵀH, without the 11ᵀ of a bias.
    K, H, W = network.inputs @ network.inputs.T, network.last_layer.H, network.W
    theta = jnp.kron(W @ W.T, K) + jnp.kron(jnp.eye(len(W)), H.T @ H)
    largest = float(ladder.rungs["network-linearised"].statistics["eigenvalue_largest"])
    assert largest == pytest.approx(float(jnp.linalg.eigvalsh(theta)[-1]), rel=1e-10)


def test_weight_decay_and_unequal_classes_on_linear_features():
    """A x decays as A does, at λ: what the rungs of the last layer call homogeneous of degree 1."""
    network = cases.linear_network(classes=Classes((2, 4, 6)))
    run = flow_of(network, decay=0.5)
    start = MeasuredStart(run, 0, {0: network}, weight_decay=0.5, homogeneity=1.0)
    names = ["class-pairs", "sample-frozen", "network-flow"]
    for name, rung in climb(start, names, options={name: TIGHT[name] for name in names}, throw=True).rungs.items():
        for observable in NAMES:
            np.testing.assert_allclose(rung[observable], run[observable], rtol=2e-5, err_msg=f"{name} {observable}")


def test_the_decay_of_a_trained_run_is_known_from_its_equation(linear):
    run, network = linear
    # λ beside the mean over 12 samples and 3 outputs is 36 λ beside the sum.
    decaying = run.replaced(equation=Equation(producer="network", weight_decay={"W": 36 * 0.01}))
    assert MeasuredStart(decaying, 0, {0: network}).weight_decay == pytest.approx(0.36)
    assert MeasuredStart(decaying, 0, weight_decay=0.0).weight_decay == 0


def test_deviations_that_differ_without_cross_terms_are_the_sample_kernel():
    """Class means and deviations apart, every deviation with an eigenvalue of its own: then 2b drops nothing."""
    rng = np.random.default_rng(2)
    Z = np.repeat(np.eye(3), 4, axis=1).T / 2
    deviations = np.linalg.qr(np.concatenate([Z, rng.normal(size=(12, 9))], axis=1))[0][:, 3:]
    pairs = np.array([[3.0, 0.5, 0.2], [0.5, 2.0, 0.4], [0.2, 0.4, 1.0]])
    gram = Z @ pairs @ Z.T + deviations * np.linspace(0.2, 1.8, 9) @ deviations.T
    network = cases.linear_network(gram=gram)
    run = flow_of(network)
    tight = {"within-spectrum": TIGHT["within-spectrum"]}
    rung = climb(MeasuredStart(run, 0, {0: network}), ["within-spectrum"], options=tight, throw=True).rungs
    for observable in NAMES:
        # One group for all deviations is 1% off in the residual of single samples.
        np.testing.assert_allclose(rung["within-spectrum"][observable], run[observable], rtol=2e-5)


@pytest.mark.filterwarnings("ignore:means, W. 1 features cannot hold a simplex")
def test_the_sample_kernels_path_is_exact_for_a_single_feature():
    """n = 1: there is no average over features, and what is left of 3' is interpolation between records."""
    network = cases.tanh_network(n=1)
    times = np.linspace(0.0, 2.0, 11)
    networks = parameter_flow(network, times=times)
    run = cases.run_of([at.last_layer for at in networks], times)
    start = MeasuredStart(run, 0, dict(enumerate(networks)))
    rung = climb(start, ["sample-path"], throw=True).rungs["sample-path"]
    # Linear interpolation over steps of 0.2 leaves some of their square times the path's curvature; the kernel frozen
    # at the start is 2.7e-2 off.
    np.testing.assert_allclose(rung["loss"], run["loss"], rtol=2e-3)


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
    run = flow_of(network)
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


def test_features_linearised_by_their_kernel_and_by_products():
    """Θ^h of all pairs of features as an array, and as two products of the network: features curved and unequal."""
    network = cases.tanh_network()
    start = MeasuredStart(cases.run_of([network.last_layer] * 4, TIMES), 0, {0: network})
    one, other = (
        features_linearised(start, jnp.asarray(TIMES), method=method, rtol=1e-8, atol=1e-10)
        for method in ("kernel", "products")
    )
    for name in ("H", "W", "b"):
        # Both integrate to 1e-8 a step, one in (H, W, b) and one in the parameters.
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-6, err_msg=name)
    assert np.linalg.norm(one.H[-1] - one.H[0]) > 0.1 * np.linalg.norm(one.H[0])
    decaying = MeasuredStart(start.run, 0, {0: network}, weight_decay=0.1)
    with pytest.raises(ValueError, match="expected 'products' with weight decay"):
        features_linearised(decaying, TIMES, method="kernel")


def test_kernels_are_measured_in_the_precision_of_the_parameters():
    network = cases.tanh_network()
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), network.params)
    coarse = NetworkAt(*_parts(network, single))
    features, params, x = coarse.as_trained
    assert {leaf.dtype for leaf in (*jax.tree.leaves(params), x, features(params, x))} == {jnp.dtype("float32")}
    # The weights are the same numbers again, and what is integrated is in float64.
    jax.tree.map(np.testing.assert_array_equal, params, single)
    assert {leaf.dtype for leaf in jax.tree.leaves(coarse.params)} == {jnp.dtype("float64")}
    assert network.as_trained[2].dtype == jnp.float64
    # So are the kernels: the numbers of single precision, kept in double.
    for name, kernel in (("features", coarse.feature_kernel), ("outputs", coarse.output_kernel)):
        theta, exact = (np.asarray(k(outputs="mean")) for k in (kernel, getattr(network, kernel.__name__)))
        assert theta.dtype == np.float64, name
        np.testing.assert_array_equal(theta, theta.astype(np.float32), err_msg=name)
        np.testing.assert_allclose(theta, exact, rtol=1e-4, atol=1e-5 * exact.max(), err_msg=name)
    # Features as training sees them are no reason for another precision.
    coupled = NetworkAt(*_parts(network, single), coupled=network.features).in_training
    assert coupled.precision == np.float32


def _parts(network, params):
    return network.features, params, network.inputs, network.W, network.b, network.classes


@pytest.mark.parametrize(("width", "cheaper"), [(256, "kernel"), (24, "products")])
def test_features_are_linearised_by_what_costs_less(width, cheaper):
    """On few samples a pass through a wide network costs more than a product with Θ^h, through a narrow one less."""
    network = cases.tanh_network(width=width)
    start = MeasuredStart(cases.run_of([network.last_layer] * 4, TIMES), 0, {0: network})
    courses = {
        method: features_linearised(start, TIMES[:2], method=method) for method in ("auto", "kernel", "products")
    }
    # One sums in another order than the other.
    same = [name for name in ("kernel", "products") if np.array_equal(courses["auto"].H, courses[name].H)]
    assert same == [cheaper]


def test_a_run_kept_in_single_precision_is_predicted_at_all_of_its_times(linear):
    """Decimals of its times are other numbers in float32: rungs keep the run's own, and start in float64."""
    run, _ = linear
    single = run.replaced(states=jax.tree.map(lambda x: x.astype(np.float32), run.states))
    for name, rung in climb(MeasuredStart(single, 0), throw=True).rungs.items():
        gap = gaps(run, rung, ["loss"])["loss"]
        np.testing.assert_array_equal(gap.times, TIMES)
        # Single precision of the start, and the solver's tolerance.
        np.testing.assert_allclose(gap.theory, gap.network, rtol=1e-4, err_msg=name)


def test_what_is_missing_is_said(linear):
    run, network = linear
    alone = MeasuredStart(run, 0)
    assert available_rungs(alone) == ("block-frozen", "block-path")
    with pytest.raises(ValueError, match="networks: expected the network at record 0"):
        climb(alone, ["features-linearised"])
    with pytest.raises(ValueError, match="got none for \\[1, 2, 3\\]"):
        climb(MeasuredStart(run, 0, {0: network}), ["sample-path"])
    with pytest.raises(ValueError, match="expected a network with batch normalisation"):
        climb(MeasuredStart(run, 0, {0: network}), ["features-coupled"])
    with pytest.raises(ValueError, match="start: expected a record from 0 to 2"):
        MeasuredStart(run, 3)
    with pytest.raises(ValueError, match="rungs: expected one of"):
        climb(alone, ["rung-7"])
    other = cases.linear_network(seed=5)
    with pytest.raises(ValueError, match="logits differ"):
        MeasuredStart(run, 0, {0: other})
    for changed, said in (
        ({"without_clock": "adam rescales gradients"}, "optimiser steps: adam rescales gradients"),
        ({"producer": "theory"}, "expected the run of a network, got one of the theory"),
        ({"loss": "cross-entropy"}, "expected one of the squared loss, .* got CrossEntropy"),
        ({"training_classes": Classes.balanced(3, 80)}, "all of the 240 samples .* got a probe of 12"),
    ):
        other = run.replaced(equation=Equation(**{"producer": "network", **changed}))
        with pytest.raises(ValueError, match=said):
            MeasuredStart(other, 0)


def test_a_kernel_that_a_rung_cannot_take_costs_that_rung_alone():
    rng = np.random.default_rng(0)
    # Linear features of 5 inputs: the kernel between 12 samples has rank 5.
    network = NetworkAt(
        cases.linear_features, rng.normal(size=(4, 5)), rng.normal(size=(12, 5)), rng.normal(size=(3, 4)), np.zeros(3),
        CLASSES,
    )  # fmt: skip
    run = cases.run_of([network.last_layer] * len(TIMES), TIMES)
    start = MeasuredStart(run, 0, {0: network})
    names = ["block-frozen", "sample-frozen", "network-linearised"]
    ladder = climb(start, names)
    assert list(ladder.rungs) == ["block-frozen", "network-linearised"]
    assert "positive-definite kernel" in ladder.failures["sample-frozen"]
    with pytest.raises(ValueError, match="positive-definite kernel"):
        climb(start, names, throw=True)


def test_rung_5_goes_by_products_where_its_kernel_does_not_fit(linear, monkeypatch):
    run, network = linear
    start = MeasuredStart(run, 0, {0: network})
    monkeypatch.setattr(_memory, "available_memory", lambda: 50_000)
    # The N C × N C kernel would take 62 kB, the parameters' path 11 kB.
    assert "eigenvalue_largest" not in network_linearised(start, jnp.asarray(TIMES)).statistics
    with pytest.raises(MemoryError, match="'network-linearised': needs about"):
        network_linearised(start, jnp.asarray(TIMES), method="eigen")


def test_rungs_that_recover_all_columns_say_what_they_need(linear, monkeypatch):
    run, network = linear
    monkeypatch.setattr(_memory, "available_memory", lambda: 5_000)
    names = ["block-frozen", "block-path", "class-pairs"]
    ladder = climb(MeasuredStart(run, 0, {0: network}), names)
    assert not ladder.rungs
    for name in names:
        assert f"rung '{name}': needs about" in ladder.failures[name]


def test_decisions_of_a_rung_are_those_of_its_logits():
    """Of rung 5 the logits are not W H + b: its NC4 is between them and the nearest class means."""
    network = cases.tanh_network()
    run = cases.run_of([network.last_layer] * len(TIMES), TIMES)
    start = MeasuredStart(run, 0, {0: network})
    H = np.asarray(network.last_layer.H)
    means = np.asarray(CLASSES.means(jnp.asarray(H)))
    nearest = np.square(H[:, :, None] - means[:, None, :]).sum(0).argmin(1)
    logits = np.broadcast_to(np.eye(3)[:, nearest], (len(TIMES), 3, 12)).copy()
    # All decided for the nearest mean, then three of twelve for another.
    logits[1:, :, :3] = np.eye(3)[:, (nearest[:3] + 1) % 3]
    H, W, b = (jnp.broadcast_to(x, (len(TIMES), *x.shape)) for x in (H, network.W, network.b))
    seen = observed(Course(jnp.asarray(TIMES), H, W, b, jnp.asarray(logits), {}), start, "network-linearised")
    np.testing.assert_allclose(seen["nc4_mismatch"], [0, 0.25, 0.25, 0.25])


def normalised_network() -> tuple[NetworkAt, np.ndarray]:
    """A network whose running averages are the statistics of its samples, and its logits in training mode."""
    data = Dataset.of(np.random.default_rng(3).normal(size=(12, 5)), np.asarray(CLASSES.labels), name="noise")
    net = mlp((8, 4), 3, batch_norm=True, param_dtype=jnp.float64)
    fresh = net.init(jax.random.key(0), data.inputs)
    outputs, moved = net.training_outputs(fresh, jnp.asarray(data.inputs))
    # Running averages keep 0.9 of their value: this is what they move towards.
    seen = jax.tree.map(lambda new, old: (new - 0.9 * old) / 0.1, moved, fresh.batch_stats)
    return NetworkAt.of(net, Variables(fresh.params, seen), data), np.asarray(outputs)


def test_batch_norm_in_training_mode_couples_samples():
    network, outputs = normalised_network()
    training = network.in_training
    np.testing.assert_allclose(training.last_layer.logits.T, outputs, atol=1e-12)
    np.testing.assert_allclose(network.last_layer.logits.T, outputs, atol=1e-12)
    # Scaled inputs are normalised away by their own statistics, not by those of before.
    again, before = (n.features(n.params, 2 * n.inputs) for n in (training, network))
    np.testing.assert_allclose(again, training.last_layer.H.T, rtol=1e-3, atol=1e-4)
    assert float(jnp.abs(before - network.last_layer.H.T).max()) > 0.1


def test_features_linearised_with_their_batch_statistics_follow_training_to_first_order():
    network, _ = normalised_network()
    run = flow_of(network.in_training, times=np.array([0.0, 0.004]))
    start = MeasuredStart(run, 0, {0: network})
    assert "features-coupled" in available_rungs(start)
    names = ["features-linearised", "features-coupled"]
    rungs = climb(start, names, throw=True).rungs
    off = [abs(float(rungs[name]["loss"][-1] / run["loss"][-1]) - 1) for name in names]
    # Of second order in time; with statistics at rest it is of first (0.019 and 0.31 at t = 0.05).
    assert off[1] < 1e-3 < 1e-2 < off[0], off


def test_gradient_flow_of_a_network_with_batch_norm_is_that_of_training():
    network, _ = normalised_network()
    run, frozen = (flow_of(n, times=TIMES[:2]) for n in (network.in_training, network))
    options = {"network-flow": {"step": 0.1}}
    start = MeasuredStart(run, 0, {0: network})
    flow = climb(start, ["network-flow"], options=options, throw=True).rungs["network-flow"]
    np.testing.assert_allclose(flow["loss"], run["loss"], rtol=1e-3)
    # With the statistics held where they were at the start it is another flow.
    assert abs(float(frozen["loss"][-1] / run["loss"][-1]) - 1) > 1e-2


def test_only_arrays_of_parameters_are_weights():
    """Python's numbers and running statistics beside them stay as they are, and nothing is differentiated in them."""
    plain = cases.linear_network()
    params = {"params": {"A": plain.params, "gain": 1.5}, "batch_stats": {"mean": jnp.ones(())}}

    def features(p, x):
        # Asked for as a number: an array in its place, under a transformation, has none.
        assert type(p["params"]["gain"]) is float
        return p["params"]["gain"] * x @ p["params"]["A"].T * p["batch_stats"]["mean"]

    network = NetworkAt(features, params, plain.inputs, plain.W, plain.b, plain.classes)
    assert network.num_params == plain.params.size
    gram = np.asarray(plain.inputs @ plain.inputs.T)
    np.testing.assert_allclose(network.feature_kernel(outputs="diagonal")[..., 0], 1.5**2 * gram, atol=1e-12)
    baked = NetworkAt(lambda A, x: 1.5 * x @ A.T, plain.params, plain.inputs, plain.W, plain.b, plain.classes)
    moved, expected = (ParametricFlow(FullNetwork(at))(0.0, Parameters.of(at)) for at in (network, baked))
    np.testing.assert_allclose(moved.theta["params"]["A"], expected.theta, rtol=1e-12)
    assert len(jax.tree.leaves(moved.theta)) == 1


def test_rung_of_blocks_is_the_flow_under_its_dense_kernel():
    """By products alone and from the sample kernel; with all the blocks that there is room for it is rung 3."""
    network = cases.tanh_network()
    start = MeasuredStart(cases.run_of([network.last_layer] * len(TIMES), TIMES), 0, {0: network})
    K = np.asarray(start.sample_kernel.matrix)
    powers = [np.asarray(CLASSES.Y).T, K @ np.asarray(CLASSES.Y).T]
    U = np.linalg.qr(np.concatenate(powers, axis=1))[0]
    rest = np.eye(12) - U @ U.T
    dense = U @ U.T @ K @ U @ U.T + np.trace(rest @ K) / 6 * rest
    one = climb(start, ["blocks:1"], throw=True, keep_states=True).rungs["blocks:1"]
    exact = simulate(start.state, dense, CLASSES, TIMES, method=Method(rtol=1e-10), observed=False)
    for i in range(len(TIMES)):
        np.testing.assert_allclose(one.last_layer(i).H, exact.last_layer(i).H, atol=1e-6)
    # Groups of rates: eigenvectors of what is left out where products with the features reach all of it.
    name = "blocks:1:groups=2"
    grouped = climb(start, [name], throw=True, keep_states=True).rungs[name]
    kernel = start.krylov_kernel(1, groups=2)
    G = np.asarray(kernel.rest)
    # Both groups are there, and change what follows.
    assert len(kernel.rates) == 3
    assert G.shape[1] >= 2
    assert abs(float(grouped["residual_single"][-1] / one["residual_single"][-1]) - 1) > 1e-4
    np.testing.assert_allclose(U.T @ G, 0, atol=1e-9)
    one_each = [G[:, i:j] for i, j in zip((0, *kernel.bounds), kernel.bounds, strict=False)]
    dense = dense + sum((r - kernel.rates[0]) * g @ g.T for r, g in zip(kernel.rates, one_each, strict=True))
    dense = dense + (kernel.rates[0] - np.trace(rest @ K) / 6) * rest
    exact = simulate(start.state, dense, CLASSES, TIMES, method=Method(rtol=1e-10), observed=False)
    np.testing.assert_allclose(grouped.last_layer(len(TIMES) - 1).H, exact.last_layer(len(TIMES) - 1).H, atol=1e-6)
    forbidden = MeasuredStart(start.run, 0, {0: network})
    forbidden.__dict__["sample_kernel"] = None
    again = climb(
        forbidden, ["blocks:1", name], options={n: {"method": "products"} for n in ("blocks:1", name)}, throw=True
    )
    np.testing.assert_allclose(again.rungs["blocks:1"]["loss"], one["loss"], rtol=1e-7)
    np.testing.assert_allclose(again.rungs[name]["loss"], grouped["loss"], rtol=1e-6)
    ladder = climb(start, ["sample-frozen", "blocks:9"], throw=True)
    np.testing.assert_allclose(ladder.rungs["blocks:9"]["loss"], ladder.rungs["sample-frozen"]["loss"], rtol=1e-5)
    # A block away from the whole kernel it is still another one.
    assert abs(float(one["residual_single"][-1] / ladder.rungs["sample-frozen"]["residual_single"][-1]) - 1) > 1e-4


def test_rung_of_resolvents_is_the_flow_under_its_kernel():
    """By products and from the sample kernel, until the last time; where they fill the space it is rung 3."""
    network = cases.tanh_network()
    start = MeasuredStart(cases.run_of([network.last_layer] * len(TIMES), TIMES), 0, {0: network})
    dense = start.resolvent_kernel(1).as_matrix(CLASSES)
    S = np.concatenate([np.asarray(CLASSES.Y).T, np.asarray(network.last_layer.logits - CLASSES.Y).T], axis=1)
    K, w = np.asarray(start.sample_kernel.matrix), np.linalg.norm(np.asarray(network.last_layer.W), 2) ** 2
    slow = np.linalg.solve(K + np.eye(12) / (w * (TIMES[-1] - TIMES[0])), S)
    # K and the kernel of the rung agree as forms on what they are made for.
    np.testing.assert_allclose(S.T @ dense @ slow, S.T @ K @ slow, rtol=1e-3)
    ladder = climb(start, ["sample-frozen", "resolvents:1", "resolvents:5"], throw=True, keep_states=True)
    exact = simulate(start.state, dense, CLASSES, TIMES, method=Method(rtol=1e-10), observed=False)
    np.testing.assert_allclose(ladder.rungs["resolvents:1"].last_layer(-1).H, exact.last_layer(-1).H, atol=1e-6)
    np.testing.assert_allclose(ladder.rungs["resolvents:5"]["loss"], ladder.rungs["sample-frozen"]["loss"], rtol=1e-5)
    forbidden = MeasuredStart(start.run, 0, {0: network})
    forbidden.__dict__["sample_kernel"] = None
    again = forbidden.resolvent_kernel(1, by_products=True)
    np.testing.assert_allclose(again.as_matrix(CLASSES), dense, atol=1e-6 * np.abs(dense).max())


@pytest.mark.parametrize("method", ["kernel", "products"])
def test_rung_of_the_path_of_blocks_is_the_flow_under_its_dense_kernels(method):
    """T and the rate of the rest of each record, on the directions of the first one."""
    networks = [cases.tanh_network(n=4, seed=1)]
    networks += [eqx.tree_at(lambda x: x.params, networks[0], (s * networks[0].params[0], networks[0].params[1] / s))
                 for s in (1.1, 1.3, 1.5)]  # fmt: skip
    start = MeasuredStart(cases.run_of([x.last_layer for x in networks], TIMES), 0, dict(enumerate(networks)))
    kernels = [np.asarray(network.feature_kernel(outputs="mean")) for network in networks]
    Z = np.asarray(CLASSES.Y).T
    U = np.linalg.qr(np.concatenate([Z, kernels[0] @ Z, kernels[0] @ kernels[0] @ Z], axis=1))[0]
    rest = np.eye(12) - U @ U.T
    dense = [U @ U.T @ K @ U @ U.T + np.trace(rest @ K) / 3 * rest for K in kernels]
    # C random vectors fill the three dimensions of the rest: its trace by products is exact.
    run = climb(start, ["blocks-path:2"], options={"blocks-path:2": {"method": method}}, throw=True, keep_states=True)
    path = KernelPath.of(TIMES, [DenseKernel(K) for K in dense])
    exact = simulate(start.state, path, CLASSES, TIMES, method=Method(rtol=1e-10), observed=False)
    for i in range(len(TIMES)):
        np.testing.assert_allclose(run.rungs["blocks-path:2"].last_layer(i).H, exact.last_layer(i).H, atol=1e-6)
    with pytest.raises(ValueError, match="networks: expected the network at every record"):
        climb(MeasuredStart(start.run, 0, {0: networks[0]}), ["blocks-path:2"], throw=True)
