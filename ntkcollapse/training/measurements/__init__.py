"""What a run measures on the way: functions of a `Moment`, one file a kind; `choices.MEASUREMENTS` has their names."""

from collections.abc import Mapping

from ntkcollapse._checks import check_choice
from ntkcollapse.choices import MEASUREMENTS
from ntkcollapse.training.measurements.moment import Measurement, Moment

__all__ = ["ON_PROBE", "Measurement", "Moment", "chosen"]

# The names of those that look at the probe, and may look at the current batch beside it.
ON_PROBE = ("kappa", "gamma", "last-layer")


def chosen(names: tuple[str, ...], extra: Mapping[str, Measurement] | None = None) -> dict[str, Measurement]:
    """The measurements of these names, in the order of `MEASUREMENTS`, and then the user's own.

    A measurement of one's own may take a name of the table: it is made in place of that one.

    Raises:
        ValueError: an unknown name.
    """
    for name in names:
        check_choice("measure", name, MEASUREMENTS)
    return {name: MEASUREMENTS[name] for name in MEASUREMENTS if name in names} | dict(extra or {})
