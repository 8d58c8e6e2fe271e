"""Small networks whose rungs are known: linear features under a block-structured Gram matrix of the inputs."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ntkcollapse import BlockKernel, Classes, KernelPath, LastLayer, Trajectory
from ntkcollapse.comparison import NetworkAt
from ntkcollapse.observables import observe, stack

CLASSES = Classes.balanced(num_classes=3, per_class=4)
KAPPA = BlockKernel(diagonal=1.0, within=0.5, between=0.1)
TIMES = np.array([0.0, 0.05, 0.2, 0.6])


def linear_features(params: Array, x: Array) -> Array:
    """h(x) = A x: Θ^h(x, x') = ⟨x, x'⟩ 1, for every A."""
    return x @ params.T


def tanh_features(params: tuple[Array, Array], x: Array) -> Array:
    return jnp.tanh(x @ params[0].T) @ params[1].T


def block_inputs() -> np.ndarray:
    """Rows whose Gram matrix is KAPPA."""
    values, vectors = np.linalg.eigh(np.asarray(KAPPA.as_matrix(CLASSES)))
    return vectors * np.sqrt(values)[None, :]


def linear_network(n: int = 4, seed: int = 0, bias: bool = True) -> NetworkAt:
    rng = np.random.default_rng(seed)
    N, C = CLASSES.num_samples, CLASSES.num_classes
    A, W, b = rng.normal(size=(n, N)) / 2, rng.normal(size=(C, n)) / 2, rng.normal(size=C) / 4
    return NetworkAt(linear_features, jnp.asarray(A), block_inputs(), W, b if bias else 0 * b, CLASSES, bias=bias)


def tanh_network(width: int = 8, n: int = 4, seed: int = 1) -> NetworkAt:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(CLASSES.num_samples, 5))
    params = (jnp.asarray(rng.normal(size=(width, 5)) / 3), jnp.asarray(rng.normal(size=(n, width)) / 2))
    return NetworkAt(tanh_features, params, x, rng.normal(size=(3, n)) / 2, rng.normal(size=3) / 4, CLASSES)


def run_of(states: list[LastLayer], times: np.ndarray, kappa: BlockKernel = KAPPA) -> Trajectory:
    """States as a measured run with one kernel throughout."""
    return Trajectory(
        times,
        stack([observe(state, CLASSES, kappa) for state in states]),
        CLASSES,
        states={name: jnp.stack([getattr(s, name) for s in states]) for name in ("H", "W", "b")},
        kernel=KernelPath.of(times, [kappa] * len(times)),
        settings={"producer": "network"},
    )
