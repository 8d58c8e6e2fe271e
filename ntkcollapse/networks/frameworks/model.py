"""What an adapter to a framework gives: one pure function, the numbers it starts from, and how to say things."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

# evaluation: running averages, no dropout; training: as steps see it; coupled: batch statistics, no dropout.
Mode = Literal["evaluation", "training", "coupled"]

# How layers and functions name their mode, with the value that means training.
MODES = {"train": True, "training": True, "is_training": True, "deterministic": False, "use_running_average": False}


class Model(NamedTuple):
    """A network of some framework as a pure function.

    Attributes:
        framework: its name, in messages.
        name: of the network itself.
        apply: (mode, params, state, x, key) ↦ (outputs, state moved); the key is for dropout.
        params, state: what it starts from, or their shapes.
        take: what a training loop has (the module, or parameters and state) ↦ (params, state).
        evaluate: how one asks for evaluation mode there.
        hand_over: how parameters and state are handed over there.
        begin: key ↦ (params, state), or None where the network brought its own.
        restarts: whether running averages are those of the last batch alone after one step from zero.
    """

    framework: str
    name: str
    apply: Callable[[Mode, PyTree, PyTree, Any, Any], tuple[Any, PyTree]]
    params: PyTree
    state: PyTree
    take: Callable[[Any, Any], tuple[PyTree, PyTree]]
    evaluate: str
    hand_over: str
    begin: Callable[[Any], tuple[PyTree, PyTree]] | None = None
    restarts: bool = False


@contextmanager
def as_frameworks_compute():
    """Promotion of types and ranks as frameworks expect it: JAX's own default."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        # Running averages in single precision beside parameters in double; they are cast where they come out.
        warnings.filterwarnings("ignore", "scatter inputs have incompatible types", FutureWarning)
        yield


# Of a call in (training, evaluation), or in (training, evaluation, batch statistics without dropout).
Modes = tuple[Mapping[str, Any], Mapping[str, Any]] | tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]


def mode_arguments(parameters: Sequence[str], modes: Modes | None) -> dict[Mode, dict[str, Any]]:
    """Keyword arguments of a call in each mode: those given, or those that it names itself."""
    if modes is not None:
        given = list(modes) if isinstance(modes, tuple | list) else []
        if len(given) not in (2, 3) or not all(isinstance(mode, Mapping) for mode in given):
            raise TypeError(
                "modes: expected the keyword arguments of a call in (training, evaluation), or in (training, "
                f"evaluation, batch statistics without dropout), as dictionaries; got {modes!r}."
            )
        training, evaluation, coupled = given if len(given) == 3 else (*given, given[0])
        return {"training": dict(training), "evaluation": dict(evaluation), "coupled": dict(coupled)}
    named = [name for name in MODES if name in parameters]
    training = {name: MODES[name] for name in named}
    return {"training": training, "coupled": training, "evaluation": {name: not MODES[name] for name in named}}


def parameters_of(function: Callable) -> tuple[str, ...]:
    """The names of a function's parameters, as far as they can be known."""
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return ()


def by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their path, in its own order; keys of random numbers as plain numbers."""
    found: dict[str, Any] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        found[name] = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return found


def from_path(values: Mapping[str, Any], like: PyTree) -> PyTree:
    """The tree that `by_path` took apart; `like` has its structure and kinds of keys."""
    leaves, structure = jax.tree.flatten(like)
    pairs = zip(by_path(like), leaves, strict=True)
    restored = [
        jax.random.wrap_key_data(values[name], impl=jax.random.key_impl(leaf)) if _is_key(leaf) else values[name]
        for name, leaf in pairs
    ]
    return jax.tree.unflatten(structure, restored)


def is_random(leaf: Any) -> bool:
    """Whether a leaf is a key of random numbers, of either kind that JAX has."""
    return _is_key(leaf) or (jnp.result_type(leaf) == np.uint32 and np.shape(leaf)[-1:] == (2,))


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def floating(leaf: Any) -> bool:
    """Whether a leaf holds floating-point numbers."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def shapes(tree: PyTree) -> PyTree:
    """Shape and type of every leaf."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf)), tree)
