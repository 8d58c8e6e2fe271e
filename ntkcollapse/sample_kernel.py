"""What the gradient flow asks of a kernel on samples, and the measured kernel as a plain matrix."""

import abc
import itertools
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
from jaxtyping import Array, Float, Num

from ntkcollapse._arrays import as_array, module_of
from ntkcollapse._checks import check_arrays, check_finite, check_shape, is_traced
from ntkcollapse._types import AnyArray
from ntkcollapse.classes import Classes

# What a kernel does, and what its reduction rests on.
_VERBS = ("at", "mv", "solve", "as_matrix", "class_gram", "direction_gram", "directions", "group_rates", "split")


class SampleKernel(eqx.Module):
    """A symmetric positive-definite kernel K (N × N) on the samples of `Classes`.

    Three verbs serve every flow: `mv` (X ↦ X K), `solve` (X ↦ X K⁻¹) and `as_matrix`.

    A kernel is *reducible* when K maps what is constant within classes to itself and acts on deviations from the
    class means by one rate λ_g in each of G groups:

        K = Z Γ Zᵀ + Σ_g λ_g Q_g,   Q_g orthogonal projections with Σ_g Q_g = I − Z D⁻¹ Zᵀ.

    Then class means and G within-class scatters form a closed system, and three more verbs describe it:
    `class_gram` (Γ), `group_rates` (λ_g) and `split` (X ↦ X Q_g). A subclass with verbs of its own is not reducible
    unless it sets `reducible = True` itself.

    A kernel may mix class means with further directions V (N × K), and is then reducible where

        K = B Γ Bᵀ + Σ_g λ_g Q_g,   B = [Z, √w V],   w = N/C,   Vᵀ V = I,   Zᵀ V = 0,   Σ_g Q_g = I − P_B

    with P_B the projection on the span of B: `directions` gives V, `direction_gram` Γ (C + K × C + K). The columns of
    √w V are as long as an indicator of a class of mean size, so that H V/√w is of the size of a sample's features.
    """

    reducible: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # A kernel of one's own that changes how K acts is reduced only where it says itself that this is exact.
        if "reducible" not in cls.__dict__ and any(verb in cls.__dict__ for verb in _VERBS):
            cls.reducible = False

    def at(self, t: float | Num[AnyArray, ""]) -> "SampleKernel":
        """The kernel at flow time t: itself, unless it changes in time."""
        del t
        return self

    @abc.abstractmethod
    def mv(self, X: Float[AnyArray, "... N"], classes: Classes) -> Float[Array, "... N"]:
        """X K."""

    @abc.abstractmethod
    def solve(self, X: Float[AnyArray, "... N"], classes: Classes) -> Float[Array, "... N"]:
        """X K⁻¹."""

    @abc.abstractmethod
    def as_matrix(self, classes: Classes) -> Float[Array, "N N"]:
        """K as a dense matrix: N² numbers."""

    @abc.abstractmethod
    def eigenvalues(self, classes: Classes) -> tuple[Float[Array, " E"], Float[np.ndarray, " E"]]:
        """Eigenvalues in ascending order, and how often each occurs (the multiplicities sum to N)."""

    def block_means(self, classes: Classes) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
        """Means of its entries over i = j, over pairs i ≠ j of one class, and over pairs of different classes.

        For equal classes these are the kernel's best approximation by three numbers in the Frobenius norm. NaN where
        there are no pairs.
        """
        K = self.as_matrix(classes)
        pairs = classes.sums(classes.sums(K).T)
        trace, same, total = jnp.trace(K), jnp.trace(pairs), pairs.sum()
        return classes.block_means(trace, same - trace, total - same)

    def check(self, classes: Classes) -> None:
        """Raises ValueError where K is not positive definite on these classes, or not of their size."""
        values, _ = self.eigenvalues(classes)
        if not is_traced(values) and float(values[0]) <= 0:
            raise ValueError(
                f"kernel: expected a positive-definite kernel on {classes.num_samples} samples, got the eigenvalue "
                f"{float(values[0]):.3g}; add a positive multiple of the identity, or measure on more samples."
            )

    def class_gram(self, sizes: Float[AnyArray, " C"]) -> Float[Array, "C C"]:
        """Γ = D⁻¹ Zᵀ K Z D⁻¹: mean entry for each pair of classes, i = j included."""
        raise NotImplementedError(f"{type(self).__name__} has no exact reduction to class means.")

    @property
    def num_directions(self) -> int:
        """How many further directions K mixes with class means; a number that does not wait for values."""
        return 0

    def directions(self, classes: Classes) -> Float[AnyArray, "N K"]:
        """V: the further directions that K mixes with class means."""
        return np.zeros((classes.num_samples, 0))

    def direction_gram(self, sizes: Float[AnyArray, " C"]) -> Float[Array, "R R"]:
        """Γ on class indicators and further directions: `class_gram` where there are none of these."""
        return self.class_gram(sizes)

    def group_rates(self, num_classes: int) -> Float[Array, " G"]:
        """λ_g, the eigenvalue of K on each group of within-class deviations."""
        raise NotImplementedError(f"{type(self).__name__} has no exact reduction to class means.")

    def split(self, deviations: Float[AnyArray, "n N"], classes: Classes) -> Float[AnyArray, "G n N"]:
        """X Q_g for each group: the parts of the deviations that share one rate; they sum to X."""
        raise NotImplementedError(f"{type(self).__name__} has no exact reduction to class means.")


class DenseKernel(SampleKernel):
    """A measured kernel as the matrix it is.

    Args:
        matrix: symmetric positive definite, (N, N), samples in class order.

    Raises:
        ValueError: not square, not symmetric to single precision, or numbers that are not real, masked or not finite.
    """

    matrix: Float[Array, "N N"]

    def __init__(self, matrix):
        check_arrays(matrix=matrix)
        xp: Any = module_of(matrix)
        matrix = xp.asarray(matrix)
        check_shape("matrix", matrix, (None, matrix.shape[0] if matrix.ndim else None), "(N, N)")
        check_finite("matrix", matrix)
        if not is_traced(matrix):
            with np.errstate(all="ignore"):
                asymmetry = float(xp.abs(matrix - matrix.T).max() / xp.abs(matrix).max())
            # Kernels are measured in single precision: rounding alone leaves about 1e-6.
            if asymmetry > 1e-4:
                raise ValueError(
                    f"matrix: expected a symmetric kernel, got a relative asymmetry of {asymmetry:.1g}; "
                    "rows and columns must be the same samples in the same order."
                )
        self.matrix = as_array((matrix + matrix.T) / 2)

    def mv(self, X, classes):
        xp: Any = module_of(X, self.matrix)
        return as_array(xp.asarray(X) @ xp.asarray(self.matrix))

    def solve(self, X, classes):
        factor = jsl.cho_factor(self.matrix, lower=True)
        flat = jnp.reshape(X, (-1, X.shape[-1]))
        return jsl.cho_solve(factor, flat.T).T.reshape(X.shape)

    def as_matrix(self, classes):
        check_shape("matrix", self.matrix, (classes.num_samples,) * 2, "(N, N) for the samples of classes")
        return self.matrix

    def eigenvalues(self, classes):
        values = jnp.linalg.eigvalsh(self.as_matrix(classes))
        return values, np.ones(classes.num_samples)


class GroupedKernel(SampleKernel):
    """A measured kernel without its cross terms between class means and deviations, its spectrum in groups.

        K = Z Γ Zᵀ + Σ_g λ_g Q_g

    Γ holds the measured class-pair means; the within-class remainder of the kernel is diagonalised and its
    eigenvalues are put in G groups of equal size, each with its mean as λ_g. With one group and Γ of block form it
    is `BlockKernel`; with N − C groups it is the measured kernel less its cross terms.

    Build with `GroupedKernel.from_matrix`.
    """

    gram: Float[Array, "C C"]
    rates: Float[Array, " G"]
    basis: Float[Array, "N R"]
    bounds: tuple[int, ...] = eqx.field(static=True)
    reducible: ClassVar[bool] = True

    @classmethod
    def from_matrix(cls, matrix: Float[AnyArray, "N N"], classes: Classes, *, groups: int) -> "GroupedKernel":
        """The kernel closest to `matrix` that keeps classes and deviations apart, in `groups` groups of rates.

        Cost: one eigendecomposition of an N × N matrix.

        Raises:
            ValueError: `groups` outside 1, ..., N − C, or a matrix of another size.
        """
        K = DenseKernel(matrix).as_matrix(classes)
        rank = classes.num_samples - classes.num_classes
        if not 1 <= groups <= rank:
            raise ValueError(f"groups: expected 1 to N - C = {rank} groups of within-class rates, got {groups}.")
        # An explicit basis of the deviations: the within-class spectrum may itself reach down to the 0 of the means.
        xp: Any = module_of(K)
        Z = np.repeat(np.eye(classes.num_classes, dtype=K.dtype), classes.sizes, axis=0)
        contrasts = np.linalg.qr(Z, mode="complete")[0][:, classes.num_classes :]
        values, vectors = xp.linalg.eigh(contrasts.T @ xp.asarray(K) @ contrasts)
        basis = as_array(contrasts @ vectors)
        bounds = tuple(int(i) for i in np.linspace(0, rank, groups + 1).round())
        rates = as_array(xp.stack([values[i:j].mean() for i, j in itertools.pairwise(bounds)]))
        return cls(gram=classes.means(classes.means(K).T), rates=rates, basis=basis, bounds=bounds)

    def check(self, classes):
        N, C = classes.num_samples, classes.num_classes
        check_shape("basis", self.basis, (N, N - C), "(N, N - C) for the samples of classes")
        if not is_traced(self.basis) and float(jnp.abs(classes.sums(self.basis.T)).max()) > 1e-4:
            raise ValueError("kernel: expected a kernel grouped for these classes, got one of other class sizes.")
        super().check(classes)

    def _rate_of_each(self) -> Float[Array, " R"]:
        return jnp.repeat(self.rates, np.diff(self.bounds), total_repeat_length=self.basis.shape[1])

    def mv(self, X, classes):
        within = jnp.einsum("...r,r->...r", X @ self.basis, self._rate_of_each())
        return classes.expand(classes.sums(X) @ self.gram) + within @ self.basis.T

    def solve(self, X, classes):
        on_classes = classes.means(X) @ jnp.linalg.inv(classes.weights[:, None] * self.gram)
        within = jnp.einsum("...r,r->...r", X @ self.basis, 1 / self._rate_of_each())
        return classes.expand(on_classes) + within @ self.basis.T

    def as_matrix(self, classes):
        return self.mv(as_array(np.eye(classes.num_samples, dtype=self.gram.dtype)), classes)

    def eigenvalues(self, classes):
        xp: Any = module_of(self)
        gram, root = xp.asarray(self.gram), np.sqrt(np.asarray(classes.sizes, self.gram.dtype))
        values = xp.concatenate([xp.linalg.eigvalsh(root[:, None] * gram * root[None, :]), xp.asarray(self.rates)])
        order = xp.argsort(values)
        counts = np.concatenate([np.ones(classes.num_classes), np.diff(self.bounds)])
        return as_array(values[order]), counts[np.asarray(order)] if not is_traced(order) else counts

    def class_gram(self, sizes):
        del sizes
        return self.gram

    def group_rates(self, num_classes):
        del num_classes
        return self.rates

    def split(self, deviations, classes):
        del classes
        xp: Any = module_of(deviations, self.basis)
        X, basis = xp.asarray(deviations), xp.asarray(self.basis)
        return xp.stack([(X @ V) @ V.T for V in (basis[:, i:j] for i, j in itertools.pairwise(self.bounds))])
