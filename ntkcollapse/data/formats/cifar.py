"""CIFAR-10 and CIFAR-100: the binary version, and the python one, whose pickles are read without running them."""

import io
import os
import pickle
import pickletools
import re
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
    """(x_train, y_train, x_test, y_test) of CIFAR-10, python or binary version: its folder, or the archive of it.

    Images are uint8 (N, 32, 32, 3).

    Raises:
        DataFileError: a batch that is missing, truncated, there twice, says that it is another one, or disagrees with
            its labels, with `batches.meta` or with the other batches in size; labels other than 0 to 9, each of them
            present.
    """
    members = _members(Path(path), ("cifar-10-batches-py", "cifar-10-batches-bin"))
    names = [f"data_batch_{i}" for i in range(1, 6)]
    if f"{names[0]}.bin" in members:
        files = [members.read(f"{name}.bin") for name in names]
        parts = [_rows(*file, 10, 0) for file in files]
        sizes = [len(x) for x, _ in parts]
        if min(sizes) < max(sizes):
            raise DataFileError(files[sizes.index(min(sizes))][0], f"the batches have {sizes} images; get it again.")
        test_path, raw = members.read("test_batch.bin")
        x_test, y_test = _rows(test_path, raw, 10, 0)
    else:
        meta_path, raw = members.read("batches.meta")
        size = unpickle_arrays(raw, meta_path).get("num_cases_per_batch")
        files = [members.read(name) for name in names]
        parts = [_batch(*file, "labels", 10, f"training batch {i} of 5", size) for i, file in enumerate(files, 1)]
        test_path, raw = members.read("test_batch")
        x_test, y_test = _batch(test_path, raw, "labels", 10, "testing batch 1 of 1", size)
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    # A class may be missing in one batch, not in all of them.
    check_labels(f"{files[0][0]} to data_batch_5", y, len(x), 10)
    check_labels(test_path, y_test, len(x_test), 10)
    return x, y, x_test, y_test


def read_cifar100(path: Path | str) -> Arrays:
    """Reads CIFAR-100 with its fine labels, as `read_cifar10` reads CIFAR-10."""
    members = _members(Path(path), ("cifar-100-python", "cifar-100-binary"))
    arrays = []
    for name, label in (("train", "training batch 1 of 1"), ("test", "testing batch 1 of 1")):
        if f"{name}.bin" in members:
            file, raw = members.read(f"{name}.bin")
            # The coarse label, then the fine one.
            x, y = _rows(file, raw, 100, 1)
        else:
            file, raw = members.read(name)
            x, y = _batch(file, raw, "fine_labels", 100, label)
        check_labels(file, y, len(x), 100)
        arrays += [x, y]
    x_train, y_train, x_test, y_test = arrays
    return x_train, y_train, x_test, y_test


class _Members(NamedTuple):
    """The files of a set by name: the path that names each in a message, and how it is read."""

    place: str
    files: dict[str, tuple[str, Callable[[], bytes]]]

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def read(self, name: str) -> tuple[str, bytes]:
        if name not in self.files:
            raise DataFileError(f"{self.place}{name}", "missing: the set would be incomplete without it.")
        path, read = self.files[name]
        return path, read()


def _members(path: Path, folders: tuple[str, ...]) -> _Members:
    """Files of one of these folders, which `path` is or has in it, as a folder or as a tar archive."""
    if path.is_dir():
        root = next((path / folder for folder in folders if (path / folder).is_dir()), path)
        files = {p.name: (str(p), partial(unpacked, p)) for p in sorted(root.iterdir()) if p.is_file()}
        return _Members(f"{root}{os.sep}", files)
    raw = unpacked(path)
    contents: dict[str, bytes] = {}
    with reading(path), tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        regular = [member for member in archive if member.isfile()]
        # Those in the set's own folder; where there is no such folder, wherever they are.
        own = [member for member in regular if Path(member.name).parent.name in folders]
        for member in own or regular:
            name = Path(member.name).name
            file = archive.extractfile(member)
            if file is None or name.startswith("."):
                continue
            content = file.read()
            if contents.setdefault(name, content) != content:
                raise DataFileError(path, f"it has two different files called {name}, one of them {member.name}.")
    return _Members(f"{path}:", {name: (f"{path}:{name}", partial(bytes, raw)) for name, raw in contents.items()})


def _rows(path: str, raw: bytes, num_classes: int, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one file of the binary version: rows of labels up to `column`, then 3072 pixels."""
    width = column + 1 + 3072
    if not raw or len(raw) % width:
        raise DataFileError(path, f"expected rows of {width} bytes, got {len(raw)} bytes; get the file again.")
    rows = np.frombuffer(raw, np.uint8).reshape(-1, width)
    classes = rows[:, column].astype(int)
    if classes.max() >= num_classes:
        raise DataFileError(path, f"expected labels 0 to {num_classes - 1}, got {classes.max()}.")
    return _channels_last(rows[:, column + 1 :]), classes


def _channels_last(planes: np.ndarray) -> np.ndarray:
    return planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _batch(
    path: str, raw: bytes, labels_key: str, num_classes: int, official: str, size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one file; `official` is what the official one says that it is."""
    batch = unpickle_arrays(raw, path)
    if "data" not in batch or labels_key not in batch:
        raise DataFileError(path, f"expected entries 'data' and {labels_key!r}, got {sorted(map(str, batch))}.")
    # Files made in this format by others may say anything, or nothing.
    label = batch.get("batch_label", b"")
    label = label.decode("latin1") if isinstance(label, bytes) else str(label)
    if re.fullmatch(r"(training|testing) batch \d+ of \d+", label) and label != official:
        raise DataFileError(path, f"expected {official!r}, it says that it is {label!r}: another file under this name.")
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
    return _channels_last(data), labels
