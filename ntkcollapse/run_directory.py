"""The directory of a run: what its files are called, who may write there, and what may be replaced."""

import fcntl
import json
import os
import platform
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import tomli_w

from ntkcollapse._checks import check_path
from ntkcollapse._config import as_mapping, resolve
from ntkcollapse._files import remove_leftovers, replacing
from ntkcollapse.checkpoints import Checkpoints

Config = TypeVar("Config")

# The first line of saved settings: by it a directory is known to be ours, and by their number that none is missing.
_MARK = re.compile(r"# Settings of a run of ntkcollapse \((\d+)\)")
# What is drawn of a run, by the stem of its files.
_FIGURES = re.compile(r"training|simulation|rates|layers|test_collapse|collapse|ansatz|(ladder|attribution)_\d+")


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
        check_path("run directory", path)
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
        self._staged = self.path / ".new"

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
    def locked(self, command: str) -> Iterator[None]:
        """Holds the directory for this process; the system lets go of it however the process ends.

        The directory is made if missing; what was made here goes again where no run came of it. What a killed process
        left half written is removed.

        command: that others are told of, who want to write here meanwhile: "train".

        Raises:
            RunInUse: another process holds it; the message says which, and what it does.
            FileExistsError: the path is that of a file.
            OSError: the file system has no locks.
        """
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path}: expected a run directory, found a file; choose another directory.")
        made_path, made_lock = not self.path.exists(), not self._lock.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        with self._held() as handle:
            handle.truncate(0)
            handle.write(f"`ntkcollapse {command}`, process {os.getpid()} on {platform.node()}")
            handle.flush()
            try:
                self._remove_leftovers()
                yield
            finally:
                handle.truncate(0)
                if made_lock and not self.settings.exists():
                    self._lock.unlink(missing_ok=True)
                    if made_path and not any(self.path.iterdir()):
                        self.path.rmdir()

    @contextmanager
    def _held(self) -> Iterator[IO[str]]:
        """The locked file. Whoever held it before may have removed it since it was opened: then it is made again."""
        while True:
            with self._lock.open("a+") as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    handle.seek(0)
                    who = handle.read() or "another process"
                    raise RunInUse(
                        f"{self.path}: expected a run directory that nobody writes to, {who} is at work in it; wait "
                        "for it, stop it, or name another directory."
                    ) from error
                except OSError as error:
                    raise OSError(
                        f"{self._lock}: could not be locked ({error}), so that two processes could write to one run; "
                        "choose a directory on a file system with locks."
                    ) from error
                if self._lock.exists() and os.path.samestat(os.fstat(handle.fileno()), self._lock.stat()):
                    yield handle
                    return

    def _remove_leftovers(self) -> None:
        """Removes what killed processes left half written; figures and reports are drawn without the lock."""
        own = (self.settings, self.trajectory, self.comparison, self.status, self.error)
        remove_leftovers(self.path, "|".join(re.escape(file.name) for file in own))
        remove_leftovers(self.path, re.escape(self.report.name), idle=60)
        remove_leftovers(self.figures, rf"({_FIGURES.pattern})\.(pdf|png)", idle=60)
        for folder in (self.checkpoints, self.networks):
            Checkpoints(folder).clean()
        shutil.rmtree(self._staged, ignore_errors=True)

    def version(self, *files: Path) -> Mapping[Path, tuple[int, ...] | None]:
        """Which trajectory and comparison are there (or these files), for `check_version` after they have been read."""
        return {file: _identity(file) for file in files or (self.trajectory, self.comparison)}

    def check_version(self, version: Mapping[Path, tuple[int, ...] | None]) -> None:
        """Whether what was read is still what is there. Changes nothing.

        Raises:
            RunInUse: another process replaced it since: what was made of the old one would stand beside the new one.
        """
        for file, identity in version.items():
            if _identity(file) != identity:
                raise RunInUse(
                    f"{file}: expected to stay as it was read, another process has replaced it since; run the command "
                    "again when that is at its end."
                )

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
            self._remove_way()
            self.trajectory.unlink(missing_ok=True)
            self.remove_derived()
        with self.writing(self.settings):
            self._write_settings(_as_text(settings))

    def put(self, settings: Any, save: Callable[[Path], Any], *, keep_derived: bool = False) -> None:
        """Puts a whole run, trajectory and settings, in the place of what is there, as `begin` for one on its way.

        The trajectory is written beside the old one first. A process that is killed in between leaves the old run, the
        new one, or a trajectory without settings: never the settings of one beside the trajectory of another.

        Args:
            settings: what the run was made with, or the text of their file; none where None.
            save: writes the trajectory into the directory that it is given, as `Trajectory.save` does.
            keep_derived: of the same run as before: what was made of it stays.
        Raises:
            OSError: it could not be written; the old run is untouched, or has lost its settings.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._staged, ignore_errors=True)
        try:
            with self.writing(self.trajectory, "Free some space and run the command again."):
                save(self._staged)
            self.settings.unlink(missing_ok=True)
            os.replace(self._staged / self.trajectory.name, self.trajectory)
        finally:
            shutil.rmtree(self._staged, ignore_errors=True)
        self._remove_way()
        if not keep_derived:
            self.remove_derived()
        if settings is not None:
            with self.writing(self.settings, "Free some space and run the command again."):
                self._write_settings(settings if isinstance(settings, str) else _as_text(settings))

    def _write_settings(self, text: str) -> None:
        with replacing(self.settings) as part:
            part.write_text(text, encoding="utf-8")

    def _remove_way(self) -> None:
        """Removes what a run leaves on its way."""
        for folder in (self.checkpoints, self.networks):
            Checkpoints(folder).remove()
        for file in (self.status, self.error):
            file.unlink(missing_ok=True)

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
    def writing(
        self,
        file: Path,
        remedy: str = "The run can be resumed from its checkpoints: free some space and resume.",
    ) -> Iterator[None]:
        """Names the file that could not be written, and what to do: of a full disk, the system says neither."""
        try:
            yield
        except OSError as error:
            raise OSError(f"{file}: could not be written ({error}). {remedy}") from error


def _identity(file: Path) -> tuple[int, ...] | None:
    """What changes when a file is replaced; None where there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


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


def _as_text(settings: Any) -> str:
    # Whether to replace a run is said anew each time, not remembered with its settings.
    values = {name: value for name, value in as_mapping(settings).items() if name != "overwrite"}
    return f"# Settings of a run of ntkcollapse ({len(values)})\n{tomli_w.dumps(values)}"


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
