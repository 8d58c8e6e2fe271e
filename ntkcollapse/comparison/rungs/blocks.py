"""Rungs 2c: class pairs and q blocks of the directions through which means and deviations drive each other, at the
start and along their measured path; and 2d: resolvents on class indicators and on the residual at the start.
"""

from typing import Any, Literal, get_args

from ntkcollapse._checks import check_choice
from ntkcollapse.comparison._memory import fits_memory, pairs
from ntkcollapse.comparison.rungs._course import Course
from ntkcollapse.comparison.start import MeasuredStart
from ntkcollapse.krylov_kernel import most_blocks

Method = Literal["auto", "kernel", "products"]


def blocks(
    start: MeasuredStart, times: Any, *, blocks: int, groups: int = 0, method: Method = "auto", **options: Any
) -> Course:
    """The `KrylovKernel` of so many blocks (all that there is room for, where that is less) at the start.

    Its integration costs the same for every N. groups: rates of what it leaves out, see `KrylovKernel.with_groups`.

    "products" makes it by products with the network's feature kernel, without an N × N array; "kernel" from the sample
    kernel of rung 3, which takes less where that fits; "auto" takes it there.

    Raises:
        ValueError: another method.
    """
    q, by_products = min(blocks, most_blocks(start.classes)), _by_products(start, method)
    kernel = start.krylov_kernel(q, groups=groups, by_products=by_products)
    name = f"blocks:{blocks}" + (f":groups={groups}" if groups else "")
    return Course.by_kernel(name, start, kernel, times, **options)


def blocks_path(start: MeasuredStart, times: Any, *, blocks: int, method: Method = "auto", **options: Any) -> Course:
    """The same with T and λ as they are at every record, between the directions of the start.

    Raises:
        ValueError: another method.
    """
    q, by_products = min(blocks, most_blocks(start.classes)), _by_products(start, method)
    path = start.krylov_path(q, by_products=by_products)
    return Course.by_kernel(f"blocks-path:{blocks}", start, path, times, **options)


def resolvents(start: MeasuredStart, times: Any, *, resolvents: int, method: Method = "auto", **options: Any) -> Course:
    """The `KrylovKernel` of so many resolvents, on class indicators and on the residual at the start.

    Raises:
        ValueError: another method, or a start with a W of zeros.
    """
    kernel = start.resolvent_kernel(resolvents, by_products=_by_products(start, method))
    return Course.by_kernel(f"resolvents:{resolvents}", start, kernel, times, **options)


def _by_products(start: MeasuredStart, method: Method) -> bool:
    """Whether the kernel is made by products."""
    check_choice("method", method, get_args(Method))
    if method == "auto":
        return not fits_memory(pairs(start.classes.num_samples))
    return method == "products"
