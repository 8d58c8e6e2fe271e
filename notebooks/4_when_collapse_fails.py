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
# # When collapse fails
#
# Loss zero is not collapse. What decides is conserved from the start: $E\propto W^\top W-HK^{-1}H^\top$. If training
# ends with $R=0$ and collapse, $E$ must have the form $a\,(W^\top W - c\,\langle h\rangle\langle h\rangle^\top)$.
# Starts of another kind interpolate and do not collapse.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import ntkcollapse as nc
from ntkcollapse import plots
from ntkcollapse.theory import initial_condition

jax.config.update("jax_enable_x64", True)

classes = nc.Classes.balanced(num_classes=3, per_class=6)
kappa = nc.BlockKernel(diagonal=1.0, within=0.5, between=0.1)
times = np.concatenate([[0.0], np.geomspace(1e-2, 150.0, 100)])
kinds = {
    "zero-invariant-scatter": r"$E=0$, centred",
    "zero-invariant-uncentred": r"$E=0$, uncentred",
    "non-collapse": r"$E\neq 0$, $e_0<0$",
    "non-collapse-nc3": r"$E\neq 0$, $e_0>0$",
}

# %%
runs = {}
for kind in kinds:
    start = initial_condition(kind, classes, 6, kappa, key=jax.random.key(1))
    runs[kind] = nc.simulate(start, kappa, classes, times)

# %% [markdown]
# All four reach small loss. The first collapses exponentially. The second has features whose weights point along
# $1$: NC1 falls only like $1/\sqrt t$. The third keeps within-class scatter for ever, in directions that $W$ forgets;
# the fourth keeps a part of $W$ that no class mean has.

# %%
colours = ("#000000", "#0072B2", "#D55E00", "#009E73")
panels = ("loss", "nc1_seleznova2023", "nc3_seleznova2023")
with plots.style():
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.4), constrained_layout=True)
    for ax, name in zip(axes, panels, strict=True):
        for (kind, label), colour in zip(kinds.items(), colours, strict=True):
            run = runs[kind]
            ax.loglog(run.times[1:], np.maximum(run[name][1:], 1e-12), color=colour, label=label)
        ax.set_ylim(bottom=1e-6)
        ax.set_xlabel("flow time $t$")
        ax.set_ylabel(plots.LABELS[name])
    axes[0].legend()

# %% [markdown]
# ## Known before training
# The necessary condition, evaluated at the end of each run with its conserved invariant, separates them: its residual
# is 0 where collapse is possible.

# %%
for kind, run in runs.items():
    condition, nc1, nc3 = (float(run[k][-1]) for k in ("necessary_condition", *panels[1:]))
    print(f"{kind:26s} necessary condition off by {condition:.1e}   NC1 {nc1:.1e}   NC3 {nc3:.1e}")
