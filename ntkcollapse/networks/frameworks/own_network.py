"""A network of one's own as training, measurement and comparison take it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from ntkcollapse._checks import check_finite
from ntkcollapse._flat_trace import flatten
from ntkcollapse.networks.abstract_network import AbstractNetwork, Variables
from ntkcollapse.networks.frameworks import last_layer
from ntkcollapse.networks.frameworks.last_layer import Head
from ntkcollapse.networks.frameworks.layers import layer_inputs
from ntkcollapse.networks.frameworks.model import (
    Mode,
    Model,
    as_frameworks_compute,
    by_path,
    floating,
    is_random,
    shapes,
)

# Operations whose result is what went in.
_UNCHANGED = ("copy", "copy_p", "random_wrap", "random_unwrap")
# Of dropout in training, whose n-th pass draws from this key and n.
_SEED = 0


class _Known(NamedTuple):
    """What traces of a model show: its head, whether training draws random numbers, whether batches couple samples."""

    head: Head
    weight: str
    draws: bool
    couples: bool


class _ByIdentity:
    """A model as part of a pytree's structure: the same one only."""

    def __init__(self, model: Model, known: _Known):
        self.model, self.known = model, known

    def __repr__(self):
        size = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes(self.model.params)))
        return f"{self.model.framework}: {self.model.name} of {size:,} parameters, last layer {self.known.weight}"


class OwnNetwork(AbstractNetwork, eqx.Module):
    """A network of flax nnx, flax linen, Equinox, Haiku, PyTorch or plain functions; `networks.of` makes one.

    Its parameters and state are trees of arrays: those of linen and Haiku as they are there, those of modules by path.
    `variables` takes either from what a training loop of the framework has.
    """

    num_classes: int = eqx.field(static=True)
    own: Any = eqx.field(static=True)

    def __str__(self):
        return f"{self.own}"

    @property
    def framework(self) -> str:
        """Where the network is from."""
        return self.own.model.framework

    def init(self, key: PRNGKeyArray, x: Any) -> Variables:
        """The network's own weights; drawn with the key where it has none yet (linen and Haiku without `params`)."""
        model = self.own.model
        params, state = (model.params, model.state) if model.begin is None else model.begin(key)
        return self._with_draws(params, state)

    def variables(self, params: Any, state: Any = None) -> Variables:
        """The variables of this network, from what a training loop has.

        Args:
            params: the module (nnx, Equinox, PyTorch), or its parameters.
            state: what a forward pass in training updates, where the framework keeps it apart.
        Raises:
            ValueError: parameters of another structure or shape, or a state that is missing.
        """
        model = self.own.model
        if isinstance(params, Variables):
            params, state = params
        taken, state = model.take(params, state)
        if jax.tree.leaves(model.state) and state is None:
            raise ValueError(
                f"state: expected the state of the network ({', '.join(list(by_path(model.state))[:4])}), got none; "
                f"{model.hand_over}."
            )
        state = model.state if state is None else state
        _check_same("params", taken, model.params, model.hand_over)
        if self.own.known.draws and isinstance(state, dict) and set(state) == {"state", "draws"}:
            _check_same("state", state["state"], model.state, model.hand_over)
            return Variables(taken, state)
        _check_same("state", state, model.state, model.hand_over)
        return self._with_draws(taken, state)

    def head(self, params: PyTree) -> tuple[Array, Array | None]:
        """W (C, n) and b."""
        head, leaves = self.own.known.head, jax.tree.leaves(params)
        W = jnp.asarray(leaves[head.weight])
        return W.T if head.by_columns else W, None if head.bias is None else jnp.asarray(leaves[head.bias])

    def features(self, params: PyTree, x: Any, batch_stats: PyTree = None) -> Array:
        """h(x), (N, n), in evaluation mode."""
        return self._features("evaluation", params, batch_stats, x)

    def training_features(self, params: PyTree, x: Any, batch_stats: PyTree = None) -> Array:
        """h(x) by the statistics of all of x, without dropout."""
        return self._features("coupled", params, batch_stats, x)

    def outputs(self, params: PyTree, x: Any, batch_stats: PyTree = None) -> Array:
        """f(x), (N, C), in evaluation mode."""
        return applied(self.own.model, "evaluation", params, self._state(batch_stats), self._cast(params, x), None)[0]

    def activations(self, variables: Variables) -> Callable[[Any], dict[str, Array]]:
        """What each layer with weights sees, and last the output, in evaluation mode: x ↦ {name: (N, ...)}.

        Compiled, and in the order of the network, as `collapse.layer_profile` takes it. Layers within loops, of a
        recurrent network, are not seen.
        """

        def activations(x):
            numbered = _numbered_activations(self, variables, x)
            return {name.split(" ", 1)[1]: numbered[name] for name in sorted(numbered)}

        return activations

    def training_outputs(self, variables: Variables, x: Any) -> tuple[Array, PyTree]:
        """f(x) in training mode, and the state moved."""
        params, state = variables
        x, key = self._cast(params, x), None
        if self.own.known.draws:
            key = jax.random.fold_in(jax.random.key(_SEED), state["draws"])
        outputs, moved = applied(self.own.model, "training", params, self._state(state), x, key)
        moved = jax.tree.map(lambda new, old: jnp.asarray(new, jnp.result_type(old)), moved, self._state(state))
        if self.own.known.draws:
            moved = {"state": moved, "draws": state["draws"] + jnp.ones((), jnp.uint32)}
        return outputs, moved

    def couples(self, variables: Variables) -> bool:
        """Whether training normalises by batches, in a mode without dropout."""
        return self.own.known.couples

    def fresh_state(self, variables: Variables) -> PyTree | None:
        """Averages and counts at zero, of frameworks that correct them for their start."""
        if not self.own.model.restarts:
            return None
        start = jax.tree.map(lambda leaf: jnp.full_like(leaf, leaf.dtype == bool), self._state(variables.batch_stats))
        return variables.batch_stats | {"state": start} if self.own.known.draws else start

    def _state(self, batch_stats: PyTree) -> PyTree:
        batch_stats = self._with_draws(None, self.own.model.state).batch_stats if batch_stats is None else batch_stats
        return batch_stats["state"] if self.own.known.draws else batch_stats

    def _with_draws(self, params: PyTree, state: PyTree) -> Variables:
        """Where training draws random numbers, the state counts its passes."""
        return Variables(params, {"state": state, "draws": np.zeros((), np.uint32)} if self.own.known.draws else state)

    def _cast(self, params: PyTree, x: Any) -> Array:
        x = jnp.asarray(x)
        return x.astype(self.head(params)[0].dtype) if floating(x) else x

    def _features(self, mode: Mode, params: PyTree, batch_stats: PyTree, x: Any) -> Array:
        leaves, structure = jax.tree.flatten(params)
        f = _outputs_of_leaves(self.own.model, mode, structure, self._state(batch_stats), None)
        return last_layer.features(f, self.own.known.head, leaves, self._cast(params, x))


@eqx.filter_jit
def _numbered_activations(network: OwnNetwork, variables: Variables, x: Any) -> dict[str, Array]:
    """By number and name, since what leaves jit is sorted."""
    params, state = variables
    leaves, structure = jax.tree.flatten(params)
    f = _outputs_of_leaves(network.own.model, "evaluation", structure, network._state(state), None)
    found = layer_inputs(f, leaves, network._cast(params, x), list(by_path(params)))
    return {f"{i:06d} {name}": value for i, (name, value) in enumerate(found.items())}


def made(model: Model, x: Any, name: str | None) -> OwnNetwork:
    """The network of a model; everything that can be refused is refused here.

    Args:
        x: a batch of its inputs, (N, ...); without values, a shape, nothing is evaluated.
        name: path of the last layer, found without.
    Raises:
        ValueError: outputs that are not (N, C), no last layer, an evaluation mode that updates the state or couples
            samples, numbers that are not finite.
    """
    params, state = shapes(model.params), shapes(model.state)
    leaves, structure = jax.tree.flatten(params)
    names = list(by_path(params))
    if not any(floating(leaf) for leaf in leaves):
        raise ValueError(f"params: expected parameters in floating point, got none; {model.hand_over}.")
    if not isinstance(x, jax.ShapeDtypeStruct):
        check_finite("params", [leaf for leaf in jax.tree.leaves(model.params) if eqx.is_array(leaf)])
    kind = jnp.result_type(x)
    if jnp.issubdtype(kind, jnp.floating):
        kind = jnp.result_type(*(leaf.dtype for leaf in leaves if floating(leaf)))
    shape = np.shape(x)[1:]
    batches = [jax.ShapeDtypeStruct((N, *shape), kind) for N in (2, 3)]
    found = [_shape_of(model, params, state, batch) for batch in batches]
    if not all(len(out) == 2 and out[0] == N for out, N in zip(found, (2, 3), strict=True)):
        turned = [out[::-1] for out in found]
        why = "flatten them, and return nothing beside them"
        if all(len(out) == 2 and out[0] == N for out, N in zip(turned, (2, 3), strict=True)):
            why = "these are transposed: one row a sample is needed"
        raise ValueError(f"outputs: expected logits of shape (N, C), got {found[0]} for N = 2; {why}.")
    C = found[0][1]
    if C < 2 or found[1][1] != C:
        raise ValueError(f"outputs: expected logits of shape (N, C) for C of at least 2 classes, got {found[0]}.")
    f = _outputs_of_leaves(model, "evaluation", structure, state, None)
    head = last_layer.find(f, leaves, batches[1], names, name)
    _check_state_rests(model, params, state, batches[1])
    training, values = _traced(model, "training", params, state, batches[1]), by_path(state)
    couples = any(floating(values[name]) for name in training.moved)
    if couples:
        coupled = _traced(model, "coupled", params, state, batches[1])
        couples = not (coupled.draws or coupled.draws_by_state)
    network = OwnNetwork(C, _ByIdentity(model, _Known(head, names[head.weight], training.draws, couples)))
    if not isinstance(x, jax.ShapeDtypeStruct) and len(x) > 1 and model.begin is None:
        _check_uncoupled(network, np.asarray(x[:3]))
    return network


def applied(model: Model, mode: Mode, params: PyTree, state: PyTree, x: Any, key: Any) -> tuple[Any, PyTree]:
    """Outputs and moved state, under JAX's default promotion of types."""
    with as_frameworks_compute():
        return model.apply(mode, params, state, x, key)


def _outputs_of_leaves(model: Model, mode: Mode, structure: Any, state: PyTree, key: Any) -> Callable:
    def f(leaves, x):
        filled = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype) if isinstance(s, jax.ShapeDtypeStruct) else s, state
        )
        return applied(model, mode, jax.tree.unflatten(structure, leaves), filled, x, key)[0]

    return f


def _shape_of(model: Model, params: PyTree, state: PyTree, x: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """The shape of the outputs; what a framework says of a call that it cannot make is said with a remedy."""
    try:
        out, _ = jax.eval_shape(lambda p, s, x: applied(model, "evaluation", p, s, x, None), params, state, x)
    except NotImplementedError:
        raise
    # What layers say is of any type.
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"network: {model.name} cannot be called on samples of shape {x.shape[1:]} in evaluation mode "
            f"({type(error).__name__}: {said}); {model.evaluate}; {model.hand_over}."
        ) from error
    if not hasattr(out, "shape") or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"outputs: expected one array of logits, got {type(out).__name__}; return the logits alone.")
    return tuple(out.shape)


def _check_state_rests(model: Model, params: PyTree, state: PyTree, x: jax.ShapeDtypeStruct) -> None:
    """In evaluation mode the state must come out as it went in."""
    moved = _traced(model, "evaluation", params, state, x).moved
    if moved:
        raise ValueError(
            f"network: expected evaluation mode, in which nothing of its state changes, but {', '.join(moved[:4])} "
            f"does (running statistics of batches, or the draws of a dropout that is active); {model.evaluate}."
        )


class _Traced(NamedTuple):
    """Of one mode: whether outputs draw by the key they are given, or by one of the state; and what the state moves."""

    draws: bool
    draws_by_state: bool
    moved: list[str]


def _traced(model: Model, mode: Mode, params: PyTree, state: PyTree, x: Any) -> _Traced:
    leaves, structure = jax.tree.flatten((params, state))
    key = jax.eval_shape(lambda: jax.random.key(_SEED))

    def f(leaves, key, x):
        p, s = jax.tree.unflatten(structure, leaves)
        outputs, moved = applied(model, mode, p, s, x, None if mode == "evaluation" else key)
        if jax.tree.structure(moved) != jax.tree.structure(s):
            raise ValueError(
                f"state: expected a state of the same structure after a call in {mode} mode, got another one; "
                f"{model.hand_over}."
            )
        return outputs, jax.tree.leaves(moved)

    flat = flatten(jax.make_jaxpr(f)(leaves, key, x))
    producer = flat.producers()

    def origin(value):
        while isinstance(value, int) and value in producer and producer[value].primitive.name in _UNCHANGED:
            value = producer[value].operands[0]
        return value

    before = flat.inputs[len(jax.tree.leaves(params)) : len(leaves)]
    after = [origin(value) for value in flat.outputs[1:]]
    names = list(by_path(state))
    read = {o for operation in flat.before(flat.outputs[:1]) for o in operation.operands if isinstance(o, int)}
    keys = {value for value, leaf in zip(before, jax.tree.leaves(state), strict=True) if is_random(leaf)}
    moved = [name for name, old, new in zip(names, before, after, strict=True) if old != new]
    return _Traced(flat.inputs[-2] in read, not keys.isdisjoint(read), moved)


def _check_uncoupled(network: OwnNetwork, x: np.ndarray) -> None:
    """In evaluation mode the outputs of a sample must not depend on the others of its batch."""
    params, state = network.own.model.params, network._with_draws(None, network.own.model.state).batch_stats
    f = jax.jit(lambda params, x, state: network.outputs(params, x, state))
    together, beside = (np.asarray(f(params, rows, state), float) for rows in (x[:2], x[[0, -1]]))
    change, size = np.abs(together[0] - beside[0]).max(), np.abs(together).max()
    if not change <= 1e-4 * size + np.finfo(np.float32).tiny:
        raise ValueError(
            f"network: expected evaluation mode, in which samples do not depend on one another, but the outputs of one "
            f"change by {change:.2g} with the rest of its batch; {network.own.model.evaluate}."
        )


def _check_same(what: str, given: PyTree, expected: PyTree, hand_over: str) -> None:
    """One structure and the same shapes."""
    new, old = by_path(given), by_path(expected)
    if missing := [name for name in old if name not in new]:
        raise ValueError(f"{what}: expected {missing[0]!r} among them, as in the network, got none; {hand_over}.")
    if more := [name for name in new if name not in old]:
        raise ValueError(f"{what}: expected those of the network, got {more[0]!r} beside them; {hand_over}.")
    for name, value in old.items():
        if np.shape(new[name]) != np.shape(value):
            raise ValueError(
                f"{what}: expected {name!r} of shape {np.shape(value)}, as in the network, got {np.shape(new[name])}."
            )
    if jax.tree.structure(given) != jax.tree.structure(expected):
        raise ValueError(f"{what}: expected a tree of the network's structure, got another one; {hand_over}.")
