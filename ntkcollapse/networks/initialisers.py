"""Initial weights by name, drawn for the parameters of any flax network."""

import math

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ntkcollapse._checks import check_choice, check_positive
from ntkcollapse.choices import INITIALISERS

LAST_LAYER = "last_layer"

# fan-in: inputs that one output sums over; fan-out: outputs that one input enters. For convolutions both count the
# positions of the window.
lecun_normal = nn.initializers.lecun_normal()
uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Initialiser(eqx.Module):
    r"""Independent weights of mean zero, with a scale for all layers and one more for the last.

    | name | weights | biases |
    |---|---|---|
    | "lecun-normal" | normal, cut at two standard deviations, variance 1/fan-in | 0 |
    | "uniform" | uniform on ±1/√fan-in (what PyTorch does by default), variance 1/(3 fan-in) | the same |
    | "he-normal" | normal, variance 2/fan-out | 0 |

    The variances are those after cutting. The paper's scripts call "torch" something else than PyTorch's default: there
    dense and 1×1 weights are √3 times wider and 3×3 weights √3 times narrower than here, and biases of the last layer
    are uniform on [0, 1/√n]. Scales multiply weights and biases; the scale and shift of normalisations
    and anything else that is not a weight or the bias beside it stay as the network made them.

    Raises:
        ValueError: an unknown name, or a scale not above zero.
    """

    name: str = eqx.field(static=True, default="lecun-normal")
    scale: float = eqx.field(static=True, default=1.0)
    last_layer_scale: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        check_choice("name", self.name, INITIALISERS)
        check_positive("scale", self.scale)
        check_positive("last_layer_scale", self.last_layer_scale)

    def __call__(self, key: PRNGKeyArray, params: PyTree) -> PyTree:
        """New values for every weight ("kernel", fans along its last two axes) and bias of flax parameters."""

        def redraw(layer, path: tuple[str, ...], key):
            if not isinstance(layer, dict):
                return layer
            keys = dict(zip(sorted(layer), jax.random.split(key, max(len(layer), 1)), strict=False))
            new = {name: redraw(part, (*path, name), keys[name]) for name, part in layer.items()}
            if "kernel" in layer:
                scale = self.scale * (self.last_layer_scale if path[-1:] == (LAST_LAYER,) else 1.0)
                new["kernel"] = scale * self._kernel(keys["kernel"], layer["kernel"])
                if "bias" in layer:
                    new["bias"] = scale * self._bias(keys["bias"], layer["bias"], layer["kernel"])
            return new

        return redraw(params, (), key)

    def _kernel(self, key, kernel: Float[Array, "..."]) -> Float[Array, "..."]:
        return INITIALISERS[self.name](key, kernel.shape, kernel.dtype)

    def _bias(self, key, bias: Float[Array, " out"], kernel: Float[Array, "..."]) -> Float[Array, " out"]:
        if self.name != "uniform":
            return jnp.zeros_like(bias)
        bound = 1 / math.sqrt(math.prod(kernel.shape[:-1]))
        return jax.random.uniform(key, bias.shape, bias.dtype, -bound, bound)


LECUN_NORMAL = Initialiser("lecun-normal")
