"""`ntkcollapse report`: everything known of a run on one page that opens anywhere, without a network."""

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ntkcollapse import plots
from ntkcollapse._files import replacing
from ntkcollapse._table import number
from ntkcollapse.captions import shown, time_axis
from ntkcollapse.commands import _html
from ntkcollapse.commands._collapse_sections import collapse_sections
from ntkcollapse.commands._ladder_tables import attributions, chains, course_table, horizon_table, share_table
from ntkcollapse.commands._verdicts import ladder_line, verdict
from ntkcollapse.commands.network_runs import overview_title
from ntkcollapse.commands.rates import rates_table
from ntkcollapse.commands.settings import ReportConfig
from ntkcollapse.comparison import Ladder, load_ladders, measured_rates
from ntkcollapse.observable_table import described
from ntkcollapse.run_directory import RunDirectory, check_not_owned
from ntkcollapse.trajectory import Trajectory

THEORY = (
    "M. Seleznova, D. Weitzner, R. Giryes, G. Kutyniok, H.-H. Chou: Neural (Tangent Kernel) Collapse. "
    "Advances in Neural Information Processing Systems 36 (NeurIPS 2023)."
)


def report_command(config: ReportConfig) -> None:
    """Does what `ReportConfig` says."""
    if config.run is None:
        raise ValueError("run: expected a run directory, as `simulate`, `train` and `compare` leave one.")
    path = Path(config.run)
    directory = RunDirectory(path)
    file = directory.report if config.out is None else Path(config.out)
    check_not_owned("out", file)
    if file.exists() and not config.overwrite:
        raise FileExistsError(f"{file} exists: name another file with --out, or pass --overwrite.")
    version = directory.version()
    run = Trajectory.load(path)
    ladders = load_ladders(path) if directory.comparison.exists() else {}
    text = report(run, ladders, title=_title(run, path))
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(file, new=not config.overwrite) as part:
            part.write_text(text, encoding="utf-8")
            directory.check_version(version)
    except FileExistsError:
        raise FileExistsError(f"{file} exists by now: name another file with --out, or pass --overwrite.") from None
    print(f"report  {file}  ({file.stat().st_size / 1e6:.1f} MB, one file, opens offline)")


def _title(run: Trajectory, path: Path) -> str:
    """Network and data, where the run says them, and its directory."""
    name, note = path.resolve().name, run.settings
    if not run.equation.of_network or "network" not in note:
        return name
    data = str(note.get("data", "data of its own")).removesuffix("/train")
    return f"{note['network']} on {data} ({name})"


def report(run: Trajectory, ladders: dict[int, Ladder], *, title: str) -> str:
    """The page."""
    body = [_html.heading(title, 1), _html.paragraph(_headline(run))]
    said = [verdict(run), *(f"from step {step}: {ladder_line(ladder)}" for step, ladder in ladders.items())]
    body += [_html.verdict([line for part in said for line in part.splitlines()])]
    body += list(_overview(run, ladders))
    body += list(_course(run))
    body += list(collapse_sections(run))
    body += list(_rates(run))
    for step, ladder in ladders.items():
        body += list(_ladder(step, ladder))
    body += [_html.folded("Settings", _html.mapping(run.settings))]
    body += [_html.folded("Versions", _html.mapping(run.versions))]
    body += [
        _html.heading("How to cite"),
        _html.paragraph(f"The theory: {THEORY}"),
        _html.paragraph(f"The software: ntkcollapse {importlib.metadata.version('ntkcollapse')}."),
    ]
    return _html.page(f"{title}: ntkcollapse report", body)


def _headline(run: Trajectory) -> str:
    classes, equation = run.training_classes, run.equation
    sizes = (
        f"m = {classes.per_class}" if classes.is_balanced else f"m from {min(classes.sizes)} to {max(classes.sizes)}"
    )
    kind = "A trained network" if equation.of_network else "The theory"
    line = f"{kind}, C = {classes.num_classes} classes, {sizes}, {len(run.times)} records"
    if run.on_a_probe:
        line += f" of a probe of {run.classes.num_samples} of {classes.num_samples} samples"
    if "step" in run.observables:
        line += f" up to optimiser step {int(run['step'][-1])}"
    return f"{line}. Times are {time_axis(run).meaning}."


def _overview(run: Trajectory, ladders: dict[int, Ladder]) -> Iterator[str]:
    """Blocks, collapse, invariant and the theorem on one figure, where the run has what it shows."""
    if not plots.has_overview(run):
        return
    last = ladders[max(ladders)] if ladders else None
    caption = (
        "The feature kernel of each pair of classes at three times, and how blocks form; NC1 to NC3, the residual and "
        "the invariant of the network (dots)"
    )
    caption += "." if last is None else f", with the theorem from step {max(ladders)} on (lines)."
    yield _html.figure(plots.overview_figure(run, ladder=last, title=overview_title(run)), caption)


def _course(run: Trajectory) -> Iterator[str]:
    yield _html.heading("Course of the run")
    label = "network" if run.equation.of_network else "theory"
    panels = plots.comparison_panels({label: run})
    if float(run.times[-1]) > 0 and panels:
        titles = ", ".join(name for name, *_ in panels)
        yield _html.figure(plots.comparison_figure({label: run}), f"In time: {titles.lower()}.")
    indices = sorted(set(np.linspace(0, len(run.times) - 1, 6).round().astype(int).tolist()))
    rows = [
        [name, *(number(run.observables[name][i]) for i in indices)]
        for name in shown(run, "report")
        if run.observables[name].ndim == 1
    ]
    steps = run.observables.get("step")
    if steps is not None:
        rows.insert(0, ["optimiser step", *(str(int(steps[i])) for i in indices)])
    yield _html.grid([time_axis(run).symbol, *(number(run.times[i]) for i in indices)], rows)
    if "residual_class" in run.observables:
        yield _html.paragraph(
            f"residual_class: {described('residual_class').meaning}, the mean over samples taken out."
        )


def _rates(run: Trajectory) -> Iterator[str]:
    yield _html.heading("The three rates")
    if not run.equation.is_squared:
        yield _html.paragraph("Not measured: they are those of the parts of the residual, under the squared loss.")
        return
    try:
        rates = measured_rates(run)
    except ValueError as error:
        yield _html.paragraph(f"Not measured: {error}")
        return
    yield _html.figure(
        plots.rates_figure(run, rates), "The residual parts, their fitted exponentials, and the predictions."
    )
    yield _html.preformatted(rates_table(run, rates))


def _ladder(step: int, ladder: Ladder) -> Iterator[str]:
    yield _html.heading(f"The ladder, from step {step}")
    yield _html.figure(
        plots.ladder_figure(ladder),
        "The network (dots) and predictions under assumptions from strong to weak, from the measured state.",
    )
    if "frozen" in chains(ladder):
        prices = attributions(ladder)
        yield _html.figure(
            plots.attribution_figure(prices),
            "What each assumption owns of the gap between first rung and network, at the end or at the time named.",
        )
        yield _html.preformatted(share_table(prices, ladder))
    for along in chains(ladder):
        if along != "frozen":
            yield _html.preformatted(share_table(attributions(ladder, along), ladder))
    yield _html.preformatted(horizon_table(ladder))
    yield _html.preformatted(course_table(ladder))
    for name, why in ladder.failures.items():
        yield _html.paragraph(f"Rung {name} is missing or ends early: {why}")
