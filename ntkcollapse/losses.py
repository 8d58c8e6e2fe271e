"""Losses with their scale stated."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkcollapse._checks import check_choice, check_positive


class Loss(eqx.Module):
    """A loss of logits f (C × N) against one-hot labels Y, summed over samples and multiplied by `scale`.

    The scale fixes the unit of flow time: the flow descends exactly this loss. A loss of your own has a `scale` and a
    `value`; its gradient is made by automatic differentiation unless you write it down.
    """

    scale: eqx.AbstractVar[float]

    @abc.abstractmethod
    def value(self, f: Float[Array, "C N"], Y: Float[Array, "C N"]) -> Float[Array, ""]:
        """The loss."""

    def gradient(self, f: Float[Array, "C N"], Y: Float[Array, "C N"]) -> Float[Array, "C N"]:
        """G = ∂loss/∂f."""
        return jax.grad(self.value)(f, Y)


class SquaredError(Loss):
    """scale · ½ ‖f − Y‖_F². Scale 1 is the theory's; 1/(N C) is the mean of optax's `l2_loss`."""

    scale: float = 1.0

    def __check_init__(self):
        check_positive("scale", self.scale)

    def value(self, f, Y):
        return self.scale * jnp.sum(jnp.square(f - Y)) / 2

    def gradient(self, f, Y):
        return self.scale * (f - Y)


class CrossEntropy(Loss):
    """scale · Σ_i −log softmax(f_i)[y_i]. Scale 1/N is the mean over samples."""

    scale: float = 1.0

    def __check_init__(self):
        check_positive("scale", self.scale)

    def value(self, f, Y):
        return -self.scale * jnp.sum(Y * jax.nn.log_softmax(f, axis=0))

    def gradient(self, f, Y):
        return self.scale * (jax.nn.softmax(f, axis=0) - Y)


class DotRegression(Loss):
    """scale · (1/2c) Σ_i (f_{y_i, i} − c)²: only the logit of the right class counts, and its target is c.

    For a classifier that is fixed, which nothing pushes away from other classes' features (Yang et al. 2022).
    """

    target: float | Float[Array, ""] = 1.0
    scale: float = 1.0

    def value(self, f, Y):
        return self.scale * jnp.sum(jnp.square(jnp.sum(Y * f, axis=0) - self.target)) / (2 * self.target)

    def gradient(self, f, Y):
        return self.scale * Y * ((jnp.sum(Y * f, axis=0) - self.target) / self.target)[None, :]


# The losses that have a name, as `Flow(loss=...)` and files spell it.
LOSSES: dict[str, type[SquaredError] | type[CrossEntropy]] = {"squared": SquaredError, "cross-entropy": CrossEntropy}


def as_loss(loss: Loss | str) -> Loss:
    """Gives the loss itself, or the loss of that name at scale 1: "squared" or "cross-entropy".

    Raises:
        ValueError: an unknown name, or something that is no loss.
    """
    if isinstance(loss, Loss):
        return loss
    if not isinstance(loss, str):
        raise ValueError(
            f"loss: expected a Loss or one of {', '.join(map(repr, LOSSES))}, got a {type(loss).__name__}; subclass "
            "ntkcollapse.Loss with `scale` and `value`."
        )
    check_choice("loss", loss, LOSSES)
    return LOSSES[loss]()
