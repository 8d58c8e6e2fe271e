"""Readers of files, one format a file. A damaged file is an error that names it, never a smaller set."""

from ntkcollapse.data.formats.cifar import read_cifar10, read_cifar100, unpickle_arrays
from ntkcollapse.data.formats.errors import DataFileError, check_images, check_labels
from ntkcollapse.data.formats.idx import read_idx
from ntkcollapse.data.formats.image_folder import read_image_folder
from ntkcollapse.data.formats.npz import read_npz

__all__ = [
    "DataFileError",
    "check_images",
    "check_labels",
    "read_cifar10",
    "read_cifar100",
    "read_idx",
    "read_image_folder",
    "read_npz",
    "unpickle_arrays",
]
