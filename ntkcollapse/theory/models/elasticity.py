"""Locally elastic stochastic differential equations of features."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse import _safe
from ntkcollapse._checks import check_choice, check_finite, check_increasing, check_positive, check_shape
from ntkcollapse._types import AnyArray
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes, as_classes
from ntkcollapse.kernel_path import KernelFunction, KernelPath
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.losses import Loss, SquaredError
from ntkcollapse.sample_kernel import SampleKernel
from ntkcollapse.theory.constraints import Constraint, Unconstrained
from ntkcollapse.theory.flow import AbstractFlow
from ntkcollapse.weight_decay import WeightDecay

Kind = Literal["I", "L", "softmax"]


class ElasticFlow(AbstractFlow):
    r"""dX = Σ_l p_l E_kl T_kl X̄_l dt + σ dB for every sample X of class k: the classes pull and push each other.

        E = (α − β) I + β 11ᵀ,   p_l = m_l/N (1/C for balanced classes),   T_kl = I (I-model)  or  d_k d_lᵀ/‖d_l‖²
        d_k = e_k − 1/C (L-model)  or  e_k − softmax(X̄_k) ("softmax"),   n = C

    X̄_l are class means, and p_l is how often a step is taken on a sample of class l. α and β are intensities within and
    between classes, α(t) = intra / t^power and likewise β, so that power 1 is the borderline of separation. Only
    features move: the W and b of a start are there to be observed with, and stay.

    "softmax" reads the features as logits and pushes along the gradient of cross-entropy at the class means; the
    L-model is that at logits without a preference. They are the same flow where the means are symmetric in the classes.

    In the general state equation this is K the class-block matrix E/N, W = I and the loss −½‖f‖² (I-model).

    Args:
        classes: of any sizes.
        intra, inter: α and β at t = 1.
        noise: σ; None without noise, and then `simulate` wants no key.
        kind: "I", "L" or "softmax".
        power: of the decay of intensities in time; needs t > 0 where it is not 0.

    Raises:
        ValueError: an unknown kind, negative σ.
    References:
        Zhang, Wang and Su (2021), with classes of one size; a step on a class as often as it is drawn gives p.
    """

    classes: Classes
    intra: float | Float[Array, ""]
    inter: float | Float[Array, ""]
    noise: float | Float[Array, ""] | None
    kind: str = eqx.field(static=True, default="I")
    power: float | Float[Array, ""] = 0.0
    # In whose terms it is observed; the invariant of this kernel is not conserved here.
    kernel: SampleKernel | KernelPath | KernelFunction = eqx.field(default_factory=lambda: BlockKernel(1.0, 0.0, 0.0))
    loss: Loss = SquaredError()
    weight_decay: WeightDecay = eqx.field(default_factory=lambda: WeightDecay.of(0.0))
    constraint: Constraint = Unconstrained()
    bias: str = eqx.field(static=True, default="frozen")

    def __check_init__(self):
        check_choice("kind", self.kind, get_args(Kind))
        if self.noise is not None:
            check_positive("noise", self.noise, zero=True)

    @property
    def is_plain(self) -> bool:
        return False

    def last_layer(self, state: LastLayer) -> LastLayer:
        return state

    def __call__(self, t, state: LastLayer, args: None = None) -> LastLayer:
        del args
        return _moving(state, self._drift(t, state.H))

    def diffusion(self, state: LastLayer) -> LastLayer:
        """σ on every entry of H."""
        σ = jnp.asarray(0.0 if self.noise is None else self.noise, state.H.dtype)
        return _moving(state, jnp.broadcast_to(σ, state.H.shape))

    def _drift(self, t, H: Float[Array, "n N"]) -> Float[Array, "n N"]:
        C, M = self.classes.num_classes, self.classes.means(H)
        E = _generator(self.classes, jnp.asarray(self.intra, H.dtype), jnp.asarray(self.inter, H.dtype))
        E = E * jnp.asarray(t, H.dtype) ** -jnp.asarray(self.power, H.dtype)
        if self.kind == "I":
            return self.classes.expand(M @ E)
        check_shape("H", H, (C, None), f"n = C features for the {self.kind}-model")
        D = _directions(M, self.kind)
        return self.classes.expand(D * (_along(D, M) @ E)[None, :])


def _moving(state: LastLayer, H: Float[Array, "n N"]) -> LastLayer:
    """H, and 0 for W and b."""
    return eqx.tree_at(lambda s: (s.H, s.W, s.b), state, (H, jnp.zeros_like(state.W), jnp.zeros_like(state.b)))


def elastic_means(
    times: Float[ArrayLike, " T"], means: Float[Array, "n C"], flow: ElasticFlow, start: float = 0.0
) -> Float[Array, "T n C"]:
    r"""Class means of the noiseless I-model in closed form.

        M(t) = M₀ exp(diag(p) (A − B) + B p 1ᵀ),   A, B = ∫ α, ∫ β from `start` to t,   p = (m_1, …, m_C)/N
        balanced:  ⟨h⟩₀ 1ᵀ e^{(A + (C−1) B)/C} + (M₀ − ⟨h⟩₀ 1ᵀ) e^{(A − B)/C}

    Raises:
        ValueError: another model than the I-model.
    References:
        Zhang, Wang and Su (2021), the I-model with classes of one size.
    """
    if flow.kind != "I":
        raise ValueError(
            f"flow: expected an I-model, whose means have a closed form, got kind {flow.kind!r}; integrate it instead."
        )
    C = flow.classes.num_classes
    elapsed = _elapsed(jnp.asarray(times, dtype=float), start, flow.power)
    if not flow.classes.is_balanced:
        root, E = _symmetric(flow.classes, jnp.asarray(flow.intra, float), jnp.asarray(flow.inter, float))
        rates, U = jnp.linalg.eigh(E)
        growth = jnp.exp(rates[None, :] * elapsed[:, None])
        return jnp.einsum("nk,tk,ck->tnc", means @ (root[:, None] * U), growth, U / root[:, None])
    A, B = flow.intra * elapsed, flow.inter * elapsed
    mean = means.mean(1)[:, None]
    grow, part = jnp.exp((A + (C - 1) * B) / C), jnp.exp((A - B) / C)
    return grow[:, None, None] * jnp.broadcast_to(mean, means.shape)[None] + part[:, None, None] * (means - mean)[None]


def growth_rates(classes: Classes, intra: Float[ArrayLike, ""], inter: Float[ArrayLike, ""]) -> Float[Array, " C"]:
    r"""Eigenvalues of diag(p) E, ascending: rates at which combinations of class means grow; powers of t for power 1.

        balanced: (α − β)/C, C − 1 times, and (α + (C − 1) β)/C;   β = 0: α m_k/N, each class for itself

    A combination comes out of noise, which grows like √t, if its power is above ½: with α = c/t and β = 0 a class of
    N/(2c) samples or fewer never does, while larger ones do. `separation_threshold` is this for balanced classes.
    """
    return jnp.linalg.eigvalsh(_symmetric(classes, jnp.asarray(intra, float), jnp.asarray(inter, float))[1])


def _intensities(C: int, intra: Float[Array, ""], inter: Float[Array, ""]) -> Float[Array, "C C"]:
    """E."""
    return (intra - inter) * jnp.eye(C, dtype=intra.dtype) + inter


def _symmetric(
    classes: Classes, intra: Float[Array, ""], inter: Float[Array, ""]
) -> tuple[Float[Array, " C"], Float[Array, "C C"]]:
    """√p, and diag(√p) E diag(√p), which has the eigenvalues of diag(p) E."""
    root = jnp.sqrt(classes.weights / classes.num_samples)
    return root, root[:, None] * _intensities(classes.num_classes, intra, inter) * root[None, :]


def _generator(classes: Classes, intra: Float[Array, ""], inter: Float[Array, ""]) -> Float[Array, "C C"]:
    """diag(p) E: Ṁ = M diag(p) E."""
    shares = (classes.weights / classes.num_samples).astype(intra.dtype)
    return shares[:, None] * _intensities(classes.num_classes, intra, inter)


def _elapsed(t, start, power):
    """∫ s^{−power} ds from start to t."""
    p = jnp.asarray(power, t.dtype)
    is_log = p == 1
    q = jnp.where(is_log, 1.0, 1 - p)
    log = jnp.log(t / jnp.where(is_log, start, 1.0)) if start > 0 else jnp.full_like(t, jnp.inf)
    return jnp.where(is_log, log, (t**q - jnp.asarray(start, t.dtype) ** q) / q)


def separation_threshold(num_classes: int) -> float:
    r"""c = C/2: with α − β = c/t classes separate if c is above it, and not below.

    The contrast of two class means grows like exp(∫(α − β)/C) = t^{c/C} and the noise like √t, so that the separation
    index is of order t^{c/C − 1/2}: a sharper form of the published dichotomy between ω(1/t) and o(1/t).
    """
    return num_classes / 2


def separation_error(
    time: Float[ArrayLike, "*T"],
    distance: Float[ArrayLike, ""],
    contrast: Float[ArrayLike, ""],
    noise: Float[ArrayLike, ""],
    num_classes: int,
) -> Float[Array, "*T"]:
    r"""Probability Φ(−D(t)/(2 σ √(t − 1))) that a sample is nearer another of two class means, α − β = contrast/t.

    D(t) = distance · t^{contrast/C} is the distance of the two means, which coincided with their samples at t = 1.
    """
    t = jnp.asarray(time, dtype=float)
    D = jnp.asarray(distance) * t ** (jnp.asarray(contrast) / num_classes)
    return jax.scipy.stats.norm.cdf(-D / (2 * jnp.asarray(noise) * jnp.sqrt(t - 1)))


class Elasticity(NamedTuple):
    """Mean intensities within and between classes over each interval between measurements."""

    intra: Float[Array, " T-1"]
    inter: Float[Array, " T-1"]


def estimate_elasticity(
    times: Float[ArrayLike, " T"],
    means: Float[ArrayLike, "T n C"],
    *,
    kind: str = "I",
    classes: Classes | Sequence[int] | None = None,
) -> Elasticity:
    r"""α and β from measured class means, interval by interval, for any number of classes.

    Balanced, for an I-model x = M, and for an L-model x_k = d_k · M_k/‖d_k‖² (d_k = e_k − 1/C, n = C):

        (α + (C − 1) β)/C = log of the growth of ⟨x⟩ per time,   (α − β)/C = log of that of x − ⟨x⟩ 1ᵀ

    Growth is measured along the direction at the start of the interval. Unequal: the α and β with which
    x exp(diag(p) E Δt) is nearest to the next x. Both are exact on noiseless models, where they give the means of α(t)
    and β(t) over the interval. For "softmax", whose directions move, by least squares of the midpoint rule
    (M_k(t') − M_k(t))/Δt · d_k/‖d_k‖² = Σ_l p_l E_kl x_l, off in proportion to Δt².

    With noise of variance σ² t/m in each mean, the error of both is of order σ/(‖x‖ √(m Δt)).
    NaN where a factor is not positive (the model then says nothing of the interval).

    Args:
        times: of the measurements, (T,).
        means: class means at each of them, (T, n, C): `classes.means(H)` of any trajectory, of a model or a network.
        kind: "I", "L" or "softmax".
        classes: behind the means, where they are unequal.
    Raises:
        ValueError: times that do not increase, means without one entry a time, an unknown kind, n ≠ C for "L" and
            "softmax".
    References:
        Zhang, Wang and Su (2021): the model whose intensities these are.
    """
    check_choice("kind", kind, get_args(Kind))
    M, steps, p = _measured(times, means, classes)
    C = M.shape[2]
    if kind != "I":
        check_shape("means", M, (None, C, C), f"n = C features for the {kind}-model")
    if kind == "softmax":
        return _by_midpoints(M, steps, p)
    x = M if kind == "I" else np.asarray(_along(_directions(M, kind), M))[:, None, :]
    if np.ptp(p) == 0:
        mean = x.mean(2, keepdims=True)
        parts = (np.broadcast_to(mean, x.shape), x - mean)
        with np.errstate(invalid="ignore", divide="ignore"):
            growths = (np.sum(X[1:] * X[:-1], axis=(1, 2)) / np.sum(np.square(X[:-1]), axis=(1, 2)) for X in parts)
            whole, contrast = (np.log(growth) / steps for growth in growths)
        inter = whole - contrast
        return Elasticity(intra=jnp.asarray(C * contrast + inter), inter=jnp.asarray(inter))
    fits = np.stack(
        [_nearest(before, after, p, step) for before, after, step in zip(x[:-1], x[1:], steps, strict=True)], axis=1
    )
    return Elasticity(*map(jnp.asarray, fits))


def elasticity_matrix(
    times: Float[ArrayLike, " T"],
    means: Float[ArrayLike, "T n C"],
    *,
    classes: Classes | Sequence[int] | None = None,
) -> Float[np.ndarray, "T-1 C C"]:
    r"""All intensities E_kl between classes from measured class means, interval by interval, as an I-model has them.

        M(t') = M(t) exp(diag(p) E Δt),   E = diag(p)⁻¹ log(M(t)⁺ M(t'))/Δt, its symmetric part

    What `estimate_elasticity` takes for two numbers: how far a network's matrix is from α on its diagonal and β beside
    it. Needs class means that are linearly independent (n ≥ C); exact on noiseless I-models with any symmetric E.

    Arguments as in `estimate_elasticity`. NaN where the logarithm is not real.

    Raises:
        ValueError: as there, or fewer features than classes.
    """
    from scipy.linalg import logm

    M, steps, p = _measured(times, means, classes)
    if M.shape[1] < M.shape[2]:
        raise ValueError(
            f"means: expected at least as many features as there are classes, got {M.shape[1]} for C = {M.shape[2]}; "
            "their means are linearly dependent, and say nothing of every pair."
        )
    found = []
    for before, after, step in zip(M[:-1], M[1:], steps, strict=True):
        generator = logm(np.linalg.lstsq(before, after, rcond=None)[0]) / step
        real = np.abs(np.imag(generator)).max() <= 1e-8 * np.abs(generator).max()
        E = np.real(generator) / p[:, None] if real else np.full_like(before[: len(p)], np.nan)
        found.append((E + E.T) / 2)
    return np.stack(found)


def _measured(times, means, classes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class means (T, n, C), time steps and shares of the classes, on the host."""
    check_increasing("times", times)
    check_finite("means", means)
    check_shape("means", means, (len(np.asarray(times)), None, None), "(T, n, C), one set of class means a time")
    M = np.asarray(means, dtype=float)
    sizes = np.ones(M.shape[2]) if classes is None else np.asarray(as_classes(classes).sizes, float)
    check_shape("means", M, (None, None, len(sizes)), f"(T, n, C) for the C = {len(sizes)} classes")
    return M, np.diff(np.asarray(times, dtype=float)), sizes / sizes.sum()


def _nearest(before: np.ndarray, after: np.ndarray, p: np.ndarray, step: float) -> np.ndarray:
    """(α, β) of the flow of classes of shares p that takes one set of means nearest to the other."""
    from scipy.linalg import expm
    from scipy.optimize import least_squares

    def off(x):
        return (before @ expm(step * p[:, None] * ((x[0] - x[1]) * np.eye(len(p)) + x[1])) - after).ravel()

    # From the slope: M' ≈ M̄ diag(p) ((α − β) I + β 11ᵀ), linear in both.
    middle = (before + after) / 2 * p[None, :]
    total = middle.sum(1, keepdims=True)
    columns = [X.ravel() for X in (middle, np.broadcast_to(total, middle.shape) - middle)]
    first = np.linalg.lstsq(np.stack(columns, axis=1), ((after - before) / step).ravel(), rcond=None)[0]
    return least_squares(off, first, xtol=1e-14, ftol=1e-14, gtol=1e-14).x


def _by_midpoints(M: np.ndarray, steps: np.ndarray, p: np.ndarray) -> Elasticity:
    fits = []
    for before, after, step in zip(M[:-1], M[1:], steps, strict=True):
        middle = (before + after) / 2
        D = np.asarray(_directions(middle, "softmax"))
        pushed, x = np.asarray(_along(D, (after - before) / step)), p * np.asarray(_along(D, middle))
        fits.append(np.linalg.lstsq(np.stack([x, x.sum() - x], axis=1), pushed, rcond=None)[0])
    return Elasticity(*map(jnp.asarray, np.stack(fits, axis=1)))


def _directions(M: Float[AnyArray, "*T C C"], kind: str) -> Float[Array, "*T C C"]:
    """d_k as columns: e_k − 1/C, or e_k − softmax of the column."""
    M = jnp.asarray(M)
    C = M.shape[-1]
    away = jax.nn.softmax(M, axis=-2) if kind == "softmax" else jnp.full_like(M, 1 / C)
    return jnp.broadcast_to(jnp.eye(C, dtype=M.dtype), M.shape) - away


def _along(D: Float[AnyArray, "*T C C"], M: Float[AnyArray, "*T C C"]) -> Float[Array, "*T C"]:
    """d_k · M_k / ‖d_k‖²; 0 where d_k = 0."""
    D = jnp.asarray(D)
    square = jnp.sum(jnp.square(D), axis=-2)
    return _safe.divide(jnp.sum(D * M, axis=-2), square, 0.0)


class StepSimilarity(NamedTuple):
    """How one step on sample x moves the output at x'.

    relative: |Δf(x')| / |Δf(x)|; kernelised: Δf(x') / (−η ∂ℓ/∂f(x)), the NTK entry Θ(x, x') up to O(η).
    """

    relative: Float[Array, " B"]
    kernelised: Float[Array, " B"]


def step_similarity(f, params, x, others, *, loss_slope: Float[ArrayLike, ""], step: float) -> StepSimilarity:
    r"""Local elasticity of a network with one output, from a single step of gradient descent on sample x.

        w⁺ = w − η (∂ℓ/∂f) ∇f(x, w)

    Both similarities are of predictions before and after this step. As η → 0 `kernelised` tends to the empirical NTK,
    with an error in proportion to η.

    Args:
        f: (params, x) → output, a scalar for one sample.
        params: any pytree of arrays.
        x: the sample stepped on.
        others: samples x' with a leading axis.
        loss_slope: ∂ℓ/∂f at x, not zero.
        step: η.
    Raises:
        ValueError: a step that is not above zero.
    References:
        He and Su (2020).
    """
    check_positive("step", step)
    slope = jnp.asarray(loss_slope)
    gradient = jax.grad(f)(params, x)
    moved = jax.tree.map(lambda w, g: w - (step * slope).astype(w.dtype) * g, params, gradient)
    change = jax.vmap(lambda z: f(moved, z) - f(params, z))(others)
    own = f(moved, x) - f(params, x)
    return StepSimilarity(relative=jnp.abs(change) / jnp.abs(own), kernelised=-change / (step * slope))
