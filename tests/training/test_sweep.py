"""Many runs: what diverges is recorded, what is done stays done."""

import contextlib
import csv
import os
import resource
import signal
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
import submitit

from ntkcollapse._coercion import coerced
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.training import Checkpoints, Interrupted, combinations, read_status, run_one, summarise, sweep, train
from ntkcollapse.trajectory import Trajectory
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


def test_a_damaged_status_does_not_stop_the_others(tmp_path):
    config = small(epochs=1)
    rows = sweep(config, {"seed": [0, 1]}, tmp_path)
    (tmp_path / "seed=0" / "status.json").write_text('{"outcome": "fin')
    assert sweep(config, {"seed": [0, 1]}, tmp_path) == rows


def test_a_run_that_another_process_trains_has_not_failed(tmp_path):
    base, grid, said = small(epochs=1, measure=("train",)), {"seed": [0]}, []
    (tmp_path / "seed=0").mkdir()
    with RunDirectory(tmp_path / "seed=0").locked("train"):
        sweep(base, grid, tmp_path, on_run=lambda name, outcome: said.append(outcome))
    assert said == ["in use"]
    assert not (tmp_path / "seed=0" / "error.txt").exists()


def test_any_error_of_one_run_is_its_own_but_a_signal_stops_the_sweep(tmp_path, monkeypatch):
    base, grid = small(epochs=1, measure=("train",)), {"seed": [0, 1]}
    errors = [TypeError("of one"), ImportError("of the other")]

    def fails(*_, **__):
        raise errors.pop(0)

    monkeypatch.setattr("ntkcollapse.training.sweep_run.train", fails)
    assert [row["outcome"] for row in sweep(base, grid, tmp_path)] == ["failed", "failed"]
    assert (tmp_path / "seed=0" / "error.txt").read_text() == "TypeError: of one\n"
    errors.append(Interrupted(signal.SIGTERM, 3, None))
    with pytest.raises(Interrupted):
        sweep(base, grid, tmp_path)


def _moment_norm(moment):
    return {"own": float(moment.step)}


def test_measurements_of_ones_own_are_made_in_every_run(tmp_path):
    base = small(epochs=1, measure=("train",))
    sweep(base, {"seed": [0]}, tmp_path, measurements={"own": _moment_norm})
    np.testing.assert_array_equal(Trajectory.load(tmp_path / "seed=0")["own"], [0, 8])
    lock = threading.Lock()
    with pytest.raises(ValueError, match="measurements: expected such as can be pickled"):
        sweep(base, {"seed": [1]}, tmp_path, executor="submitit", measurements={"own": lambda _: {"own": lock}})


def test_a_run_that_was_resumed_by_hand_is_no_longer_failed(tmp_path):
    base, grid, run = small(epochs=1, measure=("train",)), {"seed": [0]}, tmp_path / "seed=0"
    train(base, run)
    (run / "error.txt").write_text("OSError: no space left\n")
    assert summarise(combinations(base, grid), grid, tmp_path)[0]["outcome"] == "finished"
    assert sweep(base, grid, tmp_path)[0]["outcome"] == "finished"
    assert not (run / "error.txt").exists()


def test_damaged_files_of_one_run_are_its_own_error_and_stay(tmp_path):
    base, grid, said = small(epochs=1, measure=("train",)), {"seed": [0, 1, 2, 3]}, []
    rows = sweep(base, {"seed": [0, 1, 2]}, tmp_path)
    damage = {"seed=0/trajectory.nc": b"\x89HDF", "seed=1/config.toml": b'network = "ml', "seed=2/config.toml": b""}
    for name, content in damage.items():
        (tmp_path / name).write_bytes(content)
    again = sweep(base, grid, tmp_path, on_run=lambda name, outcome: said.append(outcome))
    assert said == [row["outcome"] for row in again] == ["failed", "failed", "failed", "finished"]
    for row, name, what in zip(again, damage, ("damaged", "is not one", "empty file"), strict=False):
        assert what in row["error"]
        assert row["error"] in (tmp_path / name).with_name("error.txt").read_text()
        assert (tmp_path / name).read_bytes() == damage[name]
    with (tmp_path / "summary.csv").open() as file:
        assert [row["outcome"] for row in csv.DictReader(file)] == said
    # Settings of another run are refused all the same, before anything runs.
    with pytest.raises(ValueError, match="weight_decay: expected"):
        sweep(small(epochs=1, measure=("train",), weight_decay=0.1), {"seed": [0, 1, 3, 4]}, tmp_path)
    assert not (tmp_path / "seed=4").exists()
    # As the error says: moved away, the trajectory is written anew.
    (tmp_path / "seed=0" / "trajectory.nc").rename(tmp_path / "seed=0" / "damaged.nc")
    assert sweep(base, {"seed": [0]}, tmp_path) == rows[:1]


def test_a_full_disk_leaves_the_summary_of_before_and_names_the_file(tmp_path):
    """No file may grow beyond ten bytes meanwhile."""
    base, grid = small(epochs=1, measure=("train",)), {"seed": [0]}
    sweep(base, grid, tmp_path)
    before, limits = (tmp_path / "summary.csv").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "seed=1").mkdir()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        with pytest.raises(OSError, match="too large"):
            summarise(combinations(base, grid), grid, tmp_path)
        with pytest.raises(OSError, match=r"error\.txt: could not be written .* nor could the run go on"):
            run_one(small(seed=1), tmp_path / "seed=1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "summary.csv").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["seed=0", "seed=1", "summary.csv"]


def test_grids_are_checked():
    with pytest.raises(ValueError, match="grid: expected at least one setting"):
        combinations(small(), {})
    with pytest.raises(ValueError, match="Did you mean 'learning_rate'"):
        combinations(small(), {"learning-rate": [0.1]})
    with pytest.raises(ValueError, match="init: expected one of"):
        combinations(small(), {"init": ["xavier"]})
    with pytest.raises(ValueError, match="grid: expected a list of values for network, got 'mlp'"):
        combinations(small(), {"network": "mlp"})


def test_grids_of_numpy_numbers_are_those_of_pythons():
    arrays = {"seed": np.arange(2), "learning_rate": np.array([0.5, 0.25], np.float32), "bias": [np.True_]}
    configs = combinations(small(), arrays)
    assert configs == combinations(small(), {"seed": [0, 1], "learning_rate": [0.5, 0.25], "bias": [True]})
    assert {type(config.seed) for config in configs.values()} == {int}
    assert coerced("seed", np.int64(1), int) == 1
    # What is not a short number in half the digits is named as what it is.
    assert list(combinations(small(), {"learning_rate": [np.float32(0.1)]})) == ["learning_rate=0.10000000149011612"]
    (lists,) = combinations(small(), {"measure_steps": np.array([[3, 1]])}).values()
    assert lists.measure_steps == (3, 1)


def test_options_of_networks_vary_and_are_refused_before_anything_runs(tmp_path):
    grid = {"network_options": [["widths=(8,)"], ["widths=(9, 9)", "batch_norm=True"]]}
    configs = combinations(small(), grid)
    assert list(configs) == ["network_options=widths=(8,)", "network_options=widths=(9,9)+batch_norm=True"]
    assert [config.network_options for config in configs.values()] == [tuple(each) for each in grid["network_options"]]
    with pytest.raises(ValueError, match="option of resnet20"):
        sweep(small(), {"network": ["mlp", "resnet20"]}, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_two_runs_do_not_share_a_directory():
    with pytest.raises(ValueError, match=r"grid: .*'data_path=a-b' would be that of two runs"):
        combinations(small(dataset="mnist"), {"data_path": ["a/b", "a-b"]})
    # The same run twice is one.
    assert list(combinations(small(), {"seed": [1, 1]})) == ["seed=1"]


def test_submitit_is_asked_for_when_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match="'submitit' needs the package of that name"):
        sweep(small(), {"seed": [0]}, tmp_path, executor="submitit")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the job's process is found in /proc")
def test_a_preempted_job_is_saved_put_back_and_ends_as_if_it_had_not_been(tmp_path):
    base, grid = small(measure=("train", "test")), {"seed": [0]}
    jobs, run, rows = tmp_path / "jobs", tmp_path / "seed=0", []
    options = {"cluster": "local", "timeout_min": 60}
    submitting = threading.Thread(
        target=lambda: rows.extend(sweep(base, grid, tmp_path, executor="submitit", executor_options=options))
    )
    submitting.start()
    while submitting.is_alive() and not (run / "config.toml").exists():
        time.sleep(0.02)
    # submitit's local jobs are named by the process that watches over them, whose child they are.
    (controller,) = {file.name.split("_")[0] for file in jobs.iterdir()}
    os.kill(int(Path(f"/proc/{controller}/task/{controller}/children").read_text()), signal.SIGUSR2)
    submitting.join()
    log = "".join(file.read_text() for file in jobs.glob("*_log.*"))
    assert "Requeued job" in log
    assert rows == sweep(base, grid, tmp_path / "here")
    assert rows[0]["outcome"] == "finished"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the job's process is found in /proc")
def test_a_job_that_is_killed_has_failed_and_goes_on_where_it_was(tmp_path, monkeypatch):
    # How long it waits for the results of a job that is over, on a slow file system.
    monkeypatch.setattr(submitit.Job, "_results_timeout_s", 1)
    base, grid = small(measure=("train", "test"), epochs=2000, checkpoint_seconds=0.1), {"seed": [0]}
    jobs, run, rows, said = tmp_path / "jobs", tmp_path / "seed=0", [], []
    options = {"cluster": "local", "timeout_min": 60}

    def submit():
        rows.extend(
            sweep(
                base,
                grid,
                tmp_path,
                executor="submitit",
                executor_options=options,
                on_run=lambda name, outcome: said.append((name, outcome)),
            )
        )

    submitting = threading.Thread(target=submit)
    submitting.start()
    while submitting.is_alive() and read_status(run).get("step", 0) == 0:
        time.sleep(0.02)
    (controller,) = {file.name.split("_")[0] for file in jobs.iterdir()}
    os.kill(int(Path(f"/proc/{controller}/task/{controller}/children").read_text()), signal.SIGKILL)
    submitting.join()
    assert read_status(run)["outcome"] == "running"
    assert rows[0]["outcome"] == "failed"
    assert said == [("seed=0", "failed")]
    assert "has not produced any output" in (run / "error.txt").read_text()
    done = Checkpoints(run / "checkpoints").steps()[-1]
    more = sweep(small(measure=("train", "test"), epochs=done // 8 + 1), grid, tmp_path)
    assert (more[0]["outcome"], (run / "error.txt").exists()) == ("finished", False)


def test_a_job_that_never_came_to_its_run_leaves_its_error(tmp_path, monkeypatch):
    job = types.SimpleNamespace(done=lambda: True, exception=lambda: RuntimeError("no such partition"))

    class Executor(contextlib.nullcontext):
        def __init__(self, **_):
            super().__init__()

        def update_parameters(self, **_):
            pass

        def batch(self):
            return self

        def submit(self, *_):
            return job

    monkeypatch.setattr("submitit.AutoExecutor", Executor)
    assert sweep(small(), {"seed": [0]}, tmp_path, executor="submitit")[0]["outcome"] == "failed"
    assert (tmp_path / "seed=0" / "error.txt").read_text() == "RuntimeError: no such partition\n"
