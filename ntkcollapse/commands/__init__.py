"""One sub-command a file, each one function of its settings, which stand in `settings.py`.

A command is added by its settings and one line in `COMMANDS`. The tables that commands print are at hand for
experiments: `table` with `number`, `percent` and `with_error`, and `ladder_tables`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ntkcollapse._lazy import import_on_use
from ntkcollapse.choices import imported
from ntkcollapse.commands import settings

if TYPE_CHECKING:
    from ntkcollapse._table import number, percent, table, with_error
    from ntkcollapse.commands._ladder_tables import attributions, ladder_tables

__all__ = [
    "COMMANDS",
    "Command",
    "attributions",
    "ladder_tables",
    "number",
    "percent",
    "table",
    "with_error",
]


class Command(NamedTuple):
    """A sub-command: the class of its settings, and the function of them as "module:function"."""

    settings: type
    where: str

    @property
    def description(self) -> str:
        """What it does, as `--help` says: the docstring of its settings without the first line."""
        return (self.settings.__doc__ or "").partition("\n\n")[2].strip()

    @property
    def function(self) -> Callable:
        """What runs it; imported here, so that `--help` is quick."""
        return imported(f"ntkcollapse.commands.{self.where}")


COMMANDS = {
    "simulate": Command(settings.SimulateConfig, "simulate:simulate_command"),
    "train": Command(settings.TrainCommandConfig, "train:train_command"),
    "sweep": Command(settings.SweepConfig, "sweep:sweep_command"),
    "compare": Command(settings.CompareConfig, "compare:compare_command"),
    "rates": Command(settings.RatesConfig, "rates:rates_command"),
    "report": Command(settings.ReportConfig, "report:report_command"),
}

import_on_use(__name__)
