"""Sums of gradients over all samples, batch by batch, which can be stopped and taken up again."""

from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from ntkcollapse._checks import check_finite
from ntkcollapse._platforms import constant
from ntkcollapse._types import AnyArray
from ntkcollapse.classes import Classes
from ntkcollapse.ntk._devices import Devices
from ntkcollapse.ntk._grouping import Grouping
from ntkcollapse.ntk._partial import PartialResults, fingerprint
from ntkcollapse.ntk._problem import Problem
from ntkcollapse.ntk.engines import Chunks, Engine
from ntkcollapse.ntk.engines._engine import Batch, Sums

# Numbers of the sums that stand in double precision at a time.
_PIECE = 2**20


class OutputTotals(NamedTuple):
    """Sums for each pair of outputs, of gradients g_i and their sums S_c over the m_c samples of a class.

    scatter: Σ_i ⟨g_i^k − ḡ_c^k, g_i^s − ḡ_c^s⟩; of_classes: ⟨S_c^k, S_c^s⟩; everything: ⟨Σ_c S_c^k, Σ_c S_c^s⟩.
    """

    scatter: Float[AnyArray, "K K"]
    of_classes: Float[AnyArray, "C K K"]
    everything: Float[AnyArray, "K K"]


class Totals(NamedTuple):
    """What the sums leave behind, for all K outputs; W runs over classes, then probes.

    scatter: Σ_{i of class c} ‖g_i^k − ḡ_c^k‖²; gram: Wᵀ Θ_kk W; outputs: None where they were taken in turns.
    """

    scatter: Float[AnyArray, "K C"]
    gram: Float[AnyArray, "K W W"]
    outputs: OutputTotals | None


def stream(
    problem: Problem,
    x: Any,
    signs: np.ndarray,
    grouping: Grouping,
    chunks: Chunks,
    engine: Engine,
    classes: Classes,
    *,
    output_pairs: bool,
    checkpoint: str | Path | None,
    devices: Devices,
) -> Totals:
    """Totals over all samples, in double precision; `grouping` must share evenly among the devices."""
    C, K, q = classes.num_classes, problem.num_outputs, signs.shape[1]
    output_pairs = output_pairs and chunks.outputs >= K
    turns = range(0, K, chunks.outputs)
    # The last of them tells the arrays of `Sums` from those of earlier versions.
    settings = (chunks, engine.name, output_pairs, "centred")
    saved = PartialResults(checkpoint, lambda: fingerprint(problem, (x, signs, *grouping), settings))
    placed, done = devices.everywhere(problem), []
    filled = grouping.group_class[grouping.mask.any(1)]
    split = len(np.unique(filled)) < len(filled)
    bar = tqdm(total=len(turns) * len(grouping), desc="class sums", unit="batch", disable=None, delay=1.0, leave=False)
    with bar:
        for turn, first in enumerate(turns):
            keep = min(chunks.outputs, K - first)
            like = eqx.filter_eval_shape(Sums.zeros, problem, chunks.outputs, C, q, output_pairs=output_pairs)
            start, arrays = saved.load(f"sums{turn}")
            bar.update(start)
            if start == len(grouping):
                done.append(jax.tree.unflatten(jax.tree.structure(_like_totals(keep, C, q, output_pairs)), arrays))
                continue
            if start:
                sums = jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(a) for a in arrays])
            else:
                sums = Sums.zeros(problem, chunks.outputs, C, q, output_pairs=output_pairs)
            sums = devices.everywhere(sums)
            for i, (members, mask, group_class) in enumerate(grouping.batches(start), start):
                batch = Batch(
                    devices.place(x[members], spread=engine.spreads),
                    devices.everywhere(jnp.asarray(group_class)),
                    devices.place(mask.astype(problem.dtype), spread=engine.spreads),
                    devices.place(signs[members].astype(problem.dtype), spread=engine.spreads),
                    split,
                )
                sums = engine.add(placed, sums, batch, devices.everywhere(jnp.asarray(first)))
                # What a batch needs is given back before the next one asks for as much; elsewhere than on a CPU only
                # its samples lie in wait.
                if (i - start) % (constant("ahead") + 1) == 0:
                    jax.block_until_ready(sums)
                if i == start:
                    check_finite("gradients of f", devices.fetch(sums.scatter))
                bar.update()
                if i + 1 < len(grouping):
                    saved.save(f"sums{turn}", i + 1, lambda sums=sums: jax.tree.leaves(devices.fetch(sums)))
            done.append(_totals(devices.fetch(sums), keep))
            del sums
            check_finite("gradients of f", (done[-1].scatter, done[-1].gram))
            saved.save(f"sums{turn}", len(grouping), lambda: jax.tree.leaves(done[-1]), at_once=True)
    saved.remove(*(f"sums{turn}" for turn in range(len(turns))))
    scatter, gram = (np.concatenate([np.asarray(part[i], float) for part in done]) for i in (0, 1))
    outputs = done[0].outputs
    return Totals(scatter, gram, None if outputs is None else OutputTotals(*(np.asarray(v, float) for v in outputs)))


def from_kernel(theta: Float[AnyArray, "N N K ..."], membership: np.ndarray, signs: np.ndarray) -> Totals:
    """The same from the kernel itself, full or diagonal in the outputs, with membership in classes (N, C).

    Scatter is a difference of entries here, so that it is only as exact as they are: what single precision leaves of
    it where the samples of a class have nearly the same gradients is rounding.
    """
    theta, W = np.asarray(theta, float), np.concatenate([membership, signs], axis=1)
    sizes, C = membership.sum(0), membership.shape[1]
    outputs = None
    if theta.ndim == 4:
        of_classes = np.einsum("ic,ijks,jc->cks", membership, theta, membership, optimize=True)
        of_means = np.einsum("cks,c->ks", of_classes, 1 / sizes)
        outputs = OutputTotals(np.einsum("iiks->ks", theta) - of_means, of_classes, np.einsum("ijks->ks", theta))
        theta = np.diagonal(theta, axis1=2, axis2=3)
    gram = np.einsum("ia,ijk,jb->kab", W, theta, W, optimize=True)
    squares = np.einsum("iik,ic->kc", theta, membership)
    return Totals(squares - np.diagonal(gram, axis1=1, axis2=2)[:, :C] / sizes, gram, outputs)


def _totals(sums: Sums, keep: int) -> Totals:
    """Inner products of the first `keep` outputs' sums, in double precision on the host, piece by piece."""
    (C, k), W = sums.scatter.shape[:2], sums.gradients[0].shape[0]
    gram, of_classes, everything = np.zeros((k, W, W)), np.zeros((C, k, k)), np.zeros((k, k))
    for leaf in sums.gradients:
        size = max(1, _PIECE // (W * k))
        for start in range(0, leaf.shape[2], size):
            # (k, W, size)
            g = np.asarray(leaf[:, :, start : start + size], float).swapaxes(0, 1)
            gram += g @ g.swapaxes(1, 2)
            if sums.output_pairs:
                by_class, total = g[:, :C].swapaxes(0, 1), g[:, :C].sum(1)
                of_classes += by_class @ by_class.swapaxes(1, 2)
                everything += total @ total.T
    scatter = np.asarray(sums.scatter, float)
    if not sums.output_pairs:
        return Totals(scatter.T[:keep], gram[:keep], None)
    own = np.diagonal(scatter, axis1=1, axis2=2)
    return Totals(own.T, gram, OutputTotals(scatter.sum(0), of_classes, everything))


def _like_totals(k: int, C: int, q: int, output_pairs: bool) -> Totals:
    """A tree of the same structure, to be filled from a file."""
    outputs = OutputTotals(np.zeros((k, k)), np.zeros((C, k, k)), np.zeros((k, k))) if output_pairs else None
    return Totals(np.zeros((k, C)), np.zeros((k, C + q, C + q)), outputs)
