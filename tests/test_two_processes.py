"""Two processes in one directory: nothing lost, nothing mixed, and a clear message for who comes second.

Of `train`, `compare` and `sweep` see their own tests.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ntkcollapse import Trajectory
from ntkcollapse.cli import main
from ntkcollapse.commands import rates, report, simulate
from ntkcollapse.run_directory import RunDirectory
from tests.processes import ended
from tests.sketches import sketched

ROOT = Path(__file__).parents[1]
TINY = ["--classes", "3", "--per-class", "4", "--features", "5", "--times", "60"]


def simulated(out: Path, *more: str) -> int:
    return main(["simulate", *TINY, "--out", str(out), *more])


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    out = tmp_path_factory.mktemp("kept") / "run"
    with sketched():
        assert simulated(out) == 0
    return out


@pytest.fixture
def run(kept, tmp_path):
    out = tmp_path / "run"
    for file in kept.rglob("*"):
        if file.is_file():
            (out / file.relative_to(kept)).parent.mkdir(parents=True, exist_ok=True)
            (out / file.relative_to(kept)).write_bytes(file.read_bytes())
    return out


def content(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}


def test_the_second_simulation_is_refused_and_changes_nothing(run, capsys):
    before = content(run)
    with RunDirectory(run).locked("simulate"):
        assert simulated(run, "--overwrite", "--seed", "1") == 1
        said = capsys.readouterr().err
        assert re.search(
            rf"expected .* nobody writes to, `ntkcollapse simulate`, process {os.getpid()} on .* wait", said
        )
    assert content(run) == before | {".lock": b""}


def test_figures_are_drawn_while_the_directory_is_held(tmp_path, monkeypatch):
    """Else one of the run before could be drawn into the next."""
    held, save = [], simulate.plots.save

    def saved(figure, path):
        with pytest.raises(RuntimeError, match="at work in it"), RunDirectory(tmp_path / "run").locked("train"):
            pass
        held.append(path)
        return save(figure, path)

    monkeypatch.setattr(simulate.plots, "save", saved)
    assert simulated(tmp_path / "run") == 0
    assert len(held) == 1


def replaced(run: Path) -> None:
    """As by another process: the same run under another seed."""
    file = RunDirectory(run).trajectory
    other = file.with_name("other.nc")
    other.write_bytes(file.read_bytes())
    other.replace(file)


@pytest.mark.parametrize(("module", "function"), [(report, "report"), (rates, "measured_rates")])
def test_what_was_read_is_still_there_when_it_is_written(run, module, function, monkeypatch, capsys):
    called = getattr(module, function)

    def meanwhile(*args, **options):
        replaced(run)
        return called(*args, **options)

    monkeypatch.setattr(module, function, meanwhile)
    before = content(run)
    assert main([module.__name__.rpartition(".")[2], str(run)]) == 1
    assert "trajectory.nc: expected to stay as it was read, another process has replaced it" in capsys.readouterr().err
    assert content(run) == before


def test_a_comparison_is_not_of_a_run_that_is_gone(run, monkeypatch, capsys):
    from ntkcollapse.commands import compare

    def loaded(path):
        recorded = Trajectory.load(path)
        replaced(path)
        return recorded

    monkeypatch.setattr(compare, "load_network_run", loaded)
    before = content(run)
    assert main(["compare", str(run)]) == 1
    assert "another process has replaced it since; run the command again" in capsys.readouterr().err
    assert content(run) == before | {".lock": b""}


@pytest.mark.parametrize("links", [True, False])
def test_the_second_of_two_reports_does_not_replace_the_first(run, links, monkeypatch, capsys):
    file, called = RunDirectory(run).report, report.report

    def meanwhile(*args, **options):
        file.write_text("the first one")
        return called(*args, **options)

    def none(*_):
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", none)
    monkeypatch.setattr(report, "report", meanwhile)
    assert main(["report", str(run)]) == 2
    assert f"{file} exists by now: name another file with --out, or pass --overwrite" in capsys.readouterr().err
    assert file.read_text() == "the first one"
    assert main(["report", str(run), "--overwrite"]) == 0
    assert file.read_text() != "the first one"
    assert not [name for name in content(run) if name.startswith(".report")]


def test_a_report_on_a_file_system_without_links(run, monkeypatch):
    def none(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    assert main(["report", str(run)]) == 0
    assert "</html>" in RunDirectory(run).report.read_text()


def started(*command: str) -> subprocess.Popen:
    arguments = [sys.executable, "-m", "ntkcollapse.cli", *command]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def both(*command: str) -> list[tuple[int, str]]:
    """How two of the same end that are started together, and what they say."""
    processes = [started(*command) for _ in range(2)]
    with ended(*processes):
        said = [process.communicate(timeout=300) for process in processes]
        return sorted((process.returncode, error) for process, (_, error) in zip(processes, said, strict=True))


def test_no_process_outlives_a_failure():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with pytest.raises(ZeroDivisionError), ended(process):
        raise ZeroDivisionError
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_two_at_once(kept, tmp_path):
    expected = Trajectory.load(kept)
    for attempt in range(3):
        out = tmp_path / str(attempt)
        (first, _), (second, said) = both("simulate", *TINY, "--out", str(out))
        assert first == 0
        # One at the same time, or one after the other.
        assert (second == 1 and "at work in it" in said) or (second == 2 and "found one in use" in said), said
        found = Trajectory.load(out)
        for name, values in expected.observables.items():
            np.testing.assert_array_equal(found[name], values)
        assert [status for status, _ in both("rates", str(out))] == [0, 0]
        (first, _), (second, said) = both("report", str(out))
        assert (first, second) == (0, 2)
        assert "exists" in said
        names = set(content(out))
        assert names == {".lock", "config.toml", "trajectory.nc", "report.html"} | {
            f"figures/{name}.{suffix}" for name in ("simulation", "rates") for suffix in ("png", "pdf")
        }
        for name, bytes_ in content(out).items():
            ending = {".png": b"IEND\xaeB`\x82", ".pdf": b"%%EOF\n", ".html": b"</html>\n"}.get(Path(name).suffix, b"")
            assert bytes_.endswith(ending), name
