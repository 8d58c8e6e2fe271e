"""What do all collapse metrics of a set cost, against the PyTorch package neural-collapse and plain numpy?

    python benchmarks/collapse.py                        N = 50,000, n = 512, C = 10 and 1,000; a few minutes
    python benchmarks/collapse.py --quick                N = 5,000, n = 64: seconds
    python benchmarks/collapse.py --torch PYTHON         an interpreter that has torch and neural-collapse

Every contender goes through the same float32 features in batches, as they would come from a network, and gives NC1
(papyan, tirer), NC2 and NC3 (product form), mean CDNV and the mismatch of NC4. Each runs in a process of its own, whose
peak memory is read when it ends; times are the best of several passes after a warm one, without the time to make the
features, in processor time (of all threads) and on the wall: ratios are of processor time, which other work on the
machine disturbs least. Values are compared with numpy's in float64, which is the reference.

- streaming: `RunningStatistics`, one pass in float64 on the host, then `measure`; a second pass for NC4.
- device: batches of `ClassStatistics.from_features` in float32, merged on the device.
- numpy: class means, then deviations, all in float64 at once.
- neural-collapse: its accumulators (means, then variances, scatter and decisions: two passes), float32 as it comes.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 1000


def features(N: int, n: int, C: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gaussian classes with a common offset, as after a ReLU, and a classifier near the means."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(C, n)).astype(np.float32)
    labels = rng.permutation(np.arange(N) % C)
    x = rng.normal(size=(N, n)).astype(np.float32)
    x *= 0.5
    x += means[labels] + 1
    return x, labels, means - means.mean(0)


def plain_numpy(x: np.ndarray, labels: np.ndarray, W: np.ndarray) -> dict[str, float]:
    """Everything at once in float64."""
    x, W = x.astype(np.float64), W.astype(np.float64)
    N, C = len(x), len(W)
    sizes = np.bincount(labels)
    order = np.argsort(labels, kind="stable")
    M = np.add.reduceat(x[order], np.concatenate([[0], np.cumsum(sizes)[:-1]])) / sizes[:, None]
    deviations = x - M[labels]
    scatter = deviations.T @ deviations / N
    variances = np.bincount(labels, weights=np.square(deviations).sum(1)) / sizes
    centred = M - M.mean(0)
    _, s, Vt = np.linalg.svd(centred, full_matrices=False)
    r = min(C - 1, x.shape[1])
    directions = Vt[:r] / s[:r, None]
    P = (np.eye(C) - 1 / C) / np.sqrt(C - 1)
    gram, product = centred @ centred.T, W @ centred.T
    squares = np.square(M).sum(1)
    distances = squares[:, None] + squares - 2 * M @ M.T
    pairs = ~np.eye(C, dtype=bool)
    nearest = (x @ M.T - squares / 2).argmax(1)
    return {
        "nc1_papyan2020": float(np.sum((directions @ scatter) * directions)),
        "nc1_tirer2022": float(np.trace(scatter) / (np.square(centred).sum() / C)),
        "nc2_seleznova2023": float(np.linalg.norm(gram / np.linalg.norm(gram) - P)),
        "nc3_zhu2021": float(np.linalg.norm(product / np.linalg.norm(product) - P)),
        "mean_cdnv_galanti2022": float(
            ((variances[:, None] + variances) / 2)[pairs] @ (1 / distances[pairs]) / pairs.sum()
        ),
        "nc4_mismatch": float(np.mean((x @ W.T).argmax(1) != nearest)),
    }


def streaming(x: np.ndarray, labels: np.ndarray, W: np.ndarray) -> dict[str, float]:
    """One pass on the host."""
    from ntkcollapse import collapse

    batches = ((x[i : i + BATCH], labels[i : i + BATCH]) for i in range(0, len(x), BATCH))
    running = collapse.RunningStatistics.of_batches(batches, num_classes=len(W))
    return _measured(running, running.means.astype(np.float32), x, W)


def on_device(x: np.ndarray, labels: np.ndarray, W: np.ndarray) -> dict[str, float]:
    """Batches in float32, merged where they are."""
    total = None
    for i in range(0, len(x), BATCH):
        total = _merged(total, x[i : i + BATCH], labels[i : i + BATCH], len(W))
    assert total is not None
    return _measured(total, total.means, x, W)


def _merged(total: Any, x: np.ndarray, labels: np.ndarray, C: int) -> Any:
    import equinox as eqx

    global _step
    if _step is None:
        from ntkcollapse.collapse import ClassStatistics

        @eqx.filter_jit
        def step(total, x, labels):
            part = ClassStatistics.from_features(x, labels, C)
            return part if total is None else total.merge(part)

        _step = step
    return _step(total, x, labels)


_step: Any = None


def _measured(statistics: Any, means: Any, x: np.ndarray, W: np.ndarray) -> dict[str, float]:
    import jax

    from ntkcollapse import collapse

    global _mismatch
    if _mismatch is None:
        _mismatch = jax.jit(lambda x, W, means: collapse.nc4_mismatch(x.T, W, None, means))
    values = collapse.measure(statistics, W)
    parts = [float(_mismatch(x[i : i + BATCH], W, means)) for i in range(0, len(x), BATCH)]
    return {name: values[name] for name in METRICS if name in values} | {"nc4_mismatch": float(np.mean(parts))}


_mismatch: Any = None


def neural_collapse(x: np.ndarray, labels: np.ndarray, W: np.ndarray) -> dict[str, float]:
    """The PyTorch package, as its example does it."""
    import torch  # pyright: ignore[reportMissingImports]
    from neural_collapse.accumulate import (  # pyright: ignore[reportMissingImports]
        CovarAccumulator,
        DecAccumulator,
        MeanAccumulator,
        VarNormAccumulator,
    )
    from neural_collapse.measure import (  # pyright: ignore[reportMissingImports]
        clf_ncc_agreement,
        covariance_ratio,
        self_duality_error,
        simplex_etf_error,
        variability_cdnv,
    )

    N, n, C = len(x), x.shape[1], len(W)
    X, y, w = torch.from_numpy(x), torch.from_numpy(labels), torch.from_numpy(W)
    parts = [slice(i, i + BATCH) for i in range(0, N, BATCH)]
    with torch.no_grad():
        sums = MeanAccumulator(C, n)
        for part in parts:
            sums.accumulate(X[part], y[part])
        M, centre = sums.compute()
        variances, scatter, decisions = (
            VarNormAccumulator(C, n, M=M),
            CovarAccumulator(C, n, M=M),
            DecAccumulator(C, n, M=M, W=w),
        )
        for part in parts:
            variances.accumulate(X[part], y[part], M)
            scatter.accumulate(X[part], y[part], M)
            decisions.accumulate(X[part], y[part], w, M)
        S = scatter.compute()
        return {
            "nc1_papyan2020": covariance_ratio(S, M, centre),
            "nc1_tirer2022": covariance_ratio(S, M, centre, "quotient"),
            "nc2_seleznova2023": simplex_etf_error(M, centre),
            "nc3_zhu2021": self_duality_error(w, M, centre),
            "mean_cdnv_galanti2022": variability_cdnv(variances.compute()[0], M, tile_size=min(C, 64)),
            "nc4_mismatch": 1 - clf_ncc_agreement(decisions),
        }


METRICS = (
    "nc1_papyan2020",
    "nc1_tirer2022",
    "nc2_seleznova2023",
    "nc3_zhu2021",
    "mean_cdnv_galanti2022",
    "nc4_mismatch",
)
CONTENDERS: dict[str, Callable] = {
    "numpy": plain_numpy,
    "streaming": streaming,
    "device": on_device,
    "neural-collapse": neural_collapse,
}


def one(name: str, N: int, n: int, C: int, repeats: int) -> dict[str, Any]:
    """One contender in this process: values, best seconds, and the memory it added to the features' own."""
    x, labels, W = features(N, n, C)
    contender = CONTENDERS[name]
    start = time.perf_counter()
    values = contender(x, labels, W)
    first = time.perf_counter() - start
    wall, processor = [], []
    for _ in range(repeats):
        start, spent = time.perf_counter(), time.process_time()
        contender(x, labels, W)
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - spent)
    # Of this process alone: getrusage would start from what the parent held.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1024
    times = {"first": first, "wall": min(wall), "processor": min(processor)}
    return {"values": values, **times, "peak": peak, "features": x.nbytes / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--torch", default=None, help="interpreter with torch and neural-collapse")
    parser.add_argument("--one", nargs=4, default=None, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.one:
        name, (N, n, C) = flags.one[0], (int(v) for v in flags.one[1:])
        print(json.dumps(one(name, N, n, C, flags.repeats)))
        return
    from ntkcollapse.commands import Table, number

    N, n, classes = (5_000, 64, (10, 100)) if flags.quick else (50_000, 512, (10, 1000))
    print(f"{platform.machine()}, jax {version('jax')}, numpy {version('numpy')}; batches of {BATCH}, float32 features")
    for C in classes:
        rows, reference, base = [], None, None
        for name in CONTENDERS:
            python = flags.torch if name == "neural-collapse" else sys.executable
            if python is None:
                continue
            command = [python, __file__, "--repeats", str(flags.repeats), "--one", name, str(N), str(n), str(C)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{name}: failed\n{done.stderr[-800:]}")
                continue
            result = json.loads(done.stdout.splitlines()[-1])
            reference = reference or result["values"]
            worst = max(abs(result["values"][m] / reference[m] - 1) for m in METRICS if reference[m])
            base = base or result["processor"]
            shown = (
                result["processor"] / base,
                *(result[key] for key in ("processor", "wall", "first", "peak")),
                result["peak"] - result["features"],
                worst,
            )
            rows.append([name, *(number(v) for v in shown)])
        print(f"\nN = {N:,}, n = {n}, C = {C:,}")
        header = ("", "ratio to numpy", "processor s", "wall s", "first", "peak MB", "less features")
        print(Table((*header, "largest rel. error"), rows))


if __name__ == "__main__":
    main()
