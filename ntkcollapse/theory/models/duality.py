"""Convex duality of a last layer with weight decay: a lower bound of its objective that any state can name."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse._checks import check_positive
from ntkcollapse.classes import Classes
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.losses import CrossEntropy, Loss, SquaredError, as_loss
from ntkcollapse.theory.flow import check_bias


class DualityGap(NamedTuple):
    """primal: the objective at the state; dual: what no state is below. Equal numbers: a global minimum."""

    primal: Float[Array, ""]
    dual: Float[Array, ""]

    @property
    def gap(self) -> Float[Array, ""]:
        """primal − dual: the most by which the state can be above the minimum."""
        return self.primal - self.dual


def duality_gap(
    state: LastLayer,
    classes: Classes,
    decay_W: Float[ArrayLike, ""],
    decay_H: Float[ArrayLike, ""],
    *,
    loss: Loss | str = "squared",
) -> DualityGap:
    r"""How far a last layer is from the global minimum over all H and W, at most, classes of any sizes, no bias.

        min_{H,W} ℓ(W H) + (λ_W/2)‖W‖² + (λ_H/2)‖H‖²  =  min_F ℓ(F) + β‖F‖_*  =  max over ‖V‖_2 ≤ β of −ℓ*(−V),

    β = √(λ_W λ_H), with the nuclear norm of the logits F and the spectral norm of V; for a loss of scale s

        squared error    ⟨V, Y⟩ − ‖V‖²/(2s)
        cross-entropy    s Σ_i entropy(p_i),   V = s (Y − P), columns p_i probabilities

    so that cross-entropy with decay is the largest entropy of predictions that stay within β of the labels. The bound
    takes V along −∂ℓ/∂F of the state, as long as it may be. At a minimum it is exact; away from it, it is off to first
    order in the distance. It holds for any features, of a trained network too: what it says is how much of the
    objective a last layer with free features could still gain.

    For a batch-normalised head, λ_W = λ_H = β and ‖H‖² = ‖γ‖² + ‖α‖².

    Args:
        state: features and classifier, b = 0.
        classes: behind the columns.
        decay_W, decay_H: λ_W, λ_H beside `loss` with its scale.
        loss: `SquaredError` or `CrossEntropy`, or their names at scale 1.
    Raises:
        ValueError: shapes that disagree with `classes`, b ≠ 0, decays not above zero, another loss.
    References:
        Ergen and Pilanci (2021), duality and collapse of the last layers; the bound of any state is derived here.
    """
    loss = as_loss(loss)
    state.check(classes)
    check_bias("absent", state.b)
    check_positive("decay_W, decay_H", (decay_W, decay_H))
    if type(loss) not in (SquaredError, CrossEntropy):
        raise ValueError(f"loss: expected SquaredError or CrossEntropy, got {type(loss).__name__}.")
    H, W = state.H, state.W
    Y, s = classes.Y.astype(W.dtype), jnp.asarray(loss.scale, W.dtype)
    λ_W, λ_H = (jnp.asarray(rate, W.dtype) for rate in (decay_W, decay_H))
    F = W @ H
    primal = loss.value(F, Y) + λ_W / 2 * jnp.sum(jnp.square(W)) + λ_H / 2 * jnp.sum(jnp.square(H))
    V = -loss.gradient(F, Y)
    longest = jnp.sqrt(λ_W * λ_H) / jnp.linalg.norm(V, ord=2)
    if isinstance(loss, SquaredError):
        square = jnp.sum(jnp.square(V))
        θ = jnp.clip(s * jnp.sum(V * Y) / square, 0, longest)
        return DualityGap(primal, θ * jnp.sum(V * Y) - jnp.square(θ) * square / (2 * s))
    # On the way from the labels to the predictions all are probabilities.
    P = Y + jnp.minimum(1, longest) * (jax.nn.softmax(F, axis=0) - Y)
    return DualityGap(primal, s * jnp.sum(jax.scipy.special.entr(jnp.maximum(P, 0))))
