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
    """No address gave the file with its checksum; the message says how each of them failed."""


class RemoteFile(NamedTuple):
    """A file by its name, its SHA-256, and the addresses that have it, in the order to try."""

    name: str
    sha256: str
    urls: tuple[str, ...]


def _files(homes: tuple[str, ...], checksums: dict[str, str]) -> tuple[RemoteFile, ...]:
    return tuple(RemoteFile(name, sha256, tuple(home + name for home in homes)) for name, sha256 in checksums.items())


_KRIZHEVSKY = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")

# Name of the set → its folder, and its files.
REMOTE: dict[str, tuple[str, tuple[RemoteFile, ...]]] = {
    "mnist": (
        "MNIST/raw",
        _files(
            ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
            {
                "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            },
        ),
    ),
    "fashion-mnist": (
        "FashionMNIST/raw",
        _files(
            (
                "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
                "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            ),
            {
                "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            },
        ),
    ),
    "cifar10": (
        "",
        _files(
            _KRIZHEVSKY,
            {"cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"},
        ),
    ),
    "cifar100": (
        "",
        _files(
            _KRIZHEVSKY,
            {"cifar-100-python.tar.gz": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"},
        ),
    ),
}


def download(
    name: str,
    into: Path | str,
    *,
    remote: dict[str, tuple[str, tuple[RemoteFile, ...]]] | None = None,
    opener: Callable[[str], IO[bytes]] | None = None,
) -> Path:
    """The files of a set, fetched into its own folder below `into`, all or nothing for each file.

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
        if not (target / file.name).exists() or _sha256(target / file.name) != file.sha256:
            _fetch(file, target, opener or (lambda url: urllib.request.urlopen(url, timeout=60)))
    return target


def _fetch(file: RemoteFile, folder: Path, opener: Callable[[str], IO[bytes]]) -> None:
    failures = []
    for url in file.urls:
        try:
            with replacing(folder / file.name) as part:
                digest = hashlib.sha256()
                with part.open("wb") as out, opener(url) as stream:
                    while chunk := stream.read(1 << 20):
                        digest.update(chunk)
                        out.write(chunk)
                if digest.hexdigest() != file.sha256:
                    raise DownloadError(f"{url} gave SHA-256 {digest.hexdigest()}")
            return
        except DownloadError as error:
            failures.append(str(error))
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{url}: {type(error).__name__}: {error}")
    raise DownloadError(
        f"{file.name}: expected SHA-256 {file.sha256}; "
        + "; ".join(failures)
        + f". Put the file into {folder} by hand."
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, hashlib.sha256).hexdigest()
