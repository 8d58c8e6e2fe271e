"""The npz format of Keras: x_train, y_train, x_test, y_test in one file."""

from pathlib import Path

import numpy as np

from ntkcollapse.data.formats.cifar import Arrays
from ntkcollapse.data.formats.errors import DataFileError, reading

_KEYS = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path | str) -> Arrays:
    """(x_train, y_train, x_test, y_test); labels of shape (N, 1) are flattened. Never unpickles.

    Raises:
        DataFileError: truncated or corrupt; an array is missing or holds objects; labels of another shape.
    """
    path = Path(path)
    with reading(path):
        try:
            with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
                missing = [key for key in _KEYS if key not in file]
                if missing:
                    raise DataFileError(path, f"expected the arrays {', '.join(_KEYS)}; {missing[0]} is missing.")
                arrays = [file[key] for key in _KEYS]
        except (ValueError, TypeError, AttributeError, OSError) as error:
            if isinstance(error, (DataFileError, FileNotFoundError)):
                raise
            raise DataFileError(path, f"not a readable npz file of arrays: {error}.") from error
    x_train, y_train, x_test, y_test = arrays
    for key, labels in (("y_train", y_train), ("y_test", y_test)):
        if labels.ndim not in (1, 2) or labels.size != len(labels):
            raise DataFileError(
                path, f"expected {key} of shape (N,) or (N, 1), one label an image; got {labels.shape}."
            )
    return x_train, y_train.reshape(-1), x_test, y_test.reshape(-1)
