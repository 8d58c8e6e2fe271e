"""Sets with known answers, and known departures from a set."""

import math

import numpy as np

from ntkcollapse._checks import check_positive
from ntkcollapse._coercion import seeded
from ntkcollapse.choices import IMBALANCES
from ntkcollapse.classes import Classes
from ntkcollapse.data.dataset import Dataset
from ntkcollapse.data.memory import check_affordable


def gaussian_mixture(
    classes: Classes, dimension: int, *, separation: float = 4.0, noise: float = 1.0, seed: int
) -> Dataset:
    r"""x = μ_c + noise · z with z standard normal and μ_c the vertices of a centred simplex.

    All pairs of means are `separation` apart, so that for two classes the best possible error is
    Φ(−separation / (2 noise)), and for C classes no classifier is below it for any pair. In expectation the
    within-class covariance is noise² I and tr Σ_W / tr Σ_B = 2 d noise² C / ((C − 1) separation²) for balanced classes,
    with Σ_B the covariance of the means.

    Raises:
        ValueError: fewer than C dimensions, or more than fit into memory.
    """
    C = classes.num_classes
    if dimension < C:
        raise ValueError(f"dimension: expected at least the {C} classes' number, for a simplex; got {dimension}.")
    check_positive("separation", separation)
    check_positive("noise", noise, zero=True)
    check_affordable("classes, dimension", (classes.num_samples, dimension), 8, "take fewer samples or dimensions")
    generator = np.random.default_rng(seeded(seed))
    basis = np.linalg.qr(generator.standard_normal((dimension, C)))[0].T
    means = separation / math.sqrt(2) * (basis - basis.mean(0))
    rows = np.repeat(means, classes.sizes, axis=0)
    rows = rows + noise * generator.standard_normal(rows.shape)
    return Dataset(rows.astype(np.float32), classes, "gaussian-mixture")


def orthogonal_inputs(classes: Classes, *, seed: int, dimension: int | None = None) -> Dataset:
    """Orthonormal inputs: x_iᵀx_j = δ_ij, so that the input kernel is the identity whatever the classes.

    Raises:
        ValueError: fewer dimensions than samples, or more than fit into memory.
    """
    N = classes.num_samples
    dimension = N if dimension is None else dimension
    if dimension < N:
        raise ValueError(f"dimension: expected at least the {N} samples' number, got {dimension}.")
    check_affordable("classes, dimension", (N, dimension), 8, "take fewer samples or dimensions")
    rows = np.linalg.qr(np.random.default_rng(seeded(seed)).standard_normal((dimension, N)))[0].T
    return Dataset(rows.astype(np.float32), classes, "orthogonal")


def random_labels(data: Dataset, *, seed: int) -> Dataset:
    """The same inputs and class sizes with labels that know nothing of them: a permutation."""
    return _relabelled(data, np.random.default_rng(seeded(seed)).permutation(data.labels), "random-labels")


def label_noise(data: Dataset, fraction: float, *, seed: int) -> Dataset:
    """The nearest whole number to `fraction` of each class moved to another class, each other class equally likely.

    Raises:
        ValueError: a fraction outside [0, 1], or so large that a class is left empty.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction: expected a number from 0 to 1, got {fraction}.")
    generator = np.random.default_rng(seeded(seed))
    C, labels = data.classes.num_classes, data.labels.copy()
    for c in range(C):
        rows = np.flatnonzero(data.labels == c)
        moved = generator.permutation(rows)[: round(fraction * len(rows))]
        labels[moved] = (c + generator.integers(1, C, len(moved))) % C
    return _relabelled(data, labels, f"label-noise-{fraction:g}")


def imbalanced(data: Dataset, ratio: float, *, kind: str = "exponential", seed: int | None = None) -> Dataset:
    """The set thinned until its largest class has about `ratio` times the samples of its smallest.

    "exponential": m_c = m ratio^(−c/(C−1)). "step": the second half of the classes has m / ratio each. Sizes are the
    nearest whole numbers: 30 asked of 100 samples a class leaves 3 in the smallest, and that is a ratio of 33.3. The
    name of the set says the ratio that was made.

    Raises:
        ValueError: a ratio below 1 or so large that a class is left empty, or an unknown kind.
    """
    if not ratio >= 1 or kind not in IMBALANCES:
        raise ValueError(
            f"ratio, kind: expected a ratio of at least 1, and 'exponential' or 'step'; got {ratio}, {kind!r}."
        )
    C, m = data.classes.num_classes, min(data.classes.sizes)
    exponents = np.arange(C) / (C - 1) if kind == "exponential" else (np.arange(C) >= (C + 1) // 2).astype(float)
    sizes = tuple(round(float(m * ratio**-e)) for e in exponents)
    if min(sizes) < 1:
        raise ValueError(f"ratio: expected at most the {m} samples of a class, got {ratio}: a class would be empty.")
    full = data.balanced(m, seed=seed)
    rows = np.concatenate([c * m + np.arange(size) for c, size in enumerate(sizes)])
    made = max(sizes) / min(sizes)
    return Dataset(full.inputs[rows], Classes(sizes), f"{data.name}/imbalanced-{kind}-{made:.3g}", data.class_names)


def _relabelled(data: Dataset, labels: np.ndarray, what: str) -> Dataset:
    return Dataset.of(data.inputs, labels, name=f"{data.name}/{what}", class_names=data.class_names)
