"""A run directory: its files have one owner, and what is not ours stays."""

import ast
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from ntkcollapse import Classes, Trajectory
from ntkcollapse._config import Settings, setting
from ntkcollapse.cli import main
from ntkcollapse.run_directory import RunDirectory, check_not_owned

PACKAGE = Path(__file__).parents[1] / "ntkcollapse"
FILES = re.compile(r"config\.toml|trajectory\.nc|comparison\.nc|report\.html|status\.json|error\.txt")
FOLDERS = ("checkpoints", "networks", "figures", ".lock")


@dataclasses.dataclass(frozen=True)
class Example(Settings):
    count: int = setting(3, "a number")
    rates: tuple[float, ...] = setting((1.0, 2.5), "some numbers")
    limit: float | None = setting(None, "at most")
    overwrite: bool = setting(False, "replace what is there")


@pytest.fixture
def directory(tmp_path):
    """A directory with the settings of a run."""
    made = RunDirectory(tmp_path / "run")
    made.begin(Example(count=4))
    return made


def spelled(file: Path) -> list[str]:
    """File names of a run directory that a module spells, docstrings apart."""
    tree, found = ast.parse(file.read_text()), []
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
            found += FILES.findall(node.value)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
            found += [node.right.value] if node.right.value in FOLDERS else []
    return found


def test_one_module_spells_the_names_of_files():
    assert {file.name for file in PACKAGE.rglob("*.py") if spelled(file)} == {"run_directory.py"}


def test_settings_come_back(directory):
    assert directory.read_settings(Example) == Example(count=4)
    directory.begin(Example(count=5, overwrite=True), resume=True)
    assert directory.read_settings(Example) == Example(count=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "found an empty file; put them back"),
        (lambda text: text.partition("\n")[0], "found an empty file; put them back"),
        (lambda text: text[: text.index("rates")], "expected the 2 settings that were written, found 1"),
        (lambda text: text.rstrip(), "the file was cut or changed"),
        (lambda text: text[:-3], "this is not one|the file was cut or changed"),
    ],
)
def test_settings_that_were_cut_are_not_defaults(directory, change, message):
    directory.settings.write_text(change(directory.settings.read_text()))
    with pytest.raises(ValueError, match=rf"config\.toml: .*({message})"):
        directory.read_settings(Example)


def test_somebody_elses_folder_is_not_overwritten(tmp_path):
    """A config.toml, a checkpoint and figures as many projects have them, and a trajectory of molecules."""
    files = ["config.toml", "trajectory.nc", "status.json", "checkpoints/model.pt", "figures/training.png"]
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(FileExistsError, match="expected a run to overwrite, found other files"):
        RunDirectory(tmp_path).check(overwrite=True)
    assert main(["simulate", "--classes", "2", "--per-class", "2", "--out", str(tmp_path), "--overwrite"]) == 2
    assert all((tmp_path / name).read_text() == "{}" for name in files)


def test_overwriting_leaves_what_we_did_not_make(directory):
    path = directory.path
    for name in ("checkpoints/model.pt", "figures/mine.png", "notes.txt"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("mine")
    ours = ["figures/ladder_5.pdf", "figures/training.png", "comparison.nc", "report.html", "error.txt"]
    for name in (*ours, "checkpoints/step_3.npz", "networks/step_3.npz"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("ours")
    directory.check(overwrite=True)
    directory.begin(Example())
    left = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert left == {"config.toml", "checkpoints/model.pt", "figures/mine.png", "notes.txt"}


def test_runs_of_earlier_versions_are_known_by_what_they_hold(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    Trajectory([0.0, 1.0], {"loss": np.ones(2)}, Classes((2, 2))).save(one)
    other.mkdir()
    (other / "config.toml").write_text("seed = 0\n")
    assert RunDirectory(one).is_ours
    assert not RunDirectory(other).is_ours
    RunDirectory(other).write_status(outcome="running", step=3, steps=10)
    assert RunDirectory(other).is_ours


def test_what_a_killed_process_left_goes_when_the_directory_is_held(directory):
    left = [".trajectory-0123abcd.nc", ".status-part.json", "checkpoints/.step_7-part.npz"]
    mine = [".trajectory-old.nc", ".DS_Store", "checkpoints/.hidden"]
    for name in (*left, *mine):
        (directory.path / name).parent.mkdir(exist_ok=True)
        (directory.path / name).write_text("half")
    with directory.locked():
        assert not any((directory.path / name).exists() for name in left)
    assert all((directory.path / name).exists() for name in mine)


def test_a_damaged_status_says_nothing(directory):
    for text in ("[1]", '{"outcome": "fin', ""):
        directory.status.write_text(text)
        assert directory.read_status() == {}
    directory.write_status(outcome="finished", step=1, steps=1)
    assert json.loads(directory.status.read_text()) == directory.read_status()


def test_a_report_does_not_replace_the_run(directory, capsys):
    Trajectory([0.0, 1.0], {"loss": np.ones(2)}, Classes((2, 2))).save(directory.path)
    before = directory.settings.read_bytes()
    for file in (directory.settings, directory.trajectory, directory.checkpoints / "step_3.npz"):
        assert main(["report", str(directory), "--out", str(file), "--overwrite"]) == 2
        assert "out: expected a file that is not the run's own" in capsys.readouterr().err
    assert directory.settings.read_bytes() == before
    check_not_owned("out", directory.report)
    check_not_owned("out", directory.path / "page.html")


def test_figures_have_names_that_are_known_again(directory):
    assert directory.figure("ladder_80").name == "ladder_80"
    with pytest.raises(ValueError, match="name: expected a figure"):
        directory.figure("mine")


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "run").write_text("")
    with (
        pytest.raises(FileExistsError, match="expected a run directory, found a file"),
        RunDirectory(tmp_path / "run").locked(),
    ):
        pass
