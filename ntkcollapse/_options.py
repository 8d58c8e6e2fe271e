"""Options given as name=value, for a function that says in its signature what it takes."""

import ast
import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ntkcollapse._checks import check_choice
from ntkcollapse._coercion import WORDS, FloatingType, coerced, shown

_VALUES = {"true": True, "false": False, "none": None}


def parse_options(name: str, options: tuple[str, ...]) -> tuple[tuple[str, Any], ...]:
    """("form=huang2017", "depth=3", "nesterov=false") as (("form", "huang2017"), ("depth", 3), ("nesterov", False)).

    Values are literals of Python, or ``true``, ``false`` and ``none``; all else is text. Lists become tuples.

    Raises:
        ValueError: an entry that is not name=value, or a name given twice.
    """
    parsed: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"{name}: expected entries of the form name=value, got {shown(option)}.")
        if key in parsed:
            raise ValueError(f"{name}: expected every option once, got {key} again in {shown(option)}; leave one out.")
        try:
            parsed[key] = _frozen(ast.literal_eval(value))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            parsed[key] = _VALUES.get(value, value)
    return tuple(parsed.items())


def check_options(
    of: str, function: Callable, options: Mapping[str, Any], *, taken: Collection[str] = ()
) -> dict[str, Any]:
    """The options in the types that the signature of `function` asks for, by default value or else by annotation.

    Whole numbers do for real ones, and lists for tuples. Options that are functions or transformations have no
    spelling here. Names in `taken` are no options.

    Raises:
        ValueError: an option that `function` does not have, or a value of another type, or a number that is not finite.
    """
    parameters = {name: p for name, p in inspect.signature(function).parameters.items() if name not in taken}
    for option in options:
        check_choice(f"option of {of}", option, parameters)
    return {
        option: _option(f"{option} (option of {of})", value, parameters[option]) for option, value in options.items()
    }


def _option(name: str, value: Any, parameter: inspect.Parameter) -> Any:
    members = _members(parameter.annotation)
    if value is None and (parameter.default is None or types.NoneType in members):
        return None
    return coerced(name, _frozen(value), _kind(parameter, members), example=parameter.default)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _members(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _kind(parameter: inspect.Parameter, members: tuple[Any, ...]) -> Any:
    """The type of a parameter in the terms of `coerced`: of its annotation where that is plain, else of its default."""
    default = parameter.default
    lists = [m for m in members if typing.get_origin(m) in (typing.Literal, collections.abc.Sequence)]
    plain = [of for of in (float, int, str, bool) if of in members]
    if "dtype" in parameter.name:
        return FloatingType
    if lists:
        return lists[0]
    if isinstance(default, tuple):
        return tuple[tuple(type(entry) for entry in default)]  # pyright: ignore[reportInvalidTypeArguments]
    if type(default) in WORDS and len(plain) != 1:
        return type(default) | str if str in plain else type(default)
    return plain[0] if plain else parameter.annotation
