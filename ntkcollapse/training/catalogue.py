"""The measurements of a run."""

from collections.abc import Mapping

from ntkcollapse._checks import check_choice
from ntkcollapse.choices import MEASUREMENTS
from ntkcollapse.training.measurements import Measurement


def chosen(names: tuple[str, ...], extra: Mapping[str, Measurement] | None = None) -> dict[str, Measurement]:
    """The measurements of these names, in the order of `MEASUREMENTS`, and then the user's own.

    A measurement of one's own may take a name of the catalogue: it is made in place of that one.

    Raises:
        ValueError: an unknown name.
    """
    for name in names:
        check_choice("measure", name, MEASUREMENTS)
    return {name: MEASUREMENTS[name] for name in MEASUREMENTS if name in names} | dict(extra or {})
