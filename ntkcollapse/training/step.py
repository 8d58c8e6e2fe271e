"""One optimiser step: everything that training changes, in one compiled function."""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from ntkcollapse._checks import check_choice
from ntkcollapse.choices import COMPUTE_DTYPES
from ntkcollapse.networks import AbstractNetwork, Variables
from ntkcollapse.training.objectives import batch_loss
from ntkcollapse.training.optimizers import TakesRate


class TrainingState(NamedTuple):
    """What a step reads and writes."""

    step: Int[Array, ""]
    variables: Variables
    opt_state: PyTree


class StepRecord(NamedTuple):
    """Seen on the batch of a step, before the step: in training mode, at no further cost.

    `loss` is without the weight penalty, `gradient_norm` with it.
    """

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    gradient_norm: Float[Array, ""]


class Stepper(eqx.Module):
    """A network, an optimiser and a loss. `start` makes the state, calling the stepper moves it.

    Compiles once for each shape of batch. The state given is donated: it must not be used after the call. Optimisers
    that evaluate the loss again on the same batch (L-BFGS with its line search) get what they ask for.

    A step whose loss, gradient or update is not finite is not taken: the state stays the last good one, and its `step`
    does not count up. Called with the number of each step, none after it is taken either, so that a look at `step` now
    and then shows where training stopped.

    Args:
        network: to train.
        optimizer: any optax transformation.
        loss: the name of one, see `batch_loss`.
        weight_decay: λ of the penalty λ/2 Σ ‖p‖² over tensors with more than one axis, in the loss.
        compute_dtype: "bfloat16" for mixed precision: the passes there and back in it, parameters, optimiser, batch
            statistics and loss in their own; "float32" for all in the parameters' own.

    What the network has fixed stays as it is, whatever the optimiser, and a budget of weights holds after every step.
    """

    network: AbstractNetwork
    optimizer: optax.GradientTransformationExtraArgs = eqx.field(static=True)
    loss: str = eqx.field(static=True)
    weight_decay: float = eqx.field(static=True)
    compute_dtype: str = eqx.field(static=True)

    def __init__(
        self,
        network: AbstractNetwork,
        optimizer: optax.GradientTransformation,
        loss: str = "squared",
        weight_decay: float = 0.0,
        compute_dtype: str = "float32",
    ):
        check_choice("compute_dtype", compute_dtype, COMPUTE_DTYPES)
        self.network = network.as_stepped()
        self.optimizer = optax.with_extra_args_support(optimizer)
        self.loss = loss
        self.weight_decay = weight_decay
        self.compute_dtype = compute_dtype

    def start(self, variables: Variables) -> TrainingState:
        """The state before the first step."""
        with jax.numpy_dtype_promotion("standard"):
            opt_state = self.optimizer.init(variables.params)
        # Copies: the first step donates its state, some optimisers start with one array in two places, and the
        # caller's own variables stay valid. Naming the dtype makes weak types strong, so that no step compiles twice.
        start = TrainingState(jnp.zeros((), jnp.int32), variables, opt_state)
        return jax.tree.map(lambda leaf: jnp.array(leaf, dtype=jnp.asarray(leaf).dtype), start)

    def __call__(
        self,
        state: TrainingState,
        inputs: Float[Array, "N *shape"],
        labels: Int[Array, " N"],
        rows: Int[Array, " B"] | Int[np.ndarray, " B"] | None = None,
        rate: float = 1.0,
        step: int | None = None,
    ) -> tuple[TrainingState, StepRecord]:
        """The state after one step on these samples, or on those rows of them that are named.

        The update is multiplied by `rate`: with an optimiser of learning rate 1, that is the learning rate, and runs
        that differ in it share one compiled step. A `TakesRate` is given it instead.

        Where `step` says which one this is, a state that has not come so far, since an earlier step was not finite,
        stays as it is: steps can then be queued without a look at each.
        """
        return _advance((self, inputs, labels, rows, float(rate), step), state)

    def several(
        self,
        state: TrainingState,
        inputs: Float[Array, "N *shape"],
        labels: Int[Array, " N"],
        rows: Int[Array, "S B"] | Int[np.ndarray, "S B"] | None,
        rates: Float[np.ndarray, " S"],
        step: int,
        count: int,
    ) -> tuple[TrainingState, StepRecord]:
        """The state after the first `count` of S steps from `step` on, and the record of the last, by one program.

        It is compiled once for each S, whatever `count` is: what suits accelerators, where starting a program takes
        about as long as a small step.
        """
        dtype = jax.tree.leaves(state.variables.params)[0].dtype
        return _advance_several((self, inputs, labels, rows, jnp.asarray(rates, dtype), step, count), state)


@partial(jax.jit, donate_argnums=1)
def _advance(kept: tuple, state: TrainingState) -> tuple[TrainingState, StepRecord]:
    return _moved(kept, state)


@partial(jax.jit, donate_argnums=1)
def _advance_several(kept: tuple, state: TrainingState) -> tuple[TrainingState, StepRecord]:
    stepper, inputs, labels, rows, rates, step, count = kept

    def one(i, carry):
        here = None if rows is None else rows[i]
        return _moved((stepper, inputs, labels, here, rates[i], (step + i).astype(state.step.dtype)), carry[0])

    like = jax.eval_shape(lambda state: one(jnp.zeros((), jnp.int32), (state, None)), state)[1]
    none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return jax.lax.fori_loop(jnp.zeros_like(count), count, one, (state, none))


def _moved(kept: tuple, state: TrainingState) -> tuple[TrainingState, StepRecord]:
    stepper, inputs, labels, rows, rate, step = kept
    if rows is not None:
        inputs, labels = inputs[rows], labels[rows]
    network, params = stepper.network, state.variables.params
    targets = jax.nn.one_hot(labels, network.num_classes, dtype=jax.tree.leaves(params)[0].dtype)

    def objective(params):
        params = network.held(params)
        variables = Variables(params, state.variables.batch_stats)
        if stepper.compute_dtype == "bfloat16":
            outputs, batch_stats = _half_precision_outputs(network, variables, inputs)
        else:
            outputs, batch_stats = network.training_outputs(variables, inputs)
        loss = batch_loss(stepper.loss, outputs, targets)
        value = loss + penalty(params, stepper.weight_decay) if stepper.weight_decay else loss
        return value, (loss, outputs, batch_stats)

    (value, (loss, outputs, batch_stats)), gradient = jax.value_and_grad(objective, has_aux=True)(params)
    # Some of optax's optimisers keep scalars in the default precision beside float32 parameters.
    with jax.numpy_dtype_promotion("standard"):
        seen = {"value": value, "grad": gradient, "value_fn": lambda p: objective(p)[0]}
        if isinstance(stepper.optimizer, TakesRate):
            updates, opt_state = stepper.optimizer.update(gradient, state.opt_state, params, rate=rate, **seen)
        else:
            updates, opt_state = stepper.optimizer.update(gradient, state.opt_state, params, **seen)
            updates = jax.tree.map(lambda u: u * jnp.asarray(rate, u.dtype), updates)
        # An optimiser's own decay would move what is fixed.
        moves = network.trained(params)
        updates = jax.tree.map(lambda u, moves: u if moves else jnp.zeros_like(u), updates, moves)
        params = network.within_budget(optax.apply_updates(params, updates))
        finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(updates))
    gradient_norm = optax.tree.norm(gradient)
    moved = TrainingState(state.step + 1, Variables(params, batch_stats), opt_state)
    hits = jnp.argmax(outputs, axis=1).astype(labels.dtype) == labels
    record = StepRecord(loss, jnp.mean(hits.astype(loss.dtype)), gradient_norm)
    taken = finite if step is None else finite & (state.step == step)
    return _where(taken, moved, state), record


def _half_precision_outputs(network: AbstractNetwork, variables: Variables, inputs) -> tuple[Array, PyTree]:
    """`training_outputs` by passes in bfloat16, from and to the precision of the variables."""

    def cast(x, dtype):
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    params = jax.tree.map(lambda p: cast(p, jnp.bfloat16), variables.params)
    # Batch statistics stay as they are: averages in bfloat16 would not move by less than a hundredth.
    with jax.numpy_dtype_promotion("standard"):
        outputs, moved = network.training_outputs(Variables(params, variables.batch_stats), cast(inputs, jnp.bfloat16))
    moved = jax.tree.map(lambda new, old: cast(new, old.dtype), moved, variables.batch_stats)
    return outputs.astype(jax.tree.leaves(variables.params)[0].dtype), moved


def penalty(params: PyTree, weight_decay: float) -> Float[Array, ""]:
    """λ/2 Σ ‖p‖² over tensors with more than one axis: weights, but no biases and no scales or shifts."""
    squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    return weight_decay / 2 * jnp.sum(jnp.stack(squares))


def _where(condition: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)
