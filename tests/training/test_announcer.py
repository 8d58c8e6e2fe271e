"""What a run says on its way where there is no terminal."""

from types import SimpleNamespace
from typing import Any

import pytest

from ntkcollapse.training import announcer as said_by
from ntkcollapse.training import train
from ntkcollapse.training.plan import Plan
from ntkcollapse.training.progress import Progress
from tests.training.settings import small


@pytest.fixture
def talkative(monkeypatch):
    """Every line is due at once, and worth saying."""
    monkeypatch.setattr(said_by, "_EVERY", 0.0)
    monkeypatch.setattr(said_by, "_WORTH_SAYING", 0.0)


def test_lines_say_costs_and_progress(talkative, capsys):
    config = small(epochs=2, measure=("train",))
    train(config, progress="lines")
    lines = capsys.readouterr().err.splitlines()
    # 240 samples in batches of 30; measured at steps 0, 8 and 16.
    assert sum(line.startswith("step ") and " of 16: loss " in line for line in lines) == 17
    assert not any("measuring" in line for line in lines), "none is left after the third"
    train(small(epochs=4, measure=("train",)), progress="lines")
    (cost,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("measuring"))
    assert cost.startswith("measuring 2 more times (train) will take about ")


def test_the_terminal_phase_is_announced_once(talkative, capsys):
    announcer = said_by.Announcer(Plan.of(small(epochs=1, measure=("train",))), "lines")
    for step, accuracy in enumerate((0.5, 0.9, 1.0, 0.9, 1.0)):
        records = SimpleNamespace(
            steps=list(range(step + 1)), newest={"train_accuracy": accuracy}, seconds={"measuring": 1.0 * step},
            headline=dict,
        )  # fmt: skip
        run: Any = object.__new__(Progress)
        run.step, run.records = step, records
        announcer.show(run)
    said = [line for line in capsys.readouterr().err.splitlines() if "terminal" in line]
    assert said == ["step 2: the terminal phase begins, every training sample is classified rightly"]


def test_without_progress_nothing_is_said(talkative, capsys):
    train(small(epochs=1, measure=("train",)))
    assert capsys.readouterr().err == ""
