"""Sections of a report on what collapsed: every metric by source, along depth, on test data, and the feature ansatz."""

from collections.abc import Iterator

from matplotlib.figure import Figure

from ntkcollapse import collapse, plots
from ntkcollapse._table import number
from ntkcollapse.collapse import ClassStatistics
from ntkcollapse.commands import _html
from ntkcollapse.observable_table import described, group
from ntkcollapse.training import saved_profile
from ntkcollapse.trajectory import Trajectory


def collapse_sections(run: Trajectory) -> Iterator[str]:
    """All sections that the run has the data for."""
    yield _html.heading("Collapse at the end, by source")
    yield from _by_source(run)
    figures = collapse_figures(run)
    if "layers" in figures:
        yield _html.heading("Collapse along depth")
        yield _html.figure(figures["layers"], "What each layer sees, at the start and at the end of the run.")
        yield _depth_table(run)
    if "test_collapse" in figures:
        yield _html.heading("Collapse on test data")
        yield _html.figure(
            figures["test_collapse"],
            "Features of the last layer. Weak: about the nearest training mean; strong: about the training mean of "
            "their own class.",
        )
        yield _held_out_table(run)
    if "ansatz" in figures:
        yield _html.heading("The neural feature ansatz")
        yield _html.figure(figures["ansatz"], "WᵀW of each layer beside the average gradient outer product (AGOP).")


def collapse_figures(run: Trajectory) -> dict[str, Figure]:
    """Figures of the layer measurements that the run made, by the name of their file."""
    names, figures = run.names, {}
    if "layers" in names:
        profiles = {f"epoch {number(run['epoch'][i])}": saved_profile(run, i) for i in sorted({0, len(run.times) - 1})}
        figures["layers"] = plots.collapse_profile_figure(profiles)
    if "weak_nc1_tirer2022" in run.observables:
        figures["test_collapse"] = plots.held_out_figure({"last layer": run})
    if "ansatz" in names:
        figures["ansatz"] = plots.ansatz_figure(run)
    return figures


def last_layer_metrics(run: Trajectory) -> dict[str, float]:
    """Every metric of the last state that the run kept, by the names of `ntkcollapse.collapse`.

    Raises:
        ValueError: a run without states, or one whose features are not finite.
    """
    state, classes = run.last_layer(-1), run.classes
    statistics = ClassStatistics.from_columns(state.H, classes)
    values = collapse.measure(statistics, state.W)
    values["fisher_ratio_zarka2021"] = float(collapse.fisher_ratio_zarka2021(statistics))
    values["ncc_accuracy"] = float(collapse.ncc_accuracy(state.H, classes.labels, statistics.means))
    for name, bias in (("nc4_mismatch", state.b), ("nc4_mismatch_without_bias", None)):
        values[name] = float(collapse.nc4_mismatch(state.H, state.W, bias, statistics.means))
    return values


def _by_source(run: Trajectory) -> Iterator[str]:
    try:
        values = last_layer_metrics(run)
    except ValueError as error:
        yield _html.paragraph(f"Not measured: {error}")
        return
    where = "the probe" if run.equation.of_network else "all samples"
    yield _html.paragraph(
        f"Of the last layer at the last record, on {where} ({run.classes.num_samples} samples). Formulas, ranges and "
        "what each does not see: docs/collapse_metrics.md. inf: class means that coincide; of the Fisher ratio, which "
        "is large where classes separate: class means that differ in a direction without scatter, as any do where "
        "samples are fewer than features and classes together."
    )
    rows = [[name, number(value), described(name).source] for name, value in sorted(values.items())]
    yield _html.grid(["metric", "value", "source"], rows)


def _depth_table(run: Trajectory) -> str:
    profile = saved_profile(run)
    parts = (("train", profile.train), ("test", profile.test))
    rows = [["width", *map(str, profile.widths)]]
    rows += [[f"{name}, {part}", *map(number, values)] for part, metrics in parts for name, values in metrics.items()]
    return _html.grid(["what each layer sees, at the end", *(name.split("/", 1)[-1] for name in profile.layers)], rows)


def _held_out_table(run: Trajectory) -> str:
    metrics = [name.removeprefix("weak_") for name in run.observables if name.startswith("weak_")]
    parts = ("train", "weak", "strong", "test")
    metrics += [name for name in group("Nearest class mean") if f"test_{name}" in run.observables]
    rows = [[name, *(_last(run, f"{part}_{name}") for part in parts), described(name).source] for name in metrics]
    header = ["at the end", "training", "weak, test", "strong, test", "test, about its own means", "source"]
    return _html.grid(header, rows)


def _last(run: Trajectory, name: str) -> str:
    return number(run[name][-1]) if name in run.observables else ""
