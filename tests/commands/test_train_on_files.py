"""`ntkcollapse train` on files in the forms that users have, made here: from the bytes to the trajectory."""

import hashlib

import numpy as np
import pytest

from ntkcollapse import Trajectory
from ntkcollapse.cli import main
from ntkcollapse.training import read_status
from tests.data.files import cifar100_files, images_and_labels, write_tar

SMALL = "--network mlp --network-options widths=(6,10) --measure train test last-layer --decay-every 0".split()


@pytest.fixture(autouse=True)
def _nothing_of_the_user(tmp_path, monkeypatch):
    """No data of the machine that the tests run on."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NTKCOLLAPSE_DATA", raising=False)
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.chdir(tmp_path)


def trained(tmp_path, *flags: str) -> Trajectory:
    assert main(["train", *SMALL, *flags, "--out", str(tmp_path / "run")]) == 0
    assert read_status(tmp_path / "run")["outcome"] == "finished"
    return Trajectory.load(tmp_path / "run")


def digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Of what a network is trained on: bytes as shares of 255 in float32, class by class in the order of the file."""
    rows = [np.flatnonzero(labels == c) for c in range(labels.max() + 1)]
    inputs = np.concatenate([images[row] for row in rows]).astype(np.float32) / np.float32(255)
    sizes = [len(row) for row in rows]
    return hashlib.sha256(
        inputs.tobytes() + np.repeat(np.arange(len(rows)), sizes).astype(np.int32).tobytes()
    ).hexdigest()


def test_npz_of_keras_in_its_cache(tmp_path):
    x, y = images_and_labels(3, (28, 28))
    cache = tmp_path / "home" / ".keras" / "datasets"
    cache.mkdir(parents=True)
    np.savez_compressed(cache / "mnist.npz", x_train=x, y_train=y, x_test=x[:, ::-1], y_test=y)
    run = trained(tmp_path, *"--dataset mnist --batch-size 10 --epochs 1 --probe-per-class 2 --measure-log 0".split())
    assert run["step"].tolist() == [0, 3]
    assert run.settings["data_sha256"] == digest(x, y)
    # The test part is the training part upside down.
    assert float(run["test_loss"][0]) != float(run["train_loss"][0])


def test_folders_of_images_named_by_class(tmp_path):
    from PIL import Image

    images, labels = images_and_labels(4, (8, 8, 3), 3)
    for part in ("train", "test"):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = tmp_path / "animals" / part / ("bee", "cat", "dog")[label] / f"{i:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    flags = "--dataset folder --data-path animals --batch-size 6 --epochs 1 --probe-per-class 2 --measure-log 0".split()
    run = trained(tmp_path, *flags)
    assert run["step"].tolist() == [0, 2]
    assert run.states.b.shape == (2, 3)
    assert run.settings["data_sha256"] == digest(images, labels)
    np.testing.assert_array_equal(run["test_loss"], run["train_loss"])


def test_arrays_of_your_own(tmp_path, capsys):
    """Vectors of three classes, as they are."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(24, 5)).astype(np.float32), np.repeat(np.arange(3), 8)
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x + 1, y_test=y)
    run = trained(
        tmp_path,
        *"--dataset npz --data-path mine.npz --batch-size 6 --epochs 1 --probe-per-class 2 --measure-log 0".split(),
    )
    assert run["step"].tolist() == [0, 4]
    assert run.settings["data"] == "mine/train"
    assert run.settings["data_sha256"] == hashlib.sha256(x.tobytes() + y.astype(np.int32).tobytes()).hexdigest()
    assert main(["train", *SMALL, "--dataset", "npz", "--out", "other"]) == 2
    assert "data_path: expected the npz that holds your own set, got none" in capsys.readouterr().err


def test_python_batches_of_cifar100_in_their_archive(tmp_path, monkeypatch):
    folder = tmp_path / "sets"
    folder.mkdir()
    write_tar(folder / "cifar-100-python.tar.gz", "cifar-100-python", cifar100_files())
    monkeypatch.setenv("NTKCOLLAPSE_DATA", str(folder))
    run = trained(
        tmp_path,
        *"--dataset cifar100 --network-options widths=(100,) --batch-size 100 --epochs 2 --probe-per-class 1".split(),
    )
    assert run["step"].tolist() == [0, 1, 2]
    assert run.settings["data_sha256"] == digest(*images_and_labels(1, (32, 32, 3), 100, seed=0))


def test_a_damaged_file_is_one_line_that_names_it(tmp_path, capsys):
    archive = write_tar(tmp_path / "cifar-100-python.tar.gz", "cifar-100-python", cifar100_files())
    raw = bytearray(archive.read_bytes())
    raw[len(raw) // 2] ^= 1
    archive.write_bytes(raw)
    flags = ["--dataset", "cifar100", "--data-path", str(archive), "--out", str(tmp_path / "run")]
    assert main(["train", *SMALL, *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"ntkcollapse train: {archive}: truncated or corrupt")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()
