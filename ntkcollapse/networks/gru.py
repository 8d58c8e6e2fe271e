"""A gated recurrent unit on the rows of images (Cho et al. 2014): does the block structure hold under recurrence?"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ntkcollapse._checks import check_whole
from ntkcollapse.networks.initialisers import LECUN_NORMAL, Initialiser
from ntkcollapse.networks.network import Network


class GRUTrunk(nn.Module):
    """Reads an image row by row, or a vector number by number; the features are the state after the last row."""

    width: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        rows = x.reshape(x.shape[0], x.shape[1], -1)
        states: Any = nn.RNN(nn.GRUCell(self.width, param_dtype=self.param_dtype), name="rows")(rows)
        return states[:, -1]


def gru(
    num_classes: int = 10,
    *,
    width: int = 64,
    initialiser: Initialiser | None = LECUN_NORMAL,
    use_bias: bool = True,
    param_dtype: Any = jnp.float32,
) -> Network:
    """A gated recurrent unit with `width` features, one step a row; the same weights at every step.

    Raises:
        ValueError: a width that is not whole or below 1.
    """
    check_whole("width", width)
    return Network(GRUTrunk(width, param_dtype), num_classes, initialiser, use_bias, param_dtype)
