"""Sums of gradients over all samples, batch by batch, which can be stopped and taken up again."""

from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from ntkcollapse._checks import check_finite
from ntkcollapse.classes import Classes
from ntkcollapse.ntk._devices import Devices
from ntkcollapse.ntk._grouping import Grouping
from ntkcollapse.ntk._partial import PartialResults, fingerprint
from ntkcollapse.ntk._problem import Problem
from ntkcollapse.ntk.engines import Chunks, Engine
from ntkcollapse.ntk.engines._contract import EXACT
from ntkcollapse.ntk.engines._engine import Batch, Sums


class OutputTotals(NamedTuple):
    """For each pair of outputs: Σ_i ⟨g_i^k, g_i^s⟩, Σ_c ⟨S_c^k, S_c^s⟩ and ⟨Σ_c S_c^k, Σ_c S_c^s⟩."""

    diagonal: Float[Array, "K K"]
    within: Float[Array, "K K"]
    everything: Float[Array, "K K"]


class Totals(NamedTuple):
    """What the sums leave behind, for all K outputs; W runs over classes, then probes.

    outputs is None where the outputs were taken in turns.
    """

    squares: Float[Array, "K C"]
    gram: Float[Array, "K W W"]
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
    """Totals over all samples; `grouping` must share evenly among the devices."""
    C, K, q = classes.num_classes, problem.num_outputs, signs.shape[1]
    output_pairs = output_pairs and chunks.outputs >= K
    turns = range(0, K, chunks.outputs)
    settings = (chunks, engine.name, output_pairs)
    saved = PartialResults(checkpoint, lambda: fingerprint(problem, (x, signs, *grouping), settings))
    placed, done = devices.everywhere(problem), []
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
                    devices.split(x[members]),
                    devices.everywhere(jnp.asarray(group_class)),
                    devices.split(mask.astype(problem.dtype)),
                    devices.split(signs[members].astype(problem.dtype)),
                )
                sums = engine.add(placed, sums, batch, devices.everywhere(jnp.asarray(first)))
                if i == start:
                    check_finite("gradients of f", devices.fetch(sums.squares))
                bar.update()
                if i + 1 < len(grouping):
                    saved.save(f"sums{turn}", i + 1, lambda sums=sums: jax.tree.leaves(devices.fetch(sums)))
            done.append(devices.fetch(_totals(sums, keep)))
            check_finite("gradients of f", (done[-1].squares, done[-1].gram))
            saved.save(f"sums{turn}", len(grouping), lambda: jax.tree.leaves(done[-1]), at_once=True)
    saved.remove(*(f"sums{turn}" for turn in range(len(turns))))
    squares, gram = (jnp.concatenate([part[i] for part in done]) for i in (0, 1))
    outputs = done[0].outputs
    return Totals(squares, gram, None if outputs is None else OutputTotals(*map(jnp.asarray, outputs)))


def from_kernel(theta: Float[Array, "N N K ..."], membership: np.ndarray, signs: np.ndarray) -> Totals:
    """The same from the kernel itself, full or diagonal in the outputs, with membership in classes (N, C)."""
    Z, z = jnp.asarray(membership, theta.dtype), jnp.asarray(signs, theta.dtype)
    W = jnp.concatenate([Z, z], axis=1)
    if theta.ndim == 3:
        squares = jnp.einsum("iik,ic->kc", theta, Z, precision=EXACT)
        return Totals(squares, jnp.einsum("ia,ijk,jb->kab", W, theta, W, precision=EXACT), None)
    outputs = OutputTotals(
        jnp.einsum("iiks->ks", theta),
        jnp.einsum("ic,ijks,jc->ks", Z, theta, Z, precision=EXACT),
        theta.sum((0, 1)),
    )
    diagonal = jnp.diagonal(theta, axis1=2, axis2=3)
    return from_kernel(diagonal, membership, signs)._replace(outputs=outputs)


@eqx.filter_jit
def _totals(sums: Sums, keep: int) -> Totals:
    def over_leaves(equation, gradients):
        return jnp.stack([jnp.einsum(equation, g, g, precision=EXACT) for g in gradients]).sum(0)

    gram = over_leaves("ckp,dkp->kcd", sums.gradients)
    squares = sums.squares.T[:keep]
    if sums.output_squares is None:
        return Totals(squares, gram[:keep], None)
    of_classes = [g[: sums.squares.shape[0]] for g in sums.gradients]
    outputs = OutputTotals(
        sums.output_squares.sum(0),
        over_leaves("ckp,csp->ks", of_classes),
        over_leaves("kp,sp->ks", [g.sum(0) for g in of_classes]),
    )
    return Totals(squares, gram[:keep], outputs)


def _like_totals(k: int, C: int, q: int, output_pairs: bool) -> Totals:
    """A tree of the same structure, to be filled from a file."""
    outputs = OutputTotals(*(np.zeros((k, k)),) * 3) if output_pairs else None  # pyright: ignore
    return Totals(np.zeros((k, C)), np.zeros((k, C + q, C + q)), outputs)  # pyright: ignore
