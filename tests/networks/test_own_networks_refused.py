"""Networks that are no W h(x) + b, or not in evaluation mode: what is said of them, in the words of their framework."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from ntkcollapse import networks
from tests.networks.own_networks import EquinoxPerceptron, NNXPerceptron, inputs

X = inputs(5)
KEY = jax.random.key(0)


def numbers(*shape: int):
    return np.random.default_rng(len(shape)).normal(size=shape)


A, W, B = numbers(5, 6), numbers(6, 3), numbers(3)


def hidden(p, x):
    return jnp.tanh(x @ p["A"])


@pytest.mark.parametrize(
    ("f", "said"),
    [
        (lambda p, x: jax.nn.softmax(hidden(p, x) @ p["W"]), r"a division \(a softmax.*end with its logits"),
        (lambda p, x: jax.nn.log_softmax(hidden(p, x) @ p["W"]), r"a difference \(a log-softmax"),
        (lambda p, x: jnp.tanh(hidden(p, x) @ p["W"]), "the operation 'tanh' behind the last one"),
        (lambda p, x: jax.nn.relu(hidden(p, x) @ p["W"]), "a non-linearity behind the last one"),
        (lambda p, x: 2.0 * (hidden(p, x) @ p["W"]), r"a factor \(a scale"),
        (lambda p, x: hidden(p, x) @ p["W"] + x[:, :3], "a sum of two branches that both depend on the inputs"),
        (lambda p, x: x[:, :3], "the operation 'slice' behind the last one"),
        (lambda p, x: hidden(p, x) @ (p["W"] / jnp.linalg.norm(p["W"])), "to be a parameter itself.*a division"),
        (lambda p, x: hidden(p, x) @ jnp.asarray(W), "to be a parameter itself.*a constant"),
        (
            lambda p, x: jnp.einsum("ni,mi->nm", hidden(p, x), hidden(p, x[:1]).repeat(3, 0)),
            "two values that both depend on",
        ),
        (
            lambda p, x: jnp.einsum("nij,ijc->nc", hidden(p, x).reshape(-1, 2, 3), p["W3"]),
            "more than one axis a sample",
        ),
        (lambda p, x: (hidden(p, x)[:, None, :].repeat(2, 1) @ p["W"]).mean(1), "a (division|sum|factor)"),
        (lambda p, x: hidden(p, hidden(p, x) @ p["W"] @ p["V"]) @ p["W"], "'W' is shared with another part"),
        (lambda p, x: (hidden(p, x) @ p["W"]).T, r"got \(3, 2\) for N = 2; these are transposed: one row a sample"),
        (lambda p, x: (hidden(p, x) @ p["W"])[:, 0], r"expected logits of shape \(N, C\), got \(2,\)"),
        (lambda p, x: (hidden(p, x) @ p["W"])[:, :1], "at least 2 classes"),
        (lambda p, x: p["b"][None, :] + jnp.zeros((x.shape[0], 3)), "depend on the inputs, got such as do not"),
        (lambda p, x: ((x - x.mean(0)[None]) @ p["A"]) @ p["W"], r"do not depend on one another.*pair \(training"),
        (lambda p, x: {"logits": hidden(p, x) @ p["W"]}, "expected one array of logits, got dict"),
    ],
)
def test_functions_without_a_last_layer(f, said):
    params = {"A": A, "V": numbers(3, 5), "W": W, "W3": numbers(2, 3, 3), "b": B}
    with pytest.raises(ValueError, match=said):
        networks.of(f, X, params)


def test_what_a_last_layer_may_look_like():
    """Orders of axes, types, compiled parts, checkpoints of activations: all of these are dense layers."""
    params = {"A": A, "W": W, "b": B}
    rows = (
        lambda p, x: jnp.einsum("cn,in->ic", p["W"].T, hidden(p, x)) + p["b"][None, :],
        lambda p, x: (p["W"].T @ hidden(p, x).T + p["b"][:, None]).T,
        lambda p, x: jax.jit(lambda w, h: p["b"][None, :] + h @ w)(p["W"], hidden(p, x)),
        lambda p, x: jax.checkpoint(lambda h: h @ p["W"])(hidden(p, x)) + p["b"][None, :],
        jax.jit(lambda p, x: jax.vmap(lambda row: hidden(p, row) @ p["W"] + p["b"])(x)),
        lambda p, x: (hidden(p, x)[:, None] @ p["W"] + p["b"][None, None, :])[:, 0],
    )
    for f in rows:
        network = networks.of(f, X, params, last_layer="W")
        found, b = network.head(params)
        np.testing.assert_array_equal(found, W.T)
        np.testing.assert_array_equal(b, B)
        np.testing.assert_allclose(network.features(params, X), hidden(params, X), rtol=1e-12)
    with pytest.raises(ValueError, match=r"last_layer: expected the last dense layer .* weights 'W'; got 'A'"):
        networks.of(rows[0], X, params, last_layer="A")


def test_of_functions():
    f = lambda p, x: hidden(p, x) @ p["W"]  # noqa: E731
    with pytest.raises(ValueError, match=r"params: expected the parameters of the function"):
        networks.of(f, X)
    with pytest.raises(ValueError, match=r"running statistics among them \('norm/running_mean'\).*as state"):
        networks.of(f, X, {"A": A, "W": W, "norm": {"running_mean": B}})
    with pytest.raises(ValueError, match=r"among them \('batch_stats/mean'\).*variables\['params'\]"):
        networks.of(f, X, {"A": A, "W": W, "batch_stats": {"mean": B}})
    with pytest.raises(ValueError, match=r"state: expected none for one function.*pair \(training, evaluation\)"):
        networks.of(f, X, {"A": A, "W": W}, {"mean": B})
    with pytest.raises(ValueError, match=r"params: expected finite numbers"):
        networks.of(f, X, {"A": A * np.nan, "W": W})
    with pytest.raises(ValueError, match=r"x: expected a batch of inputs, one row a sample.*\(5,\)"):
        networks.of(f, X[0], {"A": A, "W": W})
    with pytest.raises(TypeError, match=r"model: expected a module of flax nnx.*got str"):
        networks.of("resnet", X)
    with pytest.raises(TypeError, match="which it takes as it is"):
        networks.of(networks.mlp((4,), 3), X)


def test_dropout_beside_batch_statistics(as_users_call):
    """Where training draws, by a key of its own or by one in the state, a third function says what it does without."""

    def training(params, state, x, key=None):
        keep = 1.0 if key is None else jax.random.bernoulli(key, 0.5, (x.shape[0], 6)) * 2.0
        moved = state | {"mean": 0.9 * state["mean"] + 0.1 * x.mean(0)}
        return (jnp.tanh((x - x.mean(0)[None, :]) @ params["A"]) * keep) @ params["W"], moved

    def by_state(params, state, x):
        key, new = jax.random.split(jax.random.wrap_key_data(state["key"]))
        outputs, moved = training(params, state, x, key)
        return outputs, moved | {"key": jax.random.key_data(new)}

    def evaluation(params, state, x):
        return jnp.tanh((x - state["mean"][None, :]) @ params["A"]) @ params["W"], state

    def still(params, state, x):
        return training(params, state, x)

    params, state = {"A": A, "W": W}, {"mean": np.zeros(5), "key": np.zeros(2, np.uint32)}
    for first, draws in ((training, True), (by_state, False)):
        network = networks.of((first, evaluation), X, params, state)
        variables = network.variables(params, state)
        assert network.own.known.draws == draws
        assert not network.couples(variables)
        network = networks.of((first, evaluation, still), X, params, state)
        assert network.couples(variables)
        centred = jnp.tanh((X - X.mean(0)) @ A)
        np.testing.assert_allclose(network.training_features(params, X, variables.batch_stats), centred, rtol=1e-12)
        one, moved = network.training_outputs(variables, X)
        other, _ = network.training_outputs(variables._replace(batch_stats=moved), X)
        assert np.abs(one - other).max() > 1e-3
    with pytest.raises(TypeError, match=r"modes: expected .* \(training, evaluation\).*as dictionaries; got \(True"):
        networks.of(LinenForced(), X, modes=(True, False))  # pyright: ignore[reportArgumentType]


# Equinox warns of the arrays of an nnx module, before anything can be said of it.
@pytest.mark.filterwarnings("ignore:A JAX array is being set as static")
def test_a_module_of_another_make_is_no_trunk(as_users_call):
    with pytest.raises(TypeError, match=r"trunk: expected a flax linen module.*networks.of\(model, x\)"):
        networks.Network(NNXPerceptron(nnx.Rngs(0)), 3)  # pyright: ignore[reportArgumentType]


class Forced(nnx.Module):
    """Batch statistics whatever the mode."""

    def __init__(self, rngs):
        self.norm, self.head = nnx.BatchNorm(5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.norm(x, use_running_average=False))


class Drops(nnx.Module):
    def __init__(self, rngs):
        self.dropout, self.head = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(x, deterministic=False))


@pytest.mark.parametrize("module", [Forced, Drops])
def test_of_nnx(module):
    with pytest.raises(ValueError, match=r"expected evaluation mode.*(norm/mean|rngs/count).*in nnx, `model.eval\(\)`"):
        networks.of(module(nnx.Rngs(0)), X)
    with pytest.raises(ValueError, match=r"params: expected 'first/bias' among them.*hand over the module itself"):
        networks.of(NNXPerceptron(nnx.Rngs(0)), X).variables(module(nnx.Rngs(0)))


def test_an_nnx_module_stays_as_it_is():
    module = NNXPerceptron(nnx.Rngs(0))
    module.train()
    before = nnx.state(module)
    network = networks.of(module, X)
    jax.jit(network.training_outputs)(network.variables(module), X)
    assert not module.norm.use_running_average
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(nnx.state(module)), strict=True):
        assert (old == new).all()


class LinenForced(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=False)(x))


class LinenDrops(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=False)(x))


def test_of_linen():
    x = X.astype(np.float32)
    with pytest.raises(ValueError, match=r"evaluation mode.*BatchNorm_0/mean.*use_running_average=not train"):
        networks.of(LinenForced(), x)
    with pytest.raises(ValueError, match=r"cannot be called.*evaluation mode.*(Rng|rng).*deterministic=not train"):
        networks.of(LinenDrops(), x, LinenDrops().init({"params": KEY, "dropout": KEY}, x))

    class Named(nn.Module):
        @nn.compact
        def __call__(self, x, noisy: bool):
            return nn.Dense(3)(nn.Dropout(0.5, deterministic=not noisy)(x))

    with pytest.raises((ValueError, TypeError), match="noisy"):
        networks.of(Named(), x)
    assert networks.of(Named(), x, modes=({"noisy": True}, {"noisy": False})).own.known.draws


def test_of_equinox():
    module, state = eqx.nn.make_with_state(EquinoxPerceptron)(KEY)
    with pytest.raises(ValueError, match=r"state: expected the eqx.nn.State of the module.*make_with_state"):
        networks.of(module, X)
    network = networks.of(module, X, state=state)
    with pytest.raises(ValueError, match=r"state: expected the state of the network.*recorder\(step, model, state\)"):
        network.variables(module)

    class Batched(eqx.Module):
        head: eqx.nn.Linear

        def __call__(self, x):
            return jax.vmap(self.head)(x)

    with pytest.raises(ValueError, match=r"cannot be called on .* \(5,\).*one sample, without a batch axis"):
        networks.of(Batched(eqx.nn.Linear(5, 3, key=KEY)), X)
