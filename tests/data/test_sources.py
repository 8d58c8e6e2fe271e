"""Where sets are found, what is checked of them, and downloads that are whole or not at all."""

import gzip
import hashlib
import http.client
import io
import re
import ssl
import urllib.request

import numpy as np
import pytest

from ntkcollapse.data import (
    DataFileError,
    Dataset,
    DownloadError,
    RemoteFile,
    digits,
    download,
    from_arrays,
    load,
    resized,
    search_path,
    standardised_splits,
    synthetic_splits,
)
from ntkcollapse.data.download import REMOTE
from tests.data.files import (
    IDX,
    binary_rows,
    cifar10_binary_files,
    cifar10_files,
    idx_bytes,
    images_and_labels,
    write_files,
    write_idx,
    write_tar,
)


@pytest.fixture(autouse=True)
def _nothing_of_the_user(tmp_path, monkeypatch):
    """No data of the machine that the tests run on."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("NTKCOLLAPSE_DATA", raising=False)
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(home)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("where", ["path", "environment", "torchvision"])
def test_idx_files_are_found(tmp_path, monkeypatch, compressed, where):
    root = tmp_path / "home" / "data" if where == "torchvision" else tmp_path / "elsewhere"
    x, y, _, _ = write_idx(root / "MNIST" / "raw", compressed=compressed)
    if where == "environment":
        monkeypatch.setenv("NTKCOLLAPSE_DATA", f"{tmp_path / 'empty'}:{root}")
    splits = load("mnist", path=root if where == "path" else None)
    assert splits.train.inputs.shape == (30, 28, 28, 1)
    assert splits.train.inputs.dtype == np.float32
    assert splits.train.classes.sizes == (3,) * 10
    assert splits.test.classes.sizes == (2,) * 10
    # In class order, and within a class in the order of the file; bytes as shares of 255.
    wanted = x[np.argsort(y, kind="stable")]
    np.testing.assert_allclose(splits.train.inputs[..., 0] * 255, wanted, atol=1e-4)


def test_official_files_come_before_npz(tmp_path):
    write_idx(tmp_path / "mnist", compressed=True)
    x, y = images_and_labels(7, (28, 28))
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert load("mnist", path=tmp_path).train.classes.sizes == (3,) * 10
    assert load("mnist", path=tmp_path / "mnist.npz").train.classes.sizes == (7,) * 10


def test_files_named_for_no_set_are_taken_by_explicit_path_only(tmp_path, monkeypatch):
    """MNIST and Fashion-MNIST have files of the same names: their folder says which set they are."""
    write_idx(tmp_path / "files", compressed=False)
    monkeypatch.setenv("NTKCOLLAPSE_DATA", str(tmp_path / "files"))
    with pytest.raises(FileNotFoundError, match=r"mnist: no file of it found.* pass it as the path, or call it mnist"):
        load("mnist")
    assert load("fashion-mnist", path=tmp_path / "files").train.name == "fashion-mnist/train"


def test_folders_called_as_the_set_may_be_given_themselves(tmp_path, monkeypatch):
    """torchvision's folder MNIST, which holds raw/, and raw/ itself: as the path and in the environment."""
    write_idx(tmp_path / "MNIST" / "raw", compressed=True)
    assert load("mnist", path=tmp_path / "MNIST").train.classes.sizes == (3,) * 10
    for folder in (tmp_path / "MNIST", tmp_path / "MNIST" / "raw"):
        monkeypatch.setenv("NTKCOLLAPSE_DATA", str(folder))
        assert load("mnist").train.classes.sizes == (3,) * 10
        with pytest.raises(FileNotFoundError, match="fashion-mnist: no file"):
            load("fashion-mnist")
    files, _, _ = cifar10_files()
    monkeypatch.setenv("NTKCOLLAPSE_DATA", str(write_files(tmp_path / "cifar-10-batches-py", files)))
    assert load("cifar10").train.classes.sizes == (10,) * 10


def test_debian_package_is_looked_at():
    assert "/usr/share/datasets/fashion-mnist" in [str(p) for p in search_path("fashion-mnist")]
    assert "/usr/share/datasets/fashion-mnist" not in [str(p) for p in search_path("mnist")]


@pytest.mark.parametrize("folder", [".keras", "elsewhere"])
def test_keras_cache(tmp_path, monkeypatch, folder):
    x, y = images_and_labels(2, (28, 28))
    cache = tmp_path / "home" / folder / "datasets"
    cache.mkdir(parents=True)
    if folder == "elsewhere":
        monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home" / folder))
    np.savez(cache / "mnist.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert load("mnist").train.classes.sizes == (2,) * 10


@pytest.mark.parametrize("form", ["folder", "tar", "folder itself"])
def test_cifar_forms(tmp_path, form):
    files, images, labels = cifar10_files()
    if form == "tar":
        write_tar(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", files)
    else:
        write_files(tmp_path / "cifar-10-batches-py", files)
    train = load("cifar10", path=tmp_path / "cifar-10-batches-py" if form == "folder itself" else tmp_path).train
    assert train.class_names[3] == "cat"
    np.testing.assert_allclose(train.inputs * 255, images[np.argsort(labels, kind="stable")], atol=1e-4)


SPELLINGS = {
    "7-Zip": lambda name: name.replace("-idx", ".idx"),
    "7-Zip, packed": lambda name: name.replace("-idx", ".idx") + ".gz",
    "folders of the same name": lambda name: f"{name}/{name}",
    "folders and points": lambda name: f"{name}/{name.replace('-idx', '.idx')}",
    "nested": lambda name: f"archive/MNIST/files/{name}",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_names_that_archives_make_of_the_idx_files(tmp_path, spelling):
    write_idx(tmp_path / "files", compressed=spelling.endswith("packed"))
    for file in sorted((tmp_path / "files").iterdir()):
        target = tmp_path / "here" / SPELLINGS[spelling](file.name.removesuffix(".gz"))
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
    assert load("mnist", path=tmp_path / "here").train.classes.sizes == (3,) * 10


def test_a_set_in_several_folders_below_the_path_is_not_guessed(tmp_path):
    for folder in ("a/b", "c"):
        write_idx(tmp_path / folder, compressed=True)
    with pytest.raises(DataFileError, match=r"the set in several folders; pass one: .*/c, .*/a/b"):
        load("mnist", path=tmp_path)


def test_a_path_without_the_set_says_what_is_looked_for_and_what_is_there(tmp_path):
    for name in ("train.csv", "test.csv"):
        write_files(tmp_path / "kaggle", {name: b"1"})
    with pytest.raises(FileNotFoundError) as raised:
        load("mnist", path=tmp_path / "kaggle")
    for part in (*IDX, "train-images.idx3-ubyte", "mnist.npz", "there is test.csv, train.csv."):
        assert part in str(raised.value)
    with pytest.raises(
        FileNotFoundError, match=r"one of cifar-10-batches-py, .*cifar-10-batches-bin.* There is no .*x"
    ):
        load("cifar10", path=tmp_path / "x")


@pytest.mark.parametrize("form", ["folder", "folder itself", "tar", "nested"])
@pytest.mark.parametrize("version", ["python", "binary"])
def test_versions_of_cifar(tmp_path, form, version):
    files, images, labels = cifar10_files() if version == "python" else cifar10_binary_files()
    folder = "cifar-10-batches-py" if version == "python" else "cifar-10-batches-bin"
    path = tmp_path / "here"
    if form == "tar":
        path.mkdir()
        write_tar(path / f"cifar-10-{version}.tar.gz", folder, files)
    else:
        write_files(path / f"cifar-10-{version}" / folder if form == "nested" else path / folder, files)
    train = load("cifar10", path=path / folder if form == "folder itself" else path).train
    np.testing.assert_allclose(train.inputs * 255, images[np.argsort(labels, kind="stable")], atol=1e-4)


def test_the_binary_version_of_cifar100_has_two_labels(tmp_path):
    arrays = [images_and_labels(1, (32, 32, 3), 100, seed=i) for i in range(2)]
    files = {
        f"{name}.bin": binary_rows(np.stack([y % 20, y], axis=1), x)
        for name, (x, y) in zip(("train", "test"), arrays, strict=True)
    }
    write_tar(tmp_path / "cifar-100-binary.tar.gz", "cifar-100-binary", files)
    train = load("cifar100", path=tmp_path).train
    x, y = arrays[0]
    np.testing.assert_allclose(train.inputs * 255, x[np.argsort(y, kind="stable")], atol=1e-4)


def test_parts_of_different_types_are_not_scaled_differently(tmp_path):
    x, y = images_and_labels(2, (8, 8))
    with pytest.raises(
        ValueError, match=r"x_train, x_test: expected one type, got uint8 and float64; .* divided by 255"
    ):
        from_arrays(x, y, x.astype(float), y)
    file = tmp_path / "mine.npz"
    np.savez(file, x_train=x.astype(np.int64), y_train=y, x_test=x, y_test=y)
    with pytest.raises(
        DataFileError, match=f"^{re.escape(str(file))}: x_train, x_test: expected one .*int64 and uint8"
    ):
        load("npz", path=file)
    # Numbers of any type but bytes keep their scale.
    np.savez(file, x_train=x.astype(np.int64), y_train=y, x_test=x.astype(np.float32), y_test=y)
    train, test = load("npz", path=file)
    np.testing.assert_array_equal(train.inputs, test.inputs)
    assert train.inputs.max() == x.max()


def test_what_does_not_fit_into_memory_is_refused_before(monkeypatch):
    with pytest.raises(
        ValueError, match=r"size: expected an array that fits into memory .* \(1, 1000000, 1000000, 3\)"
    ):
        resized(np.zeros((1, 8, 8, 3), np.float32), 10**6)
    with pytest.raises(ValueError, match=r"classes, dimension: expected an array that fits .*TiB"):
        synthetic_splits("gaussian-mixture", seed=0, options={"dimension": 10**10})
    with pytest.raises(ValueError, match=r"classes, dimension: expected an array that fits .*TiB"):
        synthetic_splits("orthogonal", seed=0, options={"dimension": 10**10})


def test_incomplete_and_mislabelled_sets_name_the_file(tmp_path):
    folder = tmp_path / "MNIST"
    write_idx(folder, compressed=False)
    labels = folder / IDX[1]
    labels.write_bytes(idx_bytes(np.zeros(29, np.uint8)))
    with pytest.raises(DataFileError, match=f"^{re.escape(str(labels))}: 29 labels for 30 images"):
        load("mnist", path=tmp_path)
    for wrong in (np.full(30, 3, np.uint8), np.arange(30, dtype=np.uint8) % 11):
        labels.write_bytes(idx_bytes(wrong))
        with pytest.raises(DataFileError, match=f"^{re.escape(str(labels))}: expected labels 0 to 9, each of them"):
            load("mnist", path=tmp_path)
    labels.unlink()
    with pytest.raises(DataFileError, match=f"^{re.escape(str(labels))}: missing"):
        load("mnist", path=tmp_path)
    x, y = images_and_labels(2, (32, 32, 3))
    np.savez(tmp_path / "wrong.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    with pytest.raises(DataFileError, match=r"wrong\.npz:x_train: expected uint8 images of shape \(28, 28, 1\)"):
        load("mnist", path=tmp_path / "wrong.npz")
    x, y = images_and_labels(2, (28, 28))
    np.savez(tmp_path / "wrong.npz", x_train=x, y_train=y, x_test=x, y_test=y % 9)
    with pytest.raises(DataFileError, match=r"wrong\.npz:y_test: expected labels 0 to 9, each of them present"):
        load("mnist", path=tmp_path / "wrong.npz")


def test_images_of_another_size_name_their_file(tmp_path):
    write_idx(tmp_path, compressed=True)
    images = tmp_path / f"{IDX[2]}.gz"
    images.write_bytes(gzip.compress(idx_bytes(np.zeros((20, 27, 28), np.uint8))))
    with pytest.raises(
        DataFileError, match=f"^{re.escape(str(images))}: expected uint8 images of shape .28, 28, 1.*27"
    ):
        load("mnist", path=tmp_path)


def test_arrays_of_any_shape_in_one_file(tmp_path):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(12, 5)), np.arange(12) % 3
    file = tmp_path / "mine.npz"
    np.savez(file, x_train=x, y_train=y, x_test=x[:6] + 1, y_test=y[:6, None])
    train, test = load("npz", path=file)
    assert (train.name, train.shape, train.classes.sizes, test.classes.sizes) == (
        "mine/train",
        (5,),
        (4,) * 3,
        (2,) * 3,
    )
    np.testing.assert_array_equal(train.inputs, x[np.argsort(y, kind="stable")].astype(np.float32))

    good = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    for wrong, message in [
        ({"y_train": y + 1}, r"y_train: expected labels 0 to 3, each of them present"),
        ({"y_test": y.astype(float)}, "y_test: expected integer labels, got float64"),
        ({"y_test": y[1:]}, "y_test: expected 12 labels"),
        ({"x_test": x[:, :4]}, r"x_test: expected samples of \(5,\), got \(4,\)"),
        ({"x_train": np.where(x == x[3, 2], np.nan, x)}, "x_train: expected finite numbers"),
        ({"x_train": x + 1j}, "x_train: expected numbers, one sample a row; got complex128"),
        ({"x_train": x[:, 0]}, r"x_train: expected numbers, one sample a row; got float64 of \(12,\)"),
    ]:
        np.savez(file, **(good | wrong))
        with pytest.raises(DataFileError, match=f"^{re.escape(str(file))}:{message}"):
            load("npz", path=file)
    with pytest.raises(FileNotFoundError, match=r"none\.npz: expected an npz file of x_train"):
        load("npz", path=tmp_path / "none.npz")


@pytest.mark.parametrize("names", [("train", "val"), ("Training", "testing"), ("train", "validation")])
def test_parts_of_image_folders_by_their_usual_names(tmp_path, names):
    from PIL import Image

    for i, part in enumerate(names):
        for c, name in enumerate(("cat", "dog")):
            file = tmp_path / part / name / "0.png"
            file.parent.mkdir(parents=True)
            Image.fromarray(np.full((6, 5), 10 * i + c, np.uint8)).save(file)
    train, test = load("folder", path=tmp_path)
    assert np.unique(train.inputs * 255).tolist() == [0, 1]
    np.testing.assert_allclose(np.unique(test.inputs * 255), [10, 11], rtol=1e-6)
    (tmp_path / names[1]).rename(tmp_path / "held-out")
    with pytest.raises(FileNotFoundError, match=r"expected a folder test \(or .*val.*; found .*held-out"):
        load("folder", path=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere: expected a folder with train in it, found no such folder"):
        load("folder", path=tmp_path / "nowhere")


def test_nothing_found_says_where_it_looked():
    with pytest.raises(FileNotFoundError, match=r"cifar10: no file of it found in .*\.keras.*NTKCOLLAPSE_DATA"):
        load("cifar10")
    with pytest.raises(ValueError, match="Did you mean 'mnist'"):
        load("mnits")


def test_subsets_sizes_and_standardisation(tmp_path):
    write_idx(tmp_path / "mnist", compressed=True)
    splits = load("mnist", path=tmp_path, per_class=2, test_per_class=1, size=32, standardised=True)
    assert splits.train.inputs.shape == (20, 32, 32, 1)
    assert splits.test.inputs.shape == (10, 32, 32, 1)
    # float32 sums of 20,480 numbers of size 1.
    assert abs(splits.train.inputs.mean()) < 1e-5
    assert abs(splits.train.inputs.std() - 1) < 1e-5
    with pytest.raises(ValueError, match="per_class: expected 1 to 3"):
        load("mnist", path=tmp_path, per_class=4)


def test_standardisation_reads_the_training_part_alone():
    x = np.random.default_rng(0).normal(2, 3, (40, 4, 4, 3)).astype(np.float32)
    y = np.tile(np.arange(2), 20)
    splits = standardised_splits(from_arrays(x, y, x + 1, y))
    deviation = x.std((0, 1, 2))
    np.testing.assert_allclose((splits.test.inputs - splits.train.inputs).mean((0, 1, 2)), 1 / deviation, rtol=1e-4)


def test_resized_is_exact_on_linear_ramps():
    """Interpolation reproduces what is linear between the outermost pixel centres."""
    ramp = np.arange(28, dtype=np.float32)
    image = np.broadcast_to(ramp[None, :, None, None], (2, 28, 28, 1)).copy()
    centres = np.clip((np.arange(32) + 0.5) * 28 / 32 - 0.5, 0, 27)
    np.testing.assert_allclose(resized(image, 32)[0, :, 5, 0], centres, rtol=1e-6)
    np.testing.assert_array_equal(resized(image, 28), image)


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    bunch = load_digits(return_X_y=True)
    images, labels = np.asarray(bunch[0]), np.asarray(bunch[1])
    data = digits(per_class=30)
    assert data.classes.sizes == (30,) * 10
    first = images[labels == 7][:30].reshape(-1, 8, 8, 1)
    np.testing.assert_array_equal(data.inputs[7 * 30 : 8 * 30] * 16, first)
    train, test = digits(), digits(part="test")
    assert not {row.tobytes() for row in train.inputs} & {row.tobytes() for row in test.inputs}
    with pytest.raises(ValueError, match="per_class: expected 1 to 120"):
        digits(per_class=121)


def test_addresses_are_encrypted_and_checksums_long():
    for _, files in REMOTE.values():
        for file in files:
            assert len(file.urls) > 1
            assert all(url.startswith("https://") for url in file.urls)
            assert re.fullmatch("[0-9a-f]{64}", file.sha256)


class TestDownload:
    """Local file:// addresses in place of the homes."""

    @pytest.fixture
    def remote(self, tmp_path):
        home = tmp_path / "server"
        write_idx(home, compressed=True)
        files = []
        for name in IDX:
            raw = (home / f"{name}.gz").read_bytes()
            urls = ((tmp_path / "nowhere" / name).as_uri(), (home / f"{name}.gz").as_uri())
            files.append(RemoteFile(f"{name}.gz", hashlib.sha256(raw).hexdigest(), urls))
        return {"mnist": ("MNIST/raw", tuple(files))}

    def test_second_address_serves_where_the_first_does_not(self, tmp_path, remote):
        download("mnist", tmp_path / "cache", remote=remote)
        assert load("mnist", path=tmp_path / "cache").train.classes.sizes == (3,) * 10
        left = {p.name for p in (tmp_path / "cache" / "MNIST" / "raw").iterdir()}
        assert left == {f"{name}.gz" for name in IDX}

    def test_wrong_bytes_leave_nothing_behind(self, tmp_path, remote):
        (tmp_path / "server" / f"{IDX[1]}.gz").write_bytes(gzip.compress(b"other"))
        with pytest.raises(DownloadError, match=rf"{IDX[1]}\.gz: expected SHA-256 .* gave SHA-256"):
            download("mnist", tmp_path / "cache", remote=remote)
        left = {p.name for p in (tmp_path / "cache" / "MNIST" / "raw").iterdir()}
        assert left == {f"{IDX[0]}.gz"}

    def test_a_broken_connection_leaves_nothing_behind(self, tmp_path, remote):
        class Broken:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def read(self, _size):
                raise ConnectionResetError("gone")

        with pytest.raises(DownloadError, match="gone"):
            download("mnist", tmp_path / "cache", remote=remote, opener=lambda url: Broken())  # pyright: ignore
        assert list((tmp_path / "cache" / "MNIST" / "raw").iterdir()) == []

    def test_an_interrupted_download_is_gone_on_with(self, tmp_path, remote, monkeypatch):
        monkeypatch.setitem(REMOTE, "mnist", remote["mnist"])
        folder = tmp_path / "home" / ".cache" / "ntkcollapse" / "MNIST" / "raw"
        folder.mkdir(parents=True)
        (folder / f"{IDX[0]}.gz").write_bytes((tmp_path / "server" / f"{IDX[0]}.gz").read_bytes())
        with pytest.raises(DataFileError, match=rf"{IDX[1]}: missing"):
            load("mnist")
        assert load("mnist", download=True).train.classes.sizes == (3,) * 10
        assert load("mnist").train.classes.sizes == (3,) * 10

    @pytest.mark.parametrize("error", [http.client.IncompleteRead(b""), ssl.SSLError("bad record"), OSError("reset")])
    def test_second_address_serves_where_the_first_breaks_off(self, tmp_path, remote, error):
        class Broken(io.BytesIO):
            def read(self, size=-1, /):
                raise error

        def opener(url):
            return Broken() if "nowhere" in url else urllib.request.urlopen(url)

        download("mnist", tmp_path / "cache", remote=remote, opener=opener)
        assert load("mnist", path=tmp_path / "cache").train.classes.sizes == (3,) * 10

    def test_files_that_are_right_are_kept(self, tmp_path, remote):
        download("mnist", tmp_path / "cache", remote=remote)

        def never(url):
            raise AssertionError("asked again")

        download("mnist", tmp_path / "cache", remote=remote, opener=never)

    def test_addresses_are_not_asked_unless_told_to(self, monkeypatch):
        monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("asked"))
        with pytest.raises(FileNotFoundError):
            load("mnist")


def test_tokens_stay_whole_numbers():
    labels = np.array([1, 0, 1, 0])
    tokens = np.arange(12).reshape(4, 3)
    data = Dataset.of(tokens, labels, name="tokens")
    assert data.inputs.dtype == tokens.dtype
    np.testing.assert_array_equal(data.inputs, tokens[[1, 3, 0, 2]])
    # Bytes are pixels, and numbers.
    for kind in (np.uint8, np.float64):
        assert Dataset.of(tokens.astype(kind), labels, name="pixels").inputs.dtype == np.float32
    assert from_arrays(tokens, labels, tokens, labels).train.inputs.dtype == np.float32
