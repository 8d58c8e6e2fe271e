"""The directory of a run: what its files are called, who may write there, and what may be replaced."""

import fcntl
import json
import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from ntkcollapse._config import as_mapping, resolve
from ntkcollapse._files import remove_leftovers, replacing
from ntkcollapse.checkpoints import Checkpoints

Config = TypeVar("Config")

# The first line of saved settings: by it a directory is known to be ours, and by their number that none is missing.
_MARK = re.compile(r"# Settings of a run of ntkcollapse \((\d+)\)")
# What is drawn of a run, by the stem of its files.
_FIGURES = re.compile(r"training|simulation|rates|layers|test_collapse|ansatz|(ladder|attribution)_\d+")


class RunInUse(RuntimeError):
    """Another process writes into this run directory."""


class RunDirectory:
    """A run directory: the one place that knows its files by name.

    Attributes:
        path: the directory, which need not exist.
        settings: what the run was started with, TOML that ``--config`` reads.
        trajectory: `Trajectory.save`; comparison: `save_ladders`; both netCDF.
        report: one page of HTML.
        status: how far the run has come, JSON. error: why it failed, text, written by sweeps.
        checkpoints: to go on from. networks: kept for comparing. figures: drawn of it. All three are folders.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.settings = self.path / "config.toml"
        self.trajectory = self.path / "trajectory.nc"
        self.comparison = self.path / "comparison.nc"
        self.report = self.path / "report.html"
        self.status = self.path / "status.json"
        self.error = self.path / "error.txt"
        self.checkpoints = self.path / "checkpoints"
        self.networks = self.path / "networks"
        self.figures = self.path / "figures"
        self._lock = self.path / ".lock"

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def figure(self, name: str) -> Path:
        """Where the figure of this name goes, without a suffix.

        Raises:
            ValueError: a name that `remove_derived` would not know again.
        """
        if not _FIGURES.fullmatch(name):
            raise ValueError(f"name: expected a figure that matches {_FIGURES.pattern}, got {name!r}.")
        return self.figures / name

    # ---- what is there

    @property
    def is_used(self) -> bool:
        """Whether anything is there, hidden files apart."""
        return self.path.exists() and (
            not self.path.is_dir() or any(not file.name.startswith(".") for file in self.path.iterdir())
        )

    @property
    def is_ours(self) -> bool:
        """Whether a run of this package is there, known by what its files say, not by their names."""
        try:
            if _MARK.match(self.settings.read_text(encoding="utf-8", errors="replace")):
                return True
        except OSError:
            pass
        # Earlier versions wrote settings without a mark.
        return {"outcome", "step", "steps"} <= self.read_status().keys() or _is_trajectory(self.trajectory)

    def owns(self, file: str | os.PathLike) -> bool:
        """Whether a path is that of what the run itself consists of: all but its report and figures."""
        file = Path(file).resolve()
        alone = (self.settings, self.trajectory, self.comparison, self.status, self.error, self._lock)
        folders = (self.checkpoints, self.networks)
        return file in [own.resolve() for own in alone] or file.parent in [own.resolve() for own in folders]

    # ---- who may write

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the directory for this process; the system lets go of it however the process ends.

        The directory is made if missing; what was made here goes again where no run came of it. What a killed process
        left half written is removed.

        Raises:
            RunInUse: another process holds it.
            FileExistsError: the path is that of a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path}: expected a run directory, found a file; choose another directory.")
        made_path, made_lock = not self.path.exists(), not self._lock.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        with self._lock.open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunInUse(f"{self.path}: another process is training here; wait for it or stop it.") from error
            try:
                for file in (self.settings, self.trajectory, self.comparison, self.status, self.error):
                    remove_leftovers(file)
                for folder in (self.checkpoints, self.networks):
                    Checkpoints(folder).clean()
                yield
            finally:
                if made_lock and not self.settings.exists():
                    self._lock.unlink(missing_ok=True)
                    if made_path and not any(self.path.iterdir()):
                        self.path.rmdir()

    def check(self, *, overwrite: bool = False, resume: bool = False) -> None:
        """Whether a run may start here, or go on. Changes nothing.

        Raises:
            FileExistsError: something is there, and neither resuming nor overwriting was asked for; or, to be
                overwritten, something that is no run of this package.
            ValueError: something is there to be resumed that has no settings.
        """
        if not self.is_used:
            return
        if resume:
            if not self.settings.exists():
                raise ValueError(
                    f"{self.path}: expected a run directory with {self.settings.name} to resume, found none in it."
                )
        elif not overwrite:
            raise FileExistsError(
                f"{self.path}: expected a new or empty run directory, found one in use; choose another --out, or "
                "pass --overwrite (overwrite=True) to replace what is there; training can be resumed in it."
            )
        elif not self.is_ours:
            raise FileExistsError(f"{self.path}: expected a run to overwrite, found other files; choose another --out.")

    def begin(self, settings: Any, *, resume: bool = False) -> None:
        """Writes the settings; what an earlier run left goes first, and what was made of it, unless that is resumed.

        Files that this package did not make stay. To be called after `check`, when there is something to put in the
        place of what goes.

        Raises:
            OSError: they could not be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if not resume:
            for folder in (self.checkpoints, self.networks):
                Checkpoints(folder).remove()
            for file in (self.trajectory, self.status, self.error):
                file.unlink(missing_ok=True)
            self.remove_derived()
        # Whether to replace a run is said anew each time, not remembered with its settings.
        values = {name: value for name, value in as_mapping(settings).items() if name != "overwrite"}
        with self.writing(self.settings), replacing(self.settings) as part:
            part.write_text(f"# Settings of a run of ntkcollapse ({len(values)})\n{tomli_w.dumps(values)}")

    def remove_derived(self) -> None:
        """Removes what was made from the run: comparison, report, figures."""
        for file in (self.comparison, self.report):
            file.unlink(missing_ok=True)
        self.remove_figures()

    def remove_figures(self, *kinds: str) -> None:
        """Removes the figures that were drawn of the run, those of some kinds ("ladder": from every start) or all."""
        for file in (file for suffix in ("png", "pdf") for file in self.figures.glob(f"*.{suffix}")):
            if _FIGURES.fullmatch(file.stem) and (not kinds or file.stem.split("_")[0] in kinds):
                file.unlink(missing_ok=True)

    # ---- what the files say

    def read_settings(self, kind: type[Config]) -> Config:
        """The settings that the run was started with.

        Raises:
            ValueError: none there; an empty file, or one that was cut, whose missing settings are not the defaults; or
                settings that `kind` does not have.
        """
        if not self.settings.exists():
            raise ValueError(f"{self.path}: expected a run directory with {self.settings.name}, found none.")
        text = self.settings.read_text(encoding="utf-8", errors="replace")
        mark = _MARK.match(text)
        try:
            number = len(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(
                f"{self.settings}: expected a TOML file with the settings of a run, this is not one: {error}; put "
                "them back."
            ) from error
        if not number:
            raise ValueError(f"{self.settings}: expected the settings of a run, found an empty file; put them back.")
        if mark and (number < int(mark[1]) or not text.endswith("\n")):
            raise ValueError(
                f"{self.settings}: expected the {mark[1]} settings that were written, found {number}; the file was "
                "cut or changed: put it back."
            )
        return resolve(kind, {"config": str(self.settings)})

    def write_status(self, **status: Any) -> None:
        """Replaces the status: outcome ("running", "finished", "diverged", "interrupted", "failed"), step, and more.

        Raises:
            OSError: it could not be written, see `writing`.
        """
        with self.writing(self.status), replacing(self.status, "part") as part:
            part.write_text(json.dumps(status, indent=1))

    def read_status(self) -> dict[str, Any]:
        """What the status says; {} where there is none, or a damaged one: how far a run came is in its checkpoints."""
        try:
            status = json.loads(self.status.read_text())
        except (OSError, ValueError):
            return {}
        return status if isinstance(status, dict) else {}

    @contextmanager
    def writing(self, file: Path) -> Iterator[None]:
        """Names the file that could not be written, and what to do: of a full disk, the system says neither."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{file}: could not be written ({error}). The run can be resumed from its checkpoints: free some "
                "space and resume."
            ) from error


def check_not_owned(argument: str, file: str | os.PathLike) -> None:
    """Refuses to have a file of a run replaced by something else.

    Raises:
        ValueError: a run of this package keeps it; `argument` is what the path was given as.
    """
    for folder in list(Path(file).resolve().parents)[:2]:
        directory = RunDirectory(folder)
        if directory.owns(file) and directory.is_ours:
            raise ValueError(
                f"{argument}: expected a file that is not the run's own, got {file}, which the run in {folder} "
                "consists of; choose another name."
            )


def _is_trajectory(file: Path) -> bool:
    """Whether `Trajectory.save` wrote a file: others call theirs so too."""
    if not file.is_file():
        return False
    import h5py

    try:
        with h5py.File(file) as content:
            return "class_sizes" in content and {"settings", "versions", "kernel"} <= content.attrs.keys()
    # What the library says of damaged files is of any type.
    except Exception:
        return False
