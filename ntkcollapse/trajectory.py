"""What theory and measurement both end as: observables of a last layer along time, and what made them."""

import importlib.metadata
import json
import operator
import os
import platform
import sys
import warnings
from collections.abc import ItemsView, Iterator, KeysView, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from ntkcollapse._arrays import as_array, entry
from ntkcollapse._checks import (
    check_arrays,
    check_choice,
    check_increasing,
    check_path,
    check_real,
    check_shape,
    is_traced,
)
from ntkcollapse._earlier_files import equation_of_settings, names_of_settings
from ntkcollapse._files import replacing
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.choices import imported
from ntkcollapse.classes import Classes, as_classes
from ntkcollapse.equation import Equation
from ntkcollapse.kernel_path import KernelPath
from ntkcollapse.krylov_kernel import KrylovKernel
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.observable_table import described, shown_in
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.sample_kernel import DenseKernel, GroupedKernel, SampleKernel
from ntkcollapse.theory.reduced import ReducedState

# Axes of every array of a state, after the leading one of time.
_AXES = {
    "H": ("feature", "sample"),
    "M": ("feature", "class"),
    "P": ("group", "feature", "feature_2"),
    "W": ("class", "feature"),
    "b": ("class",),
    "X": ("feature", "direction"),
}
_PACKAGES = (
    "jax", "jaxlib", "equinox", "diffrax", "flax", "optax", "numpy", "scipy"
)  # fmt: skip
_KERNELS = {kind.__name__: kind for kind in (BlockKernel, DenseKernel, GroupedKernel, KrylovKernel)}


class UnknownObservable(KeyError, ValueError):
    """A name that a trajectory has no observable of: a KeyError, as of any mapping, with a message for readers."""

    def __str__(self) -> str:
        return str(self.args[0])


class Trajectory(eqx.Module):
    """Observables and states of a last layer at T times, and the equation that it obeys.

    A mapping from the names of observables to their arrays: `run["loss"]`, `"loss" in run`, `run.keys()`, `dict(run)`.

    Args:
        times: flow time t of the equation's loss (optimiser steps where `equation.without_clock` says why), (T,).
        observables: name → (T, ...) array.
        classes: behind the columns, or a list of their sizes.
        states: a `LastLayer` with a leading time axis (`LastLayer.stacked`): H (T, n, N), W (T, C, n), b (T, C); or a
            `ReducedState` with class means M (T, n, C) and propagators P (T, G, n, n) in place of H, beside a
            `KrylovKernel` with X (T, n, K) along its directions too; or None.
        kernel: of the features, where there is one.
        deviations: H(0) − M(0)Zᵀ, (n, N): what a reduced state needs to give back every column.
        statistics: of the solver, or of the measurement: name → number.
        equation: what the trajectory obeys; the theorem's flow of ½‖R‖² by default.
        names: name of an observable (or group of observables) → what the entries of its arrays are called.
        settings: a note of what made it, anything that JSON can hold; nothing is computed from it.
        versions: name → version of what computed it; by default of the packages that are installed.

    Raises:
        ValueError: times that do not increase, records without one entry a time, or states of other sizes than
            `classes`.
        TypeError: states that are no `LastLayer` and no `ReducedState`.
    """

    times: Float[Array, " T"]
    observables: dict[str, Array]
    classes: Classes
    # LastLayer | ReducedState | None: which of them the run was integrated as, so that `run.states.W` needs no cast.
    states: Any
    kernel: SampleKernel | KernelPath | None
    deviations: Float[Array, "n N"] | None
    statistics: dict[str, Array]
    equation: Equation
    names_json: str = eqx.field(static=True)
    settings_json: str = eqx.field(static=True)
    versions_json: str = eqx.field(static=True)

    def __init__(
        self,
        times,
        observables: Mapping[str, Any],
        classes: Classes | Sequence[int],
        *,
        states: Any = None,
        kernel: SampleKernel | KernelPath | None = None,
        deviations=None,
        statistics: Mapping[str, Any] | None = None,
        equation: Equation | None = None,
        names: Mapping[str, Sequence[str]] | None = None,
        settings: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
    ):
        check_arrays(times=times)
        check_real(deviations=deviations)
        for kind, values in (("observables", observables), ("statistics", statistics or {})):
            if not isinstance(values, Mapping):
                raise TypeError(f"{kind}: expected arrays by name, got {type(values).__name__}.")
            check_arrays(**{f"{kind}[{name!r}]": value for name, value in values.items()})
        self.times = as_array(times)
        self.observables = {name: as_array(value) for name, value in observables.items()}
        self.classes = as_classes(classes)
        self.states = states
        self.kernel = kernel
        self.deviations = deviations
        self.statistics = {name: as_array(value) for name, value in (statistics or {}).items()}
        self.equation = Equation() if equation is None else equation
        self.names_json = json.dumps({name: list(entries) for name, entries in (names or {}).items()})
        self.settings_json = json.dumps(dict(settings or {}), sort_keys=True, default=str)
        self.versions_json = json.dumps(dict(versions or _installed()), sort_keys=True)

    def __check_init__(self):
        check_increasing("times", self.times, at_least=1)
        T = self.times.shape[0]
        for name, value in self.observables.items():
            if "/" in name or "__" in name:
                raise ValueError(
                    f"observables: expected names without '/' and '__', which files use themselves, got {name!r}; "
                    "name it with single underscores."
                )
            check_shape(f"observables[{name!r}]", value, (T, *(None,) * (value.ndim - 1)), "one record a time")
        if not isinstance(self.states, LastLayer | ReducedState | None):
            raise TypeError(
                f"states: expected a LastLayer or a ReducedState with a leading time axis, or None, got a "
                f"{type(self.states).__name__}; LastLayer.stacked(H, W, b) makes one from arrays."
            )
        for name, value in _arrays_of(self.states).items():
            sizes = {"sample": self.classes.num_samples, "class": self.classes.num_classes}
            expected = (T, *(sizes.get(axis) for axis in _AXES[name]))
            check_shape(f"states.{name}", value, expected, f"(time, {', '.join(_AXES[name])})")

    @property
    def settings(self) -> dict[str, Any]:
        """A note of what made the trajectory."""
        return json.loads(self.settings_json)

    @property
    def names(self) -> dict[str, list[str]]:
        """What the entries of array observables are called, by observable or group of observables."""
        return json.loads(self.names_json)

    @property
    def versions(self) -> dict[str, str]:
        """What computed the trajectory: Python and the packages it rests on."""
        return json.loads(self.versions_json)

    @property
    def training_classes(self) -> Classes:
        """Behind the samples that the loss sums over."""
        return self.equation.training_classes or self.classes

    @property
    def on_a_probe(self) -> bool:
        """Whether the columns are a part of the samples that the loss sums over."""
        return self.training_classes.num_samples != self.classes.num_samples

    @property
    def has_columns(self) -> bool:
        """Whether `last_layer` can give the full state: every column of H was kept, or can be recovered."""
        return isinstance(self.states, LastLayer) or (self.states is not None and self.deviations is not None)

    def __getitem__(self, name: str) -> Array:
        """The observable of this name, (T, ...).

        Raises:
            UnknownObservable: there is none, a KeyError and a ValueError; the message names those that are near.
        """
        try:
            check_choice("observable", name, self.observables)
        except ValueError as error:
            raise UnknownObservable(str(error)) from None
        return self.observables[name]

    def __contains__(self, name: object) -> bool:
        return name in self.observables

    def __iter__(self) -> Iterator[str]:
        return iter(self.observables)

    def keys(self) -> KeysView[str]:
        """Names of the observables."""
        return self.observables.keys()

    def items(self) -> ItemsView[str, Array]:
        """Observables by name."""
        return self.observables.items()

    def __repr__(self) -> str:
        """What it is a trajectory of, and the observables that tell of collapse, first and last."""
        # Within transformations, of several runs at once, and as a tree of something else there are no such numbers.
        if is_traced(self) or not isinstance(self.times, jax.Array) or self.times.ndim != 1:
            return super().__repr__()
        times, sizes = np.asarray(self.times), self.classes.sizes
        per_class = f"{sizes[0]}" if len(set(sizes)) == 1 else f"{min(sizes)} to {max(sizes)}"
        unit = "steps" if self.equation.without_clock else "t"
        states = [f"{name} {tuple(value.shape[1:])}" for name, value in _arrays_of(self.states).items()]
        lines = [
            f"Trajectory of {len(times)} records, {unit} = {times[0]:.6g} to {times[-1]:.6g}",
            f"  classes      {len(sizes)} of {per_class} samples",
            f"  states       {', '.join(states) or 'none'}",
            f"  kernel       {'none' if self.kernel is None else type(self.kernel).__name__}",
        ]
        told = [name for name in shown_in("simulate") if name in self.observables and self.observables[name].ndim == 1]
        width = max(map(len, told), default=0)
        for name in told:
            first, last = (float(self.observables[name][i]) for i in (0, -1))
            lines.append(f"  {name:<{width}}  {first:.4g} -> {last:.4g}")
        return "\n".join(
            [*lines, f"  and {len(self.observables) - len(told)} more observables: keys() has their names"]
        )

    def last_layer(self, index: int) -> LastLayer:
        """The full state at a saved time, all N columns of H recovered.

        Raises:
            ValueError: no states were kept, or only the reduction of a start without columns.
        """
        if self.states is None:
            raise ValueError("last_layer: this trajectory keeps observables only; no states were saved with it.")
        index = self._checked(index)
        state = jax.tree.map(lambda value: entry(value, index), self.states)
        if isinstance(state, LastLayer):
            return LastLayer(H=state.H, W=state.W, b=state.b)
        if self.deviations is None:
            raise ValueError(
                "last_layer: the run started from class means and scatter, so single columns of H are not known; "
                "start from a LastLayer to recover them, or read M, W, b from states."
            )
        H = state.columns(self.kernel_at(index), self.deviations, self.classes)
        return LastLayer(H=H, W=state.W, b=state.b)

    def at_records(self, indices: Sequence[int]) -> "Trajectory":
        """The same run with these of its records, in order of time; its kernel's path stays whole.

        Raises:
            ValueError: an index that is not a saved time.
        """
        at = np.asarray(sorted({self._checked(i) % self.times.shape[0] for i in indices}))
        parts = (self.times, self.observables, self.states)
        times, observables, states = jax.tree.map(lambda value: value[at], parts)
        return self.replaced(times=times, observables=observables, states=states)

    def replaced(self, **fields: Any) -> "Trajectory":
        """The same trajectory with these arguments of its constructor in place of its own, checked again."""
        own = {name: getattr(self, name) for name in _ARGUMENTS}
        return Trajectory(**{**own, **fields})

    def plot(self, *names: str, ax: Any = None) -> Any:
        """Draws the observables of these names into one panel; without names, all that figures show, a panel a group.

        A network is drawn against its epochs, theory against flow time; numbers below rounding are left out.

        Args:
            names: of observables.
            ax: matplotlib axes to draw into; a figure of their own without.
        Returns:
            The axes; the figure where no names are given.
        Raises:
            ValueError: a name that the trajectory does not have, axes without names, or nothing that figures show.
        """
        for name in names:
            check_choice("names", name, self.observables)
        # Figures stand above runs; they are imported when the first one is drawn.
        return imported("ntkcollapse.plots.trajectories:run_plot")(self, names, ax)

    def _checked(self, index: int) -> int:
        T = self.times.shape[0]
        try:
            fits = -T <= operator.index(index) < T
        except TypeError:
            fits = False
        if not fits:
            raise ValueError(f"index: expected a saved time from {-T} to {T - 1}, got {index!r}.")
        return index

    def kernel_at(self, index: int) -> SampleKernel:
        """The kernel at a saved time."""
        index = self._checked(index)
        if self.kernel is None:
            raise ValueError("kernel_at: this trajectory was kept without a kernel.")
        return self.kernel.at(self.times[index])

    def to_dataset(self) -> Any:
        """Observables and states as an `xarray.Dataset` along time, under their own names, with units and meanings.

        Arrays of the state are named H, M, P, W, b and X. Settings, equation and versions are attributes.
        """
        stored = self._stored()
        renamed = {name: str(name).partition("__")[2] for name in stored if "__" in str(name)}
        kept = {name: new for name, new in renamed.items() if str(name).startswith(("observable__", "state__"))}
        return stored[list(kept)].rename(kept)

    def to_dataframe(self) -> Any:
        """Observables of one number a time as a `pandas.DataFrame`: a column each, the times as its index."""
        import pandas as pd

        columns = {name: np.asarray(value) for name, value in self.observables.items() if value.ndim == 1}
        index = "step" if self.equation.without_clock else "time"
        return pd.DataFrame(columns, index=pd.Index(np.asarray(self.times), name=index))

    def to_csv(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Writes `to_dataframe` as comma-separated values with all digits; all or nothing.

        Raises:
            FileExistsError: the file exists and `overwrite` is False.
        """
        check_path("path", path)
        file = Path(path)
        if file.exists() and not overwrite:
            raise FileExistsError(f"{file} exists: choose another name, or pass overwrite=True to replace it.")
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            part.write_text(self.to_dataframe().to_csv(), encoding="utf-8")
        return file

    def _stored(self) -> Any:
        """All that a file keeps as an `xarray.Dataset`, the kind of each array before its name."""
        data: dict[str, Any] = {}
        for name, value in self.observables.items():
            extra = tuple(f"{name}_axis{i}" for i in range(value.ndim - 1))
            about = {"long_name": described(name).meaning, "units": described(name).unit}
            data[f"observable__{name}"] = (("time", *extra), _storable(value), about)
        for name, value in _arrays_of(self.states).items():
            data[f"state__{name}"] = (("time", *_AXES[name]), _storable(value))
        for name, value in self.statistics.items():
            data[f"statistic__{name}"] = ((), _storable(value))
        if self.deviations is not None:
            data["deviations"] = (("feature", "sample"), _storable(self.deviations))
        kind, arrays = _kernel_to_arrays(self.kernel)
        for name, value in arrays.items():
            axes = tuple(f"kernel_{name}_axis{i}" for i in range(value.ndim))
            data[f"kernel__{name}"] = (axes, _storable(value))
        data["class_sizes"] = (("class",), np.asarray(self.classes.sizes))
        attributes = {
            "equation": json.dumps(self.equation.as_mapping(), sort_keys=True),
            "names": self.names_json,
            "settings": self.settings_json,
            "kernel": kind,
            "versions": self.versions_json,
            "conventions": "t is the time of the gradient flow of the loss that the equation names, with its scale",
        }
        # xarray, with pandas, takes longer to import than a run takes.
        import xarray as xr

        return xr.Dataset(data, coords={"time": np.asarray(self.times)}, attrs=attributes)

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Writes `trajectory.nc` (netCDF-4) into the run directory `path`, made if missing; all or nothing.

        Raises:
            FileExistsError: the directory holds a trajectory already and `overwrite` is False.
        """
        file = RunDirectory(path).trajectory
        if file.exists() and not overwrite:
            raise FileExistsError(f"{file} exists: choose another directory, or pass overwrite=True to replace it.")
        file.parent.mkdir(parents=True, exist_ok=True)
        from ntkcollapse import _netcdf

        _netcdf.write(file, {"/": self._stored()})
        return file

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Trajectory":
        """The trajectory saved in a run directory (or the netCDF file itself).

        Raises:
            FileNotFoundError: there is none.
            ValueError: the file is damaged, or not a trajectory that `save` wrote.
        """
        check_path("path", path)
        file = Path(path)
        file = RunDirectory(file).trajectory if file.is_dir() else file
        if not file.exists():
            raise FileNotFoundError(
                f"{file}: no trajectory here; a run directory holds {RunDirectory(file).trajectory.name}."
            )
        from ntkcollapse import _netcdf

        try:
            data = _netcdf.read(file)
            if "settings" in data.attrs and "class_sizes" in data:
                return cls._from_dataset(data)
        # Earlier files have no digest: what is missing or out of range in them shows as an error of any type.
        except Exception as error:
            raise ValueError(
                f"{file}: expected a netCDF file of Trajectory.save, could not read it: {error}; put back a copy, or "
                "make the run again."
            ) from error
        raise ValueError(f"{file}: expected a netCDF file written by Trajectory.save, got another one.")

    @classmethod
    def _from_dataset(cls, data: Any) -> "Trajectory":
        """The trajectory that `_stored` gave."""
        groups: dict[str, dict[str, np.ndarray]] = {k: {} for k in ("observable", "state", "statistic", "kernel")}
        for name in data.data_vars:
            kind, _, rest = str(name).partition("__")
            if kind in groups and rest:
                groups[kind][rest] = data[name].values
        classes = Classes(sizes=tuple(data["class_sizes"].values))
        settings = json.loads(data.attrs["settings"])
        if "equation" in data.attrs:
            equation = Equation.from_mapping(json.loads(data.attrs["equation"]))
            names = json.loads(data.attrs["names"])
        else:
            equation, names = equation_of_settings(settings, classes.sizes), names_of_settings(settings)
            if equation.of_network and not equation.is_squared:
                # Such files called ½‖R‖² the loss, which the parts of the residual still add up to.
                groups["observable"].pop("loss", None)
        return cls(
            data["time"].values,
            groups["observable"],
            classes,
            states=_states_from_arrays(groups["state"]),
            kernel=_kernel_from_arrays(data.attrs["kernel"], groups["kernel"]),
            deviations=as_array(data["deviations"].values) if "deviations" in data else None,
            statistics=groups["statistic"],
            equation=equation,
            names=names,
            settings=settings,
            versions=json.loads(data.attrs["versions"]),
        )


def load(path: str | os.PathLike) -> Trajectory:
    """The trajectory of a run directory, or of a netCDF file: `Trajectory.load`."""
    return Trajectory.load(path)


# Of the constructor, under the names of what holds them.
_ARGUMENTS = (
    "times", "observables", "classes", "states", "kernel", "deviations", "statistics", "equation", "names", "settings",
    "versions",
)  # fmt: skip


@cache
def _installed() -> dict[str, str]:
    found = {"python": platform.python_version(), "ntkcollapse": sys.modules["ntkcollapse"].__version__}
    for name in _PACKAGES:
        # What runs from its sources has no metadata, and not all of them need be there.
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _storable(value: Any) -> np.ndarray:
    """The numbers of an array in a type that netCDF has: half precision as float32, which holds it exactly."""
    array = np.asarray(value)
    half = array.dtype.kind in "fV" and array.dtype.itemsize < 4
    return array.astype(np.float32) if half else array


def _arrays_of(states: LastLayer | ReducedState | None) -> dict[str, Array]:
    """The arrays of a state by name."""
    arrays = {} if states is None else vars(states)
    return {name: value for name, value in arrays.items() if name in _AXES and value is not None}


def _states_from_arrays(arrays: Mapping[str, Any]) -> LastLayer | ReducedState | None:
    if not arrays:
        return None
    kind = ReducedState if "M" in arrays else LastLayer
    wanted = [name for name in _AXES if name in kind.__annotations__ and (name != "X" or name in arrays)]
    if sorted(arrays) != sorted(wanted):
        raise ValueError(f"states: expected the arrays {', '.join(wanted)}, found {', '.join(sorted(arrays))}.")
    none = {name: None for name in kind.__annotations__ if name not in arrays}
    return _assemble(kind, none | {name: as_array(value) for name, value in arrays.items()})


def _kernel_to_arrays(kernel: SampleKernel | KernelPath | None) -> tuple[str, dict[str, np.ndarray]]:
    if kernel is None:
        return "", {}
    if isinstance(kernel, KernelPath):
        kind, arrays = _kernel_to_arrays(kernel.kernels)
        return (f"KernelPath {kind}", {**arrays, "times": np.asarray(kernel.times)}) if kind else ("", {})
    if type(kernel).__name__ not in _KERNELS:
        warnings.warn(
            f"kernel: a {type(kernel).__name__} of your own is not written to files; the trajectory loads without it.",
            stacklevel=2,
        )
        return "", {}
    return type(kernel).__name__, {name: np.asarray(value) for name, value in vars(kernel).items()}


def _kernel_from_arrays(kind: str, arrays: dict[str, np.ndarray]) -> SampleKernel | KernelPath | None:
    if not kind:
        return None
    if kind.startswith("KernelPath "):
        times = arrays.pop("times")
        inner = _kernel_from_arrays(kind.removeprefix("KernelPath "), arrays)
        return _assemble(KernelPath, {"times": as_array(times), "kernels": inner})
    fields = {
        name: tuple(int(i) for i in value) if name == "bounds" else as_array(value) for name, value in arrays.items()
    }
    return _assemble(_KERNELS[kind], fields)


def _assemble(kind: type, fields: dict[str, Any]):
    """An instance from its checked fields: stacked kernels have a time axis that their constructors do not expect."""
    value = object.__new__(kind)
    for name, field in fields.items():
        object.__setattr__(value, name, field)
    return jax.tree.map(lambda x: x, value)
