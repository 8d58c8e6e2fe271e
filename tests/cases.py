"""Small random problems on which every flow, kernel and solver is run."""

import numpy as np

from ntkcollapse import BlockKernel, Classes, DenseKernel, GroupedKernel, LastLayer, SampleKernel

UNEQUAL = Classes(sizes=(2, 4, 3))


def random_state(n: int, classes: Classes, seed: int = 0) -> LastLayer:
    rng = np.random.default_rng(seed)
    C, N = classes.num_classes, classes.num_samples
    return LastLayer(H=rng.normal(size=(n, N)), W=rng.normal(size=(C, n)), b=rng.normal(size=C))


def kernels(classes: Classes) -> dict[str, SampleKernel]:
    pairs = np.array([[2.0, 0.3, 0.1], [0.3, 1.5, 0.4], [0.1, 0.4, 1.0]])
    A = np.random.default_rng(5).normal(size=(classes.num_samples, 20))
    measured = A @ A.T / 20 + 0.5 * np.asarray(classes.Y).T @ np.asarray(classes.Y)
    return {
        "per class": BlockKernel.from_class_pairs(np.array([3.0, 2.5, 2.0]), pairs),
        "grouped": GroupedKernel.from_matrix(measured, classes, groups=3),
        "dense": DenseKernel(measured),
    }
