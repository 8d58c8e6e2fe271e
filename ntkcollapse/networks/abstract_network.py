"""What training, measurement and comparison ask of a network, whoever built it."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
from flax import linen as nn
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ntkcollapse.classes import Classes
from ntkcollapse.last_layer import LastLayer


class Variables(NamedTuple):
    """All numbers of a network: what is trained, and the running averages of its batch normalisations (or {}).

    Of a network of one's own, `batch_stats` is all that a forward pass in training updates: its state.
    """

    params: PyTree
    batch_stats: PyTree


class AbstractNetwork(abc.ABC):
    """Features x ↦ h(x) of any kind and the linear layer f(x) = W h(x) + b on them, as pure functions.

    Rows everywhere: inputs (N, ...), features (N, n), outputs (N, C). `features` and `outputs` are in evaluation mode:
    running averages in place of batch statistics and no dropout, so that one sample's output does not depend on
    another's input, as the NTK of a sample needs. Inputs are cast to the precision of W.
    """

    num_classes: int

    @abc.abstractmethod
    def init(self, key: PRNGKeyArray, x: Any) -> Variables:
        """Variables before the first step, for inputs of the shape of `x` (its values are not used)."""

    def variables(self, params: Any, state: Any = None) -> Variables:
        """The variables that a training loop has, as params and batch statistics or as both."""
        return params if isinstance(params, Variables) else Variables(params, {} if state is None else state)

    @abc.abstractmethod
    def head(self, params: PyTree) -> tuple[Float[Array, "C n"], Float[Array, " C"] | None]:
        """W and b of the last layer; None for a layer without a bias."""

    @abc.abstractmethod
    def features(self, params: PyTree, x: Any, batch_stats: PyTree = None) -> Array:
        """h(x), (N, n): the input of the last layer, in evaluation mode."""

    @abc.abstractmethod
    def outputs(self, params: PyTree, x: Any, batch_stats: PyTree = None) -> Array:
        """f(x), (N, C): logits in evaluation mode."""

    @abc.abstractmethod
    def training_outputs(self, variables: Variables, x: Any) -> tuple[Array, PyTree]:
        """Logits in training mode, with the statistics of this batch, and the state moved by it."""

    @abc.abstractmethod
    def training_features(self, params: PyTree, x: Any, batch_stats: PyTree = None) -> Array:
        """h(x) normalised by the statistics of all of `x`, without dropout."""

    @abc.abstractmethod
    def couples(self, variables: Variables) -> bool:
        """Whether `training_features` has batch statistics that couple samples."""

    def trained(self, params: PyTree) -> PyTree:
        """Whether training moves each array of the parameters: True of all, unless some are fixed."""
        return jax.tree.map(lambda _: True, params)

    def held(self, params: PyTree) -> PyTree:
        """The parameters, of which derivatives in those that training does not move are 0."""
        return jax.tree.map(lambda p, moves: p if moves else jax.lax.stop_gradient(p), params, self.trained(params))

    def within_budget(self, params: PyTree) -> PyTree:
        """The parameters as they are after a step, brought back into a budget where the network has one."""
        return params

    @property
    def module(self) -> nn.Module:
        """Trunk and last layer as one flax linen module, called as module(x, train).

        Raises:
            ValueError: a network of another make; what moves the outputs of every layer needs this one.
        """
        raise ValueError(
            f"network: expected a `networks.Network`, built of flax linen layers, for 'ansatz', got {self}; leave it "
            "out, or give measurements={'ansatz': f} with a function f of a Moment that calls collapse.agop."
        )

    def as_stepped(self) -> "AbstractNetwork":
        """The network as optimiser steps know it: how its weights began is no part of it."""
        return self

    def fresh_state(self, variables: Variables) -> PyTree | None:
        """The state from which one pass in training mode gives the statistics of its batch; None where none does."""
        return None

    def evaluation(self, batch_stats: PyTree = None) -> tuple[Callable, Callable]:
        """(features, outputs) as functions of (params, x) alone, for what differentiates in all of its first argument.

        They are pytrees that carry the batch statistics: passed through `jax.jit` they do not compile anew.
        """
        static, stats = _Static(self), {} if batch_stats is None else batch_stats
        return Partial(_features, static, stats), Partial(_outputs, static, stats)

    def coupled(self, batch_stats: PyTree) -> Callable:
        """`training_features` as a function of (params, x) alone, a pytree as those of `evaluation`."""
        return Partial(_training_features, _Static(self), batch_stats)

    def last_layer(
        self, variables: Variables, x: Any, labels: Int[Array, " N"] | Any, *, features: Any = None
    ) -> tuple[LastLayer, Classes]:
        """(H, W, b) on labelled samples, in class order; `features` where they are known already."""
        if features is None:
            features = _jitted_features(self, variables.params, x, variables.batch_stats)
        W, b = self.head(variables.params)
        return LastLayer.from_rows(features, labels, W.T, b)


@eqx.filter_jit
def _jitted_features(network: AbstractNetwork, params, x, batch_stats):
    return network.features(params, x, batch_stats)


@jax.tree_util.register_static
class _Static:
    """A network as part of a pytree's structure: equal networks make equal structures."""

    def __init__(self, network: AbstractNetwork):
        self.network = network

    def __eq__(self, other):
        return isinstance(other, _Static) and self.network == other.network

    def __hash__(self):
        return hash(jax.tree.structure(self.network))


def _features(static: _Static, batch_stats, params, x):
    return static.network.features(params, x, batch_stats)


def _outputs(static: _Static, batch_stats, params, x):
    return static.network.outputs(params, x, batch_stats)


def _training_features(static: _Static, batch_stats, params, x):
    return static.network.training_features(params, x, batch_stats)


def num_params(params: PyTree) -> int:
    """How many numbers are trained."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
