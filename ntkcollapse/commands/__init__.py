"""One sub-command a file, each one function of its settings, which stand in `settings.py`.

A command is added by its settings and one line in `COMMANDS`.
"""

from collections.abc import Callable
from typing import NamedTuple

from ntkcollapse.choices import imported
from ntkcollapse.commands import settings


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
