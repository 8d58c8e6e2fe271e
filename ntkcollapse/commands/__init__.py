"""One sub-command a file, each one function of its settings, which stand in `settings.py`.

A command is added by its settings and one line in `COMMANDS`. The tables that commands print are at hand for
experiments, each with `to_latex` and `to_csv`: `Table` with `number`, `percent` and `with_error`, those of the ladder,
`rates_table`, `simulation_table`, `training_table`, `overview_table` and `sweep_table`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ntkcollapse._lazy import import_on_use
from ntkcollapse.choices import imported
from ntkcollapse.commands import settings

if TYPE_CHECKING:
    from ntkcollapse._table import Table, number, percent, with_error
    from ntkcollapse.commands._ladder_tables import (
        attributions,
        brief_table,
        course_table,
        horizon_table,
        ladder_tables,
        share_table,
    )
    from ntkcollapse.commands._summaries import overview_table, simulation_table
    from ntkcollapse.commands.rates import rates_table, spectrum_table
    from ntkcollapse.commands.sweep import sweep_table
    from ntkcollapse.commands.train import training_table

__all__ = [
    "COMMANDS",
    "Command",
    "Table",
    "attributions",
    "brief_table",
    "course_table",
    "horizon_table",
    "ladder_tables",
    "number",
    "overview_table",
    "percent",
    "rates_table",
    "share_table",
    "simulation_table",
    "spectrum_table",
    "sweep_table",
    "training_table",
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
