"""How many digits accelerators keep in products of matrices."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Literal, ParamSpec, TypeVar, get_args

import jax

from ntkcollapse._checks import check_choice

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Of float32: all digits; those of two or three bfloat16; of TF32; of bfloat16; what the platform takes by itself.
Precision = Literal["highest", "high", "tensorfloat32", "bfloat16", "default"]


def exact_products(precision: Precision | str | None = None) -> AbstractContextManager:
    """Within it, products of matrices and convolutions keep all digits of their type, whatever computes them.

    By default TF32 and bfloat16 units give three: kernels would be good to 1e-3, and engines would differ. Another
    `precision` is asked for by name, or for JAX as a whole (`jax_default_matmul_precision`).

    Raises:
        ValueError: an unknown name.
    """
    if precision is not None:
        check_choice("precision", precision, get_args(Precision))
        return jax.default_matmul_precision(precision)
    chosen = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return jax.default_matmul_precision("highest") if chosen is None else nullcontext()


def in_precision(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """A decorator: the function computes in its keyword argument `precision`, or without one in all digits."""

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with exact_products(kwargs.get("precision")):  # pyright: ignore[reportArgumentType]
            return function(*args, **kwargs)

    return call
