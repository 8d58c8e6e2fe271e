"""What the studies share: runs that are kept and not made twice, and tables of medians over seeds."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import ntkcollapse as nc
from ntkcollapse.plots.style import label_decades
from ntkcollapse.training import TrainConfig, train

HERE = Path(__file__).parent


def flags_of(about: str | None) -> argparse.Namespace:
    """The flags that every study takes, in single precision and with compiled code kept."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs-divided-by", type=int, default=1, help="for a quick look; runs are kept apart")
    parser.add_argument("--only", nargs="*", default=None, help="some parts of the study, by name")
    parser.add_argument("--out", type=Path, default=HERE / "figures")
    jax.config.update("jax_enable_x64", False)
    nc.enable_cache()
    return parser.parse_args()


def kept(flags: argparse.Namespace, study: str, name: str, config: TrainConfig, **parts: Any) -> nc.Trajectory:
    """The run of these settings; read where it is there already, gone on with where it was stopped."""
    label = "_".join(name.replace(",", " ").split())
    quick = f"_quick{flags.epochs_divided_by}" if flags.epochs_divided_by > 1 else ""
    out = HERE / "runs" / study / f"{label}_{config.seed}{quick}"
    run = train(config, out, resume=out.exists(), **parts)
    print(f"{study}: {name}, seed {config.seed}, {run.statistics['seconds_training']:.0f} s of training", flush=True)
    return run


def over_seeds(values: Sequence[float] | np.ndarray, digits: int = 2) -> str:
    """Median (smallest to largest) of what the seeds gave; one number where all print alike."""
    low, middle, high = (f"{v:.{digits}g}" for v in (np.min(values), np.median(values), np.max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table_of(
    runs: Mapping[str, Sequence[nc.Trajectory]], columns: Mapping[str, Callable[[nc.Trajectory], float]], first: str
) -> str:
    """One row a setting, one column a number of its runs, over seeds."""
    rows = [
        [name, *(over_seeds([float(of(run)) for run in group]) for of in columns.values())]
        for name, group in runs.items()
    ]
    return markdown([first, *columns], rows)


def band(ax: Any, runs: Sequence[nc.Trajectory], name: str, *, index: int | None = None, **look: Any) -> None:
    """The median over seeds along the steps, and their range."""
    steps = np.asarray(runs[0]["step"]) + 1
    values = np.stack(
        [np.asarray(run[name])[..., index] if index is not None else np.asarray(run[name]) for run in runs]
    )
    (line,) = ax.plot(steps, np.median(values, axis=0), **look)
    ax.fill_between(steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.2, linewidth=0)


def logarithmic(ax: Any) -> None:
    """The vertical axis of what is drawn already, with plain numbers where it is short."""
    ax.set_yscale("log")
    label_decades(ax.yaxis)


def beside(ax: Any) -> None:
    """The legend, to the right of the panel."""
    ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
