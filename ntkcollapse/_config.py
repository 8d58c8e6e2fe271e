"""Settings of a command: one frozen dataclass, filled from defaults, then a TOML file, then flags.

A field is declared once, with its help and unit in its metadata; the flag, the key in the file and the line in the
saved settings all follow from it.
"""

import argparse
import dataclasses
import functools
import os
import textwrap
import tomllib
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ntkcollapse._checks import check_choice, check_path
from ntkcollapse._coercion import ANY_WHOLE, Whole, coerced
from ntkcollapse.choices import meanings

Config = TypeVar("Config")


class Settings:
    """Base of the dataclasses of settings: every field is brought into its type when they are built.

    Raises:
        ValueError: a value of the wrong type, or a choice that is not offered.
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]: those below are dataclasses
            value = _checked(field.name, getattr(self, field.name), type(self), field)
            object.__setattr__(self, field.name, value)


def setting(
    default: Any,
    help: str,
    *,
    choices: Collection[str] | None = None,
    refused: Mapping[str, str] | None = None,
    whole: Whole = ANY_WHOLE,
    flag: str | None = None,
    positional: bool = False,
) -> Any:
    """A dataclass field with what its flag says of it.

    `choices` may be a table of `ntkcollapse.choices`, whose meanings stand in the help; `refused` says why some names
    are none; `whole` bounds whole numbers; `flag` names one that Python could not name a field by; a positional setting
    is given without one, and may be left out.
    """
    metadata = dict(help=help, choices=choices, refused=refused or {}, whole=whole, flag=flag, positional=positional)
    return dataclasses.field(default=default, metadata=metadata)


class HelpFormatter(argparse.HelpFormatter):
    """Keeps the lines of a help text, each wrapped by itself."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        lines = []
        for line in text.splitlines():
            lines += textwrap.wrap(line, width, subsequent_indent="    " if line.startswith(" ") else "")
        return lines


def add_flags(parser: argparse.ArgumentParser, kind: type) -> None:
    """One flag a field: `per_class` becomes `--per-class`; booleans get a `--no-` form too; and `--config FILE`."""
    parser.add_argument("--config", metavar="FILE.toml", help="settings from a file; flags go before them")
    for field in dataclasses.fields(kind):
        of, many = _element(_hints(kind)[field.name])
        options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": _help(field)}
        if of is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = field.name.split("_")[-1].upper()
            if field.metadata["choices"] and not meanings(field.metadata["choices"]):
                options["metavar"] = "{" + ",".join(field.metadata["choices"]) + "}"
            if many:
                options["nargs"] = "+"
        if field.metadata["positional"]:
            del options["dest"]
            parser.add_argument(field.name, nargs="?", **{k: v for k, v in options.items() if k != "nargs"})
            continue
        parser.add_argument(field.metadata["flag"] or "--" + field.name.replace("_", "-"), **options)


def _help(field: dataclasses.Field) -> str:
    default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    has_none = default is None or default == "" or isinstance(default, bool)
    lines = [field.metadata["help"] + ("" if has_none else f" (default: {default})")]
    lines += [f"  {name}: {meaning}" for name, meaning in meanings(field.metadata["choices"] or ()).items()]
    return "\n".join(lines).replace("%", "%%")


def resolve(kind: type[Config], flags: Mapping[str, Any] | argparse.Namespace) -> Config:
    """The settings: defaults, then a preset, then the file named by `config`, then the flags that were given.

    A preset is named by the file or a flag, where the settings have a field of that name and `PRESETS`, name → file. In
    files and flags, one value does for a list of one.

    Raises:
        ValueError: a key that is no setting, a value of the wrong type, or a choice that is not offered.
    """
    are_text = isinstance(flags, argparse.Namespace)
    given = dict(vars(flags) if are_text else flags)
    file = given.pop("config", None)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    values = {} if file is None else _of_file(file, kind, fields)
    for name in fields.keys() & given.keys():
        value = _listed(given[name], kind, name)
        values[name] = _checked(name, _read(value, kind, name) if are_text else value, kind, fields[name])
    preset = getattr(kind, "PRESETS", {}).get(values.get("preset"))
    if preset is not None:
        values = _of_file(preset, kind, fields) | values
    return kind(**values)


def _of_file(file: str | os.PathLike, kind: type, fields: Mapping[str, dataclasses.Field]) -> dict[str, Any]:
    """The settings that a TOML file names."""
    values = {}
    for key, value in read_toml(file).items():
        name = key.replace("-", "_")
        check_choice(f"{file}", name, fields)
        values[name] = _checked(f"{file}: {key}", _listed(value, kind, name), kind, fields[name])
    return values


def read_toml(file: str | os.PathLike) -> dict[str, Any]:
    """What a TOML file says; a byte order mark before it is passed over.

    Raises:
        ValueError: the file is missing or no TOML file.
    """
    check_path("config", file)
    shown = file if os.fspath(file) else "''"
    try:
        return tomllib.loads(Path(file).read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise ValueError(f"config: expected a TOML file, {shown} does not exist.") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"config: expected a TOML file in UTF-8, {shown} is not: byte {error.start} is "
            f"{error.object[error.start]:#04x}; save it as UTF-8."
        ) from None
    except RecursionError:
        raise ValueError(
            f"config: expected a TOML file, {shown} has lists or tables too deep within each other."
        ) from None
    except (ValueError, IsADirectoryError) as error:
        raise ValueError(f"config: expected a TOML file, {shown} is not one: {error}.") from None


def as_mapping(config: Any) -> dict[str, Any]:
    """The settings as TOML can hold them: tuples as lists, settings that are None left out."""
    values = dataclasses.asdict(config)
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items() if value is not None
    }


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _element(hint: Any) -> tuple[Any, bool]:
    """The type of one value, and whether there are several: int, False of `int | None`; float, True of tuples."""
    options = [h for h in typing.get_args(hint) if h is not type(None)] if isinstance(hint, types.UnionType) else [hint]
    if typing.get_origin(options[0]) is tuple:
        return typing.get_args(options[0])[0], True
    return options[0], False


def _listed(value: Any, kind: type, name: str) -> Any:
    """A lone value as a list of one, where the setting is a list."""
    return (value,) if _element(_hints(kind)[name])[1] and not isinstance(value, list | tuple) else value


def _read(value: Any, kind: type, name: str) -> Any:
    """Text of flags as the numbers it spells; as it is where it spells none, to be refused by name."""
    of = _element(_hints(kind)[name])[0]
    if isinstance(value, list | tuple):
        return tuple(_read(entry, kind, name) for entry in value)
    if not isinstance(value, str) or of not in (int, float):
        return value
    try:
        return of(value)
    except ValueError:
        return value


def _checked(said: str, value: Any, kind: type, field: dataclasses.Field) -> Any:
    value = coerced(said, value, _hints(kind)[field.name], whole=field.metadata["whole"])
    if field.metadata["choices"]:
        for one in value if isinstance(value, tuple) else () if value is None else (value,):
            check_choice(said, one, field.metadata["choices"], refused=field.metadata["refused"])
    return value
