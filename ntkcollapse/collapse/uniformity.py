"""Generalised NC2: how evenly class means, or the rows of the classifier, are spread over the sphere."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkcollapse import _safe
from ntkcollapse._checks import check_positive
from ntkcollapse.collapse.nc2 import Frame, frame_columns


def nc2_log_energy_liu2023(of: Frame, *, centred: bool | None = None) -> Float[Array, ""]:
    r"""Logarithmic energy of the directions on the sphere, above that of a simplex ETF.

        mean over pairs c < c' of ln(d / ‖v̂_c − v̂_c'‖),   v̂ = v/‖v‖,   d = √(2C/(C−1))

    d is the distance of two vertices of a simplex ETF. As Σ_{c<c'} ‖v̂_c − v̂_c'‖² = C² − ‖Σ v̂‖² ≤ C² and −ln is
    convex, no C directions have less than 0, and 0 is a simplex ETF up to the lengths. The energy of the source, the
    mean of ln(1/‖v̂_c − v̂_c'‖), is this less ln d.

    Unlike the distances of Gram matrices it says something for C > n + 1 too: there it stays above 0, and is least
    where the directions are spread as evenly as n dimensions allow.

    Args:
        of: statistics, whose class means are the v_c; or W (C, n), whose rows are.
        centred: whether the mean of the v_c is taken away first; by default for means, not for W.
    Returns:
        Zero or above, invariant to rotation and to the length of every v_c; +inf where two directions coincide. A v_c
        of length 0 stands at the centre of the sphere. Costs C² n, memory C n.
    Raises:
        ValueError: numbers that are not finite, or W of one class only.
    References:
        Liu, Yu, Weller & Schölkopf (2023), hyperspherical uniformity; Liu et al. (2018), the energies.
    """
    return _mean(_over_pairs(_half_log, frame_columns(of, centred, simplex=False)))


def nc2_riesz_energy_liu2023(of: Frame, *, power: float = 1.0, centred: bool | None = None) -> Float[Array, ""]:
    r"""Riesz energy of the directions on the sphere, relative to that of a simplex ETF, less 1.

        mean over pairs c < c' of (d / ‖v̂_c − v̂_c'‖)^s − 1,   d = √(2C/(C−1))

    Zero or above for every s > 0, and 0 for a simplex ETF alone, by the inequality of `nc2_log_energy_liu2023`. The
    larger s, the more the closest pair counts; divided by s it tends to the logarithmic energy as s → 0.

    Args:
        of, centred: as in `nc2_log_energy_liu2023`.
        power: s, above 0. (The PyTorch package neural-collapse takes n − 2.)
    Raises:
        ValueError: as there, or a power that is not above 0.
    References:
        Liu, Yu, Weller & Schölkopf (2023); Liu et al. (2018).
    """
    check_positive("power", power)
    V = frame_columns(of, centred, simplex=False)
    return _mean(_over_pairs(_riesz, V, jnp.asarray(power, V.dtype)))


def nc2_equidistance_wu2024(of: Frame, *, centred: bool | None = None) -> Float[Array, ""]:
    r"""Standard deviation over pairs c < c' of ln ‖v̂_c − v̂_c'‖: 0 where all directions are equally far apart.

    The symmetric form of NC2, which asks for equal distances and not for how large they are. Arguments as in
    `nc2_log_energy_liu2023`; +inf where two directions coincide.

    References:
        Wu & Papyan (2024), who report the variance; after Liu, Yu, Weller & Schölkopf (2023).
    """
    logs = _over_pairs(_half_log, frame_columns(of, centred, simplex=False))
    coincide = jnp.any(jnp.isinf(logs))
    logs = jnp.where(coincide, 0, logs)
    pairs = jnp.triu(jnp.ones_like(logs), 1)
    return jnp.where(coincide, jnp.inf, _safe.root(_mean(pairs * jnp.square(logs - _mean(logs)))))


def _half_log(ratio: Float[Array, " C"]) -> Float[Array, " C"]:
    return jnp.log(ratio) / 2


def _riesz(ratio: Float[Array, " C"], power: Float[Array, ""]) -> Float[Array, " C"]:
    return ratio ** (power / 2) - 1


@partial(jax.jit, static_argnums=0)
def _over_pairs(energy: Callable[..., Array], V: Float[Array, "n C"], *parameters) -> Float[Array, "C C"]:
    """energy(d²/‖v̂_c − v̂_c'‖²) for c < c', and 0 elsewhere."""
    C = V.shape[1]
    lengths = _safe.root(jnp.sum(jnp.square(V), axis=0))
    units = (V / jnp.where(lengths > 0, lengths, 1)[None, :]).T

    def row(inputs):
        # Differences, not cosines: the distance of two directions that nearly coincide keeps its digits.
        unit, index = inputs
        square = jnp.sum(jnp.square(units - unit[None, :]), axis=1)
        later = jnp.arange(C) > index
        ratio = _safe.divide(jnp.full_like(square, 2 * C / (C - 1)), jnp.where(later, square, 1), jnp.inf)
        return jnp.where(later, energy(ratio, *parameters), 0)

    return jax.lax.map(row, (units, jnp.arange(C)))


def _mean(values: Float[Array, "C C"]) -> Float[Array, ""]:
    """Over pairs c < c'."""
    C = values.shape[0]
    return jnp.sum(values) / (C * (C - 1) / 2)
