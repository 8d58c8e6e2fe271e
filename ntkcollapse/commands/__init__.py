"""One sub-command a file: its settings as a frozen dataclass, and one function of them.

A command is added by one line in `COMMANDS`.
"""

from collections.abc import Callable
from importlib import import_module

# name → (module, settings, function). Modules are imported when their command runs: `--help` stays quick.
COMMANDS = {
    "simulate": ("simulate", "SimulateConfig", "simulate_command"),
    "train": ("train", "TrainCommandConfig", "train_command"),
    "sweep": ("sweep", "SweepConfig", "sweep_command"),
    "compare": ("compare", "CompareConfig", "compare_command"),
    "rates": ("rates", "RatesConfig", "rates_command"),
    "report": ("report", "ReportConfig", "report_command"),
}


def load(name: str) -> tuple[type, Callable]:
    """The settings and the function of a command."""
    module, settings, function = COMMANDS[name]
    found = import_module(f"ntkcollapse.commands.{module}")
    return getattr(found, settings), getattr(found, function)
