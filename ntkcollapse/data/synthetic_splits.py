"""Synthetic sets by name: training and test part cut from one draw."""

from collections.abc import Mapping
from typing import Any

from ntkcollapse._checks import check_choice, check_positive
from ntkcollapse._options import check_options
from ntkcollapse.choices import SYNTHETIC
from ntkcollapse.classes import Classes
from ntkcollapse.data.dataset import Dataset, Splits
from ntkcollapse.data.synthetic import gaussian_mixture, orthogonal_inputs


def mixture(
    each: int, seed: int, *, classes: int = 10, dimension: int = 64, separation: float = 4.0, noise: float = 1.0
) -> Dataset:
    """`gaussian_mixture` of classes of `each` samples."""
    return gaussian_mixture(Classes.balanced(classes, each), dimension, separation=separation, noise=noise, seed=seed)


def orthogonal(each: int, seed: int, *, classes: int = 10, dimension: int | None = None) -> Dataset:
    """`orthogonal_inputs` of classes of `each` samples."""
    if dimension is not None and dimension < classes * each:
        raise ValueError(
            f"dimension (option of orthogonal): expected at least the {classes * each} samples of training and test "
            f"part together, got {dimension}; lower per_class or test_per_class."
        )
    return orthogonal_inputs(Classes.balanced(classes, each), dimension=dimension, seed=seed)


_TAKEN = ("each", "seed")


def synthetic_splits(
    name: str,
    *,
    per_class: int | None = None,
    test_per_class: int | None = None,
    seed: int,
    options: Mapping[str, Any] | None = None,
) -> Splits:
    """Training and test part of one draw: two would have means of their own, or inputs that are not orthogonal.

    | name | options, with what they are where left out |
    |---|---|
    | "gaussian-mixture" | classes=10, dimension=64, separation=4, noise=1; see `gaussian_mixture` |
    | "orthogonal" | classes=10, dimension: all samples of both parts together; see `orthogonal_inputs` |

    Test inputs are orthogonal to the training inputs too, so that nothing can be learnt about them.

    Args:
        name: see above.
        per_class: m of the training part; 100 where None.
        test_per_class: m of the test part; 100 where None.
        seed: of the draw.
        options: by name.
    Raises:
        ValueError: an unknown name or option, fewer than two classes, or a value out of range.
    """
    checked = check_synthetic(name, options or {})
    m, test = (100 if size is None else size for size in (per_class, test_per_class))
    check_positive("per_class, test_per_class", (m, test))
    whole = SYNTHETIC[name](m + test, seed, **checked)
    C = whole.classes.num_classes
    rows = whole.inputs.reshape(C, m + test, -1)
    train, test_part = (
        Dataset(part.reshape(-1, rows.shape[-1]), Classes.balanced(C, part.shape[1]), f"{whole.name}/{which}")
        for which, part in (("train", rows[:, :m]), ("test", rows[:, m:]))
    )
    return Splits(train, test_part)


def check_synthetic(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a synthetic set in their types, checked as far as they are without the sizes of the parts."""
    check_choice("name", name, SYNTHETIC)
    checked = check_options(name, SYNTHETIC[name], options, taken=_TAKEN)
    if checked.get("classes", 2) < 2:
        raise ValueError(f"classes (option of {name}): expected at least 2, got {checked['classes']}.")
    for option in ("dimension", "separation"):
        if checked.get(option) is not None:
            check_positive(f"{option} (option of {name})", checked[option])
    check_positive(f"noise (option of {name})", checked.get("noise", 0.0), zero=True)
    return checked
