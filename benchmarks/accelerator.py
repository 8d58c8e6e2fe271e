"""What the package does on a GPU or TPU: is it right there, how fast, and how far from what the device allows?

    python benchmarks/accelerator.py                    on the accelerator, everything, within eight minutes
    python benchmarks/accelerator.py --parts gamma      some of it; what is in --out is kept, --again measures it again
    python benchmarks/accelerator.py --toy              the same at a tiny size, on a CPU, in three minutes
    python benchmarks/accelerator.py --table            the tables of benchmarks/RESULTS.md, from --out
    python benchmarks/accelerator.py --paper            the tables of docs/accelerators.md: counted, not measured
    python benchmarks/accelerator.py --parts gamma --again --profile FOLDER     a trace for TensorBoard or Perfetto

Every part is a process of its own; results are written to --out (JSON) after each, so that a run that was stopped goes
on. It runs from the sources (PYTHONPATH) on Python 3.11 and later with jax, numpy and scipy, which the machine has, and
wheels without compiled code: equinox, jaxtyping, wadler_lindig, flax, optax, absl-py, rich, tqdm, threadpoolctl,
tomli_w. flax's msgpack and yaml are needed for files alone and replaced where they are missing; so is neural-tangents
(with frozendict), a contender. NTKCOLLAPSE_DATA: the folder with mnist.npz; random images without it.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RESULTS = Path(__file__).with_name("RESULTS.md")
WEIGHT_DECAY, RATE, BATCH = 5e-4, 0.05, 120


class Size(NamedTuple):
    """How much is measured: network, images, images of all pairs, steps of training, integrations, side of images."""

    network: str
    options: dict[str, Any]
    images: int
    pairs: tuple[int, ...]
    steps: int
    points: int
    side: int


FULL = Size("resnet20", {}, 60_000, (1_200, 2_400, 4_800, 10_000), 500, 100_000, 28)
TOY = Size("resnet8", {"widths": (4, 8)}, 240, (30,), 12, 64, 8)


class Device(NamedTuple):
    """Of data sheets: multiplications and additions in float32 with all digits, bytes of memory, both a second."""

    flops: float
    bandwidth: float
    memory: float


DEVICES = {
    "A100 SXM 80 GB": Device(19.5e12, 2.04e12, 80e9),
    "H100 SXM": Device(67e12, 3.35e12, 80e9),
    "H200 SXM": Device(67e12, 4.8e12, 141e9),
    # 197 TFLOP/s in bfloat16, of which float32 takes six passes.
    "TPU v5e": Device(197e12 / 6, 0.819e12, 16e9),
}
# Seconds between the starts of two kernels: an assumption, not a measurement.
LAUNCH = 5e-6


# ---- what is measured


def images(size: Size, n: int) -> tuple[np.ndarray, np.ndarray]:
    """n images, as many of each of ten classes; beyond those of the file the same again with a little noise."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, size.side, size.side, 1)).astype(np.float32), np.arange(n) % 10
    if size is FULL:
        try:
            from ntkcollapse.data import load

            train = load("mnist").train
            x, y = np.asarray(train.inputs, np.float32), np.asarray(train.labels)
        except (OSError, ImportError, ValueError) as error:
            print(f"random images: {error!r:.120}", file=sys.stderr)
    rows = np.concatenate([np.resize(np.flatnonzero(y == c), -(-n // 10)) for c in range(10)])[:n]
    x, y = x[rows], np.sort(y[rows])
    return (x + 0.01 * rng.normal(size=x.shape).astype(np.float32) if n > len(np.unique(rows)) else x), y


def made(size: Size) -> tuple[Any, Any, Any, Any]:
    """(network, variables, features, outputs)."""
    import jax

    from ntkcollapse.networks import network

    net = network(size.network, 10, **size.options)
    variables = net.init(jax.random.key(0), np.zeros((1, size.side, size.side, 1), np.float32))
    return net, variables, *net.evaluation(variables.batch_stats)


def timed(run: Callable[[], Any], repeats: int = 1) -> tuple[Any, dict[str, float]]:
    """What a call gives, and the seconds of the first and of the best of the later ones."""
    import jax

    seconds, out = [], None
    for _ in range(repeats + 1):
        del out
        began = time.perf_counter()
        out = jax.block_until_ready(run())
        seconds.append(time.perf_counter() - began)
    return out, {"first_s": seconds[0], "warm_s": min(seconds[1:] or seconds)}


def accuracy(size: Size, left: float) -> dict[str, Any]:
    """Largest relative error of a kernel against float64 on the CPU, by engine and precision."""
    import jax

    from ntkcollapse import ntk

    # Eight layers: there are a dozen programs to compile.
    net, variables, _, f = made(size if size is TOY else size._replace(network="resnet8"))
    x, _ = images(size, 20)
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64), (variables.params, variables.batch_stats))
        exact_f = net.evaluation(wide[1])[1]
        jacobian = jax.jit(jax.vmap(jax.jacrev(lambda p, a: exact_f(p, a[None])[0]), in_axes=(None, 0)))
        parts = [np.asarray(j).reshape(len(x), -1) for j in jax.tree.leaves(jacobian(wide[0], x.astype(np.float64)))]
        exact = sum(j @ j.T for j in parts) / 10
    engines = ["layerwise", "jacobian", "ntvp"] + ["neural-tangents"] * has("neural_tangents")
    errors = {}
    for engine in engines:
        for precision in ("highest", "high", "default") if size is FULL else ("highest",):
            theta = ntk.empirical_ntk(f, variables.params, x, outputs="mean", engine=engine, precision=precision)
            errors[f"{engine}, {precision}"] = float(
                np.abs(np.asarray(theta, float) - exact).max() / np.abs(exact).max()
            )
    return errors


def statistics(size: Size, left: float, *, outputs: bool) -> dict[str, Any]:
    """Block statistics of a part of the images, then of all: seconds and the three numbers."""
    from ntkcollapse import ntk

    _, variables, features, f = made(size)
    measured, began, seconds = {}, time.perf_counter(), None
    # A tenth first: what all of them would take is then known.
    for n in (size.images // 10, size.images) if size is FULL else (size.images,):
        if seconds is not None and seconds["warm_s"] * n / size.images * 10 > left - (time.perf_counter() - began):
            break
        x, y = images(size, n)
        of = f if outputs else features
        once = seconds is not None and seconds["warm_s"] > 2
        s, seconds = timed(
            lambda x=x, y=y, of=of: ntk.block_statistics(of, variables.params, x, y, output_pairs=False),
            0 if once else 1,
        )
        block = s.kernel
        three = [float(v) for v in (block.diagonal, block.within, block.between)]
        measured[str(n)] = seconds | {"images_per_s": n / seconds["warm_s"], "three": three}
    return measured


def pairs(size: Size, left: float, *, contender: str) -> dict[str, Any]:
    """The N × N mean over outputs, for more and more images as time allows."""
    import jax

    from ntkcollapse import ntk

    _, variables, _, f = made(size)
    params = variables.params

    def by_tiles(kernel: Callable, x: np.ndarray, side: int) -> np.ndarray:
        out = np.zeros((len(x), len(x)), np.float32)
        for i in range(0, len(x), side):
            for j in range(i, len(x), side):
                out[i : i + side, j : j + side] = kernel(x[i : i + side], x[j : j + side])
        return np.triu(out) + np.triu(out, 1).T

    if contender == "neural-tangents":
        theirs = jax.jit(ntk.neural_tangents().empirical_ntk_fn(f, trace_axes=(-1,), vmap_axes=0, implementation=1))
        run = lambda x: by_tiles(lambda a, b: theirs(a, b, params), x, 60)  # noqa: E731
    elif contender == "vmap(jacrev)":
        jacobian = jax.vmap(jax.jacrev(lambda p, a: f(p, a[None])[0]), in_axes=(None, 0))

        @jax.jit
        def plain(a, b):
            sides = [jax.tree.leaves(jacobian(params, x)) for x in (a, b)]
            flat = [[g.reshape(len(x), -1) for g in side] for side, x in zip(sides, (a, b), strict=True)]
            return sum(g @ h.T for g, h in zip(*flat, strict=True)) / 10

        run = lambda x: by_tiles(plain, x, 60)  # noqa: E731
    else:
        run = lambda x: ntk.empirical_ntk(f, params, x, outputs="mean", engine=contender)  # noqa: E731
    measured, began, before = {}, time.perf_counter(), None
    for n in size.pairs:
        if before is not None and 2.2 * before[1] * (n / before[0]) ** 2 > left - (time.perf_counter() - began):
            break
        x, _ = images(size, n)
        theta, seconds = timed(lambda x=x: run(x), 1 if before is None or before[1] < 5 else 0)
        measured[str(n)] = seconds | {"norm": float(np.linalg.norm(np.asarray(theta, np.float64)))}
        before = n, seconds["warm_s"]
    return measured


def training(size: Size, left: float) -> dict[str, Any]:
    """Images a second of the package's steps, several in a program and one by one, and of a plain loop of flax."""
    import jax
    import jax.numpy as jnp
    import optax

    from ntkcollapse.training import Stepper

    net, variables, *_ = made(size)
    inputs, labels = map(jnp.asarray, images(size, size.images))
    rng = np.random.default_rng(0)
    rows = np.stack([rng.permutation(size.images)[:BATCH] for _ in range(size.steps)]).astype(np.int32)
    several = min(50, size.steps)
    measured: dict[str, Any] = {}

    def speed(name: str, run: Callable[[], Any]) -> None:
        jax.block_until_ready(run())
        began = time.perf_counter()
        jax.block_until_ready(run())
        measured[name] = size.steps * BATCH / (time.perf_counter() - began)

    for dtype in ("float32", "bfloat16"):
        stepper = Stepper(net, optax.sgd(1.0, momentum=0.9, nesterov=True), "squared", WEIGHT_DECAY, dtype)

        def in_blocks(stepper=stepper):
            state, rates = stepper.start(variables), np.full(several, RATE)
            for first in range(0, size.steps, several):
                some = np.resize(rows[first : first + several], (several, BATCH))
                count = min(several, size.steps - first)
                state, _ = stepper.several(state, inputs, labels, some, rates, first, count)
            return state.variables

        def one_by_one(stepper=stepper):
            state = stepper.start(variables)
            for step, batch in enumerate(rows):
                state, _ = stepper(state, inputs, labels, batch, RATE, step)
            return state.variables

        speed(f"{several} steps in a program, {dtype}", in_blocks)
        if dtype == "float32":
            speed("one by one, float32", one_by_one)
    tx = optax.sgd(RATE, momentum=0.9, nesterov=True)

    @jax.jit
    def plain(params, stats, opt, x, y):
        def loss_fn(params):
            outputs, moved = net.module.apply(
                {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
            )
            squares = sum(jnp.sum(p**2) for p in jax.tree.leaves(params) if p.ndim > 1)
            loss = optax.l2_loss(outputs, jax.nn.one_hot(y, 10)).mean()
            return loss + WEIGHT_DECAY / 2 * squares, moved["batch_stats"]

        (_, stats), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt = tx.update(gradient, opt, params)
        return optax.apply_updates(params, updates), stats, opt

    def loop():
        carry = variables.params, variables.batch_stats, tx.init(variables.params)
        for batch in rows:
            carry = plain(*carry, inputs[batch], labels[batch])
        return carry

    speed("a plain loop of flax, float32", loop)
    return measured


def diagram(size: Size, left: float) -> dict[str, Any]:
    """Integrations to t = 30 over weight decay and scale of the start, C = 3, m = 10, n = 8, in one mapped call."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp

    import ntkcollapse as nc

    rng, C, n = np.random.default_rng(0), 3, 8
    classes, kappa = nc.Classes.balanced(C, 10), nc.BlockKernel(1.0, 0.0, 0.0)
    H, W = (jnp.asarray(rng.normal(size=s) / np.sqrt(n)) for s in ((n, 10 * C), (C, n)))
    side = math.isqrt(size.points - 1) + 1
    grid = np.meshgrid(np.logspace(-3, -0.5, side), np.logspace(-2, 1, side))
    decays, scales = (jnp.asarray(a.ravel()[: size.points]) for a in grid)

    def point(decay, scale):
        first = nc.LastLayer(H=scale * H, W=scale * W, b=jnp.zeros(C))
        flow = nc.Flow(kappa, classes, weight_decay={"H": decay, "W": decay})
        run = nc.simulate(first, flow, times=jnp.asarray([0.0, 30.0]), method=nc.Method(rtol=1e-5), columns=False)
        return run["nc1_tirer2022"][-1]

    together = min(10_000, size.points)
    many = jax.jit(lambda d, s: jax.lax.map(lambda at: point(*at), (d, s), batch_size=together))
    nc1, seconds = timed(lambda: many(decays, scales))
    return seconds | {"integrations_per_s": size.points / seconds["warm_s"], "median_nc1": float(np.median(nc1))}


def paper(size: Size, left: float) -> dict[str, Any]:
    """The paper's setting, one of its nine models, for as many epochs as there is time: what one epoch takes."""
    import dataclasses

    from ntkcollapse.data import from_arrays
    from ntkcollapse.training import TrainConfig, preset, train

    x, y = images(size, size.images)
    splits = from_arrays(x, y, x[::10], y[::10])
    config = preset("paper") if size is FULL else dataclasses.replace(preset("paper"), network="mlp")
    config: TrainConfig = dataclasses.replace(config, measure=("batch", "train", "kappa"), measure_log=2)
    measured: dict[str, Any] = {}
    began, epochs = time.perf_counter(), 1
    while True:
        before = time.perf_counter()
        run = train(dataclasses.replace(config, epochs=epochs), splits=splits)
        took = time.perf_counter() - before
        seconds = {name: float(v) for name, v in run.statistics.items() if name.startswith("seconds")}
        values = {name: float(np.asarray(run[name])[-1]) for name in ("train_loss", "train_accuracy")}
        measured = {"epochs": epochs, "seconds": took} | values | seconds
        more = int(0.8 * (left - (time.perf_counter() - began)) / took * epochs)
        if epochs > 1 or more < 2 or size is TOY:
            return measured
        epochs = min(config.epochs, more)


PARTS: dict[str, tuple[float, Callable[[Size, float], dict[str, Any]]]] = {
    "accuracy": (75, accuracy),
    "gamma": (75, lambda size, left: statistics(size, left, outputs=True)),
    "kappa": (75, lambda size, left: statistics(size, left, outputs=False)),
    "pairs: layerwise": (40, lambda size, left: pairs(size, left, contender="layerwise")),
    "pairs: jacobian": (30, lambda size, left: pairs(size, left, contender="jacobian")),
    "pairs: neural-tangents": (30, lambda size, left: pairs(size, left, contender="neural-tangents")),
    "pairs: vmap(jacrev)": (30, lambda size, left: pairs(size, left, contender="vmap(jacrev)")),
    "training": (45, training),
    "diagram": (35, diagram),
    "paper": (45, paper),
}


# ---- how it is run


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def stand_ins() -> None:
    """Empty modules for those that flax imports for files alone, where they are missing."""
    for name in ("msgpack", "yaml"):
        if not has(name):
            sys.modules[name] = types.ModuleType(name)


def one(part: str, size: Size, left: float, profile: str | None) -> dict[str, Any]:
    """The part, in this process."""
    stand_ins()
    import jax

    trace = contextlib.nullcontext() if profile is None else jax.profiler.trace(profile)
    with trace:
        result = PARTS[part][1](size, left)
    device = jax.local_devices()[0]
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    described = {
        "device": f"{device.device_kind} ({device.platform}), {jax.device_count()} of them",
        "peak_bytes": peak,
    }
    versions = {"jax": jax.__version__, "python": sys.version.split()[0]}
    return described | versions | {"result": result}


def run_all(flags: argparse.Namespace) -> None:
    began, out = time.monotonic(), Path(flags.out)
    results = json.loads(out.read_text()) if out.exists() else {}
    for part in flags.parts:
        if "result" in results.get(part, {}) and not flags.again:
            continue
        if part == "pairs: neural-tangents" and not has("neural_tangents"):
            print(f"{part}: that package is not here")
            continue
        left = PARTS[part][0] if flags.toy else min(PARTS[part][0], flags.seconds - (time.monotonic() - began))
        if left < 5:
            print(f"{part}: no time is left")
            continue
        call = [sys.executable, __file__, "--one", part, "--left", str(left), *(["--toy"] if flags.toy else [])]
        call += [] if flags.profile is None else ["--profile", flags.profile]
        try:
            # Half as long again for what a part does not foresee, compilation above all; a CPU may be shared.
            limit = 600 if flags.toy else 1.5 * left
            run = subprocess.run(call, capture_output=True, text=True, timeout=limit, check=False)
            last = run.stdout.splitlines()[-1:] if run.returncode == 0 else []
            results[part] = json.loads(last[0]) if last else {"error": run.stderr[-800:]}
        except subprocess.TimeoutExpired:
            results[part] = {"error": f"not done in time, {left:.0f} s and half as much again"}
        results[part]["size"] = "toy" if flags.toy else "full"
        print(f"{time.monotonic() - began:5.0f} s  {part}: {results[part].get('result', results[part])}", flush=True)
        out.write_text(json.dumps(results, indent=1) + "\n")


# ---- tables


def number(value: Any) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(results: dict[str, Any]) -> str:
    """The tables of RESULTS.md: every row is there, measured or not; toy sizes are no measurement."""

    def of(part: str, *path: str) -> Any:
        entry = results.get(part, {})
        value = entry.get("result") if entry.get("size") == "full" else None
        for name in path:
            value = None if value is None else value.get(name)
        return value

    engines = ("layerwise", "jacobian", "ntvp", "neural-tangents")
    precisions = ("highest", "high", "default")
    errors = [[e, *(number(of("accuracy", f"{e}, {p}")) for p in precisions)] for e in engines]
    n = str(FULL.images)
    seconds = [
        [f"{what} of ResNet20, {FULL.images:,} images", number(of(part, n, "warm_s")), number(of(part, n, "first_s"))]
        for what, part in (("γ", "gamma"), ("κ", "kappa"))
    ]
    contenders = [part for part in PARTS if part.startswith("pairs")]
    all_pairs = [
        [part.removeprefix("pairs: "), *(number(of(part, str(n), "warm_s")) for n in FULL.pairs)] for part in contenders
    ]
    steps = [
        [name, number(of("training", name))]
        for name in (
            "50 steps in a program, float32",
            "50 steps in a program, bfloat16",
            "one by one, float32",
            "a plain loop of flax, float32",
        )
    ]
    runs = [
        ["integrations a second (phase diagram of 100,000)", number(of("diagram", "integrations_per_s"))],
        ["epochs of the paper's setting that were trained", number(of("paper", "epochs"))],
        ["seconds for them, compilation included", number(of("paper", "seconds"))],
    ]
    measured = [entry for entry in results.values() if entry.get("size") == "full" and "result" in entry]
    on = {f"{entry['device']}, jax {entry['jax']}, Python {entry['python']}" for entry in measured}
    said = "; ".join(sorted(on)) or "Not measured yet: no accelerator was at hand. Empty cells are rows to fill."
    return "\n\n".join(
        [
            said,
            "Largest relative error of the kernel of 20 images by ResNet8 against float64 on the CPU:",
            markdown(["engine", *(f'precision="{p}"' for p in precisions)], errors),
            "Seconds of block statistics (`memory` by default):",
            markdown(["", "warm", "first call"], seconds),
            "Seconds of all pairs, mean over outputs, warm:",
            markdown(["", *(f"N = {n:,}" for n in FULL.pairs)], all_pairs),
            f"Images a second in training ResNet20, batches of {BATCH}:",
            markdown(["", "images/s"], steps),
            markdown(["", ""], runs),
        ]
    )


BEGIN, END = "<!-- benchmarks/accelerator.py --table -->", "<!-- end -->"


def write_tables(results: dict[str, Any], file: Path = RESULTS) -> None:
    before, _, rest = file.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    file.write_text(f"{before}{BEGIN}\n\n{tables(results)}\n\n{END}{after}", encoding="utf-8")


def on_paper(size: Size = FULL) -> str:
    """What γ and κ cost on each device, counted in the programs, and the least time that each bound allows."""
    from ntkcollapse import ntk

    _, variables, features, f = made(size)
    x = np.zeros((1, size.side, size.side, 1), np.float32)
    rows, counts = [], []
    for name, device in DEVICES.items():
        for what, of in (("γ", f), ("κ", features)):
            platform = "tpu" if "TPU" in name else "cuda"
            # Of 80 GB JAX takes three quarters, and of these a quarter is for arrays in between.
            cost = ntk.block_statistics_cost(
                of, variables.params, x, size.images, 10, memory=device.memory * 0.75 / 4, platform=platform
            )
            bounds = cost.seconds(flops=device.flops, bandwidth=device.bandwidth, launch=LAUNCH)
            rows.append(
                [f"{what}, {name}", *(number(v) for v in bounds.values()), max(bounds, key=bounds.__getitem__), ""]
            )
            if name == "H100 SXM":
                counts.append(
                    [
                        what,
                        number(cost.operations / 1e12),
                        number(cost.bytes / 1e9),
                        number(cost.launches),
                        number(cost.programs),
                        number(cost.batches),
                        number(cost.fetched / 1e6),
                    ]
                )
    header = ["", "TFLOP", "GB moved", "kernels started", "programs called", "batches", "MB to the host"]
    bounds_header = ["least seconds by", "operations", "bytes", "launches", "bound by", "measured"]
    return "\n\n".join([markdown(header, counts), markdown(bounds_header, rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--out", default="accelerator.json", help="results, and where a run goes on from")
    parser.add_argument("--again", action="store_true", help="measure what is in --out again")
    parser.add_argument("--toy", action="store_true", help="a tiny size, which a CPU does")
    parser.add_argument("--seconds", type=float, default=480, help="for everything")
    parser.add_argument("--table", action="store_true", help="write the tables of RESULTS.md from --out")
    parser.add_argument("--paper", action="store_true", help="print what is counted, not measured")
    parser.add_argument("--profile", metavar="FOLDER", help="a trace of each part")
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--left", type=float, default=60.0, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    # Beside the accelerator, the CPU makes the reference; memory is taken as it is needed, to be read at the end.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms:
        os.environ["JAX_PLATFORMS"] = f"{platforms},cpu"
    size = TOY if flags.toy else FULL
    if flags.one:
        print(json.dumps(one(flags.one, size, flags.left, flags.profile)))
    elif flags.table:
        out = Path(flags.out)
        write_tables(json.loads(out.read_text()) if out.exists() else {})
    elif flags.paper:
        stand_ins()
        print(on_paper(size))
    else:
        run_all(flags)


if __name__ == "__main__":
    main()
