"""A labelled set of samples in class order, which every loader and every synthetic set returns."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Int, Integer, Num

from ntkcollapse._checks import check_arrays, check_finite, check_shape, check_whole
from ntkcollapse._coercion import seeded
from ntkcollapse.classes import Classes, class_order


class Dataset(eqx.Module):
    """N samples, class by class, as rows.

    Built by `Dataset.of` from samples in any order. Arrays are numpy's: they go to a device when they are used.

    Args:
        inputs: one sample a row, (N, ...): float32, or integers that stand for tokens; images are (N, height, width,
            channels).
        classes: the classes of the rows.
        name: of the set and of the part of it.
        class_names: one a class; "0", "1", ... where nothing better is known.

    Raises:
        ValueError: rows and classes that disagree, or numbers that are not finite.
    """

    inputs: Num[np.ndarray, "N *shape"]
    classes: Classes
    name: str = eqx.field(static=True)
    class_names: tuple[str, ...] = eqx.field(static=True, default=())

    def __check_init__(self):
        if len(self.inputs) != self.classes.num_samples:
            raise ValueError(
                f"inputs: expected one row for each of the {self.classes.num_samples} samples of classes, "
                f"got {len(self.inputs)} rows."
            )
        if self.class_names and len(self.class_names) != self.classes.num_classes:
            raise ValueError(
                f"class_names: expected {self.classes.num_classes} names, one a class; got {len(self.class_names)}."
            )
        check_finite("inputs", self.inputs)

    @classmethod
    def of(
        cls,
        inputs: Num[np.ndarray, "N *shape"],
        labels: Integer[np.ndarray, " N"],
        *,
        name: str,
        class_names: tuple[str, ...] = (),
    ) -> "Dataset":
        """Samples in any order, sorted by class (samples of a class keep their order).

        Integers of more than one byte stay integers, as the tokens that an embedding looks up (networks of this package
        read them as numbers); everything else becomes float32.

        Raises:
            ValueError: rows and labels that disagree, or numbers that are not real, masked or not finite.
        """
        order = class_order(labels)
        labels = np.asarray(labels)
        check_arrays(inputs=inputs)
        check_shape("inputs", inputs, (len(labels), *(None,) * (np.ndim(inputs) - 1)), "one row a label")
        inputs = np.asarray(inputs)
        tokens = np.issubdtype(inputs.dtype, np.integer) and inputs.dtype.itemsize > 1
        return cls(
            inputs=(inputs if tokens else inputs.astype(np.float32))[order],
            classes=Classes.from_labels(labels[order]),
            name=name,
            class_names=tuple(class_names),
        )

    @property
    def labels(self) -> Int[np.ndarray, " N"]:
        """The class of each row, non-decreasing."""
        return np.repeat(np.arange(self.classes.num_classes, dtype=np.int32), self.classes.sizes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.inputs.shape[1:]

    @property
    def digest(self) -> str:
        """SHA-256 of the numbers and labels."""
        return hashlib.sha256(self.inputs.tobytes() + self.labels.tobytes()).hexdigest()

    def balanced(self, per_class: int, *, seed: int | None = None, argument: str = "per_class") -> "Dataset":
        """`per_class` samples of each class: the first ones, or drawn without replacement where a seed is given.

        Args:
            per_class: m.
            seed: of the draw.
            argument: what the caller's caller knows `per_class` by, for the message.
        Raises:
            ValueError: a class has fewer samples.
        """
        check_whole(argument, per_class)
        sizes = self.classes.sizes
        if not 1 <= per_class <= min(sizes):
            small = int(np.argmin(sizes))
            raise ValueError(
                f"{argument}: expected 1 to {min(sizes)} samples a class, got {per_class}; {self.name} has only "
                f"{sizes[small]} samples of class {small}."
            )
        starts = np.cumsum((0, *sizes[:-1]))
        if seed is None:
            rows = [start + np.arange(per_class) for start in starts]
        else:
            generator = np.random.default_rng(seeded(seed))
            rows = [s + np.sort(generator.permutation(m)[:per_class]) for s, m in zip(starts, sizes, strict=True)]
        return Dataset(
            inputs=self.inputs[np.concatenate(rows)],
            classes=Classes.balanced(self.classes.num_classes, per_class),
            name=self.name,
            class_names=self.class_names,
        )

    def of_classes(self, which: Sequence[int]) -> "Dataset":
        """The samples of some classes, at least two, which become 0, 1, … in the order given.

        Raises:
            ValueError: fewer than two classes, one that is not there, or one named twice.
        """
        C = self.classes.num_classes
        which = tuple(int(c) for c in which)
        if len(which) < 2 or len(set(which)) < len(which) or not all(0 <= c < C for c in which):
            raise ValueError(f"which: expected two or more different classes among 0 to {C - 1}, got {which}.")
        starts = np.cumsum((0, *self.classes.sizes))
        rows = np.concatenate([np.arange(starts[c], starts[c + 1]) for c in which])
        return Dataset(
            inputs=self.inputs[rows],
            classes=Classes(tuple(self.classes.sizes[c] for c in which)),
            name=f"{self.name}/classes-{'-'.join(map(str, which))}",
            class_names=tuple(self.class_names[c] for c in which) if self.class_names else (),
        )

    def replace(self, inputs: Num[np.ndarray, "N *shape"]) -> "Dataset":
        """The same samples with other inputs."""
        return Dataset(inputs=inputs, classes=self.classes, name=self.name, class_names=self.class_names)


class Splits(NamedTuple):
    """What networks are trained on and what they are tested on."""

    train: Dataset
    test: Dataset

    def check(self) -> None:
        """Raises ValueError where a network of the training part cannot be tested on the test part.

        Whether fully convolutional or not: other sizes of image are other inputs. Labels beyond the training part's
        would count as wrong, whatever the network says.
        """
        if self.test.shape != self.train.shape:
            raise ValueError(
                f"{self.test.name}: expected samples of shape {self.train.shape} as in {self.train.name}, got "
                f"{self.test.shape}."
            )
        known, got = self.train.classes.num_classes, self.test.classes.num_classes
        if got > known:
            raise ValueError(f"{self.test.name}: expected the {known} classes of {self.train.name}, got {got}.")


def as_splits(data: Any) -> tuple[Splits, bool]:
    """(training and test part, whether there is a test part) of `Splits`, a `Dataset`, or (inputs, labels).

    Without a test part both are the training part.

    Raises:
        TypeError: anything else.
    """
    if isinstance(data, Splits):
        data.check()
        return data, True
    if isinstance(data, tuple) and len(data) == 2:
        data = Dataset.of(np.asarray(data[0]), np.asarray(data[1]), name="data of its own")
    if not isinstance(data, Dataset):
        raise TypeError(f"data: expected a Dataset, Splits, or (inputs, labels), got {type(data).__name__}.")
    return Splits(data, data), False
