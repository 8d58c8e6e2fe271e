"""Values in the type that an annotation asks for: of settings from Python, files and flags, of options of functions.

Nothing is guessed: whole numbers do for real ones and lists for tuples, numpy's scalars for Python's, and all else is
refused by name, with what was expected and what came.
"""

import collections.abc
import math
import numbers
import types
import typing
from typing import Any, NamedTuple

import numpy as np

from ntkcollapse._checks import check_choice

WORDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class FloatingType:
    """The annotation of an argument that takes a floating type of JAX by its name."""


class Whole(NamedTuple):
    """The whole numbers that are taken, and how an error says so."""

    least: int = -(2**63)
    most: int = 2**63 - 1
    words: str = "of at most 64 bits"


ANY_WHOLE = Whole()
# Seeds: what JAX and numpy both take as they are. JAX takes others modulo this.
SEED = Whole(0, 2**32 - 1, "from 0 to 2³² − 1")


def seeded(seed: Any) -> int:
    """The seed of random numbers, checked: none of them is drawn from what is not said.

    Raises:
        ValueError: no whole number from 0 to 2³² − 1.
    """
    return coerced("seed", seed, int, whole=SEED)


def coerced(name: str, value: Any, kind: Any, *, whole: Whole = ANY_WHOLE, example: Any = None) -> Any:
    """The value in the type `kind`: bool, int, float, str, `FloatingType`, a literal, or unions and lists of those.

    Raises:
        ValueError: a value of another type, a number that is not finite or, of whole ones, outside `whole`; or text
            that no file could hold.
    """
    if isinstance(value, np.generic):
        value = value.item()
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _of_union(name, value, members, whole)
    if origin is typing.Literal:
        check_choice(name, value, members)
        return value
    if origin in (tuple, collections.abc.Sequence):
        fixed = origin is tuple and members[-1] is not Ellipsis
        fits = isinstance(value, list | tuple) and (not fixed or len(value) == len(members))
        if not fits:
            expected = f"{len(members)} entries" if fixed else f"a list, each entry {_words(members[0])}"
            raise _wrong(name, expected + (f", as in {example!r}" if example else ""), value)
        kinds = members if fixed else [members[0]] * len(value)
        return tuple(coerced(name, *pair, whole=whole) for pair in zip(value, kinds, strict=True))
    if kind is FloatingType:
        return _floating(name, value)
    if kind not in WORDS:
        raise ValueError(
            f"{name}: expected to be left out, since it is neither number nor text; got {shown(value)}. Leave it out."
        )
    return _plain(name, value, kind, whole)


def shown(value: Any) -> str:
    """The value as an error shows it: not longer than a line."""
    try:
        text = repr(value)
    except ValueError:
        text = "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:60]} ... {text[-20:]}"


def _of_union(name: str, value: Any, members: tuple[Any, ...], whole: Whole) -> Any:
    if value is None and types.NoneType in members:
        return None
    *others, last = [member for member in members if member is not types.NoneType]
    for member in others:
        try:
            return coerced(name, value, member, whole=whole)
        except ValueError:
            continue
    return coerced(name, value, last, whole=whole)


def _plain(name: str, value: Any, kind: Any, whole: Whole) -> Any:
    if kind is str and isinstance(value, str):
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError(f"{name}: expected text that UTF-8 can hold, without NUL; got {shown(value)}.")
        return value
    number: Any = {int: numbers.Integral, float: numbers.Real}.get(kind, kind)
    if not isinstance(value, number) or (isinstance(value, bool) and kind is not bool):
        raise _wrong(name, WORDS[kind], value)
    if kind is int and not whole.least <= value <= whole.most:
        raise ValueError(f"{name}: expected a whole number {whole.words}, got {shown(value)}.")
    if kind is float and not _is_finite(value):
        raise _wrong(name, WORDS[float], value)
    return kind(value)


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def _floating(name: str, value: Any) -> Any:
    import jax.numpy as jnp

    try:
        dtype = jnp.dtype(value)
    except TypeError:
        raise _wrong(name, "a floating type such as float32", value) from None
    if not jnp.issubdtype(dtype, jnp.floating):
        raise _wrong(name, "a floating type such as float32", value)
    return getattr(jnp, dtype.name)


def _words(kind: Any) -> str:
    return WORDS.get(kind, "as its annotation says")


def _wrong(name: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"{name}: expected {expected}, got {shown(value)} ({type(value).__name__}).")
