"""Diagonal, layers, rectangular products, random features and samples of several arrays: against dense Jacobians."""

# Stubs of other packages are narrower than what they return.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse.ntk import (
    NTKOperator,
    block_statistics,
    empirical_ntk,
    layer_ntks,
    ntk_diagonal,
    random_features,
    top_eigenvalues,
)
from ntkcollapse.ntk._problem import named_leaves
from tests.ntk.zoo import MAKERS, Case, case, dense_jacobian, dense_ntk, normal

# A Jacobian of two or three samples of the small networks.
SMALL = 2e4


def by_outputs(theta, outputs):
    """The dense kernel (A, B, K, K) as `empirical_ntk` has it."""
    if outputs == "full":
        return theta
    diagonal = np.diagonal(theta, axis1=2, axis2=3)
    return diagonal if outputs == "diagonal" else diagonal.mean(2)


def close(got, want):
    # Another order of summation in double precision.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(("outputs", "memory"), [("full", None), ("diagonal", SMALL), ("mean", SMALL)])
def test_diagonal(name, outputs, memory):
    c, theta = case(name), dense_ntk(name)
    want = np.stack([by_outputs(theta, outputs)[i, i] for i in range(len(c.x))])
    close(ntk_diagonal(c.f, c.params, c.x, outputs=outputs, memory=memory), want)


def of_layer(name, wanted, depth):
    """The dense Jacobian's columns of one layer."""
    c, J, start = case(name), dense_jacobian(name), 0
    parts = []
    for path, leaf in zip(named_leaves(c.params), jax.tree.leaves(c.params), strict=True):
        if "/".join(path.split("/")[:depth]) == wanted:
            parts.append(J[:, :, start : start + leaf.size])
        start += leaf.size
    return np.concatenate(parts, axis=2)


@pytest.mark.parametrize(("name", "depth"), [("plain", None), ("normalised", 1), ("unusual", None), ("attention", 1)])
@pytest.mark.parametrize(("outputs", "memory"), [("full", None), ("mean", SMALL)])
def test_layers_and_their_sum(name, depth, outputs, memory):
    c, theta = case(name), dense_ntk(name)
    layers = layer_ntks(c.f, c.params, c.x, depth=depth, outputs=outputs, memory=memory)
    assert len(layers) == len({"/".join(n.split("/")[:depth]) for n in named_leaves(c.params)})
    for layer, got in layers.items():
        J = of_layer(name, layer, depth)
        np.testing.assert_allclose(
            got, by_outputs(np.einsum("ikp,jsp->ijks", J, J), outputs), rtol=0, atol=1e-12 * np.abs(theta).max()
        )
    close(sum(layers.values()), by_outputs(theta, outputs))
    between = layer_ntks(c.f, c.params, c.x[:2], c.x[1:], depth=depth, outputs=outputs, memory=memory)
    close(sum(between.values()), by_outputs(theta, outputs)[:2, 1:])


@pytest.mark.parametrize("memory", [None, 3000.0])
def test_rectangular_products(memory):
    c, theta = case("plain"), dense_ntk("plain")[:2]
    v, u = normal(0, 5, 3), normal(1, 2, 3)
    operator = NTKOperator(c.f, c.params, c.x[:2], c.x, memory=memory)
    assert operator.shape == (5, 3)
    close(operator(v), np.einsum("ijks,js->ik", theta, v))
    close(operator.T(u), np.einsum("ijks,ik->js", theta, u))
    mean = NTKOperator(c.f, c.params, c.x[:2], c.x, outputs="mean", memory=memory)
    close(mean.matmat(v), by_outputs(theta, "mean") @ v)
    with pytest.raises(ValueError, match=r"v: expected shape \(5, 3\)"):
        operator(u)
    with pytest.raises(ValueError, match="operator: expected the kernel of one set of samples"):
        top_eigenvalues(operator, 2, key=jax.random.key(0))


@pytest.mark.parametrize("outputs", ["full", "diagonal", "mean"])
def test_random_features_and_their_error(outputs):
    c, d = case("plain"), 64
    want = by_outputs(dense_ntk("plain"), outputs)
    J = dense_jacobian("plain")
    size = np.linalg.norm(J, axis=2)
    kernels, errors = [], []
    for seed in range(40):
        features = random_features(c.f, c.params, c.x, d, key=jax.random.key(seed))
        kernels.append(np.asarray(features.kernel(outputs=outputs)))
        errors.append(np.asarray(features.standard_error(outputs=outputs)))
    kernels, errors = np.stack(kernels), np.stack(errors)
    # Errors in units of the stated one: of mean 0 and deviation 1 over seeds; their bounds are five of their own
    # deviations with 40 seeds, for entries that are not independent.
    units = (kernels - want) / errors
    assert abs(units.mean()) < 0.5
    assert 0.8 < np.sqrt(np.square(units).mean()) < 1.25
    # And the stated error is that of the entries over seeds, and below the bound of the docstring.
    ratio = np.square(errors).mean(0) / kernels.var(0, ddof=1)
    assert 0.6 < ratio.mean() < 1.6
    if outputs == "full":
        bound = (np.einsum("ik,js->ijks", size**2, size**2) + want**2) / d
        assert (np.square(errors).mean(0) < 1.3 * bound).all()


def test_random_features_belong_to_their_key():
    c, key = case("attention"), jax.random.key(3)
    whole = random_features(c.f, c.params, c.x, 12, key=key)
    parts = random_features(c.f, c.params, c.x[1:], 12, key=key, memory=3e4)
    close(parts.features, whole.features[1:])
    few = random_features(c.f, c.params, c.x[:1], 5, key=key)
    close(few.features * np.sqrt(5), whole.features[:1, :, :5] * np.sqrt(12))
    close(few.kernel(few), np.asarray(few.kernel()))
    close(parts.kernel(whole, outputs="full"), np.asarray(whole.kernel(outputs="full"))[1:])
    with pytest.raises(ValueError, match=r"other: expected \(K, d\)"):
        whole.kernel(few)
    with pytest.raises(ValueError, match="num_features"):
        random_features(c.f, c.params, c.x, 0, key=key)
    backwards = case("unusual")
    with pytest.raises(TypeError, match="differentiates forwards"):
        random_features(backwards.f, backwards.params, backwards.x, 2, key=key)


def masked():
    """Tokens with a mask, numbers whose samples stand on the last axis, and a length each: every type of array."""
    params = {"table": normal(0, 9, 4), "w": normal(1, 4, 3), "u": normal(2, 2, 3)}
    generator = np.random.default_rng(3)
    x = {
        "tokens": generator.integers(0, 9, (5, 6)),
        "mask": generator.random((5, 6)) < 0.7,
        "more": (normal(4, 2, 5).astype(np.float32), np.arange(1, 6, dtype=np.int8)),
    }

    def f(p, x):
        numbers, length = x["more"]
        h = (jnp.take(p["table"], x["tokens"], axis=0) * x["mask"].astype(float)[:, :, None]).sum(1)
        h = jnp.tanh(h / length.astype(float)[:, None])
        return h @ p["w"] + jnp.sin(numbers.astype(float).T @ p["u"])

    return f, jax.tree.map(jnp.asarray, params), x, {"tokens": 0, "mask": 0, "more": (1, 0)}


def taken(x, index):
    return {
        "tokens": x["tokens"][index],
        "mask": x["mask"][index],
        "more": (x["more"][0][:, index], x["more"][1][index]),
    }


def test_samples_of_several_arrays():
    f, params, x, axes = masked()
    J = Case(lambda p, _: f(p, x), params, np.zeros(5)).jacobian()
    theta = np.einsum("ikp,jsp->ijks", J, J)
    options: dict[str, Any] = {"in_axes": axes}
    for engine in ("layerwise", "jacobian", "ntvp", "auto"):
        close(empirical_ntk(f, params, x, engine=engine, **options), theta)
    close(empirical_ntk(f, params, taken(x, slice(2)), x, memory=4e3, **options), theta[:2])
    close(jax.jit(lambda x: empirical_ntk(f, params, x, **options))(x), theta)
    close(ntk_diagonal(f, params, x, **options), by_outputs(theta, "mean").diagonal())
    close(sum(layer_ntks(f, params, x, **options).values()), by_outputs(theta, "mean"))
    v = normal(5, 5, 3)
    close(NTKOperator(f, params, x, **options)(v), np.einsum("ijks,js->ik", theta, v))
    assert random_features(f, params, x, 2, key=jax.random.key(0), **options).features.shape == (5, 3, 2)
    labels = np.asarray([0, 1, 0, 1, 1])
    got = block_statistics(f, params, x, labels, residual="exact", **options)
    mean, same = by_outputs(theta, "mean"), labels[:, None] == labels
    off = ~np.eye(5, dtype=bool)
    want = [mean[~off].mean(), mean[same & off].mean(), mean[~same].mean()]
    np.testing.assert_allclose([float(v.mean()) for v in got.per_output], want, rtol=1e-11)


def test_samples_on_another_axis_of_one_array():
    c, theta = case("plain"), dense_ntk("plain")
    turned = lambda p, x: c.f(p, x.T)  # noqa: E731
    close(empirical_ntk(turned, c.params, c.x.T, in_axes=1), theta)
    close(empirical_ntk(turned, c.params, c.x.T[:, :2], c.x.T, in_axes=-1), theta[:2])


def test_samples_that_do_not_go_together():
    f, params, x, axes = masked()
    with pytest.raises(ValueError, match=r"x1\['more'\]\[0\]: expected 5 samples along axis 0, got 2"):
        empirical_ntk(f, params, x)
    with pytest.raises(ValueError, match=r"in_axes: expected an axis of .*, which has 1, got 3"):
        empirical_ntk(f, params, x, in_axes={**axes, "more": (1, 3)})
    with pytest.raises(ValueError, match="in_axes: expected a number, or a pytree"):
        empirical_ntk(f, params, x, in_axes={"tokens": 0})
    with pytest.raises(ValueError, match="x2: expected arrays of the structure"):
        empirical_ntk(f, params, x, {**x, "mask": x["mask"][:, :3]}, in_axes=axes)
    with pytest.raises(TypeError, match=r"x1\['mask'\]: expected an array, got float"):
        empirical_ntk(f, params, {**x, "mask": 1.0}, in_axes=axes)
    with pytest.raises(ValueError, match="x: expected samples of one array to differentiate"):
        jax.grad(lambda numbers: empirical_ntk(f, params, {**x, "more": (numbers, x["more"][1])}, in_axes=axes).sum())(
            jnp.asarray(x["more"][0])
        )
    coupled = lambda p, x: f(p, x) + x["more"][0].mean().astype(float)  # noqa: E731
    with pytest.raises(ValueError, match="change by"):
        empirical_ntk(coupled, params, x, in_axes=axes)


def test_several_arrays_are_proven_apart(monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr("ntkcollapse.ntk._problem._check_uncoupled", never)
    f, params, x, axes = masked()
    empirical_ntk(f, params, x, in_axes=axes)
