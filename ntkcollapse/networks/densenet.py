"""Densely connected networks (Huang et al. 2017)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ntkcollapse._checks import check_choice, check_momentum
from ntkcollapse.networks.initialisers import LECUN_NORMAL, Initialiser
from ntkcollapse.networks.network import Network
from ntkcollapse.networks.normalisation import batch_norm

# form → layers a block, width of the bottleneck in units of growth (0: none), initial channels, compression.
_FORMS = {"seleznova2023": (6, 2, 24, 0.5), "huang2017": (12, 0, 16, 1.0)}


class DenseNetTrunk(nn.Module):
    """Three dense blocks, each layer's output joined to all before; normalisation, mean over positions."""

    layers: int
    growth: int
    bottleneck: int
    initial: int
    compression: float
    momentum: float = 0.9
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        def conv(x, width, name, size):
            return nn.Conv(width, (size, size), use_bias=False, param_dtype=self.param_dtype, name=name)(x)

        def norm(x, name):
            return nn.relu(batch_norm(self.param_dtype, name, self.momentum)(x, not train))

        x = conv(x, self.initial, "conv", 3)
        for block in range(3):
            for layer in range(self.layers):
                at = f"block{block}_layer{layer}"
                z = norm(x, f"{at}_norm0")
                if self.bottleneck:
                    z = norm(conv(z, self.bottleneck * self.growth, f"{at}_conv0", 1), f"{at}_norm1")
                x = jnp.concatenate([x, conv(z, self.growth, f"{at}_conv1", 3)], axis=-1)
            if block < 2:
                x = norm(x, f"transition{block}_norm")
                x = conv(x, int(x.shape[-1] * self.compression), f"transition{block}_conv", 1)
                N, height, width, channels = x.shape
                x = x[:, : height // 2 * 2, : width // 2 * 2]
                x = x.reshape(N, height // 2, 2, width // 2, 2, channels).mean((2, 4))
        return norm(x, "norm").mean((1, 2))


def densenet40(
    num_classes: int = 10,
    *,
    form: str = "seleznova2023",
    momentum: float = 0.9,
    initialiser: Initialiser | None = LECUN_NORMAL,
    use_bias: bool = True,
    param_dtype: Any = jnp.float32,
) -> Network:
    """DenseNet of 40 layers with growth 12, in the form of the block-structure paper's scripts or of its own paper.

    | form | layers a block | initial channels | transitions | features |
    |---|---|---|---|---|
    | "seleznova2023" | 6, each 1×1 to 24 channels, then 3×3 to 12 | 24 | halve the channels | 132 |
    | "huang2017" | 12, each 3×3 to 12 | 16 | keep them | 448 |

    The features follow from the rest: 24 + 72 = 96, halved 48 + 72 = 120, halved 60 + 72 = 132. The scripts name 184
    for CIFAR-10; what they build has 132 there too, since the input's channels do not enter.

    Args:
        num_classes: C.
        form: see above.
        momentum: of the running averages of batch normalisation; the paper's scripts have 0.99 here.
    Raises:
        ValueError: an unknown form, or a momentum outside [0, 1).
    """
    check_choice("form", form, _FORMS)
    check_momentum(momentum)
    layers, bottleneck, initial, compression = _FORMS[form]
    trunk = DenseNetTrunk(layers, 12, bottleneck, initial, compression, momentum, param_dtype)
    return Network(trunk, num_classes, initialiser, use_bias, param_dtype)
