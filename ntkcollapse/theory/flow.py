"""The one state equation: gradient flow of the last layer under a kernel, a loss, a constraint and noise."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, get_args

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkcollapse._checks import check_choice, check_positive, check_real, is_traced
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes, as_classes
from ntkcollapse.equation import Bias
from ntkcollapse.kernel_path import KernelFunction, KernelPath
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.losses import Loss, SquaredError, as_loss
from ntkcollapse.sample_kernel import DenseKernel, SampleKernel
from ntkcollapse.theory.constraints import Constraint, Unconstrained
from ntkcollapse.weight_decay import WeightDecay


def check_bias(bias: str, b: Float[Array, " C"]) -> None:
    """Raises ValueError for an unknown bias mode, or an absent bias that is not zero."""
    check_choice("bias", bias, get_args(Bias))
    if bias == "absent" and not is_traced(b) and bool(jnp.any(b != 0)):
        raise ValueError("bias: expected b = 0 where the bias is absent, got b ≠ 0; use bias='frozen' to keep it.")


def as_kernel(kernel: Any) -> SampleKernel | KernelPath | KernelFunction:
    """Gives the kernel itself, a `BlockKernel` of three numbers, a `DenseKernel` of an N × N matrix, or K(t) of a
    function of t.

    Raises:
        TypeError: anything else, with what to make of it.
    """
    if isinstance(kernel, SampleKernel | KernelPath | KernelFunction):
        return kernel
    if callable(kernel):
        if isinstance(kernel, eqx.Module | type):
            raise TypeError(
                f"kernel: expected a kernel, got the function {getattr(kernel, '__name__', type(kernel).__name__)!r}, "
                "which is none; a flow, an instance of a class derived from Flow, goes to `simulate` as it is."
            )
        return KernelFunction(kernel)
    if isinstance(kernel, Sequence) and len(kernel) == 3 and all(jnp.ndim(value) == 0 for value in kernel):
        return BlockKernel(*kernel)
    if getattr(kernel, "shape", ()) == (3,):
        check_real(kernel=kernel)
        return BlockKernel(*kernel)
    if getattr(kernel, "ndim", 0) == 2:
        return DenseKernel(kernel)
    raise TypeError(
        "kernel: expected a SampleKernel, a KernelPath, a function of t, three numbers (diagonal, within, between) or "
        f"an N x N matrix, got {type(kernel).__name__}."
    )


class AbstractFlow(eqx.Module):
    """What `simulate` integrates and observes: a vector field on states from which a last layer can be read.

    A flow of your own has these attributes and methods:

        classes             behind the samples of the last layer
        loss, weight_decay, bias    in whose terms it is observed and its equation is written down
        kernel              of the features, any `SampleKernel`, `KernelPath` or `KernelFunction`
        kernel_at(t, state) the kernel then and there, where it depends on the state; `kernel` at t otherwise
        constraint, noise   what the solver is to do after steps (`Unconstrained()`), and σ of `diffusion` (None)
        last_layer(state)   H, W, b of a state, as a `LastLayer`; a state is any pytree
        __call__(t, state, args)    d state/dt, a pytree like the state, of the same shapes and precision
        diffusion(state)    beside noise: its standard deviation on each entry, a pytree like the state

    `simulate` calls it at any t between the times asked for, with the start as the first state, and observes
    `last_layer` under `kernel_at`. Only `Flow` itself is ever reduced to class means: any other flow, a subclass of
    `Flow` with a `__call__` of its own too, is integrated as it is. A subclass of `Flow` needs no more than what
    differs; docs/extend_the_theory.md has one of each kind.
    """

    kernel: eqx.AbstractVar[SampleKernel | KernelPath | KernelFunction]
    classes: eqx.AbstractVar[Classes]
    loss: eqx.AbstractVar[Loss]
    weight_decay: eqx.AbstractVar[WeightDecay]
    bias: eqx.AbstractVar[str]
    constraint: eqx.AbstractVar[Constraint]
    noise: eqx.AbstractVar[Any]

    def __new__(cls, *args: Any, **kwargs: Any):
        missing = sorted({*cls.__abstractvars__, *cls.__abstractmethods__})
        if missing:
            raise TypeError(
                f"{cls.__name__}: expected a flow with all attributes and methods of AbstractFlow, got none of the "
                f"name {', '.join(missing)}; add them to the class, or derive it from ntkcollapse.Flow."
            )
        return super().__new__(cls)

    def __getattr__(self, name: str) -> Any:
        # Called where nothing else gives the attribute: a field that `__init__` has left out.
        if name in {field.name for field in dataclasses.fields(self)}:
            raise TypeError(
                f"{type(self).__name__}.{name}: expected a value from its __init__, got none; set self.{name} there, "
                "or call super().__init__(...)."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    @abc.abstractmethod
    def is_plain(self) -> bool:
        """Whether it is the theory's own flow: no constraint, no noise, one learning rate."""

    @abc.abstractmethod
    def last_layer(self, state: Any) -> LastLayer:
        """H, W, b of a state."""

    @abc.abstractmethod
    def __call__(self, t, state: Any, args: None = None) -> Any:
        """d state/dt."""

    def retract(self, state: LastLayer) -> LastLayer:
        """The nearest state that the constraint allows."""
        return self.constraint.retract(state, self.classes)

    def kernel_at(self, t, state: Any) -> SampleKernel:
        """The feature kernel at time t in this state: what κ, the invariant and its drift are observed with."""
        del state
        return self.kernel.at(t)


class Flow(AbstractFlow):
    """Gradient flow of (H, W, b) in the metric that the kernel K defines on the features.

        Ḣ = Π_H[−Wᵀ G K − λ_H H] + noise,   Ẇ = Π_W[−η_W G Hᵀ − λ_W W],   ḃ = −η_b G 1 − λ_b b,
        G = ∂loss/∂(W H + b 1ᵀ)  (C × N)

    The theory of this package is the case without Π, noise and η; `theory.models` lists what other parts make of it.
    With squared error G = R = W H + b 1ᵀ − Y (the default), and with a block kernel on balanced classes

        R K = λ_single (R − R_class) + λ_class (R_class − R_global) + λ_global R_global,

    the block-structured dynamics of the paper. A call gives the time derivative at (t, state): a vector field for any
    ODE solver, with all N columns of H in its state; `reduced_flow` is the same flow at a cost that N does not enter.

    Args:
        kernel: K, any `SampleKernel`, or a `KernelPath` K(t); also three numbers of a block kernel, a matrix, or a
            function of t that gives one of them.
        classes: what stands behind the columns.
        loss: of the logits; ½‖R‖² by default, or a name, "squared" or "cross-entropy".
        weight_decay: λ_H, λ_W, λ_b: one rate for all, three, or {"H": ..., "W": ..., "b": ...}.
        bias: "free" moves; "frozen" and "absent" do not.
        constraint: what Π keeps the state on; the flow is then evaluated at the retracted state, so that it is tangent.
        rate_W, rate_b: η_W and η_b, learning rates relative to that of the features.
        noise: standard deviation σ of independent Brownian motions added to the entries of H: dH = Ḣ dt + σ dB.

    References:
        Seleznova et al. (2023), Section 5.2.
    """

    kernel: SampleKernel | KernelPath | KernelFunction = eqx.field(converter=as_kernel)
    classes: Classes = eqx.field(converter=as_classes)
    loss: Loss = eqx.field(converter=as_loss, default_factory=SquaredError)
    weight_decay: WeightDecay = eqx.field(converter=WeightDecay.of, default=0.0)
    bias: str = eqx.field(static=True, default="free")
    constraint: Constraint = Unconstrained()
    rate_W: float | Float[Array, ""] = 1.0
    rate_b: float | Float[Array, ""] = 1.0
    noise: float | Float[Array, ""] | None = None

    def __check_init__(self):
        check_choice("bias", self.bias, get_args(Bias))
        check_positive("rate_W, rate_b", (self.rate_W, self.rate_b), zero=True)
        if self.noise is not None:
            check_positive("noise", self.noise, zero=True)

    @property
    def is_plain(self) -> bool:
        same_rates = not is_traced(self.rate_W, self.rate_b) and self.rate_W == 1 and self.rate_b == 1
        return isinstance(self.constraint, Unconstrained) and self.noise is None and bool(same_rates)

    def last_layer(self, state: LastLayer) -> LastLayer:
        return state

    def __call__(self, t, state: LastLayer, args: None = None) -> LastLayer:
        del args
        state = self.retract(state)
        H, W, b = state.H, state.W, state.b
        G = self.loss.gradient(state.logits, self.classes.Y.astype(H.dtype))
        dH = -W.T @ self.kernel_at(t, state).mv(G, self.classes) - self.weight_decay.H * H
        dW = -self.rate_W * (G @ H.T) - self.weight_decay.W * W
        db = -self.rate_b * G.sum(1) - self.weight_decay.b * b if self.bias == "free" else jnp.zeros_like(b)
        velocity = eqx.tree_at(lambda s: (s.H, s.W, s.b), state, (dH, dW, db))
        return self.constraint.tangent(state, velocity, self.classes)

    def diffusion(self, state: LastLayer) -> LastLayer:
        """Standard deviation of the noise on each entry: σ on features, 0 elsewhere."""
        sigma = jnp.zeros((), state.H.dtype) if self.noise is None else jnp.asarray(self.noise, state.H.dtype)
        H, W, b = jnp.broadcast_to(sigma, state.H.shape), jnp.zeros_like(state.W), jnp.zeros_like(state.b)
        return eqx.tree_at(lambda s: (s.H, s.W, s.b), state, (H, W, b))
