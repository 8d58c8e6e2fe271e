"""Phase diagrams: whether, and how far, collapse comes as a function of two parameters.

    python simulations/phase_diagrams.py                    three diagrams of 32 × 32 integrations
    python simulations/phase_diagrams.py --grid 8           the same in a minute
    python simulations/phase_diagrams.py --diagram decay    one of: invariant, decay, imbalance

Every diagram is one function of a point, mapped over the whole grid by `vmap`, so that it runs as it is on CPUs and
accelerators. The grid goes through in batches of one shape (one compilation) behind a progress bar.

- invariant: κ ratio λ_class/λ_single against ‖E(0)‖, without weight decay: NC1 at the end. Scatter that W does not see
  never vanishes.
- decay: weight decay against the scale of the start: NC1 after a fixed time. E decays like e^{−2λt}.
- imbalance: m_A/m_B against the budget of the features in the layer-peeled model: mean cosine of minority classifiers,
  with the threshold R₀ beyond which they coincide.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

import ntkcollapse as nc
from ntkcollapse import plots


@dataclass(frozen=True)
class Config:
    """What a diagram is made of. grid: points along each axis; batch: integrations in one mapped call."""

    grid: int = 32
    batch: int = 256
    classes: int = 3
    per_class: int = 10
    features: int = 8
    decay_time: float = 30.0
    seed: int = 0


@dataclass(frozen=True)
class Diagram:
    """values[i, j] at (x[j], y[i]); line: (x, y) of a theoretical boundary; floor: below it colours say no more."""

    x: np.ndarray
    y: np.ndarray
    values: np.ndarray
    labels: tuple[str, str, str]
    line: np.ndarray | None = None
    floor: float | None = None


def mapped(point: Callable, x: np.ndarray, y: np.ndarray, config: Config, name: str) -> np.ndarray:
    """point(x, y) on the grid of both axes, in batches of one shape."""
    X, Y = (a.ravel() for a in np.meshgrid(x, y))
    batch = min(config.batch, X.size)
    many = jax.jit(jax.vmap(point))
    values = np.empty(X.size)
    # The last batch overlaps the one before, so that every batch has one shape.
    starts = [min(i, X.size - batch) for i in range(0, X.size, batch)]
    with tqdm(total=X.size, desc=name, unit="run") as bar:
        for i in starts:
            values[i : i + batch] = np.asarray(many(jnp.asarray(X[i : i + batch]), jnp.asarray(Y[i : i + batch])))
            bar.update(min(batch, X.size - bar.n))
    return values.reshape(y.size, x.size)


def invariant_diagram(config: Config) -> Diagram:
    """Start with E = 0 and a fifth of W's Gram matrix as scatter, then add scatter in all directions."""
    C, m, n = config.classes, config.per_class, config.features
    classes = nc.Classes.balanced(C, m)
    rng = np.random.default_rng(config.seed)
    W = jnp.asarray(0.3 * rng.normal(size=(C, n)))
    W = W - W.mean(0)[None, :]
    A = jnp.asarray(rng.normal(size=(n, 2 * n)))
    extra = A @ A.T / jnp.linalg.norm(A @ A.T)

    def point(ratio, size):
        # λ_single = 1 and λ_class = ratio.
        kappa = nc.BlockKernel(1 + (ratio - 1) / m, (ratio - 1) / m, 0.0)
        gram = W.T @ W
        start = nc.ReducedStart(
            M=jnp.sqrt(0.8 * ratio / m) * W.T, scatter=0.2 * gram + size * extra, W=W, b=jnp.full(C, 1 / C)
        )
        times = jnp.stack([jnp.zeros(()), 40.0 * jnp.ones(())])
        return nc.simulate(start, kappa, classes, times, columns=False)["nc1_tirer2022"][-1]

    ratio, size = np.logspace(0, 2, config.grid), np.logspace(-4, 1, config.grid)
    values = mapped(point, ratio, size, config, "invariant")
    labels = (r"$\lambda_{\mathrm{class}}/\lambda_{\mathrm{single}}$", r"$\|E(0)\|$", r"$\log_{10}$ NC1 at the end")
    return Diagram(ratio, size, np.log10(values), labels)


def decay_diagram(config: Config) -> Diagram:
    """One random start, scaled; features without a network, decay of H and W alike."""
    classes = nc.Classes.balanced(config.classes, config.per_class)
    rng = np.random.default_rng(config.seed)
    H = jnp.asarray(rng.normal(size=(config.features, classes.num_samples)) / np.sqrt(config.features))
    W = jnp.asarray(rng.normal(size=(config.classes, config.features)) / np.sqrt(config.features))
    kappa = nc.BlockKernel(1.0, 0.0, 0.0)

    def point(decay, scale):
        start = nc.LastLayer(H=scale * H, W=scale * W, b=jnp.zeros(config.classes))
        times = jnp.asarray([0.0, config.decay_time])
        rates = {"H": decay, "W": decay}
        return nc.simulate(start, kappa, classes, times, weight_decay=rates, columns=False)["nc1_tirer2022"][-1]

    decay, scale = np.logspace(-3, 0.3, config.grid), np.logspace(-2, 1, config.grid)
    values = mapped(point, decay, scale, config, "decay")
    labels = (r"weight decay $\lambda$", "scale of the start", rf"$\log_{{10}}$ NC1 at $t={config.decay_time:g}$")
    return Diagram(decay, scale, np.log10(values), labels, floor=-8.0)


def imbalance_diagram(config: Config) -> Diagram:
    """Four classes, two of them in the minority; the budget of the classifier is 1."""
    C, majority, key = 4, 2, jax.random.key(config.seed)
    is_major = jnp.arange(C) < majority

    def point(ratio, energy):
        sizes = jnp.where(is_major, ratio, 1.0)
        W = nc.models.layer_peeled.minimizer(sizes, energy, 1.0, key=key).W
        unit = W / jnp.linalg.norm(W, axis=1)[:, None]
        return unit[2] @ unit[3]

    ratio, energy = np.logspace(0, 3, config.grid), np.linspace(1.0, 8.0, config.grid)
    values = mapped(point, ratio, energy, config, "imbalance")
    threshold = [nc.models.layer_peeled.threshold(C, majority, float(e), 1.0) for e in energy]
    labels = (r"imbalance $m_A/m_B$", r"feature budget $E_H$", "cosine of minority classifiers")
    return Diagram(ratio, energy, values, labels, line=np.stack([threshold, energy]))


DIAGRAMS = {"invariant": invariant_diagram, "decay": decay_diagram, "imbalance": imbalance_diagram}


def edges(centres: np.ndarray) -> tuple[np.ndarray, bool]:
    """Cell boundaries around the points of an axis, and whether the axis is logarithmic."""
    is_log = not np.isclose(centres[1] - centres[0], centres[-1] - centres[-2])
    c = np.log(centres) if is_log else centres
    between = np.concatenate([[1.5 * c[0] - 0.5 * c[1]], (c[1:] + c[:-1]) / 2, [1.5 * c[-1] - 0.5 * c[-2]]])
    return (np.exp(between) if is_log else between), is_log


def draw(ax: plt.Axes, diagram: Diagram) -> None:
    """One diagram with its colour bar, and the line that theory draws through it."""
    (x, log_x), (y, log_y) = edges(diagram.x), edges(diagram.y)
    mesh = ax.pcolormesh(x, y, diagram.values, cmap="viridis", vmin=diagram.floor, rasterized=True)
    ax.set(xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
    ax.set(xlabel=diagram.labels[0], ylabel=diagram.labels[1], title=diagram.labels[2])
    if diagram.line is not None:
        ax.plot(*diagram.line, "k--", label=r"$R_0$")
        ax.set_xlim(x[0], x[-1])
        ax.legend(labelcolor="black", loc="lower right")
    ax.figure.colorbar(mesh, ax=ax, extend="neither" if diagram.floor is None else "min")


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    flags = arguments()
    config = Config(grid=flags.grid, batch=flags.batch, seed=flags.seed)
    names = list(DIAGRAMS) if flags.diagram == "all" else [flags.diagram]
    out = Path(flags.out)
    if out.exists() and any(out.iterdir()) and not flags.overwrite:
        raise SystemExit(f"{out}: expected a new or empty directory; name another one with --out, or add --overwrite.")
    out.mkdir(parents=True, exist_ok=True)
    diagrams = {name: DIAGRAMS[name](config) for name in names}
    for name, diagram in diagrams.items():
        np.savez(out / f"{name}.npz", x=diagram.x, y=diagram.y, values=diagram.values, config=str(asdict(config)))
    with plots.style():
        figure, axes = plt.subplots(
            1, len(names), figsize=(4 * len(names), 3.3), constrained_layout=True, squeeze=False
        )
        for ax, diagram in zip(axes.flat, diagrams.values(), strict=True):
            draw(ax, diagram)
        print(plots.save(figure, out / "phase_diagrams"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diagram", choices=("all", *DIAGRAMS), default="all")
    parser.add_argument("--grid", type=int, default=Config.grid, help="points along each axis (default: %(default)s)")
    parser.add_argument(
        "--batch", type=int, default=Config.batch, help="runs in one mapped call (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=Config.seed, help="of the random starts (default: %(default)s)")
    parser.add_argument("--out", default="runs/phase_diagrams", help="directory (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="write into a directory that has files already")
    return parser.parse_args()


if __name__ == "__main__":
    main()
