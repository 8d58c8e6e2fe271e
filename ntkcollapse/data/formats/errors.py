"""What every reader says of a file that is not what it should be."""

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


class DataFileError(ValueError):
    """A data file that is truncated, corrupt or mislabelled. The message begins with its path."""

    def __init__(self, path: Path | str, problem: str):
        super().__init__(f"{path}: {problem}")
        self.path = Path(path)


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turns what decompressors and parsers raise into a `DataFileError` that names the file."""
    try:
        yield
    except DataFileError:
        raise
    except (EOFError, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        raise DataFileError(path, f"truncated or corrupt ({error}); get the file again.") from error


def check_images(path: Path | str, images: np.ndarray, shape: tuple[int, int, int]) -> None:
    """Bytes, (N, height, width, channels), or (N, height, width) where there is one channel."""
    if images.dtype != np.uint8 or images.shape[1:] not in (shape, shape[:2] * (shape[2] == 1)):
        raise DataFileError(
            path, f"expected uint8 images of shape {shape}, got {images.dtype} of shape {images.shape[1:]}."
        )


def check_labels(path: Path | str, labels: np.ndarray, num_samples: int, num_classes: int | None) -> None:
    """One integer label a sample, every class from 0 to C−1 present and none beyond."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataFileError(path, f"expected integer labels, got {labels.dtype}.")
    if labels.shape != (num_samples,):
        raise DataFileError(path, f"expected {num_samples} labels, one an image; got an array of shape {labels.shape}.")
    if num_samples == 0:
        raise DataFileError(path, "expected samples, got none.")
    present = np.unique(labels)
    wanted = np.arange(num_classes if num_classes is not None else present[-1] + 1)
    if present.tolist() != wanted.tolist():
        raise DataFileError(
            path, f"expected labels 0 to {wanted[-1]}, each of them present; got the labels {present.tolist()}."
        )
