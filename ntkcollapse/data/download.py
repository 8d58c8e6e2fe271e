"""Downloads on explicit request, from the datasets' own homes, checked against their published checksums."""

import hashlib
import http.client
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

from ntkcollapse._checks import check_choice
from ntkcollapse._files import replacing


class DownloadError(OSError):
    """No home gave the file with the published checksum; the message says what each said."""


class RemoteFile(NamedTuple):
    """A file by its name, its published MD5, and the addresses that have it, in the order to try."""

    name: str
    md5: str
    urls: tuple[str, ...]


def _files(homes: tuple[str, ...], checksums: dict[str, str]) -> tuple[RemoteFile, ...]:
    return tuple(RemoteFile(name, md5, tuple(home + name for home in homes)) for name, md5 in checksums.items())


_KRIZHEVSKY = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")

# Name of the set → its folder, and its files.
REMOTE: dict[str, tuple[str, tuple[RemoteFile, ...]]] = {
    "mnist": (
        "MNIST/raw",
        _files(
            ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
            {
                "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
                "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
                "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
            },
        ),
    ),
    "fashion-mnist": (
        "FashionMNIST/raw",
        _files(
            ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
            {
                "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
                "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
                "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
            },
        ),
    ),
    "cifar10": ("", _files(_KRIZHEVSKY, {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"})),
    "cifar100": ("", _files(_KRIZHEVSKY, {"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"})),
}


def download(
    name: str,
    into: Path | str,
    *,
    remote: dict[str, tuple[str, tuple[RemoteFile, ...]]] | None = None,
    opener: Callable[[str], IO[bytes]] | None = None,
) -> Path:
    """Fetches the files of a set into its own folder below `into`, all or nothing for each file.

    A file that is there already with the right checksum is kept. Bytes are checked as they arrive, and a file takes
    its place only when they are all there and right.

    Args:
        name: "mnist", "fashion-mnist", "cifar10" or "cifar100".
        into: made if missing.
        remote: other addresses and checksums, in the form of `REMOTE`.
        opener: address ↦ open binary stream; `urllib.request.urlopen` with a timeout of a minute by default.
    Returns:
        The folder that holds the files.
    Raises:
        DownloadError: no address gave a file with the published checksum.
        ValueError: an unknown name.
    """
    known = REMOTE if remote is None else remote
    check_choice("name", name, known)
    folder, files = known[name]
    target = Path(into) / folder
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        if not (target / file.name).exists() or _md5(target / file.name) != file.md5:
            _fetch(file, target, opener or (lambda url: urllib.request.urlopen(url, timeout=60)))
    return target


def _fetch(file: RemoteFile, folder: Path, opener: Callable[[str], IO[bytes]]) -> None:
    said = []
    for url in file.urls:
        try:
            with replacing(folder / file.name) as part:
                digest = hashlib.md5(usedforsecurity=False)
                with part.open("wb") as out, opener(url) as stream:
                    while chunk := stream.read(1 << 20):
                        digest.update(chunk)
                        out.write(chunk)
                if digest.hexdigest() != file.md5:
                    raise DownloadError(f"{url} gave MD5 {digest.hexdigest()}")
            return
        except DownloadError as error:
            said.append(str(error))
        except (OSError, http.client.HTTPException) as error:
            said.append(f"{url}: {type(error).__name__}: {error}")
    raise DownloadError(
        f"{file.name}: expected MD5 {file.md5}; " + "; ".join(said) + f". Put the file into {folder} by hand."
    )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
