"""The layer-peeled model with imbalanced classes: its minimum without a semidefinite program, and minority collapse."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num
from scipy.optimize import brentq

from ntkcollapse._checks import check_positive, check_shape


class LayerPeeledMinimiser(NamedTuple):
    """W (C, n) and class means M (n, C) at the minimum, and the loss there."""

    W: Float[Array, "C n"]
    M: Float[Array, "n C"]
    value: Float[Array, ""]


def layer_peeled_minimiser(
    sizes: Num[ArrayLike, " C"],
    energy_H: Float[ArrayLike, ""],
    energy_W: Float[ArrayLike, ""],
    *,
    key: jax.Array,
    tied: tuple[int, ...] | None = None,
    max_steps: int = 5000,
) -> LayerPeeledMinimiser:
    r"""Minimum of Σ_k (m_k/N) CE(W h_k, k) with (1/C) Σ‖w_k‖² ≤ energy_W and (1/C) Σ‖h_k‖² ≤ energy_H.

    Samples of one class share their feature at the minimum, so that only class means are variables; both budgets are
    spent, so that directions are variables and norms are not. BFGS from a random start in n = C dimensions, where the
    landscape of the convex relaxation is recovered; works under `vmap` over sizes and energies (a whole curve at once).

    Args:
        sizes: m_k, any positive weights.
        energy_H, energy_W: the budgets.
        key: of the random start.
        tied: for each class the index of its row among fewer free ones: classes forced to coincide.
        max_steps: of BFGS; where it stops early the value tells.
    Raises:
        ValueError: energies or sizes not above zero.
    References:
        Fang et al. (2021), the layer-peeled model.
    """
    check_positive("energy_H, energy_W", (energy_H, energy_W))
    check_positive("sizes", sizes)
    check_shape("sizes", sizes, (None,), "one size a class")
    weights = jnp.asarray(sizes, dtype=float)
    weights = weights / weights.sum()
    C = weights.shape[0]
    rows = jnp.asarray(range(C) if tied is None else tied)
    free = C if tied is None else max(tied) + 1
    start = jax.random.normal(key, (2, free, C), dtype=weights.dtype)
    budgets = jnp.sqrt(C * jnp.asarray([energy_W, energy_H], dtype=float))
    best = _minimise(start, (weights, rows, budgets), max_steps)
    W, M = _on_budget(best, rows, budgets)
    return LayerPeeledMinimiser(W=W, M=M.T, value=_risk(best, (weights, rows, budgets)))


def _on_budget(free, rows, budgets):
    X = free[:, rows, :]
    return X / jnp.sqrt(jnp.sum(jnp.square(X), axis=(1, 2), keepdims=True)) * budgets[:, None, None]


def _risk(free, problem):
    weights, rows, budgets = problem
    W, H = _on_budget(free, rows, budgets)
    return -jnp.sum(weights * jnp.diagonal(jax.nn.log_softmax(W @ H.T, axis=0)))


@eqx.filter_jit
def _minimise(start, problem, max_steps):
    solver = optx.BFGS(rtol=1e-12, atol=1e-12)
    return optx.minimise(_risk, solver, start, problem, max_steps=max_steps, throw=False).value


def minority_cosine(W: Float[Array, "C n"], majority: int) -> Float[Array, ""]:
    """Mean cosine between the classifiers of minority classes, those after the first `majority` ones."""
    unit = W[majority:] / jnp.linalg.norm(W[majority:], axis=1, keepdims=True)
    B = unit.shape[0]
    return (jnp.sum(unit @ unit.T) - B) / (B * (B - 1))


def cosine_curve(
    ratios: Float[ArrayLike, " R"],
    num_classes: int,
    majority: int,
    energy_H: float,
    energy_W: float,
    *,
    key: jax.Array,
) -> Float[Array, " R"]:
    """Mean cosine between minority classifiers at each imbalance ratio m_A/m_B, all ratios in one mapped call.

    From −1/(C − 1) at ratio 1 to 1 at the threshold R₀ of `collapse_ratio`, and 1 above: minority collapse.
    """
    ratios = jnp.asarray(ratios, dtype=float)
    is_major = jnp.arange(num_classes) < majority

    def at(ratio):
        sizes = jnp.where(is_major, ratio, 1.0)
        return minority_cosine(layer_peeled_minimiser(sizes, energy_H, energy_W, key=key).W, majority)

    return jax.vmap(at)(ratios)


class CollapsedOdds(NamedTuple):
    """What a majority sample gives, at the collapsed optimum, to its own class and to each other majority class."""

    own: Float[Array, ""]
    other: Float[Array, ""]
    value: Float[Array, ""]


def collapsed_odds(
    ratio: Float[ArrayLike, ""],
    num_classes: int,
    majority: int,
    energy_H: Float[ArrayLike, ""],
    energy_W: Float[ArrayLike, ""],
) -> CollapsedOdds:
    r"""The best state whose minority classes coincide, seen from a majority sample; value: its loss.

    The loss is convex in the Gram matrix of (W, H), so that averaging over permutations of the A majority classes
    costs nothing: a simplex among them and one direction u that tells them from the B minority classes are left,

        w_a = p s_a + (B/C) q u,   w_b = −(A/C) q u,   h_a = x s_a + y u,   h_b = −z u,
        (s_a) a simplex with Gram matrix Π_A, orthogonal to u,

    and of (p, q), (x, y, z) only the directions, both budgets being spent: three angles, minimised by BFGS.
    """
    settings = tuple(jnp.asarray(x, dtype=float) for x in (ratio, energy_H, energy_W))
    return _collapsed_odds(settings, majority, num_classes - majority)


@eqx.filter_jit
def _collapsed_odds(settings, A, B):
    ratio, energy_H, energy_W = settings
    C = A + B

    def logits(angles):
        # Σ‖w‖² = (A − 1) p² + (AB/C) q² = C energy_W,   Σ‖h‖² = (A − 1) x² + A y² + B z² = C energy_H.
        α, β, γ = angles
        p, q = jnp.cos(α) / (A - 1) ** 0.5, jnp.sin(α) / (A * B / C) ** 0.5
        x, y, z = jnp.cos(β) / (A - 1) ** 0.5, jnp.sin(β) * jnp.cos(γ) / A**0.5, jnp.sin(β) * jnp.sin(γ) / B**0.5
        size = C * jnp.sqrt(energy_W * energy_H)
        apart, along, back = size * p * x, size * q * y, size * q * z
        # Of a majority sample, its own class, another of the majority, one of the minority; of a minority sample,
        # one of the majority, one of the minority.
        return (
            apart * (1 - 1 / A) + along * B / C,
            along * B / C - apart / A,
            -along * A / C,
            -back * B / C,
            back * A / C,
        )

    def log_odds(angles):
        own, other, minor, wrong, right = logits(angles)
        major = jnp.logaddexp(jnp.logaddexp(own, jnp.log(A - 1.0) + other), jnp.log(1.0 * B) + minor)
        return own - major, other - major, right - jnp.logaddexp(jnp.log(1.0 * A) + wrong, jnp.log(1.0 * B) + right)

    def risk(angles, _):
        own, _, right = log_odds(angles)
        return -(A * ratio * own + B * right) / (A * ratio + B)

    solver = optx.BFGS(rtol=1e-12, atol=1e-12)
    start = jnp.full(3, jnp.pi / 4, energy_H.dtype)
    best = optx.minimise(risk, solver, start, max_steps=500, throw=False).value
    own, other, _ = log_odds(best)
    return CollapsedOdds(jnp.exp(own), jnp.exp(other), risk(best, None))


def collapse_ratio(num_classes: int, majority: int, energy_H: float, energy_W: float) -> float:
    r"""R₀: minority classifiers coincide exactly if m_A/m_B ≥ R₀.

    At the collapsed optimum the gradient of the loss with respect to the logits has the largest singular value
    w_A (1 − p_own + p_other), and collapse is optimal as long as this is at least the weight w_B of one minority
    class: R₀ solves r (1 − p_own(r) + p_other(r)) = 1.

    Raises:
        ValueError: fewer than two majority or minority classes, energies not above zero.
    References:
        Fang et al. (2021) for the phenomenon; the criterion is derived here.
    """
    if not 2 <= majority <= num_classes - 2:
        raise ValueError(f"majority: expected 2 to C - 2 = {num_classes - 2} classes, got {majority}.")
    check_positive("energy_H, energy_W", (energy_H, energy_W))

    def excess(log_ratio):
        odds = collapsed_odds(float(np.exp(log_ratio)), num_classes, majority, energy_H, energy_W)
        return float(np.exp(log_ratio) * (1 - odds.own + odds.other)) - 1

    low, high = 0.0, 1.0
    # r (1 − p_own + p_other) grows from below 1 at r = 1: the majority is fitted better, but not as fast as r grows.
    while excess(high) < 0 and high < 30:
        low, high = high, high * 1.5
    root = brentq(excess, low, high, xtol=1e-10)
    return float(np.exp(np.asarray(root)))
