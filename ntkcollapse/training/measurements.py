"""What is measured of a network on the way: functions of a moment."""

import warnings
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ntkcollapse import ntk
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes
from ntkcollapse.data import Dataset, Splits
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.networks import Network, Variables
from ntkcollapse.observables import Observables, block_observables, observe
from ntkcollapse.training.evaluation import evaluate
from ntkcollapse.training.step import StepRecord

Measurement = Callable[["Moment"], Mapping[str, Any]]

# The names of those that look at the probe, and may look at the current batch beside it.
ON_PROBE = ("kappa", "gamma", "last-layer")
# So many samples in the probe, and the N × N kernel is made: one pass for its means, its alignment, and itself.
DENSE = 1000


class Moment:
    """A network at one step, and what has been computed of it so far: measurements share it.

    Args:
        network, variables: at this step, with the batch statistics to evaluate with.
        probe: the samples that last layer and kernels are measured on.
        splits: the whole training and test part.
        loss: the name of the training loss.
        step: optimiser steps taken.
        record: of the last step taken; None before the first.
        engine: of the empirical NTK.
        with_kernel: whether κ is measured; without it nothing is said of the invariant.
    """

    def __init__(
        self,
        network: Network,
        variables: Variables,
        probe: Dataset,
        splits: Splits,
        *,
        loss: str,
        step: int,
        record: StepRecord | None,
        engine: str = "layerwise",
        with_kernel: bool = True,
    ):
        self.network, self.variables, self.probe, self.splits = network, variables, probe, splits
        self.loss, self.step, self.record, self.engine, self.with_kernel = loss, step, record, engine, with_kernel

    @cached_property
    def last_layer(self) -> LastLayer:
        """(H, W, b) on the probe, in float64 where jax has it switched on."""
        state, _ = self.network.last_layer(self.variables, self.probe.inputs, self.probe.labels)
        return _double(state)

    @cached_property
    def kappa(self) -> "MeasuredKernel":
        """The feature kernel Θ^h on the probe, mean over features."""
        return self._kernel(0)

    @cached_property
    def gamma(self) -> "MeasuredKernel":
        """The output kernel Θ on the probe, mean over outputs."""
        return self._kernel(1)

    def _kernel(self, which: int) -> "MeasuredKernel":
        f = self.network.evaluation(self.variables.batch_stats)[which]
        params, x, classes = self.variables.params, self.probe.inputs, self.probe.classes
        if classes.num_samples <= DENSE:
            return MeasuredKernel.of_matrix(
                ntk.empirical_ntk(f, params, x, outputs="mean", engine=self.engine), classes
            )
        seen = ntk.block_statistics(f, params, x, self.probe.labels, engine=self.engine, output_pairs=False)
        diagonal, within, between = (float(v.mean()) for v in seen.per_output)
        return MeasuredKernel(diagonal, within, between, np.asarray(seen.class_pairs, float), None)


class MeasuredKernel(NamedTuple):
    """Exact block means of an empirical NTK, mean over outputs, and the kernel itself where it is small enough."""

    diagonal: float
    within: float
    between: float
    class_pairs: Float[np.ndarray, "C C"]
    matrix: Float[np.ndarray, "N N"] | None

    @classmethod
    def of_matrix(cls, matrix: Any, classes: Classes) -> "MeasuredKernel":
        """The means of a kernel that is at hand, samples in class order, in float64."""
        K = np.asarray(matrix, np.float64)
        Z, sizes = np.asarray(classes.Y, np.float64), np.asarray(classes.sizes, np.float64)
        sums, diagonal = Z @ K @ Z.T, Z @ np.diag(K)
        counts = np.outer(sizes, sizes) - np.diag(sizes)
        pairs = (sums - np.diag(diagonal)) / np.where(counts > 0, counts, np.nan)
        N, off = sizes.sum(), ~np.eye(len(sizes), dtype=bool)
        within = (np.trace(sums) - diagonal.sum()) / np.trace(counts) if np.trace(counts) else np.nan
        return cls(diagonal.sum() / N, within, sums[off].sum() / counts[off].sum(), pairs, K)

    def block(self) -> BlockKernel:
        """As the block kernel of its three numbers.

        Raises:
            ValueError: λ_single ≤ 0, as a network has whose features no longer depend on the sample.
        """
        with warnings.catch_warnings():
            # A measured kernel may violate the order that the theorem assumes.
            warnings.simplefilter("ignore", UserWarning)
            return BlockKernel(self.diagonal, self.within, self.between)


def last_layer(moment: Moment) -> Observables:
    """Everything `observe` says of the last layer on the probe; its `loss` is ½‖R‖² there.

    Where the measured κ has λ_single ≤ 0 the invariant is not defined, and what is said of it is NaN.
    """
    state, classes = moment.last_layer, moment.probe.classes
    if not moment.with_kernel:
        return _observe(state, classes, None)
    try:
        return _observe(state, classes, moment.kappa.block())
    except ValueError:
        if not np.isfinite(moment.kappa[:3]).all():
            raise
    seen = _observe(state, classes, None)
    names = jax.eval_shape(_observe, state, classes, BlockKernel(1.0, 0.0, 0.0)).keys()
    return {name: seen.get(name, jnp.asarray(jnp.nan)) for name in names if not name.startswith("kappa_")}


def kernel(name: str, moment: Moment) -> dict[str, Any]:
    """The three numbers of a kernel, its class-pair matrix, and its alignment with the labels.

    Alignment is that of the kernel itself where the probe has at most `DENSE` samples; beyond, that of its blocks, an
    upper bound, since what is spread within blocks adds to ‖K‖ alone.
    """
    seen: MeasuredKernel = getattr(moment, name)
    numbers = block_observables(seen[:3], name) | {f"{name}_class_pairs": seen.class_pairs}
    if seen.matrix is None:
        d, c, n = seen.diagonal, seen.within, seen.between
        sizes = np.asarray(moment.probe.classes.sizes, float)
        N, squares = sizes.sum(), (sizes**2).sum()
        norm = np.sqrt(N * d**2 + (squares - N) * c**2 + (N**2 - squares) * n**2)
        return numbers | {f"{name}_alignment": (N * d + (squares - N) * c) / (norm * np.sqrt(squares))}
    alignment = ntk.matrix_alignment(seen.matrix, moment.probe.classes)
    return numbers | {f"{name}_alignment": alignment.alignment, f"{name}_centred_alignment": alignment.centred}


def split(part: str, moment: Moment) -> dict[str, Any]:
    """Loss and accuracy on all of a part, in evaluation mode, on the scale of the training loss."""
    loss, accuracy = evaluate(moment.network, moment.variables, getattr(moment.splits, part), moment.loss)
    return {f"{part}_loss": loss, f"{part}_accuracy": accuracy}


def batch(moment: Moment) -> dict[str, Any]:
    """Loss, accuracy and gradient norm on the batch of the last step, before it, in training mode; NaN at the start."""
    record = moment.record or StepRecord(*(np.float32("nan"),) * 3)  # pyright: ignore[reportArgumentType]
    return {"batch_loss": record.loss, "batch_accuracy": record.accuracy, "gradient_norm": record.gradient_norm}


def parameters(moment: Moment) -> dict[str, Any]:
    """Norm of all parameters, and of all weights (tensors with more than one axis): what weight decay pulls on."""
    every, weights = _norms(moment.variables.params)
    return {"parameter_norm": every, "all_weights_norm": weights}


kappa = partial(kernel, "kappa")
gamma = partial(kernel, "gamma")
train_split = partial(split, "train")
test_split = partial(split, "test")


@jax.jit
def _norms(params: Any) -> tuple[Array, Array]:
    leaves = jax.tree.leaves(params)
    return optax.tree.norm(leaves), optax.tree.norm([leaf for leaf in leaves if leaf.ndim > 1])


def _double(tree: Any) -> Any:
    """In jax's default precision: float64 where it is switched on."""
    return jax.tree.map(lambda x: x.astype(jnp.result_type(float)), tree)


@eqx.filter_jit
def _observe(state: LastLayer, classes: Classes, kappa: BlockKernel | None) -> Observables:
    return observe(state, classes, kappa)
