"""What a training run has measured so far: a row for each measured step, ready to be saved, resumed and assembled."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ntkcollapse.checkpoints import Checkpoint
from ntkcollapse.observable_table import OBSERVABLES, group

_PREFIX = "record/"
# Names that a run gives its own values.
_RESERVED = group("Course of training")


def checked_values(measurement: str, found: Any, taken: Iterable[str]) -> dict[str, np.ndarray]:
    """The values of a measurement by name, as arrays.

    Raises:
        ValueError: not a mapping of names to arrays, or names that are no words, or that other values have.
    """
    if not isinstance(found, Mapping):
        raise ValueError(
            f"measurement {measurement!r}: expected values by name, as in {{'norm': 1.0}}, got {type(found).__name__}."
        )
    for name in found:
        if not isinstance(name, str) or not name.isidentifier() or "__" in name:
            raise ValueError(
                f"measurement {measurement!r}: expected names of letters, digits and single underscores, got {name!r}."
            )
        if name in _RESERVED or name.startswith("state_") or name in taken:
            raise ValueError(f"measurement {measurement!r}: {name!r} is the name of another value; choose another.")
    return {name: np.asarray(value) for name, value in found.items()}


class Records:
    """Rows of values by name, the same names and shapes in each, with the seconds that steps and measurements took.

    Values that are text (what the entries of another value are called) do not change along a run: they are `names`.
    All others stand in one array a name, whose length doubles when it is full: a row costs its own numbers alone.
    """

    def __init__(self, measurements: Iterable[str]):
        self.steps: list[int] = []
        self._columns: dict[str, np.ndarray] = {}
        self.names: dict[str, list[str]] = {}
        self.seconds = {"training": 0.0, "measuring": 0.0} | {f"measuring_{name}": 0.0 for name in measurements}

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds the row of a step, or replaces it where that step was the last one.

        Raises:
            ValueError: names or shapes are not those of the first row.
        """
        row = {name: np.asarray(value) for name, value in values.items()}
        self.names |= {name: value.tolist() for name, value in row.items() if value.dtype.kind == "U"}
        row = {name: value for name, value in row.items() if value.dtype.kind != "U"}
        if self.steps[-1:] == [step]:
            self.steps.pop()
        if not self.steps:
            self._columns = {name: np.empty((1, *value.shape), value.dtype) for name, value in row.items()}
        for name in self._columns.keys() | row.keys():
            if name not in self._columns or name not in row or self._columns[name].shape[1:] != row[name].shape:
                raise ValueError(
                    f"measurement {name!r}: expected the same names and shapes at every step; it differs at step "
                    f"{step}."
                )
        count = len(self.steps)
        for name, value in row.items():
            column = self._columns[name]
            dtype = np.result_type(column, value)
            if count == len(column) or dtype != column.dtype:
                grown = np.empty((max(len(column), 2 * count), *value.shape), dtype)
                grown[:count] = column[:count]
                self._columns[name] = column = grown
            column[count] = value
        self.steps.append(step)

    def drop_from(self, step: int) -> None:
        """Forgets the rows of this step and of later ones."""
        self.steps = [known for known in self.steps if known < step]

    @property
    def newest(self) -> dict[str, Any]:
        """The last row."""
        return {name: column[len(self.steps) - 1] for name, column in self._columns.items()} if self.steps else {}

    def columns(self) -> dict[str, np.ndarray]:
        """Each value along the measured steps."""
        return {name: column[: len(self.steps)].copy() for name, column in self._columns.items()}

    def headline(self) -> dict[str, str]:
        """The newest of what a progress bar shows."""
        newest = self.newest
        shown: dict[str, str] = {}
        for name, entry in OBSERVABLES.items():
            if entry.progress and name in newest:
                shown.setdefault(entry.progress, f"{float(newest[name]):.3g}")
        return shown

    def arrays(self) -> dict[str, np.ndarray]:
        """What a checkpoint saves of the rows."""
        return {f"{_PREFIX}{name}": value for name, value in self.columns().items()}

    def notes(self) -> dict[str, Any]:
        """What a checkpoint saves besides arrays."""
        return {"steps": self.steps, "seconds": self.seconds, "names": self.names}

    def restore(self, found: Checkpoint) -> None:
        """The rows that a checkpoint holds, in place of none."""
        stacked = {n.removeprefix(_PREFIX): v for n, v in found.arrays.items() if n.startswith(_PREFIX)}
        self.steps = list(found.notes["steps"])
        self._columns = {name: np.array(value) for name, value in stacked.items()}
        self.seconds |= found.notes["seconds"]
        self.names |= found.notes.get("names", {})
