# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Neural collapse in five minutes
#
# A small network learns to read handwritten digits. Soon it makes no mistake on its training set, and we do not stop.
# What its last hidden layer does from then on is *neural collapse*: all images of a digit end at one point, and the ten
# points are as far from each other as ten points can be.

# %%
# Installs the package where it is missing, as on Colab.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("ntkcollapse") is None:
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", "ntkcollapse"])

# %%
import dataclasses
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display
from matplotlib.animation import PillowWriter

from ntkcollapse import plots
from ntkcollapse.phases import blocks_formed, blocks_of, terminal_phase
from ntkcollapse.training import preset, train

# %% [markdown]
# ## A real network, trained on
# Two hundred of the $8\times 8$ digits that scikit-learn ships, a multilayer perceptron with batch normalisation,
# gradient descent with momentum and weight decay. The preset `collapse` takes its time; a narrower network, a larger
# step and more decay will do here. Features and their kernel are measured on the whole training set on the way.

# %%
config = dataclasses.replace(
    preset("collapse"),
    network_options=("batch_norm=true", "widths=(128,128,32)"),
    learning_rate=0.1,
    weight_decay=0.01,
    epochs=2000,
    decay_every=1200,
    measure=("kappa", "last-layer"),
    measure_log=32,
)
run = train(config)
steps, labels = np.asarray(run["step"]), np.asarray(run.classes.labels)
H = np.asarray(run.states.H, float)  # features of 200 images (columns) at every record
right = terminal_phase(run)
print(f"{len(steps)} records up to step {steps[-1]}; no mistake on the training set from step {steps[right]} on")

# %% [markdown]
# ## A window on 32 dimensions
# Ten points as far from each other as possible are a simplex in nine dimensions, of which a screen shows two. Take
# three digits, and project on the plane through their class means, turned so that the three stand upright. If all ten
# are a simplex, the three are an equilateral triangle, and *every other digit falls on its centre*.

# %%
shown, colours = (0, 1, 7), ("#0072B2", "#D55E00", "#009E73")
angles = np.pi / 2 + 2 * np.pi / 3 * np.arange(3)
triangle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
views = []
for features in H:
    means = np.stack([features[:, labels == c].mean(1) for c in range(10)], axis=1)
    centre = means.mean(1, keepdims=True)
    # The plane in which the three means come nearest to the triangle: the polar factor of their product.
    left, _, right_factor = np.linalg.svd((means - centre)[:, shown] @ triangle, full_matrices=False)
    # Ten corners of a simplex at a distance of 1 from their centre stand at √(2/3 · 10/9) in this plane.
    size = np.sqrt(np.mean(np.sum((means - centre) ** 2, axis=0))) * np.sqrt(20 / 27)
    views.append((left @ right_factor).T @ (features - centre) / size)

# %% [markdown]
# ## Twelve moments
# Coloured: three digits. Grey: the other seven. Circles: the corners where a simplex has them.

# %%
moments = np.unique(np.concatenate([[0], np.searchsorted(steps, np.geomspace(8, steps[-1], 11))]))
with plots.style():
    figure, axes = plt.subplots(2, 6, figsize=(10.5, 4.4), layout="constrained")
    for ax, i in zip(axes.flat, moments, strict=True):
        others = ~np.isin(labels, shown)
        ax.plot(*views[i][:, others], "o", color="#999999", markersize=2.5, markeredgewidth=0, alpha=0.6)
        for digit, colour in zip(shown, colours, strict=True):
            ax.plot(*views[i][:, labels == digit], "o", color=colour, markersize=3, markeredgewidth=0, label=str(digit))
        ax.plot(*triangle.T, "o", color="black", fillstyle="none", markersize=11, markeredgewidth=0.8)
        ax.set(xlim=(-1.9, 1.9), ylim=(-1.6, 2.0), xticks=[], yticks=[], aspect="equal")
        ax.set_title(f"step {steps[i]}" + (", no mistake left" if i >= right else ""))
    handles = axes[0, 0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", title="digit", ncols=3, markerscale=1.6)

# %% [markdown]
# At first a cloud, and when the last mistake is gone still a cloud: three clouds, loosely. All the rest happens while
# there is nothing left to get right. At the end 60 images are three points, and 140 images are one.

# %% [markdown]
# ## In numbers
# - **NC1**: variance within classes over variance between class means, $\mathrm{tr}\,\Sigma_W/\mathrm{tr}\,\Sigma_B$.
# - **NC2**: how far class means are from a simplex.
# - **NC3**: how far class means are from the rows of the classifier that reads them.
#
# The shade is the time in which every training image is classified rightly. The bumps are the optimiser's: with so
# large a step it leaves the valley now and then, and finds back; from step 1,200 on the step is a tenth.

# %%
collapse = ("nc1_tirer2022", "nc2_seleznova2023", "nc3_seleznova2023")
blocks = blocks_of(run)
with plots.style():
    figure, ax = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
    for name in collapse:
        entry = plots.described(name)
        ax.loglog(steps[1:], run[name][1:], "o-", color=entry.colour, markersize=3, linewidth=0.8, label=entry.label)
        print(f"{entry.label}: {float(run[name][0]):.2g} at the start, {float(run[name][-1]):.2g} at the end")
    ax.axvspan(steps[right], steps[-1], color="#e8eef4", zorder=0)
    ax.set(xlabel="step", xlim=(1, steps[-1]), title="collapse comes after the last mistake")
    ax.legend()

# %% [markdown]
# ## The three numbers of the theorem
# Why? A step of gradient descent on one image moves the features of all others, by their *neural tangent kernel*. The
# theory of Seleznova et al. (2023) takes it to know classes only, so that three numbers say all of it: $\kappa_d$ (an
# image with itself), $\kappa_c$ (two images of a class), $\kappa_n$ (images of two classes). Here it is, measured: the
# mean for each pair of digits at three steps, and the three numbers along training.

# %%
with plots.style():
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.0), layout="constrained", width_ratios=(1, 1, 1, 1.5))
    for ax, i in zip(axes, (0, right, len(steps) - 1), strict=False):
        pairs = np.asarray(run["kappa_class_pairs"][i]) / float(run["kappa_diagonal"][i])
        image = ax.imshow(pairs, vmin=0, vmax=1, cmap="magma")
        ax.set(title=f"step {steps[i]}", xticks=range(10), yticks=range(10), xlabel="digit")
    figure.colorbar(image, ax=axes[:3], label=r"kernel over $\kappa_d$", shrink=0.8, pad=0.01)
    for part, values in {
        r"$\kappa_c/\kappa_d$, within": blocks.within,
        r"$\kappa_n/\kappa_d$, between": blocks.between,
    }.items():
        axes[3].semilogx(steps[1:], values[1:], "o-", markersize=3, linewidth=0.8, label=part)
    axes[3].axvspan(steps[right], steps[-1], color="#e8eef4", zorder=0)
    axes[3].set(xlabel="step", xlim=(1, steps[-1]), ylim=(0, 1), title="the kernel becomes one of blocks")
    axes[3].legend()
formed = blocks_formed(run)
print(f"blocks have formed from step {steps[formed]} on" if formed is not None else "no blocks that last")

# %% [markdown]
# In the end an image teaches the network about its own digit, and about no other. Under such a kernel the theorem says
# when features must collapse: notebooks 1 and 4 have the theorem, notebook 3 sets it beside a network, step by step.

# %% [markdown]
# ## The moving picture
# All of it at once; the line is where we are.

# %%
with plots.style(), tempfile.TemporaryDirectory() as folder:
    figure, (left, upper, lower) = plt.subplots(1, 3, figsize=(9.6, 3.1), layout="constrained")
    grey = left.plot([], [], "o", color="#999999", markersize=2.5, markeredgewidth=0, alpha=0.6)[0]
    dots = [left.plot([], [], "o", color=c, markersize=3.5, markeredgewidth=0)[0] for c in colours]
    left.plot(*triangle.T, "o", color="black", fillstyle="none", markersize=13, markeredgewidth=0.8)
    left.set(xlim=(-1.9, 1.9), ylim=(-1.6, 2.0), xticks=[], yticks=[], aspect="equal")
    for name in collapse:
        upper.loglog(steps[1:], run[name][1:], color=plots.described(name).colour, label=name[:3].upper())
    lower.loglog(steps[1:], blocks.within[1:], label=r"$\kappa_c/\kappa_d$")
    lower.loglog(steps[1:], np.maximum(blocks.between[1:], 1e-4), label=r"$\kappa_n/\kappa_d$")
    upper.set(xlabel="step", title="collapse")
    lower.set(xlabel="step", title="the kernel's blocks", ylim=(1e-3, 1.5))
    cursors = [ax.axvline(1, color="black", linewidth=0.8) for ax in (upper, lower)]
    for ax in (upper, lower):
        ax.axvspan(steps[right], steps[-1], color="#e8eef4", zorder=0)
        ax.legend(loc="lower left")
    file = Path(folder, "collapse.gif")
    writer = PillowWriter(fps=6)
    with writer.saving(figure, str(file), dpi=75):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        # The end stands for a moment.
        for i in [*range(len(steps)), *[len(steps) - 1] * 6]:
            grey.set_data(*views[i][:, ~np.isin(labels, shown)])
            for digit, line in zip(shown, dots, strict=True):
                line.set_data(*views[i][:, labels == digit])
            for line in cursors:
                line.set_xdata([max(steps[i], 1)] * 2)
            left.set_title(f"step {steps[i]}" + (", no mistake left" if i >= right else ""))
            writer.grab_frame()
    plt.close(figure)
    moving = Image(data=file.read_bytes(), format="gif")
display(moving)
