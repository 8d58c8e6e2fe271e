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
# # Weight decay drives $E$ to zero
#
# $E = W^\top W - HK^{-1}H^\top$ (the paper divides it by $m$). With the same decay $\lambda$ on $H$ and $W$, and a
# kernel $K$ that stays constant, $E(t)=E(0)\,e^{-2\lambda t}$ exactly, whatever else happens. So a start that could
# never collapse is led there, on a clock that the decay alone sets.

# %%
# Installs the package where it is missing, as on Colab.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("ntkcollapse") is None:
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", "ntkcollapse"])

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import ntkcollapse as nc
from ntkcollapse import plots
from ntkcollapse.theory import initial_condition
from ntkcollapse.theory.exact import regularised_minimiser

jax.config.update("jax_enable_x64", True)

classes = nc.Classes.balanced(num_classes=3, per_class=6)
kappa = nc.BlockKernel(diagonal=1.0, within=0.5, between=0.1)
start = initial_condition("non-collapse", classes, 6, kappa, key=jax.random.key(1))
times = np.concatenate([[0.0], np.geomspace(1e-2, 400.0, 120)])
decays = (0.0, 0.005, 0.02)
runs = {λ: nc.simulate(start, nc.Flow(kappa, classes, weight_decay={"H": λ, "W": λ}), times=times) for λ in decays}

# %%
panels = ("invariant_norm", "nc1_seleznova2023", "loss")
with plots.style():
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.4), constrained_layout=True)
    for λ, colour in zip(decays, ("#000000", "#0072B2", "#D55E00"), strict=True):
        run = runs[λ]
        for ax, name in zip(axes, panels, strict=True):
            ax.plot(run.times[1:], run[name][1:], color=colour, label=rf"$\lambda$ = {λ:g}")
        exact = run["invariant_norm"][0] * np.exp(-2 * λ * times)
        axes[0].plot(times[1::8], exact[1::8], "x", color=colour, markersize=4)
    for ax, name in zip(axes, panels, strict=True):
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("flow time $t$")
        ax.set_ylabel(plots.described(name).label)
    axes[0].set_ylim(1e-6, 3)
    axes[1].set_ylim(1e-4, 1)
    # What is below is rounding: without decay the loss goes to 0.
    axes[2].set_ylim(1e-12, 100)
    axes[0].legend(title=r"crosses: $\|E(0)\|e^{-2\lambda t}$")

# %% [markdown]
# The price: with decay the loss no longer reaches 0. It ends where the regularised minimiser is, known in closed form.

# %%
for λ in decays[1:]:
    minimiser = regularised_minimiser(kappa, classes, {"H": λ, "W": λ})
    expected = np.sort(np.linalg.eigvalsh(np.asarray(minimiser.state.weight_gram)))[1:]
    W = runs[λ].last_layer(-1).W
    print(f"λ = {λ}: eigenvalues of W Wᵀ {np.linalg.eigvalsh(W @ W.T)[1:]}, minimiser {expected}")

# %% [markdown]
# On trained networks $\|E\|$ follows the law nowhere: features have no decay of their own there, only parameters have,
# and the kernel moves (`simulations/README.md`, invariant and collapse).
