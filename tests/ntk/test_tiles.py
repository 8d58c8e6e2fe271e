"""Kernels in tiles: the same numbers however they are cut, and cuts of the least counted work."""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse._platforms import constant
from ntkcollapse.ntk import empirical_ntk
from ntkcollapse.ntk._problem import one_like, prepare
from ntkcollapse.ntk.engines import Chunks, Layerwise, kernel_shape, layerwise
from ntkcollapse.ntk.engines._factors import Layer
from ntkcollapse.ntk.engines._plan import plan_of
from ntkcollapse.ntk.engines._tiling import Counted, counted_work, tile_of, tiling
from tests.ntk.zoo import Case, normal


def network(p, x):
    h = jax.lax.conv_general_dilated(x, p["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(h * p["scale"]).sum((1, 2)) @ p["w"] + p["b"][None, :]


PARAMS = {"conv": normal(0, 2, 2, 1, 2), "w": normal(1, 2, 3), "b": normal(2, 3), "scale": np.asarray(0.7)}
X = normal(3, 5, 3, 3, 1)


@pytest.mark.parametrize(
    ("kept", "outputs", "k"), [("gradients", "mean", 2), ("factors", "diagonal", 2), ("grams", "full", 3)]
)
def test_one_side_is_kept_for_a_row_of_tiles(kept, outputs, k, monkeypatch):
    """Blocks of two samples, two of them in a row: in each turn of outputs a sample passes once for its own row, and
    once for each row before it.
    """
    jacobian = Case(network, jax.tree.map(jnp.asarray, PARAMS), X).jacobian()
    theta = np.einsum("ikp,jsp->ijks", jacobian, jacobian)
    want = {"full": theta, "diagonal": np.einsum("ijkk->ijk", theta), "mean": np.einsum("ijkk->ij", theta) / 3}[outputs]
    chunks = Chunks(samples=2, outputs=k, blocks=2, pieces=2, working=300)
    monkeypatch.setattr(Layerwise, "chunks", lambda *_: chunks)
    monkeypatch.setattr(layerwise, "way", lambda *_: kept)
    passed, there_and_back = [], layerwise._there_and_back
    monkeypatch.setattr(
        layerwise, "_there_and_back", lambda p, x, *rest: passed.append(len(x)) or there_and_back(p, x, *rest)
    )
    got = empirical_ntk(network, PARAMS, X, outputs=outputs)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13 * np.abs(want).max())
    # Blocks (0, 1) and their column 2, then (2): a piece at a time, the last sample twice.
    turns = -(-3 // k)
    assert passed == [1] * (turns * 2 * 4)
    passed.clear()
    others = empirical_ntk(network, PARAMS, X[:3], X, outputs=outputs)
    np.testing.assert_allclose(others, want[:3], rtol=0, atol=1e-13 * np.abs(want).max())
    assert passed == [1] * (turns * 2 * (2 + 3))


def test_work_is_counted():
    plan = plan_of(prepare(network, PARAMS, {"x": X}), one_like(X))
    # The convolution and the last layer; scale, tanh, sum over positions and bias make numbers.
    conv, last = 9 * 2 * 4, 2 * 3
    assert plan.forth == conv + last + constant("traffic") * (18 + 18 + 2 + 3)
    # Not again on the way back: what comes before the first parameter's result.
    assert plan.back == plan.forth - conv
    assert dict(plan.counted(prepare(network, PARAMS, {"x": X})).layers) == {
        Layer(1, 9, 4, 2, 9): 1,
        Layer(1, 1, 3, 3, 2): 1,
    }


def perceptron(p, x):
    return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]


IN_TILES = {
    # Kept as inputs and cotangents of which Grams are compared.
    "perceptron": (perceptron, {"a": normal(0, 32, 32), "b": normal(1, 32, 32), "c": normal(2, 32, 4)}, (600, 32), 1e6),
    # Kept as gradients, and the last layer's as inputs and cotangents.
    "convolution": (
        network,
        {"conv": normal(0, 3, 3, 2, 6), "w": normal(1, 6, 3), "b": normal(2, 3), "scale": np.asarray(0.7)},
        (60, 12, 12, 2),
        1e6,
    ),
}


@pytest.mark.parametrize("name", IN_TILES)
def test_what_xla_allocates_stays_within_the_memory(name, monkeypatch):
    """At every compiled step: arrays that are there, and by XLA's own count what the step takes beside them."""
    f, params, shape, memory = IN_TILES[name]
    params, x = jax.tree.map(jnp.asarray, params), normal(3, *shape)
    peaks, sizes, start = [], {}, 0

    def measured(step, donates):
        def call(*given):
            key = str(jax.tree.map(lambda v: np.shape(v) if hasattr(v, "shape") else repr(v), given))
            if key not in sizes:
                donate = "all-except-first" if donates else "none"
                jitted: Any = eqx.filter_jit(step.__wrapped__, donate=donate)
                sizes[key] = jitted.lower(*given).compile().compiled.memory_analysis()
            of = sizes[key]
            there = sum(array.nbytes for array in jax.live_arrays()) - start
            peaks.append(there + of.temp_size_in_bytes + of.output_size_in_bytes - of.alias_size_in_bytes)
            return step(*given)

        return call

    steps = ("_there_and_back", "_explicit_group", "_formed", "_contract_blocks", "_with_room", "_placed", "_mirrored")
    for each in steps:
        monkeypatch.setattr(
            layerwise, each, measured(getattr(layerwise, each), each in ("_contract_blocks", "_placed"))
        )
    start = sum(array.nbytes for array in jax.live_arrays())
    empirical_ntk(f, params, x, outputs="mean", memory=memory)
    assert len(peaks) > 10
    # Neither beyond the memory nor so little of it that time is lost.
    assert memory / 3 < max(peaks) <= memory


# ---- cuts, as arithmetic

NETWORKS = {
    "wide": Counted(
        ((Layer(1, 1, 785, 256, 784), 1), (Layer(1, 1, 257, 256, 256), 1)), 0, 300_000, 90_000, 15_500, 2_100, 4
    ),
    "narrow": Counted(((Layer(1, 1, 65, 64, 64), 3),), 0, 30_000, 20_000, 2_300, 520, 4),
    "convolutions": Counted(
        ((Layer(1, 784, 144, 16, 12_544), 6), (Layer(1, 196, 288, 32, 6_272), 6), (Layer(1, 49, 576, 64, 3_136), 6)),
        1_472,
        66_000_000,
        64_000_000,
        1_900_000,
        630_000,
        4,
    ),
    "recurrent": Counted(
        ((Layer(1, 28, 61, 64, 1_700), 1), (Layer(1, 28, 61, 32, 1_700), 1)), 96, 900_000, 800_000, 41_000, 11_500, 4
    ),
}


def former_samples(of: Counted, K: int, N: int, outputs: str, available: int) -> int:
    """Samples of a tile where both sides pass for each: their passes, gradients of one layer where these are formed,
    and the totals as they are and as they become.
    """
    k = K if outputs == "full" else 1
    formed = [layer.numbers for layer, _ in of.layers if layer.positions > 1]
    each = of.forward + k * (of.backward + max(formed, default=0) * of.item)
    numbers = 2 * of.item * (K * K if outputs == "full" else 1)
    return sum(2 * n * each + n * n * numbers <= available for n in range(1, N + 1))


def former_work(of: Counted, K: int, N: int, outputs: str, available: int) -> float:
    """Work where both sides of each tile pass, all that they hold at once: how kernels were cut at first."""
    samples = -(-N // -(-N // former_samples(of, K, N, outputs, available)))
    k = min(K, max(1, (available // (2 * samples) - of.forward) // of.backward))
    k = K if outputs == "full" else -(-K // -(-K // k))
    A, turns, pairs = -(-N // samples), -(-K // k), k * k if outputs == "full" else k
    work, traffic = 0.0, constant("traffic")
    for layer, count in of.layers:
        G, T, I, O, _ = layer
        grams = G * T * T * (I + pairs * O + traffic * (1 + (1 if outputs == "mean" else pairs)))
        formed = N**2 * G * I * O * pairs + A * A * samples * k * G * I * O * (T + traffic)
        work += count * min(N**2 * grams, formed)
    calls = A * (A + 1) * (1 + sum(count for _, count in of.layers))
    work += A * A * samples * (of.forth + k * of.back)
    return turns * (work + constant("call") * calls)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_cut_is_counted_slower_than_before(name):
    of = NETWORKS[name]
    for K, N, outputs, available in itertools.product((1, 10), (100, 3_000), ("full", "mean"), (10**7, 10**8)):
        if not 8 <= former_samples(of, K, N, outputs, available) < N:
            continue
        chunks = tiling(of, K, N, None, outputs, available)
        now = sum(counted_work(of, tile_of(chunks), chunks.blocks, K, N, None, outputs))
        assert now <= 1.1 * former_work(of, K, N, outputs, available), (K, N, outputs, available, chunks)


@pytest.mark.parametrize("name", NETWORKS)
def test_more_memory_is_never_more_work_and_what_is_kept_fits(name):
    of, works = NETWORKS[name], []
    for available in (10**7, 10**8, 10**9):
        chunks = tiling(of, 10, 2_000, None, "mean", available)
        works.append(sum(counted_work(of, tile_of(chunks), chunks.blocks, 10, 2_000, None, "mean")))
        rows = chunks.samples * chunks.blocks
        factors = sum(n * min(layer.factors(chunks.outputs), chunks.outputs * layer.numbers) for layer, n in of.layers)
        piece = -(-chunks.samples // chunks.pieces)
        bytes_ = rows * (factors + chunks.outputs * of.explicit) * of.item + piece * (
            of.forward + chunks.outputs * of.backward
        )
        bytes_ += np.prod(kernel_shape("mean", rows, chunks.samples, 1)) * of.item
        assert bytes_ <= available or chunks.samples == 1
    assert works == sorted(works, reverse=True)
