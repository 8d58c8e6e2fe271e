"""The npz format of Keras: x_train, y_train, x_test, y_test in one file."""

from pathlib import Path

import numpy as np

from ntkcollapse.data.formats.cifar import Arrays
from ntkcollapse.data.formats.errors import DataFileError, reading

_KEYS = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path | str) -> Arrays:
    """(x_train, y_train, x_test, y_test); labels of shape (N, 1) are flattened. Never unpickles.

    Raises:
        DataFileError: truncated or corrupt, or an array is missing or holds objects.
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
    return x_train, y_train.reshape(len(y_train), -1)[:, 0], x_test, y_test.reshape(len(y_test), -1)[:, 0]
