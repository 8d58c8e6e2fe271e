"""The invariant against collapse: norm and alignment over NC1 and NC3, along training; colour: learning rate.

python simulations/paper_figures/invariant.py --setting laptop --network resnet20 --dataset mnist
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
from study import HERE, arguments, learning_rate_colours, name, runs

from ntkcollapse import plots

PAIRS = (
    ("invariant_relative", "norm of the invariant, relative to its parts"),
    ("invariant_alignment", "alignment of the invariant's parts"),
)
COLLAPSE = (("nc1_seleznova2023", "NC1"), ("nc3_seleznova2023", "NC3"))


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    flags = arguments(str(__doc__))
    trajectories = runs(flags)
    with plots.style():
        figure, axes = plt.subplots(2, 2, figsize=(7.5, 5.6), constrained_layout=True)
        colours = learning_rate_colours(figure, list(axes.flat), trajectories)
        for row, (key, label) in zip(axes, PAIRS, strict=True):
            for ax, (metric, metric_label) in zip(row, COLLAPSE, strict=True):
                for run, trajectory in trajectories.items():
                    x, y = np.asarray(trajectory[key]), np.asarray(trajectory[metric])
                    ax.plot(x, y, "-", color=colours[run], linewidth=0.8, alpha=0.6)
                    ax.plot(x[0], y[0], "o", color=colours[run], markersize=4, fillstyle="none")
                    ax.plot(x[1:], y[1:], ".", color=colours[run], markersize=4)
                ax.set_xlabel(label)
                ax.set_ylabel(metric_label)
        figure.suptitle(f"{flags.network} on {flags.dataset}, {flags.setting} setting; circles: before training")
        print(plots.save(figure, HERE / "figures" / f"invariant_{name(flags)}"))


if __name__ == "__main__":
    main()
