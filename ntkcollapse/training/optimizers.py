"""Optimisers by name."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
import optax.contrib
from jaxtyping import PyTree

from ntkcollapse._checks import check_choice, check_momentum, check_positive
from ntkcollapse._options import check_options

# Not built from a learning rate, or not for this step: why, and what to take instead.
_REFUSED = {
    "noisy_sgd": "its state holds a random key, which checkpoints cannot hold; take sgd with small batches",
    "dpsgd": "it needs the gradient of every sample and a seed; a step has the gradient of the batch",
    "schedule_free": "it needs another optimiser inside; take schedule_free_sgd or schedule_free_adamw",
    "mechanize": "it needs another optimiser inside; take prodigy, which finds its rate too",
    "sam": "it needs two other optimisers; take one of those",
}
# Of optax itself, those whose update is not the rate of the step times that of rate 1; optax.contrib counts as such.
_NOT_LINEAR = ("adafactor", "fromage", "lars", "polyak_sgd")
_RATES = ("learning_rate", "max_learning_rate")
_MASKS = ("mask", "weight_decay_mask")
_DECAYS = ("weight_decay", "weight_decay_rate")


def _offered() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """What optax and optax.contrib make an optimiser with from nothing but a learning rate."""
    found = {}
    for module in (optax, optax.contrib):
        for name in sorted(dir(module)):
            make = getattr(module, name)
            if name.startswith(("_", "scale_by")) or name in _REFUSED or not callable(make) or inspect.isclass(make):
                continue
            try:
                parameters = inspect.signature(make).parameters
            except ValueError:  # some names of types can be called and have no signature
                continue
            if next(iter(parameters), None) in _RATES:
                found[name] = make
    return found


_MAKERS = _offered()
OPTIMIZERS = tuple(sorted(_MAKERS))


class TakesRate(optax.GradientTransformationExtraArgs):
    """An optimiser whose `update` is given the learning rate of the step as ``rate``, and whose updates contain it."""


def optimizer(
    name: str, *, momentum: float = 0.9, nesterov: bool = True, options: tuple[tuple[str, Any], ...] = ()
) -> optax.GradientTransformation:
    """The optimiser of this name, of optax or optax.contrib, at the learning rate that `Stepper` has for the step.

    Where updates are linear in the learning rate it is the one of rate 1, whose updates `Stepper` multiplies; else it
    is a `TakesRate`. Equal arguments give the same object, so that runs that differ in learning rate alone compile
    once. "sgd" takes `momentum` and `nesterov`; every other name takes `options` only, as its function in optax names
    them. "lbfgs" finds its step by line search: leave the learning rate at 1. Schedule-free optimisers are measured
    where they take gradients, not at their averages.

    Weight decay acts on tensors with more than one axis only. An optimiser's own, decoupled one is 0 unless `options`
    give it: the penalty of `Stepper` in the loss is then the only decay, as with "sgd". What they give is added to that
    penalty, and leaves biases and the scales and shifts of normalisation alone.

    Raises:
        ValueError: an unknown name or one that cannot be offered, an option that the optimiser does not have or of
            another type than its function asks for, a decay that could not be kept from biases, or a momentum outside
            [0, 1).
    """
    if name in _REFUSED:
        raise ValueError(f"optimizer: {name} is not offered: {_REFUSED[name]}.")
    check_choice("optimizer", name, OPTIMIZERS)
    check_momentum(momentum)
    # The clock of sgd reads its momentum from the settings.
    taken = (*_RATES, *_MASKS, *(("momentum", "nesterov") if name == "sgd" else ()))
    checked = check_options(name, _MAKERS[name], dict(options), taken=taken)
    if name == "sgd":
        checked |= {"momentum": momentum or None, "nesterov": nesterov}
    parameters = inspect.signature(_MAKERS[name]).parameters
    masked = any(mask in parameters for mask in _MASKS)
    for option in checked:
        if "weight_decay" in option and checked[option]:
            check_positive(f"{option} (option of {name})", checked[option], zero=True)
            if option not in _DECAYS or not masked:
                raise ValueError(
                    f"{option} (option of {name}): expected none, since it would act on biases and scales too; got "
                    f"{checked[option]}. Use the setting weight_decay, a penalty in the loss."
                )
    checked |= {option: 0.0 for option in _DECAYS if option not in checked and _default(parameters, option)}
    return _built(name, tuple(sorted(checked.items())))


def _default(parameters: Mapping[str, inspect.Parameter], option: str) -> Any:
    return parameters[option].default if option in parameters else None


@functools.cache
def _built(name: str, options: tuple[tuple[str, Any], ...]) -> optax.GradientTransformation:
    make = _MAKERS[name]
    parameters = inspect.signature(make).parameters
    masks = {mask: _has_axes for mask in _MASKS if mask in parameters}
    make = functools.partial(make, **dict(options), **masks)
    if name == "lbfgs":
        return make()
    if hasattr(optax, name) and name not in _NOT_LINEAR:
        return make(1.0)
    keyword = next(iter(parameters))

    def init(params):
        return make(**{keyword: 1.0}).init(params)

    def update(updates, state, params=None, *, rate=1.0, value_fn=None, **extra):
        at_rate = optax.with_extra_args_support(make(**{keyword: rate}))
        # Sophia calls the function of the parameters so.
        return at_rate.update(updates, state, params, value_fn=value_fn, obj_fn=value_fn, **extra)

    return TakesRate(init, update)


def _has_axes(params: PyTree) -> PyTree:
    return jax.tree.map(lambda p: p.ndim > 1, params)
