"""Figures of runs: a panel for what there is, none for what there is not."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ntkcollapse import Classes, Clock, Equation, Staircase, Trajectory, plots

CLASSES = Classes.balanced(num_classes=2, per_class=3)


def run_with(*names: str, producer: str = "network") -> Trajectory:
    seen = {name: np.array([3.0, 2.0, 1.0]) for name in names}
    return Trajectory(np.array([0.0, 1.0, 2.0]), seen, CLASSES, equation=Equation(producer=producer))


def drawn(figure) -> dict[str, list[str]]:
    found = {ax.get_ylabel(): [t.get_text() for t in ax.get_legend().get_texts()] for ax in figure.axes if ax.lines}
    plt.close(figure)
    return found


def test_long_axes_have_a_tick_a_decade():
    plt.switch_backend("agg")
    for last, ticks in ((1e5, 0), (2e3, 20)):
        times, y = np.geomspace(1.0, last, 9), np.geomspace(1.0, 1e-5, 9)
        run = Trajectory(times, {"loss": y}, CLASSES, equation=Equation(producer="theory"))
        figure = plots.comparison_figure({"theory": run})
        (ax,) = figure.axes
        assert len(ax.yaxis.get_minorticklocs()) == 0
        assert len(ax.xaxis.get_minorticklocs()) >= ticks
        assert ticks or len(ax.xaxis.get_minorticklocs()) == 0
        plt.close(figure)


def test_panels_are_of_what_the_runs_have():
    plt.switch_backend("agg")
    network = run_with("train_loss", "train_accuracy", "test_accuracy", "step")
    theory = run_with("loss", "residual_single", producer="theory")
    assert drawn(plots.comparison_figure({"network": network})) == {
        "Loss": ["training loss"],
        "Accuracy": ["training accuracy", "test accuracy"],
    }
    # ½‖R‖² is summed, the training loss a mean: one panel has one of them.
    both = drawn(plots.comparison_figure({"network": network, "theory": theory}))
    assert {name: len(labels) for name, labels in both.items()} == {
        "Summed loss": 1,
        "Loss": 1,
        "Accuracy": 2,
        "Residual parts": 1,
    }


def network_run() -> Trajectory:
    """Two steps an epoch; right on every training sample from the third record on; a rate that drops after 8 steps."""
    steps = np.array([0, 1, 2, 4, 8, 16])
    clock = Clock(Staircase(0.1, 0.1, 8), scale=1 / 12)
    seen = {
        "step": steps,
        "epoch": steps / 2,
        "train_accuracy": np.array([0.5, 0.5, 1, 1, 1, 1]),
        "nc1_tirer2022": np.array([1, 0.5, 1e-3, 1e-9, 1e-14, 1e-35]),
        "nc2_seleznova2023": np.full(6, np.nan),
        "kappa_diagonal": np.full(6, 3.0),
    }
    return Trajectory(clock.time(steps), seen, CLASSES, equation=Equation(producer="network", clock=clock))


def test_a_network_stands_over_its_epochs_with_its_phases_marked():
    run = network_run()
    ax = run.plot("nc1_tirer2022")
    assert (ax.get_xlabel(), ax.get_xscale()) == ("epoch", "log")
    line, drop = ax.lines
    # The start stands before the first record; what is below rounding is not drawn.
    np.testing.assert_allclose(line.get_xdata(), [0.5 / 3, 0.5, 1, 2, 4])
    np.testing.assert_allclose(line.get_ydata(), run["nc1_tirer2022"][:5])
    np.testing.assert_allclose(drop.get_xdata(), [4, 4])
    (shaded,) = ax.patches
    assert shaded.get_extents().transformed(ax.transData.inverted()).intervalx == pytest.approx((1, 8))
    (above,) = ax.child_axes
    assert above.get_xlabel().startswith("flow time")
    ax.figure.canvas.draw()
    # t = 0.1/12 a step until the rate drops: 0.01 after 1.2 steps, which are 0.6 epochs.
    ticks = {text.get_text(): tick for text, tick in zip(above.get_xticklabels(), above.get_xticks(), strict=True)}
    assert ticks["0.01"] == pytest.approx(0.6, rel=1e-6)
    plt.close("all")


def test_panels_in_which_nothing_changes_are_left_out():
    assert [title for title, *_ in plots.comparison_panels({"network": network_run()})] == [
        "Accuracy",
        "Within-class variability",
    ]


def test_plot_says_what_it_lacks():
    run = network_run()
    with pytest.raises(ValueError, match=r"names: expected one of .*; got 'nc1'"):
        run.plot("nc1")
    with pytest.raises(ValueError, match="names: expected some observables for one pair of axes"):
        run.plot(ax=plt.figure().add_subplot())
    plt.close("all")


def test_runs_without_any_of_it_are_refused():
    runs = {"network": run_with("step")}
    assert plots.comparison_panels(runs) == []
    with pytest.raises(ValueError, match=r"runs: expected some of the observables loss, .*, got none"):
        plots.comparison_figure(runs)
