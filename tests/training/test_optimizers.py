"""Optimisers by name against optax's own, and where their weight decay acts."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from ntkcollapse.networks import mlp
from ntkcollapse.training import OPTIMIZERS, Stepper, TrainConfig, optimizer
from ntkcollapse.training.optimizers import TakesRate

X = np.random.default_rng(0).normal(size=(8, 4))
LABELS = np.repeat(np.arange(2), 4).astype(np.int32)
PARAMS = {
    name: jnp.asarray(np.random.default_rng(i).normal(size=shape))
    for i, (name, shape) in enumerate({"matrix": (3, 4), "filter": (2, 2, 1, 3), "bias": (4,)}.items())
}
# One of optax says that it is old.
pytestmark = pytest.mark.filterwarnings("ignore:.*optimistic_adam:DeprecationWarning")


def made(name: str, rate: float, **options) -> optax.GradientTransformationExtraArgs:
    """Optax's own, without a decay of its own unless `options` have it."""
    make = getattr(optax, name, None) or getattr(optax.contrib, name)
    parameters = inspect.signature(make).parameters
    if parameters.get("weight_decay") is not None and parameters["weight_decay"].default:
        options = {"weight_decay": 0.0, **options}
    return optax.with_extra_args_support(make(**{next(iter(parameters)): rate}, **options))


def decays(mask: bool) -> list[str]:
    """Optimisers with a weight decay of their own, with or without a mask."""
    found = []
    for name in OPTIMIZERS:
        parameters = set(inspect.signature(getattr(optax, name, None) or getattr(optax.contrib, name)).parameters)
        if "weight_decay" in parameters and bool({"mask", "weight_decay_mask"} & parameters) == mask:
            found.append(name)
    return found


def objective(params):
    matrix, filter, bias = params["matrix"], params["filter"], params["bias"]
    return jnp.sum((matrix - 1) ** 2) / 2 + jnp.sum(jnp.cosh(bias)) / 10 + jnp.sum(filter**4) / 10


GRADIENT = jax.grad(objective)


def steps(transformation: Any, rates: Sequence[float], gradient_of: Callable = GRADIENT) -> Any:
    """Parameters after one step of each rate, multiplied by it as in `Stepper`."""
    params: Any = PARAMS
    state = transformation.init(PARAMS)
    for rate in rates:
        gradient = gradient_of(params)
        seen = {"value": objective(params), "grad": gradient, "value_fn": objective}
        if isinstance(transformation, TakesRate):
            updates, state = transformation.update(gradient, state, params, rate=rate, **seen)
        else:
            transformation = optax.with_extra_args_support(transformation)
            updates, state = transformation.update(gradient, state, params, **seen)
            updates = jax.tree.map(lambda u, r=rate: r * u, updates)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "lbfgs"])
def test_every_optimiser_is_that_of_its_rate_and_can_be_saved(name):
    """Steps of rate 0.1, then 0.02, are those of optax's optimisers of these rates; L-BFGS finds its own."""
    # The rate of rprop is that of its first step: later ones are multiples of it.
    rates = (0.1, 0.1, 0.1) if name == "rprop" else (0.1, 0.1, 0.02, 0.02)
    ours = optimizer(name, momentum=0.0)
    with jax.numpy_dtype_promotion("standard"):
        # Saved as plain arrays.
        assert all(np.asarray(leaf).dtype.kind in "biuf" for leaf in jax.tree.leaves(ours.init(PARAMS)))
        got, state = steps(ours, rates), made(name, rates[0]).init(PARAMS)
        params: Any = PARAMS
        for rate in rates:
            gradient = jax.grad(objective)(params)
            seen = {"value": objective(params), "grad": gradient, "obj_fn": objective}
            updates, state = made(name, rate).update(gradient, state, params, **seen)
            params = optax.apply_updates(params, updates)
    for one, two in zip(jax.tree.leaves(got), jax.tree.leaves(params), strict=True):
        # Where the rate is multiplied differs: rounding.
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ["adamw", "fromage", "muon", "polyak_sgd", "schedule_free_sgd", "sophia"])
def test_steppers_of_a_rate(name):
    """Rate 0.1 of the stepper is optax's optimiser of rate 0.1, within one compiled step for all rates."""
    net = mlp((3,), 2, activation="linear", param_dtype=jnp.float64)
    variables = net.init(jax.random.key(0), X)
    theirs = made(name, 0.1)

    def update(updates, state, params=None, *, value=None, value_fn=None, **_):
        return theirs.update(updates, state, params, value=value, obj_fn=value_fn)

    one, two = Stepper(net, optimizer(name)), Stepper(net, optax.GradientTransformationExtraArgs(theirs.init, update))
    ours, reference = one.start(variables), two.start(variables)
    for _ in range(3):
        ours, _ = one(ours, jnp.asarray(X), jnp.asarray(LABELS), rate=0.1)
        reference, _ = two(reference, jnp.asarray(X), jnp.asarray(LABELS))
    for got, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        # Where the rate is multiplied differs: rounding.
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12)


def zero(params):
    return jax.tree.map(jnp.zeros_like, params)


@pytest.mark.parametrize("name", [*decays(mask=True), "adafactor", "madgrad", "novograd", "schedule_free_sgd"])
def test_without_a_gradient_nothing_moves(name):
    """No decay but that of the loss, unless it is asked for."""
    with jax.numpy_dtype_promotion("standard"):
        moved = steps(optimizer(name), (0.5, 0.5), gradient_of=zero)
    for part in PARAMS:
        # Those that average weights do so in rounding.
        np.testing.assert_allclose(moved[part], PARAMS[part], rtol=1e-14)


@pytest.mark.parametrize("name", decays(mask=True))
def test_decay_that_is_asked_for_leaves_biases_alone(name):
    with jax.numpy_dtype_promotion("standard"):
        moved = steps(optimizer(name, options=(("weight_decay", 0.25),)), (0.5, 0.5), gradient_of=zero)
    np.testing.assert_array_equal(moved["bias"], PARAMS["bias"])
    assert np.linalg.norm(moved["matrix"] - PARAMS["matrix"]) > 0
    if name in ("adamw", "adamaxw", "nadamw", "lion", "sophia", "adan", "galore"):
        for part in ("matrix", "filter"):
            # w ← (1 − η λ) w twice, in rounding.
            np.testing.assert_allclose(moved[part], (1 - 0.5 * 0.25) ** 2 * PARAMS[part], rtol=1e-6)


def test_decays_that_would_act_on_biases():
    for name, option in (*((name, "weight_decay") for name in decays(mask=False)), ("muon", "adam_weight_decay")):
        with pytest.raises(ValueError, match=rf"{option} \(option of {name}\): expected none, since it would act on"):
            optimizer(name, options=((option, 0.1),))
    with pytest.raises(ValueError, match=r"weight_decay \(option of adamw\): expected numbers zero or above"):
        optimizer("adamw", options=(("weight_decay", -0.1),))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_table_is_as_optax_has_it(name):
    entry = OPTIMIZERS[name]
    parameters = inspect.signature(entry.make(name)).parameters
    assert entry.rate == ("" if name == "lbfgs" else next(iter(parameters)))
    assert [entry.mask] == ([mask for mask in ("mask", "weight_decay_mask") if mask in parameters] or [""])
    assert bool(entry.decay) == bool(entry.mask)
    assert not entry.decay or entry.decay in parameters
    assert entry.module == ("optax" if hasattr(optax, name) else "optax.contrib")
    made = optimizer(name)
    assert isinstance(made, TakesRate) == (not entry.linear)


def test_names_of_optimisers():
    assert {"sgd", "adam", "adamw", "lbfgs", "lion", "nadam", "fromage", "polyak_sgd", "muon", "prodigy"} <= set(
        OPTIMIZERS
    )
    with pytest.raises(ValueError, match="Did you mean 'adam'"):
        optimizer("adm")
    with pytest.raises(ValueError, match=r"option of adam: .*got 'momentum'"):
        optimizer("adam", options=(("momentum", 0.5),))
    with pytest.raises(ValueError, match=r"momentum: expected a number in \[0, 1\)"):
        optimizer("sgd", momentum=1.0)
    # The clock reads the setting of that name.
    for name in ("momentum", "nesterov"):
        with pytest.raises(ValueError, match=f"option of sgd: .*got '{name}'"):
            optimizer("sgd", options=((name, 0),))

    for name, why in (("noisy_sgd", "random key"), ("dpsgd", "every sample"), ("sam", "two other optimisers")):
        with pytest.raises(ValueError, match=f"optimizer: {name} is not offered: .*{why}"):
            TrainConfig(optimizer=name)
