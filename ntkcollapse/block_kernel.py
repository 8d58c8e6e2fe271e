"""The block-structured kernel: one value on the diagonal, one within classes, one between them."""

import warnings
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkcollapse._arrays import as_array, module_of
from ntkcollapse._checks import check_arrays, check_finite, check_shape, is_traced
from ntkcollapse._types import AnyArray
from ntkcollapse.classes import Classes
from ntkcollapse.sample_kernel import SampleKernel


class BlockKernel(SampleKernel):
    r"""A kernel whose entries depend on classes only.

        K_ij = diagonal (i = j),  within (same class, i ≠ j),  between (different classes)
        K = λ_single I + Z G Zᵀ,  λ_single = diagonal − within,  G = (within − between) I + between 1 1ᵀ

    The three numbers are the paper's (κ_d, κ_c, κ_n) for the feature kernel Θ^h and (γ_d, γ_c, γ_n) for the output
    kernel Θ. In the general form `diagonal` and `within` have one value a class and `between` is a symmetric C × C
    matrix (its own diagonal is not read): everything here holds for it too.

    With m samples in each class the eigenvalues are, and the theorem wants, λ_global ≥ λ_class ≥ λ_single > 0:

        λ_single = diagonal − within               (N − C times)
        λ_class  = λ_single + m (within − between)   (C − 1 times)
        λ_global = λ_class + N between               (once)

    Args:
        diagonal: scalar or (C,).
        within: scalar or (C,).
        between: scalar or (C, C).

    Raises:
        ValueError: λ_single ≤ 0, a `between` that is not symmetric, or numbers that are not real, masked or not finite.

    Warns:
        UserWarning: the order of the eigenvalues is violated (within < between, or between < 0).

    References:
        Seleznova et al. (2023), Section 2.3 (block structure), Section 4.1 and Table 1 (eigenvalues).

    >>> kappa = BlockKernel(diagonal=3.0, within=2.0, between=0.5)
    >>> [float(x) for x in kappa.rates(Classes.balanced(num_classes=4, per_class=5))]
    [1.0, 8.5, 18.5]
    """

    diagonal: Float[Array, "*single"]
    within: Float[Array, "*single"]
    between: Float[Array, "*pair"]
    reducible: ClassVar[bool] = True

    def __init__(self, diagonal, within, between):
        check_arrays(diagonal=diagonal, within=within, between=between)
        self.diagonal, self.within, self.between = map(_floating, (diagonal, within, between))

    def __check_init__(self):
        C = max((x.shape[0] for x in (self.diagonal, self.within, self.between) if x.ndim), default=None)
        for name, value, general in (
            ("diagonal", self.diagonal, (C,)),
            ("within", self.within, (C,)),
            ("between", self.between, (C, C)),
        ):
            if value.ndim:
                check_shape(name, value, general, "one value for each class (between: each pair of classes)")
            check_finite(name, value)
        if is_traced(self.diagonal, self.within, self.between):
            return
        if C == 0:
            raise ValueError("diagonal, within, between: expected a value for each class, got none.")
        # As arrays of numpy: also known numbers are traced by what JAX's own arrays do in a function under `jit`.
        within, B = np.asarray(self.within), np.asarray(self.between)
        lambda_single = np.asarray(self.diagonal) - within
        if lambda_single.min() <= 0:
            raise ValueError(
                f"diagonal, within: expected λ_single = diagonal − within above zero, got {lambda_single.min():.4g}; "
                "a sample's kernel with itself exceeds its kernel with others of its class."
            )
        off = B if B.ndim == 0 else B[~np.eye(len(B), dtype=bool)]
        if B.ndim and np.abs(B - B.T).max() > 1e-5 * np.abs(B).max():
            raise ValueError("between: expected a symmetric matrix of class-pair means, got one that is not.")
        if within.min() < off.max():
            warnings.warn(
                f"kernel: within = {within.min():.4g} < between = {off.max():.4g}, so λ_class ≥ λ_single "
                "fails: the kernel is not aligned with the classes as the theorem assumes.",
                stacklevel=3,
            )
        if off.min() < 0:
            warnings.warn(
                f"kernel: between = {off.min():.4g} < 0, so λ_global ≥ λ_class fails: "
                "the global mean is not the fastest part as the theorem assumes.",
                stacklevel=3,
            )

    @classmethod
    def from_class_pairs(cls, diagonal: Float[AnyArray, " C"], class_pairs: Float[AnyArray, "C C"]) -> "BlockKernel":
        """The general block kernel of measured means: `diagonal` a class, `class_pairs` over i ≠ j."""
        xp = module_of(class_pairs)
        pairs = xp.asarray(class_pairs)
        return cls(diagonal=diagonal, within=xp.diagonal(pairs), between=pairs)

    @property
    def is_uniform(self) -> bool:
        """Whether it is the theorem's form: three numbers."""
        return self.diagonal.ndim == self.within.ndim == self.between.ndim == 0

    @property
    def lambda_single(self) -> Float[Array, "*single"]:
        """λ_single = diagonal − within: one number, or one a class."""
        xp = module_of(self)
        return as_array(xp.asarray(self.diagonal) - xp.asarray(self.within))

    def lambda_class(self, classes: Classes) -> Float[Array, ""]:
        """λ_class = λ_single + m (within − between); three-number form and balanced classes only."""
        self._check_uniform()
        return self.lambda_single + classes.per_class * (self.within - self.between)

    def lambda_global(self, classes: Classes) -> Float[Array, ""]:
        """λ_global = λ_class + N between; three-number form and balanced classes only."""
        return self.lambda_class(classes) + classes.num_samples * self.between

    def rates(self, classes: Classes) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
        """(λ_single, λ_class, λ_global)."""
        return self.lambda_single, self.lambda_class(classes), self.lambda_global(classes)

    def pair_matrix(self, num_classes: int) -> Float[Array, "C C"]:
        """G: entry of K for two different samples of classes c and d."""
        return as_array(self._pairs(num_classes))

    def _library(self, *arrays) -> Any:
        """numpy where all numbers are known: C × C matrices are made at once there, and nothing is compiled."""
        return jnp if is_traced(self.diagonal, self.within, self.between, *arrays) else np

    def _pairs(self, num_classes: int) -> Any:
        xp = self._library()
        eye = np.eye(num_classes, dtype=bool)
        within = xp.broadcast_to(xp.asarray(self.within), (num_classes,))
        between = xp.broadcast_to(xp.asarray(self.between), (num_classes, num_classes))
        return xp.where(eye, xp.broadcast_to(within[:, None], eye.shape), between)

    def mv(self, X, classes):
        xp: Any = module_of(X, self)
        C, X = classes.num_classes, xp.asarray(X)
        single = classes.expand(xp.broadcast_to(xp.asarray(self.lambda_single), (C,)))
        of_pairs = classes.expand(xp.asarray(classes.sums(X)) @ xp.asarray(self.pair_matrix(C)))
        return as_array(xp.einsum("...i,i->...i", X, xp.asarray(single)) + xp.asarray(of_pairs))

    def solve(self, X, classes):
        # X splits into deviations, where K acts as λ_single of their class, and class means, where Z Γ Zᵀ acts.
        C = classes.num_classes
        means, sizes = classes.means(X), classes.weights
        single = classes.expand(1 / jnp.broadcast_to(self.lambda_single, (C,)))
        on_classes = means @ jnp.linalg.inv(sizes[:, None] * self.class_gram(sizes))
        return jnp.einsum("...i,i->...i", classes.deviations(X), single) + classes.expand(on_classes)

    def as_matrix(self, classes):
        return self.mv(as_array(np.eye(classes.num_samples, dtype=self.diagonal.dtype)), classes)

    def block_means(self, classes):
        return (self.diagonal, self.within, self.between) if self.is_uniform else super().block_means(classes)

    def eigenvalues(self, classes):
        C, xp = classes.num_classes, self._library()
        sizes = np.asarray(classes.sizes, dtype=self.diagonal.dtype)
        root = np.sqrt(sizes)
        on_classes = xp.linalg.eigvalsh(root[:, None] * xp.asarray(self.class_gram(sizes)) * root[None, :])
        diagonal, within, between = (xp.asarray(x) for x in (self.diagonal, self.within, self.between))
        single, counts = xp.atleast_1d(diagonal - within), [classes.num_samples - C]
        if len(single) > 1:
            counts = list(np.asarray(classes.sizes, dtype=float) - 1)
        if self.is_uniform and classes.is_balanced:
            of_class = diagonal - within + classes.per_class * (within - between)
            values = xp.stack([diagonal - within, of_class, of_class + classes.num_samples * between])
            multiplicity = np.asarray([classes.num_samples - C, C - 1, 1], dtype=float)
        else:
            values = xp.concatenate([single, on_classes])
            multiplicity = np.asarray([*counts, *np.ones(C)], dtype=float)
        if is_traced(values):
            return values, multiplicity
        order = np.argsort(np.asarray(values))
        order = order[multiplicity[order] > 0]
        return as_array(values[order]), multiplicity[order]

    def class_gram(self, sizes):
        C, xp = sizes.shape[0], self._library(sizes)
        single = xp.broadcast_to(xp.asarray(self.diagonal) - xp.asarray(self.within), (C,))
        return as_array(self._pairs(C) + xp.diag(single / xp.asarray(sizes).astype(self.diagonal.dtype)))

    def group_rates(self, num_classes):
        # One rate for all deviations, or one a class.
        del num_classes
        xp = module_of(self)
        return as_array(xp.atleast_1d(xp.asarray(self.lambda_single)))

    def split(self, deviations, classes):
        if self.diagonal.ndim == self.within.ndim == 0:
            return deviations[None]
        member = np.repeat(np.eye(classes.num_classes, dtype=bool), classes.sizes, axis=1)
        xp = jnp if is_traced(deviations) else np
        return xp.where(member[:, None, :], deviations[None], xp.zeros((), deviations.dtype))

    def _check_uniform(self) -> None:
        if not self.is_uniform:
            raise ValueError(
                "kernel: λ_class and λ_global are defined for the three-number form; "
                "ask a general block kernel for eigenvalues(classes)."
            )


def _floating(x: Any) -> Any:
    """An array of floating-point numbers: in its own precision, where it has one."""
    if is_traced(x):
        x = jnp.asarray(x)
        return x.astype(jnp.result_type(float, x))
    x = np.asarray(x)
    return as_array(x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float))
