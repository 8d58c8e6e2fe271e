"""Minimisers and limits of unconstrained features with cross-entropy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse._checks import check_positive
from ntkcollapse._simplex import check_dimension
from ntkcollapse.classes import Classes
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.theory.models.losses import LogCrossEntropy


class SimplexMinimiser(NamedTuple):
    """A collapsed simplex: W M = scale · (I − 11ᵀ/C), W Wᵀ = weight_scale · (I − 11ᵀ/C); value of the mean loss."""

    scale: Float[Array, ""]
    weight_scale: Float[Array, ""]
    value: Float[Array, ""]


def regularised_simplex(
    classes: Classes,
    decay_W: Float[ArrayLike, ""],
    decay_H: Float[ArrayLike, ""],
    *,
    num_features: int | None = None,
) -> SimplexMinimiser:
    r"""Global minimiser of mean cross-entropy + (λ_W/2)‖W‖² + (λ_H/2)‖H‖² + (λ_b/2)‖b‖², balanced classes.

        e = √(m λ_W λ_H),   W M = a Π,  a = log(1/e − (C − 1)) for C e < 1 (else 0),   W Wᵀ = a √(m λ_H/λ_W) Π,  b = 0
        value = log(1 + (C − 1) e^{−a}) + (C − 1) e a

    Needs n ≥ C − 1. The landscape has no other local minima.

    Raises:
        ValueError: unequal classes, decays not above zero, `num_features` given and below C − 1.
    References:
        Zhu et al. (2021).
    """
    check_positive("decay_W, decay_H", (decay_W, decay_H))
    check_dimension(num_features, classes.num_classes)
    C, m = classes.num_classes, classes.per_class
    e = jnp.sqrt(m * jnp.asarray(decay_W) * decay_H)
    learned = C * e < 1
    a = jnp.where(learned, jnp.log(jnp.where(learned, 1 / e - (C - 1), 1)), 0)
    value = jnp.log1p((C - 1) * jnp.exp(-a)) + (C - 1) * e * a
    return SimplexMinimiser(scale=a, weight_scale=a * jnp.sqrt(m * jnp.asarray(decay_H) / decay_W), value=value)


def bounded_simplex(
    classes: Classes,
    radius_H: Float[ArrayLike, ""],
    radius_W: Float[ArrayLike, ""],
    *,
    num_features: int | None = None,
) -> SimplexMinimiser:
    r"""Minimum of mean cross-entropy with ‖h_i‖ ≤ r_H and ‖w_k‖ ≤ r_W, no bias: spheres, balls and budgets alike.

        W M = r_H r_W (C Π)/(C − 1),   W Wᵀ = r_W² C Π/(C − 1),   value = log(1 + (C − 1) e^{−r_H r_W C/(C−1)})

    The same for the balanced layer-peeled budgets, with r_H² = energy_H and r_W² = energy_W. Needs n ≥ C − 1.

    Raises:
        ValueError: unequal classes, radii not above zero, `num_features` given and below C − 1.
    References:
        Yaras et al. (2022) and Lu and Steinerberger (2022) on spheres; Fang et al. (2021) for budgets.
    """
    check_positive("radius_H, radius_W", (radius_H, radius_W))
    check_dimension(num_features, classes.num_classes)
    _ = classes.per_class
    C = classes.num_classes
    scale = jnp.asarray(radius_H, dtype=float) * radius_W * C / (C - 1)
    return SimplexMinimiser(
        scale=scale,
        weight_scale=jnp.asarray(radius_W, dtype=float) ** 2 * C / (C - 1),
        value=jnp.log1p((C - 1) * jnp.exp(-scale)),
    )


class CrossEntropyFloor(NamedTuple):
    """Mean cross-entropy of a state and what it cannot go below, each number at most the one before it.

    loss: of the state; by_margin: of equal logits of wrong classes and one margin for all; by_norms: of features and
    weights of these norms about their means; by_radii: of all ‖h_i‖ and ‖w_k‖ up to the largest that occur.
    """

    loss: Float[Array, ""]
    by_margin: Float[Array, ""]
    by_norms: Float[Array, ""]
    by_radii: Float[Array, ""]


def cross_entropy_floor(state: LastLayer, classes: Classes) -> CrossEntropyFloor:
    r"""Ties the mean cross-entropy of any last layer to the minimum over features and weights in balls, in three steps.

        L ≥ g(δ̄),   g(δ) = log(1 + (C − 1) e^{−δ}),   δ_i = f_{y_i} − mean_{k ≠ y_i} f_k,   δ̄ = mean of δ_i
        δ̄ = C/((C − 1) N) [⟨P W, (M D P)ᵀ⟩ + ⟨b, P d⟩] ≤ C/((C − 1) N) [‖P W‖ ‖M D P‖ + ⟨b, P d⟩]
          ≤ C/((C − 1) N) [√C r_W ‖d‖ r_H + ⟨b, P d⟩]     ( = r_H r_W C/(C − 1) for balanced classes )

    with P = I − 11ᵀ/C, D = diag(d) the class sizes. First by convexity, of logsumexp in wrong logits and of g in the
    margin; then by Cauchy and Schwarz; then by ‖P W‖² ≤ Σ ‖w_k‖². Balanced, all are equal at a collapsed simplex ETF
    (`bounded_simplex`) and only there: the first gap is spread of logits and margins, the second lacking duality, the
    third lacking equal norms and centring. Holds for classes of any sizes, where the last is not reached.

    Args:
        state: last layer, of theory or of a trained network.
        classes: behind its columns.
    Raises:
        ValueError: shapes that disagree with `classes`.
    References:
        Lu and Steinerberger (2022), E and Wojtowytsch (2022), Zhu et al. (2021): the balanced minimum; reviewed by
        Kothapalli (2023). The chain of three steps, for any sizes and with a bias, is derived here.
    """
    state.check(classes)
    H, W = state.H, state.W
    C, N, d = classes.num_classes, classes.num_samples, classes.weights.astype(state.W.dtype)
    f, Y = state.logits, classes.Y.astype(state.W.dtype)
    right = jnp.sum(f * Y, axis=0)
    margin = jnp.mean(right - (jnp.sum(f, axis=0) - right) / (C - 1))
    MD = classes.sums(H)
    centred = jnp.linalg.norm(W - W.mean(0)[None, :]) * jnp.linalg.norm(MD - MD.mean(1)[:, None])
    bias = jnp.sum(state.b * (d - d.mean()))
    radii = jnp.linalg.norm(W, axis=1).max() * jnp.linalg.norm(H, axis=0).max()
    shares = (margin, *(C / ((C - 1) * N) * (x + bias) for x in (centred, C**0.5 * jnp.linalg.norm(d) * radii)))
    loss = -jnp.sum(Y * jax.nn.log_softmax(f, axis=0)) / N
    return CrossEntropyFloor(loss, *(jnp.log1p((C - 1) * jnp.exp(-δ)) for δ in shares))


def logit_ball(classes: Classes, radius: Float[ArrayLike, ""]) -> SimplexMinimiser:
    r"""Minimum of mean cross-entropy over logits in a ball, ‖f_i‖ ≤ R: f = R √(C/(C−1)) (e_y − 1/C).

        value = log(1 + (C − 1) e^{−R √(C/(C−1))})

    Raises:
        ValueError: R not above zero.
    References:
        E and Wojtowytsch (2022).
    """
    check_positive("radius", radius)
    C = classes.num_classes
    scale = jnp.asarray(radius, dtype=float) * (C / (C - 1)) ** 0.5
    return SimplexMinimiser(scale, jnp.ones(()), jnp.log1p((C - 1) * jnp.exp(-scale)))


def limiting_margin(classes: Classes) -> Float[Array, ""]:
    r"""1/(2 √m (C − 1)): largest margin over ‖W‖² + ‖H‖², to which unregularised cross-entropy tends.

    At a balanced collapsed simplex, W M = q Π, the margin min_i (f_y − max_{k≠y} f_k) is q, and
    ‖W‖² + ‖H‖² = 2 √m (C − 1) q. Approached like 1/log t.

    Raises:
        ValueError: unequal classes.
    References:
        Ji et al. (2022); margin maximisation by gradient flow: Lyu and Li (2020).
    """
    return jnp.asarray(1 / (2 * classes.per_class**0.5 * (classes.num_classes - 1)))


class Margins(NamedTuple):
    """margin: min_i (f_y − max_k f_k); normalised: margin / ρ²; smoothed: log(1/L)/ρ², with ρ² = ‖W‖² + ‖H‖²."""

    margin: Float[Array, ""]
    normalised: Float[Array, ""]
    smoothed: Float[Array, ""]


def margins(H: Float[Array, "n N"], W: Float[Array, "C n"], classes: Classes) -> Margins:
    """Margins of a bias-free last layer; L is the summed cross-entropy. `smoothed` never falls along its flow."""
    f, Y = W @ H, classes.Y.astype(H.dtype)
    right = jnp.sum(f * Y, axis=0)
    margin = jnp.min(right - jnp.max(jnp.where(Y > 0, -jnp.inf, f), axis=0))
    size = jnp.sum(jnp.square(W)) + jnp.sum(jnp.square(H))
    return Margins(margin, margin / size, -LogCrossEntropy().value(f, Y) / size)


def fixed_etf_limit(W: Float[Array, "C n"], energy_H: Float[ArrayLike, ""], classes: Classes) -> Float[Array, "n N"]:
    """√energy_H w_y/‖w_y‖: where features end under a fixed simplex-ETF classifier, whatever the class sizes."""
    unit = W / jnp.linalg.norm(W, axis=1, keepdims=True)
    return jnp.sqrt(jnp.asarray(energy_H, W.dtype)) * classes.expand(unit.T)
