"""What theory and measurement both end as: observables of a last layer along time, and what made them."""

import importlib.metadata
import json
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from ntkcollapse._checks import check_choice, check_increasing, check_shape
from ntkcollapse._files import replacing
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes
from ntkcollapse.kernel_path import KernelPath
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.sample_kernel import DenseKernel, GroupedKernel, SampleKernel

# Names of the axes of every stored state, without the leading time axis.
_AXES = {
    "H": ("feature", "sample"),
    "M": ("feature", "class"),
    "P": ("group", "feature", "feature_2"),
    "W": ("class", "feature"),
    "b": ("class",),
}
_PACKAGES = (
    "ntkcollapse", "jax", "jaxlib", "equinox", "diffrax", "flax", "optax", "orbax-checkpoint", "numpy", "scipy"
)  # fmt: skip
_KERNELS = {kind.__name__: kind for kind in (BlockKernel, DenseKernel, GroupedKernel)}


class Trajectory(eqx.Module):
    """Observables and states of a last layer at T times.

    Args:
        times: flow time t of the loss ½‖R‖² summed over the samples (or steps, where `settings` says so), (T,).
        observables: name → (T, ...) array.
        classes: behind the columns.
        states: arrays with a leading time axis. A full state has H (T, n, N), W (T, C, n), b (T, C); a reduced one has
            class means M (T, n, C) and propagators P (T, G, n, n) in place of H. May be empty.
        kernel: of the features, where there is one.
        deviations: H(0) − M(0)Zᵀ, (n, N): what a reduced state needs to give back every column.
        statistics: of the solver, or of the measurement: name → number.
        settings: what made it; anything JSON can hold.
        versions: name → version of what computed it; by default of the packages that are installed.

    Raises:
        ValueError: times that do not increase, records without one entry a time, or states of other sizes than
            `classes`.
    """

    times: Float[Array, " T"]
    observables: dict[str, Array]
    classes: Classes
    states: dict[str, Array]
    kernel: SampleKernel | KernelPath | None
    deviations: Float[Array, "n N"] | None
    statistics: dict[str, Array]
    settings_json: str = eqx.field(static=True)
    versions_json: str = eqx.field(static=True)

    def __init__(
        self,
        times,
        observables: Mapping[str, Any],
        classes: Classes,
        *,
        states: Mapping[str, Any] | None = None,
        kernel: SampleKernel | KernelPath | None = None,
        deviations=None,
        statistics: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
    ):
        self.times = jnp.asarray(times)
        self.observables = {name: jnp.asarray(value) for name, value in observables.items()}
        self.classes = classes
        self.states = {name: jnp.asarray(value) for name, value in (states or {}).items()}
        self.kernel = kernel
        self.deviations = deviations
        self.statistics = {name: jnp.asarray(value) for name, value in (statistics or {}).items()}
        self.settings_json = json.dumps(dict(settings or {}), sort_keys=True, default=str)
        self.versions_json = json.dumps(dict(versions or _installed()), sort_keys=True)

    def __check_init__(self):
        check_increasing("times", self.times, at_least=1)
        T = self.times.shape[0]
        for name, value in self.observables.items():
            check_shape(f"observables[{name!r}]", value, (T, *(None,) * (value.ndim - 1)), "one record a time")
        for name, value in self.states.items():
            check_choice("states", name, _AXES)
            sizes = {"sample": self.classes.num_samples, "class": self.classes.num_classes}
            expected = (T, *(sizes.get(axis) for axis in _AXES[name]))
            check_shape(f"states[{name!r}]", value, expected, f"(time, {', '.join(_AXES[name])})")

    @property
    def settings(self) -> dict[str, Any]:
        """What made the trajectory."""
        return json.loads(self.settings_json)

    @property
    def versions(self) -> dict[str, str]:
        """What computed the trajectory: Python and the packages it rests on."""
        return json.loads(self.versions_json)

    def __getitem__(self, name: str) -> Array:
        """The observable of this name, (T, ...)."""
        check_choice("observable", name, self.observables)
        return self.observables[name]

    def last_layer(self, index: int) -> LastLayer:
        """The full state at a saved time, all N columns of H recovered.

        Raises:
            ValueError: no states were kept, or only the reduction of a start without columns.
        """
        if "W" not in self.states:
            raise ValueError("last_layer: this trajectory keeps observables only; no states were saved with it.")
        index = self._checked(index)
        at = {name: value[index] for name, value in self.states.items()}
        if "H" not in at:
            if self.deviations is None:
                raise ValueError(
                    "last_layer: the run started from class means and scatter, so single columns of H are not known; "
                    "start from a LastLayer to recover them, or read M, W, b from states."
                )
            kernel = self.kernel_at(index)
            groups = kernel.split(self.deviations, self.classes)
            at["H"] = self.classes.expand(at["M"]) + jnp.einsum("gij,gjk->ik", at["P"], groups)
        return LastLayer(H=at["H"], W=at["W"], b=at["b"])

    def at_records(self, indices: Sequence[int]) -> "Trajectory":
        """The same run with these of its records, in order of time; its kernel's path stays whole.

        Raises:
            ValueError: an index that is not a saved time.
        """
        at = np.asarray(sorted({self._checked(i) % self.times.shape[0] for i in indices}))
        parts = (self.times, self.observables, self.states)
        times, observables, states = jax.tree.map(lambda value: value[at], parts)
        return Trajectory(
            times,
            observables,
            self.classes,
            states=states,
            kernel=self.kernel,
            deviations=self.deviations,
            statistics=self.statistics,
            settings=self.settings,
            versions=self.versions,
        )

    def _checked(self, index: int) -> int:
        T = self.times.shape[0]
        if not -T <= index < T:
            raise ValueError(f"index: expected a saved time from {-T} to {T - 1}, got {index}.")
        return index

    def kernel_at(self, index: int) -> SampleKernel:
        """The kernel at a saved time."""
        index = self._checked(index)
        if self.kernel is None:
            raise ValueError("kernel_at: this trajectory was kept without a kernel.")
        return self.kernel.at(self.times[index])

    def to_dataset(self) -> xr.Dataset:
        """The trajectory as an xarray data set: `observables`, `states`, kernel and settings."""
        data: dict[str, Any] = {}
        for name, value in self.observables.items():
            extra = tuple(f"{name}_axis{i}" for i in range(value.ndim - 1))
            data[f"observable/{name}"] = (("time", *extra), np.asarray(value))
        for name, value in self.states.items():
            data[f"state/{name}"] = (("time", *_AXES[name]), np.asarray(value))
        for name, value in self.statistics.items():
            data[f"statistic/{name}"] = ((), np.asarray(value))
        if self.deviations is not None:
            data["deviations"] = (("feature", "sample"), np.asarray(self.deviations))
        kind, arrays = _kernel_to_arrays(self.kernel)
        for name, value in arrays.items():
            axes = tuple(f"kernel_{name}_axis{i}" for i in range(value.ndim))
            data[f"kernel/{name}"] = (axes, value)
        data["class_sizes"] = (("class",), np.asarray(self.classes.sizes))
        attributes = {
            "settings": self.settings_json,
            "kernel": kind,
            "versions": self.versions_json,
            "conventions": "t is the time of the gradient flow of the loss that settings name, with its scale",
        }
        flat = {name.replace("/", "__"): value for name, value in data.items()}
        return xr.Dataset(flat, coords={"time": np.asarray(self.times)}, attrs=attributes)

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Writes `trajectory.nc` (netCDF-4) into the run directory `path`, made if missing; all or nothing.

        Raises:
            FileExistsError: the directory holds a trajectory already and `overwrite` is False.
        """
        file = Path(path) / "trajectory.nc"
        if file.exists() and not overwrite:
            raise FileExistsError(f"{file} exists: choose another directory, or pass overwrite=True to replace it.")
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            self.to_dataset().to_netcdf(part, engine="h5netcdf")
        return file

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Trajectory":
        """The trajectory saved in a run directory (or the netCDF file itself).

        Raises:
            FileNotFoundError: there is none.
            ValueError: the file is not a trajectory that `save` wrote.
        """
        file = Path(path)
        file = file / "trajectory.nc" if file.is_dir() else file
        if not file.exists():
            raise FileNotFoundError(f"{file}: no trajectory here; a run directory holds trajectory.nc.")
        try:
            with xr.open_dataset(file, engine="h5netcdf") as data:
                data.load()
        except OSError as error:
            raise ValueError(
                f"{file}: expected a netCDF file of Trajectory.save, could not read it: {error}"
            ) from error
        if "settings" not in data.attrs or "class_sizes" not in data:
            raise ValueError(f"{file}: expected a netCDF file written by Trajectory.save, got another one.")
        groups: dict[str, dict[str, np.ndarray]] = {k: {} for k in ("observable", "state", "statistic", "kernel")}
        for name in data.data_vars:
            kind, _, rest = str(name).partition("__")
            if kind in groups and rest:
                groups[kind][rest] = data[name].values
        classes = Classes(sizes=tuple(data["class_sizes"].values))
        return cls(
            data["time"].values,
            groups["observable"],
            classes,
            states=groups["state"],
            kernel=_kernel_from_arrays(data.attrs["kernel"], groups["kernel"]),
            deviations=jnp.asarray(data["deviations"].values) if "deviations" in data else None,
            statistics=groups["statistic"],
            settings=json.loads(data.attrs["settings"]),
            versions=json.loads(data.attrs["versions"]),
        )


@cache
def _installed() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


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
        return _assemble(KernelPath, {"times": jnp.asarray(times), "kernels": inner})
    fields = {
        name: tuple(int(i) for i in value) if name == "bounds" else jnp.asarray(value) for name, value in arrays.items()
    }
    return _assemble(_KERNELS[kind], fields)


def _assemble(kind: type, fields: dict[str, Any]):
    """An instance from its checked fields: stacked kernels have a time axis that their constructors do not expect."""
    value = object.__new__(kind)
    for name, field in fields.items():
        object.__setattr__(value, name, field)
    return jax.tree.map(lambda x: x, value)
