"""Samples in groups of one class each: sums over a class then need no gradient of a single sample."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ntkcollapse.classes import Classes


class Grouping(NamedTuple):
    """Groups of `size` samples of one class, `per_batch` of them a batch; all batches have one shape.

    members: (groups, size) which sample; mask: (groups, size) False where a group is filled up; group_class: (groups,).
    """

    members: np.ndarray
    mask: np.ndarray
    group_class: np.ndarray
    per_batch: int

    def __len__(self) -> int:
        return len(self.group_class) // self.per_batch

    def batches(self, first: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(index, mask, group_class) of each batch, flat over its groups, from batch `first` on."""
        for i in range(first, len(self)):
            part = slice(i * self.per_batch, (i + 1) * self.per_batch)
            yield self.members[part].ravel(), self.mask[part].ravel(), self.group_class[part]


def group(order: np.ndarray, classes: Classes, batch: int, *, multiple_of: int = 1) -> Grouping:
    """Groups over `order`, sample indices class by class, for batches of about `batch` samples.

    A group is as large as a batch where that fills up the largest class by no more than an eighth, so that any large
    number of samples has one shape, for which code is compiled once. Otherwise its size divides that class nearly
    evenly, rounded up by at most an eighth, as is the number of groups a batch. `multiple_of` is a number of devices
    that share a batch.
    """
    largest = max(classes.sizes)
    parts = -(-largest // max(1, min(batch, largest)))
    size = _rounded(-(-largest // parts))
    if 8 * parts * batch <= 9 * largest:
        size = batch
    size = -(-size // multiple_of) * multiple_of
    index, mask, group_class = [], [], []
    start = 0
    for c, m in enumerate(classes.sizes):
        of_class = order[start : start + m]
        start += m
        for i in range(0, m, size):
            part = of_class[i : i + size]
            fill = size - len(part)
            index.append(np.concatenate([part, np.repeat(part[:1], fill)]))
            mask.append(np.arange(size) < len(part))
            group_class.append(c)
    per_batch = max(1, min(batch // size, len(group_class)))
    # The batches are made equally full before the last one is filled up with empty groups.
    per_batch = min(per_batch, _rounded(-(-len(group_class) // -(-len(group_class) // per_batch))))
    while len(group_class) % per_batch:
        index.append(index[-1])
        mask.append(np.zeros(size, bool))
        group_class.append(0)
    return Grouping(np.stack(index), np.stack(mask), np.asarray(group_class), per_batch)


def _rounded(n: int) -> int:
    """Up to a number of four binary digits and zeros: 17 to 18, 100 to 104."""
    step = 1 << max(0, n.bit_length() - 4)
    return -(-n // step) * step
