"""The kernel is a sum over the arrays that are trained: no Python numbers, no running statistics, each array once."""

# Stubs of flax nnx know nothing of the attributes that modules set themselves.
# pyright: reportAttributeAccessIssue=false

from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ntkcollapse import ntk
from tests.ntk.zoo import normal

X = normal(0, 6, 5)
LABELS = np.asarray([0, 1, 0, 1, 2, 2])
ENGINES = ["layerwise", "jacobian"]


@pytest.fixture(autouse=True)
def as_users_write():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def dense_ntk(f, params, x) -> np.ndarray:
    """(N, N, K, K) from `jax.jacrev` in all leaves."""
    jacobians = [np.asarray(j) for j in jax.tree.leaves(jax.jacrev(f)(params, jnp.asarray(x)))]
    flat = np.concatenate([j.reshape(*j.shape[:2], -1) for j in jacobians], axis=2)
    return np.einsum("ikp,jsp->ijks", flat, flat)


def check(f, params, expected, **options):
    theta = ntk.empirical_ntk(f, params, X, **options)
    np.testing.assert_allclose(theta, expected, atol=1e-10)


def check_every_way(f, params, expected):
    for engine in ENGINES:
        check(f, params, expected, engine=engine)
    statistics = ntk.block_statistics(f, params, X, LABELS, output_pairs=False)
    mean = np.einsum("ijkk->ij", expected) / expected.shape[-1]
    np.testing.assert_allclose(statistics.kernel.diagonal, np.diag(mean).mean(), atol=1e-10)
    v = normal(1, *expected.shape[1:3])
    product = ntk.NTKOperator(f, params, X)(v)
    np.testing.assert_allclose(product, np.einsum("ijks,js->ik", expected, v), atol=1e-10)


class Scaled(eqx.Module):
    weight: Any
    slope: float = 0.3

    def __call__(self, x):
        return self.slope * x @ self.weight + x[:, :2] * self.slope**2


def test_python_floats_are_no_parameters():
    weight = jnp.asarray(normal(2, 5, 2))
    expected = np.einsum("ij,ks->ijks", 0.3**2 * X @ X.T, np.eye(2))
    check_every_way(lambda module, x: module(x), Scaled(weight), expected)
    check(lambda p, x: p["slope"] * x @ p["w"], {"w": weight, "slope": 0.3}, expected)
    # An array of one number is one.
    slope = np.asarray(0.3)
    both = dense_ntk(lambda p, x: p["slope"] * x @ p["w"], {"w": weight, "slope": jnp.asarray(0.3)}, X)
    check(lambda p, x: p["slope"] * x @ p["w"], {"w": weight, "slope": slope}, both)
    with pytest.raises(ValueError, match=r"got none.*Python's own numbers are none .jnp.asarray makes arrays of them"):
        ntk.empirical_ntk(lambda p, x: p["slope"] * x @ p["w"], {"w": weight, "slope": 0.3}, X, parameters="slope")


def test_attention_of_equinox():
    """Its rate of dropout, 0.0, is asked for as a Python number."""
    attention = eqx.nn.MultiheadAttention(2, 6, key=jax.random.key(0), dtype=float)
    assert attention.dropout.p == 0.0
    x = normal(3, 4, 3, 6)

    def f(attention, x):
        return jax.vmap(lambda tokens: attention(tokens, tokens, tokens)[:, :2].mean(0))(x)

    arrays, rest = eqx.partition(attention, eqx.is_inexact_array)
    expected = dense_ntk(lambda arrays, x: f(eqx.combine(arrays, rest), x), arrays, x)
    for engine in ENGINES:
        np.testing.assert_allclose(ntk.empirical_ntk(f, attention, x, engine=engine), expected, atol=1e-10)


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(7, param_dtype=float)(x)
        x = nn.BatchNorm(use_running_average=True, param_dtype=float, force_float32_reductions=False)(x)
        return nn.Dense(2, param_dtype=float)(nn.tanh(x))


class State(NamedTuple):
    params: Any
    batch_stats: Any


def test_running_statistics_of_flax_are_no_parameters():
    variables = Normalised().init(jax.random.key(0), X)
    params, stats = variables["params"], jax.tree.map(lambda v: v + 0.3, variables["batch_stats"])
    variables = {"params": params, "batch_stats": stats}
    f = lambda variables, x: Normalised().apply(variables, x)  # noqa: E731
    expected = dense_ntk(lambda p, x: f({"params": p, "batch_stats": stats}, x), params, X)
    check_every_way(f, variables, expected)
    check(f, variables, expected, parameters="params")
    check(lambda state, x: f(state._asdict(), x), State(params, stats), expected)
    with pytest.raises(ValueError, match=r"got none.*nor are running statistics"):
        ntk.empirical_ntk(f, variables, X, parameters="batch_stats")
    # By themselves, and under a name of one's own, they are what was given.
    everything = dense_ntk(lambda p, x: f({"params": p[0], "batch_stats": p[1]}, x), (params, stats), X)
    check(lambda p, x: f({"params": p[0], "batch_stats": p[1]}, x), (params, stats), everything)


def test_state_of_equinox_is_no_parameter():
    class Net(eqx.Module):
        linear: eqx.nn.Linear
        norm: eqx.nn.BatchNorm

        def __call__(self, x, state):
            x, _ = self.norm(self.linear(x), state, inference=True)
            return jnp.tanh(x)

    def make(key):
        return Net(
            eqx.nn.Linear(5, 3, key=key, dtype=float), eqx.nn.BatchNorm(3, axis_name="b", mode="ema", dtype=float)
        )

    net, state = eqx.nn.make_with_state(make)(jax.random.key(0))
    _, state = jax.vmap(net.norm, axis_name="b", in_axes=(0, None), out_axes=(0, None))(jnp.asarray(X[:, :3]), state)
    f = lambda both, x: jax.vmap(both[0], in_axes=(0, None))(x, both[1])  # noqa: E731
    arrays, rest = eqx.partition(net, eqx.is_inexact_array)
    expected = dense_ntk(lambda arrays, x: f((eqx.combine(arrays, rest), state), x), arrays, X)
    check(f, (net, state), expected)


class Net(nnx.Module):
    """Batch normalisation, dropout, a list of layers and one layer under two names."""

    def __init__(self, rngs):
        self.first = nnx.Linear(5, 4, param_dtype=float, rngs=rngs)
        self.norm = nnx.BatchNorm(4, param_dtype=float, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(4, 4, param_dtype=float, rngs=rngs) for _ in range(2)])
        self.tied = self.blocks[0]

    def __call__(self, x):
        x = self.dropout(self.norm(self.first(x)))
        for block in (*self.blocks, self.tied):
            x = jnp.tanh(block(x))
        return x[:, :2]


@pytest.fixture
def net():
    net = Net(nnx.Rngs(0))
    net.norm.mean[...] = jnp.asarray(normal(4, 4), jnp.float32)
    net.eval()
    return net


def test_modules_of_flax_nnx(net):
    graph, params, rest = nnx.split(net, nnx.Param, ...)
    expected = dense_ntk(lambda p, x: nnx.merge(graph, p, rest)(x), params, X)
    f = lambda net, x: net(x)  # noqa: E731
    check_every_way(f, net, expected)
    check(lambda both, x: both["net"](x), {"net": net, "rate": 0.5}, expected)
    # Split by hand, with everything in one state or with parameters only.
    whole, state = nnx.split(net)
    check(lambda state, x: nnx.merge(whole, state)(x), state, expected)
    check(lambda p, x: nnx.merge(graph, p, rest)(x), params, expected)


def test_parts_of_a_module_of_flax_nnx(net):
    graph, params, rest = nnx.split(net, nnx.Param, ...)
    f = lambda net, x: net(x)  # noqa: E731
    for path in ("norm", "blocks/0", "first/kernel"):
        keys = [int(k) if k.isdigit() else k for k in path.split("/")]

        def with_part(part, x, keys=keys):
            flat = nnx.to_flat_state(params)
            new = [(at, part[at] if at in part else value) for at, value in flat]
            del keys
            return nnx.merge(graph, nnx.from_flat_state(new), rest)(x)

        part = {at: value for at, value in nnx.to_flat_state(params) if list(at[: len(keys)]) == keys}
        check(f, net, dense_ntk(with_part, part, X), parameters=path)
    with pytest.raises(ValueError, match="nor are running statistics"):
        ntk.empirical_ntk(f, net, X, parameters="norm/mean")


def test_modules_of_flax_nnx_are_compiled_once(net):
    traces = []

    def f(net, x):
        traces.append(None)
        return net(x)

    ntk.empirical_ntk(f, net, X)
    count = len(traces)
    net.first.kernel[...] = 2 * net.first.kernel[...]
    ntk.empirical_ntk(f, net, X)
    assert len(traces) == count


@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types")
def test_training_mode_of_flax_nnx(net):
    net.train()
    with pytest.raises(
        ValueError, match=r"f: the outputs of one sample change .* model\.eval\(\) of a flax nnx module"
    ):
        ntk.block_statistics(lambda net, x: net(x), net, X, LABELS)
    _, params, _ = nnx.split(net, nnx.Param, ...)

    def closed(params, x):
        nnx.update(net, params)
        return net(x)

    with pytest.raises(ValueError, match=r"f: expected a pure function, it changes the state .* model\.eval\(\)"):
        ntk.empirical_ntk(closed, params, X)
