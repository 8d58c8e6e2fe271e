"""Residual networks for small images (He et al. 2016, section 4.2)."""

from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ntkcollapse._checks import check_choice, check_momentum, check_whole
from ntkcollapse.networks.initialisers import LECUN_NORMAL, Initialiser
from ntkcollapse.networks.network import Network
from ntkcollapse.networks.normalisation import batch_norm

SHORTCUTS = ("projection", "padding")


class ResNetTrunk(nn.Module):
    """3×3 convolution to 16 channels, three stages of `blocks` two-convolution blocks, mean over positions."""

    blocks: int
    widths: tuple[int, ...] = (16, 32, 64)
    shortcut: str = "projection"
    momentum: float = 0.9
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        def conv(x, width, name, size=3, stride=1, bias=False):
            layer = nn.Conv(width, (size, size), stride, use_bias=bias, param_dtype=self.param_dtype, name=name)
            return layer(x)

        def norm(x, name):
            return batch_norm(self.param_dtype, name, self.momentum)(x, not train)

        x = nn.relu(norm(conv(x, self.widths[0], "conv"), "norm"))
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                at = f"stage{stage}_block{block}"
                stride = 2 if stage > 0 and block == 0 else 1
                z = nn.relu(norm(conv(x, width, f"{at}_conv0", stride=stride), f"{at}_norm0"))
                z = norm(conv(z, width, f"{at}_conv1"), f"{at}_norm1")
                if stride == 2 and self.shortcut == "projection":
                    x = conv(x, width, f"{at}_shortcut", size=1, stride=2, bias=True)
                elif stride == 2:
                    missing = width - x.shape[-1]
                    x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))
                x = nn.relu(x + z)
        return x.mean((1, 2))


def resnet20(
    num_classes: int = 10,
    *,
    shortcut: str = "projection",
    momentum: float = 0.9,
    initialiser: Initialiser | None = LECUN_NORMAL,
    use_bias: bool = True,
    param_dtype: Any = jnp.float32,
) -> Network:
    """The residual network of 20 layers with 64 features.

    Args:
        num_classes: C.
        shortcut: where the resolution halves: "projection", a 1×1 convolution with bias, as the paper of the block
            structure has it in its scripts; or "padding" with zeros, as the published network for CIFAR-10, which has
            no parameters there (269,722 in all for three input channels and ten classes).
        momentum: of the running averages of batch normalisation; the paper's scripts have 0.99 here.
    Raises:
        ValueError: an unknown shortcut, or a momentum outside [0, 1).
    """
    check_choice("shortcut", shortcut, SHORTCUTS)
    check_momentum(momentum)
    trunk = ResNetTrunk(3, shortcut=shortcut, momentum=momentum, param_dtype=param_dtype)
    return Network(trunk, num_classes, initialiser, use_bias, param_dtype)


def resnet8(
    num_classes: int = 10,
    *,
    widths: Sequence[int] = (8, 16, 32),
    shortcut: str = "projection",
    momentum: float = 0.9,
    initialiser: Initialiser | None = LECUN_NORMAL,
    use_bias: bool = True,
    param_dtype: Any = jnp.float32,
) -> Network:
    """A residual network of one block a stage, 8 layers with three stages; as `resnet20` otherwise.

    Args:
        num_classes: C.
        widths: channels of the stages, each of which but the first halves the images; the last are the features.
        shortcut, momentum: as of `resnet20`.
    Raises:
        ValueError: no width, a width that is no whole number or below 1, an unknown shortcut, or a momentum outside
            [0, 1).
    """
    if isinstance(widths, str) or not isinstance(widths, Iterable) or not tuple(widths):
        raise ValueError(f"widths: expected a list of whole numbers, one at least, got {widths!r}; write one as (64,).")
    check_whole("widths", *widths)
    check_choice("shortcut", shortcut, SHORTCUTS)
    check_momentum(momentum)
    trunk = ResNetTrunk(1, tuple(widths), shortcut, momentum, param_dtype)
    return Network(trunk, num_classes, initialiser, use_bias, param_dtype)
