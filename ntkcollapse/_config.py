"""Settings of a command: one frozen dataclass, filled from defaults, then a TOML file, then flags.

A field is declared once, with its help and unit in its metadata; the flag, the key in the file and the line in the
saved `config.toml` all follow from it.
"""

import argparse
import dataclasses
import os
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from ntkcollapse._checks import check_choice
from ntkcollapse._files import replacing

Config = TypeVar("Config")


def setting(
    default: Any, help: str, *, choices: Sequence[str] | None = None, flag: str | None = None, positional: bool = False
) -> Any:
    """A dataclass field with what its flag says of it.

    `flag` names one that Python could not name a field by; a positional setting is given without one, and may be left
    out.
    """
    metadata = {"help": help, "choices": choices, "flag": flag, "positional": positional}
    return dataclasses.field(default=default, metadata=metadata)


def add_flags(parser: argparse.ArgumentParser, kind: type) -> None:
    """One flag a field: `per_class` becomes `--per-class`; booleans get a `--no-` form too; and `--config FILE`."""
    parser.add_argument("--config", metavar="FILE.toml", help="settings from a file; flags go before them")
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        of, many = _element(hints[field.name])
        options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
        default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        said = "" if default is None or isinstance(default, bool) else f" (default: {default})"
        options["help"] = field.metadata["help"].replace("%", "%%") + said.replace("%", "%%")
        if of is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": of, "metavar": field.name.split("_")[-1].upper()}
            if field.metadata["choices"]:
                options["metavar"] = "{" + ",".join(field.metadata["choices"]) + "}"
            if many:
                options["nargs"] = "+"
        if field.metadata.get("positional"):
            del options["dest"]
            parser.add_argument(field.name, nargs="?", **{k: v for k, v in options.items() if k != "nargs"})
            continue
        flag = field.metadata.get("flag") or "--" + field.name.replace("_", "-")
        parser.add_argument(flag, **options)


def resolve(kind: type[Config], flags: Mapping[str, Any] | argparse.Namespace) -> Config:
    """The settings: defaults, then the file named by `config`, then the flags that were given.

    Raises:
        ValueError: a key that is no setting, a value of the wrong type, or a choice that is not offered.
    """
    given = dict(vars(flags) if isinstance(flags, argparse.Namespace) else flags)
    file = given.pop("config", None)
    names = [field.name for field in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
    values = {}
    if file is not None:
        for key, value in _read(file).items():
            check_choice(f"{file}", key.replace("-", "_"), names)
            values[key.replace("-", "_")] = value
    values |= {name: given[name] for name in names if name in given}
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        if field.name in values:
            values[field.name] = _convert(field.name, values[field.name], hints[field.name])
            if field.metadata["choices"]:
                for value in values[field.name] if isinstance(values[field.name], tuple) else [values[field.name]]:
                    check_choice(field.name, value, field.metadata["choices"])
    return kind(**values)


def as_mapping(config: Any) -> dict[str, Any]:
    """The settings as TOML can hold them: tuples as lists, settings that are None left out."""
    values = dataclasses.asdict(config)
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items() if value is not None
    }


def run_directory(out: str | os.PathLike, *, overwrite: bool) -> Path:
    """The directory of a run, made if missing; refused where it holds something and `overwrite` is False.

    With `overwrite`, what was made from the earlier run (comparison, report, figures) goes, since it would be taken for
    the new one's; its settings and trajectory stay until they are replaced.

    Raises:
        FileExistsError: as `check_run_directory`.
    """
    path = check_run_directory(out, overwrite=overwrite)
    path.mkdir(parents=True, exist_ok=True)
    remove_derived(path)
    return path


def check_run_directory(out: str | os.PathLike, *, overwrite: bool) -> Path:
    """Refuses what `run_directory` would, and changes nothing.

    Raises:
        FileExistsError: something is there already; or, with `overwrite`, something that is no run.
    """
    path = Path(out)
    used = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if used and not overwrite:
        raise FileExistsError(
            f"{path}: expected a new or empty run directory, found one in use; choose another --out, "
            "or pass --overwrite to replace what is there."
        )
    if used and not holds_run(path):
        raise FileExistsError(f"{path}: expected a run to overwrite, found other files; choose another --out.")
    return path


def holds_run(path: Path) -> bool:
    """Whether a directory has the settings or the trajectory of a run."""
    return any((path / name).exists() for name in ("config.toml", "trajectory.nc"))


def remove_derived(path: Path) -> None:
    """Removes what was made from the run in a directory: comparison, report, figures."""
    figures = [file for kind in ("png", "pdf") for file in path.glob(f"figures/*.{kind}")]
    for file in (path / "comparison.nc", path / "report.html", *figures):
        file.unlink(missing_ok=True)


def write_config(config: Any, path: Path) -> Path:
    """Writes everything resolved to `config.toml`, all or nothing; `--config` reads it back."""
    file = path / "config.toml"
    # Whether to replace a run is said anew each time, not remembered with its settings.
    text = tomli_w.dumps({k: v for k, v in as_mapping(config).items() if k != "overwrite"})
    with replacing(file) as part:
        part.write_text(text)
    return file


def _read(file: str) -> dict[str, Any]:
    try:
        with open(file, "rb") as handle:
            return tomllib.load(handle)
    except FileNotFoundError:
        raise ValueError(f"config: expected a TOML file, {file} does not exist.") from None
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"config: expected a TOML file, {file} is not one: {error}.") from None


def _element(hint: Any) -> tuple[type, bool]:
    """The type of one value, and whether there are several: int, False of `int | None`; float, True of tuples."""
    options = [h for h in typing.get_args(hint) if h is not type(None)] if isinstance(hint, types.UnionType) else [hint]
    if typing.get_origin(options[0]) is tuple:
        return typing.get_args(options[0])[0], True
    return options[0], False


def _convert(name: str, value: Any, hint: Any) -> Any:
    of, many = _element(hint)
    if many:
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(_convert_one(name, v, of) for v in values)
    return value if value is None else _convert_one(name, value, of)


def _convert_one(name: str, value: Any, of: type) -> Any:
    if of is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, of) or (of is int and isinstance(value, bool)):
        raise ValueError(f"{name}: expected {of.__name__}, got {value!r} ({type(value).__name__}).")
    return value
