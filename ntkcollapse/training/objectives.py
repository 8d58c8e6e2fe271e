"""Losses of a batch, as optimisers see them: means over the batch."""

from jaxtyping import Array, Float

from ntkcollapse._checks import check_choice
from ntkcollapse.choices import LOSSES
from ntkcollapse.losses import CrossEntropy, DotRegression, Loss, SquaredError


def squared(B: int, C: int) -> SquaredError:
    """Half the squared error, a mean over B samples and C outputs."""
    return SquaredError(scale=1 / (B * C))


def cross_entropy(B: int, C: int) -> CrossEntropy:
    """Cross-entropy, a mean over B samples."""
    return CrossEntropy(scale=1 / B)


def dot_regression(B: int, C: int) -> DotRegression:
    """Half the squared distance of the right class's logit from 1, a mean over B samples."""
    del C
    return DotRegression(scale=1 / B)


def batch_loss(name: str, outputs: Float[Array, "B C"], targets: Float[Array, "B C"]) -> Float[Array, ""]:
    """The loss of a batch from rows of logits and one-hot labels.

        squared:        1/(B C) Σ ½ (f − Y)², the mean over batch and outputs of half the squared error
        cross-entropy:  −1/B Σ log softmax(f)[label], the mean over the batch
        dot-regression: 1/B Σ ½ (f[label] − 1)², the mean over the batch (Yang et al. 2022)

    Raises:
        ValueError: an unknown name.
    """
    check_choice("loss", name, LOSSES)
    return LOSSES[name](*outputs.shape).value(outputs.T, targets.T)


def summed_loss(name: str) -> Loss:
    """The loss of that name summed over the whole set, whose flow time the clock gives."""
    check_choice("loss", name, LOSSES)
    return type(LOSSES[name](1, 1))()


def loss_scale(name: str, num_samples: int, num_classes: int) -> float:
    """The scale of that loss on the whole set against ½‖R‖² (or the summed cross-entropy): what `Clock` asks for."""
    check_choice("loss", name, LOSSES)
    return LOSSES[name](num_samples, num_classes).scale
