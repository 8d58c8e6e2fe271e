"""Class-block statistics of the empirical NTK: exact, linear in the number of samples."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ntkcollapse._checks import check_choice, check_shape, is_traced
from ntkcollapse._precision import Precision, in_precision
from ntkcollapse._types import AnyArray
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes, class_order
from ntkcollapse.ntk._devices import Devices
from ntkcollapse.ntk._fastest import known, resolve
from ntkcollapse.ntk._grouping import group
from ntkcollapse.ntk._memory import budget
from ntkcollapse.ntk._problem import one_like, prepare
from ntkcollapse.ntk._samples import one_array
from ntkcollapse.ntk._spread import BlockMeans, Spread, from_matrix, from_probes
from ntkcollapse.ntk._streaming import Totals, from_kernel, stream
from ntkcollapse.ntk.empirical import empirical_ntk
from ntkcollapse.ntk.engines import Engine


class OutputBlocks(eqx.Module):
    """Mean entries of Θ_ks for each pair of outputs (K, K): on the diagonal, within classes (i ≠ j), between them."""

    diagonal: Float[AnyArray, "K K"]
    within: Float[AnyArray, "K K"]
    between: Float[AnyArray, "K K"]


class BlockStatistics(eqx.Module):
    """Means of the empirical NTK over the entries of class blocks.

    For output k, `output_diagonal[k, c]` is the mean of Θ_kk(x_i, x_i) over class c, and `output_pairs[k, c, d]` the
    mean of Θ_kk(x_i, x_j) over i ≠ j with i of class c and j of class d. The properties are means of these, each
    entry of the kernel with the same weight.

    The arrays are numpy's, in double precision: once classes have collapsed, the diagonal and the mean within classes
    differ by less than single precision resolves.

    output_blocks: means of Θ_ks for all pairs of outputs; None where the outputs had to be taken in turns.
    spread: what `residual` is made of; None where it was not asked for.
    """

    output_diagonal: Float[AnyArray, "K C"]
    output_pairs: Float[AnyArray, "K C C"]
    output_blocks: OutputBlocks | None
    spread: Spread | None
    classes: Classes

    @property
    def per_output(self) -> tuple[Float[AnyArray, " K"], Float[AnyArray, " K"], Float[AnyArray, " K"]]:
        """(diagonal, within, between) of Θ_kk for each output k."""
        return _three(self.output_diagonal, self.output_pairs, self.classes)

    @property
    def class_diagonal(self) -> Float[AnyArray, " C"]:
        """Mean diagonal entry of each class, mean over outputs."""
        return self.output_diagonal.mean(0)

    @property
    def class_pairs(self) -> Float[AnyArray, "C C"]:
        """Mean entry for each pair of classes (i ≠ j on the diagonal), mean over outputs."""
        return self.output_pairs.mean(0)

    @property
    def lambda_single(self) -> float | Array:
        """λ_single = diagonal − within of the output mean, exact in double precision where `kernel` has single."""
        return self._block_means().single

    @property
    def kernel(self) -> BlockKernel:
        """The three numbers (diagonal, within, between) of the output mean: κ of features, γ of outputs.

        A measured kernel may violate the order of the eigenvalues: no warning here, see `is_ordered`.

        Raises:
            ValueError: λ_single ≤ 0, or too small to be a difference in single precision where JAX has no other.
                With classes of equal size that means samples of one gradient in every class.
                With unequal ones it may be any kernel, since a class of m samples counts m times in the diagonal
                and m (m − 1) times within: `class_kernel`, with numbers of its own for each class, has no such limit.
        Warns:
            UserWarning: single precision leaves less than three digits of λ_single.
        """
        means = self._block_means()
        if not is_traced(means):
            self._check_single(means)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return BlockKernel(*means)

    def _check_single(self, means: BlockMeans) -> None:
        if float(means.single) <= 0:
            sizes = self.classes.sizes
            why = (
                "samples of one class have the same gradients"
                if self.classes.is_balanced
                else f"of classes of {min(sizes)} to {max(sizes)} samples, the large ones count for more within than "
                "on the diagonal, so that no three numbers of a positive kernel describe them all; use `class_kernel`, "
                "with numbers of its own for each class, or classes of one size"
            )
            raise ValueError(
                f"kernel: expected λ_single = diagonal − within above zero, got {float(means.single):.4g}: {why}."
            )
        dtype = np.dtype(jnp.result_type(float))
        step = float(np.spacing(np.abs(np.asarray(means.diagonal, dtype))))
        if float(means.single) < 1000 * step:
            message = (
                f"kernel: λ_single = {float(means.single):.4g} beside a diagonal of {float(means.diagonal):.4g}, of "
                f"which {dtype} resolves {step:.1g}; let JAX compute in double precision "
                "(jax.config.update('jax_enable_x64', True)), or read the statistics' own `lambda_single`."
            )
            # Rounded, it would be nothing or a whole step.
            if float(means.single) < step:
                raise ValueError(message)
            warnings.warn(message, stacklevel=3)

    @property
    def class_kernel(self) -> BlockKernel:
        """The general block kernel: a diagonal a class, a mean for each pair of classes."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return BlockKernel.from_class_pairs(self.class_diagonal, self.class_pairs)

    @property
    def is_ordered(self) -> bool:
        """Whether λ_global ≥ λ_class ≥ λ_single > 0, as the theorem assumes: diagonal > within ≥ between ≥ 0."""
        diagonal, within, between = map(float, self._block_means())
        return diagonal > within >= between >= 0

    @property
    def residual(self) -> Float[Array, ""]:
        """‖Θ̄ − B‖ / ‖Θ̄‖ (Frobenius), Θ̄ the output mean of Θ_kk and B the N × N matrix of its three block means.

        B, the `kernel` where there is one, is the closest matrix of block structure, so that this is zero where Θ̄ has
        it and below one.
        """
        return self._spread().value(Spread.residual)

    @property
    def residual_standard_error(self) -> Float[Array, ""]:
        """Of `residual` over the random probes; zero where it is exact."""
        return self._spread().standard_error(Spread.residual)

    def _block_means(self) -> BlockMeans:
        return BlockMeans(*(value.mean() for value in self.per_output))

    def _spread(self) -> Spread:
        if self.spread is None:
            raise ValueError(
                "residual: expected statistics with a residual, got none; ask for block_statistics(..., "
                'residual="exact") where N × N numbers fit, or residual="estimate" with a key.'
            )
        return self.spread

    @property
    def off_output(self) -> Float[Array, ""]:
        """Size of the components k ≠ s, zero by the theorem: ‖B_ks, k ≠ s‖ / ‖B_ks, all k, s‖ (Frobenius).

        B_ks is the block kernel of the means of Θ_ks. What varies inside a block is not in it; zero where all B_ks are.
        """
        if self.output_blocks is None:
            raise ValueError(
                "off_output: expected means for pairs of outputs, got none, since the sums of all outputs did not fit "
                "in memory together; give block_statistics a larger `memory`."
            )
        blocks = self.output_blocks
        values = (blocks.diagonal, blocks.within, blocks.between)
        largest = jnp.max(jnp.stack([jnp.abs(v).max() for v in values]))
        unit = jnp.where(largest > 0, largest, 1)
        squares = jnp.stack(
            [n * jnp.square(v / unit) for n, v in zip(self.classes.pair_counts, values, strict=True)]
        ).sum(0)
        # Those off the diagonal by themselves: one less the diagonal's share would leave rounding only.
        off = (squares * (1 - jnp.eye(len(squares), dtype=squares.dtype))).sum()
        return jnp.sqrt(off / jnp.where(largest > 0, squares.sum(), 1))


@in_precision
def block_statistics(
    f: Callable,
    params: PyTree,
    x: Any,
    labels: Any,
    *,
    engine: str | Engine = "layerwise",
    parameters: Any = None,
    in_axes: Any = 0,
    memory: int | float | None = None,
    output_pairs: bool = True,
    residual: Literal["none", "exact", "estimate"] = "none",
    probes: int = 16,
    key: PRNGKeyArray | None = None,
    checkpoint: str | Path | None = None,
    precision: Precision | None = None,
) -> BlockStatistics:
    r"""Exact class-block means of the empirical NTK, in time linear and memory flat in N.

    Means over pairs are inner products of class sums of gradients, and λ_single is their scatter about class means:

        Σ_{i∈c, j∈d} Θ_kk(x_i, x_j) = ⟨Σ_{i∈c} g_i^k, Σ_{j∈d} g_j^k⟩
        (mean over i = j) − (mean over i ≠ j) in class c = Σ_{i∈c} ‖g_i^k − ḡ_c^k‖² / (m_c − 1)

    so that no N × N array is ever made, and gradients that are alike to the last digits of single precision still have
    the λ_single that they have. Classes may differ in size.

    Args:
        f: (params, x) ↦ (N, K), in evaluation mode: outputs (γ) or last-layer features (κ).
        params: any pytree.
        x: samples, (N, ...), in any order: an array or a pytree of arrays.
        labels: integer class of each sample, (N,).
        engine, parameters, in_axes: as in `empirical_ntk`. "layerwise" and "jacobian" are linear in N, and "auto" is
            one of the two; the others make the whole kernel first, whose entries' rounding λ_single then has.
        memory: bytes for everything but x and params: three eighths for the C·P sums an output, two for one batch of
            samples, the rest for what the system and the compiled code take. Where not all K outputs fit, they are
            taken in turns.
        output_pairs: means of Θ_ks for k ≠ s too, where all outputs fit.
        residual: distance of the output-mean kernel from block structure. "exact" makes the N × N kernel; "estimate"
            adds `probes` random sums: exact on class means, unbiased in its squares on the rest, with a standard error.
        probes: random sign vectors for the estimate; the relative error of its random part falls as 1/probes.
        key: for the probes.
        checkpoint: a folder for partial sums, written every minute: a stopped run goes on from there when called
            again with the same arguments. Not needed once the call returns.
        precision: as in `empirical_ntk`.
    Raises:
        ValueError: as `empirical_ntk`; labels that do not fit x, a class with one sample, or traced arrays.
    References:
        Seleznova et al. (2023), Section 2.3: the block structure that these numbers measure.
    """
    check_choice("residual", residual, ("none", "exact", "estimate"))
    if is_traced(params, x, labels, eqx.filter(f, eqx.is_array)):
        raise ValueError(
            "block_statistics: expected a call outside of `jit`, `grad` and `vmap`, since its sums are made in double "
            "precision on the host; got traced arrays. Its passes are compiled anyway; give it numbers."
        )
    engine = known(engine)
    f, samples = one_array(f, {"x": x}, in_axes)
    x = samples["x"]
    order, classes = _classes(x, labels)
    problem = prepare(f, params, {"x": x}, parameters)
    engine = resolve(engine, problem, x, None, None, budget(memory))
    signs = np.zeros((len(order), 0))
    if residual == "estimate":
        signs = _probes(order, classes, probes, key)
    if engine.linear:
        devices = Devices()
        num_sums = classes.num_classes + signs.shape[1]
        chunks = engine.sum_chunks(problem, one_like(x), num_sums, budget(memory))
        grouping = group(order, classes, chunks.samples * devices.count, multiple_of=devices.count)
        totals = stream(
            problem,
            x,
            signs,
            grouping,
            chunks,
            engine,
            classes,
            output_pairs=output_pairs,
            checkpoint=checkpoint,
            devices=devices,
        )
    else:
        outputs = "full" if output_pairs else "diagonal"
        theta = empirical_ntk(
            f, params, x, outputs=outputs, engine=engine, parameters=parameters, memory=memory, checkpoint=checkpoint
        )
        totals = from_kernel(theta, np.eye(classes.num_classes)[np.asarray(labels)], signs)
    statistics = _from_totals(totals, classes)
    if residual == "none":
        return statistics
    if residual == "exact":
        x = np.asarray(x)[order]
        theta = empirical_ntk(
            f, params, x, outputs="mean", engine=engine, parameters=parameters, memory=memory, checkpoint=checkpoint
        )
        spread = from_matrix(theta, statistics._block_means(), classes)
    else:
        gram = jnp.asarray(totals.gram.mean(0))
        spread = from_probes(gram, jnp.asarray(signs.T @ signs), statistics._block_means(), classes)
    return eqx.tree_at(lambda s: s.spread, statistics, spread, is_leaf=lambda s: s is None)


def _classes(x, labels) -> tuple[np.ndarray, Classes]:
    """Sample indices class by class, and the classes."""
    order = class_order(labels)
    check_shape("labels", labels, (np.shape(x)[0],), "one label a sample of x")
    classes = Classes.from_labels(np.asarray(labels)[order])
    if min(classes.sizes) < 2:
        alone = classes.sizes.index(min(classes.sizes))
        raise ValueError(
            f"labels: expected at least two samples in every class, class {alone} has one, so there is no pair within "
            "it; add samples or drop that class."
        )
    return order, classes


def _probes(order, classes: Classes, probes: int, key) -> np.ndarray:
    """Random signs less their class means, (N, q) in the samples' own order."""
    if key is None:
        raise ValueError("key: expected a PRNG key for the random probes of the estimate, got None.")
    if probes < 3:
        raise ValueError(f"probes: expected at least 3, for a mean over pairs and its error; got {probes}.")
    z = np.asarray(jax.random.rademacher(key, (probes, classes.num_samples), dtype=float))
    z = np.asarray(classes.deviations(z)).T
    signs = np.empty_like(z)
    signs[order] = z
    return signs


def _from_totals(totals: Totals, classes: Classes) -> BlockStatistics:
    C = classes.num_classes
    gram, m = totals.gram[:, :C, :C], np.asarray(classes.sizes, dtype=float)
    pairs = gram / np.outer(m, m)
    # Of class sums with themselves: what the scatter adds to the mean over i = j, it takes from that over i ≠ j.
    own = np.diagonal(gram, axis1=1, axis2=2)
    diagonal = (own / m + totals.scatter) / m
    pairs[:, np.arange(C), np.arange(C)] = (own - totals.scatter * m / (m - 1)) / (m * m)
    blocks = None
    if totals.outputs is not None:
        scatter, of_classes, everything = totals.outputs
        within, of_means = of_classes.sum(0), np.einsum("cks,c->ks", of_classes, 1 / m)
        diagonal_sum = of_means + scatter
        blocks = OutputBlocks(*classes.block_means(diagonal_sum, within - diagonal_sum, everything - within))
    return BlockStatistics(diagonal, pairs, blocks, None, classes)


def _three(diagonal, pairs, classes: Classes):
    """Means over all entries: on the diagonal, of pairs within classes, of pairs between classes."""
    m = np.asarray(classes.sizes, dtype=float)
    between = np.outer(m, m) * (1 - np.eye(len(m)))
    numpy = jnp if is_traced(diagonal, pairs) else np
    d, w, b = (numpy.asarray(v / v.sum(), pairs.dtype) for v in (m, m * (m - 1), between))
    within = numpy.diagonal(pairs, axis1=-2, axis2=-1)
    return (diagonal * d[None]).sum(-1), (within * w[None]).sum(-1), (pairs * b[None]).sum((-2, -1))
