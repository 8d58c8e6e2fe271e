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
# N and megabytes, of ResNet20 and the mean over its outputs; the first has all in one tile.
LONG = [(480, 4000), (480, 512), (7200, 512), (7200, 1000), (7200, 2000), (7200, 4000)]
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


def row(N: int, megabytes: float) -> dict[str, Any]:
    """Seconds of one kernel, from a whole row of tiles or some columns of the first, for one turn of the outputs.

    Keeping a row's samples takes as long as there are blocks in it, a column that many times longer, and the row with
    itself as many times as it has pairs of blocks from the diagonal on.
    """
    import jax

    from ntkcollapse.ntk._fastest import _layerwise
    from ntkcollapse.ntk._problem import one_like, prepare
    from ntkcollapse.ntk.engines import get_engine
    from ntkcollapse.ntk.engines._plan import plan_of

    f, params, x = JOBS["ResNet20"]()
    x = np.random.default_rng(0).normal(size=(N, *x.shape[1:])).astype(np.float32)
    problem, engine, like = prepare(f, params, {"x": x[:2]}), get_engine("layerwise"), one_like(x)
    of, K = plan_of(problem, like).counted(problem), problem.num_outputs
    chunks = engine.chunks(problem, like, N, None, "mean", int(1e6 * megabytes))
    size, number = chunks.block(N, 1)
    blocks = [jax.numpy.asarray(x[i * size : (i + 1) * size]) for i in range(min(number, chunks.blocks + 2))]
    kept, keeping, own, other = None, 0.0, 0.0, []

    def timed(call: Any) -> tuple[float, Any]:
        began = time.process_time()
        done = jax.block_until_ready(call())
        return time.process_time() - began, done

    of_row, columns = blocks[: chunks.blocks], blocks[chunks.blocks :]
    for _ in range(2):
        # Given back before as much is asked for.
        kept = None
        keeping, kept = timed(lambda: engine.keep(problem, of_row, 0, "mean", chunks))
        own, _ = timed(lambda kept=kept: engine.against(problem, kept, None, 0, "mean", chunks))
        other = [timed(lambda x=x, k=kept: engine.against(problem, k, x, 0, "mean", chunks))[0] for x in columns]
    rows = [min(chunks.blocks, number - start) for start in range(0, number, chunks.blocks)]
    behind = [number - start - count for start, count in zip(range(0, number, chunks.blocks), rows, strict=True)]
    b, turns = chunks.blocks, -(-K // chunks.outputs)
    seconds = turns * sum(
        keeping * r / b + own * r * (r + 1) / (b * (b + 1)) + (min(other) * r / b * c if c else 0)
        for r, c in zip(rows, behind, strict=True)
    )
    everything = engine.chunks(problem, like, N, None, "mean", 10**13)
    works = [_layerwise(of, c, K, N, None, "mean") for c in (chunks, everything)]
    parts = {"keeping": keeping, "own": own, "column": min(other, default=None)}
    return {"seconds": seconds, "work": works[0], "least": works[1], "kept": len(of_row) * size, **parts}


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
    """Each of `LONG`, beside the rate of the first."""
    print("| N | MB | samples kept | s | work, of one tile | time, of one tile's rate |\n|---|---|---|---|---|---|")
    rate = None
    for N, megabytes in LONG:
        got = _in_a_process(N, megabytes)
        rate = got["least"] / got["seconds"] if rate is None else rate
        ratios = f"{got['work'] / got['least']:.2f} | {got['seconds'] * rate / got['least']:.2f}"
        print(f"| {N:,} | {megabytes} | {got['kept']} | {got['seconds']:.4g} | {ratios} |", flush=True)


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
