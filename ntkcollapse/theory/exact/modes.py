"""Scalar modes of the centred flow: their exact course in time.

All of it is for balanced classes, ⟨h⟩ = 0, b = 1/C and flow time of the loss ½‖R‖². Times may have any shape, modes
too; results have the shape of the times followed by that of the modes.
"""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse._checks import check_finite, check_positive, check_real, is_traced
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes

# exp(-600) ≈ 1e-261: an exponential that has died out, whose square root and reciprocal still are numbers.
_LATE = 600.0


def logistic_mode(
    times: Float[ArrayLike, "*T"], start: Float[ArrayLike, "*modes"], kappa: BlockKernel, classes: Classes
) -> Float[Array, "*T_modes"]:
    r"""Course of an aligned class mode with invariant 0: the logistic law.

        α(t) = 1 / (1 + (1/α₀ − 1) e^{−2ct})            α₀ > 0:  learned, α → 1
        α(t) = −1 / ((1/|α₀| + 1) e^{2ct} − 1)           α₀ < 0:  never learned, α → 0
        c = √(m λ_class)

    α is an eigenvalue of W M, whose target is 1. Holds where W and M share their singular directions, E = 0, ⟨h⟩ = 0,
    b = 1/C, and there is no scatter in the mode; then modes do not feel each other. At α₀ < 0 the state tends to a
    saddle, from which rounding escapes after about 37/c.

    Args:
        times: flow times.
        start: α₀ of each mode.
        kappa: feature kernel, three numbers.
        classes: balanced.
    Returns:
        α, shape of `times` followed by that of `start`.
    Raises:
        ValueError: unequal classes, a general block kernel, numbers that are not finite.
    References:
        Derived here; setting of Seleznova et al. (2023), Section 5.2.

    >>> kappa, classes = BlockKernel(1.0, 0.5, 0.1), Classes.balanced(4, 5)
    >>> logistic_mode(5.0, jnp.array([0.01, -0.01]), kappa, classes).round(6).tolist()
    [1.0, -0.0]
    """
    check_finite("start", start)
    t, α0 = _outer(times, start)
    x = jnp.exp(-jnp.minimum(2 * _class_speed(kappa, classes) * t, _LATE))
    # Both laws with the growing exponential divided out; the one that does not apply is 0.
    up, down = jnp.maximum(α0, 0), jnp.minimum(α0, 0)
    return up / (up * (1 - x) + x) + down * x / (1 - down + down * x)


def learning_time(
    start: Float[ArrayLike, "*modes"], kappa: BlockKernel, classes: Classes, *, level: float = 0.5
) -> Float[Array, "*modes"]:
    r"""Flow time at which a logistic mode reaches `level`.

        t* = [ln(1/α₀ − 1) − ln(1/level − 1)] / (2 √(m λ_class))

    For small α₀ and level ½ it is ln(1/α₀) / (2√(m λ_class)). Optimiser steps: see `losses.Clock`; with the mean loss
    and κ_c > κ_n their number tends to C² ln(1/α₀) / (2 lr √(κ_c − κ_n)) for large m, where m has dropped out.

    Raises:
        ValueError: `start` or `level` outside (0, 1), unequal classes, a general block kernel.
    References:
        Derived here.
    """
    for name, value in (("start", start), ("level", level)):
        check_positive(name, value)
        if not is_traced(value) and bool(jnp.any(jnp.asarray(value) >= 1)):
            raise ValueError(f"{name}: expected α between 0 and 1, the target; got {value}.")
    α0 = jnp.asarray(start, dtype=float)
    return (jnp.log(1 / α0 - 1) - jnp.log(1 / level - 1)) / (2 * _class_speed(kappa, classes))


def scalar_mode(
    times: Float[ArrayLike, "*T"],
    w: Float[ArrayLike, "*modes"],
    h: Float[ArrayLike, "*modes"],
    target: Float[ArrayLike, ""],
    eigenvalue: Float[ArrayLike, ""],
) -> tuple[Float[Array, "*T_modes"], Float[Array, "*T_modes"]]:
    r"""Course of one pair (w, h) with any start, balanced or not.

        w' = −(w h − y) h,   h' = −λ (w h − y) w,   e = w² − h²/λ constant

    With p = √λ w + h and q = √λ w − h the flow is p(t) = p₀ g(t), q(t) = q₀ / g(t), where

        g² = (P₊ + q₀² (1 − x) + ν x) / (ν + p₀² (1 − x) + P₊ x),   x = e^{−ωt},
        k = 2 √λ y,  ω = √(k² + λ²e²),  P₊ = k + ω,  ν = p₀² q₀² / P₊.

    Every term is positive: nothing cancels, and p₀ = 0 (the anti-aligned start, which tends to 0) needs no case. All
    other starts tend to w² = (e + √(e² + 4y²/λ)) / 2, h = y/w, at rate ω; times may be infinite.

    A class mode of the flow, output direction u ⟂ 1 and feature direction v, has W ∼ w u vᵀ, M ∼ (h/√m) v uᵀ, y = √m
    and λ = λ_class; exact where there is no scatter along v.

    Args:
        times: flow times, none negative.
        w, h: starts of the same shape.
        target: y > 0.
        eigenvalue: λ > 0.
    Returns:
        w(t) and h(t), shape of `times` followed by that of `w`.
    Raises:
        ValueError: y or λ not above zero, or starts that are not finite.
    References:
        Derived here.
    """
    check_positive("target", target)
    check_positive("eigenvalue", eigenvalue)
    check_finite("w, h", (w, h))
    y, λ = jnp.asarray(target, dtype=float), jnp.asarray(eigenvalue, dtype=float)
    (t, w0), (_, h0) = _outer(times, w), _outer(times, h)
    root = jnp.sqrt(λ)
    p0, q0 = root * w0 + h0, root * w0 - h0
    k = 2 * root * y
    ω = jnp.sqrt(k**2 + (p0 * q0) ** 2)
    P = k + ω
    ν = p0**2 * q0**2 / P
    x, past = jnp.exp(-jnp.minimum(ω * t, _LATE)), -jnp.expm1(-ω * t)
    g = jnp.sqrt((P + q0**2 * past + ν * x) / (ν + p0**2 * past + P * x))
    p, q = p0 * g, q0 / g
    return (p + q) / (2 * root), (p - q) / 2


def aligned_pair(
    times: Float[ArrayLike, "*T"],
    weight_square: Float[ArrayLike, "*modes"],
    scatter: Float[ArrayLike, "*modes"],
    lambda_single: Float[ArrayLike, ""],
) -> tuple[Float[Array, "*T_modes"], Float[Array, "*T_modes"]]:
    r"""Course of one within-class direction v and the weight that acts on it: how variability collapses, or does not.

        w' = −w s²,  (s²)' = −2 λ_single w² s²,   e₀ = w² − s²/λ_single constant
        w²(t) = e₀ / (1 − (1 − e₀/w₀²) e^{−2 λ_single e₀ t}),    w₀² / (1 + 2 λ_single w₀² t) for e₀ = 0

    w² = |W v|², s² = vᵀ S v with S summed over samples. Exact where class means feel nothing of it: W S M = 0, as for
    an output direction along 1 and v orthogonal to the class means. e₀ > 0: s² → 0 exponentially, w² → e₀. e₀ < 0:
    w² → 0 and s² → λ_single |e₀|: neural collapse fails. e₀ = 0: both fall like 1/t.

    Args:
        times: flow times, none negative and all finite.
        weight_square: w₀² ≥ 0.
        scatter: s₀² ≥ 0, same shape.
        lambda_single: λ_single > 0 of the feature kernel.
    Returns:
        w²(t) and s²(t), shape of `times` followed by that of `weight_square`.
    Raises:
        ValueError: negative starts, λ_single not above zero.
    References:
        Derived here; the end of training in Seleznova et al. (2023), Section 5.3.
    """
    check_positive("weight_square", weight_square, zero=True)
    check_positive("scatter", scatter, zero=True)
    check_positive("lambda_single", lambda_single)
    λ = jnp.asarray(lambda_single, dtype=float)
    (t, x0), (_, s0) = _outer(times, weight_square), _outer(times, scatter)
    y0 = s0 / λ
    # s²/λ_single obeys the law of w² with −e₀ for e₀: no difference of nearly equal numbers is ever taken.
    return _decay_towards(x0 - y0, x0, 2 * λ * t), λ * _decay_towards(y0 - x0, y0, 2 * λ * t)


def _decay_towards(e, x0, τ):
    """x(τ) of x' = −x (x − e), also at e = 0."""
    z = e * τ
    size = jnp.abs(z)
    safe = jnp.where(size > 0, size, 1)
    slope = jnp.where(size > 0, -jnp.expm1(-safe) / safe, 1)
    return x0 * jnp.exp(jnp.minimum(z, 0)) / (x0 * τ * slope + jnp.exp(-jnp.maximum(z, 0)))


def _class_speed(kappa: BlockKernel, classes: Classes) -> Float[Array, ""]:
    """c = √(m λ_class)."""
    return jnp.sqrt(classes.per_class * kappa.lambda_class(classes))


def _outer(times, modes):
    check_real(times=times)
    t, x = jnp.asarray(times, dtype=float), jnp.asarray(modes, dtype=float)
    shape = t.shape + x.shape
    return (
        jnp.broadcast_to(t.reshape(t.shape + (1,) * x.ndim), shape),
        jnp.broadcast_to(x.reshape((1,) * t.ndim + x.shape), shape),
    )
