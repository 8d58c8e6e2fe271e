"""compare, on its own digits and on a run that is there; its errors."""

import os
import signal

import numpy as np
import pytest

from ntkcollapse import Trajectory
from ntkcollapse.cli import main
from ntkcollapse.commands._measured import measured_again
from ntkcollapse.comparison import load_ladders
from ntkcollapse.training import Interrupted, TrainConfig, train

SMALL = "--per-class 2 --widths 8 6 --steps 40 --measurements 4 --from 5".split()

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "run"
    assert main(["compare", *SMALL, "--rungs", "sample-frozen", "--out", str(folder)]) == 0
    return folder


def test_compare_leaves_a_run_a_comparison_and_figures(compared):
    names = {str(file.relative_to(compared)) for file in compared.rglob("*") if file.is_file()}
    assert {"config.toml", "trajectory.nc", "comparison.nc", "figures/ladder_5.png", "figures/ladder_5.pdf"} <= names
    ladder = load_ladders(compared)[5]
    network, rung = ladder.network, ladder.rungs["sample-frozen"]
    # They start from the same state: what was measured at step 5 in single precision.
    assert int(network["step"][0]) == 5
    np.testing.assert_allclose(rung["loss"][0], network["loss"][0], rtol=1e-12)
    assert 0 < float(rung["loss"][-1]) < float(rung["loss"][0])


def test_compare_again_from_the_run_with_its_network_made_again(compared, capsys):
    before = Trajectory.load(compared)
    assert main(["compare", str(compared), "--from", "5", "--rungs", "sample-frozen"]) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    old = load_ladders(compared)[5]
    arguments = ["compare", str(compared), "--from", "5", "--rungs", "sample-frozen", "--overwrite"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "theory from step 5" in out
    assert "within 10% until step" in out
    new = load_ladders(compared)[5]
    np.testing.assert_allclose(new.rungs["sample-frozen"]["loss"], old.rungs["sample-frozen"]["loss"], rtol=1e-6)
    np.testing.assert_array_equal(Trajectory.load(compared)["loss"], before["loss"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "40"], "start: expected a step from 0 to below steps = 40, got 40"),
        (["--rungs", "rung-9"], "rungs: expected one of"),
        (["--records", "0"], "records: expected"),
        (["--homogeneity", "-1"], "homogeneity: expected"),
    ],
)
def test_bad_input(arguments, said, tmp_path, capsys):
    start = [a for a in SMALL if a not in ("--from", "5")] if "--from" in arguments else SMALL
    assert main(["compare", *start, *arguments, "--out", str(tmp_path / "x")]) == 2
    assert said in capsys.readouterr().err


def test_an_interrupted_run_is_made_again_as_far_as_it_came(tmp_path):
    config = TrainConfig(
        network="mlp", network_options=("widths=(9,)",), dataset="digits", per_class=4, epochs=100, batch_size=20,
        probe_per_class=0, measure=("kappa", "last-layer"), measure_every=0, measure_steps=(4, 7), decay_every=0,
    )  # fmt: skip

    def stop(step: int) -> None:
        if step == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", on_step=stop)
    # Two steps an epoch: recorded at 0, 4 and 7 of 200, made again until the end of the fourth epoch.
    again, starts = measured_again(tmp_path / "run", [4], records=3)
    assert starts == [4]
    assert again.steps == [0, 4, 7, 8]


def test_runs_that_cannot_be_compared(tmp_path, capsys):
    config = TrainConfig(
        network="mlp", network_options=("widths=(6,)",), dataset="digits", per_class=2, epochs=2, batch_size=0,
        probe_per_class=0, measure=("last-layer",), measure_every=1, decay_every=0,
    )  # fmt: skip
    train(config, tmp_path / "bare")
    assert main(["compare", str(tmp_path / "bare")]) == 2
    assert "expected a run measured with kernels" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "nowhere")]) == 2
    assert "no trajectory here" in capsys.readouterr().err
