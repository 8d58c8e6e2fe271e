"""Small networks whose rungs are known: linear features under a block-structured Gram matrix of the inputs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ntkcollapse import BlockKernel, Classes, KernelPath, LastLayer, Trajectory
from ntkcollapse.comparison import NetworkAt
from ntkcollapse.equation import Equation
from ntkcollapse.observables import observe, stack

CLASSES = Classes.balanced(num_classes=3, per_class=4)
KAPPA = BlockKernel(diagonal=1.0, within=0.5, between=0.1)
TIMES = np.array([0.0, 0.05, 0.2, 0.6])

# One compilation instead of one for every operation.
_observe = eqx.filter_jit(observe)


def linear_features(params: Array, x: Array) -> Array:
    """h(x) = A x: Θ^h(x, x') = ⟨x, x'⟩ 1, for every A."""
    return x @ params.T


def tanh_features(params: tuple[Array, Array], x: Array) -> Array:
    return jnp.tanh(x @ params[0].T) @ params[1].T


def inputs_with(gram: np.ndarray) -> np.ndarray:
    """Rows of this Gram matrix."""
    values, vectors = np.linalg.eigh(gram)
    return vectors * np.sqrt(values)[None, :]


def linear_network(
    n: int = 4, seed: int = 0, bias: bool = True, classes: Classes = CLASSES, gram: np.ndarray | None = None
) -> NetworkAt:
    """Features A x of inputs whose Gram matrix, by default that of KAPPA, is their kernel."""
    rng = np.random.default_rng(seed)
    N, C = classes.num_samples, classes.num_classes
    A, W, b = rng.normal(size=(n, N)) / 2, rng.normal(size=(C, n)) / 2, rng.normal(size=C) / 4
    x = inputs_with(np.asarray(KAPPA.as_matrix(classes)) if gram is None else gram)
    return NetworkAt(linear_features, jnp.asarray(A), x, W, b if bias else 0 * b, classes, bias=bias)


def tanh_network(width: int = 8, n: int = 4, seed: int = 1) -> NetworkAt:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(CLASSES.num_samples, 5))
    params = (jnp.asarray(rng.normal(size=(width, 5)) / 3), jnp.asarray(rng.normal(size=(n, width)) / 2))
    return NetworkAt(tanh_features, params, x, rng.normal(size=(3, n)) / 2, rng.normal(size=3) / 4, CLASSES)


def run_of(
    states: list[LastLayer], times: np.ndarray, kappa: BlockKernel = KAPPA, classes: Classes = CLASSES
) -> Trajectory:
    """States as a measured run with one kernel throughout."""
    return Trajectory(
        times,
        stack([_observe(state, classes, kappa) for state in states]),
        classes,
        states=jax.tree.map(lambda *at: jnp.stack(at), *states),
        kernel=KernelPath.of(times, [kappa] * len(times)),
        equation=Equation(producer="network"),
    )
