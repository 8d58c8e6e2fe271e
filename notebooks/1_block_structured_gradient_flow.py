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
# # Block-structured gradient flow, from scratch
#
# A network's last layer reads features $H$ ($n\times N$, a column for each of $N$ samples, $m$ in each of $C$ classes)
# with weights $W$ ($C\times n$) and bias $b$; $Y$ ($C\times N$) has the one-hot labels as columns. Under gradient flow
# on $\frac12\|R\|^2$, $R = WH + b1^\top - Y$, weights move along their gradient, and features move as their kernel
# $\Theta^h$ lets them. The theory takes that kernel to know classes only: an $N\times N$ matrix $K$ with the entries
# $\kappa_d$ for a sample with itself, $\kappa_c$ within a class, $\kappa_n$ between classes. Then
#
# $$\dot H = -W^\top R\,K,\qquad \dot W = -R H^\top,\qquad \dot b = -R\,1 .$$

# %%
# Installs the package where it is missing, as on Colab.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("ntkcollapse") is None:
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", "ntkcollapse"])

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import ntkcollapse as nc
from ntkcollapse import plots
from ntkcollapse.theory import invariant

jax.config.update("jax_enable_x64", True)

classes = nc.Classes.balanced(num_classes=4, per_class=10)
kappa = nc.BlockKernel(diagonal=1.0, within=0.5, between=0.1)
rng = np.random.default_rng(0)
n, N, C = 8, classes.num_samples, classes.num_classes
start = nc.LastLayer(H=0.3 * rng.normal(size=(n, N)), W=0.3 * rng.normal(size=(C, n)) / np.sqrt(n), b=np.zeros(C))

# %% [markdown]
# ## The equations by hand
# Thirty lines of the theory fit into five of code. Small explicit steps will do for a first look.

# %%
K = np.asarray(kappa.as_matrix(classes))
H, W, b = (np.array(x) for x in (start.H, start.W, start.b))
Y, step = np.asarray(classes.Y), 2e-3
by_hand = []
for i in range(2001):
    R = W @ H + b[:, None] - Y
    if i % 100 == 0:
        by_hand.append((i * step, 0.5 * np.sum(R**2)))
    H, W, b = H - step * W.T @ R @ K, W - step * R @ H.T, b - step * R.sum(1)

# %% [markdown]
# ## The same by `simulate`
# The library integrates class means and a propagator of the deviations instead: exact, at a cost that $N$ does not
# enter, and with every column of $H$ recovered.

# %%
times = np.concatenate([[0.0], np.geomspace(1e-3, 60.0, 120)])
run = nc.simulate(start, kappa, classes, times, method=nc.Method(rtol=1e-9, atol=1e-14))
with plots.style():
    figure, ax = plt.subplots(figsize=(5.5, 3.6), constrained_layout=True)
    ax.loglog(run.times[1:], run["loss"][1:], color="black", label="simulate")
    ax.loglog(*np.array(by_hand[1:]).T, "o", color="#D55E00", markersize=4, label="steps by hand")
    ax.set_xlabel("flow time $t$")
    ax.set_ylabel(r"loss $\frac{1}{2}\|R\|^2$")
    ax.legend()

# %% [markdown]
# ## Three parts, one invariant
# The residual has three orthogonal parts: what differs within a class (single), what differs between class means
# (class), and the global mean. The bottom row adds up what is known of collapse and of
# $E= W^\top W - HK^{-1}H^\top$, relative to the sizes of its two terms.

# %%
figure = plots.simulation_figure(run, title="four classes of ten samples, κ = (1, 0.5, 0.1)")

# %% [markdown]
# The relative size moves because $W^\top W$ and $HK^{-1}H^\top$ do. $E$ itself does not (left: its eigenvalues); how
# much it drifts measures the solver, not the theory. At first the three parts have three rates (right; gaps where a
# part grows). Late in training only $R_{single}$ has one of its own: $W$ times the scatter drives the class means off
# their targets, to second order, so that the other two parts end up following at twice its rate.

# %%
shown = range(0, len(times), 4)
spectra = np.array([jnp.linalg.eigvalsh(invariant(run.last_layer(i), kappa, classes)) for i in shown])
print(f"‖E(t) − E(0)‖ / ‖E(0)‖ at most {float(jnp.max(run['invariant_drift'])):.1e}")
with plots.style():
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
    axes[0].semilogx(times[shown][1:], spectra[1:], color=plots.described("invariant_norm").colour)
    axes[0].set_ylabel("eigenvalues of $E$")
    for part in ("single", "class", "global"):
        name = f"residual_{part}"
        rate = -np.gradient(np.log(np.asarray(run[name])), times)
        axes[1].loglog(times[1:], np.where(rate > 0, rate, np.nan)[1:], color=plots.described(name).colour, label=part)
        print(f"rate of the {part} part at t = {times[-2]:.0f}: {rate[-2]:.4f}")
    axes[1].set_ylabel(r"rate $-\mathrm{d}\ln\|\cdot\|/\mathrm{d}t$")
    axes[1].legend()
    for ax in axes:
        ax.set_xlabel("flow time $t$")

# %% [markdown]
# ## Where the class means went
# Cosines between the columns of $M$, the class means, about their mean. At a simplex ETF all of them are
# $-1/(C-1) = -1/3$; from this random start they come nearer to that, and stop short of it.

# %%
with plots.style():
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.9), constrained_layout=True)
    for ax, i in zip(axes, (0, 60, -1), strict=True):
        M = run.last_layer(i).class_means(classes)
        M = M - M.mean(1, keepdims=True)
        M = M / jnp.linalg.norm(M, axis=0)
        cosines = np.asarray(M.T @ M)
        image = ax.imshow(cosines, vmin=-1, vmax=1, cmap="RdBu_r")
        ax.set_title(f"$t$ = {float(run.times[i]):.3g}")
        ax.set_xlabel("class")
        ax.set_xticks(range(4))
        ax.set_yticks(range(4))
        apart = cosines[~np.eye(4, dtype=bool)]
        metrics = ", ".join(f"NC{k} {float(run[f'nc{k}_seleznova2023'][i]):.3f}" for k in (1, 2, 3))
        print(f"t = {float(run.times[i]):5.3g}: cosines {apart.min():+.2f} to {apart.max():+.2f}; {metrics}")
    axes[0].set_ylabel("class")
    figure.colorbar(image, ax=axes, label="cosine of class means")

# %% [markdown]
# The loss is nearly gone, and collapse is not reached: which starts do reach it is the subject of notebook 4.
