"""Deep recursive feature machines: a network without gradient descent that collapses layer by layer."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse._checks import check_real, check_shape, check_whole
from ntkcollapse.collapse.agop import matrix_square_root
from ntkcollapse.collapse.rfm import kernel_regression


class DeepRFMLayer(NamedTuple):
    """x ↦ relu(W M^½ x/‖x‖): root = M^½ (n, n) with M the AGOP, weights = W (width, n)."""

    root: Float[Array, "n n"]
    weights: Float[Array, "width n"]


class DeepRFM(NamedTuple):
    """The layers of a deep RFM; nothing else is learnt."""

    layers: tuple[DeepRFMLayer, ...]

    def activations(self, x: Float[ArrayLike, "N n"]) -> dict[str, Float[Array, "N _"]]:
        """Inputs of every layer ("input 1", …, rows of norm 1), the same times M^½ ("metric 1", …), and the last
        output: for `layer_profile`."""
        x, activations = jnp.asarray(x), {}
        for i, layer in enumerate(self.layers, start=1):
            x = activations[f"input {i}"] = _normalised(x)
            z = activations[f"metric {i}"] = x @ layer.root
            x = _features(layer, z)
        return activations | {"output": _normalised(x)}

    def inputs(self, x: Float[ArrayLike, "N n"]) -> dict[str, Float[Array, "N _"]]:
        """Inputs of every layer and the last output, without the steps between."""
        return {name: value for name, value in self.activations(x).items() if not name.startswith("metric")}


def deep_rfm(
    x: Float[ArrayLike, "N n"],
    y: Float[ArrayLike, "N K"],
    *,
    key: jax.Array,
    depth: int = 8,
    width: int = 512,
    bandwidth: float = 2.0,
    ridge: float = 0.0,
) -> DeepRFM:
    r"""Kernel regression, AGOP, random features, and again, `depth` times.

    In each layer, on inputs scaled to norm 1:

        f = kernel regression of y (Laplace kernel),   M = AGOP of f,   x ← relu(W M^½ x),   W Gaussian

    The scaling keeps the bandwidth's meaning through the layers (its unit is the norm of an input; 2 is the largest
    distance there is). On images the ratio of within- to between-class scatter falls by a factor near one half in every
    layer; the step M^½ does it, and the random features give a little back.

    Args:
        x, y: rows; y one-hot labels.
        key: of the random weights.
        depth, width: layers, and random features of each.
        bandwidth: of the Laplace kernel, in units of the norm of an input.
        ridge: added to the kernel's diagonal; 0 interpolates.
    Returns:
        The layers; `DeepRFM.inputs` with `layer_profile` gives the collapse of each. Costs K N² n + N³ a layer.
    Raises:
        ValueError: shapes that disagree, an input of norm 0, a depth or width below 1; without ridge, two samples that
            a layer can no longer tell apart (in float64 that takes a collapse by 1e-15 of squared distances).
    References:
        Beaglehole, Súkeník, Mondelli & Belkin (2024).
    """
    check_real(x=x, y=y)
    x = jnp.asarray(x, dtype=jnp.result_type(float, x))
    check_shape("x", x, (None, None), "(N samples, n features), one row a sample")
    for name, value in (("depth", depth), ("width", width)):
        check_whole(name, value)
    if float(jnp.linalg.norm(x, axis=1).min()) == 0:
        raise ValueError("x: expected inputs that can be scaled to norm 1, got one of norm 0; leave it out.")
    layers = []
    for step in range(depth):
        x = _normalised(x)
        root = matrix_square_root(kernel_regression(x, y, bandwidth=bandwidth, ridge=ridge).agop())
        weights = jax.random.normal(jax.random.fold_in(key, step), (width, x.shape[1]), x.dtype)
        layers.append(DeepRFMLayer(root, weights / math.sqrt(x.shape[1])))
        x = _features(layers[-1], x @ root)
    return DeepRFM(tuple(layers))


def _normalised(x: Float[Array, "N n"]) -> Float[Array, "N n"]:
    norms = jnp.linalg.norm(x, axis=1, keepdims=True)
    return x / jnp.where(norms > 0, norms, 1)


def _features(layer: DeepRFMLayer, z: Float[Array, "N n"]) -> Float[Array, "N width"]:
    return jax.nn.relu(z @ layer.weights.T)
