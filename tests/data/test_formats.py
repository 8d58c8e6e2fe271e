"""Readers against files written from the formats' descriptions; damage is an error that names the file."""

import gzip
import io
import os
import pickle
import re
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from ntkcollapse.data import DataFileError
from ntkcollapse.data.formats import (
    read_cifar10,
    read_cifar100,
    read_idx,
    read_image_folder,
    read_npz,
    unpickle_arrays,
)
from tests.data.files import (
    cifar10_binary_files,
    cifar10_files,
    cifar100_files,
    cifar_batch,
    idx_bytes,
    images_and_labels,
    write_files,
    write_tar,
)


def damaged(path, match):
    """An error that begins with the path."""
    return pytest.raises(DataFileError, match=f"^{re.escape(str(path))}.*{match}")


def test_idx(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    plain, packed = tmp_path / "a", tmp_path / "b.gz"
    plain.write_bytes(idx_bytes(array))
    packed.write_bytes(gzip.compress(idx_bytes(array)))
    for file in (plain, packed):
        np.testing.assert_array_equal(read_idx(file, ndim=3), array)


def test_idx_of_two_byte_numbers_is_big_endian(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(bytes([0, 0, 0x0B, 1, 0, 0, 0, 2, 1, 0, 0, 1]))
    np.testing.assert_array_equal(read_idx(file), [256, 1])


@pytest.mark.parametrize("drop", [1, 10, 3000])
def test_truncated_idx(tmp_path, drop):
    raw = idx_bytes(np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8))
    plain, packed = tmp_path / "a", tmp_path / "b.gz"
    plain.write_bytes(raw[:-drop])
    packed.write_bytes(gzip.compress(raw)[:-drop])
    with damaged(plain, "bytes"):
        read_idx(plain)
    with damaged(packed, "truncated or corrupt"):
        read_idx(packed)


def test_idx_of_another_kind(tmp_path):
    file = tmp_path / "labels"
    file.write_bytes(idx_bytes(np.zeros(5, np.uint8)))
    with damaged(file, "expected 3 axes"):
        read_idx(file, ndim=3)
    file.write_bytes(b"\x89PNG....")
    with damaged(file, "not an idx file"):
        read_idx(file)
    file.write_bytes(idx_bytes(np.zeros(5, np.uint8)) + b"\0")
    with damaged(file, "bytes"):
        read_idx(file)


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_cifar10(tmp_path, form):
    files, images, labels = cifar10_files()
    if form == "folder":
        path = write_files(tmp_path / "cifar-10-batches-py", files)
    else:
        path = write_tar(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", files)
    x, y, x_test, y_test = read_cifar10(path)
    np.testing.assert_array_equal(x, images)
    np.testing.assert_array_equal(y, labels)
    assert x_test.shape == (20, 32, 32, 3)
    assert y_test.shape == (20,)


def test_cifar100(tmp_path):
    path = write_tar(tmp_path / "cifar-100-python.tar.gz", "cifar-100-python", cifar100_files())
    x, y, _, _ = read_cifar100(path)
    assert x.shape == (100, 32, 32, 3)
    assert sorted(y.tolist()) == list(range(100))


def test_damaged_cifar_names_the_batch(tmp_path):
    files, _, _ = cifar10_files()
    folder = write_files(tmp_path / "c", files | {"data_batch_3": files["data_batch_3"][:-2000]})
    with damaged(folder / "data_batch_3", "not a readable batch"):
        read_cifar10(folder)
    (folder / "data_batch_3").unlink()
    with damaged(folder / "data_batch_3", "missing"):
        read_cifar10(folder)
    smaller, _, _ = cifar10_files(per_class=1)
    write_files(folder, {"data_batch_3": smaller["data_batch_3"]})
    with damaged(folder / "data_batch_3", "batches.meta says 20"):
        read_cifar10(folder)
    archive = write_tar(tmp_path / "c.tar.gz", "cifar-10-batches-py", files)
    archive.write_bytes(archive.read_bytes()[:-5000])
    with damaged(archive, "truncated or corrupt"):
        read_cifar10(archive)


@pytest.mark.parametrize("form", ["folder", "tar"])
@pytest.mark.parametrize(("source", "target"), [("data_batch_2", "data_batch_4"), ("data_batch_1", "test_batch")])
def test_a_batch_under_the_name_of_another(tmp_path, form, source, target):
    """The right size, the right labels, and twice the same images."""
    files, _, _ = cifar10_files()
    files[target] = files[source]
    if form == "folder":
        path = write_files(tmp_path / "c", files)
        at = path / target
    else:
        path = at = write_tar(tmp_path / "c.tar.gz", "cifar-10-batches-py", files)
    with damaged(at, f"it says that it is 'training batch {source[-1]} of 5'"):
        read_cifar10(path)


def test_batches_of_others_need_not_say_which_they_are(tmp_path):
    files, images, _ = cifar10_files()
    x, y = images_and_labels(2, (32, 32, 3), seed=0)
    planes = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    folder = write_files(tmp_path / "c", files | {"data_batch_1": cifar_batch(planes, y, said="mine")})
    np.testing.assert_array_equal(read_cifar10(folder)[0], images)


def test_wrong_labels_of_cifar_name_the_batch(tmp_path):
    files, _, _ = cifar10_files()
    x, y = images_and_labels(2, (32, 32, 3), seed=1)
    planes = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    wrong = y.copy()
    wrong[3] = 12
    batch = cifar_batch(planes, wrong, said="training batch 2 of 5")
    folder = write_files(tmp_path / "c", files | {"data_batch_2": batch})
    with damaged(folder / "data_batch_2", "expected labels 0 to 9, got 12"):
        read_cifar10(folder)
    test = cifar_batch(planes, np.where(y == 6, 5, y), said="testing batch 1 of 1")
    write_files(folder, {"data_batch_2": files["data_batch_2"], "test_batch": test})
    with damaged(folder / "test_batch", r"expected labels 0 to 9, each of them present; got .*5, 7"):
        read_cifar10(folder)


@pytest.mark.parametrize("where", [0.2, 0.5, 0.8])
def test_bytes_changed_within_an_archive_are_not_taken_for_pixels(tmp_path, where):
    """Random pixels are stored nearly as they are: a changed byte unpacks without complaint, to another pixel."""
    archive = write_tar(tmp_path / "c.tar.gz", "cifar-100-python", cifar100_files())
    raw = archive.read_bytes()
    for bit in range(8):
        changed = bytearray(raw)
        changed[int(where * len(raw))] ^= 1 << bit
        archive.write_bytes(changed)
        with damaged(archive, "truncated or corrupt"):
            read_cifar100(archive)


def test_a_batch_of_another_folder_does_not_replace_the_right_one(tmp_path):
    files, images, _ = cifar10_files()
    x, y = images_and_labels(2, (32, 32, 3), seed=9)
    planes = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    other = cifar_batch(planes, y, said="training batch 1 of 5")
    archive = tmp_path / "c.tar.gz"
    for own, name in (("cifar-10-batches-py", "other/data_batch_1"), ("cifar-10-batches-py", "data_batch_1")):
        named = {f"{own}/{key}": raw for key, raw in files.items()} | {name: other}
        write_tar(archive, ".", named)
        np.testing.assert_array_equal(read_cifar10(archive)[0], images)
    # Where no folder has the set's name, it cannot be told which is meant.
    write_tar(archive, ".", {f"mine/{key}": raw for key, raw in files.items()})
    np.testing.assert_array_equal(read_cifar10(archive)[0], images)
    write_tar(archive, ".", {f"mine/{key}": raw for key, raw in files.items()} | {"other/data_batch_1": other})
    with damaged(archive, "two different files called data_batch_1"):
        read_cifar10(archive)


def test_damage_of_the_binary_version_names_the_batch(tmp_path):
    files, images, labels = cifar10_binary_files()
    folder = write_files(tmp_path / "c", files)
    x, y, x_test, _ = read_cifar10(folder)
    np.testing.assert_array_equal(x, images)
    np.testing.assert_array_equal(y, labels)
    assert x_test.shape == (20, 32, 32, 3)
    batch = folder / "data_batch_3.bin"
    for raw, message in (
        (files["data_batch_3.bin"][:-7], "expected rows of 3073 bytes"),
        (files["data_batch_3.bin"][:-3073], r"the batches have \[20, 20, 19, 20, 20\] images"),
        (bytes([11]) + files["data_batch_3.bin"][1:], "expected labels 0 to 9, got 11"),
        (b"", "expected rows of 3073 bytes, got 0"),
    ):
        batch.write_bytes(raw)
        with damaged(batch, message):
            read_cifar10(folder)
    batch.unlink()
    with damaged(batch, "missing"):
        read_cifar10(folder)


def test_what_unpacks_to_more_than_it_says_is_not_unpacked(tmp_path, monkeypatch):
    """200 MB of zeros in 200 kB."""
    zeros = bytes(2 * 10**8)
    file = tmp_path / "bomb.gz"
    file.write_bytes(gzip.compress(idx_bytes(np.zeros((2, 3, 4), np.uint8)) + zeros, 1))
    tracemalloc.start()
    with damaged(file, r"its header says shape \(2, 3, 4\), 40 bytes in all, but it has more"):
        read_idx(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**7
    monkeypatch.setattr("ntkcollapse.data.formats.packed.affordable", lambda: 10**6)
    for reader in (read_cifar10, read_cifar100):
        with damaged(file, "it has more than 977 KiB, half of the memory that is available"):
            reader(file)


def test_what_declares_more_than_the_memory_is_not_read(tmp_path, monkeypatch):
    idx = tmp_path / "idx"
    idx.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 2**10))
    with damaged(idx, "its header says shape .* in all, more than fits into memory"):
        read_idx(idx)
    file = tmp_path / "set.npz"
    x, y = images_and_labels(2, (28, 28))
    np.savez_compressed(file, x_train=x, y_train=y, x_test=x, y_test=y)
    # As if there were no memory for it: zeros of any number are a few bytes in the file.
    monkeypatch.setattr("ntkcollapse.data.formats.npz.affordable", lambda: 10**4)
    with damaged(file, r"its arrays have 31\.2 KiB, more than fits into memory"):
        read_npz(file)
    monkeypatch.undo()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 8)})
    with zipfile.ZipFile(file, "w") as archive:
        for key in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{key}.npy", header.getvalue())
    with damaged(file, "x_train says shape .1099511627776, 8. of uint8, 8796093022208 bytes; it has 0"):
        read_npz(file)


def test_labels_of_unequal_length_are_damage(tmp_path):
    files = cifar100_files() | {"train": pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, [1]]})}
    folder = write_files(tmp_path / "c", files)
    with damaged(folder / "train", "entries of unequal length"):
        read_cifar100(folder)


class Malicious:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickles_run_nothing(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    raw = pickle.dumps({"data": Malicious()}, protocol=protocol)
    with damaged("batch", "neither array nor container"):
        unpickle_arrays(raw, "batch")
    assert not (tmp_path / "pwned").exists()
    # The same bytes under Python's own unpickler do run: the test would see it.
    pickle.loads(raw)
    assert (tmp_path / "pwned").exists()


def test_arrays_within_arrays_run_nothing():
    raw = pickle.dumps({"data": np.array([Malicious()], dtype=object)}, protocol=2)
    with damaged("batch", "neither array nor container"):
        unpickle_arrays(raw, "batch")


def test_npz(tmp_path):
    file = tmp_path / "set.npz"
    x, y = images_and_labels(2, (28, 28))
    np.savez_compressed(file, x_train=x, y_train=y[:, None], x_test=x, y_test=y)
    read = read_npz(file)
    for got, wanted in zip(read, (x, y, x, y), strict=True):
        np.testing.assert_array_equal(got, wanted)
    raw = file.read_bytes()
    file.write_bytes(raw[: len(raw) // 2])
    with damaged(file, ""):
        read_npz(file)
    flipped = bytearray(raw)
    flipped[len(raw) // 3] ^= 0xFF
    file.write_bytes(flipped)
    with damaged(file, ""):
        read_npz(file)
    np.savez(file, x_train=x, y_train=y)
    with damaged(file, "x_test is missing"):
        read_npz(file)
    np.savez(file, x_train=x, y_train=np.array([Malicious()], dtype=object), x_test=x, y_test=y)
    with damaged(file, "not a readable npz"):
        read_npz(file)
    for wrong in (np.eye(10, dtype=np.uint8)[y], np.uint8(3)):
        np.savez(file, x_train=x, y_train=wrong, x_test=x, y_test=y)
        with damaged(file, r"expected y_train of shape \(N,\) or \(N, 1\)"):
            read_npz(file)


def test_image_folder(tmp_path):
    from PIL import Image

    generator = np.random.default_rng(0)
    wanted = {}
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(2):
            pixels = generator.integers(0, 256, (6, 5, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
            wanted[name, i] = pixels
    images, labels, names = read_image_folder(tmp_path)
    assert names == ("cat", "dog")
    assert labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(images[2], wanted["dog", 0])

    other = tmp_path / "dog" / "2.png"
    Image.fromarray(np.zeros((7, 5, 3), np.uint8)).save(other)
    with damaged(other, "as in the first image"):
        read_image_folder(tmp_path)
    other.write_bytes((tmp_path / "dog" / "0.png").read_bytes()[:60])
    with damaged(other, "truncated or corrupt image"):
        read_image_folder(tmp_path)
    other.rename(tmp_path / "dog" / "notes.txt")
    with damaged(tmp_path / "dog" / "notes.txt", "not an image"):
        read_image_folder(tmp_path)


@pytest.fixture
def photographs(tmp_path):
    """Two classes of one grey image each."""
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((6, 5), 7, np.uint8)).save(tmp_path / name / "0.png")
    return tmp_path


def test_images_in_the_wrong_place_are_not_left_out(photographs):
    raw = (photographs / "dog" / "0.png").read_bytes()
    (photographs / ".DS_Store").write_bytes(b"")
    assert len(read_image_folder(photographs)[0]) == 2
    beside, below = photographs / "1.png", photographs / "dog" / "more"
    beside.write_bytes(raw)
    with damaged(beside, "not in the folder of a class"):
        read_image_folder(photographs)
    beside.unlink()
    below.mkdir()
    (below / "1.png").write_bytes(raw)
    with damaged(below, "a folder within that of a class"):
        read_image_folder(photographs)


def test_other_programs_are_not_started_for_what_an_image_holds(photographs, monkeypatch):
    """PostScript under the name of an image, which Pillow gives to Ghostscript."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("Ghostscript was started"))
    file = photographs / "cat" / "1.png"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n%%EndComments\nshowpage\n%%EOF\n")
    with damaged(file, "truncated or corrupt image: cannot identify"):
        read_image_folder(photographs)


def test_more_images_than_memory_are_refused_at_the_first(photographs, monkeypatch):
    monkeypatch.setattr("ntkcollapse.data.formats.image_folder.affordable", lambda: 59)
    with damaged(photographs, r"2 images of \(6, 5, 1\) are more than fits into memory"):
        read_image_folder(photographs)


def test_images_that_a_byte_a_channel_cannot_hold(photographs):
    """Pillow would make 255 of everything above, and 0 of everything below 1."""
    from PIL import Image

    deep, real = photographs / "cat" / "1.png", photographs / "cat" / "2.tif"
    Image.fromarray(np.full((6, 5), 3000, np.uint16)).save(deep)
    with damaged(deep, "expected 8 bits a channel"):
        read_image_folder(photographs)
    deep.unlink()
    Image.fromarray(np.full((6, 5), 0.5, np.float32)).save(real)
    with damaged(real, "expected 8 bits a channel"):
        read_image_folder(photographs)


def test_images_of_several_frames_do_not_lose_them(photographs):
    from PIL import Image

    frames = [Image.fromarray(np.full((6, 5), value, np.uint8)) for value in (1, 90)]
    file = photographs / "cat" / "1.tif"
    frames[0].save(file, save_all=True, append_images=frames[1:])
    with damaged(file, "several frames"):
        read_image_folder(photographs)


def test_whatever_a_decoder_says_the_image_is_named(photographs):
    """A bitmap whose header asks for more pixels than Pillow will make."""
    file = photographs / "cat" / "1.bmp"
    file.write_bytes(b"BM" + struct.pack("<IIIIiiHHIIIIII", 58, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0))
    with damaged(file, "truncated or corrupt image"):
        read_image_folder(photographs)


@pytest.mark.parametrize(
    "raw",
    [
        # An encoding that there is not, a string longer than any can be, and one longer than the memory.
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x01\x00\x00\x00z\x86R.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**64 - 1) + b".",
        b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b".",
        # The object of number 2²⁸, for which a table of 4 GB would be made.
        b"\x80\x02}r" + struct.pack("<I", 2**28) + b".",
    ],
    ids=["encoding", "overflow", "memory", "number"],
)
def test_whatever_a_damaged_pickle_asks_for_is_named_as_damage(raw):
    with damaged("batch", "not a readable batch of arrays"):
        unpickle_arrays(raw, "batch")
