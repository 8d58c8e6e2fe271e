"""How many programs a first call compiles: latency creeps back one small program at a time."""

from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse.classes import Classes
from ntkcollapse.ntk import block_statistics, empirical, empirical_ntk, matrix_alignment
from ntkcollapse.ntk.engines import Layerwise, layerwise
from tests.ntk.zoo import case, dense_ntk, normal
from tests.platforms import as_if

X, LABELS = normal(0, 20, 6), np.arange(20) % 2
PARAMS = {
    "w": jnp.asarray(normal(1, 6, 5)),
    "bias": jnp.asarray(normal(2, 5)),
    "v": jnp.asarray(normal(3, 5, 3)),
    "shift": jnp.asarray(normal(4, 3)),
}

_counts: list[int] = []


def _count(event: str, duration_secs: float, **_) -> None:
    del duration_secs
    if _counts and event == "/jax/core/compile/backend_compile_duration":
        _counts[-1] += 1


jax.monitoring.register_event_duration_secs_listener(_count)


@contextmanager
def programs():
    """The number of programs compiled (or read from the cache of compiled code) since here."""
    _counts.append(0)
    yield lambda: _counts[-1]
    _counts.pop()


def two_layers(p, x):
    return jnp.tanh(x @ p["w"] + p["bias"][None, :]) @ p["v"] + p["shift"][None, :]


def test_a_small_kernel_is_one_program(monkeypatch):
    monkeypatch.undo()
    jax.clear_caches()
    with programs() as count:
        empirical_ntk(two_layers, PARAMS, X)
        # The kernel, and two that read f and compute nothing, with what takes samples and zeros to the device.
        assert count() <= 5
    others = jax.tree.map(lambda v: 2 * v, PARAMS)
    with programs() as count:
        empirical_ntk(two_layers, others, X)
        assert count() == 0


def test_layers_take_a_program_each(monkeypatch):
    as_if(monkeypatch, few=0)
    jax.clear_caches()
    with programs() as count:
        empirical_ntk(two_layers, PARAMS, X, outputs="mean")
        # Those that read f, the passes, and one or two for each of two layers.
        assert count() <= 9
    with programs() as count:
        empirical_ntk(two_layers, PARAMS, X + 1, outputs="mean")
        assert count() == 0


def test_f_runs_once_for_each_of_its_shapes(monkeypatch):
    calls = []

    def f(p, x):
        calls.append(len(x))
        return two_layers(p, x)

    empirical_ntk(f, PARAMS, X, outputs="mean")
    block_statistics(f, PARAMS, X, LABELS)
    assert sorted(calls) == [1, 3]


def test_statistics_of_another_number_of_samples_are_the_same_programs():
    def statistics(m):
        x, labels = normal(m, 2 * m, 6), np.arange(2 * m) % 2
        block_statistics(two_layers, PARAMS, x, labels, memory=3.4e4)

    statistics(121)
    with programs() as count:
        # In nearly equal groups these would be of 14 samples and of 15.
        statistics(130)
        statistics(400)
        assert count() == 0


def test_alignment_is_one_program():
    theta = empirical_ntk(two_layers, PARAMS, X, outputs="mean")
    jax.clear_caches()
    with programs() as count:
        matrix_alignment(theta, Classes((10, 10)))
        # And what looks whether the kernel is symmetric, and for options of the compiler; operation by operation, 80.
        assert count() <= 14


def test_a_kernel_is_held_once():
    """JAX takes over the array that was filled on the host."""
    theta = np.asarray(empirical_ntk(two_layers, PARAMS, X, outputs="mean"))
    filled = []
    zeros = empirical._zeros

    def kept(*given):
        filled.append(zeros(*given))
        return filled[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(empirical, "_zeros", kept)
        again = empirical_ntk(two_layers, PARAMS, X, outputs="mean")
    np.testing.assert_array_equal(again, theta)
    assert again.unsafe_buffer_pointer() == filled[0].ctypes.data


@pytest.mark.parametrize("name", ["plain", "convolutions", "unusual", "recurrent"])
@pytest.mark.parametrize("outputs", ["full", "mean"])
def test_one_program_gives_the_same(name, outputs, monkeypatch):
    monkeypatch.undo()
    c, theta = case(name), dense_ntk(name)
    want = theta if outputs == "full" else np.einsum("ijkk->ij", theta) / theta.shape[2]
    whole, chunks = [], Layerwise.chunks

    def noted(*given):
        chosen = chunks(*given)
        whole.append(chosen.whole)
        return chosen

    monkeypatch.setattr(Layerwise, "chunks", noted)
    got = empirical_ntk(c.f, c.params, c.x, outputs=outputs)
    assert whole == [True]
    # Another order of summation in double precision.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())
    # Not where all layers at once do not fit.
    empirical_ntk(c.f, c.params, c.x, outputs=outputs, memory=3000)
    assert whole == [True, False]


@pytest.mark.parametrize("outputs", ["full", "mean"])
def test_blocks_from_the_diagonal_on(outputs, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(layerwise, "_TRIANGLE", 5)
    monkeypatch.setattr(layerwise, "_PANELS", 3)
    c, theta = case("plain"), dense_ntk("plain")
    want = theta if outputs == "full" else np.einsum("ijkk->ij", theta) / theta.shape[2]
    jax.clear_caches()
    got = empirical_ntk(c.f, c.params, c.x, outputs=outputs)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())
    # The other half is the same numbers.
    np.testing.assert_array_equal(got, jnp.swapaxes(jnp.swapaxes(got, 0, 1), -1, -2) if outputs == "full" else got.T)
