"""A network at one step of a run, as measurements see it."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
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
from ntkcollapse.networks import AbstractNetwork, Variables
from ntkcollapse.training.step import StepRecord

Measurement = Callable[["Moment"], Mapping[str, Any]]

# So many samples in the probe, and the N × N kernel is made: one pass for its means, its alignment, and itself.
DENSE = 1000
# Norm of all parameters beyond which a run has diverged.
_LARGEST = 1e15
_norm = jax.jit(optax.tree.norm)


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
        weight_decay: λ of the penalty λ/2 ‖p‖² over weights beside the training loss.
    """

    def __init__(
        self,
        network: AbstractNetwork,
        variables: Variables,
        probe: Dataset,
        splits: Splits,
        *,
        loss: str,
        step: int,
        record: StepRecord | None,
        engine: str = "layerwise",
        with_kernel: bool = True,
        weight_decay: float = 0.0,
    ):
        self.network, self.variables, self.probe, self.splits = network, variables, probe, splits
        self.loss, self.step, self.record, self.engine, self.with_kernel = loss, step, record, engine, with_kernel
        self.weight_decay = weight_decay

    @cached_property
    def features(self) -> Float[Array, "N n"]:
        """h(x) on the probe, one row a sample, in the network's precision."""
        return features_of(self.network, self.variables, self.probe.inputs)

    @property
    def is_finite(self) -> bool:
        """Whether there is anything to measure: parameters can be finite and what follows from them not."""
        size = float(_norm(self.variables.params))
        # Also where it is not NaN; squares of such numbers overflow in single precision.
        return size <= _LARGEST and bool(np.isfinite(np.asarray(self.features)).all())

    @cached_property
    def last_layer(self) -> LastLayer:
        """(H, W, b) on the probe, in float64 where jax has it switched on."""
        probe = self.probe
        state, _ = self.network.last_layer(self.variables, probe.inputs, probe.labels, features=self.features)
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
        between = sums[~np.eye(len(sizes), dtype=bool)].sum()
        return cls(*classes.block_means(diagonal.sum(), np.trace(sums) - diagonal.sum(), between), pairs, K)

    def block(self) -> BlockKernel:
        """Gives the block kernel of its three numbers.

        Raises:
            ValueError: λ_single ≤ 0, as a network has whose features no longer depend on the sample.
        """
        with warnings.catch_warnings():
            # A measured kernel may violate the order that the theorem assumes.
            warnings.simplefilter("ignore", UserWarning)
            return BlockKernel(self.diagonal, self.within, self.between)


@eqx.filter_jit
def features_of(network: AbstractNetwork, variables: Variables, x):
    """h(x), (N, n), in evaluation mode."""
    return network.features(variables.params, x, variables.batch_stats)


def features_in_chunks(moment: Moment, part: Dataset, batch_size: int = 500) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Features and labels of a set, rows, so many samples at once."""
    for start in range(0, len(part.inputs), batch_size):
        rows = slice(start, start + batch_size)
        yield np.asarray(features_of(moment.network, moment.variables, part.inputs[rows])), part.labels[rows]


def features_of_all(moment: Moment, part: Dataset, batch_size: int = 500) -> Float[np.ndarray, "n N"]:
    """Features of a set in columns, in float64."""
    return np.concatenate([rows for rows, _ in features_in_chunks(moment, part, batch_size)]).T.astype(np.float64)


def first_of_each_class(part: Dataset, per_class: int) -> Dataset:
    """The first samples of each class; all of the part for 0."""
    return part.balanced(min(per_class, *part.classes.sizes)) if per_class else part


def _double(tree: Any) -> Any:
    """In jax's default precision: float64 where it is switched on."""
    return jax.tree.map(lambda x: x.astype(jnp.result_type(float)), tree)
