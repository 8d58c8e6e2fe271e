"""Whole or not at all; damage is seen, named, and stepped over."""

import subprocess
import sys
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse.checkpoints import load_arrays, save_arrays
from ntkcollapse.training import CheckpointError, Checkpoints

ARRAYS = {
    "state/0": np.arange(7, dtype=np.float32),
    "state/1": np.asarray(3, np.int32),
    "record/x": np.random.default_rng(0).normal(size=(5, 4)),
}


@pytest.fixture
def three(tmp_path):
    """Checkpoints of steps 5, 10, 15, of which the newest two stay."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (5, 10, 15):
        checkpoints.save(step, {name: value + step for name, value in ARRAYS.items()}, {"steps": [1, step]})
    return checkpoints


def test_what_is_saved_comes_back(three):
    assert three.steps() == [10, 15]
    found = three.newest()
    assert found.step == 15
    assert found.notes == {"steps": [1, 15]}
    assert found.arrays.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        assert found.arrays[name].dtype == (value + 15).dtype
        np.testing.assert_array_equal(found.arrays[name], value + 15)


@pytest.mark.parametrize("how", ["flip all", "flip some", "cut"])
def test_damage_anywhere_is_never_taken_for_the_checkpoint(three, how):
    """Whatever bytes are damaged: the older checkpoint, with a warning that names the newer, or the newer as saved."""
    file = three.directory / "step_15.npz"
    raw, stepped_over = file.read_bytes(), 0
    places = range(0, len(raw), 7)
    for start in places:
        end = len(raw) if how == "flip all" else start + 3
        damaged = bytes(byte ^ 0xFF for byte in raw[start:end])
        file.write_bytes(raw[:start] + (b"" if how == "cut" else damaged + raw[end:]))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = three.newest()
        assert found.arrays.keys() == ARRAYS.keys()
        for name, value in ARRAYS.items():
            np.testing.assert_array_equal(found.arrays[name], value + found.step)
        assert found.notes["steps"] == ([1, 15] if found.step == 15 else [1, 10])
        if found.step == 10:
            stepped_over += 1
            assert "step_15" in str(caught[-1].message)
            assert "damaged checkpoint" in str(caught[-1].message)
    # What a zip file says of dates and permissions does not matter.
    assert stepped_over >= 0.6 * len(places)


def test_compressed_files_are_not_unpacked(three):
    """A file of a few bytes can declare any size: ours hold arrays as they are."""
    np.savez_compressed(three.directory / "step_15.npz", notes=np.zeros(10**6, np.uint8))
    with pytest.warns(UserWarning, match="it holds compressed arrays"):
        assert three.newest().step == 10


def test_what_numpy_has_no_name_for_comes_back(tmp_path):
    arrays = {
        "bfloat16": jnp.arange(5, dtype=jnp.bfloat16),
        "float8": jnp.ones((2, 2), jnp.float8_e4m3fn),
        "nothing": np.zeros((0, 3)),
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "one": np.float32(3),
    }
    save_arrays(tmp_path / "a.npz", arrays, {"text": "κ", "numbers": [1.5, 2]})
    loaded, notes = load_arrays(tmp_path / "a.npz")
    assert notes == {"text": "κ", "numbers": [1.5, 2]}
    for name, value in arrays.items():
        assert loaded[name].dtype == value.dtype
        np.testing.assert_array_equal(loaded[name], np.asarray(value))


def test_values_changed_in_place_are_seen(three):
    """Readable, but not what was written: only the digest tells."""
    other = Checkpoints(three.directory.parent / "other")
    other.save(15, {name: value + 99 for name, value in ARRAYS.items()}, {"steps": [1, 15]})
    with np.load(three.directory / "step_15.npz") as own, np.load(other.directory / "step_15.npz") as changed:
        mixed = dict(changed) | {name: own[name] for name in ("notes", "notes_sha256")}
    np.savez(three.directory / "step_15.npz", **mixed)
    with pytest.warns(UserWarning, match=r"damaged checkpoint .*step_15.*not what was written"):
        assert three.newest().step == 10


def test_all_damaged_is_an_error(three):
    for step in three.steps():
        (three.directory / f"step_{step}.npz").write_bytes(b"PK")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(CheckpointError, match="no checkpoint can be read"):
        three.newest()


def test_none_at_all_is_no_error(tmp_path):
    assert Checkpoints(tmp_path / "empty").newest() is None


def test_leftovers_of_killed_writes_are_no_checkpoints(three):
    (three.directory / ".step_20-part.npz").write_bytes(b"half")
    mine = three.directory / "model.pt"
    mine.write_bytes(b"")
    assert three.steps() == [10, 15]
    three.clean()
    assert {p.name for p in three.directory.iterdir()} == {"step_10.npz", "step_15.npz", "model.pt"}
    # Nor is what others keep there ours to remove.
    three.remove()
    assert list(three.directory.iterdir()) == [mine]


def test_checkpoints_of_earlier_versions_are_refused(tmp_path):
    for part in ("arrays", "notes"):
        (tmp_path / "step_40" / part).mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"step_40: a checkpoint of an earlier version .* start it anew"):
        Checkpoints(tmp_path).newest()
    Checkpoints(tmp_path).remove()
    assert not tmp_path.exists()


_FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from ntkcollapse.training import CheckpointError, Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]))
small = {"a": np.arange(10.0)}
checkpoints.save(1, small, {})
# No file may grow beyond 64 kB from here on: writing fails part of the way, as on a full disk.
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    checkpoints.save(2, {"a": np.random.default_rng(0).normal(size=200_000)}, {})
except CheckpointError as error:
    assert "step_2" in str(error) and "untouched" in str(error), error
else:
    raise SystemExit("no error")
assert {p.name for p in checkpoints.directory.iterdir()} == {"step_1.npz"}
assert checkpoints.newest().step == 1
checkpoints.save(3, small, {})
assert checkpoints.newest().step == 3
"""


def test_a_write_that_fails_part_of_the_way_leaves_the_ones_before(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path / "checkpoints")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_was_just_written_is_not_dropped(three):
    """Written at an earlier step than those that are there, as after a run went back to an earlier state."""
    three.save(6, ARRAYS, {})
    assert three.steps() == [6, 15]
