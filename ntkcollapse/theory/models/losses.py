"""Losses that single models use."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkcollapse.losses import Loss


class LogCrossEntropy(Loss):
    """scale · log Σ_i −log softmax(f_i)[y_i]: the flow of cross-entropy in a time that does not slow down.

    Its gradient is that of the summed cross-entropy L divided by L, so that both flows have the same orbits and times
    are related by dt = dτ / L. Computed from log-losses: exact where L itself is far below the smallest float.
    """

    scale: float = 1.0

    def value(self, f, Y):
        return self.scale * jax.nn.logsumexp(_log_losses(_excess(f, Y), Y))

    def gradient(self, f, Y):
        excess = _excess(f, Y)
        log_loss = _log_losses(excess, Y)
        # Probability of each wrong class over L, in logarithms; it moves from the right class to the wrong one.
        log_odds = jax.nn.logsumexp(jnp.where(Y > 0, -jnp.inf, excess), axis=0)
        share = jnp.exp(excess - jnp.logaddexp(0.0, log_odds)[None, :] - jax.nn.logsumexp(log_loss))
        wrong = jnp.where(Y > 0, 0, share)
        return self.scale * (wrong - Y * wrong.sum(0)[None, :])


def _excess(f, Y):
    """f_k − f_y."""
    return f - jnp.sum(f * Y, axis=0)[None, :]


def _log_losses(excess, Y):
    """log ℓ_i with ℓ = log(1 + e^a), a = log Σ_{k ≠ y} e^{f_k − f_y}."""
    return log_softplus(jax.nn.logsumexp(jnp.where(Y > 0, -jnp.inf, excess), axis=0))


def log_softplus(a: Float[Array, "..."]) -> Float[Array, "..."]:
    """log log(1 + e^a), the logarithm of the cross-entropy of a sample whose other classes have log-odds a."""
    # a − e^a/2 where e^a is lost beside 1.
    tiny = a < -20
    safe = jnp.where(tiny, 0.0, a)
    return jnp.where(tiny, a - jnp.exp(jnp.minimum(a, 0)) / 2, jnp.log(jnp.logaddexp(0.0, safe)))
