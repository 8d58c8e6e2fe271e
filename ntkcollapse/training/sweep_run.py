"""One run of a sweep: started or resumed, and how it ended by what its directory holds."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ntkcollapse._files import replacing
from ntkcollapse.observable_table import shown_in
from ntkcollapse.run_directory import RunDirectory, RunInUse
from ntkcollapse.training.config import TrainConfig
from ntkcollapse.training.errors import Interrupted, NonFiniteLoss
from ntkcollapse.training.measurements import Measurement
from ntkcollapse.training.run import train
from ntkcollapse.training.saved_runs import check_settings
from ntkcollapse.trajectory import Trajectory


def run_one(
    config: TrainConfig,
    path: Path,
    *,
    measurements: Mapping[str, Measurement] | None = None,
    progress: bool = False,
) -> str:
    """Starts or resumes one run unless it has ended; returns how it ended, also where that is badly.

    "finished" and "diverged" are the run's own; "failed" leaves its error, also where the run has ended and its
    files are damaged, which stay as they are; "in use": another process trains it.

    Raises:
        ValueError: the run there is of other settings, see `check_settings`.
        Interrupted: SIGINT or SIGTERM came.
        OSError: the error could not be written.
    """
    damage = unreadable(path)
    if damage is not None:
        return failed(path, damage)
    check_settings(config, RunDirectory(path))
    ended = how_ended(config, path)
    if ended is not None:
        try:
            last_measured(path)
        except ValueError as error:
            return failed(path, error)
    RunDirectory(path).error.unlink(missing_ok=True)
    if ended is not None:
        return ended
    try:
        train(config, path, resume=True, measurements=measurements, progress=progress)
    except NonFiniteLoss:
        return "diverged"
    except RunInUse:
        return "in use"
    except Interrupted:
        raise
    # Whatever one run fails of, the others are not to blame.
    except Exception as error:
        return failed(path, error)
    return "finished"


def last_measured(path: Path) -> dict[str, float]:
    """What the summary shows of the last measurement; {} where there is none yet.

    Raises:
        ValueError: a damaged file.
    """
    file = RunDirectory(path).trajectory
    if not file.exists():
        return {}
    try:
        seen = Trajectory.load(file).observables
        return {key: float(np.asarray(seen[key])[-1]) for key in shown_in("summary") if key in seen}
    # Damage comes as errors of any type from the libraries that read the file.
    except Exception as error:
        raise ValueError(
            f"{file}: damaged ({type(error).__name__}: {error}); move it away and start the sweep again: it is "
            "written anew from the last checkpoint."
        ) from error


def unreadable(path: Path) -> Exception | None:
    """What is wrong with the settings of the run in a directory; None also where there is no run."""
    directory = RunDirectory(path)
    if not directory.settings.exists():
        return None
    try:
        directory.read_settings(TrainConfig)
    except (ValueError, OSError) as error:
        return error
    return None


def how_ended(config: TrainConfig, path: Path) -> str | None:
    """How the run in a directory ended; None where there is something left to do for these settings."""
    directory = RunDirectory(path)
    outcome = directory.read_status().get("outcome")
    if outcome == "finished" and directory.trajectory.exists():
        return outcome if directory.read_settings(TrainConfig).epochs == config.epochs else None
    return outcome if outcome == "diverged" else None


def failed(path: Path, error: Exception) -> str:
    """Writes the error, and returns "failed".

    Raises:
        OSError: it could not be written.
    """
    said, file = f"{type(error).__name__}: {error}", RunDirectory(path).error
    try:
        path.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            part.write_text(f"{said}\n")
    except OSError as full:
        raise OSError(
            f"{file}: could not be written ({full}), nor could the run go on ({said}); free some space "
            "and start the sweep again."
        ) from error
    return "failed"
