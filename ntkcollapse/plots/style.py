"""How things are drawn: one colour for one quantity, one line for one producer, everywhere."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from ntkcollapse._files import replacing
from ntkcollapse._palette import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY

# The network is measured: dots. Theory is computed: lines.
NETWORK = {"linestyle": "none", "marker": "o", "markersize": 3.2, "markeredgewidth": 0, "alpha": 0.85}
THEORIES = (
    {"linestyle": "-", "linewidth": 1.2},
    {"linestyle": "--", "linewidth": 1.4},
    {"linestyle": ":", "linewidth": 1.8},
    {"linestyle": "-.", "linewidth": 1.4},
    {"linestyle": (0, (5, 1, 1, 1, 1, 1)), "linewidth": 1.4},
    {"linestyle": (0, (1, 3)), "linewidth": 1.4},
)


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib settings of every figure here, for the duration of a `with` block."""
    settings: dict[Any, Any] = {
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.labelsize": 9,
        "legend.fontsize": 7.5,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.dpi": 110,
        "savefig.dpi": 200,
        "pdf.fonttype": 42,
        "axes.formatter.useoffset": False,
        "axes.prop_cycle": cycler(color=[BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK]),
    }
    # Not `rc_context`: it puts back every setting, also that figures show themselves in notebooks, which the first
    # figure of a notebook switches on while this block runs.
    before = {name: mpl.rcParams[name] for name in settings}
    mpl.rcParams.update(settings)
    try:
        yield
    finally:
        mpl.rcParams.update(before)


def label_decades(axis: Axis) -> None:
    """Plain round numbers where a logarithmic axis spans less than three decades; powers of ten elsewhere.

    From four decades on there are no ticks between those: they stand too close to be told apart, and are most of the
    time that a figure takes to draw.
    """
    low, high = axis.get_view_interval()
    if high < 1000 * low:
        # Within one factor of three there may be no 1, 2 or 5 at all. Evenly spaced numbers run together at the right
        # of a logarithmic axis, unless it is so short that it is nearly linear.
        subs = (1.0, 2.0, 5.0) if high > 6 * low else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
        subs = (1.0, 3.0) if high > 100 * low else subs
        axis.set_major_locator(LogLocator(subs=subs) if high > 2.5 * low else MaxNLocator(4))
        axis.set_major_formatter(FormatStrFormatter("%g"))
    if not 1000 * low <= high < 10_000 * low:
        axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Writes the figure as PDF and PNG beside each other and closes it; returns both files.

    Each is there whole or not at all.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(suffix) for suffix in (".pdf", ".png")]
    # Both have one layout: finding it takes as long as drawing.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    box = figure.get_tightbbox().padded(mpl.rcParams["savefig.pad_inches"])
    for file in files:
        drawn = io.BytesIO()
        figure.savefig(drawn, format=file.suffix[1:], bbox_inches=box)
        with replacing(file) as part:
            part.write_bytes(drawn.getbuffer())
    plt.close(figure)
    return files
