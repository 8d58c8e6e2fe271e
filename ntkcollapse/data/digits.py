"""Real 8×8 digits that scikit-learn ships: no file and no connection needed."""

import numpy as np

from ntkcollapse._checks import check_choice
from ntkcollapse.data.dataset import Dataset
from ntkcollapse.data.transforms import standardise

# The rarest digit occurs 174 times.
_PARTS = {"train": slice(0, 120), "test": slice(120, 174), "all": slice(0, 174)}


def digits(per_class: int | None = None, *, part: str = "train", standardised: bool = False) -> Dataset:
    """The first `per_class` images of each digit, in class order, scaled to [0, 1], shape (N, 8, 8, 1).

    Args:
        per_class: m; all of the part where None.
        part: "train" has the first 120 images of each digit, "test" the next 54, "all" both.
        standardised: mean 0 and standard deviation 1 over all pixels of the training part.

    Raises:
        ValueError: an unknown part, or more images than it has.

    >>> digits(per_class=30).inputs.shape
    (300, 8, 8, 1)

    Source: "Optical recognition of handwritten digits", UCI machine-learning repository, its test part.
    """
    check_choice("part", part, _PARTS)
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    labels = np.asarray(labels)
    images = (np.asarray(images) / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    # Rank of an image within its class, in the order of the file.
    rank = np.empty(len(labels), dtype=int)
    for c in range(10):
        rank[labels == c] = np.arange(int((labels == c).sum()))

    def take(name: str) -> Dataset:
        keep = (rank >= _PARTS[name].start) & (rank < _PARTS[name].stop)
        return Dataset.of(images[keep], labels[keep], name=f"digits/{name}")

    chosen = take(part)
    if standardised:
        chosen = standardise(take("train"), chosen)[1]
    return chosen if per_class is None else chosen.balanced(per_class)
