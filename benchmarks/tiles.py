"""What do tiles cost, and does engine="auto" take the fastest engine?

    python benchmarks/tiles.py                both tables, some minutes
    python benchmarks/tiles.py tiles          kernels of so many samples that they do not fit, by memory
    python benchmarks/tiles.py auto           every engine on a dozen jobs, beside the one that counted work chooses
    python benchmarks/tiles.py long           a row of tiles of kernels that would take an hour, beside one tile's rate

Each row is a process of its own. Processor seconds, of all threads: the first call, compilation included, and the best
of the others. "added" is the peak of resident memory above that before the first call, of the compiler and of compiled
code too, which alone is 60 MB for a perceptron and 250 for ResNet20.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import latency
import numpy as np


def _cnn(name: str) -> latency.Job:
    return latency._network(name, 20)


JOBS: dict[str, Any] = {
    "ResNet20": latency.resnet20,
    "ResNet8": lambda: _cnn("resnet8"),
    "cnn": lambda: _cnn("cnn"),
    "transformer": latency.transformer,
    "784-256-256-10": latency.classifier,
    "64-64-64-1": latency.perceptron,
    "64-64-64-10": lambda: latency._perceptron(64, 64, 64, 10),
    "64-64-64-100": lambda: latency._perceptron(64, 64, 64, 100),
    "GRU": latency.gru,
}
# Job, N, outputs, megabytes.
TILES = [
    ("ResNet20", 96, "mean", 2000),
    ("ResNet20", 96, "mean", 512),
    ("ResNet20", 96, "mean", 100),
    ("ResNet20", 480, "mean", 512),
    ("784-256-256-10", 1000, "mean", 2000),
    ("784-256-256-10", 1000, "mean", 10),
    ("784-256-256-10", 300, "full", 10),
    ("64-64-64-10", 3000, "mean", 2000),
    ("64-64-64-10", 3000, "mean", 10),
    ("GRU", 400, "mean", 2000),
    ("GRU", 400, "mean", 20),
    ("GRU", 100, "full", 10),
]
# N and megabytes, of ResNet20 and the mean over its outputs; the first two have all in one tile.
LONG = [(96, 500), (480, 4000), (480, 512), (7200, 512), (7200, 1000), (7200, 2000), (7200, 4000)]
AUTO = [
    ("784-256-256-10", 20, "mean"),
    ("784-256-256-10", 60, "mean"),
    ("64-64-64-1", 20, "mean"),
    ("64-64-64-1", 300, "mean"),
    ("64-64-64-10", 50, "full"),
    ("64-64-64-100", 50, "mean"),
    ("64-64-64-100", 20, "full"),
    ("cnn", 20, "mean"),
    ("ResNet8", 20, "mean"),
    ("ResNet20", 20, "mean"),
    ("GRU", 40, "mean"),
    ("transformer", 20, "mean"),
]


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def one(name: str, N: int, outputs: Any, megabytes: float, engine: str) -> dict[str, Any]:
    """One kernel in this process: a first call and three more, one where they are long."""
    import jax

    from ntkcollapse import ntk

    f, params, x = JOBS[name]()
    x = np.random.default_rng(0).normal(size=(N, *x.shape[1:])).astype(np.float32)
    jax.block_until_ready(jax.jit(f)(params, x[:2]))
    before, peak, running = _resident(), [0.0], [True]

    def watch() -> None:
        while running:
            peak[0] = max(peak[0], _resident())
            time.sleep(0.005)

    threading.Thread(target=watch, daemon=True).start()
    memory, times, kernel = 1e6 * megabytes, [], None
    while len(times) < 2 or (len(times) < 5 and times[-1] < 1):
        began = time.process_time()
        kernel = np.asarray(ntk.empirical_ntk(f, params, x, outputs=outputs, engine=engine, memory=memory))
        times.append(time.process_time() - began)
    running.clear()
    assert kernel is not None
    return {"first": times[0], "again": min(times[1:]), "added": peak[0] - before, "sum": float(kernel.sum())}


class _Enough(Exception):
    """What was asked for has been measured."""


def row(N: int, megabytes: float) -> dict[str, Any]:
    """Seconds of one kernel of ResNet20, from the first row of tiles and two of its columns, for a turn of the outputs.

    Keeping a row's samples takes as long as there are blocks in it, a column that many times longer, and the row with
    itself as many times as it has pairs of blocks from the diagonal on.
    """
    import jax

    from ntkcollapse import ntk
    from ntkcollapse.ntk.engines import Layerwise

    f, params, x = JOBS["ResNet20"]()
    x = np.random.default_rng(0).normal(size=(N, *x.shape[1:])).astype(np.float32)
    found: dict[str, Any] = {}

    def timed(name: str, call: Any) -> Any:
        began = time.process_time()
        done = jax.block_until_ready(call())
        found[name] = min(found.get(name, np.inf), time.process_time() - began)
        return done

    class Timed(Layerwise):
        """Stops once it has kept a row and compared it with itself and with two others."""

        def chunks(self, problem, x, rows, columns, outputs, available):
            found["chunks"] = super().chunks(problem, x, rows, columns, outputs, available)
            found["turns"] = -(-problem.num_outputs // found["chunks"].outputs)
            return found["chunks"]

        def keep(self, problem, blocks, first, outputs, chunks):
            if first or found["columns"]:
                raise _Enough
            return timed("keeping", lambda: super(Timed, self).keep(problem, blocks, first, outputs, chunks))

        def against(self, problem, kept, x2, first, outputs, chunks):
            if found["columns"] == 2:
                raise _Enough
            found["columns"] += x2 is not None
            name = "own" if x2 is None else "column"
            return timed(name, lambda: super(Timed, self).against(problem, kept, x2, first, outputs, chunks))

    # The first call compiles; of the others the least.
    for _ in range(3):
        found["columns"] = 0
        with contextlib.suppress(_Enough):
            ntk.empirical_ntk(f, params, x, outputs="mean", engine=Timed(), memory=1e6 * megabytes)
    chunks = found["chunks"]
    size, number = chunks.block(N, 1)
    b, starts = min(chunks.blocks, number), range(0, number, chunks.blocks)
    rows = [min(chunks.blocks, number - start) for start in starts]
    seconds = found["turns"] * sum(
        found["keeping"] * r / b
        + found["own"] * r * (r + 1) / (b * (b + 1))
        + found.get("column", 0.0) * r / b * (number - start - r)
        for start, r in zip(starts, rows, strict=True)
    )
    return {"seconds": seconds, "kept": b * size}


def _in_a_process(*given: Any) -> Any:
    command = [sys.executable, __file__, "--one", json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{given}: failed\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def tiles() -> None:
    """Each job by memory."""
    print("| job | N | outputs | MB | first call, s | second, s | added MB |\n|---|---|---|---|---|---|---|")
    for name, N, outputs, megabytes in TILES:
        got = _in_a_process(name, N, outputs, megabytes, "layerwise")
        shown = f"{got['first']:.3g} | {got['again']:.3g} | {got['added']:.0f}"
        print(f"| {name} | {N} | {outputs} | {megabytes} | {shown} |", flush=True)


def auto() -> None:
    """Each job by engine."""
    print("| job | N | outputs | layerwise, s | jacobian, s | auto, s | of the best |\n|---|---|---|---|---|---|---|")
    for name, N, outputs in AUTO:
        took = {e: _in_a_process(name, N, outputs, 512, e)["again"] for e in ("layerwise", "jacobian", "auto")}
        ratio = took["auto"] / min(took["layerwise"], took["jacobian"])
        shown = " | ".join(f"{seconds:.3g}" for seconds in took.values())
        print(f"| {name} | {N} | {outputs} | {shown} | {ratio:.2f} |", flush=True)


def long() -> None:
    """Each of `LONG`, from a row of its tiles."""
    print("| N | MB | samples kept | s |\n|---|---|---|---|")
    for N, megabytes in LONG:
        got = _in_a_process(N, megabytes)
        print(f"| {N:,} | {megabytes} | {got['kept']} | {got['seconds']:.4g} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "tables", nargs="*", choices=["tiles", "auto", "long", []], help="the first two where none is named"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.one:
        given = json.loads(flags.one)
        print(json.dumps(row(*given) if len(given) == 2 else one(*given)))
        return
    for name in flags.tables or ("tiles", "auto"):
        {"tiles": tiles, "auto": auto, "long": long}[name]()


if __name__ == "__main__":
    main()
