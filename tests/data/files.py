"""Small files in the formats that users have, made by the tests."""

import gzip
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np

IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx_bytes(array: np.ndarray) -> bytes:
    """The idx format by its description: two zeros, type 8 (unsigned byte), axes, their lengths, the numbers."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def images_and_labels(per_class: int, shape: tuple[int, ...], num_classes: int = 10, seed: int = 0):
    """Random bytes, labels in shuffled order."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(num_classes), per_class)).astype(np.uint8)
    return generator.integers(0, 256, (len(labels), *shape), dtype=np.uint8), labels


def write_idx(folder: Path, *, compressed: bool, per_class: tuple[int, int] = (3, 2)):
    """The four files of MNIST's form; returns the arrays in them."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = []
    for i, m in enumerate(per_class):
        arrays += images_and_labels(m, (28, 28), seed=i)
    for name, array in zip(IDX, arrays, strict=True):
        raw = idx_bytes(array)
        (folder / f"{name}{'.gz' * compressed}").write_bytes(gzip.compress(raw) if compressed else raw)
    return arrays


def cifar10_files(per_class: int = 2) -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    """The files of cifar-10-batches-py by name, pickled as Python 2 does; images and labels of the training part."""
    images, labels = [], []
    files = {"batches.meta": _pickle({b"num_cases_per_batch": 10 * per_class, b"label_names": [b"a"] * 10})}
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        x, y = images_and_labels(per_class, (32, 32, 3), seed=i)
        planes = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        files[name] = cifar_batch(planes, y, said=f"training batch {i + 1} of 5" if i < 5 else "testing batch 1 of 1")
        if name != "test_batch":
            images.append(x)
            labels.append(y)
    return files, np.concatenate(images), np.concatenate(labels)


def cifar_batch(planes: np.ndarray, labels: np.ndarray, *, said: str) -> bytes:
    """One file of CIFAR-10 that says which one it is, as the official ones do."""
    return _pickle({b"data": planes, b"labels": labels.tolist(), b"batch_label": said.encode()})


def cifar100_files() -> dict[str, bytes]:
    """The files of cifar-100-python."""
    files = {"meta": _pickle({b"fine_label_names": [b"x"] * 100})}
    for i, name in enumerate(("train", "test")):
        x, y = images_and_labels(1, (32, 32, 3), 100, seed=i)
        planes = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        files[name] = _pickle({b"data": planes, b"fine_labels": y.tolist(), b"coarse_labels": [0] * len(y)})
    return files


def binary_rows(labels: np.ndarray, images: np.ndarray) -> bytes:
    """CIFAR's binary version by its description: rows of one label (CIFAR-100: two), then planes of pixels."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([labels.reshape(len(images), -1), planes], axis=1).astype(np.uint8).tobytes()


def cifar10_binary_files(per_class: int = 2) -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    """The files of cifar-10-batches-bin by name; images and labels of the training part."""
    parts = [images_and_labels(per_class, (32, 32, 3), seed=i) for i in range(6)]
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    files = {name: binary_rows(y, x) for name, (x, y) in zip(names, parts, strict=True)}
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts[:5], strict=True))
    return files | {"batches.meta.txt": b"airplane\n"}, images, labels


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    return folder


def write_tar(path: Path, folder: str, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, raw in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return path


def _pickle(value: dict) -> bytes:
    # Protocol 2 is what Python 2 wrote; the module of _reconstruct is then numpy's old one, as in the official files.
    return pickle.dumps(value, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
