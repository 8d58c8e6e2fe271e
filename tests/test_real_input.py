"""Complex numbers and masked entries are refused by name wherever arrays enter: conversion would drop a part."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkcollapse as nc
from ntkcollapse import collapse, data, ntk
from ntkcollapse.comparison.network_at import NetworkAt
from ntkcollapse.theory import exact

pytestmark = pytest.mark.usefixtures("as_users_call")

RNG = np.random.default_rng(0)
CLASSES = nc.Classes.balanced(3, 4)
LABELS = np.repeat(np.arange(3), 4)
X, W, V = RNG.normal(size=(12, 5)), RNG.normal(size=(3, 5)), RNG.normal(size=(12, 3))
PARAMS = {"w": RNG.normal(size=(5, 3))}
KAPPA = nc.BlockKernel(3.0, 2.0, 0.5)
K = X @ X.T + np.eye(12)
TIMES = np.linspace(0.0, 1.0, 4)
LAYER = nc.LastLayer(H=X.T, W=W, b=np.zeros(3))
THETA = RNG.normal(size=(12, 12, 5, 5))
DENSE = nn.Dense(3, param_dtype=float)
VARIABLES = DENSE.init(jax.random.key(0), jnp.ones((1, 5)))
F = lambda p, x: jnp.tanh(x @ p["w"])  # noqa: E731


ENTRIES = {
    "ntk samples": (lambda a: ntk.empirical_ntk(F, PARAMS, a), X, "x1"),
    "ntk other samples": (lambda a: ntk.empirical_ntk(F, PARAMS, X, a), X, "x2"),
    "ntk parameters": (lambda a: ntk.empirical_ntk(F, {"w": a}, X), PARAMS["w"], "params"),
    "block statistics": (lambda a: ntk.block_statistics(F, PARAMS, a, LABELS), X, "x"),
    "block statistics' labels": (lambda a: ntk.block_statistics(F, PARAMS, X, a), LABELS, "labels"),
    "operator": (lambda a: ntk.NTKOperator(F, PARAMS, a), X, "x"),
    "vector": (lambda a: ntk.ntk_vector_product(F, PARAMS, X, a), V, "v"),
    "heads' kernel": (lambda a: ntk.output_ntk_from_features(a, X, X, W), THETA, "feature_ntk"),
    "heads' features": (lambda a: ntk.output_ntk_from_features(THETA, X, a, W), X, "features2"),
    "heads' weight": (lambda a: ntk.output_ntk_from_features(THETA, X, X, a), W, "weight"),
    "alignment": (lambda a: ntk.matrix_alignment(a, CLASSES), K, "matrix"),
    "levels": (lambda a: ntk.count_levels(a, KAPPA, CLASSES), np.arange(12.0), "eigenvalues"),
    "within class": (lambda a: ntk.within_class_eigenvalues(a, CLASSES), K, "matrix"),
    "data": (lambda a: data.Dataset.of(a, LABELS, name="own"), X, "inputs"),
    "data's labels": (lambda a: data.Dataset.of(X, a, name="own"), LABELS, "labels"),
    "data in order": (lambda a: data.Dataset(a, CLASSES, "own"), X.astype(np.float32), "inputs"),
    "arrays": (lambda a: data.from_arrays(a, LABELS, X, LABELS), X, "x_train"),
    "test arrays": (lambda a: data.from_arrays(X, LABELS, a, LABELS), X, "x_test"),
    "test labels": (lambda a: data.from_arrays(X, LABELS, X, a), LABELS, "labels"),
    "times": (lambda a: nc.simulate(LAYER, KAPPA, CLASSES, a), TIMES, "times"),
    "times of a path": (lambda a: nc.KernelPath.of(a, [KAPPA] * 4), TIMES, "times"),
    "times of a trajectory": (lambda a: nc.Trajectory(a, {}, CLASSES), TIMES, "times"),
    "observables": (lambda a: nc.Trajectory(TIMES, {"loss": a}, CLASSES), TIMES, "observables"),
    "statistics of a run": (lambda a: nc.Trajectory(TIMES, {}, CLASSES, statistics={"s": a}), TIMES, "statistics"),
    "deviations": (lambda a: nc.Trajectory(TIMES, {}, CLASSES, deviations=a), X.T, "deviations"),
    "stacked": (lambda a: nc.LastLayer.stacked(a, W[None], np.zeros((1, 3))), X.T[None], "H"),
    "weight decay": (lambda a: nc.Flow(KAPPA, CLASSES, weight_decay={"H": a}), np.asarray(0.1), "weight_decay"),
    "frozen": (lambda a: exact.frozen_residual(TIMES, a, KAPPA, CLASSES), V.T, "R"),
    "bias": (lambda a: exact.imbalanced_limit(a, KAPPA, CLASSES), np.zeros(3), "bias"),
    "network's inputs": (
        lambda a: NetworkAt(lambda p, x: x @ p["w"], {"w": X.T[:, :5]}, a, W, np.zeros(3), CLASSES), X, "inputs"
    ),
    "layers": (lambda a: collapse.layer_agops(DENSE, VARIABLES, a), X, "x"),
    "recursive machine": (lambda a: collapse.deep_rfm(a, V, key=jax.random.key(0), depth=1), X, "x"),
    "separation": (lambda a: collapse.separation_block(a, W), X.T, "H"),
    "concentration": (lambda a: collapse.concentration_block(a, W, 0.1), X.T, "H"),
}  # fmt: skip


def _complex(a):
    return a + 1e-3j


def _masked(a):
    return np.ma.masked_array(a, mask=np.arange(a.size).reshape(a.shape) == 0)


@pytest.mark.parametrize("spoiled", [_complex, _masked])
@pytest.mark.parametrize("entry", ENTRIES)
def test_refused_by_name(entry, spoiled):
    call, array, name = ENTRIES[entry]
    with pytest.raises(ValueError, match=rf"{name}.*: expected (real numbers|an array without a mask|integers)"):
        call(spoiled(array))
