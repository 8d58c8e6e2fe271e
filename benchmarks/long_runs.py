"""What a long run and many shapes cost in memory, mapped regions and open files: flat, or what grows and why.

    python benchmarks/long_runs.py [--steps 20000] [--calls 200]

A network of 6 units in training, measured at every step; then `simulate` with another number of features at each call,
as a search over sizes makes them, each of which is compiled. Read from /proc/self, so on Linux.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import ntkcollapse as nc
from ntkcollapse.commands import Table
from ntkcollapse.training import TrainConfig, train


def held() -> list[str]:
    """Resident memory in MiB, mapped regions, open files."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    maps = Path("/proc/self/maps").read_text().count("\n")
    return [f"{pages * os.sysconf('SC_PAGE_SIZE') / 2**20:.0f}", str(maps), str(len(os.listdir("/proc/self/fd")))]


def training(steps: int, out: str) -> list[list[str]]:
    """A row every twentieth of the run; the first after what is compiled once."""
    rows = []

    def note(step: int) -> None:
        if step in (100, steps) or step % (steps // 10) == 0:
            rows.append([str(step), *held()])

    config = TrainConfig(
        network="mlp",
        network_options=("widths=(6,)",),
        dataset="orthogonal",
        dataset_options=("classes=3", "dimension=20"),
        per_class=4,
        test_per_class=2,
        probe_per_class=0,
        epochs=steps,
        batch_size=0,
        learning_rate=0.01,
        measure=("train",),
        measure_every=1,
        checkpoint_seconds=5.0,
    )
    train(config, out, on_step=note)
    return rows


def simulations(calls: int) -> list[list[str]]:
    """A row every tenth of the calls."""
    classes, rows = nc.Classes.balanced(3, 4), []
    for call in range(1, calls + 1):
        n, generator = call + 1, np.random.default_rng(call)
        start = nc.LastLayer(H=generator.normal(size=(n, 12)), W=generator.normal(size=(3, n)), b=np.zeros(3))
        nc.simulate(start, (3.0, 2.0, 0.5), classes, np.linspace(0, 0.01, 3), observed=False)
        if call in (5, calls) or call % max(calls // 10, 1) == 0:
            rows.append([str(call), *held()])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--calls", type=int, default=200)
    flags = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    columns = ["RSS, MiB", "regions", "files"]
    if flags.steps:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as out:
            rows = training(flags.steps, out)
        print(Table(["measured step", *columns], rows))
        print(f"{time.perf_counter() - began:.0f} s\n")
    if flags.calls:
        began = time.perf_counter()
        print(Table(["simulate of a new shape", *columns], simulations(flags.calls)))
        print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
