"""Many runs from one table of settings: each resumable, none stopping the others."""

import csv
import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntkcollapse._checks import check_choice
from ntkcollapse._files import replacing
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.training.cluster import submit
from ntkcollapse.training.config import TrainConfig
from ntkcollapse.training.measurements import Measurement
from ntkcollapse.training.saved_runs import check_settings
from ntkcollapse.training.sweep_run import how_ended, last_measured, run_one, unreadable

# Setting → values to take.
Grid = Mapping[str, Sequence[Any] | np.ndarray]


def sweep(
    base: TrainConfig,
    grid: Grid,
    out: str | os.PathLike,
    *,
    executor: str = "local",
    executor_options: Mapping[str, Any] | None = None,
    measurements: Mapping[str, Measurement] | None = None,
    progress: bool = False,
    on_run: Callable[[str, str], None] | None = None,
) -> list[dict[str, Any]]:
    """Trains every combination of the grid; what is finished already stays, what was begun goes on.

    Each run has a directory below `out` named by what varies. A run that diverges is recorded as diverged; one that
    fails, is killed on a cluster, or whose files are damaged, as failed with its error; the others go on.
    `summary.csv` holds a row for each.

    Args:
        base: settings that all runs share.
        grid: setting → values to take; of `network_options` and other lists, a list of lists. Options that one of the
            networks does not have are refused: networks with options of their own are sweeps of their own.
        out: of all runs.
        executor: "local", one after the other in this process; or "submitit", one job each on a Slurm cluster (needs
            the package submitit; jobs that it stops in time are saved, put back, and resume).
        executor_options: parameters of submitit's executor (`slurm_partition`, `timeout_min`, ...); `cluster="local"`:
            processes on this machine.
        measurements: your own, see `train`; for "submitit" such as can be pickled. Runs that have ended are not
            measured again.
        progress: bars.
        on_run: called with name and outcome after each run.
    Returns:
        The rows of the summary; those of failed runs have the first line of their error.
    Raises:
        ValueError: a grid that names no settings, unknown ones, or values out of range; or a run below `out` that was
            made with other settings; before anything runs.
        Interrupted: SIGINT or SIGTERM came; the run that was on is in its checkpoint.
        OSError: the summary or the error of a run could not be written.
    """
    configs = combinations(base, grid)
    check_choice("executor", executor, ("local", "submitit"))
    out = Path(out)
    for name, config in configs.items():
        if unreadable(out / name) is None:
            check_settings(config, RunDirectory(out / name))
    out.mkdir(parents=True, exist_ok=True)
    rows = {name: _row(config, grid, out / name) for name, config in configs.items()}

    def ended(name: str, outcome: str) -> None:
        rows[name] = _row(configs[name], grid, out / name)
        _write(list(rows.values()), out)
        if on_run is not None:
            on_run(name, outcome)

    if executor == "submitit":
        submit(configs, out, dict(executor_options or {}), measurements, ended)
    else:
        for name, config in configs.items():
            ended(name, run_one(config, out / name, measurements=measurements, progress=progress))
    # Those that another process had in its hands may have ended since.
    for name, config in configs.items():
        if rows[name]["outcome"] not in ("finished", "diverged", "failed"):
            rows[name] = _row(config, grid, out / name)
    _write(list(rows.values()), out)
    return list(rows.values())


def combinations(base: TrainConfig, grid: Grid) -> dict[str, TrainConfig]:
    """The settings of every run by its name, "learning_rate=0.1,seed=1".

    Raises:
        ValueError: no values, unknown settings, values out of range, or runs of one name that differ in settings.
    """
    for key, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
            raise ValueError(f"grid: expected a list of values for {key}, got {values!r}.")
    if not grid or not all(len(values) for values in grid.values()):
        raise ValueError("grid: expected at least one setting with at least one value.")
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    for key in grid:
        check_choice("grid", key, names)
    configs = {}
    for values in itertools.product(*grid.values()):
        chosen = {key: _plain(value) for key, value in zip(grid, values, strict=True)}
        name = ",".join(f"{key}={_word(value)}" for key, value in chosen.items())
        config = dataclasses.replace(base, **chosen)
        if configs.setdefault(name, config) != config:
            raise ValueError(
                f"grid: expected values that give each run a directory of its own; {name!r} would be that of two runs, "
                "since '/' becomes '-' in it, spaces are left out and lists are joined by '+'."
            )
    return configs


def summarise(configs: Mapping[str, TrainConfig], grid: Grid, out: Path) -> list[dict[str, Any]]:
    """One row a run: what varies, how it ended, and its last measurement; also written to `summary.csv`.

    Raises:
        OSError: it could not be written; the file of before is whole.
    """
    rows = [_row(config, grid, out / name) for name, config in configs.items()]
    _write(rows, out)
    return rows


def _row(config: TrainConfig, grid: Grid, path: Path) -> dict[str, Any]:
    status, file = RunDirectory(path).read_status(), RunDirectory(path).error
    said = {"outcome": status.get("outcome", "not started"), "step": status.get("step", 0)}
    seen, error = {}, unreadable(path)
    # A run that was resumed by hand and has ended since is not failed any more.
    if error is None and file.exists() and how_ended(config, path) is None:
        error = file.read_text()
    try:
        seen = last_measured(path)
    except ValueError as damage:
        error = error or damage
    if error:
        said |= {"outcome": "failed", "error": str(error).partition("\n")[0]}
    return {key: getattr(config, key) for key in grid} | said | seen


def _write(rows: list[dict[str, Any]], out: Path) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(out / "summary.csv") as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _plain(value: Any) -> Any:
    """numpy's numbers as Python's, those of single precision in full; arrays and lists as tuples of them."""
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def _word(value: Any) -> str:
    text = "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text.replace("/", "-").replace(" ", "")
