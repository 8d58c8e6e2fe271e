"""How long does a user wait for a first result, and how much of that is compilation?

    python benchmarks/latency.py                   all cases, some minutes on two cores
    python benchmarks/latency.py "NTK, GRU"        those whose name begins so
    python benchmarks/latency.py --json FILE       the same numbers as JSON beside the table

A case is a function that gets ready, which is not timed (an import that is part of the question belongs in the call),
and returns the call that is. Each is called in four processes of its own: one without a compilation cache ("cold", and
"again" for the best of three more calls in it); one that fills a cache, where the programs are counted that are
compiled; one that counts those found there ("cached"); and one that reads that cache ("warm cache").

Seconds are of all threads together (processor), which other work on the machine moves less, and by the clock (wall).
Peers are called as their documentation has it, under `jax.jit`.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]

Call = Callable[[], Any]


# ---- the empirical NTK, mean over outputs


class Job(NamedTuple):
    """A function, its parameters and samples."""

    f: Callable
    params: Any
    x: np.ndarray


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def _network(name: str, N: int) -> Job:
    """Outputs of one of the package's networks in evaluation mode, at random weights."""
    import jax
    import jax.numpy as jnp

    from ntkcollapse.networks import network

    net, x = network(name), _normal(N, 28, 28, 1)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x[:1])
    fill = lambda leaf: jnp.asarray(_normal(*leaf.shape) / np.sqrt(leaf.size / leaf.shape[-1]))  # noqa: E731
    params = jax.tree.map(fill, shapes.params)
    statistics = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes.batch_stats)
    return Job(net.evaluation(statistics)[1], params, x)


def resnet20() -> Job:
    return _network("resnet20", 20)


def transformer() -> Job:
    return _network("vision-transformer", 20)


def _perceptron(*widths: int) -> Job:
    import jax
    import jax.numpy as jnp

    layers = [{"w": _normal(a, b) / np.float32(a**0.5), "b": _normal(b)} for a, b in itertools.pairwise(widths)]

    def f(params, x):
        for layer in params[:-1]:
            x = jnp.tanh(x @ layer["w"] + layer["b"])
        return x @ params[-1]["w"] + params[-1]["b"]

    return Job(f, jax.tree.map(jnp.asarray, layers), _normal(1000, widths[0]))


def perceptron() -> Job:
    """One output, as in regression: with several, a Gram of whole Jacobians is mostly the product."""
    return _perceptron(64, 64, 64, 1)


def classifier() -> Job:
    """Ten outputs of a perceptron on inputs as large as MNIST's images; whole Jacobians would take 10 GB."""
    return _perceptron(784, 256, 256, 10)


def gru() -> Job:
    """A gated recurrent unit that reads an image row by row."""
    import jax
    import jax.numpy as jnp

    n = 32
    params = {
        "gates": _normal(28 + n, 2 * n) / 8,
        "candidate": _normal(28 + n, n) / 8,
        "bias": _normal(3 * n),
        "last": _normal(n, 10) / 6,
    }

    def f(p, x):
        def step(h, row):
            both = jnp.concatenate([row, h], axis=-1) @ p["gates"] + p["bias"][: 2 * n]
            z, r = jnp.split(jax.nn.sigmoid(both), 2, axis=-1)
            new = jnp.tanh(jnp.concatenate([row, r * h], axis=-1) @ p["candidate"] + p["bias"][2 * n :])
            return (1 - z) * h + z * new, None

        start = jnp.zeros((x.shape[0], n), x.dtype)
        return jax.lax.scan(step, start, jnp.swapaxes(x, 0, 1))[0] @ p["last"]

    return Job(f, jax.tree.map(jnp.asarray, params), _normal(40, 28, 28))


def ours(job: Callable[[], Job]) -> Call:
    from ntkcollapse import ntk

    f, params, x = job()
    return lambda: ntk.empirical_ntk(f, params, x, outputs="mean")


def statistics(job: Callable[[], Job]) -> Call:
    from ntkcollapse import ntk

    f, params, x = job()
    labels = np.arange(len(x)) % 10
    return lambda: ntk.block_statistics(f, params, x, labels).output_pairs


def jacrev(job: Callable[[], Job]) -> Call:
    """Jacobians of single samples, contracted parameter by parameter."""
    import jax
    import jax.numpy as jnp

    f, params, x = job()

    @jax.jit
    def kernel(params, x):
        jacobians = jax.vmap(jax.jacrev(lambda p, one: f(p, one[None])[0]), (None, 0))(params, x)
        flat = [leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(jacobians)]
        return sum(jnp.matmul(g, g.T) for g in flat) / jax.tree.leaves(jacobians)[0].shape[1]

    return lambda: kernel(params, x)


def neural_tangents(job: Callable[[], Job]) -> Call:
    """Jacobian contraction, the fastest of its implementations here."""
    import warnings

    import jax

    from ntkcollapse.ntk import neural_tangents

    warnings.simplefilter("ignore")
    nt = neural_tangents()
    f, params, x = job()
    contraction = nt.NtkImplementation.JACOBIAN_CONTRACTION
    kernel = jax.jit(nt.empirical_ntk_fn(f, trace_axes=(-1,), vmap_axes=0, implementation=contraction))
    return lambda: kernel(x, None, params)


# ---- code by hand, as one would write it for this one network, all in one program


def _perceptron_passes(params, x):
    """(input, cotangents of the result (N, K, width)) of each layer."""
    import jax.numpy as jnp

    inputs = [x]
    for layer in params[:-1]:
        inputs.append(jnp.tanh(inputs[-1] @ layer["w"] + layer["b"]))
    K = params[-1]["w"].shape[1]
    d, found = jnp.broadcast_to(jnp.eye(K, dtype=x.dtype), (len(x), K, K)), []
    for i in reversed(range(len(params))):
        found.append((inputs[i], d))
        if i:
            d = (d @ params[i]["w"].T) * (1 - inputs[i] ** 2)[:, None]
    return found


def perceptron_by_hand(job: Callable[[], Job]) -> Call:
    import jax

    _, params, x = job()

    @jax.jit
    def kernel(params, x):
        total = 0.0
        for a, d in _perceptron_passes(params, x):
            d = d.reshape(len(x), -1)
            total = total + (a @ a.T + 1) * (d @ d.T)
        return total / params[-1]["w"].shape[1]

    return lambda: kernel(params, x)


def statistics_by_hand(job: Callable[[], Job]) -> Call:
    """The sums behind `BlockStatistics` of equal classes: squares, pairs of classes, pairs of outputs."""
    import jax
    import jax.numpy as jnp

    _, params, x = job()
    C, x = 10, x[np.argsort(np.arange(len(x)) % 10, kind="stable")]

    @jax.jit
    def sums(params, x):
        N, totals = len(x), (0.0, 0.0, 0.0, 0.0)
        for a, d in _perceptron_passes(params, x):
            K = d.shape[1]
            a = jnp.concatenate([a, jnp.ones((N, 1), a.dtype)], axis=1)
            squares = (jnp.square(a).sum(1)[:, None, None] * jnp.einsum("nko,nso->nks", d, d)).sum(0)
            S = jnp.einsum("cmp,cmi->cpi", d.reshape(C, N // C, -1), a.reshape(C, N // C, -1)).reshape(C, K, -1)
            all_classes = S.sum(0)
            pairs = jnp.einsum("ckp,dkp->kcd", S, S), jnp.einsum("ckp,csp->cks", S, S), all_classes @ all_classes.T
            totals = tuple(total + part for total, part in zip(totals, (squares, *pairs), strict=True))
        return totals

    return lambda: sums(params, x)


def gru_by_hand(job: Callable[[], Job]) -> Call:
    """One scan there, one back, and gradients as one product over time."""
    import jax
    import jax.numpy as jnp

    _, p, x = job()
    n, wide = 32, x.shape[-1]

    @jax.jit
    def kernel(p, x):
        N, K = len(x), p["last"].shape[1]

        def step(h, row):
            first = jnp.concatenate([row, h], axis=-1)
            z, r = jnp.split(jax.nn.sigmoid(first @ p["gates"] + p["bias"][: 2 * n]), 2, axis=-1)
            second = jnp.concatenate([row, r * h], axis=-1)
            new = jnp.tanh(second @ p["candidate"] + p["bias"][2 * n :])
            return (1 - z) * h + z * new, ((h, z, r, new), first, second)

        last, (states, first, second) = jax.lax.scan(step, jnp.zeros((N, n), x.dtype), jnp.swapaxes(x, 0, 1))

        def back(d, state):
            h, z, r, new = (v[:, None] for v in state)
            d_new = d * z * (1 - new**2)
            d_second = d_new @ p["candidate"].T[:, wide:]
            d_gates = jnp.concatenate([d * (new - h) * z * (1 - z), d_second * h * r * (1 - r)], axis=-1)
            return d * (1 - z) + d_second * r + d_gates @ p["gates"].T[:, wide:], (d_gates, d_new)

        start = jnp.broadcast_to(p["last"].T, (N, K, n))
        _, (d_gates, d_new) = jax.lax.scan(back, start, states, reverse=True)
        total = K * (last @ last.T)
        for a, d in ((first, d_gates), (second, d_new)):
            a = jnp.concatenate([a, jnp.ones_like(a[..., :1])], axis=-1)
            g = jnp.einsum("tbi,tbn->bni", a, d.reshape(*d.shape[:2], -1)).reshape(N, -1)
            total = total + g @ g.T
        return total / K

    return lambda: kernel(p, x)


JOBS = {"ResNet20, N = 20": resnet20, "perceptron, N = 1,000": perceptron, "GRU, N = 40": gru}
JOBS["transformer, N = 20"] = transformer
WAYS = {"empirical_ntk": ours, "vmap(jacrev)": jacrev, "neural-tangents": neural_tangents}

# ---- a user's first lines


def imported() -> Call:
    """The package and all that the ten lines use of it."""

    def call() -> None:
        import ntkcollapse as nc

        _ = nc.Classes, nc.BlockKernel, nc.LastLayer, nc.simulate

    return call


def readme_lines(*changes: tuple[str, str]) -> Call:
    """README's ten lines as they stand, from the imports to the figure; with changes of their text."""
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    for old, new in changes:
        if old not in source:
            raise SystemExit(f"README's lines no longer hold {old!r}.")
        source = source.replace(old, new)

    def call() -> None:
        os.environ["MPLBACKEND"] = "agg"
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.chdir(folder),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            exec(compile(source, "README.md", "exec"), {})

    return call


def without_figure() -> Call:
    """The same without its figure, which is matplotlib's time."""
    return readme_lines(('run.plot().savefig("collapse.png")', ""))


def another_shape() -> Call:
    """The same with other numbers of features and times, in a process that has made the first run."""
    without_figure()()
    return readme_lines(
        ('run.plot().savefig("collapse.png")', ""),
        ("(64, 1000)", "(48, 1000)"),
        ("(10, 64)", "(10, 48)"),
        ("120)", "41)"),
    )


def _flow_of_120(**options: Any) -> Callable[..., Any]:
    """The run of 10 classes of 12 samples with 16 features to T = 1, saved at 40 times, from κ_n."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import ntkcollapse as nc

    classes, random = nc.Classes.balanced(num_classes=10, per_class=12), np.random.default_rng(0)
    start = nc.LastLayer(H=0.3 * random.normal(size=(16, 120)), W=0.1 * random.normal(size=(10, 16)), b=np.zeros(10))

    def run(between: Any) -> Any:
        flow = nc.Flow(nc.BlockKernel(3.0, 2.0, between), classes, **options)
        return nc.simulate(start, flow, times=np.linspace(0.0, 1.0, 40))

    return run


def full_run() -> Call:
    """A run in all of H, as of every model and of every equation of one's own."""

    def call() -> Any:
        return _flow_of_120(loss="cross-entropy")(0.6)["loss"]

    return call


def derivative(**options: Any) -> Call:
    """The derivative of the last loss of a run, reduced or full, with respect to κ_n."""

    def call() -> Any:
        import jax

        run = _flow_of_120(**options)
        return jax.grad(lambda between: run(between)["loss"][-1])(0.6)

    return call


def by_scipy() -> Call:
    """The states alone, on (M, P, W, b) by scipy's method of order 8, as one would write it without this package."""

    def call() -> None:
        from scipy.integrate import solve_ivp

        C, m, n = 10, 100, 64
        rng = np.random.default_rng(0)
        H, W = 0.3 * rng.normal(size=(n, C, m)), 0.1 * rng.normal(size=(C, n))
        M = H.mean(2)
        X = (H - M[:, :, None]).reshape(n, -1)
        S, gram = X @ X.T, np.full((C, C), 0.6) + np.diag(np.full(C, 1.4 + 1 / m))
        shapes = [(n, C), (n, n), (C, n), (C,)]
        cuts = np.cumsum([np.prod(shape) for shape in shapes])[:-1]

        def speed(t, y):
            del t
            M, P, W, b = (part.reshape(shape) for part, shape in zip(np.split(y, cuts), shapes, strict=True))
            RD = m * (W @ M + b[:, None] - np.eye(C))
            WP = W @ P
            parts = -W.T @ (RD @ gram), -W.T @ WP, -(RD @ M.T + (WP @ S) @ P.T), -RD.sum(1)
            return np.concatenate([part.ravel() for part in parts])

        start = np.concatenate([part.ravel() for part in (M, np.eye(n), W, np.zeros(C))])
        solve_ivp(speed, (0.0, 5.0), start, "DOP853", np.linspace(0.0, 5.0, 101), rtol=1e-6, atol=1e-9)

    return call


# ---- the table: name ↦ what gets ready and returns the call that is timed

CASES: dict[str, Callable[[], Call]] = {
    f"NTK, {name}: {by}": lambda job=job, way=way: way(job) for name, job in JOBS.items() for by, way in WAYS.items()
}
CASES |= {
    "NTK, perceptron, N = 1,000: by hand": lambda: perceptron_by_hand(perceptron),
    "NTK, classifier, N = 1,000: empirical_ntk": lambda: ours(classifier),
    "NTK, classifier, N = 1,000: by hand": lambda: perceptron_by_hand(classifier),
    "NTK, GRU, N = 40: by hand": lambda: gru_by_hand(gru),
    "block statistics, classifier: ours": lambda: statistics(classifier),
    "block statistics, classifier: by hand": lambda: statistics_by_hand(classifier),
}
CASES |= {"import": imported, "ten lines": readme_lines, "ten lines, no figure": without_figure}
CASES |= {"ten lines, another shape": another_shape}
CASES |= {"ten lines, states by scipy": by_scipy, "full run": full_run, "derivative": derivative}
CASES |= {"derivative of a full run": lambda: derivative(loss="cross-entropy")}
CASES |= {f"block statistics, {name}": lambda job=job: statistics(job) for name, job in JOBS.items()}


# ---- one case in a process of its own


def _count(counts: dict[str, int]) -> None:
    """Counts programs as they are compiled, or read from the cache."""
    import jax

    def compiled(event: str, duration_secs: float, **_) -> None:
        del duration_secs
        counts["programs"] += event == "/jax/core/compile/backend_compile_duration"

    def read(event: str, **_) -> None:
        counts["cached"] += event == "/jax/compilation_cache/cache_hits"

    jax.monitoring.register_event_duration_secs_listener(compiled)
    jax.monitoring.register_event_listener(read)


def _result(call: Call) -> Any:
    result = call()
    if "jax" in sys.modules:
        sys.modules["jax"].block_until_ready(result)
    return result


def one(name: str, counting: bool) -> dict[str, Any]:
    call = CASES[name]()
    counts = {"programs": 0, "cached": 0}
    if counting:
        _count(counts)
    spent = []
    for _ in range(1 if counting else 4):
        began = time.process_time(), time.perf_counter()
        _result(call)
        spent.append((time.process_time() - began[0], time.perf_counter() - began[1]))
    return {"first": spent[0], "again": min(spent[1:], default=spent[0]), **counts}


def measure(name: str) -> dict[str, Any]:
    """The same case cold, and with a cache that an earlier process has filled."""

    def run(counting: bool, **variables: str) -> dict[str, Any]:
        command = [sys.executable, __file__, "--one", name, *(["--counting"] if counting else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | variables)
        if done.returncode:
            raise RuntimeError(f"{name}: failed\n{done.stderr[-2000:]}")
        return json.loads(done.stdout.splitlines()[-1])

    with tempfile.TemporaryDirectory() as folder:
        cache = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        cold = run(False, JAX_ENABLE_COMPILATION_CACHE="false")
        programs = run(True, **cache)["programs"]
        cached = run(True, **cache)["cached"]
        warm = run(False, **cache)
    return {
        "case": name,
        "cold": cold["first"],
        "warm cache": warm["first"],
        "again": cold["again"],
        "programs": programs,
        "cached": cached,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="how the names of cases begin; all where none is given")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers here too")
    parser.add_argument("--one", metavar="CASE", help=argparse.SUPPRESS)
    parser.add_argument("--counting", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.one:
        print(json.dumps(one(flags.one, flags.counting)))
        return
    chosen = [name for name in CASES if not flags.names or name.startswith(tuple(flags.names))]
    if not chosen:
        parser.error(f"expected the beginning of one of {', '.join(CASES)}; got {', '.join(flags.names)}")

    from ntkcollapse.commands import Table, number

    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "neural-tangents", "numpy")) + "\n")
    rows = []
    for name in chosen:
        rows.append(measure(name))
        print(rows[-1], file=sys.stderr, flush=True)
    parts = ("cold", "warm cache", "again")
    columns = [f"{part}, {clock}" for part in parts for clock in ("processor, s", "wall, s")]
    cells = [
        [row["case"], *(number(v) for part in parts for v in row[part]), str(row["programs"]), str(row["cached"])]
        for row in rows
    ]
    print(Table(("", *columns, "programs", "cached"), cells))
    if flags.json:
        flags.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
