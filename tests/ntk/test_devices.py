"""The same numbers on eight devices, and in two processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntkcollapse.ntk import NTKOperator, block_statistics, empirical_ntk
from ntkcollapse.training import read_status
from tests.ntk.zoo import normal
from tests.processes import ended

SCRIPT = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
from tests.ntk.test_devices import measured
import numpy as np
port, process, out, folder = sys.argv[1:]
if port != "none":
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process), initialization_timeout=60)
    assert jax.process_count() == 2
assert len(jax.devices()) == 8, jax.devices()
from ntkcollapse.training import train
from tests.training.settings import small
config = small(batch_size=80, epochs=1, measure=("batch",))
run = train(config, folder + "-run" if port == "none" else folder + "/run")
np.savez(out, *measured(folder), run["batch_loss"], run.states.H[-1])
from tests.ntk.test_compilations import programs
with programs() as count:
    measured(folder)
    assert count() == 0, count()
"""


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


def start(devices: int, port: str, process: int, out: Path, folder: Path) -> subprocess.Popen:
    root = str(Path(__file__).parents[2])
    env = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": root,
    }
    command = [sys.executable, "-c", SCRIPT, port, str(process), str(out), str(folder)]
    return subprocess.Popen(command, env=env, cwd=root, stderr=subprocess.PIPE, text=True)


def test_eight_devices_and_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    outs = [tmp_path / f"{name}.npz" for name in ("devices", "first", "second")]
    folders = [tmp_path / "alone", tmp_path / "shared", tmp_path / "shared", tmp_path / "here"]
    running = [
        start(8, "none", 0, outs[0], folders[0]),
        start(4, port, 0, outs[1], folders[1]),
        start(4, port, 1, outs[2], folders[2]),
    ]
    with ended(*running):
        want, trained = measured(folders[3]), []
        for process, out in zip(running, outs, strict=True):
            _, error = process.communicate(timeout=300)
            assert process.returncode == 0, error[-3000:]
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
