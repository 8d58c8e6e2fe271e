"""How things are drawn: one colour for one quantity, one line for one producer, everywhere."""

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

from ntkcollapse._palette import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY

COLOURS = {
    "loss": BLACK,
    "residual_single": BLUE,
    "residual_class": RED,
    "residual_global": GREEN,
    "nc1_papyan2020": SKY,
    "nc1_seleznova2023": BLUE,
    "nc1_tirer2022": PURPLE,
    "nc2_seleznova2023": RED,
    "nc3_seleznova2023": GREEN,
    "nc4_mismatch": ORANGE,
    "invariant_norm": BLACK,
    "invariant_relative": BLACK,
    "invariant_alignment": PURPLE,
    "necessary_condition": ORANGE,
    "kappa_diagonal": BLUE,
    "kappa_within": RED,
    "kappa_between": GREEN,
    "gamma_diagonal": BLUE,
    "gamma_within": RED,
    "gamma_between": GREEN,
    "kappa_alignment": BLUE,
    "gamma_alignment": ORANGE,
    "accuracy": BLACK,
    "train_loss": BLUE,
    "test_loss": ORANGE,
    "train_accuracy": BLUE,
    "test_accuracy": ORANGE,
}

LABELS = {
    "loss": r"$\frac{1}{2}\|R\|^2$",
    "residual_single": r"$\|R-R_{\mathrm{class}}\|$",
    "residual_class": r"$\|R_{\mathrm{class}}-R_{\mathrm{global}}\|$",
    "residual_global": r"$\|R_{\mathrm{global}}\|$",
    "nc1_papyan2020": r"NC1 $\mathrm{tr}(\Sigma_W\Sigma_B^{+})/C$",
    "nc1_seleznova2023": r"NC1 mean feature std",
    "nc1_tirer2022": r"NC1 $\mathrm{tr}\,\Sigma_W/\mathrm{tr}\,\Sigma_B$",
    "nc2_seleznova2023": "NC2 (class means: simplex ETF)",
    "nc3_seleznova2023": "NC3 (means aligned with $W$)",
    "nc4_mismatch": "NC4 (mismatch with nearest mean)",
    "invariant_norm": r"$\|W^\top W-HK^{-1}H^\top\|$",
    "invariant_relative": r"$\|W^\top W-HK^{-1}H^\top\|$, relative",
    "invariant_alignment": r"alignment of $W^\top W$, $HK^{-1}H^\top$",
    "necessary_condition": "distance from the form that collapse needs",
    "kappa_diagonal": r"$\kappa_d$",
    "kappa_within": r"$\kappa_c$",
    "kappa_between": r"$\kappa_n$",
    "gamma_diagonal": r"$\gamma_d$",
    "gamma_within": r"$\gamma_c$",
    "gamma_between": r"$\gamma_n$",
    "kappa_alignment": r"of $\Theta^h$ with $Y^\top Y$",
    "gamma_alignment": r"of $\Theta$ with $Y^\top Y$",
    "accuracy": "accuracy",
    "train_loss": "training loss",
    "test_loss": "test loss",
    "train_accuracy": "training accuracy",
    "test_accuracy": "test accuracy",
}

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


def label_short_decades(axis: Axis) -> None:
    """Plain round numbers where a logarithmic axis spans less than two decades; powers of ten elsewhere."""
    low, high = axis.get_view_interval()
    if high < 100 * low:
        # Within one factor of three there may be no 1, 2 or 5 at all. Evenly spaced numbers run together at the right
        # of a logarithmic axis, unless it is so short that it is nearly linear.
        subs = (1.0, 2.0, 5.0) if high > 6 * low else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
        axis.set_major_locator(LogLocator(subs=subs) if high > 2.5 * low else MaxNLocator(4))
        axis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Writes the figure as PDF and PNG beside each other and closes it; returns both files."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(suffix) for suffix in (".pdf", ".png")]
    for file in files:
        figure.savefig(file, bbox_inches="tight")
    plt.close(figure)
    return files
