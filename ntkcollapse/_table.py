"""Tables for a terminal, for LaTeX, and as comma-separated values."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from ntkcollapse._checks import check_choice
from ntkcollapse.choices import TABLES


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


class Table(str):
    """A table as text, and the same as LaTeX or comma-separated values.

    Columns are aligned: the first to the left, all others to the right.

    header, rows: its cells, as they are printed; note: lines below it.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str

    def __new__(cls, header: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> "Table":
        cells = [tuple(map(str, row)) for row in (header, *rows)]
        self = super().__new__(cls, _FORMATS[_format.get()](cells, note))
        self.header, self.rows, self.note = cells[0], tuple(cells[1:]), note
        return self

    def to_latex(self) -> str:
        """Gives a `tabular` with the rules of the package booktabs; notes stand above it as comments."""
        return _as_latex([self.header, *self.rows], self.note)

    def to_csv(self) -> str:
        """Gives comma-separated values, as they are printed; notes stand below, each line after a #."""
        return _as_csv([self.header, *self.rows], self.note)


@contextmanager
def printed_as(name: str) -> Iterator[None]:
    """Within it tables are made as "text", "latex" or "csv".

    Raises:
        ValueError: another name.
    """
    check_choice("tables", name, TABLES)
    token = _format.set(name)
    try:
        yield
    finally:
        _format.reset(token)


def _as_text(cells: Sequence[Sequence[str]], note: str) -> str:
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]

    def line(row: Sequence[str]) -> str:
        first, rest = row[0].ljust(widths[0]), [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        return "  ".join([first, *rest]).rstrip()

    head, *body = map(line, cells)
    return "\n".join([head, "-" * len(head), *body, *([note] if note else [])])


def _as_latex(cells: Sequence[Sequence[str]], note: str) -> str:
    head, *body = (" & ".join(map(_tex, row)) + r" \\" for row in cells)
    comments = [f"% {line}" for line in note.splitlines()]
    begin = [r"\begin{tabular}{l" + "r" * (len(cells[0]) - 1) + "}", r"\toprule", head, r"\midrule"]
    return "\n".join([*comments, *begin, *body, r"\bottomrule", r"\end{tabular}"])


def _as_csv(cells: Sequence[Sequence[str]], note: str) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[cell.strip() for cell in row] for row in cells])
    return "\n".join([text.getvalue().rstrip("\n"), *(f"# {line}" for line in note.splitlines())])


_FORMATS = {"text": _as_text, "latex": _as_latex, "csv": _as_csv}
_format: ContextVar[str] = ContextVar("tables", default="text")

# Characters that mean something to LaTeX, and those that its fonts lack.
_SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"$|$", "<": "$<$",
    ">": "$>$",
}  # fmt: skip
_SYMBOLS = {
    "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "ε": r"\varepsilon", "η": r"\eta", "κ": r"\kappa",
    "λ": r"\lambda", "μ": r"\mu", "π": r"\pi", "ρ": r"\rho", "σ": r"\sigma", "θ": r"\theta", "Θ": r"\Theta",
    "Σ": r"\Sigma", "Γ": r"\Gamma", "±": r"\pm", "−": "-", "×": r"\times", "·": r"\cdot", "⊗": r"\otimes",
    "≤": r"\le", "≥": r"\ge", "→": r"\to", "√": r"\surd", "‖": r"\|", "ᵀ": r"^\top", "⁻¹": "^{-1}", "²": "^2",
    "∂": r"\partial", "∞": r"\infty",
}  # fmt: skip
_IN_CELLS = re.compile(
    r"(?P<power>(?<![\w.])(?P<digits>-?\d+(?:\.\d+)?)e(?P<exponent>[+-]\d+))"
    r"|(?P<minus>(?<![\w.)])-(?=\d))"
    r"|(?P<times>\bx(?=\d))"
    r"|(?P<index>(?<![A-Za-z_])(?P<letter>[A-Za-zκγλΘ])_(?P<below>[A-Za-z0-9]+)(?![\w]))"
    r"|(?P<symbol>⁻¹|[" + "".join(s for s in _SYMBOLS if len(s) == 1) + "])"
    r"|(?P<special>[" + re.escape("".join(_SPECIAL)) + "])"
)


def _tex(cell: str) -> str:
    """A cell in LaTeX: powers of ten, signs, indices and Greek letters as formulas, other characters as themselves."""

    def said(match: re.Match[str]) -> str:
        part = match.groupdict()
        if part["power"]:
            return rf"${part['digits']} \cdot 10^{{{int(part['exponent'])}}}$"
        if part["minus"]:
            return "$-$"
        if part["times"]:
            return r"$\times$"
        if part["index"]:
            letter = _SYMBOLS.get(part["letter"], part["letter"])
            return rf"${letter}_{{\mathrm{{{part['below']}}}}}$"
        return f"${_SYMBOLS[part['symbol']]}$" if part["symbol"] else _SPECIAL[part["special"]]

    # Neighbouring formulas are one.
    return _IN_CELLS.sub(said, cell.strip()).replace("$$", "")
