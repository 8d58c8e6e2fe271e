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
# # The theorem plus q blocks
#
# The theorem replaces the kernel of $N$ samples by three numbers. What it drops, more than anything else, is that class
# means and deviations within classes drive each other. Between the three numbers and the $N^2$ of a measured kernel
# there is a family that keeps this, and whose flow is still closed in a number of equations that $N$ does not enter:
#
# $$K \approx U\,T\,U^\top+\lambda\,(1-UU^\top),\qquad U=[Z D^{-1/2},Q_1,\dots,Q_q],\qquad T=U^\top K U .$$
#
# Labels and bias lie in the span of the class indicators $Z$. Block Lanczos finds, from products of $K$ with $C$
# vectors, the directions $Q_1, Q_2, \dots$ through which $K$ leads out of that span and back.

# %%
# Installs the package where it is missing, as on Colab.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("ntkcollapse") is None:
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", "ntkcollapse"])

# %%
import dataclasses

import jax
import matplotlib.pyplot as plt
import numpy as np

import ntkcollapse as nc
from ntkcollapse import ntk
from ntkcollapse.comparison import RUNGS, MeasuredRun, climb, krylov_error
from ntkcollapse.training import preset, train

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## A network, measured on the way
# A perceptron on 200 of the $8\times 8$ digits, full batch, without weight decay; the network is kept at step 80, and
# predicted from there.

# %%
config = dataclasses.replace(
    preset("digits"),
    per_class=20,
    network_options=("widths=(64,64,24)",),
    epochs=1600,
    measure=("kappa", "last-layer", "blocks"),
    measure_log=24,
)
run, networks = train(config, keep_networks_at=[80])
data = config.build_splits()
start = MeasuredRun.of(run, networks, data.train).start(80)
classes = start.classes

# %% [markdown]
# ## The price of each block
# Errors of the two parts of the residual beside the whole kernel of $N^2$ numbers, which is itself not the network
# (grey), but what a frozen kernel averaged over features can know of it.

# %%
rungs = ("block-frozen", "blocks:0", "blocks:1", "blocks:2", "blocks:3", "sample-frozen")
ladder = climb(start, rungs)
steps = np.asarray(ladder.network["step"])[1:]
colours = dict(zip(rungs, ["C3", *plt.get_cmap("viridis")(np.linspace(0.85, 0.15, 4)), "k"], strict=True))
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for ax, part, title in zip(
    axes, ("residual_single", "residual_class"), ("within classes", "of class means"), strict=True
):
    ax.plot(steps, ladder.network[part][1:], "o", color="0.6", markersize=4, label="the network")
    for name in rungs:
        ax.plot(steps, ladder.rungs[name][part][1:], color=colours[name], label=RUNGS[name].label)
    ax.set(xscale="log", yscale="log", xlabel="step", title=f"residual {title}")
axes[0].legend(fontsize=7)
for name in rungs[:-1]:
    off = [
        ladder.rungs[name][p][-1] / ladder.rungs["sample-frozen"][p][-1] - 1
        for p in ("residual_single", "residual_class")
    ]
    print(f"{RUNGS[name].label:34s} at the last step {off[0]:+6.1%} within classes, {off[1]:+6.1%} in class means")

# %% [markdown]
# ## What is in it
# $T$ is block tridiagonal: a class indicator leads to the first block, that one to the second, and nowhere else.
# $40\times 40$ numbers, and one rate for the rest, where the kernel has 40,000. Its largest eigenvalue belongs to the
# global mean and would hide all else in the picture; it is shown in the logarithm.

# %%
K = np.asarray(start.sample_kernel.matrix)
kernel = nc.KrylovKernel.of(K, classes, blocks=3)
T, C = np.asarray(kernel.matrix), classes.num_classes
fig, ax = plt.subplots(figsize=(4.4, 3.8), layout="constrained")
image = ax.imshow(np.log10(np.maximum(np.abs(T), 1e-2)), cmap="magma")
ax.set_xticks(np.arange(4) * C + C / 2 - 0.5, ["classes", "$Q_1$", "$Q_2$", "$Q_3$"])
ax.set_yticks(np.arange(4) * C + C / 2 - 0.5, ["classes", "$Q_1$", "$Q_2$", "$Q_3$"])
fig.colorbar(image, label=r"$\log_{10}|T|$")
print(f"rate of the rest {float(kernel.rates[0]):.3g}; what the blocks leave out |B_4| = {float(kernel.residual):.3g}")
print(f"eigenvalues of T from {np.linalg.eigvalsh(T)[0]:.3g} to {np.linalg.eigvalsh(T)[-1]:.4g}")

# %% [markdown]
# ## The directions
# Of all bases of a block, Lanczos takes here the one nearest to where it came from, so that a direction of each block
# belongs to each class: what the mean of that class drives in the deviations of all samples. Below, for five
# classes: their mean image; the sum of images, weighted by the class's direction of the first block (red and blue are
# the two signs, so that an image which is more like the red is on one side of the class); and the samples that weigh
# most on each side, with their label.

# %%
V = np.asarray(kernel.basis)
pixels = np.asarray(data.train.inputs).reshape(classes.num_samples, 8, 8)
labels = np.asarray(classes.labels)
fig, axes = plt.subplots(4, 5, figsize=(7, 5.8), layout="constrained")
for c, column in zip((0, 1, 3, 8, 9), axes.T, strict=True):
    v = V[:, c]
    weighted = np.tensordot(v, pixels, axes=1)
    size = np.abs(weighted).max()
    column[0].imshow(pixels[labels == c].mean(0), cmap="gray_r")
    column[0].set_title(f"class {c}", fontsize=9)
    column[1].imshow(weighted, cmap="RdBu_r", vmin=-size, vmax=size)
    for ax, i in zip(column[2:], (v.argmax(), v.argmin()), strict=True):
        ax.imshow(pixels[i], cmap="gray_r")
        ax.set_xlabel(f"a {labels[i]}, {v[i]:+.2f}", fontsize=8)
    for ax in column:
        ax.set_xticks([])
        ax.set_yticks([])
for ax, text in zip(axes[:, 0], ("mean", "direction", "most, one side", "most, other side"), strict=True):
    ax.set_ylabel(text, fontsize=8)

share = np.array([[np.sum(V[labels == d, c] ** 2) for d in range(C)] for c in range(C)])
print(
    f"of the weight of a class's direction, {np.diag(share).mean():.0%} lies on samples of that class "
    f"(chance: {1 / C:.0%})"
)

# %% [markdown]
# ## On images that the network has not seen
# Kernel values with the training set extend indicators and directions to any image, $K(x,X)\,U\,T^{-1}$. The extended
# indicators say how much of a class there is in an image; a direction, on which side of the class it lies.

# %%
network = start.network
features, params, x = network.as_trained
test = data.test.balanced(20)
rows = np.asarray(ntk.empirical_ntk(features, params, test.inputs, x, outputs="mean"))
extended = np.asarray(kernel.extended(rows, classes))
guessed = extended[:, :C].argmax(1)
print(f"largest indicator at the label on {np.mean(guessed == test.labels):.0%} of {len(guessed)} test images")
fig, axes = plt.subplots(1, 5, figsize=(10, 2.5), sharey=True, layout="constrained")
for ax, c in zip(axes, (0, 1, 3, 8, 9), strict=True):
    inside = np.asarray(test.labels) == c
    ax.plot(extended[~inside, c], extended[~inside, C + c], ".", color="0.7", markersize=4, label="other classes")
    ax.plot(extended[inside, c], extended[inside, C + c], "C3.", markersize=5, label="the class")
    ax.set(xlabel="indicator", title=f"class {c}")
axes[0].set_ylabel("its direction of $Q_1$")
axes[0].legend(fontsize=7)

# %% [markdown]
# ## What it leaves out
# The products that gave the blocks know more than is used: how strongly the last block drives what comes after it. A
# second kernel closes it at the other end (the rules of Gauss and of Gauss-Radau), and the distance of the two
# predictions estimates the error, without a product more.

# %%
print("relative error within classes, estimated and true, at the last step:")
for q in (1, 2, 3):
    ends = nc.KrylovKernel.ends_of(K, classes, blocks=q)
    estimate = krylov_error(start.state, ends, classes, start.times)["residual_single"][-1]
    true = ladder.rungs[f"blocks:{q}"]["residual_single"][-1] / ladder.rungs["sample-frozen"]["residual_single"][-1] - 1
    print(f"    {q} blocks: {estimate:.1%}, {abs(float(true)):.1%}")

# %% [markdown]
# ## Along training
# "blocks" among the measurements of `train` follows $T$: its eigenvalues are the theorem's three rates, grown to
# forty. After a hundred steps they rise: what a frozen kernel holds still does not stand still.

# %%
fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
step = np.maximum(np.asarray(run["step"]), 0.7)
ax.plot(step, run["blocks_rates"], color="C0", linewidth=0.6)
ax.plot([], [], color="C0", label="eigenvalues of $T$")
ax.plot(step, run["blocks_rest"], "C3", label=r"$\lambda$ of the rest")
ax.plot(step, run["blocks_residual"], "k--", label=r"$\|B_{4}\|$")
ax.set(xscale="log", yscale="log", xlabel="step", ylabel="rate")
ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# How many blocks other networks, sets and sizes need stands in `simulations/README.md`; the derivation in
# `docs/theory/krylov_blocks.md`.
