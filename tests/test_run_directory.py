"""A run directory: its files have one owner, and what is not ours stays."""

import ast
import dataclasses
import errno
import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ntkcollapse import Classes, Trajectory
from ntkcollapse._config import Settings, setting
from ntkcollapse.cli import main
from ntkcollapse.run_directory import RunDirectory, RunInUse, check_not_owned
from tests.processes import ended

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
    left = [".trajectory-0123abcd.nc", ".status-part.json", "checkpoints/.step_7-part.npz", ".new/trajectory.nc"]
    left += ["figures/.training-0123abcd.png", ".report-0123abcd.html"]
    # Figures are drawn without the lock: what was written to a minute ago may be somebody's.
    mine = [".trajectory-old.nc", ".DS_Store", "checkpoints/.hidden", "figures/.mine-0123abcd.png"]
    mine += ["figures/.rates-0123abcd.png"]
    for name in (*left, *mine):
        (directory.path / name).parent.mkdir(exist_ok=True)
        (directory.path / name).write_text("half")
        if "rates" not in name:
            os.utime(directory.path / name, (1e9, 1e9))
    with directory.locked("train"):
        assert not any((directory.path / name).exists() for name in left)
    assert all((directory.path / name).exists() for name in mine)


_HOLDER = """
import sys, time
from ntkcollapse.run_directory import RunDirectory
with RunDirectory(sys.argv[1]).locked("compare"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_who_holds_a_directory_is_named_and_a_dead_process_holds_none(directory):
    # A killed process leaves its file.
    (directory.path / ".lock").write_text("`ntkcollapse train`, process 1 on elsewhere")
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, directory], stdout=subprocess.PIPE, text=True)
    with ended(holder):
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        said = f"run: expected .* nobody writes to, `ntkcollapse compare`, process {holder.pid} on .* wait for it"
        with pytest.raises(RunInUse, match=said), directory.locked("train"):
            pass
        holder.kill()
    with directory.locked("train"):
        pass
    assert (directory.path / ".lock").read_text() == ""


def test_a_lock_that_its_holder_removed_is_taken_anew(tmp_path, monkeypatch):
    """Between the opening of the file and its lock, the process that had made it goes, and the file with it."""
    directory, flock, calls = RunDirectory(tmp_path), fcntl.flock, []

    def removed_meanwhile(handle, operation):
        if not calls:
            (tmp_path / ".lock").unlink()
        calls.append(operation)
        return flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with directory.locked("train"):
        assert len(calls) == 2
        with pytest.raises(RunInUse), RunDirectory(tmp_path).locked("train"):
            pass


def test_a_file_system_without_locks_is_named(directory, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(OSError, match=r"\.lock: could not be locked .*No locks"), directory.locked("train"):
        pass


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
        RunDirectory(tmp_path / "run").locked("train"),
    ):
        pass
