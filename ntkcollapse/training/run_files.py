"""The directory of a training run: who is in it, and what it says of itself."""

import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ntkcollapse._config import holds_run, remove_derived, resolve, write_config
from ntkcollapse._files import replacing
from ntkcollapse.training.config import TrainConfig
from ntkcollapse.training.errors import RunInUse

# What may differ on resuming: how far, and what the run does not depend on.
FREE = ("epochs", "checkpoint_seconds", "data_path", "download", "ntk_engine")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a run directory for this process; the system lets go of it however the process ends.

    The directory is made if missing; what was made here goes again where no run came of it.

    Raises:
        RunInUse: another process holds it.
    """
    lock = path / ".lock"
    made_path, made_lock = not path.exists(), not lock.exists()
    path.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunInUse(f"{path}: another process is training here; wait for it or stop it.") from error
        try:
            yield
        finally:
            if made_lock and not (path / "config.toml").exists():
                lock.unlink(missing_ok=True)
                if made_path and not any(path.iterdir()):
                    path.rmdir()


def check_directory(config: TrainConfig, path: Path, *, resume: bool, overwrite: bool) -> None:
    """Whether a run of these settings may start in a directory, or go on there. Changes nothing.

    Raises:
        FileExistsError: something is there, and neither resuming nor overwriting was asked for; or, to be
            overwritten, something that is no run.
        ValueError: there is something else to resume, see `check_settings`.
    """
    used = path.exists() and any(not p.name.startswith(".") for p in path.iterdir())
    if resume:
        check_settings(config, path)
        if used and not (path / "config.toml").exists():
            raise ValueError(f"{path}: expected a run directory with config.toml to resume, found none in it.")
    elif used and not overwrite:
        raise FileExistsError(
            f"{path}: expected a new or empty run directory, found one in use; choose another, resume the run in it, "
            "or ask for it to be overwritten."
        )
    elif used and not holds_run(path):
        raise FileExistsError(f"{path}: expected a run to overwrite, found other files; choose another directory.")


def check_settings(config: TrainConfig, path: Path) -> None:
    """Whether the run in a directory, if there is one, can go on with these settings, or has ended with them.

    Raises:
        ValueError: it was started with other settings, the first of which is named, or has ended further on.
    """
    if not (path / "config.toml").exists():
        return
    there = saved_config(path)
    for field in dataclasses.fields(TrainConfig):
        old, new = getattr(there, field.name), getattr(config, field.name)
        if old != new and field.name not in FREE:
            raise ValueError(
                f"{field.name}: expected {old!r} as the run in {path} was started with, got {new!r}; "
                "resume with the same settings, or start another run."
            )
    if config.epochs < there.epochs and read_status(path).get("outcome") == "finished":
        raise ValueError(
            f"epochs: expected at least the {there.epochs} that the run in {path} has finished, got {config.epochs}; "
            "start another run."
        )


def occupy(config: TrainConfig, path: Path, *, resume: bool) -> None:
    """Writes `config.toml`; what an earlier run left goes first, and what was made of it, unless that is resumed."""
    if not resume:
        if (path / "checkpoints").exists():
            shutil.rmtree(path / "checkpoints")
        for name in ("trajectory.nc", "status.json"):
            (path / name).unlink(missing_ok=True)
        remove_derived(path)
    write_config(config, path)


def saved_config(path: str | os.PathLike) -> TrainConfig:
    """The settings that a run was started with.

    Raises:
        ValueError: no run there.
    """
    file = Path(path) / "config.toml"
    if not file.exists():
        raise ValueError(f"{path}: expected a run directory with config.toml, found none.")
    return resolve(TrainConfig, {"config": str(file)})


def write_status(path: Path, **status: Any) -> None:
    """Replaces `status.json`: outcome ("running", "finished", "diverged", "interrupted", "failed"), step, and more.

    Raises:
        OSError: it could not be written, see `writing`.
    """
    file = path / "status.json"
    with writing(file), replacing(file, "part") as part:
        part.write_text(json.dumps(status, indent=1))


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Names the file that could not be written, and what to do: of a full disk, the system says neither."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{file}: could not be written ({error}). The run can be resumed from its checkpoints: free some space "
            "and resume."
        ) from error


def read_status(path: str | os.PathLike) -> dict[str, Any]:
    """What `status.json` says; {} where there is none, or a damaged one: how far a run came is in its checkpoints."""
    try:
        return json.loads((Path(path) / "status.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
