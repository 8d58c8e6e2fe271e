"""Exponential or algebraic? The law of a decay, read from a trajectory, with an interval that tells them apart."""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Float
from scipy import stats
from scipy.optimize import least_squares, minimize_scalar

from ntkcollapse._checks import check_positive, check_shape
from ntkcollapse.theory._line_or_noise import autocorrelation
from ntkcollapse.theory.rate_fit import logarithms

Law = Literal["exponential", "algebraic", "faster than exponential", "levels off", "undecided", "neither"]

# Bending below this excludes t^-2 and all slower powers; a power above 2 looks like an exponential for long.
_STRAIGHT = 0.5
# Of ln(norm): what the fits are found to.
_RESOLVED = 1e-6
# Of the bending that is tried: t^{-1/20} at one end, an end in finite time at the other.
_BENDINGS = np.sinh(np.linspace(np.arcsinh(-30.0), np.arcsinh(200.0), 80)) / 10


class DecayFit(NamedTuple):
    """The law y = y₀ (1 + q k (t − t₁))^{−1/q} that fits a decay best, and which kind of decay that is.

    The law is that of ẏ = −k (y/y₀)^q y, the one parameter family that joins exponentials (q = 0, its limit) and powers
    t^{−1/q} of the time since some moment before t₁, the window's first (q > 0); below 0 the decay ends in finite time.

    bending: q; interval: in which it lies with the coverage asked for; rate: k, of the norm at t₁;
    misfit: root mean square of ln(norm) about the law, over how far ln(norm) falls; efolds: how far it falls;
    level: what the norm falls to over y₀, of the rival law y₀ ((1 − level) e^{−k (t − t₁)} + level);
    advantage: ln of the rival's sum of squares over the law's; margin: above which |advantage| decides, with the
    coverage asked for; correlation: of neighbours in what the better of both leaves over;
    window: first and last time; num_points: times in it.
    """

    bending: float
    interval: tuple[float, float]
    rate: float
    misfit: float
    efolds: float
    level: float
    advantage: float
    margin: float
    correlation: float
    window: tuple[float, float]
    num_points: int

    @property
    def law(self) -> Law:
        """Which kind.

        "exponential": q = 0 is in the interval, and q = ½, powers from t^-2 on, is not. "algebraic": the interval is
        above 0, and an exponential that levels off fits worse. "levels off": that one fits better. "undecided": more
        of the decay, or less noise, is needed. "neither": what the better of both leaves over is more than a twentieth
        of the fall and no independent noise: humps, steps.
        """
        low, high = self.interval
        best = self.misfit * math.exp(min(self.advantage, 0.0) / 2)
        if not (best < 0.05 or self.correlation < 2 / math.sqrt(self.num_points)):
            return "neither"
        if high < 0:
            return "faster than exponential"
        if low <= 0:
            return "exponential" if high < _STRAIGHT else "undecided"
        if abs(self.advantage) <= self.margin:
            return "undecided"
        return "algebraic" if self.advantage > 0 else "levels off"

    @property
    def exponent(self) -> float:
        """p = 1/q of t^{−p}; infinite for exponentials and what is faster."""
        return 1 / self.bending if self.bending > 0 else math.inf

    @property
    def exponent_interval(self) -> tuple[float, float]:
        """Of p, from that of q."""
        low, high = (1 / q if q > 0 else math.inf for q in self.interval[::-1])
        return low, high


def fit_decay(
    times: Float[Array, " T"] | Float[np.ndarray, " T"],
    norms: Float[Array, " T"] | Float[np.ndarray, " T"],
    window: tuple[float, float] | None = None,
    *,
    errors: Float[Array, " T"] | Float[np.ndarray, " T"] | None = None,
    coverage: float = 0.95,
    min_points: int = 8,
    floor: float | None = None,
) -> DecayFit:
    r"""Whether a norm decays exponentially or as a power of time.

    Least squares of ln(norm) about ln y₀ − ln(1 + q k (t − t₁))/q. A power needs no origin of time: it is 1/(q k)
    before t₁, fitted. The interval of q is where the sum of squares, at its least over y₀ and k, stays below that of a
    t-test, its noise independent from time to time or with first-order autocorrelation.

    On 40 curves each of 40 times over five e-folds with independent noise of 0.05 in ln(norm), all powers t^{-1/2},
    t^{-1} and t^{-2} are called algebraic, no exponential is (37 exponential, 2 faster, 1 undecided), and intervals
    hold q in 92 to 100 %. A sum of two exponentials bends like a power, and is called one or undecided: how far down
    a law was followed (`efolds`) is part of what it says.

    Args:
        times: increasing, (T,).
        norms: (T,), not negative: of a part of the residual, of scatter (its square has the same q halved).
        window: first and last time; None takes all. The law is of one phase: leave out what is before it, and changes
            of the learning rate where times are not flow time.
        errors: standard errors of the norms, (T,), up to a common factor; equal relative ones without them.
        coverage: of the interval.
        min_points: that a window needs.
        floor: as in `fit_rate`: norms at or below it are rounding.
    Raises:
        ValueError: shapes that disagree, numbers not finite or negative, a coverage outside (0, 1), too few points, or
            norms that do not fall over the window.

    >>> t = np.linspace(1.0, 400.0, 80)
    >>> fit_decay(t, t**-0.5).law, fit_decay(t, np.exp(-t / 50)).law
    ('algebraic', 'exponential')
    """
    t, y, weights, usable, _ = logarithms(times, norms, errors, floor)
    check_shape("coverage", coverage, (), "a number")
    if not 0 < coverage < 1:
        raise ValueError(f"coverage: expected a number between 0 and 1, got {coverage}.")
    check_positive("min_points", min_points)
    first, last = (t[0], t[-1]) if window is None else window
    chosen = np.flatnonzero((t >= first) & (t <= last) & usable)
    if len(chosen) < max(min_points, 6):
        raise ValueError(
            f"window: expected at least {max(min_points, 6)} times with norms above rounding, got {len(chosen)}; widen "
            "the window or save more times."
        )
    t, y, weights = t[chosen], y[chosen], weights[chosen] / np.mean(weights[chosen])
    efolds = float(-np.polyfit((t - t[0]) / (t[-1] - t[0]), y, 1, w=np.sqrt(weights))[0])
    if efolds <= 0:
        raise ValueError("norms: expected some that fall over the window, got none; name another window.")
    costs = np.array([_least(q, t, y, weights, efolds)[0] for q in _BENDINGS])
    best = int(np.argmin(costs))
    around = _BENDINGS[max(best - 1, 0)], _BENDINGS[min(best + 1, len(_BENDINGS) - 1)]
    nearer: Any = minimize_scalar(
        lambda q: _least(q, t, y, weights, efolds)[0], bounds=around, method="bounded", options={"xatol": 1e-9}
    )
    q = float(nearer.x)
    cost, rate = _least(q, t, y, weights, efolds)
    rest, (rival, level) = _residual(q, rate, t, y, weights), _levelling(t, y, weights, efolds)
    # Differences below rounding are none.
    cost, rival_cost = (max(value, len(t) * _RESOLVED**2) for value in (cost, float(rival @ rival)))
    # The noise is what the better of both leaves over.
    raw, correlation = autocorrelation(rest if cost <= rival_cost else rival)
    inflation = (1 + min(correlation, 0.95)) / (1 - min(correlation, 0.95))
    freedom = max(len(t) / inflation - 3, 1.0)
    share = float(stats.t.ppf((1 + coverage) / 2, freedom)) ** 2 * inflation / (len(t) - 3)
    reach = share * min(cost, rival_cost)
    below, above = _BENDINGS < q, _BENDINGS > q
    return DecayFit(
        bending=q,
        interval=(
            _edge(q, _BENDINGS[below][::-1], costs[below][::-1] - cost, reach, -math.inf),
            _edge(q, _BENDINGS[above], costs[above] - cost, reach, math.inf),
        ),
        rate=rate / float(t[-1] - t[0]),
        misfit=math.sqrt(cost / len(t)) / efolds,
        efolds=efolds,
        level=level,
        advantage=math.log(rival_cost / cost),
        margin=math.log1p(share),
        correlation=raw,
        window=(float(t[0]), float(t[-1])),
        num_points=len(t),
    )


def _residual(q, rate, t, y, weights):
    """ln(norm) about the law with this bending and rate (per length of the window), in units of the errors."""
    x = rate * (t - t[0]) / (t[-1] - t[0])
    fallen = x * (1 - q * x / 2) if abs(q) < 1e-8 else np.log1p(np.maximum(q * x, -1 + 1e-12)) / q
    rest = y + fallen
    return np.sqrt(weights) * (rest - np.average(rest, weights=weights))


def _levelling(t, y, weights, efolds) -> tuple[np.ndarray, float]:
    """What the best exponential that levels off leaves over, and its level over where it starts."""
    x, root = (t - t[0]) / (t[-1] - t[0]), np.sqrt(weights)

    def residual(parameters):
        level = 1 / (1 + np.exp(-parameters[0]))
        rest = y - np.log((1 - level) * np.exp(-np.exp(parameters[1]) * x) + level)
        return root * (rest - np.average(rest, weights=weights))

    fits = [
        least_squares(residual, (lowest, math.log(rate * efolds)), bounds=([-40, -6], [5, 14]))
        for lowest in (-20.0, -max(efolds, 1.0))
        for rate in (1.0, 10.0)
    ]
    best = min(fits, key=lambda fit: fit.cost)
    return np.asarray(best.fun), float(1 / (1 + np.exp(-best.x[0])))


def _least(q, t, y, weights, efolds) -> tuple[float, float]:
    """The least sum of squares about a law of this bending, and the rate of that one."""
    middle = math.log(efolds)
    highest = middle + 14 if q >= 0 else min(middle + 14, math.log(1 / -q))
    found: Any = minimize_scalar(
        lambda logarithm: float(np.sum(_residual(q, math.exp(logarithm), t, y, weights) ** 2)),
        bounds=(min(middle, highest) - 6, highest),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(found.fun), math.exp(float(found.x))


def _edge(q, bendings, excess, reach, beyond) -> float:
    """Where the excess over the least sum of squares reaches `reach`, going outwards from the best on parabolas."""
    inner, low = q, 0.0
    for outer, value in zip(bendings, excess, strict=True):
        if value > reach:
            share = (math.sqrt(reach) - math.sqrt(low)) / (math.sqrt(value) - math.sqrt(low))
            return float(inner + share * (outer - inner))
        inner, low = outer, max(float(value), 0.0)
    return beyond
