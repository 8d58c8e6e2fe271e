"""The flow and its reduction against reference trajectories computed elsewhere, and against each other."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import BlockKernel, Classes, CrossEntropy, LastLayer, SquaredError
from ntkcollapse.simulation import simulate
from ntkcollapse.theory.flow import Flow
from ntkcollapse.theory.method import Method
from ntkcollapse.theory.reduced import ReducedFlow, ReducedStart, spectral_radius
from ntkcollapse.weight_decay import WeightDecay
from tests import references
from tests.cases import UNEQUAL, kernels, random_state

# A reference solver: order 8 at tolerances that leave errors of about 1e-11 over these times.
ACCURATE = Method(solver="dopri8", rtol=1e-12, atol=1e-14)
PADDED = 32


def padded(times: np.ndarray) -> np.ndarray:
    """The times and a few more shortly after, so that references of one shape share one compilation."""
    extra = PADDED - len(times)
    return np.concatenate([times, times[-1] + 1e-3 * np.arange(1, extra + 1)])


@pytest.mark.parametrize("reduced", [True, False], ids=["reduced", "full"])
@pytest.mark.parametrize("name", references.CONSTANT)
def test_reference_trajectory(name, reduced):
    ref = references.load(name)
    T = len(ref["t"])
    run = simulate(
        ref.start,
        Flow(ref.kappa, ref.classes, weight_decay=ref.weight_decay),
        times=padded(ref["t"]),
        reduced=reduced,
        method=ACCURATE,
    )
    H = np.stack([run.last_layer(i).H for i in range(T)])
    # 1e-10 is the accuracy stated for the references with a solver at rtol 1e-12.
    np.testing.assert_allclose(H, ref["H"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(run.states.W[:T], ref["W"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(run.states.b[:T], ref["b"], rtol=0, atol=1e-10)
    single, class_, global_ = (run[f"residual_{part}"][:T] for part in ("single", "class", "global"))
    for seen, key in ((single, "R_single_norm"), (class_, "R_class_centred_norm"), (global_, "R_global_norm")):
        # Square roots of sums of squares: an error of 1e-10 in R, times √(CN).
        np.testing.assert_allclose(seen, ref[key], rtol=0, atol=2e-9)
    np.testing.assert_allclose(run["loss"][:T], ref["loss"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(run["invariant_norm"][:T], ref["inv_norm"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(run["invariant_alignment"][:T], ref["alignment"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(run["nc1_seleznova2023"][:T], ref["NC1_std"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(run["nc1_tirer2022"][:T], ref["NC1_tr"], rtol=1e-7, atol=1e-9)
    # As the class means vanish (a start of size 1e-3) relative errors grow by what they are divided by.
    np.testing.assert_allclose(run["nc2_seleznova2023"][:T], ref["NC2"], rtol=0, atol=1e-7)
    np.testing.assert_allclose(run["nc3_seleznova2023"][:T], ref["NC3"], rtol=0, atol=1e-7)


class ExponentialDrift(BlockKernel):
    """κ(t) = κ1 + (κ0 − κ1) e^{−t/τ}, as the reference with a drifting kernel has it; a block kernel at every time."""

    reducible: ClassVar[bool] = True
    start: jax.Array
    end: jax.Array
    tau: jax.Array

    def __init__(self, start, end, tau):
        super().__init__(*start)
        self.start, self.end, self.tau = (jnp.asarray(x) for x in (start, end, tau))

    def at(self, t):
        return BlockKernel(*(self.end + (self.start - self.end) * jnp.exp(-t / self.tau)))


@pytest.mark.parametrize("reduced", [True, False], ids=["reduced", "full"])
def test_reference_with_drifting_kernel(reduced):
    ref = references.load("g_kernel_drift")
    kappa = ExponentialDrift(ref["kappa0"], ref["kappa1"], ref["tau"])
    run = simulate(ref.start, kappa, ref.classes, padded(ref["t"]), reduced=reduced, method=ACCURATE)
    T = len(ref["t"])
    H = np.stack([run.last_layer(i).H for i in range(T)])
    np.testing.assert_allclose(H, ref["H"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(run.states.W[:T], ref["W"], rtol=0, atol=1e-10)


def test_reference_of_larger_reduced_state():
    with np.load(references.FOLDER / "h_reduced_large.npz") as file:
        ref = dict(file)
    n = ref["M"].shape[1]
    upper = np.triu_indices(n)

    def unpack(packed):
        S = np.zeros((n, n))
        S[upper] = packed
        return S + np.triu(S, 1).T

    start = ReducedStart(M=ref["M"][0], scatter=unpack(ref["S"][0]), W=ref["W"][0], b=ref["b"][0])
    run = simulate(start, BlockKernel(*ref["kappa"]), Classes(sizes=tuple(ref["m_c"])), ref["t"], method=ACCURATE)
    P = np.asarray(run.states.P[:, 0])
    S = P @ unpack(ref["S"][0]) @ np.swapaxes(P, -1, -2)
    # 1e-9 is the accuracy stated for this reference; S is a sum over 600 samples, so relative to its size.
    np.testing.assert_allclose(run.states.M, ref["M"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(run.states.W, ref["W"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(S, np.stack([unpack(s) for s in ref["S"]]), rtol=0, atol=1e-9 * np.abs(S).max())
    np.testing.assert_allclose(run["loss"], ref["loss"], rtol=1e-9, atol=1e-9)
    assert "nc1_seleznova2023" not in run.observables
    with pytest.raises(ValueError, match="single columns of H are not known"):
        run.last_layer(0)


@pytest.mark.parametrize("kind", ["per class", "grouped"])
def test_right_hand_sides_agree(kind):
    """Pushing (M, P) through H = M Zᵀ + Σ P_g H_g gives Ḣ: the reduction is exact, with decay, group by group."""
    kernel = kernels(UNEQUAL)[kind]
    first, now = random_state(5, UNEQUAL), random_state(5, UNEQUAL, seed=1)
    decay = WeightDecay.of({"H": 0.1, "W": 0.2, "b": 0.3})
    groups = kernel.split(UNEQUAL.deviations(first.H), UNEQUAL)
    start = ReducedStart.of(first, kernel, UNEQUAL)
    rng = np.random.default_rng(3)
    P = jnp.asarray(rng.normal(size=start.scatter.shape))

    def full(M, P):
        return UNEQUAL.expand(M) + jnp.einsum("gij,gjk->ik", P, groups)

    M = now.class_means(UNEQUAL)
    reduced = ReducedFlow(kernel, UNEQUAL.weights, start.scatter, scale=0.7, weight_decay=decay)
    state = start.state
    state = type(state)(M=M, P=P, W=now.W, b=now.b)
    slow = reduced(0.0, state)
    fast = Flow(kernel, UNEQUAL, SquaredError(0.7), decay)(0.0, LastLayer(H=full(M, P), W=now.W, b=now.b))
    np.testing.assert_allclose(full(slow.M, slow.P), fast.H, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(slow.W, fast.W, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(slow.b, fast.b, rtol=1e-11, atol=1e-11)


def test_flow_is_the_gradient_flow_of_a_two_layer_linear_network():
    """H = A Φ with ΦᵀΦ = K: autodiff of W A φ + b, an oracle that knows nothing of kernels."""
    kernel = kernels(UNEQUAL)["dense"]
    state = random_state(5, UNEQUAL)
    K = np.asarray(kernel.as_matrix(UNEQUAL))
    values, vectors = np.linalg.eigh(K)
    root = jnp.asarray(vectors * np.sqrt(values) @ vectors.T)
    Y = UNEQUAL.Y
    for loss in (SquaredError(0.3), CrossEntropy()):

        def objective(A, W, b, loss=loss):
            return loss.value(W @ A @ root + b[:, None], Y)

        A = jnp.asarray(np.asarray(state.H) @ np.linalg.inv(root))
        dA, dW, db = jax.grad(objective, argnums=(0, 1, 2))(A, state.W, state.b)
        flow = Flow(kernel, UNEQUAL, loss, WeightDecay.of(0.0))(0.0, state)
        np.testing.assert_allclose(flow.H, -dA @ root, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(flow.W, -dW, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(flow.b, -db, rtol=1e-9, atol=1e-10)


def test_right_hand_side_of_the_theorem():
    """R K written out in R, R_class and R_global, as the paper has it."""
    classes = Classes.balanced(3, 4)
    kappa = BlockKernel(3.0, 2.0, 0.6)
    state = random_state(5, classes)
    R = np.asarray(state.residual(classes))
    R_class = np.repeat(R.reshape(3, 3, 4).mean(2), 4, axis=1)
    R_global = np.broadcast_to(R.mean(1, keepdims=True), R.shape)
    RK = (3.0 - 2.0) * R + (2.0 - 0.6) * 4 * R_class + 0.6 * 12 * R_global
    flow = Flow(kappa, classes, SquaredError(), WeightDecay.of(0.0))(0.0, state)
    np.testing.assert_allclose(flow.H, -np.asarray(state.W).T @ RK, rtol=1e-12)
    np.testing.assert_allclose(flow.W, -R @ np.asarray(state.H).T, rtol=1e-12)
    np.testing.assert_allclose(flow.b, -R_global.sum(1), rtol=1e-12)


@pytest.mark.parametrize("bias", ["frozen", "absent"])
def test_bias_that_does_not_move(bias):
    state = random_state(5, UNEQUAL)
    state = LastLayer(H=state.H, W=state.W, b=state.b if bias == "frozen" else 0 * state.b)
    for kernel in (kernels(UNEQUAL)["per class"], kernels(UNEQUAL)["dense"]):
        run = simulate(
            state,
            Flow(kernel, UNEQUAL, bias=bias),
            times=np.linspace(0, 0.1, 3),
            method=Method(solver="tsit5"),
            observed=False,
        )
        np.testing.assert_array_equal(run.states.b[-1], state.b)
        assert np.abs(np.asarray(run.states.W[-1] - state.W)).max() > 1e-2


def flat_matrix(jacobian: LastLayer, state: LastLayer) -> np.ndarray:
    """The Jacobian of a LastLayer by a LastLayer as one matrix."""
    leaves = [x.size for x in jax.tree.leaves(state)]
    rows = [jax.tree.leaves(row) for row in (jacobian.H, jacobian.W, jacobian.b)]
    return np.block(
        [
            [np.asarray(x).reshape(n, m) for x, m in zip(row, leaves, strict=True)]
            for row, n in zip(rows, leaves, strict=True)
        ]
    )


@pytest.mark.parametrize("kind", ["per class", "grouped"])
def test_spectral_radius_bounds_the_jacobian(kind):
    kernel = kernels(UNEQUAL)[kind]
    for seed in range(3):
        first = random_state(5, UNEQUAL, seed)
        start = ReducedStart.of(first, kernel, UNEQUAL)
        flow = ReducedFlow(kernel, UNEQUAL.weights, start.scatter, weight_decay=0.1)
        full = Flow(kernel, UNEQUAL, SquaredError(), WeightDecay.of(0.1))
        jacobian = jax.jacfwd(lambda state, full=full: full(0.0, state))(first)
        jacobian = flat_matrix(jacobian, first)
        radius = np.abs(np.linalg.eigvals(np.asarray(jacobian))).max()
        bound = float(spectral_radius(0.0, start.state, flow))
        # Not below, and not so far above that steps become needlessly short.
        assert radius <= bound <= 2.5 * radius
