"""A metric is a function and one entry of the table: runs observe it, tables, figures and the report show it."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ntkcollapse import Trajectory, collapse, observable_table, plots
from ntkcollapse.cli import main
from ntkcollapse.collapse import ClassStatistics
from ntkcollapse.observable_table import Observable

TRAIN = (
    "--network mlp --network-options widths=(8,10) --dataset digits --per-class 24 --test-per-class 3 --epochs 1 "
    "--batch-size 30 --probe-per-class 2 --measure last-layer kappa"
).split()
SIMULATE = "--classes 3 --per-class 4 --features 5 --kappa 3 2 .6 --scale 0.5 --times 12 --until 1".split()


def mean_spread(statistics: ClassStatistics):
    """tr S / N: the mean squared distance of a feature from its class mean."""
    return statistics.scatter.trace() / statistics.sizes.sum()


@pytest.fixture
def mine(monkeypatch):
    """Exported and entered, as CONTRIBUTING says."""
    monkeypatch.setattr(collapse, "mean_spread", mean_spread, raising=False)
    entry = Observable(
        "mean_spread",
        "spread",
        r"$\mathrm{tr}\,S/N$ of mine",
        "mean squared distance from the class mean",
        source="me (2024)",
        group="Within-class variability",
        shown=("simulate", "train", "summary", "report", "figure"),
        of=("statistics",),
    )
    monkeypatch.setitem(observable_table.OBSERVABLES, entry.name, entry)
    return entry


@pytest.mark.parametrize("command", [["simulate", *SIMULATE], ["train", *TRAIN]], ids=["simulate", "train"])
def test_a_metric_is_seen_everywhere(command, mine, tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*command, "--out", str(out)]) == 0
    run = Trajectory.load(out)
    state = run.last_layer(-1)
    expected = np.square(run.classes.deviations(state.H)).sum() / run.classes.num_samples
    assert float(run[mine.name][-1]) == pytest.approx(float(expected), rel=1e-5)
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(mine.name))
    assert row.split()[-1] == f"{float(run[mine.name][-1]):.4g}"
    figure = plots.comparison_figure({"run": run})
    (panel,) = (ax for ax in figure.axes if ax.get_ylabel() == mine.group)
    legend = panel.get_legend()
    assert legend is not None
    assert mine.label in [text.get_text() for text in legend.get_texts()]
    plt.close(figure)
    assert run.to_dataset()[mine.name].attrs["long_name"] == mine.meaning
    assert main(["report", str(out)]) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    # Once along the run, and once at its end, with its source.
    assert page.count(f"<td>{mine.name}</td>") == 2
    assert f"<td>{mine.source}</td>" in page


def test_a_metric_is_gone_with_its_entry(tmp_path):
    """What was compiled for one table is not taken for another."""
    assert main(["simulate", *SIMULATE, "--out", str(tmp_path)]) == 0
    assert "mean_spread" not in Trajectory.load(tmp_path).observables
