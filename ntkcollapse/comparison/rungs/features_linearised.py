"""Rungs 4 and 4b: features linearised in their parameters at the start; the last layer learns as in the network."""

from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkcollapse._checks import check_choice
from ntkcollapse.classes import Classes
from ntkcollapse.comparison._memory import fits_memory, pairs, require_memory
from ntkcollapse.comparison.network_at import NetworkAt
from ntkcollapse.comparison.parametric import FeaturesLinearised
from ntkcollapse.comparison.rungs._course import Course, integrate_parameters, solve
from ntkcollapse.comparison.start import MeasuredStart

Method = Literal["auto", "kernel", "products"]

# Operations of a forward pass for each number of Θ^h from which "auto" makes it. A product with the array is bound by
# memory, some nanoseconds for ten numbers; the passes of one product without it are worth six forward ones.
_WORTH_A_KERNEL = 10


def features_linearised(
    start: MeasuredStart,
    times: Any,
    *,
    method: Method = "auto",
    rtol: float = 1e-7,
    atol: float = 1e-12,
    max_steps: int = 100_000,
    progress: bool = False,
    coupled: bool = False,
) -> Course:
    """The full feature kernel Θ^h, n × n for each pair of samples, frozen: no average over features.

    "products" applies Θ^h to WᵀR by one vector-Jacobian and one Jacobian-vector product of the features: no array of
    (n N)² numbers, and each step costs some passes over the N samples. "kernel" makes that array once, and a step no
    longer sees the network; it has no room for weight decay, which moves θ where Θ^h does not reach, nor for
    `coupled`. "auto" takes it where it fits and a pass through the network costs more than a product with it: for
    networks with convolutions on few samples.

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
        possible = not (start.weight_decay or coupled) and fits_memory(needed)
        method = "kernel" if possible and _operations(start.network) > _WORTH_A_KERNEL * size**2 else "products"
    if method == "kernel":
        require_memory("features-linearised", needed, {"sample-frozen": pairs(start.classes.num_samples)})
        return _by_kernel(start.network, times, rtol, atol, max_steps, progress)
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
    """Features linearised with batch statistics that move as parameters do, to first order: Θ^h couples all samples.

    Raises:
        ValueError: a network without batch statistics, for which this is rung 4.
    """
    start.require("batch statistics")
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


def _operations(network: NetworkAt) -> float:
    """Floating-point operations of the features of all samples, as the compiler counts them."""
    lowered = jax.jit(lambda params, x: network.features(params, x)).lower(network.params, network.inputs)
    return (lowered.cost_analysis() or {}).get("flops", 0.0)


def _by_kernel(network: NetworkAt, times: Any, rtol, atol, max_steps, progress) -> Course:
    state = network.last_layer
    theta = jnp.transpose(network.feature_kernel(), (2, 0, 3, 1)).reshape(state.H.size, state.H.size)
    flow = _FeatureKernelFlow(theta, network.classes, network.bias)
    times, (H, W, b), statistics = solve(flow, (state.H, state.W, state.b), times, rtol, atol, max_steps, progress)
    return Course(times, H, W, b, None, statistics)
