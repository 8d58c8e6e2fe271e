"""Checks of arguments, made before any compute: what was given, what was expected, what to do about it.

Values that are being traced (under `jit`, `vmap` or `grad`) pass unseen: only their shapes are known.
"""

import difflib
import errno
import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np


def is_traced(*values: Any) -> bool:
    """Whether any array in these pytrees has no value yet."""
    from jax.core import Tracer

    return any(isinstance(leaf, Tracer) for leaf in _leaves(values))


def _leaves(value: Any) -> list[Any]:
    # Names of choices are checked where JAX is not imported yet.
    import jax

    return jax.tree.leaves(value)


def check_real(**arrays: Any) -> None:
    """Every array, given under its name, holds real numbers, none of them masked (conversion would drop the rest)."""
    from jax.dtypes import issubdtype

    for name, value in arrays.items():
        for leaf in _leaves(value):
            dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
            if issubdtype(dtype, np.complexfloating):
                raise ValueError(
                    f"{name}: expected real numbers, got dtype {dtype}; take `.real` where the imaginary part is "
                    "rounding, or stack both parts as real numbers."
                )
            if not (issubdtype(dtype, np.number) or issubdtype(dtype, np.bool_)):
                raise ValueError(f"{name}: expected real numbers, got dtype {dtype}; convert with astype(float).")
        check_unmasked(name, value)


def check_arrays(**arrays: Any) -> None:
    """Every value, given under its name, is or makes one array of real numbers, none of them masked.

    Raises:
        TypeError: what is no array: None, a dictionary, rows of unequal length, whole numbers of more than 64 bits.
        ValueError: as `check_real`.
    """
    for name, value in arrays.items():
        if not hasattr(value, "dtype") and not is_traced(value):
            try:
                dtype = np.asarray(value).dtype
            except (ValueError, TypeError) as error:
                raise TypeError(f"{name}: expected an array, got {type(value).__name__} ({error}).") from None
            if dtype in (np.dtype(object), np.dtype(np.uint64)):
                raise TypeError(
                    f"{name}: expected an array of numbers of at most 64 bits, got {type(value).__name__}, which "
                    "makes none."
                )
    check_real(**arrays)


def check_key(name: str, key: Any) -> None:
    """The value is a key of JAX's random numbers."""
    from jax.dtypes import issubdtype, prng_key

    dtype = getattr(key, "dtype", None)
    if dtype is None or not (issubdtype(dtype, prng_key) or dtype == np.uint32):
        raise TypeError(f"{name}: expected a key such as jax.random.key(0), got {type(key).__name__} of dtype {dtype}.")


def check_unmasked(name: str, value: Any) -> None:
    """No array in the pytree has a mask, which JAX would drop."""
    for leaf in _leaves(value):
        if isinstance(leaf, np.ma.MaskedArray):
            raise ValueError(
                f"{name}: expected an array without a mask, got {np.ma.count_masked(leaf)} of {leaf.size} entries "
                "masked; leave those samples out, or fill them with numpy.ma.filled."
            )


def check_finite(name: str, value: Any) -> None:
    """Every number in the pytree is real, unmasked and finite."""
    check_real(**{name: value})
    if is_traced(value):
        return
    for leaf in _leaves(value):
        finite = np.isfinite(np.asarray(leaf))
        if not finite.all():
            bad = tuple(int(i) for i in np.argwhere(~finite)[0])
            where = f" at index {bad}" if bad else ""
            raise ValueError(
                f"{name}: expected finite numbers, got {np.asarray(leaf)[bad]}{where} "
                f"({int((~finite).sum())} of {finite.size} entries are not finite); "
                "find what produced it before going on."
            )


def check_shape(name: str, value: Any, expected: Sequence[int | None], meaning: str) -> None:
    """The shape is `expected`, where None stands for any length."""
    try:
        shape = np.shape(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: expected an array, {meaning}; got {type(value).__name__} ({error}).") from None
    fits = len(shape) == len(expected) and all(e in (None, s) for s, e in zip(shape, expected, strict=True))
    if not fits:
        wanted = "(" + ", ".join("any" if e is None else str(e) for e in expected) + ")"
        raise ValueError(f"{name}: expected shape {wanted}, {meaning}; got {shape}.")


def check_choice(
    name: str, value: Any, choices: Iterable[str], *, refused: Mapping[str, str] = MappingProxyType({})
) -> None:
    """The value is one of the names offered; the nearest one is suggested, or why the name is refused."""
    # A mapping may know more names than it lists.
    choices = choices if isinstance(choices, Mapping) else list(choices)
    is_plain = isinstance(value, str | int | float | None)
    if is_plain and value in choices:
        return
    if isinstance(value, str) and value in refused:
        raise ValueError(f"{name}: {value} is not offered: {refused[value]}.")
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}; got {value!r}.{hint}")


def check_positive(name: str, value: Any, *, zero: bool = False) -> None:
    """Every number in the pytree is finite and above zero (or, with `zero`, not below it)."""
    check_finite(name, value)
    if is_traced(value):
        return
    for leaf in _leaves(value):
        array = np.asarray(leaf)
        if not ((array >= 0) if zero else (array > 0)).all():
            wanted = "zero or above" if zero else "above zero"
            raise ValueError(f"{name}: expected numbers {wanted}, got {array.min()}.")


def check_number(name: str, value: Any) -> None:
    """The value is one finite real number, of Python or of an array without axes, and no truth value."""
    if isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}: expected a number, got {value!r}.")
    if is_traced(value) or not isinstance(value, numbers.Real):
        check_arrays(**{name: value})
    check_shape(name, value, (), "one number")
    check_finite(name, value)


def check_whole(name: str, *values: Any) -> None:
    """Every value is a whole number above zero, and no truth value."""
    for value in values:
        if not isinstance(value, numbers.Integral) or isinstance(value, bool):
            raise ValueError(f"{name}: expected a whole number, got {value!r} ({type(value).__name__}).")
        check_positive(name, value)


def check_path(name: str, path: Any) -> None:
    """The path is one that the file system can hold, whether something is there or not.

    Raises:
        TypeError: no path.
        ValueError: one with NUL, with letters that it cannot encode, or too long for it.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{name}: expected a path, got {type(path).__name__}.")
    shown = repr(path) if len(repr(path)) <= 100 else f"one of {len(repr(path))} characters"
    try:
        os.lstat(path)
    except ValueError as error:
        raise ValueError(f"{name}: expected a path that the file system can hold, got {shown} ({error}).") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(f"{name}: expected a path that the file system can hold, got {shown}; too long.") from None


def check_momentum(momentum: Any) -> None:
    """A number from 0 to below 1."""
    if not isinstance(momentum, numbers.Real) or not 0 <= float(momentum) < 1:
        raise ValueError(f"momentum: expected a number in [0, 1), got {momentum!r}.")


def check_increasing(name: str, times: Any, *, at_least: int = 2) -> None:
    """A vector of at least `at_least` finite, strictly increasing times."""
    check_finite(name, times)
    check_shape(name, times, (None,), "one time an entry")
    if np.shape(times)[0] < at_least:
        raise ValueError(f"{name}: expected at least {at_least} times, got {np.shape(times)[0]}.")
    if is_traced(times):
        return
    steps = np.diff(np.asarray(times, dtype=float))
    if not (steps > 0).all():
        i = int(np.argmin(steps > 0))
        raise ValueError(
            f"{name}: expected strictly increasing times, got {np.asarray(times)[i]} "
            f"then {np.asarray(times)[i + 1]} at index {i}; sort them and drop repetitions."
        )
