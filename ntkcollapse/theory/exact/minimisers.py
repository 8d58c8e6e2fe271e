"""Minimisers of the loss with weight decay, which the decayed flow ends in."""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkcollapse._checks import check_choice, check_positive
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes
from ntkcollapse.theory.exact.limits import LimitState
from ntkcollapse.weight_decay import WeightDecay


class RegularisedMinimiser(NamedTuple):
    """The limit of the flow with weight decay, and the thresholds below which something is learned.

    state: moments at the minimum (no scatter);
    value: J there;
    feature_scale: ratio g in M = g Wᵀ on the class directions;
    class_threshold: √(m λ_class); classes are learned where Λ = √(λ_W λ_H) is below it;
    bias_threshold: λ_b above which W gains a component along 1 (infinite where it never does).
    """

    state: LimitState
    value: Float[Array, ""]
    feature_scale: Float[Array, ""]
    class_threshold: Float[Array, ""]
    bias_threshold: Float[Array, ""]


def regularised_minimiser(
    kappa: BlockKernel,
    classes: Classes,
    weight_decay: float | Mapping[str, float] | WeightDecay,
    *,
    bias: str = "free",
) -> RegularisedMinimiser:
    r"""Global minimiser of J = ½‖R‖² + (λ_W/2)‖W‖² + (λ_H/2) tr(H K⁻¹ Hᵀ) + (λ_b/2)‖b‖².

        Λ = √(λ_W λ_H),  z_c = (√(m λ_class) − Λ)₊ / λ_class,  z_g = (√m − Λ (1 + N/λ_b)/√λ_global)₊ / √λ_global
        W Wᵀ = √(λ_H/λ_W) (z_c Π + z_g 11ᵀ/C),   W M = √(λ_class/m) z_c Π + √(λ_global/m) z_g 11ᵀ/C
        b = 1 · √(N/C) Λ / (λ_b √λ_global)  where z_g > 0,  else  1 · √(m N/C) / (N + λ_b)

    Free bias without decay: z_g = 0, b = 1/C, a simplex ETF. Its decay λ_b beyond N/(√(m λ_global)/Λ − 1) adds a
    component along 1, and "absent" is its limit λ_b → ∞; for unconstrained features (κ = 1, 0, 0) that is an
    orthogonal frame. With λ_W ≠ λ_H the invariant is I = (1 − λ_W/λ_H) WᵀW: alignment 1 without E = 0.

    Args:
        kappa: feature kernel, three numbers.
        classes: balanced.
        weight_decay: one rate for H, W and b, or {"H": ..., "W": ..., "b": ...}, in units of the loss ½‖R‖²: multiply
            the coefficients of a loss averaged over samples by N.
        bias: "free" or "absent".
    Raises:
        ValueError: λ_H or λ_W not above zero (the minimum is then a family: see `collapsed_limit`), unequal classes,
            a general block kernel, an unknown bias mode.
    References:
        Derived here.
    """
    check_choice("bias", bias, ("free", "absent"))
    decay = WeightDecay.of(weight_decay)
    check_positive("weight_decay of H", decay.H)
    check_positive("weight_decay of W", decay.W)
    C, m, N = classes.num_classes, classes.per_class, classes.num_samples
    _, λ_class, λ_global = kappa.rates(classes)
    Λ, ratio = jnp.sqrt(decay.W * decay.H), jnp.sqrt(decay.H / decay.W)
    threshold = jnp.sqrt(m * λ_class)
    z_class = jnp.maximum(threshold - Λ, 0) / λ_class

    # In terms of N/λ_b, which is infinite without decay of the bias and 0 without a bias.
    free = bias == "free"
    decayed = decay.b > 0
    stiffness = jnp.where(decayed, N / jnp.where(decayed, decay.b, 1), jnp.inf) if free else jnp.zeros(())
    cost = Λ * (1 + stiffness) / jnp.sqrt(λ_global)
    z_global = jnp.maximum(m**0.5 - cost, 0) / jnp.sqrt(λ_global)
    entry = jnp.where(
        z_global > 0,
        Λ * jnp.where(decayed, stiffness, 0) / jnp.sqrt(λ_global * N * C),
        (m * N / C) ** 0.5 / (N + decay.b),
    )
    entry = entry if free else jnp.zeros(())
    room = jnp.sqrt(m * λ_global) / Λ - 1
    bias_threshold = jnp.where(room > 0, N / jnp.where(room > 0, room, 1), jnp.inf)

    ones = jnp.full((C, C), 1 / C)
    Π = jnp.eye(C) - ones
    outputs = jnp.sqrt(λ_class / m) * z_class * Π + jnp.sqrt(λ_global / m) * z_global * ones
    R = outputs + entry - jnp.eye(C)
    value = m * jnp.sum(R**2) / 2 + Λ * ((C - 1) * z_class + z_global) + decay.b * C * entry**2 / 2
    state = LimitState(
        weight_gram=ratio * (z_class * Π + z_global * ones),
        outputs=outputs,
        mean_gram=(λ_class * z_class * Π + λ_global * z_global * ones) / (m * ratio),
        bias=jnp.full(C, 1.0) * entry,
    )
    return RegularisedMinimiser(
        state=state,
        value=value,
        feature_scale=jnp.sqrt(λ_class / m) / ratio,
        class_threshold=threshold,
        bias_threshold=bias_threshold,
    )
