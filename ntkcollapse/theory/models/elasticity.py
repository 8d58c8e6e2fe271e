"""Locally elastic stochastic differential equations of features."""

from typing import Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse._checks import check_choice, check_increasing, check_positive, check_shape
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes
from ntkcollapse.kernel_path import KernelFunction, KernelPath
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.losses import Loss, SquaredError
from ntkcollapse.sample_kernel import SampleKernel
from ntkcollapse.theory.constraints import Constraint, Unconstrained
from ntkcollapse.theory.flow import AbstractFlow
from ntkcollapse.weight_decay import WeightDecay

Kind = Literal["I", "L"]


class ElasticFlow(AbstractFlow):
    r"""dX = (1/C) Σ_l E_kl T_kl X̄_l dt + σ dB for every sample X of class k: the classes pull and push each other.

        E = (α − β) I + β 11ᵀ,   T_kl = I (I-model)  or  d_k d_lᵀ/‖d_l‖²,  d_k = e_k − 1/C, n = C  (L-model)

    X̄_l are class means; α and β are intensities within and between classes, α(t) = intra / t^power and likewise β, so
    that power 1 is the borderline of separation. Only features move: the W and b of a start are there to be observed
    with, and stay.

    In the general state equation this is K the class-block matrix E/(C m), W = I and the loss −½‖f‖² (I-model).

    Args:
        classes: balanced.
        intra, inter: α and β at t = 1.
        noise: σ; None without noise, and then `simulate` wants no key.
        kind: "I" or "L".
        power: of the decay of intensities in time; needs t > 0 where it is not 0.

    Raises:
        ValueError: an unknown kind, unequal classes, negative σ.
    References:
        Zhang, Wang and Su (2021).
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
        _ = self.classes.per_class

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
        C = self.classes.num_classes
        M = self.classes.means(H)
        # On means centred over classes E acts as α − β, on their mean as α + (C − 1) β.
        E = jnp.asarray(self.intra - self.inter, H.dtype) * jnp.eye(C, dtype=H.dtype) + jnp.asarray(self.inter, H.dtype)
        E = E / C * jnp.asarray(t, H.dtype) ** -jnp.asarray(self.power, H.dtype)
        if self.kind == "I":
            return self.classes.expand(M @ E)
        check_shape("H", H, (C, None), "n = C features for the L-model")
        D = jnp.eye(C, dtype=H.dtype) - 1 / C
        return self.classes.expand(D * (E @ _along_vertices(M))[None, :])


def _moving(state: LastLayer, H: Float[Array, "n N"]) -> LastLayer:
    """H, and 0 for W and b."""
    return eqx.tree_at(lambda s: (s.H, s.W, s.b), state, (H, jnp.zeros_like(state.W), jnp.zeros_like(state.b)))


def elastic_means(
    times: Float[ArrayLike, " T"], means: Float[Array, "n C"], flow: ElasticFlow, start: float = 0.0
) -> Float[Array, "T n C"]:
    r"""Class means of the noiseless I-model in closed form.

        M(t) = ⟨h⟩₀ 1ᵀ e^{(A + (C−1) B)/C} + (M₀ − ⟨h⟩₀ 1ᵀ) e^{(A − B)/C},   A, B = ∫ α, ∫ β from `start` to t

    Raises:
        ValueError: an L-model.
    References:
        Zhang, Wang and Su (2021), the I-model.
    """
    if flow.kind != "I":
        raise ValueError(
            f"flow: expected an I-model, whose means have a closed form, got kind {flow.kind!r}; integrate it instead."
        )
    C = flow.classes.num_classes
    elapsed = _elapsed(jnp.asarray(times, dtype=float), start, flow.power)
    A, B = flow.intra * elapsed, flow.inter * elapsed
    mean = means.mean(1)[:, None]
    grow, part = jnp.exp((A + (C - 1) * B) / C), jnp.exp((A - B) / C)
    return grow[:, None, None] * jnp.broadcast_to(mean, means.shape)[None] + part[:, None, None] * (means - mean)[None]


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


def estimate_elasticity(times: Float[ArrayLike, " T"], means: Float[Array, "T n C"], *, kind: str = "I") -> Elasticity:
    r"""α and β from measured class means, interval by interval.

        (α + (C − 1) β)/C = log of the growth of ⟨x⟩ per time,   (α − β)/C = log of that of x − ⟨x⟩ 1ᵀ

    with x = M for an I-model, and x_k = d_k · M_k/‖d_k‖² (d_k = e_k − 1/C, n = C) for an L-model. Growth is measured
    along the direction at the start of the interval; exact on noiseless models, where it gives the means of α(t) and
    β(t) over the interval. With noise of variance σ² t/m in each mean, the error of both is of order σ/(‖x‖ √(m Δt)).
    NaN where a factor is not positive (the model then says nothing of the interval).

    Args:
        times: of the measurements, (T,).
        means: class means at each of them, (T, n, C): `classes.means(H)` of any trajectory, of a model or a network.
        kind: "I" or "L".
    Raises:
        ValueError: times that do not increase, means without one entry a time, an unknown kind, n ≠ C for "L".
    References:
        Zhang, Wang and Su (2021): the model whose intensities these are.
    """
    check_choice("kind", kind, get_args(Kind))
    check_increasing("times", times)
    check_shape("means", means, (len(jnp.asarray(times)), None, None), "(T, n, C), one set of class means a time")
    C, steps = means.shape[2], jnp.diff(jnp.asarray(times, dtype=float))
    x = means
    if kind == "L":
        check_shape("means", means, (None, C, C), "n = C features for the L-model")
        x = _along_vertices(means)[:, None, :]
    mean = x.mean(2, keepdims=True)
    parts = (jnp.broadcast_to(mean, x.shape), x - mean)
    whole, contrast = (
        jnp.log(jnp.sum(X[1:] * X[:-1], axis=(1, 2)) / jnp.sum(jnp.square(X[:-1]), axis=(1, 2))) / steps for X in parts
    )
    β = whole - contrast
    return Elasticity(intra=C * contrast + β, inter=β)


def _along_vertices(M: Float[Array, "... C C"]) -> Float[Array, "... C"]:
    """d_k · M_k / ‖d_k‖²."""
    C = M.shape[-1]
    D = jnp.broadcast_to(jnp.eye(C, dtype=M.dtype) - 1 / C, M.shape)
    return jnp.sum(D * M, axis=-2) / (1 - 1 / C)


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
