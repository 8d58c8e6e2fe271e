"""Collapse on one page: the kernel of the features turns into blocks, and the theorem stands beside the network."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ntkcollapse._palette import BLACK, BLUE, GREEN, PURPLE, RED
from ntkcollapse.captions import has
from ntkcollapse.comparison import RUNGS, Ladder
from ntkcollapse.observable_table import described, group
from ntkcollapse.phases import blocks_of
from ntkcollapse.plots.axes import drawable, epoch_axis, epochs_of, has_epochs, mark_phases, phase_handles, smooth
from ntkcollapse.plots.style import NETWORK, label_decades, style
from ntkcollapse.trajectory import Trajectory

_START: dict[str, Any] = {"color": BLACK, "linestyle": "-", "linewidth": 0.8}
_THEOREM: dict[str, Any] = {"linestyle": "-", "linewidth": 1.8}
_MOVING: dict[str, Any] = {"linestyle": (0, (4, 1.5)), "linewidth": 1.4}
_LINES = {"block-frozen": _THEOREM, "block-path": _MOVING}


def pictured(run: Trajectory) -> list[int]:
    """Three records at which the kernel says how blocks form: the start, half of the way in alignment, the end."""
    blocks, last = blocks_of(run), len(run.times) - 1
    if blocks is None or last < 2:
        return sorted({0, last})
    half = (blocks.alignment[0] + blocks.alignment[-1]) / 2
    return sorted({0, 1 + int(np.argmin(np.abs(blocks.alignment[1:-1] - half))), last})


def has_overview(run: Trajectory) -> bool:
    """Whether a run has what the overview shows: of a network, with a finite feature kernel at three steps or more."""
    blocks = blocks_of(run)
    measured = blocks is not None and bool(np.isfinite(blocks).all()) and "kappa_class_pairs" in run.observables
    measured = measured and has(run, "nc1_tirer2022") and has(run, "invariant_alignment")
    return measured and has_epochs(run) and len(run.times) > 2


def overview_figure(
    run: Trajectory,
    *,
    kernels: Mapping[int, Float[np.ndarray, "S S"]] | None = None,
    ladder: Ladder | None = None,
    title: str | None = None,
) -> Figure:
    """The page.

    Args:
        run: of a network, measured with the kernel of its features, at more than one step.
        kernels: record → feature kernel of some samples, sorted by class, to be shown; without them, of the run's
            `pictured` records the mean of each pair of classes.
        ladder: predictions from one of the records on; those under a block kernel are drawn, from there.
        title: above all panels.
    Raises:
        ValueError: a run without feature kernels or epochs.
    """
    if not has_overview(run):
        raise ValueError("run: expected a network measured with its feature kernel at three steps or more.")
    maps = {i: np.asarray(run["kappa_class_pairs"][i]) for i in pictured(run)} if kernels is None else dict(kernels)
    with style():
        figure = plt.figure(figsize=(12.8, 6.9), constrained_layout=True)
        grid = figure.add_gridspec(2, 12, height_ratios=(1, 1.05))
        image = None
        top = [figure.add_subplot(grid[0, 3 * i : 3 * i + 3]) for i in range(len(maps))]
        for ax, (i, kernel) in zip(top, sorted(maps.items()), strict=True):
            image = _picture(ax, run, i, kernel)
        if image is not None:
            bar = figure.colorbar(image, ax=top, shrink=0.72, pad=0.01, aspect=24, location="left")
            bar.set_label("feature kernel, over the mean of its diagonal")
        x = epochs_of(run)
        _blocks_panel(figure.add_subplot(grid[0, 9:]), run, x)
        bottom = [figure.add_subplot(grid[1, 3 * i : 3 * i + 3]) for i in range(4)]
        collapse = [n for n in ("nc1_tirer2022", *group("Geometry of means and weights", "figure")) if has(run, n)]
        residual = [n for n in group("Residual parts", "figure")[:2] if has(run, n)]
        _collapse_panel(bottom[0], run, x, collapse, ladder)
        _invariant_panel(bottom[1], run, x)
        if ladder is None:
            _dots(bottom[2], x, _series(run, residual), "log")
            _finish(bottom[2], run, x, "residual")
            _dots(bottom[3], x, _series(run, [n for n in group("Accuracy", "figure") if has(run, n)]), "linear")
            _finish(bottom[3], run, x, "accuracy")
        else:
            _theory_panel(bottom[2], ladder, collapse, "collapse")
            _theory_panel(bottom[3], ladder, residual, "residual")
        handles: list[Any] = [Line2D([], [], color=BLACK, label="network", **NETWORK)]
        if ladder is not None:
            for name, kind in _LINES.items():
                if name in ladder.rungs:
                    handles.append(Line2D([], [], color=BLACK, label=_name(ladder, name), **kind))
        handles += phase_handles(run)
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), handlelength=2.6, fontsize=9)
        if title:
            figure.suptitle(title, fontsize=12)
    return figure


def _name(ladder: Ladder, rung: str) -> str:
    step = int(np.asarray(ladder.network["step"])[0])
    kernel = {"block-frozen": "its three-number kernel frozen", "block-path": "the kernel as measured"}
    return f"theorem from step {step}, {kernel.get(rung, RUNGS[rung].label)}"


def _picture(ax: Axes, run: Trajectory, record: int, kernel: np.ndarray) -> Any:
    """A kernel over the mean of its diagonal, class beside class."""
    image = ax.imshow(kernel / np.mean(np.diag(kernel)), cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    C = run.classes.num_classes
    middles = (np.arange(C) + 0.5) * len(kernel) / C - 0.5
    ax.set_xticks(middles, [str(c) for c in range(C)], fontsize=7)
    ax.set_yticks(middles, [str(c) for c in range(C)], fontsize=7)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    blocks = blocks_of(run)
    assert blocks is not None
    ax.set_title(f"epoch {float(run['epoch'][record]):.4g}", fontsize=11)
    within, between = (f"{float(part[record]):.2g}" for part in blocks[:2])
    ax.set_xlabel(rf"within $\kappa_c/\kappa_d$ = {within},  between $\kappa_n/\kappa_d$ = {between}", fontsize=8.5)
    return image


def _blocks_panel(ax: Axes, run: Trajectory, x: np.ndarray) -> None:
    blocks = blocks_of(run)
    assert blocks is not None
    series = (
        (r"within, $\kappa_c/\kappa_d$", blocks.within, RED),
        (r"between, $\kappa_n/\kappa_d$", blocks.between, GREEN),
        (r"alignment with $Y^\top Y$", blocks.alignment, BLUE),
    )
    _dots(ax, x, series, "log")
    _finish(ax, run, x, "feature kernel: blocks form")


def _invariant_panel(ax: Axes, run: Trajectory, x: np.ndarray) -> None:
    series = (
        (r"alignment of $W^\top W$ and $HK^{-1}H^\top$", np.asarray(run["invariant_alignment"], float), PURPLE),
        (r"$\|E\|$, relative", np.asarray(run["invariant_relative"], float), BLACK),
    )
    _dots(ax, x, series, "linear")
    ax.set_ylim(0, 1.05)
    _finish(ax, run, x, r"invariant $E = W^\top W - HK^{-1}H^\top$")


def _collapse_panel(ax: Axes, run: Trajectory, x: np.ndarray, names: list[str], ladder: Ladder | None) -> None:
    _dots(ax, x, _series(run, names), "log")
    if has(run, "nc4_mismatch"):
        right = np.asarray(run["nc4_mismatch"], float) == 0
        if right[-1]:
            since = float(run["epoch"][len(right) - int(np.argmin(right[::-1]))]) if not right.all() else 0.0
            ax.plot([], [], " ", label=f"NC4 = 0 from epoch {since:.4g} on")
    if ladder is not None:
        start = float(np.interp(float(ladder.network.times[0]), np.asarray(run.times, float), x))
        ax.axvline(start, label="theory starts", **_START)
    _finish(ax, run, x, "collapse")


def _theory_panel(ax: Axes, ladder: Ladder, names: list[str], title: str) -> None:
    """The network and the theorem over the epochs since the start of theory."""
    network = ladder.network
    epochs, times = np.asarray(network["epoch"], float), np.asarray(network.times, float)
    since = epochs - epochs[0]
    since = np.where(since > 0, since, since[since > 0].min() / 3)
    _dots(ax, since, _series(network, names), "log")
    low, high = ax.get_ylim()
    for rung, kind in _LINES.items():
        course = ladder.rungs.get(rung)
        for name in names if course is not None else ():
            assert course is not None
            at, y = np.interp(np.asarray(course.times, float), times, since), np.asarray(course[name], float)
            ax.plot(*smooth(at, y), color=described(name).colour, **kind)
    # What is far below the network is of no interest.
    ax.set_ylim(max(low / 30, ax.get_ylim()[0]), max(high, ax.get_ylim()[1]))
    ax.set_xscale("log")
    powers = [p for p in 10.0 ** np.arange(-3, 7) if since[1] <= p <= since[-1]]
    ax.set_xticks([since[0], *powers], ["0", *(f"{p:g}" for p in powers)])
    ax.set_xlabel(f"epochs since step {int(network['step'][0])}")
    label_decades(ax.yaxis)
    ax.set_title(f"theorem beside the network: {title}", fontsize=11)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="best", handlelength=1.0, labelspacing=0.25, fontsize=8.5)


def _series(run: Trajectory, names: list[str]) -> list[tuple[str, np.ndarray, str]]:
    return [(described(name).label, np.asarray(run[name], float), described(name).colour) for name in names]


def _dots(ax: Axes, x: np.ndarray, series: Any, scale: str) -> None:
    for label, y, colour in series:
        keep = drawable(y, log=scale == "log")
        ax.plot(x[keep], y[keep], color=colour, label=label, **NETWORK)
    ax.set_yscale(scale)


def _finish(ax: Axes, run: Trajectory, x: np.ndarray, title: str) -> None:
    if ax.get_yscale() == "log":
        label_decades(ax.yaxis)
    epoch_axis(ax, run, flow_time=False)
    mark_phases(ax, run, x)
    ax.set_title(title, fontsize=11)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="best", handlelength=1.0, labelspacing=0.25, fontsize=8.5)
