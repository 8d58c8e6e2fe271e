"""The directory of a training run: who is in it, and what it says of itself."""

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ntkcollapse._config import resolve, write_config
from ntkcollapse.training.config import TrainConfig
from ntkcollapse.training.errors import RunInUse

# What may differ on resuming: how far, and what the run does not depend on.
FREE = ("epochs", "checkpoint_seconds", "data_path", "download", "ntk_engine")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a run directory for this process; the system lets go of it however the process ends.

    Raises:
        RunInUse: another process holds it.
    """
    with (path / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunInUse(f"{path}: another process is training here; wait for it or stop it.") from error
        yield


def open_run(config: TrainConfig, out: str | os.PathLike, *, resume: bool, overwrite: bool) -> Path:
    """The directory with its `config.toml`, new or, to resume, checked against what it was started with.

    Raises:
        FileExistsError: something is there, and neither resuming nor overwriting was asked for.
        ValueError: the run there was started with other settings; the first that differs is named.
    """
    path = Path(out)
    file = path / "config.toml"
    if resume and file.exists():
        there = saved_config(path)
        for field in dataclasses.fields(TrainConfig):
            old, new = getattr(there, field.name), getattr(config, field.name)
            if old != new and field.name not in FREE:
                raise ValueError(
                    f"{field.name}: expected {old!r} as the run in {path} was started with, got {new!r}; "
                    "resume with the same settings, or start another run."
                )
        write_config(config, path)
        return path
    if resume and path.exists() and any(p for p in path.iterdir() if p.name != ".lock"):
        raise ValueError(f"{path}: expected a run directory with config.toml to resume, found none in it.")
    if not resume and not overwrite and path.exists() and any(path.iterdir()):
        raise FileExistsError(
            f"{path}: expected a new or empty run directory, found one in use; choose another, resume the run in it, "
            "or ask for it to be overwritten."
        )
    path.mkdir(parents=True, exist_ok=True)
    write_config(config, path)
    return path


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
    """Replaces `status.json`: outcome ("running", "finished", "diverged", "interrupted"), step, and more."""
    temporary = path / ".status.json"
    temporary.write_text(json.dumps(status, indent=1))
    os.replace(temporary, path / "status.json")


def read_status(path: str | os.PathLike) -> dict[str, Any]:
    """What `status.json` says; {} where there is none."""
    file = Path(path) / "status.json"
    return json.loads(file.read_text()) if file.exists() else {}
