"""The rate of an exponential decay, read from a trajectory with an uncertainty, and beside a predicted one."""

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float
from scipy import stats

from ntkcollapse._checks import check_finite, check_increasing, check_positive, check_shape, check_whole
from ntkcollapse.theory._line_or_noise import autocorrelation, beats_a_jump, beyond_a_parabola, falls_beyond_noise, line
from ntkcollapse.theory.rates import Rates

# Windows start and end at no more than this many of the times, so that long trajectories stay cheap.
_BREAKPOINTS = 60
# With which noise may fall like a chosen window somewhere in a trajectory, for windows of one length.
_CHANCE = 0.02


class NoExponential(ValueError):
    """Norms without a stretch that decays at one rate: a result of a chosen window, not a fault of the arguments."""


class RateFit(NamedTuple):
    """A decay rate and how far it can be trusted.

    rate: −d ln(norm)/dt over the window;
    standard_error: of the rate, from noise: independent or with first-order autocorrelation;
    drift: largest difference between the rate over a third of the window and over all of it, beyond what noise
    explains;
    window: first and last time;
    num_points: times in it;
    degrees_of_freedom: behind the standard error, after autocorrelation;
    efolds: rate times length of the window: how much of an exponential it covers;
    r_squared: share of the variance of ln(norm) that the line explains.
    """

    rate: float
    standard_error: float
    drift: float
    window: tuple[float, float]
    num_points: int
    degrees_of_freedom: float
    efolds: float
    r_squared: float

    @property
    def uncertainty(self) -> float:
        """Noise and drift together, as one standard error: √(standard_error² + drift²)."""
        return math.hypot(self.standard_error, self.drift)

    def interval(self, coverage: float = 0.95) -> tuple[float, float]:
        """rate ± (t-quantile · standard_error + drift): for a decay at one rate it holds that rate with `coverage`.

        Where the rate changes within the window it holds the local rates over it, but claims no probability for that.
        """
        reach = float(stats.t.ppf((1 + coverage) / 2, self.degrees_of_freedom)) * self.standard_error + self.drift
        return self.rate - reach, self.rate + reach


class RateVerdict(NamedTuple):
    """A fitted rate beside the predicted one.

    ratio: fitted / predicted; deviation: their difference in units of the fit's uncertainty;
    within_errors, within_percent: whether they agree by either measure.
    """

    predicted: float
    fit: RateFit
    ratio: float
    deviation: float
    within_errors: bool
    within_percent: bool

    @property
    def agrees(self) -> bool:
        """Within the fit's errors, or within the stated share of the prediction."""
        return self.within_errors or self.within_percent


def fit_rate(
    times: Float[Array, " T"] | Float[np.ndarray, " T"],
    norms: Float[Array, " T"] | Float[np.ndarray, " T"],
    window: tuple[float, float] | None = None,
    *,
    errors: Float[Array, " T"] | Float[np.ndarray, " T"] | None = None,
    tolerance: float = 0.1,
    min_points: int = 8,
    min_efolds: float = 0.5,
    floor: float | None = None,
) -> RateFit:
    r"""Decay rate of a norm by weighted regression of its logarithm on time.

    Without a window the one with the most e-folds is taken in which the local rate is stable: the slopes of its three
    thirds agree with the slope of the whole within `tolerance`, or within three standard errors of noise. Counting
    e-folds instead of time keeps plateaus before and after a decay out of it. Points at rounding level do not count,
    nor do windows whose rate is less than three times its uncertainty, nor

    - jumps: a line has to be e⁶ times likelier than two levels;
    - chance: noise may fall like a window of n of the T times with a chance of 0.02 n/T at most, by a t-test under
      independent noise, or under a random walk where the residuals do not exclude one: fewer than 20 rarely do.

    So chosen, a rate is found in none of 200 plateaus of independent noise of 0.2 and 0.3 in ln(norm), at 30, 60 and
    200 times; in 1 of 200 with a far point or three before a gap; in 0.1, 0.2 and 0.45 of random walks of 30, 60 and
    200 times. A decay by 30 times the noise is found whenever its three thirds agree, for 20 times or more one by 10
    times the noise in 0.7 to 1 of cases, for 8 to 12 times in 0.1 to 0.3, and those intervals hold too seldom (0.7 to
    0.8). Named windows are fitted as they are.

    The standard error covers noise in ln(norm) that is independent from time to time or has first-order
    autocorrelation, estimated from what a parabola leaves over. A 95 % interval then holds the rate in 95 % of cases
    for independent noise and in about 9 of 10 for correlation ½, at 60 points. A rate that changes goes into `drift`.
    Neither covers a slow oscillation, nor two rates that look like one.

    A rate of a norm: the loss, its square, decays at twice that.

    Args:
        times: increasing, (T,).
        norms: of one part of the residual, (T,), not negative.
        window: first and last time; None chooses.
        errors: standard errors of the norms, (T,), up to a common factor; equal relative ones without them.
        tolerance: relative change of the local rate that still counts as stable.
        min_points, min_efolds: below which a window is too short; e-folds are asked of chosen windows only.
        floor: norms at or below it are rounding; 100 ε · max(norms) by default, ε that of the norms' precision. For a
            part of a larger residual give 100 ε times the norm of that.
    Raises:
        ValueError: shapes that disagree, numbers not finite or negative, options out of range, or a window with too
            few points above the floor.
        NoExponential: a ValueError too; no stable window with `min_points` and `min_efolds` that noise leaves.
    """
    for name, value in (("tolerance", tolerance), ("min_efolds", min_efolds)):
        check_shape(name, value, (), "a number")
    check_positive("tolerance", tolerance)
    check_positive("min_efolds", min_efolds, zero=True)
    check_whole("min_points", min_points)
    if min_points < 6:
        raise ValueError(f"min_points: expected at least 6, a line and its curvature in noise; got {min_points}.")
    t, y, weights, usable, floor = logarithms(times, norms, errors, floor)
    if window is not None:
        chosen = np.flatnonzero((t >= window[0]) & (t <= window[1]) & usable)
        if len(chosen) < min_points:
            raise ValueError(
                f"window: expected at least {min_points} times with norms above {floor:.3g} between "
                f"{window[0]:.6g} and {window[1]:.6g}, got {len(chosen)}; widen the window or save more times."
            )
        return _fit(t[chosen], y[chosen], weights[chosen])
    windows = _candidates(y, usable, min_points, min_efolds)
    may_be = _may_be_straight(t - t[0], y, weights, *windows, tolerance, min_efolds)
    for i, j in zip(*(ends[may_be].tolist() for ends in windows), strict=True):
        part = slice(i, j + 1)
        data = t[part], y[part], weights[part]
        slope, excess = _drift(*data)
        if excess <= tolerance * -slope and -slope * (t[j] - t[i]) >= min_efolds:
            # Of windows of one length, about so many stand side by side.
            chance = _CHANCE * (j + 1 - i) / len(t)
            if not (beats_a_jump(*data) and falls_beyond_noise(*data, chance)):
                continue
            fit = _fit(*data)
            if fit.rate > 3 * fit.uncertainty:
                return fit
    raise NoExponential(
        f"norms: expected a stretch of at least {min_points} times and {min_efolds} e-folds in which the decay rate "
        f"changes by less than {tolerance:.0%} and which neither noise nor one jump explains; found none among "
        f"{int(usable.sum())} usable times. Save more times, raise tolerance, or name the window."
    )


def compare_rates(
    predicted: Rates | Mapping[str, float],
    fitted: Mapping[str, RateFit],
    *,
    standard_errors: float = 2.0,
    relative: float = 0.1,
) -> dict[str, RateVerdict]:
    """For each fitted rate, whether it agrees with the prediction.

    Args:
        predicted: by name, or `Rates`, whose names are "single", "class" and "global".
        fitted: some of them, by the same names. Predict from the kernel at the start of the fit's window.
        standard_errors: how many of the fit's uncertainties (noise and drift) count as agreement.
        relative: and which share of the predicted rate.
    Raises:
        ValueError: a fit without a prediction, or a prediction that is not finite.

    >>> t = np.linspace(0.0, 2.0, 50)
    >>> verdict = compare_rates({"single": 3.0}, {"single": fit_rate(t, np.exp(-3.0 * t))})["single"]
    >>> verdict.agrees, round(verdict.ratio, 6)
    (True, 1.0)
    """
    if isinstance(predicted, Rates):
        predicted = {name.rstrip("_"): float(rate) for name, rate in predicted._asdict().items()}
    missing = sorted(set(fitted) - set(predicted))
    if missing:
        raise ValueError(f"predicted: expected a rate for each fit, got none for {missing}; has {sorted(predicted)}.")
    verdicts = {}
    for name, fit in fitted.items():
        rate = float(predicted[name])
        check_finite(f"predicted {name}", rate)
        difference = fit.rate - rate
        verdicts[name] = RateVerdict(
            predicted=rate,
            fit=fit,
            ratio=fit.rate / rate if rate else math.nan,
            deviation=difference / fit.uncertainty if fit.uncertainty else math.copysign(math.inf, difference),
            within_errors=abs(difference) <= standard_errors * fit.uncertainty,
            within_percent=abs(difference) <= relative * abs(rate),
        )
    return verdicts


def logarithms(times, norms, errors, floor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
    """(times, ln(norm), weights of its squares, which are above the floor, the floor), of arguments of `fit_rate`."""
    check_increasing("times", times)
    t = np.asarray(times, dtype=float)
    check_shape("norms", norms, t.shape, "one norm a time")
    check_positive("norms", norms, zero=True)
    if floor is None:
        precision = np.asarray(norms).dtype
        epsilon = np.finfo(precision if precision.kind == "f" else float).eps
        floor = 100 * float(epsilon) * float(np.max(norms))
    norms = np.asarray(norms, dtype=float)
    usable = norms > floor
    weights = np.ones_like(t)
    if errors is not None:
        check_shape("errors", errors, t.shape, "one standard error a time")
        check_positive("errors", errors)
        weights = (norms / np.asarray(errors, dtype=float)) ** 2
    return t, np.log(np.where(usable, norms, 1)), weights, usable, floor


def _candidates(y, usable, min_points, min_efolds):
    """Windows without a point at the floor, the deepest first: their first and their last indices."""
    n = len(y)
    points = np.unique(np.linspace(0, n - 1, min(n, _BREAKPOINTS)).round().astype(int))
    lost = np.concatenate([[0], np.cumsum(~usable)])
    i, j = np.meshgrid(points, points, indexing="ij")
    depth = y[i] - y[j]
    fits = (j - i + 1 >= min_points) & (lost[j + 1] == lost[i]) & (depth >= min_efolds)
    order = np.argsort(-depth[fits], kind="stable")
    return i[fits][order], j[fits][order]


def _may_be_straight(t, y, weights, i, j, tolerance, min_efolds):
    """Which windows may fall far enough at a steady rate: all that `_drift` says so of, and few others.

    All windows at once, from running sums. Where a difference of two sums would lose the digits, the window stays.
    """
    running = [np.concatenate([[0], np.cumsum(weights * x)]) for x in (np.ones_like(t), t, y, t * t, t * y)]

    def slopes(first, last):
        w, wt, wy, wtt, wty = (total[last + 1] - total[first] for total in running)
        with np.errstate(divide="ignore", invalid="ignore"):
            information = wtt - wt**2 / w
            lost = ~((w > 1e-6 * running[0][last + 1]) & (information > 1e-6 * running[3][last + 1]))
            return (wty - wt * wy / w) / information, information, lost

    slope, _, lost = slopes(i, j)
    jump, expected = _jumps(t, y, weights)
    products, expected = (np.concatenate([[0], np.cumsum(x)]) for x in (jump[1:] * jump[:-1], expected))
    with np.errstate(divide="ignore", invalid="ignore"):
        # Jumps stand at inner points, products between two of them.
        noise = np.maximum((products[i] - products[j - 2]) / (expected[j - 2] - expected[i]), 0)
        lost |= ~(expected[j - 2] - expected[i] > 1e-6 * expected[j - 2])
        excess = np.zeros_like(slope)
        edges = i + np.linspace(0, j - i, 4).round().astype(int)
        for first, last in itertools.pairwise(edges):
            local, information, lost_here = slopes(first, last)
            excess = np.maximum(excess, np.abs(local - slope) - 3 * np.sqrt(noise / information))
            lost |= lost_here
        # A margin for rounding: the windows that stay are tested to the last digit.
        margin = 1e-6 * np.abs(slope)
        steady = ~(excess > -tolerance * slope + margin)
        return lost | (steady & ((margin - slope) * (t[j] - t[i]) >= (1 - 1e-6) * min_efolds))


def _jumps(t, y, weights):
    """Distances of inner points from the line of their neighbours; −⟨product of two in a row⟩ in noise of size 1."""
    left = (t[2:] - t[1:-1]) / (t[2:] - t[:-2])
    jump = y[1:-1] - left * y[:-2] - (1 - left) * y[2:]
    return jump, left[1:] / weights[1:-2] + (1 - left[:-1]) / weights[2:-1]


def _drift(t, y, weights) -> tuple[float, float]:
    """The slope, and by how much more than three standard errors of noise the slope of a third differs from it."""
    slope, _ = line(t, y, weights)
    # Noise from the line between a point's neighbours: independent noise makes such jumps at two points in a row
    # opposite, by a known amount; curvature gives them one sign and does not count as noise.
    jump, expected = _jumps(t, y, weights)
    noise = max(-float(np.sum(jump[1:] * jump[:-1])) / float(np.sum(expected)), 0.0)
    edges = np.linspace(0, len(t) - 1, 4).round().astype(int)
    excess = 0.0
    for i, j in itertools.pairwise(edges):
        local, information = line(t[i : j + 1], y[i : j + 1], weights[i : j + 1])
        excess = max(excess, abs(local - slope) - 3 * math.sqrt(noise / information))
    return slope, excess


def _fit(t, y, weights) -> RateFit:
    n, length = len(t), float(t[-1] - t[0])
    slope, information = line(t, y, weights)
    fitted = np.average(y, weights=weights) + slope * (t - np.average(t, weights=weights))
    residual = beyond_a_parabola(t, y, weights)
    variance = float(residual @ residual) / (n - 3)
    correlation = min(autocorrelation(residual)[1], 0.95)
    inflation = (1 + correlation) / (1 - correlation)
    spread = float(np.sum(weights * (y - np.average(y, weights=weights)) ** 2))
    return RateFit(
        rate=-slope,
        standard_error=math.sqrt(variance * inflation / information),
        drift=_drift(t, y, weights)[1],
        window=(float(t[0]), float(t[-1])),
        num_points=n,
        degrees_of_freedom=max(n / inflation - 3, 1.0),
        efolds=-slope * length,
        r_squared=1 - float(np.sum(weights * (y - fitted) ** 2)) / spread if spread > 0 else math.nan,
    )
