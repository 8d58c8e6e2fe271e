"""A small convolutional network, for small images and quick runs."""

from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ntkcollapse._checks import check_momentum, check_whole
from ntkcollapse.networks.initialisers import LECUN_NORMAL, Initialiser
from ntkcollapse.networks.network import Network
from ntkcollapse.networks.normalisation import batch_norm as normalise


class CNNTrunk(nn.Module):
    """For each width a 3×3 convolution, of stride 2 from the second on, normalised or not; mean over positions."""

    widths: tuple[int, ...]
    batch_norm: bool = True
    momentum: float = 0.9
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        for layer, width in enumerate(self.widths):
            stride, bias = 2 if layer else 1, not self.batch_norm
            x = nn.Conv(
                width, (3, 3), stride, use_bias=bias, param_dtype=self.param_dtype, name=f"conv_{layer}"
            )(x)  # fmt: skip
            if self.batch_norm:
                x = normalise(self.param_dtype, f"norm_{layer}", self.momentum)(x, not train)
            x = nn.relu(x)
        return x.mean((1, 2))


def cnn(
    num_classes: int = 10,
    *,
    widths: Sequence[int] = (16, 32, 64),
    batch_norm: bool = True,
    momentum: float = 0.9,
    initialiser: Initialiser | None = LECUN_NORMAL,
    use_bias: bool = True,
    param_dtype: Any = jnp.float32,
) -> Network:
    """A convolutional network of one 3×3 convolution a width; the last of `widths` is the number of features.

    Args:
        num_classes: C.
        widths: channels; every convolution but the first halves the images.
        batch_norm: after every convolution.
        momentum: of the running averages of batch normalisation.
    Raises:
        ValueError: no width, a width that is no whole number or below 1, or a momentum outside [0, 1).
    """
    if isinstance(widths, str) or not isinstance(widths, Iterable) or not tuple(widths):
        raise ValueError(f"widths: expected a list of whole numbers, one at least, got {widths!r}; write one as (64,).")
    check_whole("widths", *widths)
    check_momentum(momentum)
    trunk = CNNTrunk(tuple(widths), batch_norm, momentum, param_dtype)
    return Network(trunk, num_classes, initialiser, use_bias, param_dtype)
