"""Losses of a batch, as optimisers see them: means over the batch."""

from collections.abc import Callable

from jaxtyping import Array, Float

from ntkcollapse._checks import check_choice
from ntkcollapse.losses import CrossEntropy, Loss, SquaredError

# Scale against the sum over samples, for a batch of B and C outputs.
_LOSSES: dict[str, Callable] = {
    "squared": lambda B, C: SquaredError(scale=1 / (B * C)),
    "cross-entropy": lambda B, C: CrossEntropy(scale=1 / B),
}
LOSSES = tuple(_LOSSES)


def batch_loss(name: str, outputs: Float[Array, "B C"], targets: Float[Array, "B C"]) -> Float[Array, ""]:
    """The loss of a batch from rows of logits and one-hot labels.

        squared:        1/(B C) Σ ½ (f − Y)², the mean over batch and outputs of half the squared error
        cross-entropy:  −1/B Σ log softmax(f)[label], the mean over the batch

    Raises:
        ValueError: an unknown name.
    """
    check_choice("loss", name, _LOSSES)
    return _LOSSES[name](*outputs.shape).value(outputs.T, targets.T)


def summed_loss(name: str) -> Loss:
    """The loss of that name summed over the whole set, whose flow time the clock gives."""
    check_choice("loss", name, _LOSSES)
    return type(_LOSSES[name](1, 1))()


def loss_scale(name: str, num_samples: int, num_classes: int) -> float:
    """The scale of that loss on the whole set against ½‖R‖² (or the summed cross-entropy): what `Clock` asks for."""
    check_choice("loss", name, _LOSSES)
    return _LOSSES[name](num_samples, num_classes).scale
