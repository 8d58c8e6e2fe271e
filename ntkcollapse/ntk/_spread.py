"""The Frobenius norm of a kernel on samples, by class means and deviations from them.

With P the projection on what is constant within classes and Q = I − P,

    ‖Θ‖² = ‖PΘP‖² + 2 ‖PΘQ‖² + ‖QΘQ‖².

The first term is known exactly from sums over classes. The other two are exact where Θ is at hand, and otherwise
estimated without bias from random signs z projected by Q: E‖PΘz‖² = ‖PΘQ‖², E(zᵀΘz')² = ‖QΘQ‖².
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkcollapse.classes import Classes
from ntkcollapse.ntk.engines._contract import EXACT


class BlockMeans(NamedTuple):
    """The three numbers of block structure as they were measured.

    `BlockKernel` asks for diagonal > within, which means over classes of unequal size need not obey.
    """

    diagonal: float | Array
    within: float | Array
    between: float | Array

    @property
    def single(self) -> float | Array:
        """What the block structure does to deviations from class means."""
        return self.diagonal - self.within


class Spread(eqx.Module):
    """Squared norms of the parts of a kernel, and of what is left of them beside a block kernel, if there is one.

    Arrays over R hold the value first, then its jackknife replicates (each without one probe) where it is estimated.
    """

    class_gram: Float[Array, "C C"]
    block: BlockMeans | None
    mixed: Float[Array, " R"]
    mixed_centred: Float[Array, " R"]
    within: Float[Array, " R"]
    within_residual: Float[Array, " R"]
    classes: Classes

    def value(self, of: Callable[["Spread"], Float[Array, " R"]]) -> Float[Array, ""]:
        """A quantity made of these norms."""
        return of(self)[0]

    def standard_error(self, of: Callable[["Spread"], Float[Array, " R"]]) -> Float[Array, ""]:
        """Its standard error over the random probes, by the jackknife; zero where nothing was estimated."""
        replicates = of(self)[1:]
        q = replicates.shape[0]
        return jnp.sqrt((q - 1) * jnp.var(replicates)) if q else jnp.zeros((), self.mixed.dtype)

    def residual(self) -> Float[Array, " R"]:
        """‖Θ − B‖ / ‖Θ‖ with B of block structure."""
        rest = jnp.square(self._means() - self._block_means()).sum() + 2 * self.mixed + self.within_residual
        return jnp.sqrt(jnp.maximum(rest, 0) / (jnp.square(self._means()).sum() + 2 * self.mixed + self.within))

    def alignment(self) -> Float[Array, " R"]:
        """⟨Θ, YᵀY⟩ / (‖Θ‖ ‖YᵀY‖)."""
        sizes = self._sizes()
        norm = jnp.sqrt(jnp.square(self._means()).sum() + 2 * self.mixed + self.within)
        return (jnp.diagonal(self._means()) * sizes).sum() / (norm * jnp.sqrt(jnp.square(sizes).sum()))

    def centred_alignment(self) -> Float[Array, " R"]:
        """The same with the mean over samples taken out of both kernels: centred kernel alignment (CKA)."""
        root = jnp.sqrt(self._sizes() / self.classes.num_samples)
        H = jnp.eye(len(root), dtype=root.dtype) - jnp.outer(root, root)
        means, labels = H @ self._means() @ H, H @ jnp.diag(self._sizes()) @ H
        norm = jnp.sqrt(jnp.square(means).sum() + 2 * self.mixed_centred + self.within)
        return (means * labels).sum() / (norm * jnp.sqrt(jnp.square(labels).sum()))

    def _sizes(self):
        return jnp.asarray(self.classes.sizes, self.class_gram.dtype)

    def _means(self):
        """PΘP in the orthonormal basis 1_c / √m_c."""
        root = jnp.sqrt(self._sizes())
        return self.class_gram / jnp.outer(root, root)

    def _block_means(self):
        assert self.block is not None
        C, root = self.classes.num_classes, jnp.sqrt(self._sizes())
        eye = jnp.eye(C, dtype=root.dtype)
        within, between, single = (
            jnp.asarray(v, root.dtype) for v in (self.block.within, self.block.between, self.block.single)
        )
        return jnp.outer(root, root) * (within * eye + between * (1 - eye)) + single * eye


def from_matrix(theta: Float[Array, "N N"], block: BlockMeans | None, classes: Classes) -> Spread:
    """Exact, from the kernel itself with its samples in class order."""
    gram = classes.sums(classes.sums(theta).T)
    deviations = classes.deviations(theta)
    mixed = classes.sums(deviations.T).T / jnp.sqrt(jnp.asarray(classes.sizes, theta.dtype))[:, None]
    within = classes.deviations(deviations.T)
    centring = jnp.eye(classes.num_samples, dtype=theta.dtype)
    single = jnp.asarray(0 if block is None else block.single, theta.dtype)
    rest = within - single * classes.deviations(centring)
    return Spread(
        gram,
        block,
        jnp.square(mixed).sum()[None],
        _without_mean(mixed, classes)[None],
        jnp.square(within).sum()[None],
        jnp.square(rest).sum()[None],
        classes,
    )


def from_probes(gram: Float[Array, "W W"], overlap: Float[Array, "q q"], block: BlockMeans, classes: Classes) -> Spread:
    """Estimated, from inner products of class sums and of sums with projected random signs z.

    Args:
        gram: Wᵀ Θ W with W = [Z, z]: class indicators, then probes.
        overlap: zᵀ z.
    """
    C, q = classes.num_classes, overlap.shape[0]
    mixed = gram[:C, C:] / jnp.sqrt(jnp.asarray(classes.sizes, gram.dtype))[:, None]
    within, rest = gram[C:, C:], gram[C:, C:] - jnp.asarray(block.single, gram.dtype) * overlap
    keep = np.concatenate([np.ones((1, q)), 1 - np.eye(q)])

    def single(values):
        return jnp.asarray(keep / keep.sum(1, keepdims=True), values.dtype) @ values

    def pairs(values):
        # Mean over pairs of different probes, of those kept.
        w = jnp.asarray(keep, values.dtype)
        off = jnp.square(values) * (1 - jnp.eye(q, dtype=values.dtype))
        n = w.sum(1)
        return jnp.einsum("ra,ab,rb->r", w, off, w, precision=EXACT) / (n * (n - 1))

    centred = jnp.stack([_without_mean(mixed[:, a : a + 1], classes) for a in range(q)])
    return Spread(
        gram[:C, :C], block, single(jnp.square(mixed).sum(0)), single(centred), pairs(within), pairs(rest), classes
    )


def _without_mean(mixed, classes: Classes):
    """‖H PΘQ‖²: the direction of the mean over all samples taken out on the side of the class means."""
    root = jnp.sqrt(jnp.asarray(classes.sizes, mixed.dtype) / classes.num_samples)
    return jnp.square(mixed).sum() - jnp.square(root @ mixed).sum()
