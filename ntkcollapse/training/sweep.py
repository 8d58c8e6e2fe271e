"""Many runs from one table of settings: each resumable, none stopping the others."""

import csv
import dataclasses
import itertools
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntkcollapse._checks import check_choice
from ntkcollapse.training.config import TrainConfig
from ntkcollapse.training.errors import Interrupted, NonFiniteLoss, RunInUse
from ntkcollapse.training.run import train
from ntkcollapse.training.run_files import check_settings, read_status, saved_config
from ntkcollapse.trajectory import Trajectory

# Setting → values to take.
Grid = Mapping[str, Sequence[Any] | np.ndarray]

# What the table of a sweep shows of each run, at its last measurement.
SUMMARY = (
    "train_loss",
    "train_accuracy",
    "test_accuracy",
    "nc1_seleznova2023",
    "nc2_seleznova2023",
    "nc3_seleznova2023",
    "kappa_alignment",
    "gamma_alignment",
    "invariant_norm",
    "invariant_alignment",
)


def sweep(
    base: TrainConfig,
    grid: Grid,
    out: str | os.PathLike,
    *,
    executor: str = "local",
    executor_options: Mapping[str, Any] | None = None,
    progress: bool = False,
    on_run: Callable[[str, str], None] | None = None,
) -> list[dict[str, Any]]:
    """Trains every combination of the grid; what is finished already stays, what was begun goes on.

    Each run has a directory below `out` named by what varies. A run that diverges is recorded as diverged, one that
    fails as failed with its error; the others go on. `summary.csv` holds a row for each.

    Args:
        base: settings that all runs share.
        grid: setting → values to take.
        out: of all runs.
        executor: "local", one after the other in this process; or "submitit", one job each on a Slurm cluster (needs
            the package submitit; jobs that it stops in time are saved, put back, and resume).
        executor_options: parameters of submitit's executor (`slurm_partition`, `timeout_min`, ...); `cluster="local"`:
            processes on this machine.
        progress: bars.
        on_run: called with name and outcome after each run.
    Returns:
        The rows of the summary.
    Raises:
        ValueError: a grid that names no settings, unknown ones, or values out of range; or a run below `out` that was
            made with other settings; before anything runs.
        Interrupted: SIGINT or SIGTERM came; the run that was on is in its checkpoint.
    """
    configs = combinations(base, grid)
    check_choice("executor", executor, ("local", "submitit"))
    out = Path(out)
    for name, config in configs.items():
        check_settings(config, out / name)
    out.mkdir(parents=True, exist_ok=True)
    if executor == "submitit":
        _submit(configs, out, dict(executor_options or {}))
    else:
        for name, config in configs.items():
            outcome = run_one(config, out / name, progress=progress)
            if on_run is not None:
                on_run(name, outcome)
            summarise(configs, grid, out)
    return summarise(configs, grid, out)


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


def run_one(config: TrainConfig, path: Path, *, progress: bool = False) -> str:
    """Starts or resumes one run unless it has ended; returns how it ended, also where that is badly.

    "finished" and "diverged" are the run's own; "failed" leaves an `error.txt`; "in use": another process trains it.

    Raises:
        ValueError: the run there is of other settings, see `check_settings`.
        Interrupted: SIGINT or SIGTERM came.
    """
    check_settings(config, path)
    ended = read_status(path).get("outcome")
    if ended == "diverged" or (ended == "finished" and saved_config(path).epochs == config.epochs):
        return ended
    (path / "error.txt").unlink(missing_ok=True)
    try:
        train(config, path, resume=True, progress=progress)
    except NonFiniteLoss:
        return "diverged"
    except RunInUse:
        return "in use"
    except Interrupted:
        raise
    # Whatever one run fails of, the others are not to blame.
    except Exception as error:
        path.mkdir(parents=True, exist_ok=True)
        (path / "error.txt").write_text(f"{type(error).__name__}: {error}\n")
        return "failed"
    return "finished"


def summarise(configs: Mapping[str, TrainConfig], grid: Grid, out: Path) -> list[dict[str, Any]]:
    """One row a run: what varies, how it ended, and its last measurement; also written to `summary.csv`."""
    rows = []
    for name, config in configs.items():
        status = read_status(out / name)
        row: dict[str, Any] = {key: getattr(config, key) for key in grid}
        row["outcome"] = "failed" if (out / name / "error.txt").exists() else status.get("outcome", "not started")
        row["step"] = status.get("step", 0)
        if (out / name / "trajectory.nc").exists():
            seen = Trajectory.load(out / name).observables
            row |= {key: float(np.asarray(seen[key])[-1]) for key in SUMMARY if key in seen}
        rows.append(row)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (out / "summary.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return rows


@dataclasses.dataclass(frozen=True)
class _Job:
    """One run as a job that Slurm can stop and put back; double: in the precision of the process that submits it."""

    double: bool

    def __call__(self, config: TrainConfig, path: str) -> str:
        jax.config.update("jax_enable_x64", self.double)
        try:
            return run_one(config, Path(path))
        except Interrupted as stop:
            if stop.signum in (signal.SIGINT, signal.SIGTERM):
                raise
            # The run is saved; now submitit may do what it listens to this signal for: put the job back.
            signal.raise_signal(stop.signum)
            raise

    def checkpoint(self, config: TrainConfig, path: str):
        """What submitit runs again after a timeout or preemption: the same run, resumed."""
        import submitit  # pyright: ignore[reportMissingImports]

        return submitit.helpers.DelayedSubmission(self, config, path)


def _submit(configs: Mapping[str, TrainConfig], out: Path, options: dict[str, Any]) -> None:
    try:
        import submitit  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "executor: 'submitit' needs the package of that name, which is not installed; "
            "pip install 'ntkcollapse[cluster]'."
        ) from None
    executor = submitit.AutoExecutor(folder=str(out / "jobs"), cluster=options.pop("cluster", None))
    executor.update_parameters(**options)
    job = _Job(double=bool(jax.config.read("jax_enable_x64")))
    with executor.batch():
        jobs = {name: executor.submit(job, config, str(out / name)) for name, config in configs.items()}
    while not all(job.done() for job in jobs.values()):
        time.sleep(1)
    for name, job in jobs.items():
        error = job.exception()
        # Runs say themselves how they ended; a job that never came to its run leaves its own error.
        if error is not None and "outcome" not in read_status(out / name):
            (out / name).mkdir(exist_ok=True)
            (out / name / "error.txt").write_text(f"{type(error).__name__}: {error}\n")


def _plain(value: Any) -> Any:
    """numpy's numbers as Python's, those of single precision in full; arrays and lists as tuples of them."""
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def _word(value: Any) -> str:
    text = "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text.replace("/", "-").replace(" ", "")
