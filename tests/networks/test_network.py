"""A network in two parts: what reads it as (H, W, b), and modes of its batch normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ntkcollapse.networks import Network, ResNetTrunk, Variables, mlp


@pytest.fixture(scope="module")
def normalised():
    net = mlp((7, 5), 3, batch_norm=True, param_dtype=jnp.float64)
    x = jax.random.normal(jax.random.key(1), (12, 4), jnp.float64)
    return net, net.init(jax.random.key(0), x), x


def test_outputs_are_the_last_layer_of_the_features(normalised):
    net, variables, x = normalised
    labels = jnp.asarray([2, 0, 1] * 4)
    state, classes = net.last_layer(variables, x, labels)
    assert classes.sizes == (4, 4, 4)
    order = np.argsort(np.asarray(labels), kind="stable")
    outputs = net.outputs(variables.params, x, variables.batch_stats)
    # Sums of five products in float64.
    np.testing.assert_allclose(state.logits.T, outputs[order], rtol=1e-12, atol=1e-14)
    # Compiled as one, and piece by piece: rounding, of numbers of size 1.
    features = net.features(variables.params, x, variables.batch_stats)
    np.testing.assert_allclose(state.H.T, features[order], rtol=1e-12, atol=1e-14)


def test_evaluation_mode_does_not_couple_samples(normalised):
    net, variables, x = normalised
    together = net.outputs(variables.params, x, variables.batch_stats)
    alone = jnp.concatenate([net.outputs(variables.params, x[i : i + 1], variables.batch_stats) for i in range(12)])
    np.testing.assert_allclose(together, alone, rtol=1e-12, atol=1e-14)
    # In training mode they are coupled: the test would see it.
    trained = net.training_outputs(variables, x)[0]
    assert np.abs(trained - together).max() > 1e-3


def test_running_averages_keep_nine_tenths(normalised):
    net, variables, x = normalised
    moved = net.training_outputs(variables, x)[1]["trunk"]["norm_0"]
    z = x @ variables.params["trunk"]["linear_0"]["kernel"]
    np.testing.assert_allclose(moved["mean"], 0.1 * z.mean(0), rtol=1e-10)
    np.testing.assert_allclose(moved["var"], 0.9 + 0.1 * z.var(0), rtol=1e-10)


def test_evaluation_functions_do_not_compile_anew(normalised):
    net, variables, x = normalised
    count = 0

    @jax.jit
    def call(f, params, x):
        nonlocal count
        count += 1
        return f(params, x)

    features, outputs = net.evaluation(variables.batch_stats)
    np.testing.assert_allclose(call(outputs, variables.params, x), outputs(variables.params, x), rtol=1e-12)
    moved = net.training_outputs(variables, x)[1]
    again = mlp((7, 5), 3, batch_norm=True, param_dtype=jnp.float64).evaluation(moved)[1]
    assert np.abs(call(again, variables.params, x) - outputs(variables.params, x)).max() > 1e-3
    assert count == 1
    call(features, variables.params, x)
    assert count == 2


def test_trunk_of_ones_own():
    class Trunk(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool):
            return nn.tanh(nn.Dense(6)(x))

    net = Network(Trunk(), 3, use_bias=False)
    x = jnp.ones((6, 2), jnp.float32)
    variables = net.init(jax.random.key(0), x)
    state, _ = net.last_layer(variables, x, jnp.asarray([0, 1, 2, 0, 1, 2]))
    assert (state.b == 0).all()
    assert state.W.shape == (3, 6)


def test_features_must_be_rows():
    class Images(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool):
            return nn.Conv(2, (3, 3))(x)

    with pytest.raises(ValueError, match=r"trunk: expected features of shape \(N, n\).*flatten or pool"):
        Network(Images(), 3).init(jax.random.key(0), jnp.zeros((1, 4, 4, 1), jnp.float32))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_inputs_are_cast_to_the_parameters(dtype):
    net = mlp((3,), 2, param_dtype=dtype)
    variables = net.init(jax.random.key(0), jnp.zeros((1, 4)))
    for given in (jnp.float32, jnp.float64):
        assert net.outputs(variables.params, jnp.ones((2, 4), given)).dtype == dtype


def test_padding_shortcut_is_the_identity_on_old_channels():
    """With all weights of the residual branches zero, a block halves resolution and passes channels on."""
    net = Network(ResNetTrunk(1, (4, 8, 16), "padding", param_dtype=jnp.float64), 3, param_dtype=jnp.float64)
    x = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1), jnp.float64)
    variables = net.init(jax.random.key(1), x)
    trunk = {
        name: layer if name == "conv" or "norm" in name else jax.tree.map(jnp.zeros_like, layer)
        for name, layer in variables.params["trunk"].items()
    }
    variables = Variables({**variables.params, "trunk": trunk}, variables.batch_stats)
    features = net.features(variables.params, x, variables.batch_stats)
    first = jax.lax.conv(x.transpose(0, 3, 1, 2), trunk["conv"]["kernel"].transpose(3, 2, 0, 1), (1, 1), "SAME")
    # Evaluation with the initial averages 0 and 1: batch normalisation divides by √(1 + 1e-5).
    kept = jnp.maximum(first / jnp.sqrt(1 + 1e-5), 0)[:, :, ::4, ::4].mean((2, 3))
    np.testing.assert_allclose(features[:, 6:10], kept, rtol=1e-12)
    assert (features[:, :6] == 0).all()
    assert (features[:, 10:] == 0).all()
