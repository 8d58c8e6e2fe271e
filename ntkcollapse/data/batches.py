"""Which samples make which batch: a function of seed and epoch alone, so that a resumed run sees the same order."""

import equinox as eqx
import numpy as np
from jaxtyping import Int

from ntkcollapse._checks import check_whole
from ntkcollapse._coercion import seeded
from ntkcollapse.classes import Classes


class Batches(eqx.Module):
    """Batches of row indices, epoch by epoch.

    Balanced batches have the same number of every class, in class order, as the paper trains; every class gives as
    many samples to an epoch as the smallest one has, drawn anew each epoch. Unbalanced ones are a permutation of all
    samples, cut. What does not fill a last batch is left out of that epoch. A batch of everything is the whole set in
    its own order, balanced or not.

    Args:
        classes: behind the rows of the set.
        batch_size: B, or None for all samples in every batch.
        seed: of the order.
        balanced: the same number of every class.

    Raises:
        ValueError: a seed that is none; a batch size above N or, where balanced, one that C does not divide or for
            which a class is too small.
    """

    classes: Classes
    batch_size: int | None = eqx.field(static=True)
    seed: int = eqx.field(static=True)
    balanced: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        seeded(self.seed)
        if self.batch_size is None:
            return
        check_whole("batch_size", self.batch_size)
        C, N = self.classes.num_classes, self.classes.num_samples
        if self.batch_size > N:
            raise ValueError(f"batch_size: expected at most the {N} samples there are, got {self.batch_size}.")
        if self.balanced:
            if self.batch_size % C:
                raise ValueError(
                    f"batch_size: expected a multiple of the {C} classes for balanced batches, got {self.batch_size}; "
                    f"take {max(self.batch_size // C, 1) * C}, or balanced=False."
                )
            if self.batch_size // C > min(self.classes.sizes):
                raise ValueError(
                    f"batch_size: expected at most {C} times the {min(self.classes.sizes)} samples of the smallest "
                    f"class for balanced batches, got {self.batch_size}."
                )

    @property
    def per_epoch(self) -> int:
        """Batches an epoch."""
        if self.batch_size is None:
            return 1
        if self.balanced:
            return min(self.classes.sizes) // (self.batch_size // self.classes.num_classes)
        return self.classes.num_samples // self.batch_size

    @property
    def represent_all(self) -> bool:
        """Whether every sample comes equally often, so that the mean gradient is that of the whole set.

        Balanced batches of unequal classes do not: they weigh each sample by 1/m_c.
        """
        return self.batch_size is None or not self.balanced or self.classes.is_balanced

    def epoch(self, number: int) -> Int[np.ndarray, "batches B"]:
        """Rows of the batches of an epoch, one batch a row."""
        N = self.classes.num_samples
        if self.batch_size is None:
            return np.arange(N, dtype=np.int32)[None, :]
        generator = np.random.default_rng((self.seed, number))
        if not self.balanced:
            kept = self.per_epoch * self.batch_size
            return generator.permutation(N)[:kept].reshape(self.per_epoch, -1).astype(np.int32)
        each = self.batch_size // self.classes.num_classes
        starts = np.cumsum((0, *self.classes.sizes[:-1]))
        rows = [
            start + generator.permutation(m)[: self.per_epoch * each].reshape(self.per_epoch, each)
            for start, m in zip(starts, self.classes.sizes, strict=True)
        ]
        return np.concatenate(rows, axis=1).astype(np.int32)
