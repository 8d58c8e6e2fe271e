"""Every entry of the statement index names a function and a test that exist, and the README shows it."""

from pathlib import Path

import pytest

from ntkcollapse.theory import STATEMENTS
from tests.named import find


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda s: s.function.rsplit(".", 1)[1])
def test_function_and_test_exist(statement):
    assert callable(find(statement.function))
    assert callable(find(statement.test))
    assert statement.test.rsplit(".", 1)[1].startswith("test_")


def test_readme_shows_the_index():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for statement in STATEMENTS:
        for part in (statement.what, statement.function.rsplit(".", 1)[1], statement.test.rsplit(".", 1)[1]):
            assert part in readme, f"README's statement index lacks: {part}"
