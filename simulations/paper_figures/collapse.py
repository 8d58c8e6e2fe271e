"""NC1 to NC3, alignments of both kernels with the labels, and of the invariant, along training; colour: learning rate.

python simulations/paper_figures/collapse.py --setting laptop --network resnet20 --dataset mnist
"""

import jax
import matplotlib.pyplot as plt
from study import HERE, arguments, draw, learning_rate_colours, name, runs

from ntkcollapse import plots

PANELS = (
    ("nc1_seleznova2023", "NC1", True),
    ("nc2_seleznova2023", "NC2", False),
    ("nc3_seleznova2023", "NC3", False),
    ("gamma_alignment", r"alignment of $\Theta$ with $Y^\top Y$", False),
    ("kappa_alignment", r"alignment of $\Theta^h$ with $Y^\top Y$", False),
    ("invariant_alignment", "alignment of the invariant's parts", False),
)


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    flags = arguments(str(__doc__))
    trajectories = runs(flags)
    with plots.style():
        figure, axes = plt.subplots(2, 3, figsize=(10, 5.4), constrained_layout=True)
        colours = learning_rate_colours(figure, list(axes.flat), trajectories)
        for ax, (key, label, log) in zip(axes.flat, PANELS, strict=True):
            draw(ax, trajectories, colours, key, log=log, label=label)
        figure.suptitle(f"{flags.network} on {flags.dataset}, {flags.setting} setting")
        print(plots.save(figure, HERE / "figures" / f"collapse_{name(flags)}"))


if __name__ == "__main__":
    main()
