"""Every notebook is one text file and its pair, cell by cell; running them is left to `make notebooks`."""

import importlib.util
import re
import subprocess
from pathlib import Path

import jupytext
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
TEXTS = sorted(NOTEBOOKS.glob("*.py"))


def cells(path: Path) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source.strip()) for cell in jupytext.read(path).cells]


def test_there_are_notebooks_and_every_one_has_its_pair():
    assert TEXTS
    assert {path.stem for path in TEXTS} == {path.stem for path in NOTEBOOKS.glob("*.ipynb")}


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_pairs_are_in_sync(text):
    assert cells(text) == cells(text.with_suffix(".ipynb")), f"run: jupytext --sync {text.name}"


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_notebooks_define_no_function_that_others_would_need(text):
    assert not [line for line in text.read_text().splitlines() if line.startswith(("def ", "class "))]


NUMBERED = [text for text in TEXTS if text.stem[0].isdigit()]


@pytest.mark.parametrize("missing", [False, True], ids=["installed", "missing"])
@pytest.mark.parametrize("text", NUMBERED, ids=lambda path: path.stem)
def test_numbered_notebooks_begin_with_a_cell_that_installs_what_is_missing(text, missing, monkeypatch):
    first = next(cell.source for cell in jupytext.read(text).cells if cell.cell_type == "code")
    calls = []
    monkeypatch.setattr(subprocess, "check_call", calls.append)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if missing else name)
    exec(first, {})
    assert bool(calls) == missing
    assert not missing or calls[0][-1] == "ntkcollapse"


def test_readme_names_every_notebook():
    text = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\((\w+)\.ipynb\)", text)) == sorted(path.stem for path in TEXTS)
