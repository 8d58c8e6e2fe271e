"""Options given as name=value, for a function that says in its signature what it takes."""

import ast
import collections.abc
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax.numpy as jnp

from ntkcollapse._checks import check_choice

_WORDS = {"true": True, "false": False, "none": None}


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
            raise ValueError(f"{name}: expected entries of the form name=value, got {option!r}.")
        if key in parsed:
            raise ValueError(f"{name}: expected every option once, got {key} again in {option!r}; leave one out.")
        try:
            parsed[key] = _frozen(ast.literal_eval(value))
        except (ValueError, SyntaxError):
            parsed[key] = _WORDS.get(value, value)
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
        option: _of_parameter(f"{option} (option of {of})", _frozen(value), parameters[option])
        for option, value in options.items()
    }


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _of_parameter(name: str, value: Any, parameter: inspect.Parameter) -> Any:
    default, members = parameter.default, _members(parameter.annotation)
    if value is None and (default is None or type(None) in members):
        return None
    if "dtype" in parameter.name:
        return _dtype(name, value)
    for member in members:
        if typing.get_origin(member) is typing.Literal:
            check_choice(name, value, typing.get_args(member))
            return value
        if typing.get_origin(member) is not collections.abc.Sequence:
            continue
        of = typing.get_args(member)[0]
        if not isinstance(value, tuple):
            raise _wrong(name, f"a list, each entry {_TYPES[of]}, as in {default!r}", value)
        return tuple(_like(name, entry, of()) for entry in value)
    if isinstance(value, str) and str in members:
        return value
    if default is None or default is inspect.Parameter.empty:
        default = next((of() for of in (float, int, str, bool) if of in members), default)
    return _like(name, value, default)


_TYPES: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _like(name: str, value: Any, default: Any) -> Any:
    """The value in the type of the default."""
    if isinstance(default, tuple):
        if not isinstance(value, tuple) or len(value) != len(default):
            raise _wrong(name, f"{len(default)} entries, as in {default!r}", value)
        return tuple(_like(name, *pair) for pair in zip(value, default, strict=True))
    if type(default) not in _TYPES:
        raise ValueError(
            f"{name}: expected to be left out, since it is neither number nor text; got {value!r}. Leave it out."
        )
    of = type(default)
    number = numbers.Integral if of is int else numbers.Real
    if of in (bool, str):
        fits = isinstance(value, of)
    else:
        fits = isinstance(value, number) and not isinstance(value, bool) and math.isfinite(value)
    if not fits:
        raise _wrong(name, _TYPES[of], value)
    return of(value)  # pyright: ignore[reportArgumentType]: a bool, text or a real number by now


def _dtype(name: str, value: Any) -> Any:
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        raise _wrong(name, "a floating type such as float32", value) from None
    if not jnp.issubdtype(dtype, jnp.floating):
        raise _wrong(name, "a floating type such as float32", value)
    return getattr(jnp, dtype.name)


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    if typing.get_origin(hint) is typing.Union or isinstance(hint, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _wrong(name: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"{name}: expected {expected}, got {value!r} ({type(value).__name__}).")
