"""The invariant of runs with a known course."""

import jax
import numpy as np
import pytest

from ntkcollapse import BlockKernel, Classes, LastLayer, Trajectory, simulate
from ntkcollapse.comparison import collapse_points, invariant_course
from ntkcollapse.equation import Equation
from ntkcollapse.theory.flow import Flow
from ntkcollapse.theory.method import Method

CLASSES = Classes.balanced(num_classes=3, per_class=4)


def run_with(rate: float, points: int = 40, **equation) -> Trajectory:
    times = np.linspace(0.0, 10.0, points)
    decay = np.exp(-rate * times)
    names = "necessary_condition nc1_tirer2022 nc2_seleznova2023 nc3_seleznova2023 accuracy".split()
    seen = {name: (i + 1) * np.exp(-times) for i, name in enumerate(names)}
    kappa = {"kappa_diagonal": 2.0, "kappa_within": 1.5, "kappa_between": 0.5}
    seen |= {name: np.full(points, value) for name, value in kappa.items()}
    seen |= {"invariant_norm": 3 * decay, "invariant_relative": decay / 2, "invariant_alignment": 1 - decay / 2}
    return Trajectory(times, seen, CLASSES, equation=Equation(**equation))


def simulated(columns: bool = True, **options) -> Trajectory:
    """A generic state under a constant kernel, until half an e-fold of the invariant's decay at λ = ½ is far behind."""
    keys = jax.random.split(jax.random.key(0))
    H, W = 0.3 * jax.random.normal(keys[0], (5, 12)), 0.3 * jax.random.normal(keys[1], (3, 5))
    state = LastLayer(H=H, W=W, b=np.zeros(3))
    flow = Flow(BlockKernel(1.0, 0.6, 0.1), CLASSES, **options)
    return simulate(state, flow, times=np.linspace(0.0, 3.0, 31), method=Method(rtol=1e-9), columns=columns)


def test_decay_beside_twice_the_weight_decay():
    course = invariant_course(run_with(0.4), decay=0.2)
    assert course.fit is not None
    assert course.fit.rate == pytest.approx(course.predicted_rate, rel=1e-9)
    slower = invariant_course(run_with(0.1), decay=0.2)
    assert slower.fit is not None
    assert slower.fit.rate == pytest.approx(slower.predicted_rate / 4, rel=1e-9)


def test_nothing_is_fitted_where_nothing_decays():
    course = invariant_course(run_with(0.0))
    assert course.fit is None
    assert course.predicted_rate == 0
    # Decay that does not come: no exponential is found, and none is made up.
    assert invariant_course(run_with(0.0), decay=0.1).fit is None


@pytest.mark.parametrize("decay", [0.5, {"H": 0.5, "W": 0.5, "b": 0.0}], ids=["all", "without bias"])
def test_a_simulated_run_names_its_own_decay(decay):
    run = simulated(weight_decay=decay)
    course = invariant_course(run)
    assert course.predicted_rate == 1.0
    assert course.fit is not None
    # E(t) = E(0) e^{−2λt} exactly; the solver's tolerance is 1e-9 of the state.
    assert course.fit.rate == pytest.approx(1.0, rel=1e-6)
    assert invariant_course(run, decay=0.2).predicted_rate == 0.4


def test_no_law_is_named_where_features_and_weights_decay_differently():
    course = invariant_course(simulated(weight_decay={"H": 0.0, "W": 0.5}))
    assert np.isnan(course.predicted_rate)
    still = invariant_course(simulated())
    assert still.predicted_rate == 0
    assert still.fit is None


def test_a_network_names_the_penalty_of_its_weights():
    # A penalty of 0.01 beside the mean over 12 samples and 3 outputs.
    network = {"producer": "network", "weight_decay": {"W": 36 * 0.01}}
    course = invariant_course(run_with(0.72, **network))
    assert course.predicted_rate == pytest.approx(2 * 36 * 0.01)
    assert course.fit is not None
    assert course.fit.rate == pytest.approx(0.72, rel=1e-9)
    # A rate per flow time says nothing per step.
    assert np.isnan(invariant_course(run_with(0.72, without_clock="adam rescales gradients", **network)).predicted_rate)
    assert np.isnan(invariant_course(run_with(0.72, weight_decay=0.36, plain=False)).predicted_rate)


def test_what_decays_is_fitted_with_or_without_a_named_decay():
    fit = invariant_course(run_with(0.4)).fit
    assert fit is not None
    assert fit.rate == pytest.approx(0.4, rel=1e-9)


def test_points_are_ends_of_runs():
    (point,) = collapse_points([("a", run_with(0.4))])
    assert point.name == "a"
    assert point.invariant_start == 0.5
    assert point.invariant_end == pytest.approx(np.exp(-4.0) / 2)
    assert point.nc1 == pytest.approx(2 * np.exp(-10.0))
    assert point.block_strength == 0.5


def test_a_run_without_kernels_is_refused():
    without = Trajectory(np.arange(3.0), {"loss": np.ones(3)}, CLASSES)
    with pytest.raises(ValueError, match="got one without the invariant"):
        invariant_course(without)
    with pytest.raises(ValueError, match="got one without the invariant"):
        collapse_points([("x", without)])


def test_points_say_which_observables_are_missing():
    without = simulated(columns=False)
    with pytest.raises(ValueError, match=r"run a: expected .* got none for \['accuracy'\]; .* columns=True"):
        collapse_points([("a", without)])
    # Its course needs no columns.
    assert invariant_course(without).fit is None
