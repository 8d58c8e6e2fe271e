"""A zoo of small networks in several frameworks, each in float64 and with a twin as a plain function of its numbers."""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from ntkcollapse import networks
from ntkcollapse.networks import OwnNetwork

DOUBLE = jnp.float64
C, TOKENS, WIDTH = 3, 4, 6
LABELS = np.repeat(np.arange(C), 4)


class Case(NamedTuple):
    """A network, inputs for it, and h, f written out again as functions of its parameters (state as measured)."""

    network: OwnNetwork
    x: np.ndarray
    twin: Callable[[Any, Any], tuple[Any, Any]] | None = None


def inputs(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(LABELS), *shape))


class NNXPerceptron(nnx.Module):
    """Batch normalisation, dropout, and a list of layers."""

    def __init__(self, rngs, dtype: Any = DOUBLE):
        self.first = nnx.Linear(5, WIDTH, rngs=rngs, param_dtype=dtype)
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs, param_dtype=dtype)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.middle = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs, param_dtype=dtype)])
        self.head = nnx.Linear(WIDTH, C, rngs=rngs, param_dtype=dtype)

    def __call__(self, x):
        x = self.dropout(nnx.tanh(self.norm(self.first(x))))
        for layer in self.middle:
            x = nnx.tanh(layer(x))
        return self.head(x)


class NNXAttention(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(
            2, WIDTH, rngs=rngs, decode=False, dropout_rate=0.2, param_dtype=DOUBLE, dtype=DOUBLE
        )
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs, param_dtype=DOUBLE)
        self.head = nnx.Linear(WIDTH, C, rngs=rngs, param_dtype=DOUBLE)

    def __call__(self, x):
        return self.head(self.norm(x + self.attention(x)).mean(1))


class NNXEmbedding(nnx.Module):
    """Sequences of whole numbers."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(7, WIDTH, rngs=rngs, param_dtype=DOUBLE)
        self.head = nnx.Linear(WIDTH, C, rngs=rngs, param_dtype=DOUBLE)

    def __call__(self, x):
        return self.head(nnx.tanh(self.embed(x)).mean(1))


class LinenConvolutional(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(4, (3, 3), param_dtype=DOUBLE)(x)
        x = nn.tanh(nn.BatchNorm(use_running_average=not train, param_dtype=DOUBLE)(x))
        x = nn.Dropout(0.4, deterministic=not train)(x)
        return nn.Dense(C, use_bias=False, param_dtype=DOUBLE, name="head")(x.mean((1, 2)))


class LinenRecurrent(nn.Module):
    """A recurrent layer, whose last state is read; jitted inside."""

    @nn.compact
    def __call__(self, x):
        states: Any = nn.RNN(nn.GRUCell(WIDTH, param_dtype=DOUBLE))(x)
        return nn.jit(nn.Dense)(C, param_dtype=DOUBLE)(states[:, -1])


class EquinoxPerceptron(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, key, mode: Any = "batch", dtype: Any = DOUBLE):
        first, head = jax.random.split(key)
        self.first = eqx.nn.Linear(5, WIDTH, key=first, dtype=dtype)
        self.norm = eqx.nn.BatchNorm(WIDTH, "batch", mode=mode, dtype=dtype)
        self.dropout = eqx.nn.Dropout(0.3)
        self.head = eqx.nn.Linear(WIDTH, C, key=head, dtype=dtype)

    def __call__(self, x, state, *, key=None):
        x, state = self.norm(self.first(x), state)
        return self.head(self.dropout(jnp.tanh(x), key=key)), state


class EquinoxRecurrent(eqx.Module):
    cell: eqx.nn.GRUCell
    head: eqx.nn.Linear

    def __init__(self, key):
        cell, head = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(WIDTH, WIDTH, key=cell, dtype=DOUBLE)
        self.head = eqx.nn.Linear(WIDTH, C, key=head, dtype=DOUBLE)

    def __call__(self, x):
        start = jnp.zeros(WIDTH, DOUBLE)
        return self.head(jax.lax.scan(lambda h, row: (self.cell(row, h), None), start, x)[0])


class EquinoxAttention(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    head: eqx.nn.Linear

    def __init__(self, key):
        attention, head = jax.random.split(key)
        self.attention = eqx.nn.MultiheadAttention(2, WIDTH, key=attention, dtype=DOUBLE)
        self.head = eqx.nn.Linear(WIDTH, C, use_bias=False, key=head, dtype=DOUBLE)

    def __call__(self, x):
        return self.head(jnp.mean(self.attention(x, x, x), axis=0))


def _plain(params, x):
    return jnp.tanh(x @ params["first"]["A"].T) @ params["head"]["W"].T + params["head"]["b"][None, :]


def _plain_twin(params, x):
    h = jnp.tanh(x @ params["first"]["A"].T)
    return h, h @ params["head"]["W"].T + params["head"]["b"][None, :]


def _pair(training: bool):
    def f(params, state, x):
        z = x @ params["A"].T
        mean = z.mean(0) if training else state["mean"]
        moved = {"mean": 0.9 * state["mean"] + 0.1 * z.mean(0)} if training else state
        return jnp.tanh(z - mean[None, :]) @ params["W"].T, moved

    return f


def _pair_twin(params, x):
    h = jnp.tanh(x @ params["A"].T - 0.25)
    return h, h @ params["W"].T


def _linen_twin(params, x):
    z = jax.lax.conv_general_dilated(
        x, params["Conv_0"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    norm = params["BatchNorm_0"]
    # Running averages as they begin, 0 and 1.
    z = (z + params["Conv_0"]["bias"]) / np.sqrt(1 + 1e-5) * norm["scale"] + norm["bias"]
    h = jnp.tanh(z).mean((1, 2))
    return h, h @ params["head"]["kernel"]


def _nnx_twin(params, x):
    z = (x @ params["first/kernel"] + params["first/bias"]) / np.sqrt(1 + 1e-5)
    h = jnp.tanh(z * params["norm/scale"] + params["norm/bias"])
    h = jnp.tanh(h @ params["middle/0/kernel"] + params["middle/0/bias"])
    return h, h @ params["head/kernel"] + params["head/bias"]


def _embedding_twin(params, x):
    h = jnp.tanh(params["embed/embedding"][x]).mean(1)
    return h, h @ params["head/kernel"] + params["head/bias"]


def _equinox_twin(params, x):
    # Averages as they begin, 0 and 1.
    z = (x @ params["first/weight"].T + params["first/bias"]) / np.sqrt(1 + 1e-5)
    h = jnp.tanh(z * params["norm/weight"] + params["norm/bias"])
    return h, h @ params["head/weight"].T + params["head/bias"]


def _numbers(seed: int, *shape: int):
    return np.random.default_rng(seed).normal(size=shape) / shape[-1] ** 0.5


def cases() -> dict[str, Callable[[], Case]]:
    """Name → how the case is made."""
    key = jax.random.key(1)

    def linen_convolutional():
        x, module = inputs(4, 4, 2), LinenConvolutional()
        with jax.numpy_dtype_promotion("standard"):
            variables = module.init(key, x, train=False)
        return Case(networks.of(module, x, variables), x, _linen_twin)

    def haiku_convolutional():
        import haiku as hk  # pyright: ignore[reportMissingImports]: an extra

        def forward(x, is_training):
            x = jnp.tanh(hk.BatchNorm(True, True, 0.9)(hk.Conv2D(4, 3)(x), is_training))
            return hk.Linear(C)(x.mean((1, 2)))

        x, f = inputs(4, 4, 2), hk.transform_with_state(forward)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            # Haiku begins with the averages of what it is drawn with.
            params, state = f.init(key, 2 * x + 1, is_training=True)
        return Case(networks.of(f, x, params, state), x)

    def equinox_perceptron():
        x = inputs(5)
        module, state = eqx.nn.make_with_state(EquinoxPerceptron)(key)
        return Case(networks.of(module, x, state=state), x, _equinox_twin)

    def of(model, x, *more, twin=None):
        return lambda: Case(networks.of(model(), x, *more), x, twin)

    params = {"first": {"A": _numbers(1, WIDTH, 5)}, "head": {"W": _numbers(2, C, WIDTH), "b": _numbers(3, C)}}
    state = {"mean": np.full(WIDTH, 0.25)}
    paired = {"A": _numbers(1, WIDTH, 5), "W": _numbers(2, C, WIDTH)}
    sequences = inputs(TOKENS, WIDTH)
    haiku = {"haiku-convolutional": haiku_convolutional} if importlib.util.find_spec("haiku") else {}
    return haiku | {
        "nnx-perceptron": of(lambda: NNXPerceptron(nnx.Rngs(0)), inputs(5), twin=_nnx_twin),
        "nnx-embedding": of(
            lambda: NNXEmbedding(nnx.Rngs(0)),
            np.random.default_rng(0).integers(0, 7, (len(LABELS), TOKENS)),
            twin=_embedding_twin,
        ),
        "nnx-attention": of(lambda: NNXAttention(nnx.Rngs(0)), sequences),
        "linen-convolutional": linen_convolutional,
        "linen-recurrent": of(LinenRecurrent, sequences),
        "equinox-perceptron": equinox_perceptron,
        "equinox-attention": of(lambda: EquinoxAttention(key), sequences),
        "equinox-recurrent": of(lambda: EquinoxRecurrent(key), sequences),
        "function": of(lambda: _plain, inputs(5), params, twin=_plain_twin),
        "pair": of(lambda: (_pair(True), _pair(False)), inputs(5), paired, state, twin=_pair_twin),
    }
