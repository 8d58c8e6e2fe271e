"""A network in two parts: features, and the last linear layer that reads them."""

import dataclasses
from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ntkcollapse._checks import check_choice, check_positive
from ntkcollapse._simplex import check_dimension, simplex_etf
from ntkcollapse.choices import LAST_LAYERS
from ntkcollapse.networks.abstract_network import AbstractNetwork, Variables
from ntkcollapse.networks.initialisers import LAST_LAYER, LECUN_NORMAL, Initialiser


class _Split(nn.Module):
    """Trunk, then the last layer under the name that `Network` reads it by."""

    trunk: nn.Module
    num_classes: int
    use_bias: bool
    param_dtype: Any
    feature_budget: float | None = None

    def setup(self):
        self.last_layer = nn.Dense(self.num_classes, use_bias=self.use_bias, param_dtype=self.param_dtype)

    def features(self, x, train: bool):
        return in_ball(self.trunk(x, train=train), self.feature_budget)

    def __call__(self, x, train: bool):
        return self.last_layer(self.features(x, train))


class Network(AbstractNetwork, eqx.Module):
    """A trunk x ↦ h(x) of any kind and the linear layer f(x) = W h(x) + b on it, as pure functions.

    Rows everywhere: inputs (N, ...), features (N, n), outputs (N, C). Parameters are flax's dictionaries; those of the
    last layer stand under "last_layer". `features` and `outputs` are in evaluation mode: running averages in place of
    batch statistics, so that one sample's output does not depend on another's input, as the NTK of a sample needs.
    Inputs are cast to the parameters' precision.

    Args:
        trunk: a flax module with ``__call__(x, train: bool) -> (N, n)``.
        num_classes: C.
        initialiser: of all weights; what the modules bring where None.
        use_bias: of the last layer.
        param_dtype: of the last layer; the trunk has its own.
        classifier: "trained", or "simplex-etf": W is drawn as a simplex ETF, rows of squared norm `weight_budget` in a
            random orientation, and training does not move it. Nor do derivatives reach it: the NTK is that of the
            parameters that move. Features that are never negative, as after a ReLU, cannot reach vertices with
            negative entries: ‖w_c⁺‖ is then the most that w_cᵀh/‖h‖ can be.
        feature_budget: E_H, the largest ‖h‖² of any sample: longer features are scaled back to it, each for itself,
            h ← h min(1, √E_H/‖h‖).
        weight_budget: E_W, the largest mean over classes of ‖w_c‖²: after each step W ← W min(1, √(C E_W)/‖W‖_F). Of a
            simplex ETF the value, 1 where None.

    With both budgets and cross-entropy this is near the layer-peeled model on a real trunk (Fang et al. 2021), which
    bounds the mean over classes of ‖h‖² where a network here bounds every sample: what lies in this budget lies in
    that of the model. For equal classes the model's minimum has features of one length and is in both; for unequal ones
    it gives large classes the longer features, which is not allowed here. A bound on a mean would tie the feature of
    one sample to all others, and leave no function of the input whose NTK could be taken. With a fixed simplex it is
    the classifier of Yang et al. (2022).

    Raises:
        TypeError: a trunk that is no flax linen module.
    """

    trunk: nn.Module = eqx.field(static=True)
    num_classes: int = eqx.field(static=True)
    initialiser: Initialiser | None = eqx.field(static=True, default=LECUN_NORMAL)
    use_bias: bool = eqx.field(static=True, default=True)
    param_dtype: Any = eqx.field(static=True, default=jnp.float32)
    classifier: str = eqx.field(static=True, default="trained")
    feature_budget: float | None = eqx.field(static=True, default=None)
    weight_budget: float | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        check_choice("classifier", self.classifier, LAST_LAYERS)
        for name in ("feature_budget", "weight_budget"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        if not isinstance(self.trunk, nn.Module):
            raise TypeError(
                f"trunk: expected a flax linen module without the last layer, got {type(self.trunk).__name__}; a whole "
                "network of flax nnx, Equinox, Haiku or PyTorch is networks.of(model, x)."
            )

    @property
    def module(self) -> nn.Module:
        """Trunk and last layer as one flax module, called as module(x, train)."""
        return _Split(self.trunk, self.num_classes, self.use_bias, self.param_dtype, self.feature_budget)

    def init(self, key: PRNGKeyArray, x: Float[Array, "N *shape"] | Any) -> Variables:
        """Parameters and batch statistics for inputs of the shape of `x` (its values are not used).

        Raises:
            ValueError: inputs that the trunk cannot take, or features of it that are not (N, n).
        """
        shape = (2, *jnp.shape(x)[1:])
        try:
            variables = jax.eval_shape(lambda k: _init(self, k, shape), key)
        # What layers say of a shape that they were not made for is of any type.
        except Exception as error:
            said = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"network: {type(self.trunk).__name__} cannot take samples of shape {shape[1:]} "
                f"({type(error).__name__}: {said}); images are (height, width, channels)."
            ) from error
        like = jax.ShapeDtypeStruct(shape, self.param_dtype)
        features = jax.eval_shape(self.features, variables.params, like, variables.batch_stats)
        if features.ndim != 2 or features.shape[0] != 2:
            raise ValueError(
                f"trunk: expected features of shape (N, n), one row a sample; got {features.shape} for N = 2; "
                "flatten or pool them at the end of the trunk."
            )
        if self.classifier == "simplex-etf":
            check_dimension(features.shape[1], self.num_classes)
        return _jitted_init(self, key, shape)

    def features(self, params: PyTree, x: Float[Array, "N *shape"] | Any, batch_stats: PyTree = None) -> Array:
        """h(x), (N, n): the input of the last layer, in evaluation mode."""
        variables = {"params": params, "batch_stats": batch_stats or {}}
        return self._apply(variables, self._cast(params, x), method="features")

    def outputs(self, params: PyTree, x: Float[Array, "N *shape"] | Any, batch_stats: PyTree = None) -> Array:
        """f(x), (N, C): logits in evaluation mode."""
        variables = {"params": self.held(params), "batch_stats": batch_stats or {}}
        return self._apply(variables, self._cast(params, x))

    def training_outputs(self, variables: Variables, x: Float[Array, "N *shape"]) -> tuple[Array, PyTree]:
        """Logits with the statistics of this batch, and the running averages moved towards them."""
        collections = {"params": self.held(variables.params), "batch_stats": variables.batch_stats}
        x = self._cast(variables.params, x)
        outputs, moved = self.module.apply(collections, x, train=True, mutable=["batch_stats"])  # pyright: ignore
        return outputs, moved.get("batch_stats", {})

    def training_features(self, params: PyTree, x: Float[Array, "N *shape"] | Any, batch_stats: PyTree = None) -> Array:
        """h(x) normalised by the statistics of all of `x`."""
        variables = {"params": params["trunk"], "batch_stats": (batch_stats or {}).get("trunk", {})}
        rows = self.trunk.apply(variables, x, train=True, mutable=["batch_stats"])[0]  # pyright: ignore
        return in_ball(rows, self.feature_budget)

    def couples(self, variables: Variables) -> bool:
        """Whether there is a batch normalisation in the trunk."""
        return bool(variables.batch_stats)

    def head(self, params: PyTree) -> tuple[Float[Array, "C n"], Float[Array, " C"] | None]:
        """W and b of the last layer."""
        layer = params[LAST_LAYER]
        return jnp.asarray(layer["kernel"]).T, jnp.asarray(layer["bias"]) if "bias" in layer else None

    def trained(self, params: PyTree) -> PyTree:
        """Whether training moves each array: all but a last layer that is fixed."""
        moves = super().trained(params)
        if self.classifier == "simplex-etf":
            moves = {**moves, LAST_LAYER: {**moves[LAST_LAYER], "kernel": False}}
        return moves

    def within_budget(self, params: PyTree) -> PyTree:
        """The parameters with W scaled back to its budget, where it has one and moves."""
        if self.weight_budget is None or self.classifier == "simplex-etf":
            return params
        layer = params[LAST_LAYER]
        # The whole of W as one row.
        kernel = in_ball(layer["kernel"].reshape(1, -1), self.num_classes * self.weight_budget)
        return {**params, LAST_LAYER: {**layer, "kernel": kernel.reshape(layer["kernel"].shape)}}

    def as_stepped(self) -> "Network":
        """Networks that differ in how weights began alone share one compiled step."""
        return dataclasses.replace(self, initialiser=None)

    def _apply(self, variables: PyTree, x: Array, method: str | None = None) -> Array:
        return self.module.apply(variables, x, train=False, method=method)  # pyright: ignore[reportReturnType]

    def _cast(self, params: PyTree, x):
        return jnp.asarray(x, dtype=params[LAST_LAYER]["kernel"].dtype)


def in_ball(rows: Float[Array, "*N n"], energy: float | None) -> Float[Array, "*N n"]:
    """Each row with a squared norm of at most `energy`: longer ones are scaled back to it. As they are for None."""
    if energy is None:
        return rows
    squares = jnp.sum(jnp.square(rows), axis=-1, keepdims=True)
    inside = squares <= energy
    factor = jnp.where(inside, 1, jnp.sqrt(energy / jnp.where(inside, energy, squares)))
    return rows * factor.astype(rows.dtype)


def _init(network: Network, key: PRNGKeyArray, shape: tuple[int, ...]) -> Variables:
    modules, weights = jax.random.split(key)
    made = network.module.init(modules, jnp.zeros(shape, network.param_dtype), train=False)
    params = made["params"]
    if network.initialiser is not None:
        params = network.initialiser(weights, params)
    if network.classifier == "simplex-etf":
        kernel: Any = params[LAST_LAYER]["kernel"]
        frame = simplex_etf(network.num_classes, kernel.shape[0], key=jax.random.fold_in(weights, 1))
        energy = 1.0 if network.weight_budget is None else network.weight_budget
        params = {**params, LAST_LAYER: {**params[LAST_LAYER], "kernel": (energy**0.5 * frame.T).astype(kernel.dtype)}}
    params = network.within_budget(params)
    return Variables(params, made.get("batch_stats", {}))


# One compilation: drawn one by one, the weights of a deep network take minutes to compile.
_jitted_init = partial(jax.jit, static_argnums=2)(_init)
