"""Rates of runs whose decay is known: synthetic norms with noise, and a frozen block-structured output kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import BlockKernel, Classes, LastLayer, SquaredError, Trajectory, simulate
from ntkcollapse.commands.rates import rates_table
from ntkcollapse.comparison import NetworkAt, measured_rates, within_class_spectrum
from ntkcollapse.equation import Equation
from ntkcollapse.theory.exact import frozen_residual
from ntkcollapse.theory.flow import Flow
from ntkcollapse.theory.method import Method
from ntkcollapse.weight_decay import WeightDecay
from tests.comparison import cases

GAMMA = BlockKernel(diagonal=1.0, within=0.6, between=0.1)
CLASSES = Classes.balanced(num_classes=3, per_class=4)


def lazy_run(noise: float = 0.0, seed: int = 0, points: int = 80, **equation) -> Trajectory:
    """The lazy regime's exact residual, its parts seen with relative noise."""
    rng = np.random.default_rng(seed)
    times = np.linspace(0.0, 2.0, points)
    R = frozen_residual(times, rng.normal(size=(3, 12)), GAMMA, CLASSES)
    parts = [np.asarray(part) for part in jax.vmap(CLASSES.parts)(R)]
    names = ("residual_single", "residual_class", "residual_global")
    seen = {
        name: np.linalg.norm(part, axis=(1, 2)) * np.exp(noise * rng.normal(size=points))
        for name, part in zip(names, parts, strict=True)
    }
    gamma = {f"gamma_{k}": np.full(points, float(getattr(GAMMA, k))) for k in ("diagonal", "within", "between")}
    return Trajectory(times, seen | gamma, CLASSES, equation=Equation(**equation))


def test_lazy_run_has_the_eigenvalues_as_rates():
    found = measured_rates(lazy_run())
    for part, expected in zip(found, GAMMA.rates(CLASSES), strict=True):
        fit = found[part].fit
        assert fit is not None
        assert fit.rate == pytest.approx(float(expected), rel=1e-6)
        assert found[part].eigenvalue == pytest.approx(float(expected))
        assert found[part].verdicts["eigenvalue"].agrees
        # No states: nothing can be said of the feature-learning rate.
        assert np.isnan(found[part].implied)
        assert "implied" not in found[part].verdicts


def test_a_probe_gives_the_rates_of_the_training_set():
    """Kernel values do not depend on how many samples they were measured on; eigenvalues do."""
    run = lazy_run(training_classes=Classes.balanced(num_classes=3, per_class=80))
    expected = GAMMA.rates(Classes.balanced(num_classes=3, per_class=80))
    for rate, value in zip(measured_rates(run).values(), expected, strict=True):
        assert rate.eigenvalue == pytest.approx(float(value))
    assert "λ(γ) is for all of them" in rates_table(run, measured_rates(run))
    unequal = lazy_run(training_classes=Classes(sizes=(40, 80, 120)))
    assert all(np.isnan(rate.eigenvalue) for rate in measured_rates(unequal).values())


@pytest.mark.parametrize(
    "changed",
    [{}, {"bias": "absent"}, {"training_classes": Classes.balanced(3, 8)}, {"loss": "cross-entropy"}],
)
def test_implied_rates_of_a_network_are_those_of_its_own_loss(changed):
    network = cases.linear_network()
    plain = cases.run_of([network.last_layer] * 3, np.array([0.0, 0.1, 0.2]))
    # A penalty of 0.01 beside the mean over 12 samples and 3 outputs.
    equation = Equation(**{"producer": "network", "weight_decay": {"W": 36 * 0.01}, **changed})
    run = plain.replaced(equation=equation)
    found = [rate.implied for rate in measured_rates(run).values()]
    if "loss" in changed or "training_classes" in changed:
        assert np.isnan(found).all()
        return
    # dR/dt = W dH/dt + dW/dt H + db/dt 1ᵀ by the equations of the flow, on the clock of ½‖R‖².
    H, W, b = (np.asarray(getattr(network.last_layer, name)) for name in "HWb")
    R = np.asarray(W @ H + b[:, None] - cases.CLASSES.Y)
    K = np.asarray(cases.KAPPA.as_matrix(cases.CLASSES))
    change = -W @ (W.T @ R @ K) + (-R @ H.T - 36 * 0.01 * W) @ H
    if "bias" not in changed:
        change = change - R.sum(1, keepdims=True)
    parts = [cases.CLASSES.parts(jnp.asarray(x)) for x in (R, change)]
    expected = [-float(jnp.sum(r * d) / jnp.sum(r * r)) for r, d in zip(*parts, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_rates_come_out_of_noise_at_the_stated_coverage():
    truth = {part: float(x) for part, x in zip(("single", "class", "global"), GAMMA.rates(CLASSES), strict=True)}
    windows = dict.fromkeys(truth, (0.0, 2.0))
    hits = total = 0
    for seed in range(40):
        for part, rate in measured_rates(lazy_run(noise=0.02, seed=seed), windows).items():
            assert rate.fit is not None
            low, high = rate.fit.interval(0.95)
            hits, total = hits + (low <= truth[part] <= high), total + 1
    # 120 intervals of 95%: below 0.88 or above 0.995 with probability under 1e-3 each.
    assert 0.88 <= hits / total <= 0.995


def test_wrong_prediction_is_called_wrong():
    run = lazy_run(noise=0.01)
    moved = run.replaced(observables=run.observables | {"gamma_diagonal": run["gamma_diagonal"] * 1.5})
    assert not measured_rates(moved)["single"].verdicts["eigenvalue"].agrees


def test_the_table_calls_a_rate_that_is_not_the_predicted_one_so():
    """Of the same fits: eigenvalues that are theirs, and eigenvalues that are 30% larger."""
    run = lazy_run(noise=0.01)
    names = [name for name in run.observables if name.startswith("gamma_")]
    verdicts = {}
    for factor in (1.0, 1.3):
        seen = Trajectory(run.times, run.observables | {name: factor * run[name] for name in names}, CLASSES)
        rows = rates_table(seen, measured_rates(seen)).splitlines()[2:5]
        verdicts[factor] = [row.split()[-1] for row in rows]
    assert verdicts == {1.0: ["λ(γ)"] * 3, 1.3: ["neither"] * 3}


def test_a_part_that_is_not_finite_costs_the_others_nothing():
    run = lazy_run()
    broken = np.asarray(run["residual_class"]).copy()
    broken[-1] = np.nan
    found = measured_rates(Trajectory(run.times, run.observables | {"residual_class": broken}, CLASSES))
    assert "expected finite numbers" in found["class"].reason
    for part, expected in zip(("single", "global"), GAMMA.rates(CLASSES)[::2], strict=True):
        fit = found[part].fit
        assert fit is not None
        assert fit.rate == pytest.approx(float(expected), rel=1e-6)


def test_no_rate_is_implied_for_a_flow_of_another_equation():
    """With W twice as slow as H the plain flow's rates are 12 to 65% too high."""
    start = cases.linear_network().last_layer
    for rate_W in (1.0, 0.5):
        flow = Flow(cases.KAPPA, cases.CLASSES, SquaredError(), WeightDecay.of(0.0), rate_W=rate_W)
        run = simulate(start, flow, cases.CLASSES, np.array([0.0, 1e-5, 0.1]), method=Method(rtol=1e-8))
        for name, rate in measured_rates(run).items():
            if rate_W != 1:
                assert np.isnan(rate.implied)
                continue
            norm = run[f"residual_{name}"]
            # Rates change by some of themselves per unit of time: by 1e-3 at most over 1e-5 of it.
            assert rate.implied == pytest.approx(float(jnp.log(norm[0] / norm[1])) * 1e5, rel=1e-3)


def test_bad_input():
    with pytest.raises(ValueError, match="expected times of gradient flow, got optimiser steps"):
        measured_rates(lazy_run(without_clock="adam rescales gradients"))
    with pytest.raises(ValueError, match="window: expected at least 8 times"):
        measured_rates(lazy_run(), {"class": (0.0, 0.05)})
    run = lazy_run()
    without = Trajectory(run.times, {"loss": run["residual_single"]}, CLASSES)
    with pytest.raises(ValueError, match="expected the residual parts"):
        measured_rates(without)
    # A chosen window that does not exist is a result, not an error.
    flat = Trajectory(run.times, {k: np.ones(80) for k in run.observables}, CLASSES)
    found = measured_rates(flat)["single"]
    assert found.fit is None
    assert "found none" in found.reason
    # Options out of range are.
    for option in ({"tolerance": -1.0}, {"min_points": 2}, {"min_efolds": -0.5}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}: expected"):
            measured_rates(run, None, **option)


def test_the_table_says_why_something_is_missing():
    run = lazy_run()
    assert ": no " not in rates_table(run, measured_rates(run))
    flat = Trajectory(run.times, run.observables | {"residual_single": np.ones(80)}, CLASSES)
    said = rates_table(flat, measured_rates(flat))
    assert f"R - R_class: no exponential: {measured_rates(flat)['single'].reason}" in said
    assert said.count("no exponential:") == 1
    names = ("R - R_class", "R_class - R_global", "R_global")
    residuals = {name: run[name] for name in run.observables if name.startswith("residual")}
    reasons = {
        "no output kernel γ was measured": Trajectory(run.times, residuals, CLASSES),
        "classes of equal size only": lazy_run(training_classes=Classes(sizes=(40, 80, 120))),
        "those of the squared loss": lazy_run(loss="cross-entropy"),
        "γ_d = 0.5 is not above γ_c = 0.6": Trajectory(
            run.times, run.observables | {"gamma_diagonal": np.full(80, 0.5)}, CLASSES
        ),
    }
    for reason, without in reasons.items():
        (line,) = (x for x in rates_table(without, measured_rates(without)).splitlines() if reason in x)
        assert line.startswith(f"{', '.join(names)}: no λ(γ): ")


def test_spectrum_of_a_block_kernel_is_one_rate_and_of_others_the_sum():
    network = cases.linear_network()
    # Θ averaged over outputs = ‖W‖²/C K + HᵀH + 11ᵀ.
    state: LastLayer = network.last_layer
    theta = float((network.W**2).sum() / 3) * network.inputs @ network.inputs.T + state.H.T @ state.H + 1
    E = np.asarray(cases.CLASSES.deviations(np.eye(12)))
    R = np.asarray(state.residual(cases.CLASSES)) @ E
    values, vectors = np.linalg.eigh(E @ np.asarray(theta) @ E)
    times = np.array([0.0, 0.3, 1.0])
    expected = np.asarray([np.linalg.norm((R @ vectors) * np.exp(-values * t)) for t in times])
    decay = within_class_spectrum(network, times, groups=9)
    # Single-precision accumulation in no place: the kernel is exact to rounding.
    np.testing.assert_allclose(decay.norm, expected, rtol=1e-8)
    assert isinstance(network, NetworkAt)
