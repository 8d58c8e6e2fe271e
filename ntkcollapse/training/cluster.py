"""Runs of a sweep as jobs of a Slurm cluster."""

import dataclasses
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from ntkcollapse.training.config import TrainConfig
from ntkcollapse.training.errors import Interrupted
from ntkcollapse.training.measurements import Measurement
from ntkcollapse.training.sweep_run import failed, how_ended, run_one, unreadable


@dataclasses.dataclass(frozen=True)
class _Job:
    """One run as a job that Slurm can stop and put back; double: in the precision of the process that submits it."""

    double: bool
    measurements: Mapping[str, Measurement] | None

    def __call__(self, config: TrainConfig, path: str) -> str:
        jax.config.update("jax_enable_x64", self.double)
        try:
            return run_one(config, Path(path), measurements=self.measurements)
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


def submit(
    configs: Mapping[str, TrainConfig],
    out: Path,
    options: dict[str, Any],
    measurements: Mapping[str, Measurement] | None,
    ended: Callable[[str, str], None],
) -> None:
    """Sends every run that has something left to do as a job of its own, and waits for all; `ended` hears of each.

    Raises:
        ValueError: submitit is not installed, or measurements that cannot be pickled.
    """
    try:
        import cloudpickle  # pyright: ignore[reportMissingImports]
        import submitit  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "executor: 'submitit' needs the package of that name, which is not installed; "
            "pip install 'ntkcollapse[cluster]'."
        ) from None
    job = _Job(double=bool(jax.config.read("jax_enable_x64")), measurements=measurements)
    try:
        cloudpickle.dumps(job)
    except Exception as error:
        raise ValueError(
            f"measurements: expected such as can be pickled, to be sent to jobs ({type(error).__name__}: {error}); "
            "take executor='local'."
        ) from error
    executor = submitit.AutoExecutor(folder=str(out / "jobs"), cluster=options.pop("cluster", None))
    executor.update_parameters(**options)
    todo = []
    for name, config in configs.items():
        if unreadable(out / name) is not None or how_ended(config, out / name) is not None:
            ended(name, run_one(config, out / name))
        else:
            todo.append(name)
    if not todo:
        return
    with executor.batch():
        waiting = {name: executor.submit(job, configs[name], str(out / name)) for name in todo}
    while waiting:
        for name in [name for name, sent in waiting.items() if sent.done()]:
            error = waiting[name].exception()
            # Runs say themselves how they ended; of a job that was killed, or never came to its run, nothing does.
            if error is None:
                ended(name, waiting[name].result())
            else:
                ended(name, how_ended(configs[name], out / name) or failed(out / name, error))
            del waiting[name]
        if waiting:
            time.sleep(1)
