"""Ladders in a run directory: `comparison.nc`, one group for each start, opened by xarray without this package."""

import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Array

from ntkcollapse import _netcdf
from ntkcollapse._checks import check_choice
from ntkcollapse._earlier_files import equation_of_settings
from ntkcollapse.classes import Classes
from ntkcollapse.comparison.ladder import Ladder
from ntkcollapse.comparison.rungs import RUNGS
from ntkcollapse.equation import Equation
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.trajectory import Trajectory


def save_ladders(path: str | os.PathLike, ladders: Mapping[int, Ladder]) -> Path:
    """Writes `comparison.nc` into the run directory `path`, all or nothing; keys are the steps started from.

    Group "start_<step>": every observable as (rung, time), the network among the rungs, NaN where a rung lacks it; what
    solvers said of themselves in the attribute "statistics".
    """
    file = RunDirectory(path).comparison
    _netcdf.write(file, {f"start_{step}": _dataset(step, ladder) for step, ladder in ladders.items()})
    return file


def load_ladders(path: str | os.PathLike) -> dict[int, Ladder]:
    """The ladders saved in a run directory, by the step started from.

    Raises:
        FileNotFoundError: there are none.
        ValueError: the file is damaged, or another one.
    """
    file = RunDirectory(path).comparison
    if not file.exists():
        raise FileNotFoundError(f"{file}: no comparison here; `ntkcollapse compare` writes one.")
    ladders = {}
    try:
        steps = sorted(int(name.removeprefix("start_")) for name in _netcdf.names_of_groups(file))
        for step in steps:
            ladders[step] = _ladder(_netcdf.read(file, f"start_{step}"))
    # Earlier files have no digest: what is missing or out of range in them shows as an error of any type.
    except Exception as error:
        raise ValueError(
            f"{file}: expected a comparison that save_ladders wrote, could not read it: {error}; remove it, or compare "
            "once more with --overwrite."
        ) from error
    return ladders


def _dataset(step: int, ladder: Ladder) -> xr.Dataset:
    runs = {"network": ladder.network, **ladder.rungs}
    T = len(ladder.network.times)
    scalar = [name for name, value in ladder.network.observables.items() if value.ndim == 1]
    data = {}
    for name in scalar:
        values = np.full((len(runs), T), np.nan)
        for row, run in zip(values, runs.values(), strict=True):
            if name in run.observables:
                row[: len(run.times)] = np.asarray(run.observables[name])
        data[name] = (("rung", "time"), values)
    attributes = {
        "step": step,
        "equation": json.dumps(ladder.network.equation.as_mapping(), sort_keys=True),
        "equations": json.dumps({name: run.equation.as_mapping() for name, run in ladder.rungs.items()}),
        "settings": ladder.network.settings_json,
        "rungs": json.dumps({name: run.settings for name, run in ladder.rungs.items()}),
        "statistics": json.dumps({name: _numbers(run.statistics) for name, run in ladder.rungs.items()}),
        "failures": json.dumps(ladder.failures),
        "homogeneity": ladder.homogeneity,
        "weight_decay": ladder.weight_decay,
        "batch_norm": int(ladder.batch_norm),
        "records": json.dumps({name: len(run.times) for name, run in runs.items()}),
        "class_sizes": json.dumps(ladder.network.classes.sizes),
        "ntkcollapse": importlib.metadata.version("ntkcollapse"),
        "conventions": "t is gradient-flow time of the loss 0.5*||R||_F^2 summed over samples",
    }
    return xr.Dataset(data, coords={"rung": list(runs), "time": np.asarray(ladder.network.times)}, attrs=attributes)


def _numbers(statistics: dict[str, Array]) -> dict[str, float]:
    return {name: float(value) for name, value in statistics.items() if value.ndim == 0}


def _ladder(data: xr.Dataset) -> Ladder:
    classes = Classes(sizes=tuple(json.loads(data.attrs["class_sizes"])))
    notes = {"network": json.loads(data.attrs["settings"])} | json.loads(data.attrs["rungs"])
    statistics = json.loads(data.attrs.get("statistics", "{}"))
    if "equation" in data.attrs:
        saved = {"network": json.loads(data.attrs["equation"])} | json.loads(data.attrs["equations"])
        equations = {name: Equation.from_mapping(values) for name, values in saved.items()}
    else:
        equations = {name: equation_of_settings(values, classes.sizes) for name, values in notes.items()}
    runs = {}
    for name in map(str, data["rung"].values):
        rows = {str(k): v.sel(rung=name).values for k, v in data.data_vars.items()}
        rows = {k: v for k, v in rows.items() if not np.isnan(v).all()}
        reached = json.loads(data.attrs["records"])[name]
        runs[name] = Trajectory(
            data["time"].values[:reached],
            {k: v[:reached] for k, v in rows.items()},
            classes,
            statistics=statistics.get(name),
            equation=equations[name],
            settings=notes[name],
        )
    network = runs.pop("network")
    for name in runs:
        check_choice("rungs", name, RUNGS)
    return Ladder(network=network, rungs=runs, failures=json.loads(data.attrs["failures"]), **_climbed_from(data))


def _climbed_from(data: xr.Dataset) -> dict[str, Any]:
    """What a ladder says of its start; earlier files said it with each rung."""
    kinds = {"homogeneity": float, "weight_decay": float, "batch_norm": bool}
    rungs = json.loads(data.attrs["rungs"]).values()
    earlier = {name: next((rung[name] for rung in rungs if name in rung), 0) for name in kinds}
    return {name: kind(data.attrs.get(name, earlier[name])) for name, kind in kinds.items()}
