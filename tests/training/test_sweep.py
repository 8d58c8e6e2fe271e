"""Many runs: what diverges is recorded, what is done stays done."""

import csv

import pytest

from ntkcollapse.training import combinations, sweep
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
