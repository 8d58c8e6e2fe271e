"""Folders of images, one folder a class."""

from pathlib import Path

import numpy as np

from ntkcollapse.data.formats.errors import DataFileError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def read_image_folder(
    path: Path | str, *, class_names: tuple[str, ...] | None = None
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images uint8 (N, height, width, 1 or 3), labels, and the folders' names in sorted order: the classes.

    Grey images have one channel; everything else is read as RGB. Hidden files are passed over; any other file that is
    not an image is an error.

    Args:
        path: holds one folder a class.
        class_names: the classes that must be there, where they are known (those of the training part).
    Raises:
        DataFileError: an unreadable image, or one whose size or number of channels differs from the first; a class
            without images; classes other than `class_names`.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    names = tuple(folder.name for folder in folders)
    if len(names) < 2:
        raise DataFileError(path, f"expected at least two folders, one a class; got {list(names)}.")
    if class_names is not None and names != class_names:
        raise DataFileError(path, f"expected the classes {list(class_names)}, got {list(names)}.")
    images, labels = [], []
    for label, folder in enumerate(folders):
        files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
        if not files:
            raise DataFileError(folder, "a class without images.")
        for file in files:
            if file.suffix.lower() not in _SUFFIXES:
                raise DataFileError(file, f"not an image by its name; expected one of {', '.join(_SUFFIXES)}.")
            try:
                with Image.open(file) as image:
                    grey = image.mode in ("1", "L")
                    pixels = np.asarray(image.convert("L" if grey else "RGB"))
            except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
                raise DataFileError(file, f"truncated or corrupt image: {error}.") from error
            pixels = pixels[..., None] if grey else pixels
            if images and pixels.shape != images[0].shape:
                raise DataFileError(
                    file,
                    f"expected height, width, channels {images[0].shape} as in the first image, got {pixels.shape}; "
                    "bring all images to one size and mode.",
                )
            images.append(pixels)
            labels.append(label)
    return np.stack(images), np.asarray(labels), names
