"""The layer-peeled model with imbalanced classes: its minimum without a semidefinite program, and minority collapse."""

import warnings
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
import optimistix as optx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num
from scipy.optimize import brentq

from ntkcollapse._checks import check_positive, check_shape, is_traced
from ntkcollapse.theory.models.losses import log_softplus


class LayerPeeledMinimiser(NamedTuple):
    """W (C, n) and class means M (n, C) at the minimum, the loss there, and a bound on what it is above the minimum.

    gap: minimum ≥ (1 − gap) · value; below `converged_gap` the minimum has been reached.
    """

    W: Float[Array, "C n"]
    M: Float[Array, "n C"]
    value: Float[Array, ""]
    gap: Float[Array, ""]


def converged_gap(dtype, num_classes: int, energy_H: Float[ArrayLike, ""], energy_W: Float[ArrayLike, ""]) -> Array:
    """√ε max(1, τ): a minimum counts as reached below this gap, which a change of τ by √ε of itself would make."""
    radius = num_classes * jnp.sqrt(jnp.asarray(energy_H, dtype) * jnp.asarray(energy_W, dtype))
    return float(jnp.finfo(dtype).eps) ** 0.5 * jnp.maximum(radius, 1)


def layer_peeled_minimiser(
    sizes: Num[ArrayLike, " C"],
    energy_H: Float[ArrayLike, ""],
    energy_W: Float[ArrayLike, ""],
    *,
    key: jax.Array,
    tied: tuple[int, ...] | None = None,
    max_steps: int = 500,
) -> LayerPeeledMinimiser:
    r"""Minimum of Σ_k (m_k/N) CE(W h_k, k) with (1/C) Σ‖w_k‖² ≤ energy_W and (1/C) Σ‖h_k‖² ≤ energy_H.

    Samples of one class share their feature at the minimum, so that only class means are variables; both budgets are
    spent, so that directions are variables and norms are not. In n = C dimensions the landscape is that of a convex
    problem, the loss over logits Z = W M in the nuclear ball ‖Z‖_* ≤ τ = C √(energy_W energy_H). Its duality gap

        loss(Z) − minimum ≤ ⟨G, Z⟩ + τ ‖G‖₂,   G = ∂loss/∂Z

    says from the result alone how far the minimum is, whatever the start. Newton's method on the logarithm of the loss
    (which may be far below the smallest rounding of 1), after BFGS from a random start; 4 C⁴ numbers. Works under
    `vmap` over sizes and energies (a whole curve at once); `gap` is then for the caller to look at.

    Args:
        sizes: m_k, any positive weights.
        energy_H, energy_W: the budgets.
        key: of the random start.
        tied: for each class the index of its row among fewer free ones: classes forced to coincide.
        max_steps: of BFGS, and of Newton's method after it.
    Raises:
        ValueError: energies or sizes not above zero.
    Warns:
        RuntimeWarning: the gap is not below `converged_gap` after `max_steps`.
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
    W, M, value, gap = _minimise(start, (weights, rows, budgets), max_steps)
    if not is_traced(gap) and not bool(gap < converged_gap(gap.dtype, C, energy_H, energy_W)):
        warnings.warn(
            f"layer_peeled: the loss is only known to be within {float(gap):.2g} of its minimum, relatively; raise "
            f"max_steps (now {max_steps}), try another key, or compute in float64.",
            RuntimeWarning,
            stacklevel=2,
        )
    return LayerPeeledMinimiser(W=W, M=M.T, value=value, gap=gap)


def _on_budget(free, rows, budgets):
    X = free[:, rows, :]
    return X / jnp.sqrt(jnp.sum(jnp.square(X), axis=(1, 2), keepdims=True)) * budgets[:, None, None]


def _log_risk(free, problem):
    weights, rows, budgets = problem
    W, H = _on_budget(free, rows, budgets)
    return jax.nn.logsumexp(jnp.log(weights) + log_softplus(_log_odds(W @ H.T)[1]))


def _log_odds(Z):
    """log p_i/p_k of every class i but the right one k, by columns, −∞ on the diagonal; and log Σ_i p_i/p_k."""
    each = jnp.where(jnp.eye(len(Z), dtype=bool), -jnp.inf, Z - jnp.diagonal(Z)[None, :])
    return each, jax.nn.logsumexp(each, axis=0)


@eqx.filter_jit
def _minimise(start, problem, max_steps):
    weights, rows, budgets = problem
    best = newton_minimum(_log_risk, start, problem, max_steps)
    W, H = _on_budget(best, rows, budgets)
    log_risk = _log_risk(best, problem)
    # G over the loss; its diagonal is minus the sum of the rest, without cancellation.
    each, total = _log_odds(W @ H.T)
    wrong = jnp.exp(jnp.log(weights)[None, :] + each - jnp.logaddexp(0.0, total)[None, :] - log_risk)
    G = wrong - jnp.diag(wrong.sum(0))
    # Where classes are tied only logits that are tied too compete.
    together = (rows[:, None] == rows[None, :]).astype(G.dtype)
    together = together / together.sum(1, keepdims=True)
    steepest = jnp.linalg.norm(together @ G @ together, ord=2)
    gap = jnp.sum(wrong * _differences(W @ H.T)) + budgets[0] * budgets[1] * steepest
    return W, H, jnp.exp(log_risk), gap


def _differences(Z):
    """z_ik − z_kk."""
    return Z - jnp.diagonal(Z)[None, :]


def newton_minimum(function, start, problem, max_steps):
    """Minimises function(x, problem): quasi-Newton steps from `start`, then Newton's to where rounding ends them.

    Near a threshold the landscape is so flat that BFGS stops early. Newton's steps are damped, (∇² + μ) d = −∇, with
    μ lowered by a step that lowers the function and raised by one that does not. n² numbers for n of x.
    """
    shape, dtype = start.shape, start.dtype
    eps = float(jnp.finfo(dtype).eps)

    def f(x):
        return function(x.reshape(shape), problem)

    def at(x):
        return f(x), jax.grad(f)(x)

    def step(carry):
        x, value, slope, damping, count = carry
        curvature = jax.hessian(f)(x)
        size = jnp.abs(jnp.diagonal(curvature)).max()
        # A curvature that is not positive gives NaN, which is no better than what there is.
        factor = jsl.cho_factor(curvature + damping * size * jnp.eye(x.size, dtype=dtype), lower=True)
        new = x - jsl.cho_solve(factor, slope)
        new_value, new_slope = at(new)
        # Where values are equal to rounding the slope still tells: it has the other half of the digits.
        level = new_value <= value + 8 * eps * (1 + jnp.abs(value))
        flatter = jnp.sum(jnp.square(new_slope)) < jnp.sum(jnp.square(slope)) / 2
        better = (new_value < value - 8 * eps * (1 + jnp.abs(value))) | (level & flatter)
        damping = jnp.where(better, jnp.maximum(damping / 10, least), damping * 10)
        kept = (jnp.where(better, a, b) for a, b in ((new, x), (new_value, value), (new_slope, slope)))
        return (*kept, damping, count + 1)

    # Directions that change nothing (rotations) have curvature 0.
    least = eps**0.6
    solver = optx.BFGS(rtol=eps**0.5, atol=eps**0.5)
    x = optx.minimise(lambda x, _: f(x), solver, start.reshape(-1), max_steps=max_steps, throw=False).value
    carry = (x, *at(x), jnp.asarray(1e-3, dtype), 0)
    x, *_ = jax.lax.while_loop(lambda c: (c[3] < 1e3) & (c[4] < max_steps), step, carry)
    return x.reshape(shape)


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

    From −1/(C − 1) at ratio 1 to 1 at the threshold R₀ of `collapse_ratio`, and 1 above: minority collapse. NaN where
    the minimum has not been reached.

    Raises:
        ValueError: fewer than two minority classes, or no majority class.
    Warns:
        RuntimeWarning: ratios at which it has not been reached.
    """
    if not 1 <= majority <= num_classes - 2:
        raise ValueError(f"majority: expected 1 to C - 2 = {num_classes - 2} classes, got {majority}.")
    check_positive("ratios", ratios)
    ratios = jnp.asarray(ratios, dtype=float)
    is_major = jnp.arange(num_classes) < majority

    def at(ratio):
        sizes = jnp.where(is_major, ratio, 1.0)
        best = layer_peeled_minimiser(sizes, energy_H, energy_W, key=key)
        return minority_cosine(best.W, majority), best.gap

    cosines, gaps = jax.vmap(at)(ratios)
    reached = gaps < converged_gap(gaps.dtype, num_classes, energy_H, energy_W)
    if not is_traced(reached) and not reached.all():
        warnings.warn(
            f"cosine_curve: no minimum reached at the ratios {np.asarray(ratios)[~np.asarray(reached)]}; try another "
            "key, or compute in float64.",
            RuntimeWarning,
            stacklevel=2,
        )
    return jnp.where(reached, cosines, jnp.nan)


class CollapsedOdds(NamedTuple):
    """Probabilities that a majority sample gives its own and each other majority class, at the collapsed optimum.

    own, other: the two probabilities; log_excess: log(1 − own + other), without cancellation; value: the loss;
    gap: as of `LayerPeeledMinimiser`, among states whose minority classes coincide.
    """

    own: Float[Array, ""]
    other: Float[Array, ""]
    log_excess: Float[Array, ""]
    value: Float[Array, ""]
    gap: Float[Array, ""]


def collapsed_odds(
    ratio: Float[ArrayLike, ""],
    num_classes: int,
    majority: int,
    energy_H: Float[ArrayLike, ""],
    energy_W: Float[ArrayLike, ""],
) -> CollapsedOdds:
    r"""Probabilities of a majority sample at the best state whose minority classes coincide, and its loss.

    The loss is convex in the Gram matrix of (W, H), so that averaging over permutations of the A majority classes
    costs nothing: a simplex among them and one direction u that tells them from the B minority classes are left,

        w_a = p s_a + (B/C) q u,   w_b = −(A/C) q u,   h_a = x s_a + y u,   h_b = −z u,
        (s_a) a simplex with Gram matrix Π_A, orthogonal to u,

    and of (p, q), (x, y, z) only the directions, both budgets being spent: three angles, in which the logarithm of the
    loss is minimised by Newton's method.
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
        """log p/p_right of another majority class, a minority class; of a minority sample: of a majority class."""
        own, other, minor, wrong, right = logits(angles)
        return other - own, minor - own, wrong - right

    def log_losses(angles):
        """Logarithms of the loss of a majority sample, and of what a minority sample's has above its least, log B."""
        other, minor, wrong = log_odds(angles)
        return log_softplus(jnp.logaddexp(jnp.log(A - 1.0) + other, jnp.log(1.0 * B) + minor)), log_softplus(
            jnp.log(A / B) + wrong
        )

    def log_risk(angles, _):
        major, minor = log_losses(angles)
        return jnp.logaddexp(jnp.log(A * ratio) + major, jnp.log(1.0 * B) + minor)

    best = newton_minimum(log_risk, jnp.full(3, jnp.pi / 4, energy_H.dtype), None, 200)
    other, minor, wrong = log_odds(best)
    # Logarithms of the probabilities that matter, over that of the right class's denominator.
    total = jnp.logaddexp(0.0, jnp.logaddexp(jnp.log(A - 1.0) + other, jnp.log(1.0 * B) + minor))
    log_other, log_minor = other - total, minor - total
    log_wrong = wrong - jnp.log(1.0 * B) - jnp.logaddexp(0.0, jnp.log(A / B) + wrong)
    log_excess = jnp.logaddexp(jnp.log(1.0 * A) + log_other, jnp.log(1.0 * B) + log_minor)
    risk = jnp.exp(log_risk(best, None)) + B * jnp.log(1.0 * B)
    # Singular values of the loss's gradient with respect to the logits, over the weight of a minority class: among the
    # majority classes, and between the two groups.
    p, q = ratio * jnp.exp(log_minor), jnp.exp(log_wrong)
    steepest = jnp.maximum(ratio * jnp.exp(log_excess), jnp.sqrt(C * (B * p**2 + A * q**2)))
    slope = A * ratio * ((A - 1) * jnp.exp(log_other) * other + B * jnp.exp(log_minor) * minor) + A * B * q * wrong
    gap = (slope + C * jnp.sqrt(energy_W * energy_H) * steepest) / risk
    return CollapsedOdds(jnp.exp(-total), jnp.exp(log_other), log_excess, risk / (A * ratio + B), gap)


def collapse_ratio(num_classes: int, majority: int, energy_H: float, energy_W: float) -> float:
    r"""R₀: minority classifiers coincide exactly if m_A/m_B ≥ R₀.

    At the collapsed optimum the gradient of the loss with respect to the logits has the largest singular value
    w_A (1 − p_own + p_other), and collapse is optimal as long as this is at least the weight w_B of one minority
    class: R₀ solves r (1 − p_own(r) + p_other(r)) = 1.

    Found in float64, whatever JAX's x64 flag says, to about 1e-10 of its value.

    Raises:
        ValueError: fewer than two majority or minority classes, energies not above zero, or so large that R₀ is beyond
            the largest float.
        RuntimeError: the collapsed optimum was not reached.
    References:
        Fang et al. (2021) for the phenomenon; the criterion is derived here.
    """
    if not 2 <= majority <= num_classes - 2:
        raise ValueError(f"majority: expected 2 to C - 2 = {num_classes - 2} classes, got {majority}.")
    check_positive("energy_H, energy_W", (energy_H, energy_W))

    def log_excess(log_ratio):
        odds = collapsed_odds(np.exp(log_ratio), num_classes, majority, energy_H, energy_W)
        if not bool(odds.gap < converged_gap(np.float64, num_classes, energy_H, energy_W)):
            raise RuntimeError(
                f"layer_peeled.threshold: no minimum reached at the ratio {np.exp(log_ratio):.6g} for energies "
                f"{energy_H}, {energy_W} (relative gap {float(odds.gap):.2g}); smaller energies are safer."
            )
        return log_ratio + float(odds.log_excess)

    with jax.enable_x64(True):
        low, high, largest = 0.0, 1.0, 700.0
        # log r + log(1 − p_own + p_other) grows from below 0 at r = 1: the majority is fitted better, but not as fast
        # as r grows.
        while log_excess(high) < 0:
            if high == largest:
                raise ValueError(
                    f"energy_H, energy_W: expected energies whose threshold is below e^700, got {energy_H}, {energy_W}."
                )
            low, high = high, min(high * 1.5, largest)
        root = brentq(log_excess, low, high, xtol=1e-13)
        return float(np.exp(np.asarray(root)))
