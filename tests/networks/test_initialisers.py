"""Statistics of initial weights against what their names say."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kurtosis

from ntkcollapse.networks import Initialiser, Network, ResNetTrunk, mlp

DENSE, CONV = (400, 300), (3, 3, 40, 60)
FANS = {DENSE: (400, 300), CONV: (360, 540)}


def drawn(initialiser, shape=DENSE):
    params = {"layer": {"kernel": jnp.zeros(shape, jnp.float32), "bias": jnp.ones(shape[-1:], jnp.float32)}}
    return {k: np.asarray(v) for k, v in initialiser(jax.random.key(0), params)["layer"].items()}


@pytest.mark.parametrize("shape", [DENSE, CONV])
@pytest.mark.parametrize("name", ["lecun-normal", "uniform", "he-normal"])
def test_moments(name, shape):
    fan_in, fan_out = FANS[shape]
    variance = {"lecun-normal": 1 / fan_in, "uniform": 1 / (3 * fan_in), "he-normal": 2 / fan_out}[name]
    # Excess kurtosis: −1.2 of a uniform law, 0 of a normal one; cut at two deviations −0.63, from its moments
    # E z² = 1 − 4 φ(2)/(2Φ(2) − 1), E z⁴ = 3 E z² − 16 φ(2)/(2Φ(2) − 1).
    cut = 2 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))
    excess = {"lecun-normal": (3 - 14 * cut) / (1 - 2 * cut) ** 2 - 3, "uniform": -1.2, "he-normal": 0.0}[name]
    kernel = drawn(Initialiser(name), shape)["kernel"]
    n = kernel.size
    # Four standard errors of mean, variance (at most that of a normal law) and kurtosis.
    assert abs(kernel.mean()) < 4 * math.sqrt(variance / n)
    assert abs(kernel.var() / variance - 1) < 4 * math.sqrt(2 / n)
    assert abs(kurtosis(kernel.ravel()) - excess) < 4 * math.sqrt(24 / n)
    if name == "uniform":
        assert np.abs(kernel).max() <= 1 / math.sqrt(fan_in)


def test_biases():
    assert (drawn(Initialiser("lecun-normal"))["bias"] == 0).all()
    assert (drawn(Initialiser("he-normal"))["bias"] == 0).all()
    bias = drawn(Initialiser("uniform"))["bias"]
    assert np.abs(bias).max() <= 1 / 20
    # Four standard errors: uniform on ± 1/20, 300 of them.
    assert abs(bias.var() * 3 * 400 - 1) < 4 * math.sqrt(0.8 / 300)
    assert abs(bias.mean()) < 4 / math.sqrt(3 * 400 * 300)


def test_scales_multiply():
    """The same key: exactly the same weights, times the scales."""
    x = jnp.zeros((1, 5), jnp.float32)
    one, scaled = (
        mlp((7, 6), 3, initialiser=Initialiser("uniform", *scales)).init(jax.random.key(1), x).params
        for scales in ((1.0, 1.0), (2.0, 4.0))
    )
    for part, factor in (("trunk", 2.0), ("last_layer", 8.0)):
        jax.tree.map(lambda a, b, f=factor: np.testing.assert_allclose(a * f, b, rtol=1e-6), one[part], scaled[part])


def test_layers_of_one_shape_differ_and_normalisations_stay():
    params = Network(ResNetTrunk(1), 3).init(jax.random.key(0), jnp.zeros((1, 16, 16, 1), jnp.float32)).params["trunk"]
    assert (params["stage0_block0_conv0"]["kernel"] != params["stage0_block0_conv1"]["kernel"]).any()
    assert (params["norm"]["scale"] == 1).all()
    assert (params["norm"]["bias"] == 0).all()


def test_unknown_names_and_scales():
    with pytest.raises(ValueError, match="name: expected one of 'lecun-normal'"):
        Initialiser("lecun_normal")
    with pytest.raises(ValueError, match="scale: expected numbers above zero"):
        Initialiser("uniform", scale=0.0)
