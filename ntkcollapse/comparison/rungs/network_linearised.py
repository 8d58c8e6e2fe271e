"""Rung 5: the network linearised in all its parameters, lazy training."""

from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkcollapse import ntk
from ntkcollapse._checks import check_choice
from ntkcollapse.comparison._memory import fits_memory, pairs, require_memory
from ntkcollapse.comparison.network_at import NetworkAt
from ntkcollapse.comparison.parametric import NetworkLinearised, Parameters
from ntkcollapse.comparison.rungs._course import Course, integrate_parameters
from ntkcollapse.comparison.start import MeasuredStart

Method = Literal["auto", "eigen", "integrate"]

# The NTK of this many samples times classes is diagonalised in well under a minute.
_LARGEST_EIGENPROBLEM = 4000


def network_linearised(
    start: MeasuredStart,
    times: Any,
    *,
    method: Method = "auto",
    rtol: float = 1e-7,
    atol: float = 1e-12,
    max_steps: int = 100_000,
    progress: bool = False,
) -> Course:
    r"""f(t) = f₀ + J (p(t) − p₀):  R(t) = e^{−Θt} R(0),  p(t) − p₀ = −Jᵀ Θ⁻¹ (1 − e^{−Θt}) R(0).

    "eigen" diagonalises the output kernel Θ (N C × N C), exact at every time; "integrate" follows the same flow by
    products, for kernels that do not fit and for weight decay; "auto" takes the first up to N C = 4000 where it fits.
    """
    check_choice("method", method, get_args(Method))
    network = start.network
    size = network.classes.num_samples * network.classes.num_classes
    if method == "eigen" and start.weight_decay:
        raise ValueError(
            "method: expected 'integrate' with weight decay, which moves what the NTK does not; got 'eigen'."
        )
    needed = 8 * 6 * size**2
    if method == "auto":
        small = size <= _LARGEST_EIGENPROBLEM and fits_memory(needed)
        method = "eigen" if small and not start.weight_decay else "integrate"
    if method == "eigen":
        require_memory("network-linearised", needed, {"sample-frozen": pairs(network.classes.num_samples)})
        return _by_eigenvectors(network, jnp.asarray(times))
    return integrate_parameters(
        NetworkLinearised(network),
        times,
        rung="network-linearised",
        weight_decay=start.weight_decay,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
        progress=progress,
    )


def _by_eigenvectors(network: NetworkAt, times: Float[Array, " T"]) -> Course:
    N, C = network.classes.num_samples, network.classes.num_classes
    parameters = (network.params, network.W, network.b)
    # In float64 whatever the weights are in: its smallest eigenvalues decide where this ends.
    theta = ntk.empirical_ntk(network.outputs, parameters, network.inputs)
    theta = jnp.transpose(theta, (2, 0, 3, 1)).reshape(C * N, C * N)
    values, vectors = jnp.linalg.eigh((theta + theta.T) / 2)
    # Rounding leaves the smallest ones slightly below 0, where nothing moves.
    return _course(network, times - times[0], jnp.maximum(values, 0), vectors, times)


@eqx.filter_jit
def _course(network: NetworkAt, since, values, vectors, times) -> Course:
    p0, model = Parameters.of(network), NetworkLinearised(network)
    f0, pull = jax.vjp(lambda p: model(p)[1], p0)
    R0 = f0 - network.classes.Y
    coordinates = vectors.T @ R0.reshape(-1)

    def at(t):
        # (1 − e^{−λt})/λ, which is t at λ = 0.
        x = values * t
        weight = jnp.where(x > 1e-12, -jnp.expm1(-x) / jnp.where(x > 1e-12, values, 1), t)
        (step,) = pull((vectors @ (weight * coordinates)).reshape(R0.shape))
        p = jax.tree.map(jnp.subtract, p0, step)
        H, f = model(p)
        return H, p.W, p.b, f

    H, W, b, f = jax.lax.map(at, since)
    return Course(times, H, W, b, f, {"eigenvalue_largest": values[-1], "successful": jnp.asarray(True)})
