"""Runs that end in unusual ways still end: with a trajectory, the right step, and a status that says how."""

import os
import signal

import jax
import numpy as np
import pytest

from ntkcollapse.training import (
    Checkpoints,
    Interrupted,
    NonFiniteLoss,
    read_status,
    saved_config,
    saved_variables,
    train,
)
from ntkcollapse.trajectory import Trajectory
from tests.training.settings import small

PLAIN = ("widths=(8, 10)",)


def test_rates_that_decay_until_flow_times_tie_get_a_clock_of_steps(tmp_path):
    """Twenty decays by ten: 1 + 10⁻¹⁹ is 1 in float64."""
    run = train(small(epochs=20, decay_every=1, batch_size=120, measure=("train",)), tmp_path / "run")
    assert not run.equation.in_flow_time
    np.testing.assert_array_equal(run.times, run["step"])
    assert read_status(tmp_path / "run")["outcome"] == "finished"


def test_ties_of_single_precision_as_well():
    """Twelve decays: apart in float64, not in float32."""
    config = small(epochs=12, decay_every=1, batch_size=120, measure=("train",))
    assert train(config).equation.in_flow_time
    with jax.enable_x64(False):
        assert not train(config).equation.in_flow_time


def test_balanced_batches_of_unequal_classes_have_no_clock():
    """They descend the loss in which a sample weighs 1/m_c: its flow is not that of ½‖R‖², by a fifth of the loss."""
    config = small(epochs=1, imbalance=4.0, measure=("train",), balanced=False)
    splits = config.build_splits()
    run = train(small(epochs=1, measure=("train",)), splits=splits)
    assert not run.equation.in_flow_time
    assert "every class weighs the same" in run.equation.without_clock
    np.testing.assert_array_equal(run.times, run["step"])
    assert train(config).equation.in_flow_time


def test_a_network_whose_kernel_is_dead_keeps_its_observables(tmp_path):
    """Features that do not move with any parameter: κ = 0, so λ_single = 0 and there is no block kernel."""

    def dead(moment):
        return {"kappa_diagonal": 0.0, "kappa_within": 0.0, "kappa_between": 0.0}

    run = train(small(epochs=1), tmp_path / "run", measurements={"kappa": dead})
    assert run.kernel is None
    np.testing.assert_array_equal(run["kappa_diagonal"], 0)
    assert Trajectory.load(tmp_path / "run").kernel is None


def test_finished_is_said_when_the_trajectory_is_there(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Trajectory, "save", full)
        with pytest.raises(OSError, match="no space left"):
            train(small(epochs=1), tmp_path / "run")
    assert read_status(tmp_path / "run")["outcome"] == "running"
    train(small(epochs=1), tmp_path / "run", resume=True)
    assert read_status(tmp_path / "run")["outcome"] == "finished"


@pytest.fixture
def poisoned():
    """The training set with one sample of 10³⁰, and settings of an epoch that meets it at step 5."""
    config = small(epochs=1, network_options=PLAIN, measure=("batch", "train"))
    splits = config.build_splits()
    row = config.build_batches(splits.train.classes).epoch(0)[5][7]
    inputs = splits.train.inputs.copy()
    inputs[row] = 1e30
    return config, splits._replace(train=splits.train.replace(inputs))


def test_nothing_is_trained_after_a_step_that_was_not_finite(tmp_path, poisoned):
    """The steps after it see finite batches; the state and the count stay where it stopped."""
    config, splits = poisoned
    with pytest.raises(NonFiniteLoss, match="at step 5") as caught:
        train(config, tmp_path / "run", splits=splits)
    assert caught.value.step == 5
    assert np.asarray(caught.value.last["step"]).tolist() == [0, 5]
    # The batches seen after step 5 are not those of the last step taken.
    assert np.isnan(caught.value.last["batch_loss"][1])
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [5]


def test_no_checkpoint_is_named_for_steps_that_were_not_taken(tmp_path, poisoned):
    """Interrupted at step 7 of a run that stopped at 5."""
    config, splits = poisoned

    def stop(step):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(NonFiniteLoss, match="at step 5"):
        train(config, tmp_path / "run", splits=splits, on_step=stop)
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [5]
    assert read_status(tmp_path / "run")["step"] == 5


def test_divergence_before_the_first_step(tmp_path):
    with pytest.raises(NonFiniteLoss, match="at step 0") as caught:
        train(small(init_scale=1e25, measure=("train", "last-layer"), network_options=PLAIN), tmp_path / "run")
    assert caught.value.last is None
    assert read_status(tmp_path / "run")["outcome"] == "diverged"
    assert not (tmp_path / "run" / "trajectory.nc").exists()


def test_a_signal_that_a_scheduler_listens_to_saves_the_run_before_it_is_heard(tmp_path):
    heard, before = [], signal.signal(signal.SIGUSR2, lambda signum, _: heard.append(signum))

    def stop(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGUSR2)

    try:
        with pytest.raises(Interrupted) as caught:
            train(small(epochs=1), tmp_path / "run", on_step=stop)
        assert (caught.value.signum, caught.value.step, heard) == (signal.SIGUSR2, 3, [])
        assert Checkpoints(tmp_path / "run" / "checkpoints").steps()[-1] == 3
        # What was measured until then can be looked at.
        saved = Trajectory.load(tmp_path / "run")
        assert (saved.settings["outcome"], saved["step"].tolist()) == ("interrupted", [0])
        signal.raise_signal(signal.SIGUSR2)
        assert heard == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_damaged_last_checkpoint_is_written_again(tmp_path):
    out = tmp_path / "run"

    def stop(step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(small(epochs=1), out, on_step=stop)
    train(small(epochs=1), out, resume=True)
    reference = saved_variables(saved_config(out), out)
    file = out / "checkpoints" / "step_8.npz"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"damaged checkpoint .*step_8"):
        train(small(epochs=1), out, resume=True)
    again = saved_variables(saved_config(out), out)
    assert again[2] == 8
    jax.tree.map(np.testing.assert_array_equal, reference[1], again[1])
