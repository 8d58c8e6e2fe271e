"""Eigenvalues of the empirical NTK, and which level of the block structure they belong to."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import LinearOperator, eigsh

from ntkcollapse._checks import check_real
from ntkcollapse._precision import in_precision
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes
from ntkcollapse.ntk.engines._contract import EXACT
from ntkcollapse.ntk.products import NTKOperator
from ntkcollapse.sample_kernel import DenseKernel

# Of eigenvalues that occur several times: those this far above the smallest one found are missed with this chance.
_MARGIN = 1e-2
_CHANCE = 1e-6


class Levels(NamedTuple):
    """How many eigenvalues lie near λ_global, λ_class and λ_single; a block kernel has 1, C − 1 and N − C."""

    near_global: int
    near_class: int
    near_single: int


def top_eigenvalues(
    operator: NTKOperator, num: int, *, key: PRNGKeyArray, tolerance: float = 1e-6
) -> tuple[Float[np.ndarray, " num"], Float[np.ndarray, "size num"]]:
    """Largest eigenvalues in descending order, and their vectors, by restarted Lanczos (ARPACK).

    A Krylov space from one vector has one copy of an eigenvalue that occurs several times, as do those of a linear last
    layer, once for each output. So what was found is taken out of the kernel, and a Lanczos run in the rest adds what
    lies above the smallest value returned, again until nothing does. An eigenvalue more than 1% above that one (and
    more than rounding of the products) is then missed with a chance below 1e-6, over the random start vectors; what
    lies between is found where Lanczos resolves it, which it does for copies.

    Cost: a few times `num` products with the kernel, and for each run in the rest fewer than that: one run where no
    eigenvalue occurs twice, and up to one for each copy where some do.

    Args:
        operator: of N·K rows (outputs "full") or N rows ("mean").
        num: how many, fewer than the kernel has rows.
        key: for the start vector.
        tolerance: relative, of the eigenvalues.
    Raises:
        ValueError: `num` out of range.
    References:
        van Dorsselaer, Hochstenbach, van der Vorst (2000), "Computing probabilistic bounds for extreme eigenvalues of
        symmetric matrices with the Lanczos method".
    """
    size = _size(operator)
    _check_number(num, size)

    start = np.asarray(jax.random.normal(key, (size,), dtype=float), dtype=float)
    linear = LinearOperator((size, size), matvec=lambda v: _flat(operator, v), dtype=np.dtype(float))  # pyright: ignore
    values, vectors = eigsh(linear, k=num, which="LA", v0=start, tol=tolerance)  # pyright: ignore
    missed = 1
    while missed and values.size < size:
        key, start = jax.random.split(key)
        more, beside = _in_the_rest(operator, vectors, np.sort(values)[-num], values.max(), tolerance, start)
        values, vectors, missed = np.concatenate([values, more]), np.hstack([vectors, beside]), more.size
    order = np.argsort(-values)[:num]
    return values[order], vectors[:, order]


def _in_the_rest(
    operator: NTKOperator,
    known: np.ndarray,
    least: float,
    largest: float,
    tolerance: float,
    key: PRNGKeyArray,
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues above `least` beside those of the orthonormal vectors `known`, with their vectors; not every copy.

    With θ_j the Ritz values after q steps and β_j the norms that were divided by, Π_j (A − θ_j) v = Π_j β_j v_{q+1}.
    An eigenvalue μ above all θ_j, of which v has the component c, then has c Π_j (μ − θ_j) ≤ Π_j β_j; and a random
    v of n components has c < ε / √n with a chance below ε.
    """

    def outside(v):
        return v - known @ (known.T @ v)

    size = known.shape[0]
    start = outside(np.asarray(jax.random.normal(key, (size,), dtype=float), dtype=float))
    rounding = 100 * float(jnp.finfo(operator.dtype).eps) * largest
    above = least + tolerance * abs(least) + rounding
    bound = least + max(tolerance, _MARGIN) * abs(least) + rounding
    found = np.zeros(0), np.zeros((size, 0))
    for basis, diagonal, norms in _krylov(lambda v: outside(_flat(operator, outside(v))), start, size - known.shape[1]):
        values, small = eigh_tridiagonal(diagonal, norms[:-1])
        errors = norms[-1] * np.abs(small[-1])
        settled = errors <= tolerance * np.abs(values) + rounding
        new = np.flatnonzero(settled & (values > above))
        found = values[new], basis.T @ small[:, new]
        if (~settled & (values + errors > above)).any():
            continue
        if new.size or norms[-1] == 0 or np.log((bound - values) / norms).sum() > np.log(np.sqrt(size) / _CHANCE):
            break
    return found


def spectral_density(
    operator: NTKOperator, *, num_matvecs: int, num_probes: int, key: PRNGKeyArray
) -> tuple[Float[np.ndarray, "probes nodes"], Float[np.ndarray, "probes nodes"]]:
    """Nodes and weights of the eigenvalue density, by stochastic Lanczos quadrature.

    Each probe gives a Gauss rule: E Σ w_j g(ξ_j) = (1/size) Σ_i g(λ_i), exactly for a polynomial g of degree below
    2·num_matvecs. A histogram or a sum of narrow bells over all nodes, with weights / probes, shows the density.

    Args:
        num_matvecs: products with the kernel for each probe; the number of nodes.
        num_probes: random vectors; the error falls as one over its root.
        key: for the probes.
    Returns:
        Nodes and weights, one row a probe; the weights of a row sum to one.
    Raises:
        ValueError: fewer than one product or probe.
    """
    for name, number in (("num_matvecs", num_matvecs), ("num_probes", num_probes)):
        if number < 1:
            raise ValueError(f"{name}: expected at least 1, got {number}.")
    size = _size(operator)
    nodes, weights = [], []
    keys = jax.random.split(key, num_probes)
    starts = [np.asarray(jax.random.rademacher(probe, (size,), dtype=float), dtype=float) for probe in keys]
    runs = [_Lanczos(start) for start in starts]
    for _ in range(min(num_matvecs, size)):
        # One pass over the samples for the products of all probes.
        going = [run for run in runs if not run.is_exhausted]
        if not going:
            break
        X = np.stack([run.basis[-1] for run in going], axis=-1).reshape(*operator.shape, -1)
        products = np.asarray(operator.matmat(X), dtype=float).reshape(size, -1)
        for run, product in zip(going, products.T, strict=True):
            run.add(product)
    for run in runs:
        values, vectors = eigh_tridiagonal(np.asarray(run.diagonal), np.asarray(run.norms[:-1]))
        # Fewer nodes where the Krylov space is exhausted: the same number of rows for all, with weight zero.
        missing = num_matvecs - len(values)
        nodes.append(np.pad(values, (0, missing), mode="edge"))
        weights.append(np.pad(vectors[0] ** 2, (0, missing)))
    return np.stack(nodes), np.stack(weights)


def _krylov(
    product: Callable[[np.ndarray], np.ndarray], start: np.ndarray, steps: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Lanczos: (basis, diagonal, norms) after each of at most `steps` products, until nothing is left.

    A loop on the host, since each product streams over samples there.
    """
    run = _Lanczos(start)
    for n in range(steps):
        run.add(product(run.basis[-1]))
        yield np.stack(run.basis[: n + 1]), np.asarray(run.diagonal), np.asarray(run.norms)
        if run.is_exhausted:
            break


class _Lanczos:
    """Lanczos with full reorthogonalisation, from one vector: `add` takes the product with the newest basis vector.

    The tridiagonal matrix has the norms but the last one beside its diagonal. The last one is that of what the next
    basis vector is made of: 0 where nothing is left, and then there is none.
    """

    def __init__(self, start: np.ndarray):
        self.basis = [start / np.linalg.norm(start)]
        self.diagonal: list[float] = []
        self.norms: list[float] = []

    @property
    def is_exhausted(self) -> bool:
        return bool(self.norms) and self.norms[-1] == 0

    def add(self, w: np.ndarray) -> None:
        scale = np.linalg.norm(w)
        self.diagonal.append(float(self.basis[-1] @ w))
        Q = np.stack(self.basis)
        for _ in range(2):  # Once is not enough in floating point; twice is.
            w = w - Q.T @ (Q @ w)
        norm = float(np.linalg.norm(w))
        self.norms.append(norm if norm > 1e-10 * scale else 0.0)
        if not self.is_exhausted:
            self.basis.append(w / norm)


def _flat(operator: NTKOperator, v: np.ndarray) -> np.ndarray:
    return np.asarray(operator(np.asarray(v).reshape(operator.shape)), dtype=float).ravel()


def count_levels(eigenvalues, kernel: BlockKernel, classes: Classes) -> Levels:
    """How many of the eigenvalues lie nearest, on a logarithmic scale, to each of λ_global, λ_class and λ_single.

    Args:
        eigenvalues: of an N × N kernel, all of them or the largest; those not given are counted as near λ_single.
        kernel: the measured three numbers, `block_statistics(...).kernel`.
    Raises:
        ValueError: a kernel that is not ordered λ_global > λ_class > λ_single > 0, where the levels mean nothing.
    """
    check_real(eigenvalues=eigenvalues)
    single, class_, global_ = (float(v) for v in kernel.rates(classes))
    if not global_ > class_ > single > 0:
        raise ValueError(
            f"kernel: expected λ_global > λ_class > λ_single > 0, got {global_:.4g}, {class_:.4g}, {single:.4g}; "
            "the kernel is not aligned with the classes, so that its eigenvalues belong to no level."
        )
    values = np.asarray(eigenvalues)
    above_class = int((values > np.sqrt(global_ * class_)).sum())
    above_single = int((values > np.sqrt(class_ * single)).sum())
    return Levels(above_class, above_single - above_class, classes.num_samples - above_single)


@in_precision
def within_class_eigenvalues(matrix, classes: Classes) -> Float[Array, " rest"]:
    """Eigenvalues of the within-class remainder QΘQ on its N − C dimensions, in ascending order.

    Q takes away class means. Under block structure they are all λ_single; the smallest of a measured kernel are what a
    trained network follows late. Exact in any units. Cost: one eigendecomposition of an N × N matrix.

    Args:
        matrix: the kernel, samples in class order.
    """
    theta = DenseKernel(matrix).as_matrix(classes)
    # In a basis of the deviations, without the C directions of the class means, whose zeros would lie among the values.
    Z = classes.expand(jnp.eye(classes.num_classes, dtype=theta.dtype)).T
    contrasts = jnp.linalg.qr(Z, mode="complete")[0][:, classes.num_classes :]
    return jnp.linalg.eigvalsh(jnp.linalg.multi_dot([contrasts.T, theta, contrasts], precision=EXACT))


def _size(operator: NTKOperator) -> int:
    if not operator.is_symmetric:
        raise ValueError("operator: expected the kernel of one set of samples, got one between two (x2).")
    return int(np.prod(operator.shape))


def _check_number(num: int, size: int) -> None:
    if not 1 <= num < size:
        raise ValueError(f"num: expected 1 to {size - 1} eigenvalues of a kernel with {size} rows, got {num}.")
