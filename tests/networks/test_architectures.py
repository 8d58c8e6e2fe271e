"""Shapes and parameter counts against the published architectures, without computing anything."""

import functools
import inspect
import itertools
import re

import jax
import jax.numpy as jnp
import pytest

from ntkcollapse._checks import check_whole
from ntkcollapse.networks import NETWORKS, network, num_params

# Counted by hand from the papers' tables. A convolution k × k from a to b channels has k²ab weights (and b biases), a
# batch normalisation 2b.


def conv(k, a, b, bias=False):
    return k * k * a * b + b * bias


def resnet20(channels, shortcut):
    count = conv(3, channels, 16) + 32
    for a, b in ((16, 16), (16, 32), (32, 64)):
        count += conv(3, a, b) + 2 * b + 5 * (conv(3, b, b) + 2 * b)
        count += conv(1, a, b, True) if a != b and shortcut == "projection" else 0
    return count + 65 * 10


def resnet8(channels, widths, shortcut):
    count, a = conv(3, channels, widths[0]) + 2 * widths[0], widths[0]
    for b in widths:
        count += conv(3, a, b) + conv(3, b, b) + 4 * b
        count += conv(1, a, b, True) if a != b and shortcut == "projection" else 0
        a = b
    return count + (a + 1) * 10


def cnn(channels, widths, normalised):
    pairs = itertools.pairwise((channels, *widths))
    return sum(conv(3, a, b, not normalised) + 2 * b * normalised for a, b in pairs) + (widths[-1] + 1) * 10


def vgg(layers, channels):
    count, a = 0, channels
    for repeats, b in zip(layers, (64, 128, 256, 512, 512), strict=True):
        for _ in range(repeats):
            count += conv(3, a, b, True) + 2 * b
            a = b
    for b in (512, 256):
        count += a * b + b + 2 * b
        a = b
    return count + 257 * 10


def densenet40(form, channels):
    layers, bottleneck, a, compression = (6, 24, 24, 2) if form == "seleznova2023" else (12, 0, 16, 1)
    count = conv(3, channels, a)
    for block in range(3):
        for _ in range(layers):
            if bottleneck:
                count += 2 * a + conv(1, a, bottleneck) + 2 * bottleneck + conv(3, bottleneck, 12)
            else:
                count += 2 * a + conv(3, a, 12)
            a += 12
        if block < 2:
            count += 2 * a + conv(1, a, a // compression)
            a //= compression
    return count + 2 * a + (a + 1) * 10


CASES = [
    ("resnet20", {}, (28, 28, 1), 64, resnet20(1, "projection")),
    # He et al. (2016), Table 6: 0.27M; 269,722 is what the network without projections has.
    ("resnet20", {"shortcut": "padding"}, (32, 32, 3), 64, 269_722),
    ("resnet8", {}, (14, 14, 1), 32, resnet8(1, (8, 16, 32), "projection")),
    ("resnet8", {"widths": (4, 8), "shortcut": "padding"}, (8, 8, 3), 8, resnet8(3, (4, 8), "padding")),
    ("cnn", {}, (8, 8, 1), 64, cnn(1, (16, 32, 64), True)),
    ("cnn", {"widths": (4, 12), "batch_norm": False}, (14, 14, 3), 12, cnn(3, (4, 12), False)),
    ("vgg11", {}, (32, 32, 1), 256, vgg((1, 1, 2, 2, 2), 1)),
    ("vgg16", {}, (32, 32, 3), 256, vgg((2, 2, 3, 3, 3), 3)),
    ("densenet40", {}, (28, 28, 1), 132, densenet40("seleznova2023", 1)),
    ("densenet40", {}, (32, 32, 3), 132, densenet40("seleznova2023", 3)),
    # Huang et al. (2017), Table 2: DenseNet (k = 12) of depth 40 has 1.0M.
    ("densenet40", {"form": "huang2017"}, (32, 32, 3), 448, densenet40("huang2017", 3)),
    # Three input maps with biases, three of the state of which one has a bias.
    ("gru", {"width": 12}, (8, 8, 1), 12, 3 * (8 * 12 + 12) + 3 * 12 * 12 + 12 + 13 * 10),
    ("mlp", {"widths": (32, 16)}, (8, 8, 1), 16, 65 * 32 + 33 * 16 + 17 * 10),
    ("mlp", {"widths": (32, 16), "batch_norm": True}, (8, 8, 1), 16, 66 * 32 + 34 * 16 + 17 * 10),
]


@functools.cache
def structures(name, shape, dtype=jnp.float32, **options):
    """Traced once a case: tracing the deep ones takes seconds."""
    net = network(name, param_dtype=dtype, **options)
    x = jnp.zeros((2, *shape), dtype)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    features = jax.eval_shape(net.features, variables.params, x, variables.batch_stats)
    outputs = jax.eval_shape(net.outputs, variables.params, x, variables.batch_stats)
    return net, variables, features, outputs


@pytest.mark.parametrize(("name", "options", "shape", "features", "count"), CASES)
def test_published_shapes_and_counts(name, options, shape, features, count):
    _, variables, h, f = structures(name, shape, **options)
    assert h.shape == (2, features)
    assert f.shape == (2, 10)
    assert num_params(variables.params) == count
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, h, f))} == {jnp.dtype("float32")}


def test_published_totals():
    assert densenet40("huang2017", 3) == 1_019_722
    assert resnet20(3, "padding") == 269_722


def test_forty_layers():
    """Convolutions and the last layer: 1 + 3·12 + 2 + 1, or 1 + 3·6·2 + 2 + 1."""
    for options in ({"form": "huang2017"}, {}):
        _, variables, _, _ = structures("densenet40", (32, 32, 3), **options)
        kernels = [leaf for leaf in jax.tree.leaves(variables.params) if leaf.ndim > 1]
        assert len(kernels) == 40


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_float64_throughout(name):
    """The engines of the NTK are tested on float64 networks: no float32 may hide in them."""
    shape = (32, 32, 1)
    net, variables, h, f = structures(name, shape, jnp.float64)
    trained = jax.eval_shape(net.training_outputs, variables, jnp.zeros((2, *shape)))
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, h, f, trained))} == {jnp.dtype("float64")}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_help_names_the_options_that_a_network_takes(name):
    said = re.search(r"options? ([a-z_, ]+)$", NETWORKS.meanings[name])
    assert said is not None
    takes = [parameter for parameter in inspect.signature(NETWORKS[name]).parameters]
    elsewhere = {"num_classes", "initialiser", "use_bias", "param_dtype"}
    assert said[1].split(", ") == [option for option in takes if option not in elsewhere]


def test_unknown_names():
    with pytest.raises(ValueError, match="Did you mean 'resnet20'"):
        network("resnet2")
    with pytest.raises(ValueError, match=r"option of densenet40: expected one of 'form'.*got 'depth'"):
        network("densenet40", depth=3)
    with pytest.raises(ValueError, match="form: expected one of"):
        network("densenet40", form="bc")
    with pytest.raises(ValueError, match="shortcut: expected one of"):
        network("resnet20", shortcut="none")
    with pytest.raises(ValueError, match="heads: expected a divisor of the width"):
        network("vision-transformer", heads=5)
    with pytest.raises(ValueError, match=r"patch: expected a divisor of the images' 30 × 30"):
        structures("vision-transformer", (30, 30, 1))
    with pytest.raises(ValueError, match=r"VGGTrunk cannot take.*images: expected at least 32 pixels a side.*28 × 28"):
        structures("vgg11", (28, 28, 1))
    # Where types are not checked as in tests.
    for wrong in (3.7, True, "two"):
        with pytest.raises(ValueError, match=f"widths: expected a whole number, got {wrong!r}"):
            check_whole("widths", 8, wrong)
    with pytest.raises(ValueError, match="widths: expected at least one"):
        network("mlp", widths=())
    for name in ("cnn", "resnet8"):
        with pytest.raises(ValueError, match=r"widths: expected a list of whole numbers, one at least, got \(\)"):
            network(name, widths=())
