"""How many blocks beside the theorem does it take to follow the whole sample kernel, and the network?

    python simulations/krylov_blocks.py --setting digits
    python simulations/krylov_blocks.py --setting mnist --seeds 0 1
    python simulations/krylov_blocks.py --setting digits-200 --estimate 1 2 3 --rest 3
    python simulations/krylov_blocks.py --summary --figure

Trains full batch on the squared loss, measures the feature kernel at one step, and predicts from there with the
theorem's three numbers, with q Krylov blocks beside the class indicators, with m resolvents on indicators and residual,
and with the whole kernel of N² numbers. Errors are relative to the latter; where N is too large for its flow
(`fashion-6000`) they are relative to the most resolvents. Rungs are kept in `results/krylov_blocks/` as they are done.
`--estimate` sets what `comparison.krylov_error` says beside the true error, and two bounds of the norm of its residual;
`--rest` gives what the blocks leave out several rates, more directions or resolvents, instead of one rate; `--path`
lets T move as measured; `--chain` sets q blocks in the place of class blocks and spectrum on the way from the theorem
to the network; `--summary` is how many blocks and resolvents the settings that are there need, and `--figure` draws
their errors against the number of directions.
"""

import argparse
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

import ntkcollapse as nc
from ntkcollapse import plots
from ntkcollapse.commands import Table
from ntkcollapse.comparison import (
    RUNGS,
    Ladder,
    MeasuredRun,
    MeasuredStart,
    climb,
    joined,
    krylov_error,
    load_ladders,
    save_ladders,
)
from ntkcollapse.data import Dataset
from ntkcollapse.observable_table import described
from ntkcollapse.training import TrainConfig, train

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "krylov_blocks"
PARTS = ("residual_single", "residual_class")
WHOLE = "sample-frozen"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One network on one set: full-batch gradient descent, predicted from step `start` on and compared at `steps`.

    classes: the first so many of the set; without_whole: rung 3 would take too long, or has a singular kernel, and the
    most resolvents stand for it; groups: numbers of rates that the largest q is tried with, beside one; data_options:
    of a synthetic set.
    """

    title: str
    dataset: str
    per_class: int
    network: str
    options: tuple[str, ...]
    start: int
    steps: tuple[int, ...]
    blocks: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6)
    learning_rate: float = 0.3
    classes: int = 10
    image_size: int | None = None
    without_whole: bool = False
    groups: tuple[int, ...] = ()
    resolvents: tuple[int, ...] = (1, 2, 3)
    data_options: tuple[str, ...] = ()

    @property
    def whole(self) -> str:
        """The rung that the others are compared with."""
        return f"resolvents:{self.resolvents[-1]}" if self.without_whole else WHOLE


# Ten times the classes weigh each output a tenth: the rate is larger by as much.
HUNDRED = Setting(
    "100 Gaussian clusters, 128-128-128-128-100", "gaussian-mixture", 8, "mlp", ("widths=(128,128,128)",), 80,
    (320, 1280), blocks=(0, 1, 2), learning_rate=3.0, classes=100, resolvents=(1,), without_whole=True,
    data_options=("classes=100", "dimension=128", "separation=4"),
)  # fmt: skip
RESNET = Setting(
    "8x8 digits, ResNet8 of 8-16-32", "digits", 10, "resnet8", ("widths=(8,16,32)",), 80, (160, 320, 640),
    blocks=(0, 1, 2, 3, 4, 6), learning_rate=0.05, groups=(4,),
)  # fmt: skip
RESNET20 = dataclasses.replace(
    RESNET,
    title="8x8 digits, ResNet20",
    network="resnet20",
    options=(),
    steps=(160, 320),
    blocks=(0, 1, 2, 3),
    groups=(),
)
DIGITS = Setting("8x8 digits, 64-128-128-32-10", "digits", 20, "mlp", ("widths=(128,128,32)",), 80, (320, 1280, 2560))
FASHION = Setting(
    "Fashion-MNIST 14x14, 196-128-128-32-10", "fashion-mnist", 60, "mlp", ("widths=(128,128,32)",), 80, (320, 1280),
    image_size=14,
)  # fmt: skip
NORMALISED = ("widths=(128,128,32)", "batch_norm=true")
SETTINGS = {
    "digits-200": DIGITS,
    "digits": dataclasses.replace(DIGITS, per_class=60),
    "digits-1200": dataclasses.replace(DIGITS, per_class=120),
    "digits-late": dataclasses.replace(
        DIGITS, title="8x8 digits, 64-128-128-32-10, a late start", start=2560, steps=(3840, 5120, 10240),
        blocks=(0, 1, 2, 3, 4, 5, 6, 8, 9, 12),
    ),
    "hundred": HUNDRED,
    "resnet8": RESNET,
    "resnet20": RESNET20,
    "two-classes": dataclasses.replace(
        DIGITS, title="two digits, 64-128-128-32-2", classes=2, per_class=100,
        blocks=(0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32),
    ),
    "deep": dataclasses.replace(
        DIGITS, title="8x8 digits, six layers of 128, 32-10", options=("widths=(128,128,128,128,128,128,32)",),
    ),
    "batch-norm": dataclasses.replace(
        DIGITS, title="8x8 digits, batch norm", options=NORMALISED, learning_rate=0.05,
        blocks=(0, 1, 2, 3, 4, 5, 6, 9),
    ),
    "cnn": Setting(
        "8x8 digits, convolutions 12-24-32", "digits", 20, "cnn", ("widths=(12,24,32)", "batch_norm=false"), 200,
        (800, 1600, 3200, 6000),
    ),
    "mnist": Setting(
        "MNIST, 784-256-256-64-10", "mnist", 30, "mlp", ("widths=(256,256,64)",), 80, (589, 1116, 2113, 4000),
        blocks=(0, 1, 2, 3, 4, 6, 8),
    ),
    "fashion-600": FASHION,
    "fashion-1500": dataclasses.replace(FASHION, per_class=150),
    "fashion-3000": dataclasses.replace(FASHION, per_class=300),
    "fashion-6000": dataclasses.replace(FASHION, per_class=600, blocks=(0, 1, 2, 3, 6), resolvents=(1, 2, 3, 4),
                                        without_whole=True),
}  # fmt: skip


def trained(name: str, seed: int, *, along: bool = False) -> MeasuredStart:
    """Trains the setting's network, and gives its state and kernels at the start of the prediction.

    along: with the network at every record from there on.
    """
    setting = SETTINGS[name]
    config = TrainConfig(
        network=setting.network,
        network_options=setting.options,
        seed=seed,
        dataset=setting.dataset,
        per_class=setting.per_class,
        dataset_options=setting.data_options,
        image_size=setting.image_size,
        learning_rate=setting.learning_rate,
        momentum=0.0,
        nesterov=False,
        weight_decay=0.0,
        decay_every=0,
        batch_size=0,
        epochs=setting.steps[-1],
        ntk_engine="layerwise",
        probe_per_class=0,
        measure=("kappa", "last-layer"),
        measure_log=0,
        measure_steps=(setting.start, *setting.steps),
        recompute_statistics=True,
    )
    splits = config.build_splits()
    if setting.classes < splits.train.classes.num_classes:
        splits = splits._replace(train=_first(splits.train, setting.classes), test=_first(splits.test, setting.classes))
    kept = [setting.start, *(setting.steps if along else ())]
    run, networks = train(config, splits=splits, keep_networks_at=kept, statistics_batch_size=0)
    return MeasuredRun.of(run, networks, splits.train).start(setting.start)


def _first(part: Dataset, classes: int) -> Dataset:
    """The first classes of a set."""
    kept = part.labels < classes
    return Dataset.of(part.inputs[kept], part.labels[kept], name=f"{part.name}, {classes} classes")


def folder_of(name: str, seed: int) -> Path:
    """Where the rungs of a run are kept."""
    return RESULTS / f"{name}_{seed}"


def ladder_of(name: str, seed: int, start: MeasuredStart | None = None, more: tuple[str, ...] = ()) -> Ladder:
    """The theorem, the blocks, the whole kernel, and more rungs from the setting's start; what is there is kept."""
    setting, out = SETTINGS[name], folder_of(name, seed)
    out.mkdir(parents=True, exist_ok=True)
    ladder = load_ladders(out)[setting.start] if (out / "comparison.nc").exists() else None
    rungs = ["block-frozen", *(f"blocks:{q}" for q in setting.blocks)]
    rungs += [f"blocks:{setting.blocks[-1]}:groups={g}" for g in setting.groups]
    rungs += [f"resolvents:{m}" for m in setting.resolvents]
    rungs += [*([] if setting.without_whole else [WHOLE]), *more]
    missing = [rung for rung in rungs if ladder is None or rung not in ladder.rungs]
    if missing and start is None:
        start = trained(name, seed)
    for rung in missing:
        assert start is not None
        began = time.process_time()
        ladder = joined(ladder, climb(start, [rung], throw=True))
        print(f"{name}: {rung}, {time.process_time() - began:.1f} processor seconds", flush=True)
        save_ladders(out, {setting.start: ladder})
    assert ladder is not None
    return ladder


def errors(name: str, ladder: Ladder, part: str) -> dict[str, np.ndarray]:
    """How far each rung, and the network, are from the rung of the whole kernel, at each record after the start."""
    reference = SETTINGS[name].whole
    whole = np.asarray(ladder.rungs[reference][part])[1:]
    runs = {rung: run for rung, run in ladder.rungs.items() if rung != reference} | {"network": ladder.network}
    return {name: np.asarray(run[part])[1:] / whole - 1 for name, run in runs.items()}


def error_table(name: str, ladder: Ladder) -> str:
    """Errors in percent at the setting's steps."""
    setting = SETTINGS[name]
    found = {part: errors(name, ladder, part) for part in PARTS}
    rows = []
    for rung in found[PARTS[0]]:
        title = "the network itself" if rung == "network" else RUNGS[rung].title
        rows.append([title, *(" / ".join(f"{100 * x:+.0f}%" for x in found[part][rung]) for part in PARTS)])
    samples = ladder.network.classes.num_samples
    head = f"{setting.title}, N = {samples}, from {setting.start}, at {' / '.join(map(str, setting.steps))}"
    return Table([head, *(described(part).symbol for part in PARTS)], rows)


def there() -> Iterator[tuple[str, str, Ladder]]:
    """The runs whose rungs are kept, to the last: setting, seed, ladder."""
    for name in SETTINGS:
        for path in sorted(RESULTS.glob(f"{name}_[0-9]*/comparison.nc")):
            ladder = load_ladders(path.parent)[SETTINGS[name].start]
            if SETTINGS[name].whole in ladder.rungs:
                yield name, path.parent.name.removeprefix(f"{name}_"), ladder


def needed(name: str, ladder: Ladder, family: str = "blocks", within: float = 0.05) -> list[str]:
    """For each step, the least q (or m) from which on every larger one keeps both parts within 5% up to that step."""
    found, q = [errors(name, ladder, part) for part in PARTS], getattr(SETTINGS[name], family)
    q = [k for k in q if f"{family}:{k}" in found[0]]
    answers = []
    for at in range(len(SETTINGS[name].steps)):
        good = [all(np.abs(part[f"{family}:{k}"][: at + 1]).max() < within for part in found) for k in q]
        bad = max((i for i, yes in enumerate(good) if not yes), default=-1)
        answers.append(f"{q[bad + 1]}" if bad + 1 < len(q) else f"more than {max(q, default=0)}")
    return answers


def summary() -> str:
    """How many blocks and resolvents each setting needs, what three resolvents err by, and the theorem."""
    rows = []
    for name, seed, ladder in there():
        setting, classes = SETTINGS[name], ladder.network.classes
        found = [errors(name, ladder, part) for part in PARTS]
        theorem = [part["block-frozen"][-1] for part in found]
        three = f"resolvents:{3 if 3 in setting.resolvents else setting.resolvents[-1]}"
        most = [100 * np.abs(part[three]).max() for part in found if three in part]
        rows.append(
            [
                f"{setting.title}, N = {classes.num_samples}, seed {seed}",
                " / ".join(map(str, setting.steps)),
                " / ".join(needed(name, ladder)),
                " / ".join(needed(name, ladder, "resolvents")),
                " / ".join(f"{x:.1f}%" for x in most),
                " / ".join(f"{100 * x:+.0f}%" for x in theorem),
            ]
        )
    head = ["", "steps", "blocks within 5% up to them", "resolvents", "three of them at most, single / class"]
    return Table([*head, "the theorem at the last, single / class"], rows)


def other_rests(K: np.ndarray, start: MeasuredStart, q: int) -> Iterator[tuple[str, nc.SampleKernel]]:
    """q blocks, with other accounts of what they leave out; and one block more."""
    H, W, classes = np.asarray(start.state.H), np.asarray(start.state.W), start.classes
    kernel = nc.KrylovKernel.of(K, classes, blocks=q)
    N, U, V = len(K), basis_of(kernel, classes), np.asarray(kernel.basis)
    yield "one rate, the mean of the rest's", kernel
    H_rest = H - H @ U @ U.T
    yield (
        "one rate, as the features weigh it",
        nc.KrylovKernel(V, kernel.matrix, [np.sum(H_rest @ K * H_rest) / np.sum(H_rest**2)]),
    )
    rest = np.eye(N) - U @ U.T
    values, vectors = (x[..., U.shape[1] :] for x in np.linalg.eigh(rest @ K @ rest))
    energy = np.sum((W @ H_rest @ vectors) ** 2, axis=0)
    for g in (2, 4, 8):
        # As much of the residual in each, with the rate that this part has at the start: no choice is better informed.
        group = np.minimum(np.searchsorted(np.arange(1, g) / g, np.cumsum(energy) / energy.sum()), g - 1)
        rates = [np.average(values[group == i], weights=energy[group == i]) for i in range(g)]
        yield f"{g} groups of eigenvectors", several_rates(kernel, rates, [vectors[:, group == i] for i in range(1, g)])
    for depth in (2, 4):
        vectors, values = ritz_vectors(rest @ K @ rest, H_rest.T, depth)
        energy = np.sum((W @ H_rest @ vectors) ** 2, axis=0)
        group = np.minimum(np.searchsorted(np.arange(1, 4) / 4, np.cumsum(energy) / energy.sum()), 3)
        rates = [
            float(kernel.rates[0]),
            *(np.average(values[group == i], weights=energy[group == i]) for i in range(4)),
        ]
        label = f"4 groups of Ritz vectors, {depth} products with the features"
        yield label, several_rates(kernel, rates, [vectors[:, group == i] for i in range(4)])
    _, sizes, second = np.linalg.svd(H_rest, full_matrices=False)
    second = second[sizes > 1e-6 * sizes[0]].T
    for r in (classes.num_classes, second.shape[1]):
        more = nc.KrylovKernel(np.concatenate([V, second[:, :r]], axis=1), np.eye(U.shape[1] + r), [1.0])
        yield f"a second start: {r} directions of the features", more.of_same_directions(K, classes)
    yield "one block more", nc.KrylovKernel.of(K, classes, blocks=q + 1)
    indicators, residual_rows = basis_of(kernel, classes)[:, : classes.num_classes], residual(start.state, classes).T
    for powers in sorted({q // 4, q // 2} - {0}):
        basis = indicators
        block = np.concatenate([indicators, residual_rows], axis=1)
        for _ in range(powers + 1):
            basis = np.concatenate([basis, beside(basis, block)], axis=1)
            block = K @ basis[:, -2 * classes.num_classes :]
        more = nc.KrylovKernel(basis[:, classes.num_classes :], np.eye(basis.shape[1]), [1.0])
        label = f"{powers} blocks from indicators and residual: {basis.shape[1]} directions"
        yield label, more.of_same_directions(K, classes)
    time = float(start.times[-1] - start.times[0])
    for m in (1, 2, 3):
        kernel = nc.KrylovKernel.for_flow(K, start.state, classes, time, resolvents=m)
        yield f"{m} resolvents of indicators and residual: {len(kernel.matrix)} directions", kernel


def several_rates(kernel: nc.KrylovKernel, rates: list[float], groups: list[np.ndarray]) -> nc.KrylovKernel:
    """The kernel with further rates for groups of orthonormal columns; the first rate is of all that is in none."""
    bounds = np.cumsum([0, *(group.shape[1] for group in groups)]).tolist()
    return nc.KrylovKernel(kernel.basis, kernel.matrix, rates, np.nan, np.concatenate(groups, axis=1), bounds)


def beside(basis: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Orthonormal columns of what these have beside a basis."""
    for _ in range(2):
        columns = columns - basis @ (basis.T @ columns)
    vectors, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return vectors[:, sizes > 1e-9 * sizes[0]]


def ritz_vectors(K: np.ndarray, columns: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and values of K on the span of K^j X, j < depth: what so many products with the columns of X tell."""
    basis = np.zeros((len(K), 0))
    for _ in range(depth):
        for _ in range(2):
            columns = columns - basis @ (basis.T @ columns)
        vectors, sizes, _ = np.linalg.svd(columns, full_matrices=False)
        block = vectors[:, sizes > 1e-6 * sizes[0]]
        basis, columns = np.concatenate([basis, block], axis=1), K @ block
    values, vectors = np.linalg.eigh(basis.T @ K @ basis)
    return basis @ vectors, values


def basis_of(kernel: nc.KrylovKernel, classes: nc.Classes) -> np.ndarray:
    """U, orthonormal: class indicators and directions."""
    indicators = np.asarray(classes.Y).T / np.sqrt(np.asarray(classes.sizes))
    return np.concatenate([indicators, np.asarray(kernel.basis)], axis=1)


def flow_under(start: MeasuredStart, kernel: nc.SampleKernel, times: Any = None) -> list[nc.LastLayer]:
    """The states that follow the start under a kernel, as the ladder integrates them."""
    times = start.times if times is None else times
    solver = "chebyshev" if isinstance(kernel, nc.DenseKernel) else None
    method = nc.Method(solver=solver, rtol=1e-8, atol=1e-14)
    run = nc.simulate(start.state, kernel, start.classes, times, method=method, observed=False)
    return [run.last_layer(i) for i in range(len(run.times))]


def residual(layer: nc.LastLayer, classes: nc.Classes) -> np.ndarray:
    """R = W H + b 1ᵀ − Y."""
    return np.asarray(layer.logits - classes.Y)


def rest_table(name: str, start: MeasuredStart, ladder: Ladder, q: int) -> str:
    """What the rest's account changes, and what it costs in numbers of the state."""
    K, rows, n, C = np.asarray(start.sample_kernel.matrix), [], *start.state.W.shape[::-1]
    for label, kernel in other_rests(K, start, q):
        parts = [start.classes.parts(residual(x, start.classes))[:2] for x in flow_under(start, kernel)]
        norms = np.linalg.norm(np.asarray(parts), axis=(2, 3)).T
        groups = len(np.asarray(kernel.group_rates(C)))
        numbers = n * (C + kernel.num_directions) + groups * n * n + C * n + C
        whole = [np.asarray(ladder.rungs[WHOLE][part]) for part in PARTS]
        apart = [(x / y - 1)[1:] for x, y in zip(norms, whole, strict=True)]
        rows.append([label, f"{numbers:,}", *(" / ".join(f"{100 * x:+.1f}%" for x in part) for part in apart)])
    return Table([f"{name}, q = {q}", "numbers", *(described(part).symbol for part in PARTS)], rows)


def estimate_table(name: str, start: MeasuredStart, ladder: Ladder, blocks: list[int]) -> str:
    """What `krylov_error` says, the true error, and two bounds of ‖δR‖/‖R̂‖ beside it."""
    K, rows = np.asarray(start.sample_kernel.matrix), []

    def percents(values: Any) -> str:
        return " / ".join(f"{100 * x:.2g}%" for x in values)

    for q in blocks:
        ends = nc.KrylovKernel.ends_of(K, start.classes, blocks=q)
        estimate = krylov_error(start.state, ends, start.classes, start.times)
        true = [np.abs(errors(name, ladder, part)[f"blocks:{q}"]) for part in PARTS]
        rows.append([f"q = {q}, true", *map(percents, true), percents(residual_error(start, ends[0], K))])
        rows.append(["estimated", *(percents(estimate[part][1:]) for part in PARTS), ""])
        rows.extend([label, "", "", percents(values)] for label, values in bounds(start, ends[0], K).items())
    return Table([name, *(described(part).symbol for part in PARTS), "R as a vector, over that of the blocks"], rows)


def chain_table(name: str, seed: int, q: int) -> str:
    """What owns the gap between theorem and network, with q blocks in the place of class blocks and spectrum.

    Factors whose product is network / theorem, at each step.
    """
    ladder = ladder_of(name, seed, more=(f"blocks:{q}", "features-linearised", "network-flow"))
    links = {
        "coupling of means and deviations": ("block-frozen", f"blocks:{q}"),
        f"what {q} blocks leave out": (f"blocks:{q}", WHOLE),
        "average over features": (WHOLE, "features-linearised"),
        "lazy features": ("features-linearised", "network-flow"),
        "the optimiser's steps": ("network-flow", "network"),
        "network / theorem": ("block-frozen", "network"),
        f"network / {q} blocks": (f"blocks:{q}", "network"),
    }
    runs = ladder.rungs | {"network": ladder.network}
    rows = []
    for label, (one, other) in links.items():
        factors = [np.asarray(runs[other][part])[1:] / np.asarray(runs[one][part])[1:] for part in PARTS]
        rows.append([label, *(" / ".join(f"{x:.3g}" for x in part) for part in factors)])
    return Table([f"{name}, seed {seed}: factor", *(described(part).symbol for part in PARTS)], rows)


def path_table(name: str, seed: int, q: int) -> str:
    """T as measured along the run, on the directions of the start, beside the measured path of the whole kernel."""
    rungs = (f"blocks:{q}", f"blocks-path:{q}", "sample-path")
    ladder = climb(trained(name, seed, along=True), rungs, throw=True)
    runs, rows = ladder.rungs | {"network": ladder.network}, []
    for one, other in ((rungs[1], rungs[2]), (rungs[0], "network"), (rungs[1], "network"), (rungs[2], "network")):
        apart = [np.asarray(runs[one][part])[1:] / np.asarray(runs[other][part])[1:] - 1 for part in PARTS]
        rows.append([f"{one} beside {other}", *(" / ".join(f"{100 * x:+.0f}%" for x in part) for part in apart)])
    return Table([name, *(described(part).symbol for part in PARTS)], rows)


def residual_error(start: MeasuredStart, kernel: nc.KrylovKernel, K: np.ndarray) -> np.ndarray:
    """‖R̂ − R‖/‖R̂‖ at the records after the start."""
    runs = [[residual(x, start.classes) for x in flow_under(start, k)[1:]] for k in (kernel, nc.DenseKernel(K))]
    return np.array([np.linalg.norm(x - y) / np.linalg.norm(x) for x, y in zip(*runs, strict=True)])


def bounds(start: MeasuredStart, kernel: nc.KrylovKernel, K: np.ndarray) -> dict[str, np.ndarray]:
    """The bound of Gronwall's kind and the integral of the defect, over ‖R̂‖ (docs/theory/krylov_blocks.md)."""
    times = np.asarray(start.times)
    since = np.geomspace((times[1] - times[0]) / 100, times[-1] - times[0], 60)
    fine = np.unique(np.concatenate([times, times[0] + since[:-1], times[0] + np.linspace(0, times[1] - times[0], 20)]))
    values, vectors = np.linalg.eigh(K)
    left_out = K - np.asarray(kernel.as_matrix(start.classes))
    root, inverse = ((vectors * values**p) @ vectors.T for p in (0.5, -0.5))
    rows = []
    for layer in flow_under(start, kernel, fine):
        H, W, R = np.asarray(layer.H), np.asarray(layer.W), residual(layer, start.classes)
        defect = W.T @ R @ left_out
        top = np.sqrt(np.linalg.norm(W, 2) ** 2 * values[-1] + np.linalg.norm(H.T @ H + 1, 2))
        rows.append([np.linalg.norm(x) for x in (W @ defect, defect @ inverse, R)] + [np.linalg.norm(R @ root, 2), top])
    moved, forced, size, growth, top = np.array(rows).T

    def integral(y: np.ndarray) -> np.ndarray:
        return np.concatenate([[0.0], np.cumsum((y[1:] + y[:-1]) / 2 * np.diff(fine))])

    grown = np.exp(integral(growth))
    at = np.searchsorted(fine, times[1:])
    return {
        "integral of the defect": (integral(moved) / size)[at],
        "bound": (top * grown * integral(forced / grown) / size)[at],
    }


def figure() -> None:
    """Error of each residual part at the last step, against the number of directions: q blocks, and m resolvents.

    Of ResNet20 the whole kernel itself says nothing at that step.
    """
    fig, axes = plt.subplots(2, len(PARTS), figsize=(7.2, 7.4), sharex=True, sharey=True, layout="constrained")
    runs = [
        (name, seed, ladder)
        for name, seed, ladder in there()
        if not SETTINGS[name].without_whole and name != "resnet20"
    ]
    names = list(dict.fromkeys(name for name, _, _ in runs))
    for name, seed, ladder in runs:
        setting, place = SETTINGS[name], names.index(name)
        size, last = ladder.network.classes.num_samples, setting.steps[-1]
        label = f"{setting.title}, N = {size}, step {last}" if seed == "0" else None
        style = {"color": f"C{place % 10}", "linestyle": ("-", "--", ":")[place // 10]}
        for row, (family, step) in zip(axes, (("blocks", 1), ("resolvents", 2)), strict=True):
            for ax, part in zip(row, PARTS, strict=True):
                found = errors(name, ladder, part)
                kept = [k for k in getattr(setting, family) if f"{family}:{k}" in found]
                directions = [step * setting.classes * (1 + k) for k in kept]
                y = [abs(found[f"{family}:{k}"][-1]) for k in kept]
                ax.plot(
                    directions, y, marker="o", markersize=3, alpha=0.4 if label is None else 1, label=label, **style
                )
    for row, label in zip(axes, ("q blocks, C (1 + q)", "m resolvents, 2 C (1 + m)"), strict=True):
        for ax, part in zip(row, PARTS, strict=True):
            ax.axhline(0.05, color="0.6", linewidth=0.8)
            ax.set(xscale="log", yscale="log", xlabel=f"directions: {label}", title=described(part).label)
        row[0].set_ylabel("|error| beside the whole kernel")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7)
    plots.save(fig, HERE / "figures" / "krylov_blocks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=tuple(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of initial weights, a run each")
    parser.add_argument("--estimate", type=int, nargs="*", default=[], help="estimates of the error of so many blocks")
    parser.add_argument("--rest", type=int, nargs="*", default=[], help="what several rates change at so many blocks")
    parser.add_argument("--path", type=int, nargs="*", default=[], help="so many blocks along their measured path")
    parser.add_argument("--chain", type=int, nargs="*", default=[], help="who owns the gap, with so many blocks")
    parser.add_argument("--summary", action="store_true", help="blocks needed, of what is there")
    parser.add_argument("--figure", action="store_true", help="error against q, of what is there")
    flags = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    for seed in flags.seeds if flags.setting else ():
        start = trained(flags.setting, seed) if flags.estimate or flags.rest else None
        ladder = ladder_of(flags.setting, seed, start)
        print(f"seed {seed}\n{error_table(flags.setting, ladder)}\n", flush=True)
        for q in flags.chain:
            print(f"{chain_table(flags.setting, seed, q)}\n", flush=True)
        for q in flags.path:
            print(f"{path_table(flags.setting, seed, q)}\n", flush=True)
        if start is None:
            continue
        if flags.estimate:
            print(f"{estimate_table(flags.setting, start, ladder, flags.estimate)}\n", flush=True)
        for q in flags.rest:
            print(f"{rest_table(flags.setting, start, ladder, q)}\n", flush=True)
    if flags.summary:
        print(summary())
    if flags.figure:
        figure()


if __name__ == "__main__":
    main()
