"""Gradient flow in the parameters: of the network itself, and of its two linearisations."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ntkcollapse.comparison.network_at import NetworkAt


class Parameters(NamedTuple):
    """What moves: θ of the features, W and b."""

    theta: PyTree
    W: Float[Array, "C n"]
    b: Float[Array, " C"]

    @classmethod
    def of(cls, start: NetworkAt) -> "Parameters":
        """The parameters of a network at its moment."""
        return cls(start.params, start.W, start.b)


class ParametricModel(eqx.Module):
    """Features and logits as functions of the parameters, on the samples of `start`.

    All three models and their first derivatives agree at the start; they differ in what is linear from there on.
    """

    start: NetworkAt

    @abc.abstractmethod
    def __call__(self, parameters: Parameters) -> tuple[Float[Array, "n N"], Float[Array, "C N"]]:
        """(H, f)."""

    def shifted(self, scores: Float[Array, "C N"], b: Float[Array, " C"]) -> Float[Array, "C N"]:
        """f = W H + b 1ᵀ; without a bias nothing depends on b, which therefore does not move."""
        return scores + b[:, None] if self.start.bias else scores


class FullNetwork(ParametricModel):
    """The network: H = h_θ(x), f = W H + b 1ᵀ."""

    def __call__(self, parameters):
        θ, W, b = parameters
        H = self.start.features(θ, self.start.inputs).T
        return H, self.shifted(W @ H, b)


class FeaturesLinearised(ParametricModel):
    r"""H = h_θ₀ + J_h (θ − θ₀), f = W H + b 1ᵀ: the features obey Θ^h as it was at the start, the last layer learns.

    Its flow in (H, W, b) is dH/dt = −Θ^h[Wᵀ R] with the full feature kernel Θ^h = J_h J_hᵀ (n × n for each pair of
    samples), applied as one vector-Jacobian and one Jacobian-vector product: no array of (nN)² numbers is made.
    """

    def __call__(self, parameters):
        θ, W, b = parameters
        _, H = _linearised(self.start, θ)
        return H, self.shifted(W @ H, b)


class NetworkLinearised(ParametricModel):
    """f = f₀ + J_f (θ − θ₀) in all parameters, W and b among them: lazy training. H as for linearised features."""

    def __call__(self, parameters):
        θ, W, b = parameters
        H0, H = _linearised(self.start, θ)
        return H, self.shifted(self.start.W @ H + (W - self.start.W) @ H0, b)


class ParametricFlow(eqx.Module):
    """dp/dt = −∂/∂p [½‖f(p) − Y‖² + λ/2 Σ ‖weights‖²] for p = (θ, W, b): a vector field for any ODE solver.

    Weights are tensors with more than one axis: biases, scales and shifts do not decay.
    """

    model: ParametricModel
    weight_decay: float | Float[Array, ""] = 0.0

    def __call__(self, t, state: Parameters, args: Any = None) -> Parameters:
        del t, args
        return jax.tree.map(jnp.negative, jax.grad(self.loss)(state))

    def loss(self, state: Parameters) -> Float[Array, ""]:
        """½‖R‖² + λ/2 Σ ‖weights‖²."""
        classes = self.model.start.classes
        weights = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim > 1]
        penalty = sum(jnp.sum(jnp.square(leaf)) for leaf in weights)
        return (jnp.sum(jnp.square(self.model(state)[1] - classes.Y)) + self.weight_decay * penalty) / 2


def _linearised(start: NetworkAt, theta: PyTree) -> tuple[Array, Array]:
    """(h_θ₀, h_θ₀ + J_h (θ − θ₀)) as columns."""
    step = jax.tree.map(jnp.subtract, theta, start.params)
    H0, change = jax.jvp(lambda p: start.features(p, start.inputs), (start.params,), (step,))
    return H0.T, (H0 + change).T
