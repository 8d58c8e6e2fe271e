"""netCDF files that say when they are not what was written: whole or not at all, with a digest of every value."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from ntkcollapse._files import replacing

_DIGEST = "sha256"
# What netCDF-4 calls an axis without a coordinate, and what it keeps beside a variable's own attributes.
_NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable."
_OF_THE_FORMAT = ("CLASS", "NAME", "_FillValue", "_NCProperties", "_Netcdf4Coordinates", "_Netcdf4Dimid")


def write(file: Path, groups: Mapping[str, xr.Dataset]) -> None:
    """Writes data sets as the groups of a netCDF-4 file, "/" the file itself, all or nothing.

    The file is made in memory first: HDF5 crashes where the disk is full, plain writing raises. Each group carries the
    SHA-256 of its names, numbers and attributes. xarray's own writer and reader take ten times as long for the many
    small arrays of a run, h5netcdf alone seven and three times.

    Raises:
        OSError: it could not be written; what was there before is untouched.
    """
    with h5py.File(file.name, "w", driver="core", backing_store=False, track_order=True) as whole:
        for name, data in groups.items():
            _put(whole if name == "/" else whole.create_group(name, track_order=True), data)
        whole.flush()
        image = whole.id.get_file_image()
    with replacing(file) as part:
        part.write_bytes(image)


def _put(group: h5py.Group, data: xr.Dataset) -> None:
    """Writes a data set as netCDF-4 does: an axis is a dimension scale, its own coordinate where there is one."""
    group.attrs.update({str(key): value for key, value in data.attrs.items()} | {_DIGEST: digest(data)})
    scales = {}
    for axis, size in data.sizes.items():
        if axis not in data.variables:
            scales[axis] = group.create_dataset(str(axis), (size,), "f4")
            scales[axis].make_scale(f"{_NO_VARIABLE}{size:10d}")
    # Coordinates first: the others stand on them.
    for name in sorted(data.variables, key=lambda name: name not in data.sizes):
        variable = data.variables[name]
        values, kind = np.asarray(variable.values), variable.dtype.kind
        if kind in "OUT":
            stored = group.create_dataset(str(name), data=values.astype(object), dtype=h5py.string_dtype())
        else:
            stored = group.create_dataset(str(name), data=values.astype("i1") if kind == "b" else values)
        stored.attrs.update(variable.attrs | ({"dtype": "bool"} if kind == "b" else {}))
        if name in data.sizes:
            scales[name] = stored
            stored.make_scale(str(name))
            continue
        for place, axis in enumerate(variable.dims):
            stored.dims[place].attach_scale(scales[axis])


def read(file: Path, group: str = "/") -> xr.Dataset:
    """Reads a group of a netCDF-4 file into memory.

    Files of before have no digest, and are taken as they are.

    Raises:
        ValueError: the file cannot be read, or its numbers are not those that were written.
    """
    try:
        with h5py.File(file, "r") as whole:
            data = _got(whole[group])
        if _DIGEST in data.attrs and data.attrs[_DIGEST] != digest(data):
            raise ValueError("its numbers are not those that were written")
    # Damage comes as errors of any type from the libraries that read the file.
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return data


def _got(group: Any) -> xr.Dataset:
    """The data set that `_put` or xarray wrote."""
    variables = {}
    for name, stored in group.items():
        about = _attributes(stored)
        if isinstance(stored, h5py.Group) or str(about.get("NAME", "")).startswith(_NO_VARIABLE):
            continue
        values = stored.asstr()[()] if h5py.check_string_dtype(stored.dtype) else stored[()]
        if about.pop("dtype", None) == "bool":
            values = values.astype(bool)
        axes = [name] if stored.is_scale else [axis[0].name.rpartition("/")[2] for axis in stored.dims]
        variables[name] = (axes, values, {k: v for k, v in about.items() if k not in _OF_THE_FORMAT})
    return xr.Dataset(variables, attrs={k: v for k, v in _attributes(group).items() if k not in _OF_THE_FORMAT})


def _attributes(part: Any) -> dict[str, Any]:
    found = {k: part.attrs[k] for k in part.attrs if k not in ("DIMENSION_LIST", "REFERENCE_LIST")}
    plain = {k: v[0] if getattr(v, "shape", None) == (1,) else v for k, v in found.items()}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in plain.items()}


def names_of_groups(file: Path) -> list[str]:
    """Lists the groups of a netCDF-4 file.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        with h5py.File(file, "r") as whole:
            return [name for name, part in whole.items() if isinstance(part, h5py.Group)]
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def digest(data: xr.Dataset) -> str:
    """SHA-256 of the names, axes, numbers and attributes of a data set, the same before and after it was a file."""
    total = hashlib.sha256()
    for name in sorted(map(str, data.variables)):
        variable = data.variables[name]
        value = np.asarray(variable.values)
        if value.dtype.kind in "OUST":
            text = json.dumps([str(entry) for entry in value.ravel()])
            total.update(f"{name} {variable.dims} text {value.shape} {text}".encode())
            continue
        if value.dtype.kind == "f":
            # One NaN for all: files do not keep which it was.
            value = np.where(np.isnan(value), np.asarray(np.nan, value.dtype), value)
        # Bytes in one order, whatever the machine's.
        value = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<"))
        total.update(f"{name} {variable.dims} {value.dtype.str} {value.shape}".encode())
        total.update(value.tobytes())
    attributes = {str(k): v if isinstance(v, str) else float(v) for k, v in data.attrs.items() if k != _DIGEST}
    total.update(json.dumps(attributes, sort_keys=True).encode())
    return total.hexdigest()
