"""The exact reduction of the flow to class means and within-class scatter: N enters only as a number."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkcollapse._arrays import as_array, module_of
from ntkcollapse._checks import check_finite, check_real, check_shape, is_traced
from ntkcollapse._types import AnyArray
from ntkcollapse.classes import Classes
from ntkcollapse.kernel_path import KernelPath
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.sample_kernel import SampleKernel
from ntkcollapse.weight_decay import WeightDecay


def split_columns(H: Any, classes: Classes) -> tuple[Any, Any]:
    """Class means (n, C) and deviations (n, N) of features: by numpy, without a compilation, where H has values."""
    if is_traced(H):
        return classes.means(H), classes.deviations(H)
    return classes.split_on_host(np.asarray(H))


def mean_size(classes: Classes) -> float:
    """w = N/C, the squared length of a further direction beside the class indicators."""
    return classes.num_samples / classes.num_classes


class ReducedStart(eqx.Module):
    """Where a reduced flow starts: class means, within-class scatter, classifier and bias.

    Args:
        M: class means, (n, C).
        scatter: S_g = Σ_i (h_i − mean)(h_i − mean)ᵀ *summed* over samples, by groups of one rate: (G, n, n), or (n, n)
            for one group.
        W: classifier, (C, n).
        b: bias, (C,).
        X: H V/√w, features along the further directions V that the kernel mixes with class means, (n, K); None where it
            has none. The scatter is then that of deviations without them.

    Raises:
        ValueError: shapes that disagree, or numbers that are not real, masked or not finite.
    """

    M: Float[Array, "n C"]
    scatter: Float[Array, "G n n"]
    W: Float[Array, "C n"]
    b: Float[Array, " C"]
    X: Float[Array, "n K"] | None

    def __init__(self, M, scatter, W, b, X=None):
        check_real(M=M, scatter=scatter, W=W, b=b, X=X)
        self.M, self.W, self.b = (as_array(x) for x in (M, W, b))
        self.X = None if X is None else as_array(X)
        scatter = as_array(scatter)
        self.scatter = scatter[None] if scatter.ndim == 2 else scatter

    def __check_init__(self):
        check_shape("M", self.M, (None, None), "(n features, C classes)")
        n, C = self.M.shape
        check_shape("scatter", self.scatter, (None, n, n), f"(G groups, n, n) with n = {n} features as M has")
        check_shape("W", self.W, (C, n), "(C classes, n features) as M has")
        check_shape("b", self.b, (C,), "one bias a class")
        if self.X is not None:
            check_shape("X", self.X, (n, None), f"(n, K directions) with n = {n} features as M has")
        for name in ("M", "scatter", "W", "b", "X"):
            check_finite(name, getattr(self, name))

    @classmethod
    def of(cls, state: LastLayer, kernel: SampleKernel, classes: Classes) -> "ReducedStart":
        """The reduction of a full state under a reducible kernel."""
        return cls.of_parts(*split_columns(state.H, classes), state, kernel, classes)

    @classmethod
    def of_parts(
        cls,
        means: Any,
        deviations: Any,
        state: LastLayer,
        kernel: SampleKernel,
        classes: Classes,
        squares: Any | None = None,
    ):
        """The same where class means (n, C) and deviations (n, N) of H are known already.

        squares: of the deviations by class, (C, n, n), which make all of it where they have one rate.
        """
        if squares is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                scatter = squares.sum(0)
            return cls(M=means, scatter=scatter, W=state.W, b=state.b)
        groups, X = kernel.split(deviations, classes), None
        if kernel.num_directions:
            V = kernel.directions(classes)
            X = deviations @ (V if is_traced(V, deviations) else np.asarray(V)) / mean_size(classes) ** 0.5
        # What overflows is refused by name.
        with np.errstate(over="ignore"):
            scatter = groups @ groups.swapaxes(-1, -2)
        return cls(M=means, scatter=scatter, W=state.W, b=state.b, X=X)

    @property
    def state(self) -> "ReducedState":
        """The state from which the flow starts: nothing has been propagated yet."""
        identity = np.broadcast_to(np.eye(self.M.shape[0], dtype=self.M.dtype), self.scatter.shape)
        return ReducedState(M=self.M, P=as_array(np.array(identity)), W=self.W, b=self.b, X=self.X)


class ReducedState(eqx.Module):
    """Class means M (n, C), propagators P_g (G, n, n) of the deviations, W (C, n) and b (C,).

    A deviation of group g at time t is P_g(t) times that deviation at the start, so that
    H(t) = M(t) Zᵀ + Σ_g P_g(t) H_g(0) and S_g(t) = P_g(t) S_g(0) P_g(t)ᵀ: symmetric and never negative. Under a kernel
    that mixes class means with further directions V, X (n, K) are the features along them, √w X Vᵀ another part of H.
    """

    M: Float[Array, "n C"]
    P: Float[Array, "G n n"]
    W: Float[Array, "C n"]
    b: Float[Array, " C"]
    X: Float[Array, "n K"] | None = None

    @property
    def means(self) -> Float[Array, "n R"]:
        """[M, X]: features on class indicators and further directions."""
        return self.M if self.X is None else jnp.concatenate([self.M, self.X], axis=-1)

    def columns(
        self, kernel: SampleKernel, deviations: Float[AnyArray, "n N"], classes: Classes
    ) -> Float[Array, "n N"]:
        """H, from the deviations H(0) − M(0) Zᵀ at the start; kernel: that at the start, or of the same directions."""
        groups = kernel.split(deviations, classes)
        xp = module_of(self, groups)
        H = xp.asarray(classes.expand(self.M))
        H = H + xp.tensordot(xp.asarray(self.P), xp.asarray(groups), axes=((0, 2), (0, 1)))
        if self.X is None:
            return as_array(H)
        directions = xp.asarray(kernel.directions(classes))
        return as_array(H + (xp.asarray(self.X) * mean_size(classes) ** 0.5) @ directions.T)

    def scatter(self, start: Float[Array, "G n n"]) -> Float[Array, "G n n"]:
        """S_g = P_g S_g(0) P_gᵀ."""
        return self.P @ start @ jnp.swapaxes(self.P, -1, -2)


class ReducedFlow(eqx.Module):
    """The flow of `Flow` with squared error, in coordinates that are closed for every reducible kernel.

        Ṁ  = −s Wᵀ R̄ D Γ − λ_H M,                    R̄ = W M + b 1ᵀ − I   (C × C)
        Ṗ_g = −s λ_g WᵀW P_g − λ_H P_g,               P_g(0) = I
        Ẇ  = −s (R̄ D Mᵀ + Σ_g W S_g) − λ_W W,         S_g = P_g S_g(0) P_gᵀ
        ḃ  = −s R̄ d − λ_b b

    s is the loss scale, D = diag(d) the class sizes, Γ and λ_g what the kernel does to class means and to each group
    of deviations (see `SampleKernel`). Exact for equal and unequal classes, with decay, and for kernels that change in
    time. One evaluation costs about 2 C n (3 C + 4 G n) multiplications, whatever N.

    With K further directions, [M, X] (n × R, R = C + K) stands for M, with d = w for each of them,
    R̄ = W [M, X] + b [1, 0]ᵀ − [I, 0] (C × R) and Γ (R × R): labels and bias have no part in them.

    Args:
        kernel: reducible kernel or path of such.
        sizes: m_c as floats, (C,): values, so that runs with other sizes share one compilation.
        scatter: S_g(0), (G, n, n).
        scale: of the squared error ½‖R‖².
        weight_decay, bias: as in `Flow`.
    """

    kernel: SampleKernel | KernelPath
    sizes: Float[Array, " C"]
    scatter: Float[Array, "G n n"]
    largest_scatter: Float[Array, ""]
    scale: Float[Array, ""]
    weight_decay: WeightDecay
    bias: str = eqx.field(static=True)

    def __init__(self, kernel, sizes, scatter, *, scale: Any = 1.0, weight_decay: Any = 0.0, bias: str = "free"):
        self.kernel, self.sizes, self.scatter = kernel, sizes, scatter
        linalg = jnp.linalg if is_traced(scatter) else np.linalg
        self.largest_scatter = as_array(linalg.eigvalsh(scatter)[:, -1].sum())
        self.scale = jnp.asarray(scale, dtype=scatter.dtype)
        self.weight_decay = WeightDecay.of(weight_decay)
        self.bias = bias

    @property
    def weights(self) -> Float[Array, " R"]:
        """d: class sizes, and their mean for each further direction."""
        return weights_of(self.sizes, self.kernel.num_directions)

    def __call__(self, t, state: ReducedState, args: None = None) -> ReducedState:
        del args
        C, d, kernel = self.sizes.shape[0], self.weights, self.kernel.at(t)
        Γ, rates = kernel.direction_gram(self.sizes), kernel.group_rates(C)
        targets = np.eye(C, d.shape[0], dtype=state.M.dtype)
        ones, free, decay = np.asarray(np.arange(d.shape[0]) < C, state.M.dtype), self.bias == "free", self.weight_decay
        scaled = (self.scale * rates, self.scale * d, self.scale * self.scatter)
        means, P, W, b = speed(
            state.means, state.P, state.W, state.b, Γ, *scaled, free=free, targets=targets, ones=ones
        )
        means = means - decay.H * state.means
        return ReducedState(
            M=means[:, :C],
            P=P - decay.H * state.P,
            W=W - decay.W * state.W,
            b=b - decay.b * state.b if free else b,
            X=None if state.X is None else means[:, C:],
        )


def weights_of(sizes: Any, num_directions: int) -> Any:
    """Class sizes, and their mean for each further direction: squared lengths of what [M, X] are means over."""
    if not num_directions:
        return sizes
    xp = jnp if is_traced(sizes) or not isinstance(sizes, np.ndarray) else np
    return xp.concatenate([sizes, xp.broadcast_to(sizes.mean(), (num_directions,))])


def speed(M, P, W, b, Γ, rates, d, scatter, *, free, targets, ones):
    """Ṁ, Ṗ_g, Ẇ and ḃ of `ReducedFlow` without decay, on arrays of numpy or of JAX.

    M (n, R), Γ (R, R); times the scale s: rates λ_g (G,), d (R,) and scatter S_g(0) (G, n, n); whether b moves, labels
    and 1 on the R directions: targets (C, R) and ones (R,). One group may come without its axis G.
    """
    RD = (W @ M + b[:, None] * ones[None, :] - targets) * d[None, :]
    down, WP = -W.T, W @ P
    WS = over_groups((WP @ scatter) @ P.swapaxes(-1, -2))
    return (
        down @ (RD @ Γ),
        rates[..., None, None] * (down @ WP),
        -(RD @ M.T) - WS,
        -(RD @ ones) if free else 0 * b,
    )


def over_groups(parts):
    """The sum over groups; of one without its axis, itself."""
    return parts if parts.ndim == 2 else parts.sum(0)


def spectral_radius(t, state: ReducedState, flow: ReducedFlow) -> Float[Array, ""]:
    """An upper bound of the Jacobian's spectral radius, for solvers that need one; C × C products only.

    The Jacobian of the full flow in the metric diag(K, 1, 1) is symmetric: −J = A + B with A the output kernel's
    companion, ‖A‖ = λmax(WWᵀ ⊗ K + I ⊗ (HᵀH + 11ᵀ)), and B linear in the residual, ‖B‖ ≤ √λmax(K) ‖R‖. Here
    λmax(HᵀH + 11ᵀ) ≤ λmax(D^½(MᵀM + 11ᵀ)D^½) + λmax(S), and S never exceeds S(0) in its largest eigenvalue, because
    every P_g is a contraction.
    """
    M, W, b, d, C = state.means, state.W, state.b, flow.weights, flow.sizes.shape[0]
    kernel = flow.kernel.at(t)
    root = jnp.sqrt(d)
    rates = kernel.group_rates(C)
    k = jnp.maximum(_largest_eigenvalue(root[:, None] * kernel.direction_gram(flow.sizes) * root[None, :]), rates.max())
    w = _largest_eigenvalue(W @ W.T)
    ones = jnp.asarray(np.arange(d.shape[0]) < C, M.dtype)
    h = _largest_eigenvalue(root[:, None] * (M.T @ M + ones[:, None] * ones[None, :]) * root[None, :])
    s = flow.largest_scatter
    targets = jnp.eye(C, d.shape[0], dtype=M.dtype)
    R = (W @ M + b[:, None] * ones[None, :] - targets) * root[None, :]
    r = jnp.sqrt(_largest_eigenvalue(R @ R.T) + w * s)
    largest_decay = jnp.maximum(jnp.maximum(flow.weight_decay.H, flow.weight_decay.W), flow.weight_decay.b)
    bound = flow.scale * (k * w + h + s + jnp.sqrt(k) * r) + largest_decay
    return jax.lax.stop_gradient(bound)


def _largest_eigenvalue(A: Float[Array, "C C"]) -> Float[Array, ""]:
    """(tr A¹⁶)^(1/16) ≥ λmax of a positive semi-definite matrix: above it by 15 % at most for rank 10."""
    tiny = jnp.finfo(A.dtype).tiny
    size = jnp.maximum(jnp.trace(A), tiny)
    B, bound = A / size, size
    for power in (2, 4, 8):
        # Of trace 1 again after each squaring: C equal eigenvalues 1/C would else underflow as C⁻¹⁶.
        B = B @ B
        size = jnp.maximum(jnp.trace(B), tiny)
        B, bound = B / size, bound * size ** (1 / power)
    return bound * jnp.sum(jnp.square(B)) ** (1 / 16)
