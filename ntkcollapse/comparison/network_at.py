"""A network at one moment of training, as the rungs that need more than its last layer see it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, PyTree

from ntkcollapse import ntk
from ntkcollapse._checks import check_real, check_shape
from ntkcollapse.classes import Classes
from ntkcollapse.data import Dataset
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.networks import AbstractNetwork, Variables
from ntkcollapse.ntk._problem import parameters_alone


class NetworkAt(eqx.Module):
    """Features h_θ on N samples and the last layer on them, f = W h_θ(x) + b, at one moment.

    Any pure function will do for the features (flax, Equinox, plain JAX): parameters that they do not depend on have
    gradient 0 and change nothing. `NetworkAt.of` makes one from a `Network`.

    Args:
        features: (θ, x) ↦ (N, n), one row a sample; in evaluation mode, where one sample's features do not depend on
            another sample, for everything that asks for a kernel between samples.
        params: θ at this moment: of its leaves, those that `ntk.empirical_ntk` differentiates in; the others stay.
        inputs: x in class order, (N, ...); integers stay what they are.
        W: classifier, (C, n).
        b: bias, (C,).
        classes: behind the rows of x.
        bias: whether there is one that learns; b is 0 and stays there otherwise.
        coupled: features as training sees them where that is otherwise: batch normalisation by the statistics of all of
            x, which couple samples. What follows the network itself takes these.
        precision: of the kernels that are measured of it; that of the parameters by default. All else is in the
            precision of the theory, jax's default.

    Raises:
        ValueError: inputs that are not one row a sample, or features that do not fit W.
    """

    features: Callable
    params: PyTree
    inputs: Num[Array, "N ..."]
    W: Float[Array, "C n"]
    b: Float[Array, " C"]
    classes: Classes
    bias: bool = eqx.field(static=True)
    coupled: Callable | None
    precision: Any = eqx.field(static=True)

    def __init__(self, features, params, inputs, W, b, classes, *, bias=True, coupled=None, precision=None):
        if precision is None:
            # Half precision is too coarse to add up a kernel in.
            kinds = (jnp.result_type(leaf) for leaf in jax.tree.leaves(params) if _floating(leaf))
            precision = np.result_type(np.float32, *kinds)
        check_real(inputs=inputs, W=W, b=b)
        features, trained = parameters_alone(features, params)
        coupled, params = None if coupled is None else parameters_alone(coupled, params)[0], trained
        self.precision = precision
        # Rungs are integrated in the precision of the theory, whatever the network was trained in.
        self.features = _cast(features)
        self.params = _cast(params)
        self.inputs = _cast(jnp.asarray(inputs))
        self.W, self.b = (jnp.asarray(x, dtype=jnp.result_type(float)) for x in (W, b))
        self.classes, self.bias, self.coupled = classes, bias, coupled

    def __check_init__(self):
        N, (C, n) = self.classes.num_samples, self.W.shape
        check_shape("inputs", self.inputs, (N, *(None,) * (self.inputs.ndim - 1)), "one row a sample of classes")
        check_shape("W", self.W, (self.classes.num_classes, None), "(C classes, n features)")
        check_shape("b", self.b, (C,), "one bias a class")
        made = jax.eval_shape(self.features, self.params, self.inputs)
        check_shape("features", made, (N, n), "(N samples, n features) with the n of W")

    @classmethod
    def of(cls, network: AbstractNetwork, variables: Variables, data: Dataset) -> "NetworkAt":
        """A network with these variables on all of `data`, the set that it is trained on.

        Features are those of evaluation mode; with batch normalisation, `coupled` are those of training mode, which are
        the same numbers at this moment if the running statistics are those of `data`.
        """
        features = network.evaluation(variables.batch_stats)[0]
        coupled = network.coupled(_cast(variables.batch_stats)) if network.couples(variables) else None
        W, bias = (None if part is None else jnp.asarray(part) for part in network.head(variables.params))
        assert W is not None
        b = np.zeros(W.shape[0], W.dtype) if bias is None else bias
        return cls(features, variables.params, data.inputs, W, b, data.classes, bias=bias is not None, coupled=coupled)

    @property
    def in_training(self) -> "NetworkAt":
        """The network with the features that training sees."""
        if self.coupled is None:
            return self
        known = (self.params, self.inputs, self.W, self.b, self.classes)
        return NetworkAt(self.coupled, *known, bias=self.bias, precision=self.precision)

    @property
    def as_trained(self) -> tuple[Callable, PyTree, Array]:
        """(features, θ, x) in the precision that the parameters came in, for kernels that take many passes.

        A convolution in float64 takes ten times one in float32 on a CPU, and no kernel of float32 weights is known
        better than to float32.
        """
        return tuple(_cast(part, self.precision) for part in (self.features, self.params, self.inputs))

    @property
    def convolves(self) -> bool:
        """Whether there is a convolution among its features."""
        return "conv_general_dilated" in str(jax.make_jaxpr(self.features)(self.params, self.inputs))

    @property
    def evaluated_as_trained(self) -> "NetworkAt":
        """The network in the precision of the theory, with features that are evaluated in that of its weights."""
        coupled = None if self.coupled is None else _Inside(self.coupled, self.precision)
        known = (self.params, self.inputs, self.W, self.b, self.classes)
        features = _Inside(self.features, self.precision)
        return NetworkAt(features, *known, bias=self.bias, coupled=coupled, precision=self.precision)

    def feature_kernel(self, **options: Any) -> Array:
        """Θ^h between all samples, by `ntk.empirical_ntk` with these options: measured `as_trained`."""
        return _cast(ntk.empirical_ntk(*self.as_trained, **options))

    def output_kernel(self, **options: Any) -> Array:
        """Θ between all samples, of f in all parameters; as `feature_kernel`."""
        known = (self.outputs, (self.params, self.W, self.b), self.inputs)
        return _cast(ntk.empirical_ntk(*(_cast(part, self.precision) for part in known), **options))

    def degree(self) -> tuple[float, float]:
        """How weight decay pulls on the features: as −p λ H, with the p that fits best, and the share that is not so.

            J θ_w ≈ p H,   p = ⟨J θ_w, H⟩ / ‖H‖²,   share = ‖J θ_w − p H‖ / ‖J θ_w‖

        J is the Jacobian of all features in the weights θ_w that decay: tensors with more than one axis. By Euler, p is
        the degree and the share is 0 where features are homogeneous in them, as those of ReLU layers without biases
        are of their number; with batch normalisation, features as training sees them, p is 0. The last layer's own
        decay is no part of it.
        """
        network = self.in_training
        weights = jax.tree.map(lambda leaf: leaf if jnp.ndim(leaf) > 1 else jnp.zeros_like(leaf), network.params)
        H, pull = _pull(network.features, network.params, weights, network.inputs)
        p = jnp.vdot(pull, H) / jnp.vdot(H, H)
        size = jnp.linalg.norm(pull)
        return float(p), float(jnp.where(size > 0, jnp.linalg.norm(pull - p * H) / size, 0.0))

    @property
    def num_params(self) -> int:
        """P, parameters of the features and of the last layer as `params` counts them."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def outputs(self) -> Callable:
        """f as a pure function ((θ, W, b), x) ↦ (N, C), for what differentiates in all parameters."""
        return _Outputs(self.features, self.bias)

    @property
    def last_layer(self) -> LastLayer:
        """(H, W, b) at this moment."""
        return LastLayer(H=_evaluate(self.features, self.params, self.inputs).T, W=self.W, b=self.b)


class _Outputs(eqx.Module):
    """f(x) = W h_θ(x) + b; carries the features' own arrays, so that compiled code is found again."""

    features: Callable
    bias: bool = eqx.field(static=True)

    def __call__(self, params, x):
        θ, W, b = params
        scores = self.features(θ, x) @ W.T
        return scores + b[None, :] if self.bias else scores


class _Inside(eqx.Module):
    """Features in another precision than what they are given and what they give."""

    features: Callable
    precision: Any = eqx.field(static=True)

    def __call__(self, params, x):
        features, params, x = (_cast(part, self.precision) for part in (self.features, params, x))
        return _cast(features(params, x))


@eqx.filter_jit
def _evaluate(features, params, x):
    return features(params, x)


@eqx.filter_jit
def _pull(features, params, weights, x):
    """Features, and their derivative along the weights."""
    return jax.jvp(lambda θ: features(θ, x), (params,), (weights,))


def _floating(leaf) -> bool:
    # Python's own numbers are settings, in `ntk` too.
    return eqx.is_array_like(leaf) and type(leaf) is not float and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _cast(tree, dtype=float):
    """Floating-point arrays in another precision, without one in jax's default: float64 where it is switched on."""
    dtype = jnp.result_type(dtype)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype=dtype) if _floating(leaf) else leaf, tree)
