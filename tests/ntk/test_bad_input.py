"""What cannot be right is refused before the long work."""

# Stubs of other packages are narrower than what they return.
# pyright: reportAttributeAccessIssue=false

import importlib.metadata
import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse.ntk import NTKOperator, _neural_tangents, block_statistics, empirical_ntk
from tests.ntk.zoo import normal

X = normal(0, 6, 4)
PARAMS = {"w": normal(1, 4, 3)}
LABELS = np.asarray([0, 1, 0, 1, 2, 2])


def f(p, x):
    return jnp.tanh(x @ p["w"])


def test_outputs_of_another_shape():
    with pytest.raises(ValueError, match=r"f: expected outputs of shape \(N, K\).* got \(1,\) for N = 1"):
        empirical_ntk(lambda p, x: f(p, x).sum(1), PARAMS, X)
    with pytest.raises(ValueError, match="got tuple for N = 1"):
        empirical_ntk(lambda p, x: (f(p, x), x), PARAMS, X)  # pyright: ignore


def test_coupled_samples():
    def batch_norm(p, x):
        h = f(p, x)
        return (h - h.mean(0, keepdims=True)) / jnp.sqrt(jnp.var(h, axis=0, keepdims=True) + 1e-5)

    with pytest.raises(ValueError, match="evaluation mode"):
        empirical_ntk(batch_norm, PARAMS, X)
    norm = nn.BatchNorm(use_running_average=False, param_dtype=float, force_float32_reductions=False)
    variables = norm.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="with other samples of its batch"):
        block_statistics(
            lambda p, x: norm.apply({"params": p, "batch_stats": variables["batch_stats"]}, x, mutable=["batch_stats"])[
                0
            ],
            variables["params"],
            X,
            LABELS,
        )


def test_numbers_that_are_not_finite():
    with pytest.raises(ValueError, match="x1: expected finite"):
        empirical_ntk(f, PARAMS, np.where(X == X[0, 0], np.nan, X))
    with pytest.raises(ValueError, match="params: expected finite"):
        empirical_ntk(f, {"w": PARAMS["w"] * np.inf}, X)
    # A gradient of a root at zero: the outputs are finite, their derivative is not.
    with pytest.raises(ValueError, match="gradients of f: expected finite"):
        empirical_ntk(lambda p, x: jnp.sqrt(jnp.abs(x @ p["w"])), {"w": np.zeros((4, 3))}, X)
    with pytest.raises(ValueError, match="gradients of f: expected finite"):
        block_statistics(lambda p, x: jnp.sqrt(jnp.abs(x @ p["w"])), {"w": np.zeros((4, 3))}, X, LABELS)
    # And one of a logarithm below zero: not defined there, but with a derivative.
    logarithm = lambda p, x: jnp.log(x @ p["w"])  # noqa: E731
    outside: Any = (logarithm, {"w": np.abs(PARAMS["w"])}, -np.abs(X))
    for engine in ("layerwise", "jacobian", "ntvp"):
        with pytest.raises(ValueError, match="gradients of f: expected finite"):
            empirical_ntk(*outside, engine=engine)
    with pytest.raises(ValueError, match="gradients of f: expected finite"):
        block_statistics(*outside, labels=LABELS)
    with pytest.raises(ValueError, match="gradients of f: expected finite"):
        NTKOperator(*outside)(np.ones((6, 3)))


def test_statistics_are_not_traced():
    with pytest.raises(ValueError, match="block_statistics: expected a call outside of `jit`"):
        jax.jit(lambda p: block_statistics(f, p, X, LABELS).output_pairs)(PARAMS)


def test_labels():
    with pytest.raises(ValueError, match="labels: expected shape"):
        block_statistics(f, PARAMS, X, LABELS[:-1])
    with pytest.raises(ValueError, match="class 2 has one"):
        block_statistics(f, PARAMS, X, np.asarray([0, 1, 0, 1, 2, 0]))
    with pytest.raises(ValueError, match="class 1 has no sample"):
        block_statistics(f, PARAMS, X, np.asarray([0, 2, 0, 2, 2, 0]))


def test_names():
    with pytest.raises(ValueError, match="Did you mean 'layerwise'"):
        empirical_ntk(f, PARAMS, X, engine="layerwse")
    with pytest.raises(ValueError, match="outputs: expected one of"):
        inspect.unwrap(empirical_ntk)(f, PARAMS, X, outputs="trace")  # pyright: ignore
    with pytest.raises(ValueError, match="no parameter under the path 'v'"):
        empirical_ntk(f, PARAMS, X, parameters="v")
    with pytest.raises(ValueError, match="at least one floating-point array"):
        empirical_ntk(f, PARAMS, X, parameters={"w": False})


def test_samples_that_do_not_fit():
    with pytest.raises(ValueError, match="as in x1"):
        empirical_ntk(f, PARAMS, X, X[:, :2])
    with pytest.raises(ValueError, match="at least one sample"):
        empirical_ntk(f, PARAMS, X[0])


def test_neural_tangents_missing(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    _neural_tangents.neural_tangents.cache_clear()
    with pytest.raises(ImportError, match="pip install --no-deps neural-tangents"):
        empirical_ntk(f, PARAMS, X, engine="neural-tangents")
    _neural_tangents.neural_tangents.cache_clear()
