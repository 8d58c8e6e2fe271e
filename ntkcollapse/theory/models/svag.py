"""Stochastic variance amplified gradients: SGD on its way to its own stochastic differential equation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from ntkcollapse._checks import check_positive


class SVAGState(NamedTuple):
    """The first gradient of a pair, and the number of gradients so far."""

    first: optax.Updates
    seen: Int[Array, ""]


def svag(learning_rate: float, amplification: int) -> optax.GradientTransformation:
    r"""SVAG as an optax transformation: two mini-batch gradients make one step, with the noise of l steps of SGD.

        w ← w − (η/l) [ (1 + √(2l − 1))/2 · g₁ + (1 − √(2l − 1))/2 · g₂ ]

    g₁, g₂ are independent mini-batch gradients at the same w: the first of two calls leaves w unchanged. The mean
    drift per l steps stays that of SGD with learning rate η, and so does the covariance; as l grows the chain tends to
    the SDE that SGD is modelled by. l = 1 is SGD itself (on every other mini-batch).

    Args:
        learning_rate: η of the SGD that is amplified.
        amplification: l ≥ 1.
    Raises:
        ValueError: η not above zero, l below 1.
    References:
        Li, Malladi and Arora (2021).
    """
    check_positive("learning_rate", learning_rate)
    if amplification < 1:
        raise ValueError(f"amplification: expected a whole number of at least 1, got {amplification}.")
    root = (2 * amplification - 1) ** 0.5
    rate = learning_rate / amplification

    def init(params):
        return SVAGState(jax.tree.map(jnp.zeros_like, params), jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        del params
        complete = state.seen % 2 == 1

        def step(first, second):
            mixed = (1 + root) / 2 * first + (1 - root) / 2 * second
            return jnp.where(complete, -rate * mixed, jnp.zeros_like(mixed))

        return jax.tree.map(step, state.first, updates), SVAGState(updates, state.seen + 1)

    return optax.GradientTransformation(init, update)


def stationary_variance(
    curvature: Float[ArrayLike, ""],
    gradient_variance: Float[ArrayLike, ""],
    learning_rate: Float[ArrayLike, ""],
    amplification: Float[ArrayLike, "*L"],
) -> Float[Array, "*L"]:
    r"""η s²/(2k − η k²/l): exact stationary variance on ½ k w² with additive gradient noise of variance s².

    l = 1 is SGD; l → ∞ the SDE, η s²/(2k).

    Raises:
        ValueError: η k/l ≥ 2, where the chain has no stationary state.
    """
    check_positive("curvature", curvature)
    k, η, l = (jnp.asarray(x, dtype=float) for x in (curvature, learning_rate, amplification))
    check_positive("2 - learning_rate * curvature / amplification", 2 - η * k / l)
    return η * gradient_variance / (2 * k - η * k**2 / l)
