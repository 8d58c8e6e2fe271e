"""Folders of images, one folder a class."""

from pathlib import Path

import numpy as np

from ntkcollapse.data.formats.errors import DataFileError
from ntkcollapse.data.memory import affordable, spelled

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# Whatever the name: Pillow would also start other programs for what a file may hold (PostScript, for one).
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_SEVERAL = (".gif", ".webp", ".tif", ".tiff", ".png")


def read_image_folder(
    path: Path | str, *, class_names: tuple[str, ...] | None = None
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images uint8 (N, height, width, 1 or 3), labels, and the folders' names in sorted order: the classes.

    Grey images have one channel; everything else is read as RGB, 8 bits a channel. Hidden files are passed over;
    whatever else is not an image in the folder of its class is an error.

    Args:
        path: holds one folder a class.
        class_names: the classes that must be there, where they are known (those of the training part).
    Raises:
        DataFileError: an unreadable image, one of more than 8 bits a channel or of several frames, or one whose size or
            number of channels differs from the first; a class without images; something in the wrong place; classes
            other than `class_names`.
    """
    path = Path(path)
    folders = _entries(path)
    for folder in folders:
        if not folder.is_dir():
            raise DataFileError(folder, "not in the folder of a class; put it into one, or elsewhere.")
    names = tuple(folder.name for folder in folders)
    if len(names) < 2:
        raise DataFileError(path, f"expected at least two folders, one a class; got {list(names)}.")
    if class_names is not None and names != class_names:
        raise DataFileError(path, f"expected the classes {list(class_names)}, got {list(names)}.")
    files_of = [_entries(folder) for folder in folders]
    images, labels = [], []
    for label, (folder, files) in enumerate(zip(folders, files_of, strict=True)):
        if not files:
            raise DataFileError(folder, "a class without images.")
        for file in files:
            pixels = _pixels(file)
            if not images and pixels.size * sum(map(len, files_of)) > affordable():
                raise DataFileError(
                    path,
                    f"{sum(map(len, files_of))} images of {pixels.shape} are more than fits into memory "
                    f"({spelled(affordable())}).",
                )
            if images and pixels.shape != images[0].shape:
                raise DataFileError(
                    file,
                    f"expected height, width, channels {images[0].shape} as in the first image, got {pixels.shape}; "
                    "bring all images to one size and mode.",
                )
            images.append(pixels)
            labels.append(label)
    return np.stack(images), np.asarray(labels), names


def _entries(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _pixels(file: Path) -> np.ndarray:
    from PIL import Image

    if file.is_dir():
        raise DataFileError(file, "a folder within that of a class; bring its images up into that one.")
    if file.suffix.lower() not in _SUFFIXES:
        raise DataFileError(file, f"not an image by its name; expected one of {', '.join(_SUFFIXES)}.")
    try:
        with Image.open(file, formats=_FORMATS) as image:
            # Pillow cuts what is above 255, and of several frames it gives the first one.
            if image.mode == "F" or image.mode.startswith("I"):
                raise DataFileError(file, f"expected 8 bits a channel, got the mode {image.mode}; convert it.")
            if file.suffix.lower() in _SEVERAL and getattr(image, "n_frames", 1) > 1:
                raise DataFileError(file, "expected one image, got several frames; save each in a file of its own.")
            grey = image.mode in ("1", "L")
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except DataFileError:
        raise
    # Whatever a decoder says of damaged bytes, the file is at fault.
    except Exception as error:
        raise DataFileError(file, f"truncated or corrupt image: {error}.") from error
    return pixels[..., None] if grey else pixels
