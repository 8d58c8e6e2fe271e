"""Rungs 4 and 4b: features linearised in their parameters at the start; the last layer learns as in the network."""

from typing import Any, Literal, get_args

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkcollapse import ntk
from ntkcollapse._checks import check_choice
from ntkcollapse.classes import Classes
from ntkcollapse.comparison._memory import fits_memory, require_memory
from ntkcollapse.comparison.network_at import NetworkAt
from ntkcollapse.comparison.parametric import FeaturesLinearised
from ntkcollapse.comparison.rungs._course import Course, integrate_parameters, solve
from ntkcollapse.comparison.start import MeasuredStart

Method = Literal["auto", "kernel", "products"]

# Features times samples up to which Θ^h is made: a product with it then takes less than a pass through any network
# with convolutions, of which each step takes dozens.
_LARGEST_KERNEL = 8000


def features_linearised(
    start: MeasuredStart,
    times: Any,
    *,
    method: Method = "auto",
    rtol: float = 1e-5,
    atol: float = 1e-8,
    max_steps: int = 100_000,
    progress: bool = False,
    coupled: bool = False,
) -> Course:
    """The full feature kernel Θ^h, n × n for each pair of samples, frozen: no average over features.

    "products" applies Θ^h to WᵀR by one vector-Jacobian and one Jacobian-vector product of the features: no array of
    (n N)² numbers, and each step costs some passes over the N samples. "kernel" makes that array once, and a step no
    longer sees the network; it has no room for weight decay, which moves θ where Θ^h does not reach, nor for
    `coupled`. "auto" takes it up to n N = 8000 where it fits.

    coupled: the features that training sees, in which batch statistics depend on the parameters and samples on one
    another; otherwise those of evaluation mode, whose statistics stay as they are.

    Raises:
        ValueError: "kernel" with weight decay or coupled samples.
        MemoryError: it does not fit.
    """
    check_choice("method", method, get_args(Method))
    if method == "kernel" and (start.weight_decay or coupled):
        raise ValueError("method: expected 'products' with weight decay or coupled samples, got 'kernel'.")
    size = start.state.H.size
    needed = 8 * 4 * size**2
    if method == "auto":
        small = size <= _LARGEST_KERNEL and fits_memory(needed)
        method = "kernel" if small and not (start.weight_decay or coupled) else "products"
    if method == "kernel":
        require_memory("features-linearised", needed, fits="sample-frozen")
        return _by_kernel(start.network, jnp.asarray(times), rtol, atol, max_steps, progress)
    model = FeaturesLinearised(start.network.in_training if coupled else start.network)
    return integrate_parameters(
        model,
        times,
        rung="features-coupled" if coupled else "features-linearised",
        weight_decay=start.weight_decay,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
        progress=progress,
    )


def features_coupled(start: MeasuredStart, times: Any, **options: Any) -> Course:
    """The same with batch statistics that move as the parameters do, to first order: Θ^h then couples all samples.

    Raises:
        ValueError: a network without batch statistics, for which this is rung 4.
    """
    if start.network.coupled is None:
        raise ValueError("features-coupled: expected a network with batch normalisation, got one without: see rung 4.")
    return features_linearised(start, times, coupled=True, **options)


class _FeatureKernelFlow(eqx.Module):
    r"""dH/dt = −Θ^h[WᵀR], dW/dt = −R Hᵀ, db/dt = −R 1 with R = W H + b 1ᵀ − Y: Θ^h of all pairs of features."""

    theta: Float[Array, "nN nN"]
    classes: Classes
    bias: bool = eqx.field(static=True)

    def __call__(self, t, state, args=None):
        del t, args
        H, W, b = state
        R = W @ H + b[:, None] - self.classes.Y
        change = (self.theta @ (W.T @ R).reshape(-1)).reshape(H.shape)
        return -change, -R @ H.T, -jnp.sum(R, 1) if self.bias else jnp.zeros_like(b)


def _by_kernel(network: NetworkAt, times: Float[Array, " T"], rtol, atol, max_steps, progress) -> Course:
    state = network.last_layer
    theta = ntk.empirical_ntk(*network.as_trained)
    theta = jnp.transpose(theta, (2, 0, 3, 1)).reshape(state.H.size, state.H.size).astype(state.H.dtype)
    flow = _FeatureKernelFlow(theta, network.classes, network.bias)
    out = solve(flow, (state.H, state.W, state.b), times, rtol, atol, max_steps, progress)
    reached = int(np.isfinite(np.asarray(out.states[2])).all(axis=1).sum())
    H, W, b = (part[:reached] for part in out.states)
    return Course(times[:reached], H, W, b, None, out.statistics | {"successful": jnp.asarray(out.successful)})
