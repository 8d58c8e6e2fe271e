"""Real datasets from local files, synthetic sets with known answers, class-balanced batches."""

from ntkcollapse.choices import IMAGES, IMBALANCES, OWN, SYNTHETIC
from ntkcollapse.data.batches import Batches
from ntkcollapse.data.dataset import Dataset, Splits
from ntkcollapse.data.digits import digits
from ntkcollapse.data.download import DownloadError, RemoteFile, download
from ntkcollapse.data.formats import DataFileError
from ntkcollapse.data.known_sets import search_path
from ntkcollapse.data.sources import from_arrays, load
from ntkcollapse.data.synthetic import (
    gaussian_mixture,
    imbalanced,
    label_noise,
    orthogonal_inputs,
    random_labels,
)
from ntkcollapse.data.synthetic_splits import check_synthetic, synthetic_splits
from ntkcollapse.data.transforms import channel_statistics, resized, standardise, standardised_splits

__all__ = [
    "IMAGES",
    "IMBALANCES",
    "OWN",
    "SYNTHETIC",
    "Batches",
    "DataFileError",
    "Dataset",
    "DownloadError",
    "RemoteFile",
    "Splits",
    "channel_statistics",
    "check_synthetic",
    "digits",
    "download",
    "from_arrays",
    "gaussian_mixture",
    "imbalanced",
    "label_noise",
    "load",
    "orthogonal_inputs",
    "random_labels",
    "resized",
    "search_path",
    "standardise",
    "standardised_splits",
    "synthetic_splits",
]
