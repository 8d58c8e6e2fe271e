"""Every entry of the table of statements names a function, a test and a figure that exist, and the document is it."""

import ast
import functools
from pathlib import Path

import pytest

from ntkcollapse import statements
from ntkcollapse.observable_table import metrics
from ntkcollapse.statements import SOURCES, Shown, shown
from ntkcollapse.theory import STATEMENTS
from ntkcollapse.theory.models import MODELS
from tests.named import find

ROOT = Path(__file__).parents[1]


@functools.cache
def defined_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def nothing_named(entry: Shown) -> list[str]:
    """What of an entry does not exist."""
    faults = []
    try:
        faults += [] if callable(find(entry.function)) else [f"{entry.function} is no function"]
    except (AttributeError, ModuleNotFoundError):
        faults.append(f"no function {entry.function}")
    file, _, name = entry.test.partition("::")
    if not (file and (ROOT / file).is_file() and name in defined_in(file)):
        faults.append(f"no test {entry.test!r}")
    if entry.figure and not (ROOT / entry.figure).is_file():
        faults.append(f"no figure {entry.figure}")
    if entry.source not in SOURCES:
        faults.append(f"no source {entry.source}")
    return faults


def test_every_entry_names_what_there_is():
    assert {f"{entry.what}: {fault}" for entry in shown() for fault in nothing_named(entry)} == set()


def test_an_entry_that_names_nothing_is_found():
    good = Shown(
        SOURCES[0], "", "", "ntkcollapse.simulate", "tests/test_shown_by.py::test_every_entry_names_what_there_is"
    )
    assert nothing_named(good) == []
    for change in (
        {"function": "ntkcollapse.simulated"},
        {"function": "ntkcollapse.theory.models.homogeneous.weight"},
        {"function": "ntkcollapse.statements.SOURCES"},
        {"test": "tests/test_shown_by.py::find"},
        {"test": "tests/none.py::test_none"},
        {"test": ""},
        {"figure": "docs/figures/none.png"},
        {"source": "another"},
    ):
        assert len(nothing_named(good._replace(**change))) == 1, change


def test_the_registries_are_in_it_whole():
    functions = [entry.function for entry in shown()]
    assert {statement.function for statement in STATEMENTS} <= set(functions)
    assert {f"ntkcollapse.theory.models.{name}" for name in MODELS} <= set(functions)
    metric = [f for f in functions if f.startswith("ntkcollapse.collapse.")]
    for entry in metrics():
        assert f"ntkcollapse.collapse.{entry.function or entry.name}" in metric
    assert {entry.source for entry in shown()} == set(SOURCES)


@pytest.mark.parametrize("entry", [e for e in shown() if e.figure.endswith(".ipynb")], ids=lambda e: e.function)
def test_notebooks_name_what_they_show(entry):
    assert entry.function.rsplit(".", 1)[1] in (ROOT / entry.figure).read_text()


def test_the_document_is_the_table():
    page = ROOT / "docs" / "statements.md"
    assert page.read_text() == statements.as_markdown(), "python -m ntkcollapse.statements > docs/statements.md"
