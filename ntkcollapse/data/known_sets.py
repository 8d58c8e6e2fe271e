"""The sets that are known by name: what their files are called, where they are looked for, what must be in them."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ntkcollapse.data.download import download as fetch
from ntkcollapse.data.formats import (
    DataFileError,
    check_images,
    check_labels,
    read_cifar10,
    read_cifar100,
    read_idx,
    read_npz,
)
from ntkcollapse.data.formats.cifar import Arrays

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


SETS = {
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


def search_path(name: str, path: str | os.PathLike | None = None) -> list[Path]:
    """The folders (or the one file or folder) where a set is looked for, in order."""
    if path is not None:
        return [Path(path)]
    folders = [Path(p) for p in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if p]
    keras = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    folders += [Path("data"), keras / "datasets", download_folder()]
    return folders + [Path(p) for p in SETS[name].system_folders]


def download_folder() -> Path:
    """Where `download` puts files: ntkcollapse/ in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ntkcollapse"


def read_set(name: str, path: str | os.PathLike | None, download: bool) -> Arrays:
    """The arrays of a set from the first of the places that has it. Arguments and errors: see `load`."""
    places = search_path(name, path)
    into = Path(path) if path is not None else download_folder()
    for place in places:
        own = path is not None or str(place) in SETS[name].system_folders or _is_named(SETS[name], place)
        for read, file in _candidates(SETS[name], place, own):
            try:
                return read(file)
            except DataFileError:
                # An earlier download may have been interrupted: what is there and right is kept, the rest fetched.
                if not download or place != into:
                    raise
    if download:
        fetch(name, into)
        return read_set(name, into, download=False)
    passed_over = [str(place) for place in places if SETS[name].idx_folders and _idx_file(place, _IDX[0]) is not None]
    raise FileNotFoundError(
        f"{name}: no file of it found in {', '.join(str(p) for p in places)}; set {ENVIRONMENT} to a folder that has "
        "it, pass its path, or allow the download."
        + "".join(
            f" {folder} has files in the format of MNIST, which those of Fashion-MNIST share by name too: pass it as "
            f"the path, or call it {SETS[name].idx_folders[-1]}."
            for folder in passed_over
        )
    )


def _is_named(known: _Set, place: Path) -> bool:
    """Whether a folder is called as the set's own, so that files in it need not say of which set they are."""
    parts = place.resolve().parts
    names = [Path(sub).parts for sub in (*known.idx_folders, *known.batches)]
    return any(parts[-len(name) :] == name for name in names)


def _candidates(known: _Set, place: Path, own: bool) -> Iterator[tuple[Callable[[Path], Arrays], Path]]:
    """What is there of the set in a place: readers and what they read; `own`: all of the place is the set's."""
    read_idx_folder, read_npz_of_set = partial(_read_idx_folder, known), partial(_read_npz_of_set, known)
    if place.is_file():
        if place.suffix == ".npz":
            yield read_npz_of_set, place
        elif known.read_batches is not None:
            yield known.read_batches, place
        else:
            raise DataFileError(place, "expected an npz file, or the folder of the four idx files.")
        return
    for folder in [place, place / "raw"] * own + [place / sub for sub in known.idx_folders]:
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
