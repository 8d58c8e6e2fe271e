"""Every notebook is one text file and its pair, cell by cell; running them is left to `make notebooks`."""

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
