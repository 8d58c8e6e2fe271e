"""train and sweep from the command line: what they leave, what they say, how they end."""

import csv
import signal
import tomllib

import numpy as np
import pytest

from ntkcollapse import Trajectory
from ntkcollapse._config import resolve
from ntkcollapse.cli import build_parser, main
from ntkcollapse.commands.settings import TrainCommandConfig
from ntkcollapse.training import PRESETS, Interrupted

SMALL = (
    "--network mlp --network-options widths=(8,10) --dataset digits --per-class 24 --test-per-class 3 --epochs 2 "
    "--batch-size 30 --learning-rate 0.5 --decay-every 1 --probe-per-class 2 --measure last-layer train test kappa "
    "--measure-every 1 --measure-log 0"
).split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", *SMALL, "--out", str(out)]) == 0
    return out


def test_train_leaves_a_run_that_can_be_read_and_repeated(trained, tmp_path, capsys):
    run = Trajectory.load(trained)
    drawn = {f"{name}.{kind}" for name in ("training", "collapse") for kind in ("pdf", "png")}
    assert {p.name for p in (trained / "figures").iterdir()} == drawn
    settings = tomllib.loads((trained / "config.toml").read_text())
    assert settings["learning_rate"] == 0.5
    # 240 samples in batches of 30, two epochs; the rate falls after the first.
    np.testing.assert_array_equal(run["step"], [0, 8, 16])
    np.testing.assert_allclose(run["learning_rate"], [0.5, 0.05, 0.005], rtol=1e-6)
    # Flow time: Σ learning rates / (N C) / (1 − momentum 0.9).
    np.testing.assert_allclose(run.times, np.array([0, 8 * 0.5, 8 * 0.5 + 8 * 0.05]) / (240 * 10) / 0.1, rtol=1e-6)

    again = tmp_path / "again"
    assert main(["train", "--config", str(trained / "config.toml"), "--out", str(again)]) == 0
    said = capsys.readouterr().out
    assert "s training" in said
    assert "test_accuracy" in said
    np.testing.assert_array_equal(Trajectory.load(again)["train_loss"], run["train_loss"])


def test_train_refuses_a_directory_in_use_and_resumes_with_its_settings(trained, capsys):
    before = (trained / "trajectory.nc").read_bytes()
    assert main(["train", *SMALL, "--out", str(trained)]) == 2
    assert "in use" in capsys.readouterr().err
    assert main(["train", "--resume", "--out", str(trained), "--seed", "3"]) == 2
    assert "seed: expected 0 as the run in" in capsys.readouterr().err
    assert (trained / "trajectory.nc").read_bytes() == before
    # A finished run has nothing left to do; it is shown again.
    assert main(["train", "--resume", "--out", str(trained)]) == 0
    assert "test_accuracy" in capsys.readouterr().out


def test_presets_are_listed_with_what_they_show_and_cost(capsys):
    assert main(["train", "--preset", "list"]) == 0
    said = capsys.readouterr().out
    for name, file in PRESETS.items():
        shows, costs = file.read_text(encoding="utf-8").splitlines()[:2]
        part = said[said.index(f"{name}: ") :]
        assert part.index(shows.removeprefix("# ")) < part.index(costs.removeprefix("# "))


def test_a_preset_yields_to_files_and_flags(tmp_path, capsys):
    (tmp_path / "more.toml").write_text('preset = "collapse"\nepochs = 7\nseed = 3\n')
    flags = build_parser().parse_args(["train", "--config", str(tmp_path / "more.toml"), "--seed", "4"])
    vars(flags).pop("command")
    config = resolve(TrainCommandConfig, flags)
    inside = tomllib.loads(PRESETS["collapse"].read_text(encoding="utf-8"))
    assert (config.epochs, config.seed) == (7, 4)
    assert (config.network, config.weight_decay) == (inside["network"], inside["weight_decay"])
    assert config.given >= inside.keys()
    assert main(["train", "--preset", "colapse"]) == 2
    assert "preset: expected one of 'list', 'collapse'" in capsys.readouterr().err


def test_diverged_training_ends_with_status_1_and_what_it_has(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", *SMALL, "--learning-rate", "1e30", "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert "step" in said.err
    assert said.err.count("\n") == 1
    assert Trajectory.load(out).settings["outcome"] == "diverged"


def test_divergence_at_the_start_has_nothing_to_show(tmp_path, capsys):
    assert main(["train", *SMALL, "--init-scale", "1e25", "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "not finite at step 0" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("way", ["flag", "file"])
def test_what_is_given_counts_on_resuming_also_where_it_is_the_default(trained, tmp_path, monkeypatch, way):
    """400 epochs are the default, and not what the run there was started with."""
    asked = []

    def stop(config, *_, **__):
        asked.append(config)
        raise Interrupted(signal.SIGTERM, 0, None)

    monkeypatch.setattr("ntkcollapse.commands.train.train", stop)
    (tmp_path / "more.toml").write_text("epochs = 400\n")
    given = ["--epochs", "400"] if way == "flag" else ["--config", str(tmp_path / "more.toml")]
    with pytest.raises(SystemExit, match="143"):
        main(["train", "--resume", "--out", str(trained), *given])
    assert asked[0].epochs == 400
    assert asked[0].learning_rate == 0.5


def test_a_signal_ends_a_sweep_without_a_traceback(tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise Interrupted(signal.SIGINT, 7, tmp_path / "runs" / "seed=0")

    monkeypatch.setattr("ntkcollapse.commands.sweep.sweep", stop)
    with pytest.raises(SystemExit, match="130"):
        main(["sweep", *SMALL, "--seed", "0", "1", "--out", str(tmp_path / "runs")])
    said = capsys.readouterr().err
    assert "SIGINT at step 7" in said
    assert "the same command" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--network", "resnet21"], "Did you mean 'resnet20'"),
        (["--dataset", "mnits"], "mnist"),
        (["--batch-size", "33"], "multiple of the 10 classes"),
        (["--measure", "nc5"], "measure"),
        (["--learning-rate", "-1"], "learning_rate"),
    ],
)
def test_bad_settings_are_one_line_and_leave_nothing(tmp_path, capsys, flags, message):
    assert main(["train", *SMALL, *flags, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run" / "trajectory.nc").exists()


def test_sweep_prints_a_line_a_run(tmp_path, capsys):
    out = tmp_path / "runs"
    flags = [*SMALL, "--learning-rate", "0.5", "1e30", "--epochs", "1", "--out", str(out)]
    assert main(["sweep", *flags]) == 0
    said = capsys.readouterr().out
    assert "finished" in said
    assert "diverged" in said
    with (out / "summary.csv").open() as file:
        assert [row["outcome"] for row in csv.DictReader(file)] == ["finished", "diverged"]
    # Figures are those of `train`, and are not drawn again where they are newer than what they show.
    drawn = {file: file.stat().st_mtime_ns for file in out.glob("*/figures/*")}
    assert {file.name for file in (out / "learning_rate=0.5" / "figures").iterdir()} == {"training.pdf", "training.png"}
    assert main(["sweep", *flags]) == 0
    assert drawn == {file: file.stat().st_mtime_ns for file in out.glob("*/figures/*")}
    (out / "learning_rate=0.5" / "trajectory.nc").write_bytes(b"")
    assert main(["sweep", *flags]) == 1
    assert "some runs failed" in capsys.readouterr().err
    assert main(["sweep", *SMALL, "--out", str(tmp_path / "one")]) == 2
    assert "expected several values" in capsys.readouterr().err
