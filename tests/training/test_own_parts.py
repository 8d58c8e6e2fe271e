"""Measurements, networks and data of the user's own, and what others may read while a run goes on."""

import dataclasses
from typing import Any

import pytest

from ntkcollapse.networks import Network, mlp
from ntkcollapse.training import read_status, saved_variables, train
from ntkcollapse.trajectory import Trajectory
from tests.training.settings import small


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"epoch": 7.0}, "'epoch' is the name of another value"),
        ({"train_loss": 7.0}, "'train_loss' is the name of another value"),
        ({"state_H": 7.0}, "'state_H' is the name of another value"),
        ({"a/b": 1.0}, "expected names of letters"),
        ({"": 1.0}, "expected names of letters"),
        (1.0, "expected values by name"),
    ],
)
def test_measurements_that_would_be_lost_or_hide_others_are_refused(tmp_path, found, said):
    config = small(epochs=1, measure=("train",))
    with pytest.raises(ValueError, match=said):
        train(config, tmp_path / "run", measurements={"mine": lambda moment: found})
    status = read_status(tmp_path / "run")
    assert (status["outcome"], status["step"]) == ("failed", 0)
    assert said in status["error"]


def test_a_measurement_that_is_a_part_of_a_kernel_is_no_kernel():
    run = train(small(epochs=1, measure=("train",)), measurements={"mine": lambda moment: {"kappa_diagonal": 1.0}})
    assert run.kernel is None


def test_a_run_goes_on_with_its_own_measurements_network_and_data_only(tmp_path):
    config, out = small(epochs=1, measure=("train",)), tmp_path / "run"
    network, splits = mlp((8,), 10), small(per_class=5).build_splits()
    own: dict[str, Any] = {"measurements": {"mine": lambda moment: {"x": 1.0}}, "network": network, "splits": splits}
    train(config, out, **own)
    longer = dataclasses.replace(config, epochs=2)
    for name, other, said in (
        ("measurements", None, "measurements: expected those that the run in .* was started with, train, mine"),
        ("network", mlp((8,), 10, activation="tanh"), "network: expected what the run in"),
        ("network", None, "network: "),
        ("splits", None, "splits: expected what the run in"),
    ):
        changed: dict[str, Any] = {**own, name: other}
        with pytest.raises(ValueError, match=said):
            train(longer, out, resume=True, **changed)
    assert read_status(out)["outcome"] == "finished"
    net, _, step = saved_variables(config, out, network=network, splits=splits)
    assert isinstance(net, Network)
    assert net.trunk == network.trunk
    assert train(longer, out, resume=True, **own)["step"].tolist() == [0, step, 2 * step]
    assert Trajectory.load(out).equation.own == ("data", "network")


def test_what_was_measured_is_there_for_others_while_the_run_goes_on(tmp_path):
    seen = {}

    def look(step):
        if (tmp_path / "run" / "trajectory.nc").exists():
            run = Trajectory.load(tmp_path / "run")
            seen[step] = (run["step"].tolist(), run.settings["outcome"])

    train(small(epochs=3, measure=("train",), checkpoint_seconds=0), tmp_path / "run", on_step=look)
    per_epoch = max(seen) // 3
    assert seen[per_epoch] == ([0, per_epoch], "running")
    assert seen[2 * per_epoch + 1] == ([0, per_epoch, 2 * per_epoch], "running")
