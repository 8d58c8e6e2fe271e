"""Sums of gradients over all samples, batch by batch, which can be stopped and taken up again."""

import hashlib
import os
import time
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
from ntkcollapse.ntk._problem import Problem
from ntkcollapse.ntk.engines import Chunks, Engine
from ntkcollapse.ntk.engines._contract import EXACT
from ntkcollapse.ntk.engines._engine import Batch, Sums

_SECONDS_BETWEEN_SAVES = 60.0


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
    state = _Saved(checkpoint, lambda: _fingerprint(problem, x, signs, grouping, chunks, engine, output_pairs))
    placed, done = devices.everywhere(problem), []
    bar = tqdm(total=len(turns) * len(grouping), desc="class sums", unit="batch", disable=None, delay=1.0, leave=False)
    with bar:
        for turn, first in enumerate(turns):
            keep = min(chunks.outputs, K - first)
            like = eqx.filter_eval_shape(Sums.zeros, problem, chunks.outputs, C, q, output_pairs=output_pairs)
            start, sums, finished = state.load(turn, len(grouping), like, _like_totals(keep, C, q, output_pairs))
            bar.update(start)
            if finished is not None:
                done.append(finished)
                continue
            if sums is None:
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
                    state.save(turn, i + 1, sums, devices)
            done.append(devices.fetch(_totals(sums, keep)))
            check_finite("gradients of f", done[-1].squares)
            state.save(turn, len(grouping), done[-1], devices, at_once=True)
    state.remove()
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


class _Saved:
    """Partial sums in a folder: one file a turn of outputs, written to one side and moved into place.

    All processes write the same numbers, each under a name of its own until the file is whole.
    """

    def __init__(self, folder: str | Path | None, fingerprint):
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.fingerprint = fingerprint()
        self.last = time.monotonic()

    def load(self, turn: int, batches: int, sums: Any, totals: Totals):
        """(batches done, partial sums or None, totals or None)."""
        path = self._path(turn)
        if path is None or not path.exists():
            return 0, None, None
        with np.load(path) as saved:
            if str(saved["fingerprint"]) != self.fingerprint:
                raise ValueError(
                    f"checkpoint: {path} holds partial sums of another computation (other parameters, samples or "
                    "settings); give another folder, or remove it."
                )
            done = int(saved["done"])
            arrays = [saved[f"array{i}"] for i in range(len(saved.files) - 2)]
        if done == batches:
            return done, None, jax.tree.unflatten(jax.tree.structure(totals), arrays)
        return done, jax.tree.unflatten(jax.tree.structure(sums), [jnp.asarray(a) for a in arrays]), None

    def save(self, turn: int, done: int, state: Any, devices: Devices, *, at_once: bool = False) -> None:
        path = self._path(turn)
        if path is None or not (at_once or time.monotonic() - self.last > _SECONDS_BETWEEN_SAVES):
            return
        arrays = {f"array{i}": leaf for i, leaf in enumerate(jax.tree.leaves(devices.fetch(state)))}
        beside = path.with_suffix(f".part{jax.process_index()}")
        with open(beside, "wb") as file:
            np.savez(file, fingerprint=self.fingerprint, done=done, **arrays)
        os.replace(beside, path)
        self.last = time.monotonic()

    def remove(self) -> None:
        """The files are of no use once all is summed."""
        if self.folder is not None:
            for path in self.folder.glob("sums*.npz"):
                path.unlink(missing_ok=True)

    def _path(self, turn: int) -> Path | None:
        return None if self.folder is None else self.folder / f"sums{turn:04d}.npz"


def _fingerprint(problem: Problem, x, signs, grouping: Grouping, chunks: Chunks, engine: Engine, output_pairs) -> str:
    """A digest of all numbers and settings that the sums depend on, but for the code of f."""
    digest = hashlib.sha256()
    for leaf in [*jax.tree.leaves(eqx.filter(problem, eqx.is_array)), x, signs, *grouping]:
        array = np.ascontiguousarray(np.asarray(leaf))
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(array.data if array.size else b"")
    digest.update(f"{chunks}{engine.name}{output_pairs}".encode())
    return digest.hexdigest()
