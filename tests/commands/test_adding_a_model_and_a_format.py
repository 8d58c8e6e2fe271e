"""A model, and a format of data, are a function and one entry each: commands, tables, figures and report know them."""

import csv

import numpy as np
import pytest

from ntkcollapse import BlockKernel, Flow, SquaredError, Trajectory, choices, models
from ntkcollapse.cli import main
from ntkcollapse.data import from_arrays
from ntkcollapse.theory.models.registry import MODELS, model

HERE = "tests.commands.test_adding_a_model_and_a_format"


def read_csv(path):
    """Labels and features in rows; every third row is for testing."""
    with open(path, newline="") as file:
        rows = np.asarray([[float(entry) for entry in row] for row in csv.reader(file)])
    x, y = rows[:, 1:].astype(np.float32), rows[:, 0].astype(int)
    test = np.arange(len(y)) % 3 == 0
    return from_arrays(x[~test], y[~test], x[test], y[test], name="rows")


@pytest.fixture
def entered(monkeypatch):
    """Adds a line to a table of names, as its file would have it."""

    def enter(table: choices.Choices, name: str, meaning: str, attribute: str) -> None:
        monkeypatch.setitem(table.meanings, name, meaning)
        monkeypatch.setitem(table._where, name, f"{HERE}:{attribute}")

    return enter


def test_a_format_of_data_is_trained_on(entered, monkeypatch, tmp_path, capsys):
    entered(choices.OWN, "csv", "rows of label and features in the file data_path", "read_csv")
    monkeypatch.setitem(choices.DATASETS, "csv", choices.OWN.meanings["csv"])
    rng = np.random.default_rng(0)
    labels = np.arange(36) % 2
    with open(tmp_path / "mine.csv", "w", newline="") as file:
        rows = rng.normal(size=(36, 4)) + 4 * labels[:, None]
        csv.writer(file).writerows([[label, *row] for label, row in zip(labels, rows, strict=True)])
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "rows of label and features" in " ".join(capsys.readouterr().out.split())
    arguments = f"train --dataset csv --data-path {tmp_path / 'mine.csv'} --out {tmp_path / 'run'} --network mlp"
    arguments += " --network-options widths=(6,) --epochs 2 --batch-size 0 --probe-per-class 2 --measure train test"
    assert main(arguments.split()) == 0
    assert "train_accuracy" in capsys.readouterr().out
    run = Trajectory.load(tmp_path / "run")
    assert run.settings["data"] == "rows/train"
    assert run.training_classes.sizes == (12, 12)
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "rows/train" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_a_model_is_simulated(entered, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("ntkcollapse.theory.models.registry.MODELS", dict(MODELS))
    title = "features with a kernel of mine"

    @model(title=title, assumes="one rate", predicts="collapse", source="me (2024)", test="tests/mine.py::test")
    def of_mine(classes, rate=1.0):
        """Features that move at one rate."""
        return Flow(BlockKernel(rate, 0.0, 0.0), classes, SquaredError(0.5))

    monkeypatch.setattr("ntkcollapse.theory.models.catalogue.of_mine", of_mine, raising=False)
    monkeypatch.setitem(globals(), "of_mine", of_mine)
    entered(choices.SIMULATED_MODELS, "of_mine", "squared error; parameter rate", "of_mine")
    assert title in models.table()
    arguments = (
        "simulate --model of_mine --parameters rate=2.5 --classes 3 --per-class 4 --features 5 --times 12 --until 1"
    )
    assert main([*arguments.split(), "--out", str(tmp_path / "run")]) == 0
    assert "loss" in capsys.readouterr().out
    run = Trajectory.load(tmp_path / "run")
    assert float(run["kappa_diagonal"][0]) == 2.5
    assert float(run.equation.loss.scale) == 0.5
    assert (tmp_path / "run" / "figures" / "simulation.png").exists()
    assert main(["report", str(tmp_path / "run")]) == 0
    assert main([*arguments.replace("rate", "rat").split(), "--out", str(tmp_path / "other")]) == 2
    assert "Did you mean 'rate'?" in capsys.readouterr().err
