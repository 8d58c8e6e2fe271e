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
# # Infinite-width and empirical NTK
#
# At infinite width the kernel of a random network is a fixed function of two inputs; a finite network's empirical
# kernel scatters about it, the less the wider. The theory takes a kernel of three numbers instead: how far are these
# from it, and how far is a network that has been trained?

# %%
# Installs the package where it is missing, as on Colab.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("ntkcollapse") is None:
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", "ntkcollapse"])
if importlib.util.find_spec("neural_tangents") is None:
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "neural-tangents==0.6.5"])
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", "frozendict"])

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from ntkcollapse import ntk, plots
from ntkcollapse.data import digits
from ntkcollapse.networks import mlp
from ntkcollapse.training import gradient_descent

jax.config.update("jax_enable_x64", True)

data = digits(4)
flat = jnp.asarray(data.inputs, dtype=float).reshape(len(data.inputs), -1)

# %% [markdown]
# ## The limit, and networks on their way to it
# One hidden ReLU layer without biases, in NTK units: standard-normal weights, each layer divided by the root of its
# fan-in, so that the limit exists. Six random networks of each width.

# %%
layers = ntk.stax()
widths = (32, 128, 512, 2048)
errors = []
for width in widths:
    init, network, kernel_fn = layers.serial(
        layers.Dense(width, b_std=None), layers.Relu(), layers.Dense(1, b_std=None)
    )
    limit = ntk.infinite_width_kernel(kernel_fn, flat)
    found = []
    for key in jax.random.split(jax.random.key(0), 6):
        theta = ntk.empirical_ntk(network, init(key, flat.shape)[1], flat, outputs="mean")
        found.append(float(jnp.linalg.norm(theta - limit) / jnp.linalg.norm(limit)))
    errors.append(found)
    print(f"width {width:4d}: distance from the limit {np.mean(found):.3f} ± {np.std(found, ddof=1):.3f} (one network)")

# %%
with plots.style():
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.2), constrained_layout=True)
    axes[0].loglog(widths, errors, ".", color="grey")
    axes[0].errorbar(
        widths, np.mean(errors, 1), np.std(errors, 1, ddof=1), fmt="o-", color="black", capsize=3, label="mean, spread"
    )
    slope = np.mean(errors[0]) * (np.array(widths) / widths[0]) ** -0.5
    axes[0].loglog(widths, slope, "--", color="#D55E00", label=r"width$^{-1/2}$")
    axes[0].set_xlabel("width")
    axes[0].legend()
    axes[0].set_ylabel(r"$\|\Theta-\Theta_\infty\|\,/\,\|\Theta_\infty\|$")
    for ax, kernel, title in ((axes[1], limit, "infinite width"), (axes[2], theta, "one network of width 2048")):
        image = ax.imshow(kernel, cmap="viridis", vmin=0, vmax=float(limit.max()))
        ax.set_title(title)
        ax.set_xlabel("sample, in class order")
    axes[1].set_ylabel("sample")
    figure.colorbar(image, ax=axes[1:], label=r"$\Theta(x_i,x_j)$")

# %% [markdown]
# ## How block-structured is a trained network's kernel?
# The feature kernel $\Theta^h$ of a small network, averaged over features, before and after it has learned the digits,
# beside the block kernel nearest to the latter: $K$ has the same mean on the diagonal, within and between classes.
# Each is divided by its mean diagonal, so that one scale serves all.

# %%
network = mlp((64, 32), 10)
variables = network.init(jax.random.key(0), data.inputs)
features = network.evaluation()[0]
same = np.asarray(data.classes.Y).T @ np.asarray(data.classes.Y)
shown = {}
for snapshot in gradient_descent(network, variables, data, learning_rate=0.5, at=(0, 1500)):
    params = snapshot.variables.params
    theta = np.asarray(ntk.empirical_ntk(features, params, data.inputs, outputs="mean"), dtype=float)
    kappa = ntk.block_statistics(features, params, data.inputs, data.labels).kernel
    nearest = np.asarray(kappa.as_matrix(data.classes), dtype=float)
    scale = float(kappa.diagonal)
    last_layer, classes = network.last_layer(snapshot.variables, data.inputs, data.labels)
    shown |= {f"step {snapshot.step}": theta / scale, "nearest block kernel": nearest / scale}
    print(
        f"step {snapshot.step:4d}, ‖R‖ {float(jnp.linalg.norm(last_layer.residual(classes))):.1e}: κ_d {scale:.2f}, "
        f"(κ_c − κ_n)/κ_d {float(kappa.within - kappa.between) / scale:.3f}, "
        f"‖Θ − K‖/‖Θ‖ {np.linalg.norm(theta - nearest) / np.linalg.norm(theta):.3f}, "
        f"alignment with the labels {np.sum(theta * same) / np.linalg.norm(theta) / np.linalg.norm(same):.3f}"
    )

# %%
with plots.style():
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.2), constrained_layout=True)
    top = max(float(kernel.max()) for kernel in shown.values())
    for ax, name in zip(axes, ("step 0", "step 1500", "nearest block kernel"), strict=True):
        image = ax.imshow(shown[name], cmap="viridis", vmin=0, vmax=top)
        ax.set_title(name)
        ax.set_xlabel("sample, in class order")
    axes[0].set_ylabel("sample")
    figure.colorbar(image, ax=axes, label=r"$\Theta^h(x_i,x_j)\,/\,\kappa_d$")

# %% [markdown]
# Training takes $\|R\|$ from 7.7 to 0.45, and with it the whole kernel up by a half; the contrast
# $(\kappa_c-\kappa_n)/\kappa_d$ rises from 0.20 to 0.24. It does not make blocks here: a quarter of $\Theta^h$ lies
# outside the three numbers, before as after. What that costs the theory, notebook 3 measures rung by rung.
