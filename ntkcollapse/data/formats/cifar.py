"""The python batches of CIFAR-10 and CIFAR-100: pickles, read without running anything that is in them."""

import io
import pickle
import pickletools
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ntkcollapse.data.formats.errors import DataFileError, check_labels, reading
from ntkcollapse.data.formats.packed import unpacked

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

# numpy moved the functions that rebuild arrays; old and new names stand for today's.
_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    # Python 3 writes bytes at protocols 0 to 2 as an encoded string.
    ("_codecs", "encode"): lambda text, encoding="latin1": text.encode(encoding),
}


class _ArraysOnly(pickle.Unpickler):
    """Builds arrays and built-in containers; any other name in the file is an error."""

    def find_class(self, module: str, name: str):
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is neither array nor container") from None


def unpickle_arrays(raw: bytes, path: Path | str) -> dict:
    """The dictionary of a pickle that holds arrays, numbers, strings and built-in containers only; keys as str.

    Raises:
        DataFileError: a truncated or corrupt pickle, one that is no dictionary, or one that names anything else: it is
            refused before that is run.
    """
    try:
        _check_memo(raw)
        value = _ArraysOnly(io.BytesIO(raw), encoding="bytes").load()
    # What damaged bytes ask for can be of any size, in any encoding.
    except (
        pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError, OverflowError,
        MemoryError, SystemError,
    ) as error:  # fmt: skip
        raise DataFileError(path, f"not a readable batch of arrays: {type(error).__name__}: {error}.") from error
    if not isinstance(value, dict):
        raise DataFileError(path, f"expected a dictionary, got {type(value).__name__}.")
    return {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in value.items()}


def _check_memo(raw: bytes) -> None:
    """Objects that a pickle numbers are fewer than its bytes: room is made for the largest number, be it 2³²."""
    for opcode, number, _ in pickletools.genops(raw):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and number not in range(len(raw)):
            raise pickle.UnpicklingError(f"it numbers an object {number}, in a file of {len(raw)} bytes")


def read_cifar10(path: Path | str) -> Arrays:
    """(x_train, y_train, x_test, y_test) of the folder cifar-10-batches-py, or of the archive that holds it.

    Images are uint8 (N, 32, 32, 3).

    Raises:
        DataFileError: a batch that is missing, truncated, says that it is another one, or disagrees with its labels or
            with `batches.meta`; labels other than 0 to 9, each of them present.
    """
    open_member = _members(Path(path), "cifar-10-batches-py")
    meta_path, raw = open_member("batches.meta")
    size = unpickle_arrays(raw, meta_path).get("num_cases_per_batch")
    files = [open_member(f"data_batch_{i}") for i in range(1, 6)]
    parts = [_batch(*file, "labels", 10, f"training batch {i} of 5", size) for i, file in enumerate(files, 1)]
    test_path, raw = open_member("test_batch")
    x_test, y_test = _batch(test_path, raw, "labels", 10, "testing batch 1 of 1", size)
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    # A class may be missing in one batch, not in all of them.
    check_labels(f"{files[0][0]} to data_batch_5", y, len(x), 10)
    check_labels(test_path, y_test, len(x_test), 10)
    return x, y, x_test, y_test


def read_cifar100(path: Path | str) -> Arrays:
    """Reads cifar-100-python with its fine labels, as `read_cifar10` reads CIFAR-10."""
    open_member = _members(Path(path), "cifar-100-python")
    arrays = []
    for name, said in (("train", "training batch 1 of 1"), ("test", "testing batch 1 of 1")):
        path, raw = open_member(name)
        x, y = _batch(path, raw, "fine_labels", 100, said)
        check_labels(path, y, len(x), 100)
        arrays += [x, y]
    x_train, y_train, x_test, y_test = arrays
    return x_train, y_train, x_test, y_test


def _members(path: Path, folder: str) -> Callable[[str], tuple[str, bytes]]:
    """name ↦ (what to call it in a message, its bytes), from a folder or a tar archive."""
    if path.is_dir():
        root = path / folder if (path / folder).is_dir() else path

        def from_folder(name: str) -> tuple[str, bytes]:
            if not (root / name).is_file():
                raise DataFileError(root / name, "missing: the set would be incomplete without it.")
            return str(root / name), (root / name).read_bytes()

        return from_folder
    contents, raw = {}, unpacked(path)
    with reading(path), tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                contents[Path(member.name).name] = file.read()

    def from_archive(name: str) -> tuple[str, bytes]:
        if name not in contents:
            raise DataFileError(path, f"{name} is missing in the archive.")
        return f"{path}:{name}", contents[name]

    return from_archive


def _batch(
    path: str, raw: bytes, labels_key: str, num_classes: int, said: str, size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one file; `said` is what the official one says that it is."""
    batch = unpickle_arrays(raw, path)
    if "data" not in batch or labels_key not in batch:
        raise DataFileError(path, f"expected entries 'data' and {labels_key!r}, got {sorted(map(str, batch))}.")
    # Files made in this format by others may say anything, or nothing.
    label = batch.get("batch_label", b"")
    label = label.decode("latin1") if isinstance(label, bytes) else str(label)
    if re.fullmatch(r"(training|testing) batch \d+ of \d+", label) and label != said:
        raise DataFileError(path, f"expected {said!r}, it says that it is {label!r}: another file under this name.")
    data = batch["data"]
    try:
        labels = np.asarray(batch[labels_key])
    except ValueError as error:
        raise DataFileError(path, f"expected integer labels, got entries of unequal length ({error}).") from error
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise DataFileError(path, f"expected uint8 data of shape (N, 3072), got {getattr(data, 'shape', type(data))}.")
    if labels.shape != data.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataFileError(path, f"expected {len(data)} integer labels, got {labels.dtype} of shape {labels.shape}.")
    beyond = labels[(labels < 0) | (labels >= num_classes)]
    if len(beyond):
        raise DataFileError(path, f"expected labels 0 to {num_classes - 1}, got {beyond[0]}.")
    if size is not None and len(data) != size:
        raise DataFileError(path, f"batches.meta says {size} images a batch, it has {len(data)}.")
    # Channel planes to channels last.
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels
