"""The registry of rungs: what is given up between two of them, and a new one seen wherever rungs are shown."""

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

from ntkcollapse.commands._ladder_tables import attributions, chains, ladder_tables
from ntkcollapse.commands.compare import _chosen
from ntkcollapse.commands.report import report
from ntkcollapse.commands.settings import CompareConfig
from ntkcollapse.comparison import (
    CHAINS,
    RUNGS,
    Assumption,
    Course,
    MeasuredStart,
    Rung,
    attribute,
    available_rungs,
    chain,
    climb,
    load_ladders,
    save_ladders,
)
from ntkcollapse.comparison.rungs import given_up, joint_name
from ntkcollapse.comparison.rungs.assumptions import AVERAGE, FLOW
from ntkcollapse.plots import attribution_figure, ladder_figure
from tests.comparison import cases
from tests.comparison.cases import TIMES


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ("block-frozen", "block-path", "block kernel drift"),
        ("block-frozen", "class-pairs", "classes alike"),
        ("class-pairs", "within-spectrum", "one rate within classes"),
        ("within-spectrum", "sample-frozen", "no cross terms of means and deviations"),
        ("class-pairs", "sample-frozen", "class blocks"),
        ("block-frozen", "sample-frozen", "block structure"),
        ("block-path", "sample-path", "block structure"),
        ("block-frozen", "sample-path", "block structure, and sample kernel drift"),
        ("sample-frozen", "sample-path", "sample kernel drift"),
        ("sample-frozen", "features-linearised", "average over features"),
        ("sample-path", "network-flow", "average over features"),
        ("features-linearised", "features-coupled", ""),
        ("features-linearised", "network-flow", "lazy features"),
        ("features-coupled", "network-flow", "lazy features"),
        ("network-linearised", "features-linearised", "lazy last layer"),
        ("network-linearised", "network-flow", "lazy network"),
        ("sample-frozen", "network-flow", "average over features, and lazy features"),
        ("sample-frozen", "network", "all that the sample kernel leaves out"),
        ("sample-path", "network", "average over features, and the optimiser's steps"),
        ("features-linearised", "network", "lazy features, and the optimiser's steps"),
        ("features-coupled", "network", "lazy features, and the optimiser's steps"),
        ("block-frozen", "network", "all of it"),
        ("block-path", "network", "all but the drift of the block kernel"),
        ("network-flow", "network", "flow instead of the optimiser's steps"),
        ("class-pairs", "network", "class blocks, and all that the sample kernel leaves out"),
        # The second one assumes what the first one does not.
        ("sample-path", "features-linearised", ""),
        ("features-linearised", "network-linearised", ""),
    ],
)
def test_what_is_given_up_between_two_rungs_has_a_name(first, second, name):
    kept = RUNGS[second].assumes if second in RUNGS else ()
    assert joint_name(given_up(first, second, batch_norm=False), kept) == name
    # With batch normalisation, its statistics at rest are named beside it, by the rungs that hold them there.
    joint = given_up(first, second, batch_norm=True)
    moving = ("features-coupled", "network-flow", "network")
    said = [name] if name else []
    if first not in moving and second in moving:
        said.append("batch statistics at rest")
    assert joint_name(joint, kept) == ", ".join(said)


def test_chains_run_from_many_assumptions_to_few():
    assert chain("frozen") == (
        "block-frozen", "class-pairs", "within-spectrum", "sample-frozen", "features-linearised", "features-coupled",
        "network-flow", "network",
    )  # fmt: skip
    assert chain("lazy") == (
        "network-linearised", "features-linearised", "features-coupled", "network-flow", "network",
    )  # fmt: skip
    assert chain("path") == ("block-frozen", "block-path", "sample-path", "network-flow", "network")
    assert {name for rung in RUNGS.values() for name in rung.chains} == set(CHAINS)
    for name, rung in RUNGS.items():
        assert name == rung.name


def test_every_number_of_blocks_is_a_rung():
    """One stands in the list for all of them; any other has its place among them by its name."""
    assert [name for name in RUNGS if name.startswith("blocks")] == ["blocks:3"]
    assert "blocks:12" in RUNGS
    assert RUNGS["blocks:12"].label == "class pairs and 12 Krylov blocks"
    assert RUNGS["blocks-path:1"].label == "class pairs and 1 Krylov block, measured path"
    assert RUNGS["blocks:3:groups=4"].label == "class pairs and 3 Krylov blocks, 4 groups of rates"
    assert RUNGS["blocks:3:groups=4"].options == {"blocks": 3, "groups": 4}
    assert RUNGS.in_order(("blocks:3:groups=4", "blocks:4", "blocks:3")) == (
        "blocks:3",
        "blocks:3:groups=4",
        "blocks:4",
    )
    for name in ("blocks:3:groups=0", "blocks:3:groups", "blocks-path:3:groups=2"):
        assert name not in RUNGS
    for name in ("blocks:", "blocks:-1", "blocks:03", "blocks:x", "block", "blocks-path", "blocks-path:-1", 3):
        assert name not in RUNGS
    with pytest.raises(KeyError):
        RUNGS["blocks:x"]
    assert RUNGS["resolvents:2"].label == "class pairs, residual, 2 resolvents"
    assert RUNGS["resolvents:2"].options == {"resolvents": 2}
    assert all(name not in RUNGS for name in ("resolvents", "resolvents:", "resolvents:0", "resolvents:-1"))
    assert RUNGS.in_order(("sample-frozen", "resolvents:3", "resolvents:2", "blocks:9")) == (
        "blocks:9",
        "resolvents:2",
        "resolvents:3",
        "sample-frozen",
    )
    assert joint_name(given_up("resolvents:2", "sample-frozen", batch_norm=False)) == "one rate within classes"
    named = ("sample-frozen", "blocks:12", "class-pairs", "blocks-path:2", "blocks:2")
    assert RUNGS.in_order(named) == ("class-pairs", "blocks:2", "blocks-path:2", "blocks:12", "sample-frozen")
    assert _chosen(("blocks:5", "all")) == (*list(RUNGS)[:5], "blocks:5", *list(RUNGS)[5:])
    assert CompareConfig(rungs=("blocks:5",)).rungs == ("blocks:5",)
    assert joint_name(given_up("class-pairs", "blocks:5", batch_norm=False)) == "no cross terms of means and deviations"
    assert joint_name(given_up("blocks:5", "sample-frozen", batch_norm=False)) == "one rate within classes"
    assert joint_name(given_up("blocks-path:5", "sample-path", batch_norm=False)) == "one rate within classes"
    assert joint_name(given_up("blocks:5", "blocks-path:5", batch_norm=False)) == "lazy features"


def test_a_new_rung_is_seen_in_tables_figures_and_report(tmp_path, monkeypatch):
    """One function and one record: nothing else names a rung."""
    still = Assumption("features stand still", "#117733")

    def features_frozen(start, times, *, scale=1.0):
        """The last layer alone learns: W(t) = W∞ + (W(0) − W∞) e^{−HHᵀt}."""
        H, Y, W = start.state.H, start.classes.Y, start.state.W
        values, vectors = jnp.linalg.eigh(H @ H.T)
        end = jnp.linalg.lstsq(H.T, Y.T)[0].T

        def at(t):
            return end + (W - end) @ (vectors * jnp.exp(-scale * values * t)[None, :]) @ vectors.T

        Ws = jnp.stack([at(t - times[0]) for t in times])
        Hs = jnp.broadcast_to(H, (len(times), *H.shape))
        return Course(times, Hs, Ws, jnp.zeros((len(times), W.shape[0])), None, {})

    rung = Rung(
        name="features-frozen",
        number="0",
        label="features frozen",
        function=features_frozen,
        needs="network",
        assumes=(still, AVERAGE, FLOW),
        chains=("path",),
        colour="#117733",
        line="--",
    )
    monkeypatch.setitem(RUNGS, rung.name, rung)
    network = cases.linear_network(bias=False)
    run = cases.run_of([network.last_layer] * len(TIMES), TIMES)
    start = MeasuredStart(run, 0, {0: network})
    assert rung.name in available_rungs(start)
    # What it says it needs is asked for by that, not by its name.
    assert rung.name not in available_rungs(MeasuredStart(run, 0))
    with pytest.raises(ValueError, match="networks: expected the network at record 0"):
        climb(MeasuredStart(run, 0), [rung.name])
    ladder = climb(start, ["block-frozen", rung.name], options={rung.name: {"scale": 0.5}}, throw=True)
    save_ladders(tmp_path, {0: ladder})
    ladder = load_ladders(tmp_path)[0]
    assert list(ladder.rungs) == ["block-frozen", rung.name]

    assert chains(ladder) == ["path"]
    said = ladder_tables(ladder)
    assert "0  features frozen" in said
    assert "features stand still, average over features, and the optimiser's steps" in said
    figure = ladder_figure(ladder, ("loss",))
    assert "0  features frozen" in [text.get_text() for text in figure.legends[0].get_texts()]
    (line,) = (line for line in figure.axes[0].lines if line.get_color() == "#117733")
    x, y = (np.asarray(values, float) for values in (line.get_xdata(), line.get_ydata()))
    of = ladder.rungs[rung.name]
    np.testing.assert_allclose(y[np.searchsorted(x, of.times[1:])], of["loss"][1:])
    shares = attribute(ladder, "loss", ("features-frozen", "network"))
    (patch,) = attribution_figure({"loss": shares}).legends[0].get_patches()
    assert patch.get_hatch() == "//"
    assert attributions(ladder, "path")["loss"].shares[-1].given_up == (still, AVERAGE, FLOW)
    plt.close("all")
    page = report(run, {0: ladder}, title="a run")
    assert "features stand still" in page
    assert page.count("0  features frozen") > 1
