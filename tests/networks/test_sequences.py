"""The networks that read an image as a sequence, against their recurrence and their attention written in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit, softmax

from ntkcollapse.networks import network

X = np.random.default_rng(0).normal(size=(3, 4, 4, 1))


def made(name, **options):
    """A network in double precision with every weight and bias drawn, and its arrays."""
    net = network(name, num_classes=3, param_dtype=jnp.float64, **options)
    shapes = jax.eval_shape(net.init, jax.random.key(0), X).params
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes)
    return net, params, jax.tree.map(np.asarray, params)["trunk"]


def test_gru_is_its_recurrence():
    net, params, trunk = made("gru", width=5)
    (cell,) = trunk.values()

    def gate(name, x):
        return x @ cell[name]["kernel"] + cell[name].get("bias", 0)

    h = np.zeros((3, 5))
    for row in np.moveaxis(X[..., 0], 1, 0):
        reset, kept = (expit(gate(f"i{name}", row) + gate(f"h{name}", h)) for name in "rz")
        h = (1 - kept) * np.tanh(gate("in", row) + reset * gate("hn", h)) + kept * h
    np.testing.assert_allclose(net.features(params, X), h, rtol=1e-10)


def test_transformer_is_its_attention():
    net, params, trunk = made("vision-transformer", width=4, depth=1, heads=2, patch=2)

    def linear(x, name):
        return x @ trunk[name]["kernel"] + trunk[name]["bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-6) * trunk[name]["scale"] + trunk[name]["bias"]

    for image, feature in zip(X[..., 0], np.asarray(net.features(params, X)), strict=True):
        # Four patches, row by row.
        patches = np.stack([image[i : i + 2, j : j + 2].ravel() for i in (0, 2) for j in (0, 2)])
        x = linear(patches, "patches") + trunk["positions"][0]
        z = norm(x, "block0_norm0")
        q, k, v = (linear(z, f"block0_{part}") for part in ("query", "key", "value"))
        heads = [softmax(q[:, a] @ k[:, a].T / np.sqrt(2), axis=1) @ v[:, a] for a in (slice(0, 2), slice(2, 4))]
        x = x + linear(np.concatenate(heads, axis=1), "block0_out")
        z = linear(norm(x, "block0_norm1"), "block0_linear0")
        gelu = z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
        x = x + linear(gelu, "block0_linear1")
        np.testing.assert_allclose(feature, norm(x, "norm").mean(0), rtol=1e-9)
