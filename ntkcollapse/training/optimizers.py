"""Optimisers by name."""

import functools
import inspect
from typing import Any

import jax
import optax
from jaxtyping import PyTree

from ntkcollapse._checks import check_choice, check_momentum, check_positive
from ntkcollapse._options import check_options
from ntkcollapse.choices import OPTIMIZERS, REFUSED_OPTIMIZERS


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
    check_choice("optimizer", name, OPTIMIZERS, refused=REFUSED_OPTIMIZERS)
    check_momentum(momentum)
    entry = OPTIMIZERS[name]
    make = entry.make(name)
    # The clock of sgd reads its momentum from the settings.
    taken = ("learning_rate", entry.rate, entry.mask, *(("momentum", "nesterov") if name == "sgd" else ()))
    checked = check_options(name, make, dict(options), taken=taken)
    if name == "sgd":
        checked |= {"momentum": momentum or None, "nesterov": nesterov}
    for option in checked:
        if "weight_decay" in option and checked[option]:
            check_positive(f"{option} (option of {name})", checked[option], zero=True)
            if option != entry.decay:
                raise ValueError(
                    f"{option} (option of {name}): expected none, since it would act on biases and scales too; got "
                    f"{checked[option]}. Use the setting weight_decay, a penalty in the loss."
                )
    if entry.decay and entry.decay not in checked and inspect.signature(make).parameters[entry.decay].default:
        checked[entry.decay] = 0.0
    return _built(name, tuple(sorted(checked.items())))


@functools.cache
def _built(name: str, options: tuple[tuple[str, Any], ...]) -> optax.GradientTransformation:
    entry = OPTIMIZERS[name]
    masks = {entry.mask: _has_axes} if entry.mask else {}
    make = functools.partial(entry.make(name), **dict(options), **masks)
    if not entry.rate:
        return make()
    if entry.linear:
        return make(**{entry.rate: 1.0})

    def init(params):
        return make(**{entry.rate: 1.0}).init(params)

    def update(updates, state, params=None, *, rate=1.0, value_fn=None, **extra):
        at_rate = optax.with_extra_args_support(make(**{entry.rate: rate}))
        # Sophia calls the function of the parameters so.
        return at_rate.update(updates, state, params, value_fn=value_fn, obj_fn=value_fn, **extra)

    return TakesRate(init, update)


def _has_axes(params: PyTree) -> PyTree:
    return jax.tree.map(lambda p: p.ndim > 1, params)
