"""Rungs 2c: class pairs and q blocks of the directions through which means and deviations drive each other."""

from typing import Any, Literal, get_args

from ntkcollapse._checks import check_choice
from ntkcollapse.comparison._memory import fits_memory, pairs
from ntkcollapse.comparison.rungs._course import Course
from ntkcollapse.comparison.start import MeasuredStart
from ntkcollapse.krylov_kernel import most_blocks

Method = Literal["auto", "kernel", "products"]


def blocks(start: MeasuredStart, times: Any, *, blocks: int, method: Method = "auto", **options: Any) -> Course:
    """The `KrylovKernel` of so many blocks (all that there is room for, where that is less) at the start.

    Its integration costs the same for every N.

    "products" makes it by products with the network's feature kernel, without an N × N array; "kernel" from the sample
    kernel of rung 3, which takes less where that fits; "auto" takes it there.

    Raises:
        ValueError: another method.
    """
    check_choice("method", method, get_args(Method))
    if method == "auto":
        method = "kernel" if fits_memory(pairs(start.classes.num_samples)) else "products"
    kernel = start.krylov_kernel(min(blocks, most_blocks(start.classes)), by_products=method == "products")
    return Course.by_kernel(f"blocks:{blocks}", start, kernel, times, **options)
