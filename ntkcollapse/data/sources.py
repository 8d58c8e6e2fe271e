"""Real sets by name, from whatever form of their files is on disk, and where they are looked for."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ntkcollapse._checks import check_choice
from ntkcollapse.data.dataset import Dataset, Splits
from ntkcollapse.data.digits import digits
from ntkcollapse.data.download import download as fetch
from ntkcollapse.data.formats import (
    DataFileError,
    check_images,
    check_labels,
    read_cifar10,
    read_cifar100,
    read_idx,
    read_image_folder,
    read_npz,
)
from ntkcollapse.data.formats.cifar import Arrays
from ntkcollapse.data.transforms import resized, standardised_splits

ENVIRONMENT = "NTKCOLLAPSE_DATA"


class _Set(NamedTuple):
    """What a set is called in the forms that users have, and what it must hold."""

    shape: tuple[int, int, int]
    num_classes: int
    idx_folders: tuple[str, ...] = ()
    batches: tuple[str, ...] = ()
    read_batches: Callable[[Path], Arrays] | None = None
    npz: tuple[str, ...] = ()
    system_folders: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()


_SETS = {
    "mnist": _Set(
        shape=(28, 28, 1),
        num_classes=10,
        idx_folders=("MNIST/raw", "MNIST", "mnist"),
        npz=("mnist.npz",),
    ),
    "fashion-mnist": _Set(
        shape=(28, 28, 1),
        num_classes=10,
        idx_folders=("FashionMNIST/raw", "FashionMNIST", "fashion-mnist", "fashion_mnist"),
        npz=("fashion_mnist.npz", "fashion-mnist.npz"),
        system_folders=("/usr/share/datasets/fashion-mnist",),
        class_names=(
            "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
        ),
    ),
    "cifar10": _Set(
        shape=(32, 32, 3),
        num_classes=10,
        batches=("cifar-10-batches-py", "cifar-10-batches-py-target", "cifar-10-python.tar.gz"),
        read_batches=read_cifar10,
        npz=("cifar10.npz", "cifar-10.npz"),
        class_names=(
            "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
        ),
    ),
    "cifar100": _Set(
        shape=(32, 32, 3),
        num_classes=100,
        batches=("cifar-100-python", "cifar-100-python-target", "cifar-100-python.tar.gz"),
        read_batches=read_cifar100,
        npz=("cifar100.npz", "cifar-100.npz"),
    ),
}  # fmt: skip
_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

NAMES = ("digits", *_SETS)


def load(
    name: str,
    *,
    path: str | os.PathLike | None = None,
    download: bool = False,
    per_class: int | None = None,
    test_per_class: int | None = None,
    size: int | None = None,
    standardised: bool = False,
) -> Splits:
    """Training and test part of a set by name, scaled to [0, 1], in class order.

    Files are looked for, in this order: at `path`; in the folders of the environment variable NTKCOLLAPSE_DATA; in
    the usual caches of torchvision (./data) and Keras (~/.keras/datasets) and that of `download`; where system
    packages put them. In each folder the official files come before npz files.

    Args:
        name: "digits" (ships with scikit-learn), "mnist", "fashion-mnist", "cifar10", "cifar100", or "folder" for
            `path`/train and `path`/test with one folder of images a class.
        path: a file or folder of the set, or a folder that holds it.
        download: fetch the official files where none are found, or those that an interrupted download lacks.
        per_class: only the first so many samples of each class of the training part; all of them where None.
        test_per_class: likewise of the test part.
        size: resize images to size × size, by `resized`.
        standardised: mean 0 and standard deviation 1 of each channel, measured on the training part in use.
    Raises:
        FileNotFoundError: no file of the set is found; the message lists where it was looked for.
        DataFileError: a file that is truncated, corrupt or mislabelled, by its name.
        ValueError: an unknown name, or more samples a class than there are.
    """
    check_choice("name", name, (*NAMES, "folder"))
    if name == "digits":
        splits = Splits(digits(), digits(part="test"))
    elif name == "folder":
        splits = _load_folder(path)
    else:
        splits = _load_set(name, path, download)
    if per_class is not None:
        splits = splits._replace(train=splits.train.balanced(per_class))
    if test_per_class is not None:
        splits = splits._replace(test=splits.test.balanced(test_per_class, argument="test_per_class"))
    if size is not None:
        splits = Splits(*(data.replace(resized(data.inputs, size)) for data in splits))
    return standardised_splits(splits) if standardised else splits


def from_arrays(
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    *,
    name: str = "arrays",
    class_names: tuple[str, ...] = (),
) -> Splits:
    """Your own arrays as training and test part. Integers of one byte are divided by 255; (N, H, W) gets a channel."""
    return Splits(
        Dataset.of(scaled(x_train), y_train, name=f"{name}/train", class_names=class_names),
        Dataset.of(scaled(x_test), y_test, name=f"{name}/test", class_names=class_names),
    )


def scaled(images: np.ndarray) -> np.ndarray:
    """float32, from [0, 255] to [0, 1] where the pixels are bytes, channels last."""
    images = np.asarray(images)
    x = images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images.astype(np.float32)
    return x[..., None] if x.ndim == 3 else x


def search_path(name: str, path: str | os.PathLike | None = None) -> list[Path]:
    """The folders (or the one file or folder) where a set is looked for, in order."""
    if path is not None:
        return [Path(path)]
    folders = [Path(p) for p in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if p]
    folders += [Path("data"), Path.home() / ".keras" / "datasets", download_folder()]
    return folders + [Path(p) for p in _SETS[name].system_folders]


def download_folder() -> Path:
    """Where `download` puts files: ntkcollapse/ in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ntkcollapse"


def _load_set(name: str, path: str | os.PathLike | None, download: bool) -> Splits:
    places = search_path(name, path)
    into = Path(path) if path is not None else download_folder()
    for place in places:
        # A place that is named for this set alone may hold the four files of MNIST's format directly.
        own = path is not None or str(place) in _SETS[name].system_folders
        for read, file in _candidates(_SETS[name], place, own):
            try:
                return from_arrays(*read(file), name=name, class_names=_SETS[name].class_names)
            except DataFileError:
                # An earlier download may have been interrupted: what is there and right is kept, the rest fetched.
                if not download or place != into:
                    raise
    if download:
        fetch(name, into)
        return _load_set(name, into, download=False)
    raise FileNotFoundError(
        f"{name}: no file of it found in {', '.join(str(p) for p in places)}; set {ENVIRONMENT} to a folder that has "
        "it, pass its path, or allow the download."
    )


def _candidates(known: _Set, place: Path, own: bool) -> Iterator[tuple[Callable[[Path], Arrays], Path]]:
    """What is there of the set in a place: readers and what they read."""
    read_idx_folder, read_npz_of_set = partial(_read_idx_folder, known), partial(_read_npz_of_set, known)
    if place.is_file():
        if place.suffix == ".npz":
            yield read_npz_of_set, place
        elif known.read_batches is not None:
            yield known.read_batches, place
        else:
            raise DataFileError(place, "expected an npz file, or the folder of the four idx files.")
        return
    for folder in [place] * own + [place / sub for sub in known.idx_folders]:
        if known.idx_folders and _idx_file(folder, _IDX[0]) is not None:
            yield read_idx_folder, folder
    if known.read_batches is not None:
        if (own and (place / "data_batch_1").exists()) or (own and (place / "train").is_file()):
            yield known.read_batches, place
        for sub in known.batches:
            if (place / sub).exists():
                yield known.read_batches, place / sub
    for sub in known.npz:
        if (place / sub).is_file():
            yield read_npz_of_set, place / sub


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((folder / n for n in (name, f"{name}.gz") if (folder / n).is_file()), None)


def _read_idx_folder(known: _Set, folder: Path) -> Arrays:
    arrays = []
    for name, ndim in zip(_IDX, (3, 1, 3, 1), strict=True):
        file = _idx_file(folder, name)
        if file is None:
            raise DataFileError(folder / name, "missing (also with .gz): the set would be incomplete without it.")
        arrays.append(read_idx(file, ndim=ndim))
        if ndim == 3:
            check_images(file, arrays[-1], known.shape)
        elif len(arrays[-1]) != len(arrays[-2]):
            raise DataFileError(file, f"{len(arrays[-1])} labels for {len(arrays[-2])} images.")
        else:
            check_labels(file, arrays[-1], len(arrays[-2]), known.num_classes)
    x_train, y_train, x_test, y_test = arrays
    return x_train, y_train, x_test, y_test


def _read_npz_of_set(known: _Set, file: Path) -> Arrays:
    x_train, y_train, x_test, y_test = read_npz(file)
    for part, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        check_images(f"{file}:x_{part}", x, known.shape)
        check_labels(f"{file}:y_{part}", y, len(x), known.num_classes)
    return x_train, y_train, x_test, y_test


def _load_folder(path: str | os.PathLike | None) -> Splits:
    if path is None:
        raise ValueError("path: expected the folder that holds train/ and test/ for the set 'folder', got None.")
    x_train, y_train, names = read_image_folder(Path(path) / "train")
    x_test, y_test, _ = read_image_folder(Path(path) / "test", class_names=names)
    return from_arrays(x_train, y_train, x_test, y_test, name=Path(path).name, class_names=names)
