"""Figures of runs: a panel for what there is, none for what there is not."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ntkcollapse import Classes, Equation, Trajectory, plots

CLASSES = Classes.balanced(num_classes=2, per_class=3)


def run_with(*names: str, producer: str = "network") -> Trajectory:
    seen = {name: np.array([3.0, 2.0, 1.0]) for name in names}
    return Trajectory(np.array([0.0, 1.0, 2.0]), seen, CLASSES, equation=Equation(producer=producer))


def drawn(figure) -> dict[str, list[str]]:
    found = {ax.get_ylabel(): [t.get_text() for t in ax.get_legend().get_texts()] for ax in figure.axes if ax.lines}
    plt.close(figure)
    return found


def test_panels_are_of_what_the_runs_have():
    plt.switch_backend("agg")
    network = run_with("train_loss", "train_accuracy", "test_accuracy", "step")
    theory = run_with("loss", "residual_single", producer="theory")
    assert drawn(plots.comparison_figure({"network": network})) == {
        "Loss": ["training loss"],
        "Accuracy": ["training accuracy", "test accuracy"],
    }
    both = drawn(plots.comparison_figure({"network": network, "theory": theory}))
    assert list(both) == ["Loss", "Accuracy", "Residual parts"]
    assert len(both["Loss"]) == 2


def test_runs_without_any_of_it_are_refused():
    runs = {"network": run_with("step")}
    assert plots.comparison_panels(runs) == []
    with pytest.raises(ValueError, match=r"runs: expected some of the observables loss, .*, got none"):
        plots.comparison_figure(runs)
