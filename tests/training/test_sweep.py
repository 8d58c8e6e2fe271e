"""Many runs: what diverges is recorded, what is done stays done."""

import csv
import signal
import sys

import pytest

from ntkcollapse.training import Interrupted, combinations, run_one, sweep
from ntkcollapse.training.run_files import locked
from tests.training.settings import small


def test_sweep(tmp_path):
    base = small(epochs=1, measure=("train",))
    grid = {"learning_rate": [0.1, 1e30], "seed": [0, 1]}
    said = []
    rows = sweep(base, grid, tmp_path, on_run=lambda name, outcome: said.append((name, outcome)))
    assert said == [
        ("learning_rate=0.1,seed=0", "finished"),
        ("learning_rate=0.1,seed=1", "finished"),
        ("learning_rate=1e+30,seed=0", "diverged"),
        ("learning_rate=1e+30,seed=1", "diverged"),
    ]
    assert [row["outcome"] for row in rows] == ["finished", "finished", "diverged", "diverged"]
    assert rows[0]["train_loss"] != rows[1]["train_loss"]
    with (tmp_path / "summary.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4
    # Started again, nothing is trained again.
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("trajectory.nc")}
    assert sweep(base, grid, tmp_path) == rows
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("trajectory.nc")}


def test_a_run_that_fails_does_not_stop_the_others(tmp_path):
    base = small(epochs=1, measure=("train",))
    rows = sweep(base, {"per_class": [10_000, 24]}, tmp_path)
    assert [row["outcome"] for row in rows] == ["failed", "finished"]
    assert "per_class: expected 1 to 120" in (tmp_path / "per_class=10000" / "error.txt").read_text()


def test_other_settings_are_not_given_the_results_of_these(tmp_path):
    base, grid = small(epochs=1, measure=("train",)), {"seed": [0]}
    first = sweep(base, grid, tmp_path)
    other = small(epochs=1, measure=("train",), weight_decay=0.1)
    with pytest.raises(ValueError, match=r"weight_decay: expected 0\.0005 as the run in .*seed=0"):
        sweep(other, grid, tmp_path)
    with pytest.raises(ValueError, match="weight_decay: expected"):
        run_one(other, tmp_path / "seed=0")
    assert sweep(base, grid, tmp_path) == first
    # Further is what resuming can do, back is not.
    assert sweep(small(epochs=2, measure=("train",)), grid, tmp_path)[0]["step"] == 16
    with pytest.raises(ValueError, match="epochs: expected at least the 2"):
        sweep(base, grid, tmp_path)


def test_a_run_that_recovers_is_no_longer_failed(tmp_path):
    base, grid = small(epochs=1, measure=("train",)), {"seed": [0]}
    (tmp_path / "seed=0").mkdir()
    (tmp_path / "seed=0" / "error.txt").write_text("OSError: no space left\n")
    assert sweep(base, grid, tmp_path)[0]["outcome"] == "finished"
    assert not (tmp_path / "seed=0" / "error.txt").exists()


def test_a_run_that_another_process_trains_has_not_failed(tmp_path):
    base, grid, said = small(epochs=1, measure=("train",)), {"seed": [0]}, []
    (tmp_path / "seed=0").mkdir()
    with locked(tmp_path / "seed=0"):
        sweep(base, grid, tmp_path, on_run=lambda name, outcome: said.append(outcome))
    assert said == ["in use"]
    assert not (tmp_path / "seed=0" / "error.txt").exists()


def test_any_error_of_one_run_is_its_own_but_a_signal_stops_the_sweep(tmp_path, monkeypatch):
    base, grid = small(epochs=1, measure=("train",)), {"seed": [0, 1]}
    errors = [TypeError("of one"), ImportError("of the other")]

    def fails(*_, **__):
        raise errors.pop(0)

    # The function hides the module of the same name.
    monkeypatch.setattr(sys.modules["ntkcollapse.training.sweep"], "train", fails)
    assert [row["outcome"] for row in sweep(base, grid, tmp_path)] == ["failed", "failed"]
    assert (tmp_path / "seed=0" / "error.txt").read_text() == "TypeError: of one\n"
    errors.append(Interrupted(signal.SIGTERM, 3, None))
    with pytest.raises(Interrupted):
        sweep(base, grid, tmp_path)


def test_grids_are_checked():
    with pytest.raises(ValueError, match="grid: expected at least one setting"):
        combinations(small(), {})
    with pytest.raises(ValueError, match="Did you mean 'learning_rate'"):
        combinations(small(), {"learning-rate": [0.1]})
    with pytest.raises(ValueError, match="init: expected one of"):
        combinations(small(), {"init": ["xavier"]})


def test_submitit_is_asked_for_when_missing(tmp_path):
    try:
        import submitit  # noqa: F401  # pyright: ignore
    except ImportError:
        with pytest.raises(ValueError, match="'submitit' needs the package of that name"):
            sweep(small(), {"seed": [0]}, tmp_path, executor="submitit")
