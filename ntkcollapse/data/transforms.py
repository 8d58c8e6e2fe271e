"""What is done to inputs before a network sees them."""

import numpy as np
from jaxtyping import Float

from ntkcollapse._checks import check_shape, check_whole
from ntkcollapse.data.dataset import Dataset, Splits
from ntkcollapse.data.memory import check_affordable


def channel_statistics(
    inputs: Float[np.ndarray, "N *shape"],
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Mean and standard deviation of each channel (the last axis) of images; of all numbers of vectors.

    Summed in float64; a constant channel has standard deviation 1, so that dividing by it is safe.
    """
    axes = tuple(range(inputs.ndim - 1)) if inputs.ndim > 2 else None
    mean = inputs.mean(axes, dtype=np.float64)
    deviation = inputs.std(axes, dtype=np.float64)
    return np.asarray(mean, np.float32), np.where(deviation > 0, deviation, 1).astype(np.float32)


def standardise(train: Dataset, *others: Dataset) -> tuple[Dataset, ...]:
    """Sets with mean 0 and standard deviation 1 by channel, both measured on `train` alone."""
    mean, deviation = channel_statistics(train.inputs)
    return tuple(data.replace((data.inputs - mean) / deviation) for data in (train, *others))


def standardised_splits(splits: Splits) -> Splits:
    """`standardise` of both parts by the statistics of the training part."""
    return Splits(*standardise(splits.train, splits.test))


def resized(images: Float[np.ndarray, "N H W channels"], size: int) -> Float[np.ndarray, "N size size channels"]:
    """Images of size × size by linear interpolation between pixel centres, along each axis in turn.

    Beyond the outermost centres the border pixel is repeated. Nothing is averaged, so this is for enlarging (28 to 32
    for VGG), or for shrinking by less than two.

    Raises:
        ValueError: inputs that are not images, a size below 1, or one for which they do not fit into memory.
    """
    check_shape("images", images, (None,) * 4, "(N, height, width, channels)")
    check_whole("size", size)
    N, _, _, channels = images.shape
    check_affordable("size", (N, size, size, channels), images.dtype.itemsize, "take a smaller size or fewer samples")
    for axis in (1, 2):
        length = images.shape[axis]
        centres = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        below = np.minimum(centres.astype(int), max(length - 2, 0))
        above = np.minimum(below + 1, length - 1)
        weight = (centres - below).astype(images.dtype).reshape((-1,) + (1,) * (3 - axis))
        images = np.take(images, below, axis) * (1 - weight) + np.take(images, above, axis) * weight
    return images
