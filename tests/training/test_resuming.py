"""What a run is resumed from: a disk that was full, states and measurements of any kind, the same data and network."""

import errno
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from ntkcollapse.networks import mlp
from ntkcollapse.training import (
    CheckpointError,
    Checkpoints,
    Interrupted,
    read_status,
    saved_config,
    saved_variables,
    train,
)
from ntkcollapse.trajectory import Trajectory
from tests.training.settings import small
from tests.training.test_kill_and_resume import assert_same_run


def stopped(config, out: Path, at: int, **more) -> None:
    """A run that a signal stopped after so many steps."""

    def stop(step):
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(config, out, on_step=stop, **more)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "run"
    train(small(), out)
    return out


def test_a_disk_that_is_full_at_a_checkpoint_costs_no_bit(reference, tmp_path, monkeypatch):
    """A checkpoint after every step, the eleventh of which is written in part."""
    out, save, calls = tmp_path / "run", np.savez, []

    def full(file, **arrays):
        calls.append(file)
        if len(calls) < 11:
            return save(file, **arrays)
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(CheckpointError, match=r"step_11\.npz: could not be written .*No space left.* resume"):
            train(small(checkpoint_seconds=0.0), out)
    assert {p.name for p in (out / "checkpoints").iterdir()} == {"step_9.npz", "step_10.npz"}
    train(small(), out, resume=True)
    assert_same_run(reference, out)


@pytest.mark.parametrize("outcome", ["finished", "interrupted"])
def test_a_disk_that_is_full_at_the_trajectory_costs_no_bit(reference, tmp_path, monkeypatch, outcome):
    out = tmp_path / "run"
    if outcome == "finished":
        stopped(small(), out, 5)
    before = (out / "trajectory.nc").read_bytes() if outcome == "finished" else None

    write = Path.write_bytes

    def full(self, data):
        if not self.name.startswith(".trajectory"):
            return write(self, data)
        write(self, b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def stop(step):
        if step == 17 and outcome == "interrupted":
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"trajectory\.nc: could not be written .*No space left.* resume"):
            train(small(), out, resume=True, on_step=stop)
    # What was there is whole, and no part of the new one is left.
    assert (out / "trajectory.nc").exists() == (before is not None)
    assert before is None or (out / "trajectory.nc").read_bytes() == before
    assert not list(out.glob(".trajectory-*"))
    train(small(), out, resume=True)
    assert_same_run(reference, out)


def test_a_disk_that_is_full_at_the_status_costs_no_bit(reference, tmp_path, monkeypatch):
    out, write, calls = tmp_path / "run", Path.write_text, []

    def full(self, text, *args, **options):
        calls.extend([self] if "status" in self.name else [])
        if len(calls) != 4:
            return write(self, text, *args, **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match=r"status\.json: could not be written .*No space left.* resume"):
            train(small(checkpoint_seconds=0.0), out)
    # Said at the start and after two checkpoints.
    assert read_status(out) == {"outcome": "running", "step": 2, "steps": 40}
    train(small(), out, resume=True)
    assert_same_run(reference, out)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer_options": ("accumulator_dtype=bfloat16",)},
        {"optimizer": "adam", "optimizer_options": ("mu_dtype=bfloat16",), "learning_rate": 0.01},
        {"optimizer": "lbfgs", "learning_rate": 1.0, "decay_every": 0},
    ],
    ids=["sgd in bfloat16", "adam in bfloat16", "lbfgs"],
)
def test_states_of_any_optimiser_are_resumed_to_the_bit(tmp_path, changes):
    config = small(epochs=1, **changes)
    train(config, tmp_path / "one")
    stopped(config, tmp_path / "two", 3)
    train(config, tmp_path / "two", resume=True)
    one, two = (Trajectory.load(tmp_path / name) for name in ("one", "two"))
    for name in one.observables.keys() - {"seconds"}:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    np.testing.assert_array_equal(one.states.W, two.states.W)


def test_measurements_of_nothing_are_resumed(tmp_path):
    def nothing(moment):
        return {"nothing": np.zeros((0, 3)), "step_again": moment.step}

    stopped(small(epochs=1), tmp_path / "run", 3, measurements={"nothing": nothing})
    run = train(small(epochs=1), tmp_path / "run", resume=True, measurements={"nothing": nothing})
    assert run["nothing"].shape == (2, 0, 3)
    np.testing.assert_array_equal(run["step_again"], [0, 8])


def test_a_run_does_not_end_before_where_it_is(tmp_path):
    """Stopped at step 20 of 40; an epoch has 8."""
    out = tmp_path / "run"
    stopped(small(), out, 20)
    with pytest.raises(
        ValueError, match=r"epochs: expected at least 3, since the run in .* has come to step 20, got 2"
    ):
        train(small(epochs=2), out, resume=True)
    assert (saved_config(out).epochs, read_status(out)["outcome"]) == (5, "interrupted")
    assert train(small(epochs=3), out, resume=True)["step"].tolist() == [0, 8, 16, 24]


def test_other_data_are_refused(tmp_path):
    splits = small().build_splits()
    train(small(epochs=1), tmp_path / "run", splits=splits)
    for name, said in (("train", "training"), ("test", "test")):
        part = getattr(splits, name)
        other = splits._replace(**{name: part.replace(part.inputs + 1)})
        with pytest.raises(ValueError, match=f"data: the {said} set differs"):
            train(small(epochs=2), tmp_path / "run", splits=other, resume=True)


def test_a_network_of_other_widths_is_refused(tmp_path):
    train(small(epochs=1), tmp_path / "run", network=mlp((8, 10)))
    with pytest.raises(ValueError, match=r"network: expected what the run in .* was started with"):
        train(small(epochs=2), tmp_path / "run", network=mlp((12, 10)), resume=True)
    with pytest.raises(ValueError, match=r"network: what was saved in .* is of another network"):
        saved_variables(small(epochs=1), tmp_path / "run", network=mlp((12, 10)))
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [8]
    assert saved_variables(small(epochs=1, network_options=("widths=(8, 10)",)), tmp_path / "run")[2] == 8
