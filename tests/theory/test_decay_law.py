"""Laws of decay against curves whose law is known: closed forms with noise, and equations solved by scipy."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from ntkcollapse.theory import fit_decay

N = 40


def noisy(values, seed, size=0.05, correlation=0.0):
    rng = np.random.default_rng(seed)
    noise = size * rng.normal(size=len(values))
    for i in range(1, len(noise)):
        noise[i] = correlation * noise[i - 1] + np.sqrt(1 - correlation**2) * noise[i]
    return values * np.exp(noise)


def power(p):
    """Five e-folds of t^{−p} from t = 1 on, as a run has them: evenly in ln(t)."""
    t = np.geomspace(1.0, np.exp(5 / p), N)
    return t, t**-p


T = np.linspace(0.0, 5.0, N)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
@pytest.mark.parametrize("p", [0.5, 1.0, 2.0])
def test_powers_are_algebraic_with_their_exponent(p, correlation):
    t, y = power(p)
    fits = [fit_decay(t, noisy(y, seed, correlation=correlation)) for seed in range(5)]
    assert [fit.law for fit in fits] == ["algebraic"] * 5
    np.testing.assert_allclose([fit.exponent for fit in fits], p, rtol=0.15)
    held = [fit.exponent_interval[0] <= p <= fit.exponent_interval[1] for fit in fits]
    assert np.mean(held) >= 0.75


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_exponentials_are_no_powers(correlation):
    fits = [fit_decay(T, noisy(np.exp(-1.3 * T), seed, correlation=correlation)) for seed in range(5)]
    assert "algebraic" not in [fit.law for fit in fits]
    assert [fit.law for fit in fits].count("exponential") >= 4
    np.testing.assert_allclose([fit.rate for fit in fits], 1.3, rtol=0.1)


def test_exponentials_that_level_off_are_no_powers():
    laws = [fit_decay(T, noisy(np.exp(-T) + 0.05, seed, size=0.02)) for seed in range(5)]
    assert [fit.law for fit in laws] == ["levels off"] * 5
    np.testing.assert_allclose([fit.level for fit in laws], 0.05 / 1.05, rtol=0.3)


def test_without_noise_the_law_of_an_equation_is_its_own():
    # ẏ = −2 y³ from scipy, which knows no closed form: q = 2 and k = 2.
    t = np.linspace(0.0, 30.0, 60)
    y = solve_ivp(lambda _, y: -2 * y**3, (0.0, 30.0), [1.0], t_eval=t, rtol=1e-10, atol=1e-12).y[0]
    fit = fit_decay(t, y)
    assert fit.law == "algebraic"
    np.testing.assert_allclose([fit.bending, fit.rate], 2.0, rtol=1e-4)
    assert fit.interval[0] <= fit.bending <= fit.interval[1]


def test_a_decay_that_ends_is_faster_than_exponential():
    assert fit_decay(T, (1 - T / 5.5) ** 2).law == "faster than exponential"


def test_a_short_stretch_is_undecided_and_a_wave_is_neither():
    short = np.linspace(0.0, 0.6, 12)
    assert fit_decay(short, noisy(np.exp(-short), 0, size=0.05)).law == "undecided"
    assert fit_decay(T, np.exp(-T + 0.8 * np.sin(4 * T))).law == "neither"


def test_law_does_not_depend_on_units_and_window_is_kept_to():
    t, y = power(0.5)
    y = noisy(y, 3)
    one, other = fit_decay(t, y), fit_decay(1000 * t, 1e-6 * y)
    np.testing.assert_allclose([other.bending, *other.interval], [one.bending, *one.interval], rtol=1e-5)
    np.testing.assert_allclose(other.rate, one.rate / 1000, rtol=1e-5)
    joined = fit_decay(np.concatenate([T, 5.5 + T]), np.concatenate([np.exp(-T), np.exp(-5) / (1 + T)]), (0.0, 5.0))
    assert joined.law == "exponential"
    assert joined.window == (0.0, 5.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": T[::-1]}, "times"),
        ({"norms": np.exp(T)}, "fall"),
        ({"norms": -np.exp(-T)}, "norms"),
        ({"window": (1.0, 1.2)}, "at least 8 times"),
        ({"coverage": 1.0}, "coverage"),
        ({"min_points": 0}, "min_points"),
    ],
)
def test_what_is_no_decay_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        fit_decay(**({"times": T, "norms": np.exp(-T)} | change))
