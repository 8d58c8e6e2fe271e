"""`ntkcollapse sweep`: a table of training runs."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from ntkcollapse._table import Table, number
from ntkcollapse.commands._summaries import training_figures
from ntkcollapse.commands.settings import GRID
from ntkcollapse.observable_table import shown_in
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.training import Interrupted, TrainConfig, parse_options, sweep
from ntkcollapse.trajectory import Trajectory


def sweep_command(config: Any) -> None:
    """Does what `SweepConfig` says."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}
    grid = {name: values[name] for name in GRID if len(values[name]) > 1}
    if not grid:
        raise ValueError(f"sweep: expected several values for at least one of {', '.join(GRID)}; got one for each.")
    base = TrainConfig(**{name: value[0] if name in GRID else value for name, value in values.items()})

    def ended(name: str, outcome: str) -> None:
        print(f"{name}: {outcome}", file=sys.stderr)
        _draw(Path(config.out) / name, outcome)

    try:
        rows = sweep(
            base,
            grid,
            config.out,
            executor=config.executor,
            executor_options=dict(parse_options("executor_options", config.executor_options)),
            progress=sys.stderr.isatty(),
            on_run=ended,
        )
    except Interrupted as error:
        print(f"{error}\ngo on with all of them by the same command", file=sys.stderr)
        sys.exit(128 + error.signum)
    print(sweep_table(rows, list(grid)))
    print(f"\nruns    {config.out}/  (summary.csv, one directory a run)")
    if any(row["outcome"] == "failed" for row in rows):
        raise RuntimeError(
            f"some runs failed: their {RunDirectory(config.out).error.name} in {Path(config.out)} says why."
        )


def _draw(run: Path, outcome: str) -> None:
    """The figures of `ntkcollapse train`, unless they are there already."""
    made, figure = RunDirectory(run).trajectory, RunDirectory(run).figure("training").with_suffix(".png")
    if outcome not in ("finished", "diverged") or not made.exists():
        return
    if figure.exists() and figure.stat().st_mtime_ns >= made.stat().st_mtime_ns:
        return
    try:
        training_figures(Trajectory.load(run), run)
    # A figure is no reason to leave the other runs untrained.
    except Exception as error:
        print(f"{run}: figures could not be drawn ({type(error).__name__}: {error})", file=sys.stderr)


def sweep_table(rows: list[dict[str, Any]], varied: list[str]) -> Table:
    """One line a run: what varies, how it ended, and the last measurement."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    first = (*varied, "outcome", "step")
    shown = [c for c in columns if c in first]
    shown += [c for c in columns if c in shown_in("sweep") and c not in first]
    header = [c.replace("_seleznova2023", "") for c in shown]

    def cell(row: dict[str, Any], column: str) -> str:
        value = row.get(column, float("nan"))
        return number(value) if isinstance(value, float) else str(value)

    return Table(header, [[cell(row, column) for column in shown] for row in rows])
