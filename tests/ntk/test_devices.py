"""The same numbers on eight devices, and in two processes."""

import os
import socket
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse.ntk import NTKOperator, block_statistics, empirical_ntk
from ntkcollapse.training import read_status, train
from tests.ntk.zoo import normal
from tests.processes import Fork
from tests.training.settings import small


def network(p, x):
    h = jax.lax.conv_general_dilated(x, p["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(h).mean((1, 2)) @ p["w"] + p["b"][None, :]


def measured(folder):
    """Kernels and statistics of a small convolutional network on 11 samples: eight devices share unevenly."""
    f = network
    params = {"conv": normal(0, 3, 3, 1, 4), "w": normal(1, 4, 3), "b": normal(2, 3)}
    x, labels = normal(3, 11, 5, 5, 1), np.arange(11) % 3
    theta = empirical_ntk(f, params, x)
    plain = empirical_ntk(f, params, x, engine="jacobian")
    sums = block_statistics(f, params, x, labels, engine="jacobian").output_pairs
    cross = empirical_ntk(f, params, x[:3], x, outputs="mean")
    estimate: dict[str, Any] = {"residual": "estimate", "key": jax.random.key(0)}
    stats = block_statistics(f, params, x, labels, **estimate, memory=6e4, checkpoint=folder)
    products = NTKOperator(f, params, x, outputs="mean", memory=5e4).matmat(normal(4, 11, 2))
    blocks = (stats.output_diagonal, stats.output_pairs, stats.residual)
    return [np.asarray(a) for a in (theta, plain, sums, cross, products, *blocks)]


def process(port: str | None, number: int, out: Path, folder: Path) -> None:
    """What one process of the test does, alone or as one of two."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    if port is not None:
        jax.distributed.initialize(f"127.0.0.1:{port}", 2, number, initialization_timeout=60)
        assert jax.process_count() == 2
    assert len(jax.devices()) == 8, jax.devices()
    config = small(batch_size=80, epochs=1, measure=("batch",))
    run = train(config, f"{folder}-run" if port is None else folder / "run")
    np.savez(out, *measured(folder), run["batch_loss"], run.states.H[-1])
    # Importing it makes arrays, before which processes must know of each other.
    from tests.ntk.test_compilations import programs

    with programs() as count:
        measured(folder)
        assert count() == 0, count()


def start(devices: int, *args: Any) -> Fork:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return Fork(process, *args, XLA_FLAGS=flags)


@pytest.mark.long
def test_eight_devices_and_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    outs = [tmp_path / f"{name}.npz" for name in ("devices", "first", "second")]
    folders = [tmp_path / "alone", tmp_path / "shared", tmp_path / "shared", tmp_path / "here"]
    with (
        start(8, None, 0, outs[0], folders[0]) as alone,
        start(4, port, 0, outs[1], folders[1]) as first,
        start(4, port, 1, outs[2], folders[2]) as second,
    ):
        want, trained = measured(folders[3]), []
        for running, out in zip((alone, first, second), outs, strict=True):
            assert running.end() == 0, running.said[-3000:]
            with np.load(out) as got:
                for name, value in zip(got.files[: len(want)], want, strict=True):
                    # Other orders of summation in float64.
                    np.testing.assert_allclose(got[name], value, rtol=1e-10, atol=1e-12)
                trained.append([got[name] for name in got.files[len(want) :]])
        # A run in single precision, its batches spread over all devices; the first process alone writes it.
        for losses, features in trained[1:]:
            np.testing.assert_allclose(losses, trained[0][0], rtol=1e-5)
            np.testing.assert_allclose(features, trained[0][1], rtol=1e-3, atol=1e-5)
        assert read_status(tmp_path / "shared" / "run")["outcome"] == "finished"
