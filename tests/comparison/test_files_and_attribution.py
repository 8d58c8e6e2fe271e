"""Ladders written and read, attribution of known gaps."""

import numpy as np
import pytest

from ntkcollapse import Classes, Trajectory
from ntkcollapse.clock import Clock
from ntkcollapse.commands._ladder_tables import chains, edge_of_stability, ladder_tables
from ntkcollapse.comparison import Ladder, attribute, chain, load_ladders, save_ladders
from ntkcollapse.equation import Equation

CLASSES = Classes.balanced(num_classes=3, per_class=4)
TIMES = np.array([0.1, 0.2, 0.4, 0.8])
NAMES = ("loss", "residual_single", "residual_class", "residual_global", "nc1_tirer2022", "accuracy")


def decaying(rate: float, points: int = 4, statistics: dict | None = None, **settings) -> Trajectory:
    values = {name: (i + 1) * np.exp(-rate * (TIMES - 0.1)) for i, name in enumerate(NAMES)}
    values = {k: v[:points] for k, v in values.items()}
    return Trajectory(TIMES[:points], values, CLASSES, statistics=statistics, settings=settings)


def ladder(**rates: float) -> Ladder:
    network = decaying(1.0)
    network = Trajectory(
        TIMES,
        network.observables | {"step": np.array([1, 2, 4, 8])},
        CLASSES,
        equation=Equation(producer="network"),
        settings={"a": 1},
    )
    return Ladder(network, {k.replace("_", "-"): decaying(v, rung=k) for k, v in rates.items()}, {"sample-path": "why"})


def test_shares_are_the_known_factors_and_sum_to_the_gap():
    rungs = ladder(block_frozen=4.0, sample_frozen=1.5, network_flow=1.1)
    found = attribute(rungs, "residual_class")
    said = {share.assumption: float(share.change[-1]) for share in found.shares}
    expected = {"block structure": 2.5, "average over features, and lazy features": 0.4}
    expected["flow instead of the optimiser's steps"] = 0.1
    assert said == pytest.approx({k: v * 0.7 for k, v in expected.items()})
    np.testing.assert_allclose(found.gap, 3.0 * (TIMES - 0.1), atol=1e-12)
    linear = attribute(rungs, "residual_class", scale="linear")
    np.testing.assert_allclose(sum(s.change for s in linear.shares), linear.gap, atol=1e-14)
    np.testing.assert_allclose(linear.gap, 3 * (np.exp(-(TIMES - 0.1)) - np.exp(-4 * (TIMES - 0.1))))


def test_statistics_at_rest_are_named_with_what_they_share_a_price_with():
    """Of a network with batch normalisation, unless rung 4b tells the two apart."""
    rungs = ladder(features_linearised=1.5, network_flow=1.1)
    assert attribute(rungs, "loss").shares[0].assumption == "lazy features"
    rungs = rungs._replace(batch_norm=True)
    said = [s.assumption for s in attribute(rungs, "loss").shares]
    assert said == ["lazy features, batch statistics at rest", "flow instead of the optimiser's steps"]
    rungs.rungs["features-coupled"] = decaying(1.3, rung="features-coupled")
    said = [s.assumption for s in attribute(rungs, "loss").shares]
    assert said == ["batch statistics at rest", "lazy features", "flow instead of the optimiser's steps"]


@pytest.mark.parametrize(
    ("optimiser", "step", "bound"),
    [({}, "0.1", "2"), ({"momentum": 0.5}, "0.05", "3"), ({"momentum": 0.5, "nesterov": True}, "0.05", "1.5")],
)
def test_the_edge_of_stability_is_named(optimiser, step, bound):
    """A record every step, then every second, every fourth: 0.1 of flow time for each, of which 1/(1 − β) is speed."""
    rungs = ladder(block_frozen=2.0)
    assert edge_of_stability(rungs) is None
    equation = Equation(producer="network", clock=Clock(1.0, **optimiser))
    rungs = rungs._replace(network=rungs.network.replaced(equation=equation))
    rungs.rungs["network-flow"] = decaying(1.1, statistics={"eigenvalue_largest": 16.0})
    said = edge_of_stability(rungs)
    assert said is not None
    assert f"{step} x 16 = {float(step) * 16:.3g}; the optimiser is stable below {bound}" in said
    assert said in ladder_tables(rungs)


def test_a_rung_that_ended_early_is_stepped_over():
    rungs = ladder(block_frozen=4.0, sample_frozen=1.5, network_flow=1.1)
    rungs.rungs["sample-frozen"] = decaying(1.5, points=2, rung="sample-frozen")
    found = attribute(rungs, "loss")
    assert [share.from_ for share in found.shares] == ["block-frozen", "network-flow"]
    assert found.complete
    # The gap at the end is that of the whole run.
    assert float(found.gap[-1]) == pytest.approx(3 * 0.7)
    rungs.rungs["network-flow"] = decaying(1.1, points=3)
    assert [share.from_ for share in attribute(rungs, "loss").shares] == ["block-frozen"]
    # Where none reaches the end there are no prices, and the rest is there.
    rungs.rungs["block-frozen"] = decaying(4.0, points=2)
    assert chains(rungs) == []
    assert "within 10% until step" in ladder_tables(rungs)
    with pytest.raises(ValueError, match="in the ladder that reaches the end, got none"):
        attribute(rungs, "loss")


def test_what_a_solver_does_not_resolve_has_no_price():
    """Rates of 40 an unit leave e^{-28} = 7e-13 at the end, of which nothing is the rung's."""
    rungs = ladder(block_frozen=40.0, sample_frozen=1.5)
    # ‖R‖ at the start is √2, so that parts are resolved to 1.4e-7: 2 e^{-12} = 1.2e-5 at 0.4, 1e-12 at 0.8.
    found = attribute(rungs, "residual_single")
    assert not found.complete
    np.testing.assert_allclose(found.times, TIMES[:3])
    np.testing.assert_allclose(sum(s.change for s in found.shares), found.gap, atol=1e-14)
    np.testing.assert_allclose(found.gap[-1], 39 * 0.3)
    # A metric that does not decay is what it is.
    assert attribute(rungs, "nc1_tirer2022").complete
    said = ladder_tables(rungs)
    line = next(line for line in said.splitlines() if "or at the last resolved step" in line)
    assert line.split()[-5:] == ["8", "4", "4", "4", "8"]
    assert "last resolved" not in ladder_tables(ladder(block_frozen=4.0, sample_frozen=1.5))


def test_tables_split_the_gap_along_chains_that_the_ladder_has():
    assert chains(ladder(network_linearised=2.0, block_path=3.0)) == []
    assert chains(ladder(block_frozen=2.0, sample_frozen=3.0)) == ["frozen"]
    assert chains(ladder(block_frozen=2.0, block_path=3.0)) == ["path"]
    lazy = ladder(network_linearised=0.5, features_linearised=0.8, network_flow=1.1)
    assert chains(lazy) == ["frozen", "lazy"]
    assert [share.assumption for share in attribute(lazy, "loss", "lazy").shares] == [
        "lazy last layer",
        "lazy features",
        "flow instead of the optimiser's steps",
    ]
    both = ladder(block_frozen=4.0, block_path=3.0, sample_path=2.0)
    assert chains(both) == ["path"]
    shares = attribute(both, "loss", "path").shares
    assert [share.assumption for share in shares][:2] == ["block kernel drift", "block structure"]


def test_horizon_is_the_last_time_within_ten_percent():
    found = attribute(ladder(block_frozen=4.0, sample_frozen=1.5, network_flow=1.1), "loss").horizons
    # |e^{-(r-1)(t-0.1)} - 1| is 0.26 at t = 0.2 for r = 4; 0.049, 0.14 for 1.5; 0.068 at the end for 1.1.
    assert np.isnan(found["block-frozen"])
    assert found["sample-frozen"] == 0.2
    assert found["network-flow"] == 0.8


def test_chains_that_cannot_be():
    rungs = ladder(block_frozen=2.0)
    with pytest.raises(ValueError, match="'network' as the last one"):
        attribute(rungs, "loss", chain("frozen")[:-1])
    with pytest.raises(ValueError, match="at least one of"):
        attribute(rungs, "loss", ("class-pairs", "network"))
    with pytest.raises(ValueError, match="chain: expected one of"):
        attribute(rungs, "loss", ("nonsense", "network"))
    with pytest.raises(ValueError, match=r"observable \(of block-frozen\)"):
        attribute(rungs, "step")


def test_saved_ladders_come_back(tmp_path):
    short = ladder(block_frozen=2.0)
    short.rungs["sample-frozen"] = decaying(1.5, points=2, rung="sample-frozen")
    short.rungs["network-flow"] = decaying(1.1, statistics={"num_steps": 7, "path": np.zeros(2)}, rung="network-flow")
    save_ladders(tmp_path, {80: short, 320: ladder(block_path=3.0)})
    back = load_ladders(tmp_path)
    assert list(back) == [80, 320]
    assert list(back[80].rungs) == ["block-frozen", "sample-frozen", "network-flow"]
    assert {k: float(v) for k, v in back[80].rungs["network-flow"].statistics.items()} == {"num_steps": 7}
    assert back[80].failures == {"sample-path": "why"}
    assert back[80].network.settings == {"a": 1}
    assert len(back[80].rungs["sample-frozen"].times) == 2
    np.testing.assert_array_equal(back[320].rungs["block-path"]["loss"], decaying(3.0)["loss"])
    with pytest.raises(FileNotFoundError, match="no comparison here"):
        load_ladders(tmp_path / "elsewhere")
    assert [file.name for file in tmp_path.iterdir()] == ["comparison.nc"]
