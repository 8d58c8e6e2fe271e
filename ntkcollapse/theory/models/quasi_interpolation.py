"""Homogeneous networks with weight decay: identities at critical points, and symmetric quasi-interpolation."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse._checks import check_finite, check_positive, check_real, check_shape
from ntkcollapse.classes import Classes
from ntkcollapse.last_layer import LastLayer


class WeightIdentity(NamedTuple):
    """Both sides, class by class: λ‖w_c‖² and (1/N) Σ_i (y − f)_{ci} (w_cᵀ h_i). Equal at every critical point."""

    penalty: Float[Array, " C"]
    fit: Float[Array, " C"]


def weight_identity(state: LastLayer, classes: Classes, decay: Float[ArrayLike, ""]) -> WeightIdentity:
    r"""λ‖w_c‖² = (1/N) Σ_i (y_ci − f_ci)(w_cᵀ h_i) for the loss (1/2N)‖R‖² + (λ/2)‖W‖² + ….

    Row c of the stationarity condition, multiplied by w_c. It needs nothing of the network below, and no symmetry; a
    gap between the sides measures how far training is from a critical point. Summed over classes, the same for every
    layer of a homogeneous network: equal norms (`layer_imbalance`).

    Args:
        state: last layer, f = W H + b 1ᵀ.
        classes: behind its columns.
        decay: λ of W beside the loss averaged over samples.
    References:
        Poggio and Liao (2020); Rangamani and Banburski-Fahey (2022).
    """
    state.check(classes)
    check_positive("decay", decay, zero=True)
    R = state.residual(classes)
    fit = -jnp.sum(R * (state.W @ state.H), axis=1) / classes.num_samples
    return WeightIdentity(jnp.asarray(decay, R.dtype) * jnp.sum(jnp.square(state.W), axis=1), fit)


def layer_imbalance(layers: Sequence[Float[Array, "..."]]) -> Float[Array, ""]:
    """(max − min) / mean of the squared Frobenius norms of the weight layers: 0 at critical points with weight decay.

    For networks that are positively homogeneous of degree 1 in each of these layers (ReLU, no biases).
    """
    if len(layers) < 2:
        raise ValueError(f"layers: expected at least two weight arrays, got {len(layers)}.")
    norms = jnp.stack([jnp.sum(jnp.square(W)) for W in layers])
    return (norms.max() - norms.min()) / norms.mean()


def centred_floor(alpha: Float[ArrayLike, "*A"], num_classes: int) -> Float[Array, "*A"]:
    r"""½((1 − α)² + α²/(C − 1)): loss per sample of centred collapse without a bias, W M = α C Π/(C − 1).

    At least 1/(2C), at α = (C − 1)/C: without a bias centred features cannot interpolate.

    References:
        Rangamani and Banburski-Fahey (2022), Lemma 1.
    """
    α = jnp.asarray(alpha, dtype=float)
    return ((1 - α) ** 2 + α**2 / (num_classes - 1)) / 2


class QuasiInterpolation(NamedTuple):
    """How symmetric the outputs are: f_y = 1 − ε and f_k = ε/(C − 1), one ε for all samples.

    epsilon: mean of 1 − f_y; residual: ‖f − pattern‖ / ‖Y − pattern‖ (0: the assumption holds exactly, 1: it says
    nothing beyond f ≈ Y); spread: standard deviation of 1 − f_y over its mean.
    """

    epsilon: Float[Array, ""]
    residual: Float[Array, ""]
    spread: Float[Array, ""]


def quasi_interpolation(outputs: Float[Array, "C N"], classes: Classes) -> QuasiInterpolation:
    """The residual of the symmetric quasi-interpolation assumption, of a model or of a trained network.

    References:
        Poggio and Liao (2020); Rangamani and Banburski-Fahey (2022): the assumption.
    """
    C, N = classes.num_classes, classes.num_samples
    check_real(outputs=outputs)
    check_finite("outputs", outputs)
    check_shape("outputs", outputs, (C, N), "(C, N) outputs of the samples of classes")
    Y = classes.Y.astype(outputs.dtype)
    misses = 1 - jnp.sum(Y * outputs, axis=0)
    ε = jnp.mean(misses)
    pattern = Y * (1 - ε) + (1 - Y) * ε / (C - 1)
    size = jnp.linalg.norm(Y - pattern)
    residual = jnp.linalg.norm(outputs - pattern) / jnp.where(size > 0, size, 1)
    return QuasiInterpolation(ε, residual, jnp.std(misses) / jnp.abs(ε))


def symmetric_weight_norm(
    epsilon: Float[ArrayLike, ""], decay: Float[ArrayLike, ""], num_classes: int
) -> Float[Array, ""]:
    r"""‖w_c‖² = (ε − C ε²/(C − 1)) / (C λ): what quasi-interpolation predicts of every class, balanced.

    Then also w_c = ε (μ_c − ⟨h⟩)/(λ (C − 1)), with cosines −1/(C − 1). Exact for unconstrained features with a free
    bias, where ε = (C − 1) √(m λ_W λ_H); bias-free networks do not obey it.

    References:
        Poggio and Liao (2020); Rangamani and Banburski-Fahey (2022).
    """
    check_positive("decay", decay)
    ε = jnp.asarray(epsilon, dtype=float)
    return (ε - num_classes * ε**2 / (num_classes - 1)) / (num_classes * decay)


def symmetric_weights(
    means: Float[ArrayLike, "n C"], epsilon: Float[ArrayLike, ""], decay: Float[ArrayLike, ""]
) -> Float[Array, "C n"]:
    r"""w_c = ε (μ_c − μ_G)/(λ (C − 1)): the classifier that quasi-interpolation predicts from class means, balanced.

    Row c of the stationarity condition, λ W = (1/N) Σ_i (y_i − f_i) h_iᵀ, with the residual of the assumption, ε for
    the right class and −ε/(C − 1) for each other. A gap between it and W is the assumption's, or training's distance
    from a critical point (`weight_identity` tells the second alone).

    Args:
        means: class means in columns.
        epsilon: ε of `quasi_interpolation`.
        decay: λ beside the loss (1/2N)‖R‖²; C times that of a mean over samples and outputs.
    Raises:
        ValueError: a decay not above zero, fewer than two classes, or means that are not finite.
    References:
        Rangamani and Banburski-Fahey (2022).
    """
    check_real(means=means)
    check_positive("decay", decay)
    M = jnp.asarray(means, dtype=jnp.result_type(float, means))
    check_shape("means", M, (None, None), "(n features, C classes)")
    check_finite("means", M)
    C = M.shape[1]
    if C < 2:
        raise ValueError(f"means: expected at least two classes, got {C}.")
    return ((M - M.mean(1, keepdims=True)) * (jnp.asarray(epsilon, M.dtype) / (decay * (C - 1)))).T
