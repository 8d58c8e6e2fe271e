"""Fully connected networks."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ntkcollapse._checks import check_choice, check_whole
from ntkcollapse.networks.initialisers import LECUN_NORMAL, Initialiser
from ntkcollapse.networks.network import Network
from ntkcollapse.networks.normalisation import batch_norm as normalise

ACTIVATIONS: dict[str, Callable] = {
    "relu": nn.relu,
    "tanh": nn.tanh,
    "gelu": nn.gelu,
    "softplus": nn.softplus,
    "linear": lambda x: x,
}


class MLPTrunk(nn.Module):
    """Flattened input, then for each width: linear, batch normalisation where asked for, activation."""

    widths: tuple[int, ...]
    activation: str = "relu"
    batch_norm: bool = False
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, use_bias=not self.batch_norm, param_dtype=self.param_dtype, name=f"linear_{i}")(x)
            if self.batch_norm:
                x = normalise(self.param_dtype, f"norm_{i}")(x, not train)
            x = ACTIVATIONS[self.activation](x)
        return x


def mlp(
    widths: Sequence[int] = (256, 256, 64),
    num_classes: int = 10,
    *,
    activation: str = "relu",
    batch_norm: bool = False,
    initialiser: Initialiser | None = LECUN_NORMAL,
    use_bias: bool = True,
    param_dtype: Any = jnp.float32,
) -> Network:
    """A fully connected network; the last of `widths` is the number of features.

    Raises:
        ValueError: no width, a width that is no whole number or below 1, or an unknown activation.
    """
    if isinstance(widths, str) or not isinstance(widths, Iterable):
        raise ValueError(f"widths: expected a list of whole numbers, got {widths!r}; write one width as (64,).")
    widths = tuple(widths)
    if not widths:
        raise ValueError("widths: expected at least one hidden width, the last of them the number of features; got ().")
    check_whole("widths", *widths)
    check_choice("activation", activation, ACTIVATIONS)
    trunk = MLPTrunk(widths, activation, batch_norm, param_dtype)
    return Network(trunk, num_classes, initialiser, use_bias, param_dtype)
