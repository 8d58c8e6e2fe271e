# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Infinite-width and empirical NTK
#
# At infinite width the kernel of a random network is a fixed function of two inputs; a finite network's empirical
# kernel scatters about it, the less the wider. Both are far from block structure at the start: training makes blocks.

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
x = jnp.asarray(data.inputs)

# %% [markdown]
# ## The limit, and networks on their way to it
# One hidden ReLU layer without biases, in NTK units. Its output kernel in the limit has a closed form (arc-cosine
# kernels, Cho and Saul 2009): $\Theta = \Sigma_1 + \dot\Sigma\,\Sigma_0$, functions of the cosine $\rho$ of two inputs.

# %%
flat = x.reshape(len(x), -1)
gram = flat @ flat.T / flat.shape[1]
norms = jnp.sqrt(jnp.diag(gram))
ρ = jnp.clip(gram / jnp.outer(norms, norms), -1, 1)
angle = jnp.arccos(ρ)
Σ1 = jnp.outer(norms, norms) * (jnp.sqrt(1 - ρ**2) + (jnp.pi - angle) * ρ) / (2 * jnp.pi)
Σdot = (jnp.pi - angle) / (2 * jnp.pi)
widths = (32, 128, 512, 2048)
errors = []
for width in widths:
    found = []
    for seed in range(6):
        # In NTK units: gradients with respect to standard-normal weights, so that the limit exists.
        keys = jax.random.split(jax.random.key(seed), 2)
        params = (jax.random.normal(keys[0], (flat.shape[1], width)), jax.random.normal(keys[1], (width, 1)))
        f = lambda p, x: jax.nn.relu(x @ p[0] / x.shape[1] ** 0.5) @ p[1] / p[1].shape[0] ** 0.5  # noqa: E731
        theta = ntk.empirical_ntk(f, params, flat, outputs="mean")
        limit = Σ1 + Σdot * gram
        found.append(float(jnp.linalg.norm(theta - limit) / jnp.linalg.norm(limit)))
    errors.append(np.mean(found))

# %%
with plots.style():
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.2), constrained_layout=True)
    axes[0].loglog(widths, errors, "o-", color="black")
    slope = errors[0] * (np.array(widths) / widths[0]) ** -0.5
    axes[0].loglog(widths, slope, "--", color="grey", label=r"width$^{-1/2}$")
    axes[0].set_xlabel("width")
    axes[0].legend()
    axes[0].set_ylabel("distance from the limit, relative")
    for ax, kernel, title in ((axes[1], limit, "infinite width"), (axes[2], theta, "width 2048")):
        ax.imshow(kernel, cmap="viridis", vmin=0, vmax=float(limit.max()))
        ax.set_title(title)

# %% [markdown]
# ## Blocks come with training
# The feature kernel $\Theta^h$ of a small network, before and after it has learned the digits: samples in class order.

# %%
network = mlp((64, 32), 10)
variables = network.init(jax.random.key(0), data.inputs)
features = network.evaluation()[0]
snapshots = gradient_descent(network, variables, data, learning_rate=0.5, at=(0, 1500))
kernels = {s.step: ntk.empirical_ntk(features, s.variables.params, data.inputs, outputs="mean") for s in snapshots}
with plots.style():
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.3), constrained_layout=True)
    for ax, (step, kernel) in zip(axes, kernels.items(), strict=True):
        image = ax.imshow(kernel, cmap="viridis", vmin=0)
        ax.set_title(rf"$\Theta^h$ averaged over features, step {step}")
        figure.colorbar(image, ax=ax)
