"""netCDF files that say when they are not what was written: whole or not at all, with a digest of every value."""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np
import xarray as xr

from ntkcollapse._files import replacing

_DIGEST = "sha256"


def write(file: Path, groups: Mapping[str, xr.Dataset]) -> None:
    """Writes data sets as the groups of a netCDF-4 file, "/" the file itself, all or nothing.

    The file is made in memory first: HDF5 crashes where the disk is full, plain writing raises. Each group carries the
    SHA-256 of its names, numbers and attributes.

    Raises:
        OSError: it could not be written; what was there before is untouched.
    """
    buffer = io.BytesIO()
    for name, data in groups.items():
        signed = data.assign_attrs({_DIGEST: digest(data)})
        mode = "a" if buffer.getbuffer().nbytes else "w"
        signed.to_netcdf(buffer, mode=mode, group=None if name == "/" else name, engine="h5netcdf")
    with replacing(file) as part:
        part.write_bytes(buffer.getbuffer())


def read(file: Path, group: str = "/") -> xr.Dataset:
    """Reads a group of a netCDF-4 file into memory.

    Files of before have no digest, and are taken as they are.

    Raises:
        ValueError: the file cannot be read, or its numbers are not those that were written.
    """
    options: dict[str, Any] = {"group": None if group == "/" else group, "engine": "h5netcdf"}
    try:
        with xr.open_dataset(file, decode_times=False, decode_timedelta=False, **options) as data:
            data.load()
        if _DIGEST in data.attrs and data.attrs[_DIGEST] != digest(data):
            raise ValueError("its numbers are not those that were written")
    # Damage comes as errors of any type from the libraries that read the file.
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return data


def names_of_groups(file: Path) -> list[str]:
    """Lists the groups of a netCDF-4 file.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        with h5netcdf.File(file, "r") as groups:
            return list(groups.groups)
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
