"""What the command line says, to whom it may: terminals without Greek letters, readers that go, no docstrings."""

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from ntkcollapse import cli
from ntkcollapse.commands import COMMANDS, Command, compare, network_runs, train
from ntkcollapse.commands.settings import CompareConfig, TrainCommandConfig
from ntkcollapse.training import preset

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_letters_that_a_terminal_does_not_have(encoding, monkeypatch):
    """The table of rates has them: it was lost, after all the work, in "'ascii' codec can't encode"."""
    out = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(Command, "function", property(lambda _: lambda settings: print("λ(κ), 3 ± 1")))
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(["rates", "run"]) == 0
    out.seek(0)
    assert out.read().startswith(r"\u03bb(\u03ba), 3 ")


def test_a_reader_that_goes(monkeypatch):
    """`ntkcollapse rates run | head -1` is no failure of the run."""
    reader, writer = os.pipe()
    os.close(reader)
    out = io.TextIOWrapper(os.fdopen(writer, "wb"), "utf-8")
    monkeypatch.setattr(Command, "function", property(lambda _: lambda settings: print("a table")))
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(["rates", "run"]) == 141
    # What is left goes nowhere, without an error at the interpreter's end.
    out.close()


def test_a_warning_is_one_line_without_our_code(monkeypatch, capsys):
    def warn(settings):
        print(warnings.formatwarning("not aligned", UserWarning, __file__, 1, "code"), file=sys.stderr, end="")

    monkeypatch.setattr(Command, "function", property(lambda _: warn))
    assert cli.main(["rates", "run"]) == 0
    assert capsys.readouterr().err == "ntkcollapse rates: warning: not aligned\n"
    assert "code" in warnings.formatwarning("x", UserWarning, __file__, 1, "code")


def test_help_without_docstrings():
    """`python -OO` drops them, and `--help` ended in an IndexError."""
    command = [sys.executable, "-OO", "-m", "ntkcollapse.cli", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize(("is_terminal", "how"), [(True, "bar"), (False, "lines")])
def test_every_training_says_how_far_it_has_come(is_terminal, how, monkeypatch, tmp_path):
    """A bar in a terminal, and a line now and then in a notebook or in the log of a batch job: never silence."""

    class Asked(Exception):
        """Instead of a training."""

    def asked(*args, progress, **kwargs):
        raise Asked(progress)

    for module in (train, compare, network_runs):
        monkeypatch.setattr(module, "train", asked)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    for trainings in (
        lambda: train.train_command(TrainCommandConfig()),
        lambda: compare.compare_command(CompareConfig(preset="digits", out=str(tmp_path / "run"))),
        lambda: network_runs.train_measured(preset("digits"), at=[0], networks_at=[0]),
    ):
        with pytest.raises(Asked, match=how):
            trainings()
