"""Figures of ladders, shares and rates: what is drawn is what was given, and the style leaves nothing behind."""

# Stubs of other packages are narrower than what they return.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import Rectangle

from ntkcollapse import Trajectory, plots
from ntkcollapse._table import with_error
from ntkcollapse.commands._ladder_tables import ladder_tables
from ntkcollapse.comparison import FROZEN_CHAIN, RUNGS, Ladder, attribute, measured_rates
from ntkcollapse.comparison.attribution import ASSUMPTIONS
from ntkcollapse.plots.ladder import ASSUMPTION_STYLES
from tests.comparison.test_files_and_attribution import ladder
from tests.comparison.test_rates_of_runs import lazy_run


@pytest.fixture(autouse=True)
def off_screen():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def test_every_rung_has_a_style_of_its_own():
    assert set(plots.RUNG_STYLES) == set(RUNGS)
    assert len({(s["color"], s["linestyle"]) for s in plots.RUNG_STYLES.values()}) == len(RUNGS)


def test_ladder_draws_the_network_as_dots_and_rungs_as_lines():
    given = ladder(block_frozen=4.0, sample_frozen=1.5)
    figure = plots.ladder_figure(given, ("loss", "residual_class"))
    assert len(figure.axes) == 2
    lines = figure.axes[1].lines
    assert [line.get_linestyle() for line in lines] == ["-", "-", "None"]
    np.testing.assert_allclose(
        np.asarray(lines[0].get_ydata(), dtype=float), given.rungs["block-frozen"]["residual_class"]
    )
    np.testing.assert_allclose(np.asarray(lines[2].get_ydata(), dtype=float), given.network["residual_class"])
    assert "flow time" in figure.axes[0].get_xlabel()


def test_bars_end_at_the_gap():
    given = ladder(block_frozen=4.0, sample_frozen=1.5, network_flow=1.1)
    figure = plots.attribution_figure({"loss": attribute(given, "loss")})
    ax = figure.axes[0]
    widths = [bar.get_width() for bar in ax.patches if isinstance(bar, Rectangle)]
    (diamond,) = (line for line in ax.lines if line.get_marker() == "D")
    np.testing.assert_allclose(sum(widths), np.asarray(diamond.get_xdata(), dtype=float)[0])
    np.testing.assert_allclose(sum(widths), 2.1 / np.log(10))


def test_an_assumption_looks_alike_among_any_rungs():
    assert set(ASSUMPTION_STYLES) == set(ASSUMPTIONS.values())
    looks = [(s["facecolor"], s.get("hatch")) for s in ASSUMPTION_STYLES.values()]
    assert len(set(looks)) == len(looks)
    name = "flow instead of the optimiser's steps"
    for given in (ladder(network_flow=1.1), ladder(block_frozen=4.0, class_pairs=2.0, network_flow=1.1)):
        chain = tuple(rung for rung in FROZEN_CHAIN if rung in {*given.rungs, "network"})
        figure = plots.attribution_figure({"loss": attribute(given, "loss", chain)})
        (patch,) = (p for p in figure.legends[0].get_patches() if p.get_label() == name)
        assert patch.get_facecolor() == mpl.colors.to_rgba(ASSUMPTION_STYLES[name]["facecolor"])


def test_rates_panel_draws_fit_and_prediction():
    run = lazy_run(noise=0.01)
    found = measured_rates(run)
    figure = plots.rates_figure(run, found)
    assert len(figure.axes) == 3
    assert len(figure.axes[0].lines) == 3
    # Fitted and predicted, to the digits that the error of the fit leaves.
    fit, title = found["class"].fit, figure.axes[1].get_title()
    assert fit is not None
    assert (
        title == f"fitted {with_error(fit.rate, fit.uncertainty)}, $\\lambda(\\gamma)$ {found['class'].eigenvalue:.4g}"
    )


def test_the_legend_of_rates_names_what_is_drawn():
    run = lazy_run(noise=0.01)
    residuals = {name: run[name] for name in run.observables if name.startswith("residual")}
    bare = Trajectory(run.times, residuals, run.classes)
    flat = Trajectory(run.times, {name: np.ones(80) for name in residuals}, run.classes)
    for shown, expected in ((run, 3), (bare, 2), (flat, 1)):
        figure = plots.rates_figure(shown, measured_rates(shown))
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        said = ["run", "fitted exponential, in its window", r"$\lambda(\gamma)$, lazy"]
        assert labels == said[:expected]
        assert len(labels) == max(len(ax.lines) for ax in figure.axes)


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (13.0951, 0.0062, "13.095 ± 0.006"),
        (3.5, 0.0996, "3.5 ± 0.1"),
        (131.6, 12.0, "132 ± 10"),
        (2.5e-5, 3e-7, "2.500e-05 ± 3e-07"),
        (1.5, 0.0, "1.5 ± 0"),
    ],
)
def test_numbers_end_where_their_errors_do(value, error, said):
    assert with_error(value, error) == said


def test_a_part_that_is_zero_throughout_is_drawn_as_nothing():
    """R - R_class of classes with one sample each."""
    whole = lazy_run(noise=0.01)
    run = Trajectory(whole.times, whole.observables | {"residual_single": np.zeros(80)}, whole.classes)
    figure = plots.rates_figure(run, measured_rates(run))
    assert figure.axes[0].get_title() == "0 throughout"
    assert figure.axes[1].get_title().startswith("fitted")
    same = Ladder(run, {"block-frozen": run, "sample-frozen": run}, {})
    panels = plots.ladder_figure(same, ("residual_single", "residual_class")).axes
    assert [len(line.get_xdata()) for line in panels[0].lines] == [0, 0, 0]
    assert "nan" not in ladder_tables(same)


def test_style_restores_its_own_settings_and_no_others():
    before = mpl.rcParams["font.size"]
    interactive = mpl.rcParams["interactive"]
    try:
        with plots.style():
            assert mpl.rcParams["axes.spines.top"] is False
            # As the first figure of a notebook does.
            mpl.rcParams["interactive"] = True
        assert mpl.rcParams["interactive"] is True
        assert mpl.rcParams["font.size"] == before
        assert mpl.rcParams["axes.spines.top"] is True
    finally:
        mpl.rcParams["interactive"] = interactive
