"""Heat maps of both kernels, samples sorted by class, before, during and at the end of training.

python simulations/paper_figures/kernel_structure.py --setting laptop --network resnet20 --dataset mnist
"""

import dataclasses
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from study import HERE, arguments, name, settings

from ntkcollapse import plots
from ntkcollapse.training import Moment, train

KERNELS = {"gamma": r"$\Theta$, mean over outputs", "kappa": r"$\Theta^h$, mean over features"}


def matrices(moment: Moment) -> dict[str, Any]:
    """N × N means over outputs of both kernels on the probe: a measurement of one's own."""
    return {"gamma_matrix": moment.gamma.matrix, "kappa_matrix": moment.kappa.matrix}


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    flags = arguments(str(__doc__))
    base, grid = settings(flags.setting, flags.network, flags.dataset)
    rate = grid["learning_rate"][len(grid["learning_rate"]) // 2]
    config = dataclasses.replace(
        base, learning_rate=rate, measure=("train", "test"), measure_every=0, measure_log=4, keep_states=False
    )
    out = HERE / "runs" / f"kernels_{name(flags)}"
    # A run that is finished has no step left; one of other settings is refused.
    run = train(config, out, resume=True, measurements={"matrices": matrices}, progress=True)
    epochs = np.asarray(run["epoch"])
    with plots.style():
        figure, axes = plt.subplots(2, len(epochs), figsize=(2.6 * len(epochs) + 0.6, 5.4), constrained_layout=True)
        for row, (kernel, label) in zip(axes, KERNELS.items(), strict=True):
            for ax, epoch, matrix in zip(row, epochs, np.asarray(run[f"{kernel}_matrix"]), strict=True):
                # Each map on its own scale: the structure is what is compared, the size grows along training.
                limit = np.percentile(np.abs(matrix), 99)
                image = ax.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
                figure.colorbar(image, ax=ax, shrink=0.7)
                ax.set_xticks([])
                ax.set_yticks([])
                ax.set_title(f"epoch {epoch:.3g}")
            row[0].set_ylabel(label)
        figure.suptitle(f"{flags.network} on {flags.dataset}, learning rate {rate}, {flags.setting} setting")
        print(plots.save(figure, HERE / "figures" / f"kernels_{name(flags)}"))


if __name__ == "__main__":
    main()
