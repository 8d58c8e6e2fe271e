"""The sets that are known by name: what their files are called, where they are looked for, what must be in them."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ntkcollapse._files import user_cache
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
# Names of a folder that a message tells, and how far below a path that is given a set is looked for.
_MOST_NAMED = 10
_LEVELS = 3
_MOST_FOLDERS = 1000


class _Set(NamedTuple):
    """What a set is called in the forms that users have, and what it must hold."""

    shape: tuple[int, int, int]
    num_classes: int
    idx_folders: tuple[str, ...] = ()
    batches: tuple[str, ...] = ()
    first_files: tuple[str, ...] = ()
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
        batches=(
            "cifar-10-batches-py", "cifar-10-python/cifar-10-batches-py", "cifar-10-batches-py-target",
            "cifar-10-python.tar.gz", "cifar-10-python.tar", "cifar-10-batches-bin",
            "cifar-10-binary/cifar-10-batches-bin", "cifar-10-binary.tar.gz",
        ),
        first_files=("data_batch_1", "data_batch_1.bin"),
        read_batches=read_cifar10,
        npz=("cifar10.npz", "cifar-10.npz"),
        class_names=(
            "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
        ),
    ),
    "cifar100": _Set(
        shape=(32, 32, 3),
        num_classes=100,
        batches=(
            "cifar-100-python/cifar-100-python", "cifar-100-python", "cifar-100-python-target",
            "cifar-100-python.tar.gz", "cifar-100-python.tar", "cifar-100-binary/cifar-100-binary", "cifar-100-binary",
            "cifar-100-binary.tar.gz",
        ),
        first_files=("train", "train.bin"),
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
    return user_cache()


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
    message = (
        f"{name}: no file of it found in {', '.join(str(p) for p in places)}; set {ENVIRONMENT} to a folder that has "
        f"it, pass its path, or allow the download. {_looked_for(SETS[name])}"
    )
    if path is not None and places[0].is_dir():
        message += f" In {places[0]} there is {_contents(places[0])}."
    elif path is not None:
        message += f" There is no {places[0]}."
    for place in places:
        if SETS[name].idx_folders and _idx_file(place, _IDX[0]) is not None:
            message += (
                f" {place} has files in the format of MNIST, which those of Fashion-MNIST share by name too: pass it "
                f"as the path, or call it {SETS[name].idx_folders[-1]}."
            )
    raise FileNotFoundError(message)


def _looked_for(known: _Set) -> str:
    """What the set's files are called, for a message."""
    npz = f" (or {known.npz[0]})"
    if known.idx_folders:
        dotted = _IDX[0].replace("-idx", ".idx")
        return f"Its files are called {', '.join(_IDX)}, also with .gz, or with a point as in {dotted}{npz}."
    return f"It is called one of {', '.join(known.batches)}{npz}."


def _contents(folder: Path) -> str:
    """The first names in a folder, for a message."""
    names = sorted(p.name for p in folder.iterdir())
    return (
        ", ".join(names[:_MOST_NAMED]) + (f" and {len(names) - _MOST_NAMED} more" * (len(names) > _MOST_NAMED))
        or "nothing"
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
        if own and _has_any(place, known.first_files):
            yield known.read_batches, place
        for sub in known.batches:
            if (place / sub).is_file() or _has_any(place / sub, known.first_files):
                yield known.read_batches, place / sub
    for sub in known.npz:
        if (place / sub).is_file():
            yield read_npz_of_set, place / sub
    if own:
        below = [folder for folder in _folders_below(place) if _is_set(known, folder)]
        if len(below) > 1:
            raise DataFileError(place, f"it has the set in several folders; pass one: {', '.join(map(str, below))}.")
        for folder in below:
            yield known.read_batches or read_idx_folder, folder


def _is_set(known: _Set, folder: Path) -> bool:
    return _has_any(folder, known.first_files) or (bool(known.idx_folders) and _idx_file(folder, _IDX[0]) is not None)


def _has_any(folder: Path, names: tuple[str, ...]) -> bool:
    return any((folder / name).is_file() for name in names)


def _folders_below(place: Path) -> list[Path]:
    """Folders in a folder, down to three levels of them; of many the first ones, since not all of a disk is a set."""
    folders, level = [], [place]
    for _ in range(_LEVELS):
        level = [p for folder in level for p in _subfolders(folder)][:_MOST_FOLDERS]
        folders += level
    return folders


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError:
        return []


def _idx_file(folder: Path, name: str) -> Path | None:
    """The file of this name or of its other spellings, also within a folder of that name, as some archives unpack."""
    spellings = [f"{stem}{ending}" for stem in (name, name.replace("-idx", ".idx")) for ending in ("", ".gz")]
    files = [folder / spelling for spelling in spellings]
    files += [folder / outer / inner for outer in spellings for inner in spellings]
    return next((file for file in files if file.is_file()), None)


def _read_idx_folder(known: _Set, folder: Path) -> Arrays:
    arrays = []
    for name, ndim in zip(_IDX, (3, 1, 3, 1), strict=True):
        file = _idx_file(folder, name)
        if file is None:
            raise DataFileError(
                folder / name, "missing (also with .gz, or as .idx): the set would be incomplete without it."
            )
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
