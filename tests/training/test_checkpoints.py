"""Whole or not at all; damage is seen, named, and stepped over."""

import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest

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


def data_files(checkpoints, step):
    """Files whose bytes are read back, largest first."""
    files = [p for p in (checkpoints.directory / f"step_{step}").rglob("*") if p.is_file() and p.stat().st_size]
    return sorted(files, key=lambda p: -p.stat().st_size)


# A read that fails leaves coroutines of orbax behind, whose complaint at their collection is no fault of ours.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
def test_damage_to_any_file_is_never_taken_for_the_checkpoint(three, how):
    """Whatever file is damaged: the older checkpoint, with a warning that names the newer, or the newer as saved."""
    stepped_over = 0
    for file in data_files(three, 15):
        raw = file.read_bytes()
        if how == "flip":
            file.write_bytes(bytes(b ^ 0xFF for b in raw))
        elif how == "truncate":
            file.write_bytes(raw[: len(raw) // 2])
        else:
            file.unlink()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = three.newest()
        for name, value in ARRAYS.items():
            np.testing.assert_array_equal(found.arrays[name], value + found.step)
        if found.step == 10:
            stepped_over += 1
            assert "step_15" in str(caught[-1].message)
            assert "damaged checkpoint" in str(caught[-1].message)
        file.write_bytes(raw)
    assert stepped_over >= 2


def test_values_changed_in_place_are_seen(three):
    """Readable, but not what was written: only the digest tells."""
    other = Checkpoints(three.directory.parent / "other")
    other.save(15, {name: value + 99 for name, value in ARRAYS.items()}, {"steps": [1, 15]})
    shutil.rmtree(three.directory / "step_15" / "arrays")
    shutil.copytree(other.directory / "step_15" / "arrays", three.directory / "step_15" / "arrays")
    with pytest.warns(UserWarning, match=r"damaged checkpoint .*step_15.*not what was written"):
        assert three.newest().step == 10


def test_all_damaged_is_an_error(three):
    for step in three.steps():
        shutil.rmtree(three.directory / f"step_{step}" / "arrays")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(CheckpointError, match="no checkpoint can be read"):
        three.newest()


def test_none_at_all_is_no_error(tmp_path):
    assert Checkpoints(tmp_path / "empty").newest() is None


def test_leftovers_of_killed_writes_are_no_checkpoints(three):
    (three.directory / "step_20.orbax-checkpoint-tmp").mkdir()
    assert three.steps() == [10, 15]
    three.clean()
    assert {p.name for p in three.directory.iterdir()} == {"step_10", "step_15"}


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
assert {p.name for p in checkpoints.directory.iterdir()} == {"step_1"}
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
