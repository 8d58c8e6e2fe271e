"""Damaged files of every reader: refused by name, or read as they were; never smaller, never changed."""

import gzip
import io

import numpy as np
import pytest
from PIL import Image

from ntkcollapse import BlockKernel, Classes, KernelPath, LastLayer, Trajectory, _netcdf, data
from ntkcollapse.checkpoints import Checkpoints
from ntkcollapse.commands.settings import SimulateConfig
from ntkcollapse.comparison import Ladder, load_ladders, save_ladders
from ntkcollapse.comparison.files import _dataset
from ntkcollapse.data.formats import read_cifar10, read_idx, read_image_folder, read_npz
from ntkcollapse.ntk._partial import PartialResults
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.training import TrainConfig
from tests.data.files import cifar10_binary_files, cifar10_files, idx_bytes, images_and_labels, write_files, write_tar
from tests.fuzz.properties import answer, damaged, run, sizes

pytestmark = [pytest.mark.usefixtures("as_users_call"), pytest.mark.filterwarnings("ignore")]

RNG = np.random.default_rng(0)
CLASSES = Classes((2, 3))


def trajectory() -> Trajectory:
    """A small one with every kind of array in it."""
    times = np.linspace(0, 1, 4)
    return Trajectory(
        times,
        {"loss": RNG.random(4), "step": np.arange(4), "layers_x": RNG.random((4, 3))},
        CLASSES,
        states=LastLayer.stacked(RNG.random((4, 3, 5)), RNG.random((4, 2, 3)), np.zeros((4, 2))),
        kernel=KernelPath.of(times, [BlockKernel(3.0, 2.0, 0.5)] * 4),
        statistics={"num_steps": 7},
        names={"layers": ["a", "b", "c"]},
        settings={"seed": 1},
    )


def fuzz(cases, of, file, read, same):
    """Damages one file again and again: whatever is read of it is `same` as before."""
    raw = file.read_bytes()
    assert answer(of, read)[0], "the file as it was"

    def case(data):
        bad = damaged(data, raw)
        file.write_bytes(bad)
        is_read, value = answer(of, read)
        if is_read and bad != raw:
            assert same(value), "changed in silence"

    try:
        run(cases, case)
    finally:
        file.write_bytes(raw)


@sizes(15, 500)
def test_trajectories(cases, tmp_path):
    saved = trajectory()
    file, digest = saved.save(tmp_path), _netcdf.digest(saved._stored())
    fuzz(
        cases,
        "trajectory.nc",
        file,
        lambda: Trajectory.load(tmp_path),
        lambda t: _netcdf.digest(t._stored()) == digest,
    )


@sizes(10, 400)
def test_comparisons(cases, tmp_path):
    run_ = trajectory()
    ladders = {step: Ladder(network=run_, rungs={"block-frozen": run_}, failures={"x": "y"}) for step in (3, 40)}
    file = save_ladders(tmp_path, ladders)
    digests = {step: _netcdf.digest(_dataset(step, ladder)) for step, ladder in load_ladders(tmp_path).items()}

    def same(found):
        return {step: _netcdf.digest(_dataset(step, ladder)) for step, ladder in found.items()} == digests

    fuzz(cases, "comparison.nc", file, lambda: load_ladders(tmp_path), same)


@sizes(15, 1500)
def test_checkpoints(cases, tmp_path):
    arrays = {"w": RNG.random((3, 4)), "half": np.ones(3, np.float16), "none": np.zeros((0, 2))}
    file = Checkpoints(tmp_path).save(7, arrays, {"seed": 3})

    def same(found):
        equal = all(np.array_equal(found.arrays[name], value) for name, value in arrays.items())
        return equal and found.step == 7 and found.notes == {"seed": 3} and found.arrays.keys() == arrays.keys()

    fuzz(cases, "checkpoint", file, lambda: Checkpoints(tmp_path).newest(), same)


@sizes(10, 1000)
def test_partial_kernels(cases, tmp_path):
    array = RNG.random((4, 4))
    partial = PartialResults(tmp_path, lambda: "this work")
    partial.save("kernel", 3, lambda: [array], at_once=True)

    def same(found):
        return found[0] == 3 and len(found[1]) == 1 and np.array_equal(found[1][0], array)

    fuzz(cases, "NTK checkpoint", tmp_path / "kernel.npz", lambda: partial.load("kernel"), same)


@pytest.mark.parametrize("kind", [TrainConfig, SimulateConfig], ids=["train", "simulate"])
@sizes(10, 700)
def test_settings(cases, kind, tmp_path):
    """Text that people edit has no digest: what is read need not be what was written, but none of it is missing."""
    directory = RunDirectory(tmp_path)
    directory.begin(kind())
    fuzz(cases, "config.toml", directory.settings, lambda: directory.read_settings(kind), lambda found: True)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@sizes(10, 1000)
def test_idx(cases, packed, tmp_path):
    array = RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8)
    file = tmp_path / "images-idx3-ubyte"
    file.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))

    def same(found):
        # The format itself has no checksum, gzip has one.
        return np.array_equal(found, array) if packed else found.size == array.size

    fuzz(cases, f"idx{', gzip' * packed}", file, lambda: read_idx(file, ndim=3), same)


@sizes(10, 1000)
def test_npz(cases, tmp_path):
    names, arrays = ("x_train", "y_train", "x_test", "y_test"), []
    for seed in (0, 1):
        arrays += images_and_labels(2, (4, 4), 3, seed=seed)
    file = tmp_path / "own.npz"
    np.savez(file, **dict(zip(names, arrays, strict=True)))

    def same(found):
        return all(np.array_equal(a, b) for a, b in zip(found, arrays, strict=True))

    fuzz(cases, "npz", file, lambda: read_npz(file), same)
    expected = data.load("npz", path=file)
    fuzz(
        cases // 5,
        "npz set",
        file,
        lambda: data.load("npz", path=file),
        lambda s: s.train.inputs.shape == expected.train.inputs.shape,
    )


@sizes(5, 400)
def test_cifar_archives(cases, tmp_path):
    files, images, labels = cifar10_files(1)
    archive = write_tar(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", files)

    def same(found):
        return np.array_equal(found[0], images) and np.array_equal(found[1], labels)

    fuzz(cases, "CIFAR archive", archive, lambda: read_cifar10(archive), same)


@pytest.mark.parametrize("name", ["data_batch_2", "batches.meta", "test_batch", "data_batch_3.bin"])
@sizes(5, 400)
def test_cifar_folders(cases, name, tmp_path):
    files, images, _ = cifar10_binary_files(1) if name.endswith(".bin") else cifar10_files(1)
    folder = write_files(tmp_path / "set", files)
    fuzz(
        cases, "CIFAR folder", folder / name, lambda: read_cifar10(folder), lambda found: found[0].shape == images.shape
    )


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".bmp", ".tif", ".webp", ".ppm"])
@sizes(5, 200)
def test_image_folders(cases, suffix, tmp_path):
    made = []
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(2):
            buffer = io.BytesIO()
            pixels = RNG.integers(0, 256, (8, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer, Image.registered_extensions()[suffix])
            (tmp_path / name / f"{i}{suffix}").write_bytes(buffer.getvalue())
            made.append(pixels)

    def same(found):
        x, y, names = found
        fits = x.shape == (4, 8, 9, 3) and y.tolist() == [0, 0, 1, 1] and names == ("cat", "dog")
        # Of these formats, PNG alone has checksums.
        return fits and (suffix != ".png" or np.array_equal(x, np.stack(made)))

    fuzz(cases, f"images {suffix}", tmp_path / "cat" / f"1{suffix}", lambda: read_image_folder(tmp_path), same)
