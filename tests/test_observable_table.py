"""The table of observables: the one list of them, complete, and what the documentation says."""

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest

from ntkcollapse import Classes, LastLayer, collapse, observable_table
from ntkcollapse.observable_table import OBSERVABLES, Observable, described, group, groups, metrics, shown_in
from ntkcollapse.observables import observe

PACKAGE = Path(inspect.getfile(observable_table)).parent


def spelled_lists(file: Path) -> list[str]:
    """Places where a module spells three observables or more one after the other: in a literal, or in one string."""
    tree = ast.parse(file.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    exported = {id(n.value) for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"}
    places = []
    for node in ast.walk(tree):
        texts = []
        if isinstance(node, ast.Tuple | ast.List | ast.Set) and id(node) not in exported:
            texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            texts = node.value.split()
        if sum(text in OBSERVABLES for text in texts if isinstance(text, str)) >= 3:
            places.append(f"{file.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}")
    return places


def test_no_other_module_lists_observables():
    files = [file for file in PACKAGE.rglob("*.py") if file.name != "observable_table.py"]
    assert [place for file in files for place in spelled_lists(file)] == []


def test_names_and_functions_agree():
    assert all(name == entry.name for name, entry in OBSERVABLES.items())
    for entry in metrics():
        assert isinstance(entry.function, str | None)
        assert callable(getattr(collapse, entry.function or entry.name))
    assert set(groups("figure")) <= set(groups())
    assert len({described(name).scale for name in group("Residual parts")}) == 1


@pytest.mark.parametrize("title", groups("figure"))
def test_a_panel_has_one_scale_and_tells_its_observables_apart(title):
    entries = [described(name) for name in group(title, "figure")]
    assert len({entry.scale for entry in entries}) == 1
    assert len({entry.colour for entry in entries}) == len({entry.label for entry in entries}) == len(entries)


def test_what_has_a_price_does_not_depend_on_the_unit_of_features():
    # f = W h is the same network with h twice as long and W half as long: so must be how wrong a prediction is.
    classes, rng = Classes.balanced(3, 4), np.random.default_rng(0)
    H, W, b = rng.normal(size=(5, 12)), rng.normal(size=(3, 5)), rng.normal(size=3)
    one, other = (observe(LastLayer(H=s * H, W=W / s, b=b), classes) for s in (1.0, 2.0))
    priced = [name for name in shown_in("prices") if name in one and name.startswith("nc")]
    assert {name[:3] for name in priced} == {"nc1", "nc2", "nc3"}
    for name in priced:
        np.testing.assert_allclose(other[name], one[name], rtol=1e-10, err_msg=name)


def test_names_with_a_prefix_and_names_of_ones_own():
    weak = described("weak_nc1_tirer2022")
    assert (weak.scale, weak.source) == ("log", OBSERVABLES["nc1_tirer2022"].source)
    assert weak.meaning.endswith("test data, about the nearest training means")
    assert (
        described("layers_test_ncc_accuracy").label
        == "accuracy of nearest class mean, test data, about its own means, each layer"
    )
    assert described("train_loss") is OBSERVABLES["train_loss"]
    mine = described("my_own_number")
    assert (mine.symbol, mine.label, mine.meaning) == ("my_own_number",) * 3


def test_wrong_words_are_named():
    with pytest.raises(ValueError, match=r"place: expected one of .*Did you mean 'train'"):
        shown_in("trian")
    with pytest.raises(ValueError, match=r"group: expected one of 'Summed loss', .*Did you mean 'Loss'"):
        group("Lose")
    with pytest.raises(ValueError, match="shown of observable 'mine': expected one of"):
        Observable("mine", "m", "m", "mine", shown=("nowhere",))
    statistics = collapse.ClassStatistics.from_features(np.eye(4), np.arange(4) % 2)
    with pytest.raises(ValueError, match=r"observable 'mine': expected a function 'mine' that ntkcollapse\.collapse"):
        collapse.evaluate([Observable("mine", "m", "m", "mine", of=("statistics",))], statistics)


def test_the_documented_table_is_this_one():
    written = (PACKAGE.parent / "docs" / "observables.md").read_text()
    assert written == observable_table.as_markdown(), "python -m ntkcollapse.observable_table > docs/observables.md"
