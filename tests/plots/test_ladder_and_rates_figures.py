"""Figures of ladders, shares and rates: what is drawn is what was given, and the style leaves nothing behind."""

# Stubs of other packages are narrower than what they return.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false

import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import Rectangle

from ntkcollapse import Trajectory, plots
from ntkcollapse._table import with_error
from ntkcollapse.commands._ladder_tables import ladder_tables
from ntkcollapse.comparison import CHAINS, RUNGS, Ladder, attribute, chain, measured_rates
from ntkcollapse.comparison.rungs.assumptions import FLOW, STATISTICS_AT_REST
from ntkcollapse.theory.rates import within_class_decay
from tests.comparison.test_files_and_attribution import ladder
from tests.comparison.test_rates_of_runs import CLASSES, GAMMA, lazy_run


@pytest.fixture(autouse=True)
def off_screen():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def at_records(line, times) -> np.ndarray:
    """A smooth curve has the points that it goes through."""
    x, y = (np.asarray(values, dtype=float) for values in (line.get_xdata(), line.get_ydata()))
    assert set(np.asarray(times)) <= set(x)
    return y[np.searchsorted(x, np.asarray(times))]


def test_a_smooth_curve_is_exact_on_power_laws_and_does_not_overshoot():
    t = np.geomspace(1, 100, 9)
    x, y = plots.smooth(t, 3 * t**-2.5)
    np.testing.assert_allclose(y, 3 * x**-2.5, rtol=1e-10)
    steps = np.array([1.0, 1.0, 1.0, 1e-3, 1e-3])
    x, y = plots.smooth(np.arange(1.0, 6.0), steps)
    assert len(x) > 100
    assert y.min() >= 1e-3 * (1 - 1e-12)
    assert y.max() <= 1 + 1e-12


def test_every_rung_has_a_style_of_its_own():
    styles = [plots.rung_style(rung) for rung in RUNGS.values()]
    assert len({(s["color"], s["linestyle"]) for s in styles}) == len(RUNGS)


def test_ladder_draws_the_network_as_dots_and_rungs_as_lines():
    given = ladder(block_frozen=4.0, sample_frozen=1.5)
    figure = plots.ladder_figure(given, ("loss", "residual_class"))
    assert len(figure.axes) == 2
    lines = figure.axes[1].lines
    assert [line.get_linestyle() for line in lines] == ["-", "-", "None"]
    rung = given.rungs["block-frozen"]
    np.testing.assert_allclose(at_records(lines[0], rung.times), rung["residual_class"], rtol=1e-12)
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


def test_nothing_to_split_has_no_figure():
    with pytest.raises(ValueError, match="attributions: expected one observable or more, got none"):
        plots.attribution_figure({})


def test_an_assumption_looks_alike_among_any_rungs():
    whole = ladder(**{name.replace("-", "_"): float(i) for i, name in enumerate(RUNGS)})._replace(batch_norm=True)
    # In one figure no two assumptions look alike, and each alone has its own colour in all of them.
    for along in CHAINS:
        figure = plots.attribution_figure({"loss": attribute(whole, "loss", along)})
        patches = figure.legends[0].get_patches()
        assert len({(patch.get_facecolor(), patch.get_hatch()) for patch in patches}) == len(patches)
    assert len({a.colour for rung in RUNGS.values() for a in rung.assumes}) == 8
    for given in (ladder(network_flow=1.1), ladder(block_frozen=4.0, class_pairs=2.0, network_flow=1.1)):
        links = tuple(rung for rung in chain("frozen") if rung in {*given.rungs, "network"})
        figure = plots.attribution_figure({"loss": attribute(given, "loss", links)})
        (patch,) = (p for p in figure.legends[0].get_patches() if p.get_label() == FLOW.name)
        assert patch.get_facecolor() == mpl.colors.to_rgba(FLOW.colour)
    # Joined with batch statistics at rest it keeps its colour, with a hatch.
    share = attribute(ladder(network_flow=1.1), "loss")
    joint = share._replace(shares=(share.shares[0]._replace(given_up=(STATISTICS_AT_REST, FLOW)),))
    (patch,) = plots.attribution_figure({"loss": joint}).legends[0].get_patches()
    assert patch.get_facecolor() == mpl.colors.to_rgba(FLOW.colour)
    assert patch.get_hatch() == "--"


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
        (0.36 - 6e-17, 5e-17, "0.36 ± 5e-17"),
        (12345.678, 0.0003, "12345.7 ± 3e-04"),
    ],
)
def test_numbers_end_where_their_errors_do(value, error, said):
    assert with_error(value, error) == said


@pytest.mark.parametrize(("value", "said"), [(0.0, "0 throughout"), (np.nan, "no number above 0")])
def test_a_part_that_is_nowhere_above_zero_is_drawn_as_nothing(value, said, tmp_path):
    """R - R_class of classes with one sample each. Warnings are errors, and logarithmic axes warn when drawn."""
    whole = lazy_run(noise=0.01)
    run = Trajectory(whole.times, whole.observables | {"residual_single": np.full(80, value)}, whole.classes)
    figure = plots.rates_figure(run, measured_rates(run))
    assert figure.axes[0].get_title() == said
    assert figure.axes[1].get_title().startswith("fitted")
    assert all(file.stat().st_size for file in plots.save(figure, tmp_path / "rates"))
    same = Ladder(run, {"block-frozen": run, "sample-frozen": run}, {})
    figure = plots.ladder_figure(same, ("residual_single", "residual_class"))
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [0, 0, 0]
    assert [ax.get_title() for ax in figure.axes] == ["no number above 0", ""]
    assert all(file.stat().st_size for file in plots.save(figure, tmp_path / "ladder"))
    if value == 0:
        assert "nan" not in ladder_tables(same)


def test_a_ladder_without_the_observables_asked_for_says_which_it_has():
    with pytest.raises(ValueError, match=r"observables: expected one at least .*residual_class.* got \['nc1'\]"):
        plots.ladder_figure(ladder(block_frozen=4.0), ("nc1",))


def test_titles_of_exact_rates_stay_in_their_panels_and_short_axes_have_plain_numbers():
    run = lazy_run()
    found = measured_rates(run)
    exact = {part: rate._replace(implied=rate.eigenvalue) for part, rate in found.items()}
    for part, rate in exact.items():
        assert rate.fit is not None
        exact[part] = rate._replace(fit=rate.fit._replace(rate=rate.eigenvalue - 6e-17, standard_error=5e-17, drift=0))
    figure = plots.rates_figure(run, exact)
    figure.canvas.draw()
    boxes = [ax.title.get_window_extent() for ax in figure.axes]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert boxes[-1].x1 < figure.bbox.x1
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels
    assert not any("times" in label for label in labels)


def test_the_spectrum_is_drawn_as_a_prediction():
    run = lazy_run(noise=0.01)
    t = np.asarray(run.times)
    decay = within_class_decay(t, np.random.default_rng(0).normal(size=(3, 12)), GAMMA, CLASSES)
    figure = plots.rates_figure(run, measured_rates(run), (t, decay))
    line = figure.axes[0].lines[-1]
    np.testing.assert_allclose(np.asarray(line.get_ydata(), dtype=float), decay.norm)
    assert line.get_color() == RUNGS["within-spectrum"].colour
    assert "predicted from the within-class spectrum" in [text.get_text() for text in figure.legends[0].get_texts()]


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
