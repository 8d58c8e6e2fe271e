"""Tables for a terminal."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def number(value: Any) -> str:
    """Four significant digits in at most nine columns."""
    x = float(value)
    if np.isnan(x):
        return "-"
    if x == 0:
        return "0"
    return f"{x:.4g}" if 1e-3 <= abs(x) < 1e5 else f"{x:.2e}"


def with_error(value: Any, error: Any) -> str:
    """A number to the digit that its error reaches, of six at most, and the error to one: 13.095 ± 0.006."""
    x, e = float(value), float(error)
    if not (np.isfinite(x) and np.isfinite(e) and e > 0):
        return f"{number(x)} ± {number(e)}"
    digits = -int(f"{e:.0e}".split("e")[1])
    if not 1e-3 <= max(abs(x), e) < 1e5:
        return f"{x:.3e} ± {e:.0e}"
    if digits > 5 - int(f"{x:.5e}".split("e")[1]):
        return f"{x:.6g} ± {e:.0e}"
    return f"{x:.{max(digits, 0)}f} ± {float(f'{e:.0e}'):.{max(digits, 0)}f}"


def percent(value: Any) -> str:
    """A relative difference with its sign: +12%; a factor where it is large: x13."""
    x = float(value)
    if np.isnan(x):
        return "-"
    return f"{100 * x:+.1f}%" if abs(x) < 10 else f"x{x + 1:.3g}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned: the first to the left, all others to the right."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first, rest = row[0].ljust(widths[0]), [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        return "  ".join([first, *rest]).rstrip()

    return "\n".join([line(cells[0]), "-" * len(line(cells[0])), *[line(row) for row in cells[1:]]])
