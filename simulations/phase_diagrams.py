"""Phase diagrams: whether, and how fast, collapse comes as a function of two parameters.

    python simulations/phase_diagrams.py                    four panels of 48 × 48 points, some minutes on two cores
    python simulations/phase_diagrams.py --grid 8           the same in a minute
    python simulations/phase_diagrams.py --diagram decay    one of: invariant, decay, imbalance

Every diagram is one function of a point, mapped over the whole grid by `vmap`, so that it runs as it is on CPUs and
accelerators. The grid goes through in batches of one shape (one compilation) behind a progress bar. Contours of what
was integrated are solid, those of theory dashed.

- invariant: κ ratio λ_class/λ_single against ‖E(0)‖, without weight decay: NC1 in the end, and when it fell a
  hundredfold. Scatter that W does not see never vanishes: to first order in E what is left is −λ_single E on the kernel
  of W.
- decay: weight decay against the scale of the start: NC1 after a fixed time. E decays like e^{−2λt} and takes the
  scatter outside the row space of W with it; from λ = √m on nothing is learned.
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
    """What a diagram is made of. grid: points along each axis; batch: integrations in one mapped call.

    A batch takes as long as its stiffest point: a few rows of the grid, which are alike, cost less than all of it.
    """

    grid: int = 48
    batch: int = 96
    classes: int = 3
    per_class: int = 10
    features: int = 8
    end: float = 60.0
    decay_time: float = 30.0
    seed: int = 0


@dataclass(frozen=True)
class Diagram:
    """values[i, j] at (x[j], y[i]), NaN where there is none, which `absent` then explains.

    theory: predicted values, drawn as dashed contours at `levels`; line: (x, y) of a theoretical boundary; line_name;
    limits: of the colours.
    """

    x: np.ndarray
    y: np.ndarray
    values: np.ndarray
    xlabel: str
    ylabel: str
    title: str
    limits: tuple[float, float]
    is_log: bool = True
    levels: tuple[float, ...] = ()
    theory: np.ndarray | None = None
    line: np.ndarray | None = None
    line_name: str = ""
    absent: str = ""


def mapped(point: Callable, x: np.ndarray, y: np.ndarray, config: Config, name: str) -> np.ndarray:
    """point(x, y) on the grid of both axes, in batches of one shape; what a point returns stands on the last axes."""
    X, Y = (a.ravel() for a in np.meshgrid(x, y))
    batch = min(config.batch, X.size)
    many, parts = jax.jit(jax.vmap(point)), []
    with tqdm(total=X.size, desc=name, unit="run") as bar:
        for i in range(0, X.size, batch):
            # The last batch overlaps the one before, so that every batch has one shape.
            first = min(i, X.size - batch)
            out = np.asarray(many(jnp.asarray(X[first : first + batch]), jnp.asarray(Y[first : first + batch])))
            parts.append(out[i - first :])
            bar.update(len(parts[-1]))
    values = np.concatenate(parts)
    return values.reshape(y.size, x.size, *values.shape[1:])


def first_below(times: np.ndarray, values: np.ndarray, level: float) -> np.ndarray:
    """When values (..., T) fall below the level for the first time, linear in their logarithm; NaN where never."""
    below = values < level
    after = np.argmax(below, axis=-1)
    before = np.maximum(after - 1, 0)
    high, low = (np.log(np.take_along_axis(values, i[..., None], -1)[..., 0]) for i in (before, after))
    share = np.where(after > 0, (high - np.log(level)) / np.where(high > low, high - low, 1), 0)
    crossed = times[before] + share * (times[after] - times[before])
    return np.where(below.any(-1), crossed, np.nan)


def invariant_diagrams(config: Config) -> dict[str, Diagram]:
    """Start with E = 0 and a fifth of W's Gram matrix as scatter, then add scatter in all directions."""
    C, m, n = config.classes, config.per_class, config.features
    classes = nc.Classes.balanced(C, m)
    rng = np.random.default_rng(config.seed)
    W = 0.3 * rng.normal(size=(C, n))
    W = W - W.mean(0)[None, :]
    A = rng.normal(size=(n, 2 * n))
    extra = A @ A.T / np.linalg.norm(A @ A.T)
    times = np.concatenate([[0.0], np.geomspace(0.01, config.end, 120)])

    def point(ratio, size):
        # λ_single = 1 and λ_class = ratio.
        kappa = nc.BlockKernel(1 + (ratio - 1) / m, (ratio - 1) / m, 0.0)
        scatter = 0.2 * jnp.asarray(W.T @ W) + size * jnp.asarray(extra)
        M, b = jnp.sqrt(0.8 * ratio / m) * jnp.asarray(W.T), jnp.full(C, 1 / C)
        start = nc.ReducedStart(M=M, scatter=scatter, W=jnp.asarray(W), b=b)
        return nc.simulate(start, kappa, classes, jnp.asarray(times), columns=False)["nc1_tirer2022"]

    ratio, size = np.logspace(0, 2, config.grid), np.logspace(-4, 1, config.grid)
    runs = mapped(point, ratio, size, config, "invariant")
    # S → size · extra on the kernel of W, over the class means M Mᵀ of the collapsed state, trace (C − 1) √(λ_class/m).
    unseen = np.eye(n) - np.linalg.pinv(W, rcond=1e-9) @ W
    left = size[:, None] * np.trace(unseen @ extra) / (C * m)
    theory = left / ((C - 1) / C * np.sqrt(ratio / m))[None, :]
    xlabel, ylabel = r"$\lambda_{\mathrm{class}}/\lambda_{\mathrm{single}}$", r"$\|E(0)\|$"
    levels = (1e-4, 1e-3, 1e-2, 1e-1)
    return {
        "invariant": Diagram(
            ratio,
            size,
            runs[..., -1],
            xlabel,
            ylabel,
            title="NC1 in the end",
            limits=(1e-5, 1),
            levels=levels,
            theory=theory,
        ),
        "invariant_time": Diagram(
            ratio,
            size,
            first_below(times, runs / runs[..., :1], 1e-2),
            xlabel,
            ylabel,
            title=r"$\lambda_{\mathrm{single}}\,t$ until NC1 is 1% of its start",
            limits=(0.5, 10.0),
            absent="never",
        ),
    }


def decay_diagram(config: Config) -> dict[str, Diagram]:
    """One random start, scaled; features without a network, decay of H and W alike."""
    C, m, n = config.classes, config.per_class, config.features
    classes = nc.Classes.balanced(C, m)
    rng = np.random.default_rng(config.seed)
    H, W = rng.normal(size=(n, C * m)) / np.sqrt(n), rng.normal(size=(C, n)) / np.sqrt(n)
    kappa = nc.BlockKernel(1.0, 0.0, 0.0)

    def point(decay, scale):
        start = nc.LastLayer(H=scale * jnp.asarray(H), W=scale * jnp.asarray(W), b=jnp.zeros(C))
        times = jnp.asarray([0.0, config.decay_time])
        rates = {"H": decay, "W": decay}
        return nc.simulate(start, nc.Flow(kappa, classes, weight_decay=rates), times=times, columns=False)[
            "nc1_tirer2022"
        ][-1]

    decay, scale = np.logspace(-3, 1, config.grid), np.logspace(-2, 1, config.grid)
    values = mapped(point, decay, scale, config, "decay")
    learned = decay < m**0.5
    # A small start learns in the row space of Π (W + √m Mᵀ). Outside of it −E, where positive, is scatter.
    M = H.reshape(n, C, m).mean(2)
    grown = (W + np.sqrt(m) * M.T) - (W + np.sqrt(m) * M.T).mean(0)
    unseen = np.eye(n) - np.linalg.pinv(grown, rcond=1e-9) @ grown
    left = np.maximum(np.linalg.eigvalsh(unseen @ (H @ H.T - W.T @ W) @ unseen), 0).sum() / (C * m)
    means = (C - 1) / C * (np.sqrt(m) - np.minimum(decay, m**0.5)) / m
    with np.errstate(divide="ignore"):
        theory = left * scale[:, None] ** 2 * (np.exp(-2 * decay * config.decay_time) / means)[None, :]
    return {
        "decay": Diagram(
            decay,
            scale,
            np.where(learned[None, :], values, np.nan),
            xlabel=r"weight decay $\lambda$",
            ylabel="scale of the start",
            title=rf"NC1 at $t={config.decay_time:g}$",
            limits=(1e-8, 1),
            levels=(1e-8, 1e-6, 1e-4, 1e-2),
            theory=np.where(learned[None, :], theory, np.nan),
            line=np.array([[m**0.5] * 2, [scale[0], scale[-1]]]),
            line_name=r"$\lambda=\sqrt{m}$",
            absent="nothing is learned",
        )
    }


def imbalance_diagram(config: Config) -> dict[str, Diagram]:
    """Four classes, two of them in the minority; the budget of the classifier is 1."""
    C, majority, key = 4, 2, jax.random.key(config.seed)
    is_major = jnp.arange(C) < majority

    def point(ratio, energy):
        W = nc.models.layer_peeled.minimizer(jnp.where(is_major, ratio, 1.0), energy, 1.0, key=key).W
        unit = W / jnp.linalg.norm(W, axis=1)[:, None]
        return unit[2] @ unit[3]

    ratio, energy = np.logspace(0, 3, config.grid), np.linspace(1.0, 8.0, config.grid)
    return {
        "imbalance": Diagram(
            ratio,
            energy,
            mapped(point, ratio, energy, config, "imbalance"),
            xlabel=r"imbalance $m_A/m_B$",
            ylabel=r"feature budget $E_H$",
            title="cosine of minority classifiers",
            limits=(-1 / (C - 1), 1.0),
            is_log=False,
            line=np.array([[nc.models.layer_peeled.threshold(C, majority, float(e), 1.0) for e in energy], energy]),
            line_name=r"$R_0$",
        )
    }


DIAGRAMS = {"invariant": invariant_diagrams, "decay": decay_diagram, "imbalance": imbalance_diagram}


def draw(ax: plt.Axes, diagram: Diagram) -> None:
    """One diagram with its colour bar, and what theory draws over it."""
    plots.phase_diagram(
        diagram.x, diagram.y, diagram.values, ax=ax, log=diagram.is_log, levels=diagram.levels, theory=diagram.theory,
        limits=diagram.limits,
    )  # fmt: skip
    ax.set(xlabel=diagram.xlabel, ylabel=diagram.ylabel, title=diagram.title)
    if diagram.line is not None:
        x, y = ax.get_xlim(), ax.get_ylim()
        ax.plot(*diagram.line, color="red", linestyle="--", linewidth=1.2, label=diagram.line_name)
        ax.legend(loc="upper left", labelcolor="white", frameon=True, facecolor="0.5", framealpha=0.7, edgecolor="none")
        ax.set(xlim=x, ylim=y)
    gone = np.isnan(diagram.values)
    if gone.any():
        # In the middle of what is grey, along the axis on which it is a band.
        i, j = (int(np.median(k)) for k in np.nonzero(gone))
        across = gone.all(0).any()
        ax.text(diagram.x[j], diagram.y[i], diagram.absent, rotation=90 * across, ha="center", va="center", fontsize=7)


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    flags = arguments()
    config = Config(grid=flags.grid, batch=flags.batch, seed=flags.seed)
    names = list(DIAGRAMS) if flags.diagram == "all" else [flags.diagram]
    out = Path(flags.out)
    if out.exists() and any(out.iterdir()) and not flags.overwrite:
        raise SystemExit(f"{out}: expected a new or empty directory; name another one with --out, or add --overwrite.")
    out.mkdir(parents=True, exist_ok=True)
    diagrams: dict[str, Diagram] = {}
    for name in names:
        diagrams |= DIAGRAMS[name](config)
    for name, diagram in diagrams.items():
        np.savez(out / f"{name}.npz", x=diagram.x, y=diagram.y, values=diagram.values, config=str(asdict(config)))
    rows = 2 if len(diagrams) > 2 else 1
    columns = -(-len(diagrams) // rows)
    with plots.style():
        size = (3.6 * columns, 2.9 * rows)
        figure, axes = plt.subplots(rows, columns, figsize=size, constrained_layout=True, squeeze=False)
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
