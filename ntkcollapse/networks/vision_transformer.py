"""A small vision transformer (Dosovitskiy et al. 2021): does the block structure hold for attention?"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ntkcollapse._checks import check_whole
from ntkcollapse.networks.initialisers import LECUN_NORMAL, Initialiser
from ntkcollapse.networks.network import Network


class VisionTransformerTrunk(nn.Module):
    """Patches, learned positions, `depth` pre-normalised blocks, normalisation, mean over patches.

    All weights are plain matrices ("kernel"), so that initialisers and engines meet nothing but linear layers.
    """

    width: int
    depth: int
    heads: int
    patch: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        def linear(x, width, name):
            return nn.Dense(width, param_dtype=self.param_dtype, name=name)(x)

        def norm(x, name):
            single = jnp.dtype(self.param_dtype) == jnp.float32
            return nn.LayerNorm(param_dtype=self.param_dtype, force_float32_reductions=single, name=name)(x)

        N, height, width, channels = x.shape
        p = self.patch
        if height % p or width % p:
            raise ValueError(f"patch: expected a divisor of the images' {height} × {width} pixels, got {p}.")
        x = x.reshape(N, height // p, p, width // p, p, channels).transpose(0, 1, 3, 2, 4, 5)
        x = linear(x.reshape(N, -1, p * p * channels), self.width, "patches")
        positions = self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]), self.param_dtype)
        x = x + jnp.broadcast_to(positions, x.shape)
        for block in range(self.depth):
            at = f"block{block}"
            z = norm(x, f"{at}_norm0")
            q, k, v = (
                linear(z, self.width, f"{at}_{part}").reshape(N, -1, self.heads, self.width // self.heads)
                for part in ("query", "key", "value")
            )
            weights = nn.softmax(jnp.einsum("nihd,njhd->nhij", q, k) / math.sqrt(q.shape[-1]))
            z = jnp.einsum("nhij,njhd->nihd", weights, v).reshape(N, -1, self.width)
            x = x + linear(z, self.width, f"{at}_out")
            z = nn.gelu(linear(norm(x, f"{at}_norm1"), 4 * self.width, f"{at}_linear0"))
            x = x + linear(z, self.width, f"{at}_linear1")
        return norm(x, "norm").mean(1)


def vision_transformer(
    num_classes: int = 10,
    *,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    patch: int = 4,
    initialiser: Initialiser | None = LECUN_NORMAL,
    use_bias: bool = True,
    param_dtype: Any = jnp.float32,
) -> Network:
    """A transformer with `width` features; layer normalisation only, so samples are never coupled.

    Raises:
        ValueError: a number that is not whole or below 1, or heads that do not divide the width; at initialisation, a
            patch that does not divide the images.
    """
    for name, value in (("width", width), ("depth", depth), ("heads", heads), ("patch", patch)):
        check_whole(name, value)
    if width % heads:
        raise ValueError(f"heads: expected a divisor of the width {width}, got {heads}.")
    trunk = VisionTransformerTrunk(width, depth, heads, patch, param_dtype)
    return Network(trunk, num_classes, initialiser, use_bias, param_dtype)
