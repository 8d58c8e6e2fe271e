"""`ntkcollapse simulate` and the machinery of settings that every command shares."""

import contextlib
import inspect
import io
import re
import shutil
import tomllib
from dataclasses import dataclass

import numpy as np
import pytest

from ntkcollapse import Trajectory, _config, choices
from ntkcollapse._config import setting
from ntkcollapse._table import Table, number, percent
from ntkcollapse.cli import main
from ntkcollapse.commands.rates import rates_table
from ntkcollapse.comparison import measured_rates

SMALL = "--classes 3 --per-class 4 --features 5 --kappa 3 2 .6 --scale 0.5 --times 40".split()


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A run of the command, its figures drawn, and what it printed."""
    out = tmp_path_factory.mktemp("simulated") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["simulate", *SMALL, "--until", "3", "--out", str(out)]) == 0
    return out, said.getvalue()


def test_simulate_writes_a_run_and_says_what_it_found(simulated, tmp_path, capsys):
    out, said = tmp_path / "run", simulated[1]
    shutil.copytree(simulated[0], out)
    assert "drift of the invariant" in said
    assert "R_class - R_global" in said
    run = Trajectory.load(out)
    assert run.times.shape == (40,)
    assert float(run.times[-1]) == pytest.approx(3.0)
    assert {p.name for p in (out / "figures").iterdir()} == {"simulation.pdf", "simulation.png"}

    # The saved settings reproduce the run; a flag goes before them.
    again = tmp_path / "again"
    assert main(["simulate", "--config", str(out / "config.toml"), "--out", str(again)]) == 0
    np.testing.assert_array_equal(Trajectory.load(again)["loss"], run["loss"])
    settings = tomllib.loads((again / "config.toml").read_text())
    assert settings["kappa"] == [3.0, 2.0, 0.6]
    assert settings["out"] == str(again)

    # A second run in the same place refuses, and leaves what is there.
    before = (out / "trajectory.nc").read_bytes()
    assert main(["simulate", *SMALL, "--out", str(out)]) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert (out / "trajectory.nc").read_bytes() == before

    # Told to, it replaces the run, and takes away what was made from the earlier one; but only from a run.
    (out / "comparison.nc").write_text("of the earlier run")
    assert main(["simulate", *SMALL, "--until", "2", "--out", str(out), "--overwrite"]) == 0
    assert float(Trajectory.load(out).times[-1]) == pytest.approx(2.0)
    assert not (out / "comparison.nc").exists()
    other = tmp_path / "figures"
    other.mkdir()
    (other / "mine.png").write_text("mine")
    assert main(["simulate", *SMALL, "--out", str(tmp_path), "--overwrite"]) == 2
    assert "found other files" in capsys.readouterr().err
    assert (other / "mine.png").exists()


@pytest.mark.drawn
def test_one_table_of_rates_for_every_command(simulated, tmp_path, capsys):
    """The same fits, predictions and verdicts, whichever command is asked."""
    out, said = tmp_path / "run", simulated[1]
    shutil.copytree(simulated[0], out)
    assert main(["rates", str(out)]) == 0
    asked = capsys.readouterr().out.split("\n\nfigure")[0]
    assert "λ(κ)  at collapse" in asked
    assert asked in said
    run = Trajectory.load(out)
    assert rates_table(run, measured_rates(run)) == asked


def test_simulate_a_named_model(tmp_path, capsys):
    out = tmp_path / "run"
    model = ["--model", "spherical_features", "--parameters", "radius_H=2", "radius_W=1.5"]
    small = "--classes 3 --per-class 4 --features 5 --times 20 --until 10000".split()
    assert main(["simulate", *model, *small, "--out", str(out)]) == 0
    assert "largest correction back to the constraint" in capsys.readouterr().out
    run = Trajectory.load(out)
    # The closed form of its minimum, log(1 + (C − 1) e^{−r_H r_W C/(C − 1)}).
    assert float(run["loss"][-1]) == pytest.approx(np.log1p(2 * np.exp(-4.5)), rel=1e-5)
    assert {p.name for p in (out / "figures").iterdir()} == {"simulation.pdf", "simulation.png"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--initial", "gausian"], "Did you mean 'gaussian'"),
        (["--kappa", "1", "2", "0"], "λ_single = diagonal − within above zero, got -1"),
        (["--kappa", "1", "2"], "kappa: expected three numbers"),
        (["--per-class", "3", "4"], "per_class: expected one number or 4, got 2"),
        (["--weight-decay", "1", "2"], "weight_decay: expected one rate or three"),
        (["--until", "-1"], "until: expected a flow time above 0"),
        (["--solver", "rk4"], "solver: expected one of"),
        (["--config", "missing.toml"], "missing.toml does not exist"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", *flags]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_help_names_units_and_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["simulate", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "per unit flow time" in said
    assert "(default: 1.0 0.5 0.1)" in said


@dataclass(frozen=True)
class Example:
    count: int = setting(3, "how many")
    rates: tuple[float, ...] = setting((1.0,), "rates")
    name: str = setting("a", "which", choices=("a", "bc"))
    limit: float | None = setting(None, "none by default")
    on: bool = setting(False, "switch")


def test_settings_from_file_and_flags(tmp_path):
    file = tmp_path / "some.toml"
    file.write_text("count = 5\nrates = [1, 2.5]\nlimit = 2\n")
    got = _config.resolve(Example, {"config": str(file), "count": 7})
    assert got == Example(count=7, rates=(1.0, 2.5), limit=2.0)
    assert _config.as_mapping(got) == {"count": 7, "rates": [1.0, 2.5], "name": "a", "limit": 2.0, "on": False}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("conut = 5", r"some.toml: .* Did you mean 'count'"),
        ("count = 5.5", "some.toml: count: expected a whole number, got 5.5"),
        ("count = true", "count: expected a whole number, got True"),
        ("name = 'b'", r"name: expected one of 'a', 'bc'; got 'b'"),
        ("rates = 'x'", "rates: expected a number, got 'x'"),
        ("= 3", "is not one"),
        ("count = " + "1" * 40, r"some.toml: count: expected a whole number of at most 64 bits, got 1{40}"),
        ("count = " + "1" * 5000, "some.toml is not one"),
        ("limit = inf", r"some.toml: limit: expected a number, got inf \(float\)"),
        ("limit = " + "9" * 400, r"limit: expected a number, got 9{60} \.\.\. 9{20} \(int\)"),
        (r'name = "a\u0000"', r"some.toml: name: expected text that UTF-8 can hold, without NUL; got 'a\\x00'"),
        ("count = " + "[" * 5000, "some.toml has lists or tables too deep"),
        ("count = [1, 2]", r"some.toml: count: expected a whole number, got \[1, 2\] \(list\)"),
        ("[count]\nof = 3", r"some.toml: count: expected a whole number, got \{'of': 3\} \(dict\)"),
    ],
)
def test_bad_settings(tmp_path, text, message):
    file = tmp_path / "some.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        _config.resolve(Example, {"config": str(file)})


def test_files_in_other_encodings(tmp_path):
    file = tmp_path / "some.toml"
    file.write_bytes("count = 5\n".encode("utf-8-sig"))
    assert _config.resolve(Example, {"config": str(file)}).count == 5
    file.write_bytes("count = 5\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"some.toml is not: byte 0 is 0xff; save it as UTF-8"):
        _config.resolve(Example, {"config": str(file)})
    for wrong, message in ((tmp_path, "is not one: .*directory"), (f"{tmp_path}/a\0b", "null byte")):
        with pytest.raises(ValueError, match=message):
            _config.resolve(Example, {"config": str(wrong)})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--classes", "5.5"], "classes: expected a whole number, got '5.5' (str)"),
        (["--classes", "4" * 40], f"classes: expected a whole number from 2 to a million, got {'4' * 40}"),
        (["--seed", "4" * 5000], "seed: expected a whole number, got '44444"),
        (["--scale", "nan"], "scale: expected a number, got nan (float)"),
        (["--kappa", "1", "x", "0"], "kappa: expected a number, got 'x' (str)"),
        (["--out", "a\0b"], "out: expected text that UTF-8 can hold, without NUL; got 'a\\x00b'"),
        (["--config", "a\0b"], "config: expected a path that the file system can hold, got 'a\\x00b'"),
        (
            ["--model", "homogeneous", "--parameters", "decay=1", "decay=2"],
            "expected every option once, got decay again",
        ),
        (["--model", "homogeneous", "--parameters", "decay=abc"], "decay (option of homogeneous): expected a number"),
    ],
)
def test_flags_are_read_as_files_are(tmp_path, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", *flags]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert len(said) < 400
    assert not (tmp_path / "runs").exists()


def test_help_says_what_choices_mean(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name, meaning in choices.meanings(choices.OPTIMIZERS).items():
        assert f"{name}: {meaning}" in said
    assert "auto: the quickest one" in said
    assert "(default: batch train test kappa gamma last-layer parameters)" in said


def test_parameters_named_in_the_help_are_those_of_the_model():
    for name, meaning in choices.SIMULATED_MODELS.meanings.items():
        takes = list(inspect.signature(choices.SIMULATED_MODELS[name].build).parameters)[1:]
        named = re.findall(r"parameters? ([\w, ]+)$", meaning)
        assert named == ([", ".join(takes)] if takes and name != "ntk_collapse" else [])


def test_tables():
    shown = [number(x) for x in (0, 1.23456, 1.2e-7, 123456789, float("nan"))]
    assert shown == ["0", "1.235", "1.20e-07", "1.23e+08", "-"]
    assert [percent(x) for x in (0.123, -0.5, 12.0)] == ["+12.3%", "-50.0%", "x13"]
    assert Table(["a", "b"], [["x", "1"], ["yy", "22"]]) == "a    b\n------\nx    1\nyy  22"
