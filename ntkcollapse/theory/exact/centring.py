"""The global mode: the course of the bias, and the limits of the feature mean and the bias."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse._checks import check_finite, check_positive, check_real, check_shape
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes


class GlobalMode(NamedTuple):
    """The mode of output direction 1/√C: W ∼ w 1vᵀ/√C, H ∼ h v 1ᵀ/√N, b = bias 1/√C."""

    w: Float[Array, ""]
    h: Float[Array, ""]
    bias: Float[Array, ""]


def bias_relaxation(
    times: Float[ArrayLike, "*T"], start: Float[ArrayLike, " C"], classes: Classes
) -> Float[Array, "*T C"]:
    r"""Course of the bias while the features stay centred.

        b(t) = 1/C + (b(0) − 1/C) e^{−Nt}

    Holds for balanced classes where ⟨h⟩ = 0, 1ᵀW = 0 and b(0) ∝ 1: that set is invariant and b decouples on it.
    (⟨h⟩ = 0 alone does not stay: with b ≠ 1/C and 1ᵀW ≠ 0 the mean leaves 0.)

    Raises:
        ValueError: unequal classes, a start that is not a multiple of 1.
    References:
        Derived here; centring is an assumption of Seleznova et al. (2023), Section 5.3.
    """
    C, N = classes.num_classes, classes.per_class * classes.num_classes
    check_shape("start", start, (C,), "one bias a class")
    check_real(start=start, times=times)
    b, t = jnp.asarray(start, dtype=float), jnp.asarray(times, dtype=float)
    decay = jnp.exp(-N * t)[..., None]
    target = jnp.full((1,) * t.ndim + (C,), 1 / C)
    return target + (b.reshape(target.shape) - target) * decay


def global_mode_limit(
    w: Float[ArrayLike, ""],
    h: Float[ArrayLike, ""],
    bias: Float[ArrayLike, ""],
    kappa: BlockKernel,
    classes: Classes,
) -> GlobalMode:
    r"""Limit of an aligned global mode.

        w' = −r h,  h' = −λ_global r w,  bias' = −√N r,    r = w h + √N bias − √m

    The flow moves along p = p₀ eᵘ, q = q₀ e⁻ᵘ, bias = bias₀ + √(N/λ_global) u, with p, q = √λ_global w ± h, and r grows
    with u: the limit is the one root of r(u) = 0, bracketed by |u| ≤ |r₀| √λ_global / N. Conserved on the way are
    w² − h²/λ_global and bias − √(N/λ_global) ln|p|. Exact for balanced classes where W and H meet along 1/√C in one
    feature direction v and other modes do not reach it. Its derivatives are those of the root.

    Args:
        w, h, bias: the start, in the units of `GlobalMode`: w = 1ᵀW v/√C, h = √N vᵀ⟨h⟩, bias = 1ᵀb/√C.
        kappa: feature kernel, three numbers.
        classes: balanced.
    Returns:
        The limit: r = 0.
    Raises:
        ValueError: unequal classes, λ_global not above zero, numbers that are not finite.
    References:
        Derived here.
    """
    check_finite("w, h, bias", (w, h, bias))
    λ, N = kappa.lambda_global(classes), classes.num_samples
    check_positive("lambda_global", λ)
    w, h, bias = (jnp.asarray(x, dtype=float) for x in (w, h, bias))
    root = jnp.sqrt(λ)
    p0, q0 = root * w + h, root * w - h

    def residual(u):
        product = (p0**2 * jnp.exp(2 * u) - q0**2 * jnp.exp(-2 * u)) / (4 * root)
        return product + N**0.5 * bias + N / root * u - classes.per_class**0.5

    reach = jnp.abs(residual(0.0)) * root / N

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        above = residual(middle) > 0
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    # 200 halvings end at neighbouring numbers for every start; the last Newton step carries the derivative.
    low, high = jax.lax.fori_loop(0, 200, halve, jax.lax.stop_gradient((-reach, reach)))
    u = jax.lax.stop_gradient((low + high) / 2)
    u = u - residual(u) / jax.lax.stop_gradient(jax.grad(residual)(u))
    p, q = p0 * jnp.exp(u), q0 * jnp.exp(-u)
    return GlobalMode(w=(p + q) / (2 * root), h=(p - q) / 2, bias=bias + jnp.sqrt(N / λ) * u)
