"""A line through noisy points, and whether it is one: not a jump between two levels, nor noise that fell by chance."""

import math

import numpy as np
from scipy import stats
from scipy.signal import lfilter

# How much likelier than a jump a line must be, as a logarithm: e⁶ is 400 times.
_LIKELIER = 6.0


def line(t, y, weights):
    """Slope of the weighted regression line, and Σ w (t − t̄)², whose inverse is its variance in units of the noise."""
    x = t - np.average(t, weights=weights)
    information = float(np.sum(weights * x**2))
    return float(np.sum(weights * x * y)) / information, information


def beyond_a_parabola(t, y, weights):
    """Residual of the weighted parabola, in units of the errors: curvature does not count as noise."""
    root = np.sqrt(weights)
    u = (t - t.mean()) / (t[-1] - t[0])
    design = root[:, None] * np.stack([np.ones(len(t)), u, u**2], axis=1)
    coefficients, *_ = np.linalg.lstsq(design, root * y)
    return root * y - design @ coefficients


def autocorrelation(residual) -> tuple[float, float]:
    """Lag-one correlation of residuals from a parabola, and the one of the noise behind them, not below 0.

    The three fitted numbers pull it down by about (1 + 3ρ)/n.
    """
    n, power = len(residual), float(residual @ residual)
    raw = float(residual[1:] @ residual[:-1]) / power if power > 0 else 0.0
    return raw, max((n * raw + 1) / (n - 3), 0.0)


def beats_a_jump(t, y, weights) -> bool:
    """Whether a line is far likelier than the best jump between two levels, the noise being what either leaves over.

    Two levels, or one far point beside a level, make a regression line with a small error, and no exponential.
    """
    y = y - np.average(y, weights=weights)
    slope, information = line(t, y, weights)
    before, fallen = np.cumsum(weights)[:-1], np.cumsum(weights * y)[:-1]
    jump = np.max(fallen**2 / before + fallen**2 / (weights.sum() - before))
    total = float(np.sum(weights * y**2))
    return bool(total - slope**2 * information < math.exp(-2 * _LIKELIER / len(t)) * (total - jump))


def falls_beyond_noise(t, y, weights, chance: float) -> bool:
    """Whether noise like that around a parabola falls like the line with less than this chance.

    One-sided t-test of the slope under noise with the residuals' own correlation if that is what independent noise has
    and a random walk has not, below 2/√n and 1 − 20/n; under a random walk otherwise, as nearly always for fewer than
    20 points.
    """
    n = len(t)
    slope, information = line(t, y, weights)
    residual = beyond_a_parabola(t, y, weights)
    raw, correlation = autocorrelation(residual)
    if raw > min(2 / math.sqrt(n), 1 - 20 / n):
        correlation = 1.0
    innovations = residual[1:] - correlation * residual[:-1]
    variance = float(innovations @ innovations) / (n - 4)
    # The slope is a sum over innovations, each of which stays in all later points, ρ times less at each.
    pull = np.sqrt(weights) * (t - np.average(t, weights=weights)) / information
    reach = np.asarray(lfilter([1.0], [1.0, -correlation], pull[::-1]))
    error = math.sqrt(variance * float(reach @ reach))
    return bool(-slope > float(stats.t.isf(chance, n - 4)) * error)
