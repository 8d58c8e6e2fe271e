"""Recursive feature machines: kernel regression whose metric is learnt from its own AGOP."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse import _safe
from ntkcollapse._checks import check_finite, check_positive, check_real, check_shape, check_whole, is_traced
from ntkcollapse.collapse.agop import matrix_square_root


class KernelPredictor(eqx.Module):
    r"""f(x) = Σ_j a_j k(x, z_j) with the Laplace kernel of a Mahalanobis distance.

        k(x, z) = exp( −‖R (x − z)‖ / bandwidth ),   RᵀR = M

    Args:
        centres: z_j, (N, n).
        coefficients: a_j, (N, K).
        root: R, (n, n): symmetric, or any matrix with RᵀR = M.
        bandwidth: in units of ‖R x‖.
    """

    centres: Float[Array, "N n"]
    coefficients: Float[Array, "N K"]
    root: Float[Array, "n n"]
    bandwidth: Float[Array, ""]

    def __call__(self, x: Float[ArrayLike, "B n"]) -> Float[Array, "B K"]:
        """Predictions, rows."""
        return laplace_kernel(x @ self.root.T, self.centres @ self.root.T, self.bandwidth) @ self.coefficients

    def agop(self, x: Float[ArrayLike, "B n"] | None = None) -> Float[Array, "n n"]:
        r"""The AGOP over the rows of x (the centres unless given), in closed form.

            ∇f_k(x) = −(1/L) Rᵀ Σ_j a_jk k(x, z_j) (u − v_j) / ‖u − v_j‖,   u = R x, v_j = R z_j

        A centre's own term, where the kernel has a kink, counts as 0. Costs K B N n multiplications.
        """
        return _predictor_agop(self, self.centres if x is None else jnp.asarray(x))


class RecursiveFeatureMachine(eqx.Module):
    """The predictor at the end, its metric M, and the trace of what was learnt: M after every iteration, (T, n, n)."""

    predictor: KernelPredictor
    metrics: Float[Array, "T n n"]

    @property
    def metric(self) -> Float[Array, "n n"]:
        """The AGOP of the last predictor: what a further iteration would measure distances in."""
        return self.metrics[-1]


def laplace_kernel(
    u: Float[ArrayLike, "B n"], v: Float[ArrayLike, "N n"], bandwidth: float | Float[ArrayLike, ""]
) -> Float[Array, "B N"]:
    """exp(−‖u − v‖ / bandwidth) of all pairs of rows."""
    return jnp.exp(-_distances(jnp.asarray(u), jnp.asarray(v)) / bandwidth)


def kernel_regression(
    x: Float[ArrayLike, "N n"],
    y: Float[ArrayLike, "N K"],
    *,
    bandwidth: float,
    ridge: float = 0.0,
    metric: Float[ArrayLike, "n n"] | None = None,
) -> KernelPredictor:
    """Coefficients a = (K + ridge · 1)⁻¹ y of a Laplace kernel, in the metric M (the identity unless given).

    Raises:
        ValueError: shapes that disagree, numbers that are not finite, a bandwidth not above zero, two rows of x
            that are equal in the metric, to rounding (then K is singular), with no ridge.
    """
    check_real(x=x, y=y, metric=metric)
    x = jnp.asarray(x, dtype=jnp.result_type(float, x))
    check_shape("x", x, (None, None), "(N samples, n features), one row a sample")
    check_shape("y", y, (x.shape[0], None), "(N samples, K outputs), one row a sample of x")
    for name, value in (("x", x), ("y", y), ("ridge", ridge), ("bandwidth", bandwidth)):
        check_finite(name, value)
    check_positive("bandwidth", bandwidth)
    check_positive("ridge", ridge, zero=True)
    n = x.shape[1]
    if metric is not None:
        check_shape("metric", metric, (n, n), f"for the n = {n} features of x")
        check_finite("metric", metric)
    root = jnp.eye(n, dtype=x.dtype) if metric is None else matrix_square_root(metric)
    if not is_traced(x, root, ridge) and float(ridge) == 0:
        _check_distinct(x @ root.T)
    return _fit(x, jnp.asarray(y, dtype=x.dtype), root, jnp.asarray(bandwidth, x.dtype), ridge)


def recursive_feature_machine(
    x: Float[ArrayLike, "N n"],
    y: Float[ArrayLike, "N K"],
    *,
    bandwidth: float,
    ridge: float = 1e-3,
    iterations: int = 5,
) -> RecursiveFeatureMachine:
    r"""Kernel regression, AGOP, and again in the metric that the AGOP is.

    From M = 1: fit f in the metric M, then M ← AGOP of f over the samples, scaled to trace n so that the bandwidth
    keeps its meaning. The predictor returned is the last one fitted, in the metric before the last AGOP.

    Args:
        x, y: rows; y one-hot labels, for example.
        bandwidth: of the Laplace kernel, in units of x.
        ridge: added to the kernel's diagonal.
        iterations: fits.
    Raises:
        ValueError: as `kernel_regression`, and targets that are all zero: the AGOP vanishes, and is no metric.
    References:
        Radhakrishnan, Beaglehole, Pandit & Belkin (2024).
    """
    check_whole("iterations", iterations)
    metric, metrics, predictor = None, [], None
    for _ in range(iterations):
        predictor = kernel_regression(x, y, bandwidth=bandwidth, ridge=ridge, metric=metric)
        metric = predictor.agop()
        if not is_traced(metric) and float(jnp.trace(metric)) == 0:
            raise ValueError(
                "y: expected targets that vary with x, got a regression whose AGOP is 0 (targets all zero?)."
            )
        metric = metric * (metric.shape[0] / jnp.trace(metric))
        metrics.append(metric)
    assert predictor is not None
    return RecursiveFeatureMachine(predictor, jnp.stack(metrics))


def r_squared(predictions: Float[ArrayLike, "N K"], y: Float[ArrayLike, "N K"]) -> Float[Array, ""]:
    r"""R² = 1 − ‖y − f‖² / ‖y − ȳ‖², all outputs together: 1 is exact, 0 no better than the mean of y.

    Raises:
        ValueError: shapes that disagree, numbers that are not finite, or y that does not vary.
    """
    check_real(predictions=predictions, y=y)
    f, y = jnp.asarray(predictions), jnp.asarray(y)
    check_shape("y", y, (None, None), "(N samples, K outputs)")
    check_shape("predictions", f, y.shape, "as y has")
    for name, value in (("predictions", f), ("y", y)):
        check_finite(name, value)
    total = jnp.sum(jnp.square(y - y.mean(0)[None, :]))
    if not is_traced(total) and float(total) == 0:
        raise ValueError("y: expected targets that vary, got the same in every row; R² has nothing to explain.")
    return 1 - jnp.sum(jnp.square(y - f)) / total


def _distances(u: Float[Array, "B n"], v: Float[Array, "N n"]) -> Float[Array, "B N"]:
    # About the common mean: ‖u‖² + ‖v‖² − 2 u·v cancels less.
    centre = v.mean(0)[None, :]
    u, v = u - centre, v - centre
    products = jnp.matmul(u, v.T, precision="highest")
    lengths = [jnp.sum(jnp.square(w), axis=1) for w in (u, v)]
    sums = lengths[0][:, None] + lengths[1][None, :]
    squares = sums - 2 * products
    # What is left of equal rows is rounding, and must not look like a distance.
    noise = 10 * float(jnp.finfo(squares.dtype).eps)
    return _safe.root(jnp.where(squares > noise * sums, squares, 0))


def _check_distinct(u: Float[Array, "N n"]) -> None:
    equal = np.array(_distances(u, u) == 0)
    np.fill_diagonal(equal, False)
    if equal.any():
        i, j = (int(k) for k in np.argwhere(equal)[0])
        raise ValueError(
            f"x: expected rows that differ, got rows {i} and {j} equal in the metric (to rounding of {u.dtype}): the "
            "kernel is singular; equal rows in x need a ridge above 0, or leave one of them out."
        )


@jax.jit
def _fit(x, y, root, bandwidth, ridge) -> KernelPredictor:
    u = x @ root.T
    K = laplace_kernel(u, u, bandwidth)
    coefficients = jnp.linalg.solve(K + ridge * jnp.eye(x.shape[0], dtype=x.dtype), y)
    return KernelPredictor(x, coefficients, root, bandwidth)


@jax.jit
def _predictor_agop(predictor: KernelPredictor, x: Float[Array, "B n"]) -> Float[Array, "n n"]:
    R, L = predictor.root, predictor.bandwidth
    u, v = x @ R.T, predictor.centres @ R.T
    distance = _distances(u, v)
    weight = _safe.divide(jnp.exp(-distance / L) / L, distance, 0.0)

    def one_output(total, a):
        pull = weight * a[None, :]
        gradients = jnp.matmul(pull, v, precision="highest") - u * pull.sum(1, keepdims=True)
        return total + jnp.matmul(gradients.T, gradients, precision="highest"), None

    n = R.shape[0]
    total, _ = jax.lax.scan(one_output, jnp.zeros((n, n), u.dtype), predictor.coefficients.T)
    return R.T @ (total / x.shape[0]) @ R
