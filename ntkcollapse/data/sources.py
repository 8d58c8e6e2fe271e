"""Real sets by name, from whatever form of their files is on disk, and your own from arrays, files and folders."""

import os
from pathlib import Path

import numpy as np

from ntkcollapse._checks import check_choice, check_path, check_real
from ntkcollapse.choices import IMAGES, OWN
from ntkcollapse.data.dataset import Dataset, Splits
from ntkcollapse.data.digits import digits
from ntkcollapse.data.formats import DataFileError, check_labels, read_image_folder, read_npz
from ntkcollapse.data.known_sets import SETS, read_set
from ntkcollapse.data.transforms import resized, standardised_splits

# A set of images in folders calls its parts by one of these; what comes first is taken where several are there.
_PARTS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}


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
    the usual caches of torchvision (./data) and Keras ($KERAS_HOME/datasets, ~/.keras/datasets without it) and that of
    `download`; where system packages put them. In each folder the official files come before npz files. MNIST and
    Fashion-MNIST have files of the same names: where no path is given, their folder's name says which set they are.

    Args:
        name: "digits" (ships with scikit-learn), "mnist", "fashion-mnist", "cifar10", "cifar100"; or your own:
            "folder", where `path` holds a folder train and one test (or val), with one folder of images a class in
            each; "npz", a file `path` of arrays x_train, y_train, x_test, y_test, samples of any shape and labels from
            0 on, as `from_arrays` takes them; or another format of `choices.OWN`.
        path: a file or folder of the set, or a folder that holds it.
        download: fetch the official files where none are found, or those that an interrupted download lacks.
        per_class: only the first so many samples of each class of the training part; all of them where None.
        test_per_class: likewise of the test part.
        size: resize images to size × size, by `resized`.
        standardised: mean 0 and standard deviation 1 of each channel, measured on the training part in use.
    Raises:
        FileNotFoundError: no file of the set is found; the message lists where it was looked for, or what is there.
        DataFileError: a file that is truncated, corrupt or mislabelled, by its name.
        ValueError: an unknown name, or more samples a class than there are.
    """
    check_choice("name", name, (*IMAGES, *OWN))
    if path is not None:
        check_path("path", path)
    if name == "digits":
        splits = Splits(digits(), digits(part="test"))
    elif name in OWN:
        splits = OWN[name](path)
    else:
        splits = from_arrays(*read_set(name, path, download), name=name, class_names=SETS[name].class_names)
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
    """Your own arrays as training and test part. Integers of one byte are divided by 255; (N, H, W) gets a channel.

    Raises:
        ValueError: one part in bytes and the other not, so that only one of them would be scaled; numbers that are not
            real or masked; labels that do not fit the samples.
    """
    check_real(x_train=x_train, x_test=x_test)
    check_one_scale(np.asarray(x_train).dtype, np.asarray(x_test).dtype)
    return Splits(
        Dataset.of(scaled(x_train), y_train, name=f"{name}/train", class_names=class_names),
        Dataset.of(scaled(x_test), y_test, name=f"{name}/test", class_names=class_names),
    )


def check_one_scale(train: np.dtype, test: np.dtype) -> None:
    """Raises ValueError where one part is of bytes, which stand for [0, 1], and the other one is not."""
    if (train == np.uint8) != (test == np.uint8):
        raise ValueError(
            f"x_train, x_test: expected one type, got {train} and {test}; bytes (uint8) are divided by 255 and nothing "
            "else is, so that the parts would have different scales. Give both as bytes, or both as numbers in the "
            "scale that you want."
        )


def scaled(images: np.ndarray) -> np.ndarray:
    """float32, from [0, 255] to [0, 1] where the pixels are bytes, channels last."""
    images = np.asarray(images)
    x = images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images.astype(np.float32)
    return x[..., None] if x.ndim == 3 else x


def load_npz(path: str | os.PathLike | None) -> Splits:
    """Reads x_train, y_train, x_test, y_test from an npz file, see `load`."""
    if path is None:
        raise ValueError("path: expected the npz file of x_train, y_train, x_test, y_test for the set 'npz', got None.")
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected an npz file of x_train, y_train, x_test, y_test, found none there.")
    arrays = read_npz(file)
    x_train, y_train, x_test, y_test = arrays
    for part, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        real = np.issubdtype(x.dtype, np.integer) or np.issubdtype(x.dtype, np.floating)
        if not real or x.ndim < 2 or not x.size:
            raise DataFileError(f"{file}:x_{part}", f"expected numbers, one sample a row; got {x.dtype} of {x.shape}.")
        if x.shape[1:] != x_train.shape[1:]:
            raise DataFileError(f"{file}:x_{part}", f"expected samples of {x_train.shape[1:]}, got {x.shape[1:]}.")
        if not np.isfinite(x).all():
            raise DataFileError(f"{file}:x_{part}", "expected finite numbers; some are not.")
        check_labels(f"{file}:y_{part}", y, len(x), None)
    try:
        check_one_scale(x_train.dtype, x_test.dtype)
    except ValueError as error:
        raise DataFileError(file, str(error)) from None
    return from_arrays(*arrays, name=file.stem)


def load_folder(path: str | os.PathLike | None) -> Splits:
    """Reads images from folders train and test, one folder a class in each, see `load`."""
    if path is None:
        raise ValueError("path: expected the folder that holds train/ and test/ for the set 'folder', got None.")
    root = Path(path)
    train, test = (_part(root, names) for names in _PARTS.values())
    x_train, y_train, names = read_image_folder(train)
    x_test, y_test, _ = read_image_folder(test, class_names=names)
    return from_arrays(x_train, y_train, x_test, y_test, name=root.resolve().name, class_names=names)


def _part(root: Path, names: tuple[str, ...]) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: expected a folder with {names[0]} in it, found no such folder.")
    there = {p.name.lower(): p for p in sorted(root.iterdir()) if p.is_dir()}
    for name in names:
        if name in there:
            return there[name]
    raise FileNotFoundError(
        f"{root}: expected a folder {names[0]} (or {', '.join(names[1:])}) that holds one folder of images a class; "
        f"found {', '.join(p.name for p in there.values()) or 'no folders'}."
    )
