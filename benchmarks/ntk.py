"""What does the empirical NTK cost, in time and memory, against what else there is?

    python benchmarks/ntk.py                      all sections, about half an hour on two cores
    python benchmarks/ntk.py pairs statistics     some of them
    python benchmarks/ntk.py --quick              all of them at small size, some minutes
    python benchmarks/ntk.py --torch PYTHON       an interpreter that has torch and nngeometry, for the section "torch"

Networks at initialisation in evaluation mode, float32, on real MNIST (NTKCOLLAPSE_DATA says where it is), C = 10:

- pairs: ResNet20, 28×28, N = 120; the N × N mean over outputs.
- vgg: VGG11, 32×32, N = 40; the same.
- statistics: ResNet20, N = 120; means over class blocks of the outputs' kernel (γ), exact, against the sampling scheme
  of the block-structure paper's scripts: for each output and each pair of classes, gradients of both samples of all
  pairs between halves of m = 12 samples.
- features: ResNet20, N = 120; the same means for all 64 features (κ) beside those for 10 outputs (γ).
- scaling: γ of ResNet20 on N = 120, 960 and 7,200 samples.
- torch: torch.func's published recipe and nngeometry on ResNet20 with the same weights, N = 120.

The floor is the cotangents of all convolutions' and linear layers' results for all outputs, and nothing else: what any
method that goes back through the network has to compute. It goes through the samples in pieces of a dozen, which on a
CPU is faster than all of them at once.

Every contender runs in a process of its own: its peak memory is read at the end, and what it had before the first call
is subtracted. Times are the best of several warm calls, compilation apart: by the clock on the wall, and of all threads
together, which other work on the machine moves less and on which ratios are taken. The three numbers (means on the
diagonal, within and between classes) are compared with those of the first contender.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Problem(NamedTuple):
    """Weights by path, samples class by class."""

    network: str
    weights: dict[str, np.ndarray]
    x: np.ndarray
    labels: np.ndarray


class Row(NamedTuple):
    """A contender on a problem: network, samples a class, and how often it is repeated after the first call."""

    contender: str
    network: str
    per_class: int
    repeats: int


def sections(quick: bool) -> dict[str, list[Row]]:
    m, v, repeats = (2, 2, 1) if quick else (12, 4, 3)
    return {
        "pairs": [Row(c, "resnet20", m, repeats) for c in ("layerwise", "neural-tangents", "floor")],
        "vgg": [Row(c, "vgg11", v, 1) for c in ("layerwise", "neural-tangents", "floor")],
        "statistics": [
            Row("statistics", "resnet20", m, repeats),
            Row("floor", "resnet20", m, repeats),
            Row("sampling", "resnet20", m, 0),
        ],
        "features": [Row("statistics", "resnet20", m, repeats), Row("statistics of features", "resnet20", m, 1)],
        "scaling": [Row("statistics", "resnet20", n, 1) for n in ((2, 4) if quick else (12, 96, 720))],
        "torch": [Row(c, "resnet20", m, 1) for c in ("layerwise", "torch.func", "nngeometry")],
    }


# ---- contenders: problem ↦ a call that gives the kernel, its three numbers, or None


def _functions(problem: Problem):
    """(features, outputs, params) of the network."""
    import jax.numpy as jnp

    from ntkcollapse.networks import network

    trees: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for path, value in problem.weights.items():
        *folders, name = path.split("/")
        at = trees
        for folder in folders:
            at = at.setdefault(folder, {})
        at[name] = jnp.asarray(value)
    return *network(problem.network).evaluation(trees["batch_stats"]), trees["params"]


def engine(name: str) -> Callable:
    """All pairs by one of this package's engines."""

    def build(problem: Problem):
        from ntkcollapse import ntk

        _, f, params = _functions(problem)
        return lambda: ntk.empirical_ntk(f, params, problem.x, outputs="mean", engine=name)

    return build


def neural_tangents(problem: Problem):
    """Jacobian contraction of neural-tangents, called as its documentation has it, all samples at once."""
    import warnings

    import jax

    from ntkcollapse.ntk import neural_tangents

    warnings.simplefilter("ignore")
    _, f, params = _functions(problem)
    nt = neural_tangents()
    contraction = nt.NtkImplementation.JACOBIAN_CONTRACTION
    theta = nt.empirical_ntk_fn(f, trace_axes=(-1,), vmap_axes=0, implementation=contraction)
    kernel = jax.jit(lambda x, params: theta(x, None, params))
    return lambda: kernel(problem.x, params)


def statistics(problem: Problem, of: int = 1):
    """Exact class-block means, of the outputs or of the features."""
    from ntkcollapse import ntk

    *functions, params = _functions(problem)

    def run():
        found = ntk.block_statistics(functions[of], params, problem.x, problem.labels, output_pairs=False)
        return np.asarray([found.kernel.diagonal, found.kernel.within, found.kernel.between])

    return run


def floor(problem: Problem):
    """Cotangents of the results of all convolutions and linear layers, for all outputs."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    _, f, params = _functions(problem)

    def tapped(taps, x):
        found = []

        def add(call, args, kwargs, context):
            y = call(*args, **kwargs)
            if isinstance(context.module, nn.Conv | nn.Dense) and context.method_name == "__call__":
                found.append(y)
                y = y + taps[len(found) - 1] if taps else y
            return y

        with nn.intercept_methods(add):
            y = f(params, x)
        return y, found

    @jax.jit
    def cotangents(x):
        taps = [jnp.zeros_like(y) for y in jax.eval_shape(lambda x: tapped(None, x)[1], x)]
        y, pullback = jax.vjp(lambda taps: tapped(taps, x)[0], taps)
        K = y.shape[1]
        seeds = jnp.broadcast_to(jnp.eye(K, dtype=y.dtype)[:, None], (K, *y.shape))
        return jax.vmap(pullback)(seeds)

    pieces = [problem.x[i : i + 12] for i in range(0, len(problem.x), 12)]

    def run():
        for x in pieces:
            jax.block_until_ready(cotangents(x))

    return run


def sampling(problem: Problem):
    """The three numbers by the scheme of the paper's scripts, written anew."""
    import jax
    import jax.numpy as jnp

    _, f, params = _functions(problem)
    C = int(problem.labels.max()) + 1
    by_class = problem.x.reshape(C, -1, *problem.x.shape[1:])
    half = by_class.shape[1] // 2
    pairs = np.asarray([(c, d) for c in range(C) for d in range(c + 1, C)])

    def entry(params, k, a, b):
        g, h = (jax.grad(lambda p, x=x: f(p, x[None])[0, k])(params) for x in (a, b))
        return sum(jnp.vdot(u, v) for u, v in zip(jax.tree.leaves(g), jax.tree.leaves(h), strict=True))

    @jax.jit
    def three(params, by_class):
        def diagonal(k, X):
            return jax.vmap(lambda a: entry(params, k, a, a))(X)

        def block(k, X, Y):
            return jax.vmap(jax.vmap(lambda a, b: entry(params, k, a, b), (None, 0)), (0, None))(X[:half], Y[half:])

        def of_output(k):
            d = jax.lax.map(lambda X: diagonal(k, X), by_class)
            w = jax.lax.map(lambda X: block(k, X, X), by_class)
            b = jax.lax.map(lambda cd: block(k, by_class[cd[0]], by_class[cd[1]]), jnp.asarray(pairs))
            return jnp.stack([d.mean(), w.mean(), b.mean()])

        return jax.lax.map(of_output, jnp.arange(C)).mean(0)

    compiled = three.lower(params, by_class).compile()
    return lambda: np.asarray(compiled(params, by_class))


def _torch_network(problem: Problem):
    """The same ResNet20 in PyTorch, from the weights by path."""
    import torch  # pyright: ignore[reportMissingImports]
    import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    class ResNet20(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleDict()
            for path, value in problem.weights.items():
                kind, *_, name, what = path.split("/")
                if kind == "params" and what == "kernel":
                    self.layers[name] = self._weighted(path, value)
                elif kind == "params" and what == "scale":
                    self.layers[name] = self._norm(path, name)
            self.eval()

        def _weighted(self, path, kernel):
            bias = problem.weights.get(path.removesuffix("kernel") + "bias")
            if kernel.ndim == 2:
                layer = nn.Linear(*kernel.shape, bias=bias is not None)
                layer.weight.data = torch.from_numpy(kernel.T.copy())
            else:
                h, w, inputs, outputs = kernel.shape
                layer = nn.Conv2d(inputs, outputs, (h, w), bias=bias is not None)
                layer.weight.data = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
            if bias is not None:
                layer.bias.data = torch.from_numpy(bias.copy())
            return layer

        def _norm(self, path, name):
            path = path.removesuffix("/scale").removeprefix("params/")
            layer = nn.BatchNorm2d(len(problem.weights[f"params/{path}/scale"]), eps=1e-5)
            layer.weight.data = torch.from_numpy(problem.weights[f"params/{path}/scale"].copy())
            layer.bias.data = torch.from_numpy(problem.weights[f"params/{path}/bias"].copy())
            layer.running_mean = torch.from_numpy(problem.weights[f"batch_stats/{path}/mean"].copy())
            layer.running_var = torch.from_numpy(problem.weights[f"batch_stats/{path}/var"].copy())
            return layer

        def conv(self, x, name, stride=1):
            layer = self.layers[name]
            layer.stride = (stride, stride)
            # Padding as XLA's SAME has it: the odd pixel on the right and below.
            total = max((-(-x.shape[-1] // stride) - 1) * stride + layer.kernel_size[0] - x.shape[-1], 0)
            lo, hi = total // 2, total - total // 2
            return layer(F.pad(x, (lo, hi, lo, hi)) if total else x)

        def forward(self, x):
            x = F.relu(self.layers["norm"](self.conv(x, "conv")))
            for stage in range(3):
                for block in range(3):
                    at, stride = f"stage{stage}_block{block}", 2 if stage > 0 and block == 0 else 1
                    z = F.relu(self.layers[f"{at}_norm0"](self.conv(x, f"{at}_conv0", stride)))
                    z = self.layers[f"{at}_norm1"](self.conv(z, f"{at}_conv1"))
                    x = F.relu(z + (self.conv(x, f"{at}_shortcut", stride) if stride == 2 else x))
            return self.layers["last_layer"](x.mean((2, 3)))

    return ResNet20(), torch.from_numpy(problem.x.transpose(0, 3, 1, 2).copy())


def torch_func(problem: Problem):
    """PyTorch's tutorial on neural tangent kernels: Jacobians by vmap(jacrev), contracted parameter by parameter."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch.func import functional_call, jacrev, vmap  # pyright: ignore[reportMissingImports]

    model, x = _torch_network(problem)
    params = {name: p.detach() for name, p in model.named_parameters()}

    def single(params, x):
        return functional_call(model, params, (x[None],))[0]

    def run():
        jacobians = [j.flatten(2) for j in vmap(jacrev(single), (None, 0))(params, x).values()]
        return torch.stack([torch.einsum("Naf,Maf->NM", j, j) for j in jacobians]).sum(0).numpy() / 10

    return run


def nngeometry(problem: Problem):
    """nngeometry's Gram matrix, all samples as one batch; it has all pairs of outputs."""
    import torch  # pyright: ignore[reportMissingImports]
    from nngeometry.gram import GramMatrix  # pyright: ignore[reportMissingImports]
    from nngeometry.object import FMatDense  # pyright: ignore[reportMissingImports]
    from torch.utils.data import DataLoader, TensorDataset  # pyright: ignore[reportMissingImports]

    model, x = _torch_network(problem)
    loader = DataLoader(TensorDataset(x), batch_size=len(x))

    def run():
        gram = GramMatrix(model, loader, representation=FMatDense, function=lambda *d: model(d[0]))
        return torch.einsum("kikj->ij", gram.data).detach().numpy() / 10

    return run


CONTENDERS: dict[str, Callable] = {
    "layerwise": engine("layerwise"),
    "neural-tangents": neural_tangents,
    "floor": floor,
    "statistics": statistics,
    "statistics of features": lambda problem: statistics(problem, 0),
    "sampling": sampling,
    "torch.func": torch_func,
    "nngeometry": nngeometry,
}


# ---- one contender in a process of its own


def _resident() -> float:
    """MB of memory in use now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _three(found: Any, labels: np.ndarray) -> list[float] | None:
    if found is None:
        return None
    found = np.asarray(found, np.float64)
    if found.shape == (3,):
        return found.tolist()
    same, own = labels[:, None] == labels, np.eye(len(labels), dtype=bool)
    return [found[mask].mean() for mask in (own, same & ~own, ~same)]


def one(contender: str, file: str, repeats: int) -> dict[str, Any]:
    with np.load(file) as saved:
        weights = {name: saved[name] for name in saved.files if "/" in name}
        problem = Problem(str(saved["network"]), weights, saved["x"], saved["labels"])
    if contender not in ("torch.func", "nngeometry"):
        import jax

        jax.block_until_ready(jax.numpy.zeros(1))
    before = _resident()
    clocks, times, found = (time.perf_counter, time.process_time), [], None
    began = np.array([clock() for clock in clocks])
    run = CONTENDERS[contender](problem)
    building = np.array([clock() for clock in clocks]) - began
    for _ in range(repeats + 1):
        began = np.array([clock() for clock in clocks])
        found = run()
        found = None if found is None else np.asarray(found)
        times.append(np.array([clock() for clock in clocks]) - began)
    seconds, processor = np.min(times[1:] or times, axis=0).tolist()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    compiling = float((building + times[0])[1]) - processor
    spent = {"seconds": seconds, "processor": processor, "compiling": compiling}
    return spent | {"peak": peak, "added": peak - before, "values": _three(found, problem.labels)}


def write(file: Path, network_name: str, per_class: int) -> None:
    """Samples and initial weights for the contenders."""
    import jax

    from ntkcollapse import data
    from ntkcollapse.networks import network

    size = {"vgg11": 32}.get(network_name)
    samples = data.load("mnist", per_class=per_class, size=size).train
    variables = network(network_name).init(jax.random.key(0), samples.inputs[:1])
    weights = {}
    for kind, tree in variables._asdict().items():
        for path, leaf in jax.tree.leaves_with_path(tree):
            weights[kind + "/" + jax.tree_util.keystr(path, simple=True, separator="/")] = np.asarray(leaf)
    np.savez(file, network=network_name, x=samples.inputs, labels=samples.labels, **weights)


def measure(rows: list[Row], folder: Path, torch: str | None) -> str:
    from ntkcollapse.commands import Table, number

    cells, base = [], None
    for row in rows:
        python = torch if row.contender in ("torch.func", "nngeometry") else sys.executable
        if python is None:
            continue
        file = folder / f"{row.network}-{row.per_class}.npz"
        if not file.exists():
            write(file, row.network, row.per_class)
        N = 10 * row.per_class
        command = [python, __file__, "--one", row.contender, str(file), str(row.repeats)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{row.contender}: failed\n{done.stderr[-800:]}")
            continue
        got = json.loads(done.stdout.splitlines()[-1])
        base = base or got
        ratio = number(got["processor"] / base["processor"])
        off = "-"
        if got["values"] and base["values"]:
            off = ", ".join(number(abs(v / b - 1)) for v, b in zip(got["values"], base["values"], strict=True))
        shown = [got["seconds"], got["processor"], 1e3 * got["processor"] / N, got["compiling"], got["added"]]
        print(row, got, file=sys.stderr, flush=True)
        cells.append([row.contender, f"{N:,}", ratio, *(number(v) for v in shown), off])
    columns = ("", "N", "ratio", "seconds", "processor, s", "processor, ms a sample", "compiling, s", "added MB")
    return Table((*columns, "rel. difference of d, w, b"), cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(sections(True))}; all where none is named")
    parser.add_argument("--quick", action="store_true", help="small sizes, some minutes")
    parser.add_argument("--torch", metavar="PYTHON", help="interpreter with torch and nngeometry")
    parser.add_argument("--one", nargs=3, metavar=("CONTENDER", "FILE", "REPEATS"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.one:
        contender, file, repeats = flags.one
        print(json.dumps(one(contender, file, int(repeats))))
        return
    chosen = sections(flags.quick)
    unknown = set(flags.sections) - set(chosen)
    if unknown:
        parser.error(f"expected sections among {', '.join(chosen)}; got {', '.join(sorted(unknown))}")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "neural-tangents", "numpy")))
    with tempfile.TemporaryDirectory() as folder:
        for name in flags.sections or chosen:
            print(f"\n{name} (load {os.getloadavg()[0]:.1f})\n")
            print(measure(chosen[name], Path(folder), flags.torch), flush=True)


if __name__ == "__main__":
    main()
