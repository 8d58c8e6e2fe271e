"""VGG networks for 32×32 images, with batch normalisation and 256 features."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ntkcollapse._checks import check_momentum
from ntkcollapse.networks.initialisers import LECUN_NORMAL, Initialiser
from ntkcollapse.networks.network import Network
from ntkcollapse.networks.normalisation import batch_norm

_WIDTHS = (64, 128, 256, 512, 512)
_LAYERS = {"vgg11": (1, 1, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3)}


class VGGTrunk(nn.Module):
    """Five stages of 3×3 convolutions, each ended by a 2×2 maximum; two linear layers of `linear` units."""

    layers: tuple[int, ...]
    widths: tuple[int, ...] = _WIDTHS
    linear: tuple[int, ...] = (512, 256)
    momentum: float = 0.9
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        def norm(x, name):
            return nn.relu(batch_norm(self.param_dtype, name, self.momentum)(x, not train))

        if x.ndim == 4 and min(x.shape[1:3]) < 2 ** len(self.layers):
            raise ValueError(
                f"images: expected at least {2 ** len(self.layers)} pixels a side for {len(self.layers)} halvings, got "
                f"{x.shape[1]} × {x.shape[2]}; resize them."
            )
        for stage, (count, width) in enumerate(zip(self.layers, self.widths, strict=True)):
            for layer in range(count):
                at = f"stage{stage}_layer{layer}"
                x = nn.Conv(width, (3, 3), param_dtype=self.param_dtype, name=f"{at}_conv")(x)
                x = norm(x, f"{at}_norm")
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for layer, width in enumerate(self.linear):
            x = nn.Dense(width, param_dtype=self.param_dtype, name=f"linear{layer}")(x)
            x = norm(x, f"linear{layer}_norm")
        return x


def _vgg(layers, num_classes, momentum, initialiser, use_bias, param_dtype) -> Network:
    check_momentum(momentum)
    trunk = VGGTrunk(layers, momentum=momentum, param_dtype=param_dtype)
    return Network(trunk, num_classes, initialiser, use_bias, param_dtype)


def vgg11(
    num_classes: int = 10,
    *,
    momentum: float = 0.9,
    initialiser: Initialiser | None = LECUN_NORMAL,
    use_bias: bool = True,
    param_dtype: Any = jnp.float32,
) -> Network:
    """VGG11 for 32×32 images (configuration A of Simonyan and Zisserman 2015, with the paper's linear layers).

    Every layer but the last is followed by batch normalisation; the two hidden linear layers have 512 and 256 units
    in place of 4,096.

    Raises:
        ValueError: a momentum outside [0, 1); at initialisation, images smaller than 32×32, of which five halvings
            leave nothing.
    """
    return _vgg(_LAYERS["vgg11"], num_classes, momentum, initialiser, use_bias, param_dtype)


def vgg16(
    num_classes: int = 10,
    *,
    momentum: float = 0.9,
    initialiser: Initialiser | None = LECUN_NORMAL,
    use_bias: bool = True,
    param_dtype: Any = jnp.float32,
) -> Network:
    """VGG16 for 32×32 images (configuration D of Simonyan and Zisserman 2015), otherwise as `vgg11`."""
    return _vgg(_LAYERS["vgg16"], num_classes, momentum, initialiser, use_bias, param_dtype)
