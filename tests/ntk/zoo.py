"""Small networks that between them have every way in which a parameter meets data, and their dense NTK."""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

NHWC = ("NHWC", "HWIO", "NHWC")


@dataclasses.dataclass(frozen=True)
class Case:
    f: Callable
    params: Any
    x: np.ndarray

    def jacobian(self) -> np.ndarray:
        """(N, K, P) by `jax.jacobian`, column blocks in the order of the parameters' leaves."""
        J = jax.jit(jax.jacobian(self.f))(self.params, self.x)
        N, K = jax.tree.leaves(J)[0].shape[:2]
        return np.concatenate([np.asarray(leaf).reshape(N, K, -1) for leaf in jax.tree.leaves(J)], axis=2)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def plain():
    """Layers by hand: bias, a weight used transposed, a normalised weight, scalars, an unused parameter."""
    params = {
        "w": normal(0, 6, 5),
        "bias": normal(1, 5),
        "transposed": normal(2, 4, 5),
        "direction": normal(3, 4, 3),
        "length": normal(4, 3),
        "scale": np.asarray(0.7),
        "shift": np.asarray(0.2),
        "unused": normal(5, 7),
        "constant_output": normal(6, 3),
    }

    def f(p, x):
        h = jnp.tanh(x @ p["w"] + p["bias"][None, :])
        h = jnp.sin(h @ p["transposed"].T * p["scale"] + p["shift"])
        weight = p["direction"] / jnp.linalg.norm(p["direction"], axis=0, keepdims=True) * p["length"][None, :]
        return h @ weight + jnp.broadcast_to(p["constant_output"], (x.shape[0], 3))

    return Case(f, params, normal(7, 5, 6))


def convolutions():
    """Stride, uneven padding, groups, depthwise with dilation, transposed convolution, max pooling, large window."""
    params = {
        "strided": normal(0, 3, 2, 2, 4),
        "grouped": normal(1, 2, 2, 2, 6),
        "depthwise": normal(2, 3, 3, 1, 6),
        "transposed": normal(3, 2, 2, 6, 2),
        "large": normal(4, 9, 8, 2, 2) / 5,
        "dense": normal(5, 8, 3),
    }

    def conv(x, w, stride, padding, **options):
        return lax.conv_general_dilated(x, w, stride, padding, dimension_numbers=NHWC, **options)

    def f(p, x):
        h = jnp.tanh(conv(x, p["strided"], (2, 1), [(1, 0), (0, 2)]))
        h = jnp.tanh(conv(h, p["grouped"], (1, 1), "SAME", feature_group_count=2))
        h = jnp.tanh(conv(h, p["depthwise"], (1, 1), "SAME", rhs_dilation=(2, 1), feature_group_count=6))
        h = nn.max_pool(h, (2, 2), (2, 2))
        h = jnp.tanh(conv(h, p["transposed"], (1, 1), [(1, 1), (1, 2)], lhs_dilation=(2, 2)))
        h = conv(h, p["large"], (1, 1), [(4, 4), (4, 3)])
        return h[:, :2, :2].reshape(x.shape[0], -1) @ p["dense"]

    return Case(f, params, normal(6, 4, 8, 7, 2))


def normalised():
    """Flax: batch normalisation in evaluation mode, group norm, residual and dense connections, one layer twice."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.Conv(4, (3, 3), param_dtype=float)(x)
            h = nn.relu(nn.BatchNorm(use_running_average=True, param_dtype=float, force_float32_reductions=False)(h))
            shared = nn.Conv(4, (3, 3), param_dtype=float, use_bias=False)
            h = h + nn.gelu(shared(h))
            h = nn.GroupNorm(num_groups=2, param_dtype=float, force_float32_reductions=False)(h + shared(h))
            h = jnp.concatenate([h, nn.Conv(2, (1, 1), param_dtype=float)(h)], axis=-1)
            return nn.Dense(3, param_dtype=float)(h.mean((1, 2)))

    network, x = Network(), normal(0, 4, 4, 4, 2)
    variables = network.init(jax.random.key(0), x)
    stats = jax.tree.map(lambda v: v + 0.3, variables["batch_stats"])
    return Case(lambda p, x: network.apply({"params": p, "batch_stats": stats}, x), variables["params"], x)


def attention():
    """Flax: embeddings, layer norm, self-attention; tokens come as integers."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            embedding = nn.Embed(7, 4, param_dtype=float)
            h = embedding(tokens) + nn.Embed(7, 4, param_dtype=float)(tokens[:, ::-1])
            h = h + self.param("position", nn.initializers.normal(1.0), (1, tokens.shape[1], 4), float)
            h = nn.LayerNorm(param_dtype=float, force_float32_reductions=False)(h)
            h = h + nn.MultiHeadDotProductAttention(num_heads=2, param_dtype=float)(h)
            return embedding.attend(h.mean(1))[:, :3]

    network = Network()
    tokens = np.random.default_rng(0).integers(0, 7, size=(4, 5))
    return Case(lambda p, x: network.apply({"params": p}, x), network.init(jax.random.key(0), tokens)["params"], tokens)


def unusual():
    """What no rule knows: a recurrence, a rule of differentiation of one's own, recomputation, tied weights."""

    @jax.custom_vjp
    def doubled_back(w, x):
        return x @ w

    # The cotangent of w is doubled on purpose: an engine that looked inside would find another gradient.
    doubled_back.defvjp(lambda w, x: (x @ w, (w, x)), lambda r, ct: (2 * r[1].T @ ct, ct @ r[0].T))

    params = {
        "tied": normal(0, 4, 4),
        "own_rule": normal(1, 4, 4),
        "recurrent": normal(2, 4, 4) / 2,
        "mixed": normal(3, 2, 4, 4),
        "power": np.asarray([1.5, 2.0, 2.5]),
    }

    def f(p, x):
        h = jnp.tanh(x @ p["tied"] + (x @ p["tied"].T) ** 2)
        h = doubled_back(p["own_rule"], h)
        h, _ = lax.scan(lambda h, _: (jnp.tanh(h @ p["recurrent"]), None), h, length=3)
        h = jax.checkpoint(lambda p, h: jnp.tanh(jnp.einsum("ni,aij->naj", h, p["mixed"]).sum(1)))(p, h)
        return jnp.exp(h[:, :3]) ** p["power"][None, :]

    return Case(f, params, normal(4, 5, 4))


def recurrent():
    """Scans: a gated unit with biases, backwards in time, with a weight twice in a step, a loop in a step, what is the
    same at every step, and weights of each step.
    """
    params = {
        "gates": normal(0, 7, 8) / 2,
        "bias": normal(1, 12) / 2,
        "candidate": normal(2, 7, 4) / 2,
        "twice": normal(3, 4, 4) / 3,
        "within": normal(4, 4, 4) / 3,
        "steps": normal(5, 3, 4),
        "last": normal(6, 4, 3),
        "shift": normal(7, 3),
    }

    def f(p, x):
        def step(h, both):
            row, at = both
            z, r = jnp.split(jax.nn.sigmoid(jnp.concatenate([row, h], -1) @ p["gates"] + p["bias"][None, :8]), 2, -1)
            new = jnp.tanh(jnp.concatenate([row, r * h], -1) @ p["candidate"] + p["bias"][None, 8:] + at[None])
            h = (1 - z) * h + z * new
            h = h + jnp.tanh(h @ p["twice"]) @ p["twice"].T + jnp.sin(x[:, 0] @ p["last"].T)
            h, _ = lax.scan(lambda h, _: (jnp.tanh(h @ p["within"]), None), h, length=2)
            return h, h * at[None]

        start = jnp.zeros((x.shape[0], 4), x.dtype)
        h, all_h = lax.scan(step, start, (jnp.swapaxes(x, 0, 1), p["steps"]), reverse=True)
        return (h + all_h.sum(0)) @ p["last"] + p["shift"][None]

    return Case(f, params, normal(8, 5, 3, 3))


MAKERS = {m.__name__: m for m in (plain, convolutions, normalised, attention, unusual, recurrent)}


@cache
def case(name: str) -> Case:
    made = MAKERS[name]()
    return dataclasses.replace(made, params=jax.tree.map(jnp.asarray, made.params))


@cache
def dense_jacobian(name: str) -> np.ndarray:
    return case(name).jacobian()


@cache
def dense_ntk(name: str) -> np.ndarray:
    """(N, N, K, K)."""
    J = dense_jacobian(name)
    return np.einsum("ikp,jsp->ijks", J, J)
