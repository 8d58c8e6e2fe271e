"""Training and test accuracy and loss along training; colour: learning rate.

python simulations/paper_figures/accuracy.py --setting laptop --network resnet20 --dataset mnist
"""

import jax
import matplotlib.pyplot as plt
from study import HERE, arguments, draw, learning_rate_colours, name, runs

from ntkcollapse import plots

PANELS = (
    ("train_loss", "training loss", True),
    ("test_loss", "test loss", True),
    ("train_accuracy", "training accuracy", False),
    ("test_accuracy", "test accuracy", False),
)


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    flags = arguments(str(__doc__))
    trajectories = runs(flags)
    with plots.style():
        figure, axes = plt.subplots(2, 2, figsize=(7.5, 5.4), constrained_layout=True)
        colours = learning_rate_colours(figure, list(axes.flat), trajectories)
        for ax, (key, label, log) in zip(axes.flat, PANELS, strict=True):
            draw(ax, trajectories, colours, key, log=log, label=label)
        figure.suptitle(f"{flags.network} on {flags.dataset}, {flags.setting} setting")
        print(plots.save(figure, HERE / "figures" / f"accuracy_{name(flags)}"))


if __name__ == "__main__":
    main()
