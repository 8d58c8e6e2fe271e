"""Unconstrained features under a deep classifier: linear, W = W_L ⋯ W_1, or with a ReLU between its layers."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse._checks import check_shape
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes
from ntkcollapse.kernel_path import KernelFunction, KernelPath
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.losses import Loss
from ntkcollapse.sample_kernel import SampleKernel
from ntkcollapse.theory.constraints import Constraint, Unconstrained
from ntkcollapse.theory.flow import AbstractFlow
from ntkcollapse.weight_decay import WeightDecay


class DeepLastLayer(eqx.Module):
    """Features H (n, N) and weight layers W_1 (n₁, n), …, W_L (C, n_{L−1}), from the features upwards."""

    H: Float[Array, "n N"]
    layers: tuple[Float[Array, "_ _"], ...]

    def __check_init__(self):
        width = self.H.shape[0]
        for l, W in enumerate(self.layers):
            check_shape(f"layers[{l}]", W, (None, width), f"{width} columns, the rows of what stands below")
            width = W.shape[0]

    @property
    def W(self) -> Float[Array, "C n"]:
        """W_L ⋯ W_1."""
        return functools.reduce(lambda below, W: W @ below, self.layers)

    @property
    def b(self) -> Float[Array, " C"]:
        """0: there is no bias."""
        return jnp.zeros(self.layers[-1].shape[0], self.H.dtype)

    @property
    def last_layer(self) -> LastLayer:
        """The state as a single last layer, with the product of the weight layers as W."""
        return LastLayer(H=self.H, W=self.W, b=self.b)


class DeepLinearFlow(AbstractFlow):
    """Ḣ = −∂J/∂H, Ẇ_l = −∂J/∂W_l of J = loss(W_L ⋯ W_1 H) + Σ_l (λ_l/2)‖W_l‖² + (λ_H/2)‖H‖².

    The state equation with K = I and W a product; `simulate` starts it from a `DeepLastLayer`.
    """

    classes: Classes
    loss: Loss
    decay_W: Float[Array, " L"]
    decay_H: Float[Array, ""]
    weight_decay: WeightDecay
    kernel: SampleKernel | KernelPath | KernelFunction
    bias: str = eqx.field(static=True)
    constraint: Constraint
    noise: None

    def __init__(self, classes: Classes, loss: Loss, decay_W: Float[ArrayLike, " L"], decay_H: Float[ArrayLike, ""]):
        self.classes, self.loss = classes, loss
        self.decay_W, self.decay_H = (
            jnp.atleast_1d(jnp.asarray(decay_W, dtype=float)),
            jnp.asarray(decay_H, dtype=float),
        )
        # Of the layers' rates the minimum depends on the geometric mean alone.
        mean = jnp.exp(jnp.mean(jnp.log(self.decay_W)))
        self.weight_decay = WeightDecay(H=self.decay_H, W=mean, b=jnp.zeros_like(mean))
        self.kernel, self.bias = BlockKernel(1.0, 0.0, 0.0), "absent"
        self.constraint, self.noise = Unconstrained(), None

    @property
    def is_plain(self) -> bool:
        return False

    def last_layer(self, state: DeepLastLayer) -> LastLayer:
        return state.last_layer

    def objective(self, state: DeepLastLayer) -> Float[Array, ""]:
        """J."""
        penalties = [λ * jnp.sum(jnp.square(W)) / 2 for λ, W in zip(self.decay_W, state.layers, strict=True)]
        top = self.last_layer(state)
        f = top.W @ top.H
        return (
            self.loss.value(f, self.classes.Y.astype(f.dtype)) + sum(penalties) + self.decay_H * jnp.sum(state.H**2) / 2
        )

    def __call__(self, t, state: DeepLastLayer, args: None = None) -> DeepLastLayer:
        del t, args
        return jax.tree.map(jnp.negative, jax.grad(self.objective)(state))


class DeepReLUFlow(DeepLinearFlow):
    """The flow of J = loss(W_L σ(W_{L−1} ⋯ σ(W_1 H))) + penalties: a ReLU σ after every layer but the last.

    Its last layer is W_L on σ(W_{L−1} ⋯), the features that are observed.
    """

    def __init__(self, classes: Classes, loss: Loss, decay_W: Float[ArrayLike, " L"], decay_H: Float[ArrayLike, ""]):
        super().__init__(classes, loss, decay_W, decay_H)

    def last_layer(self, state: DeepLastLayer) -> LastLayer:
        *below, top = state.layers
        H = functools.reduce(lambda x, W: jax.nn.relu(W @ x), below, state.H)
        return LastLayer(H=H, W=top, b=jnp.zeros(top.shape[0], top.dtype))
