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
# # When collapse fails
#
# Loss zero is not collapse. The flow conserves $E=W^\top W-HK^{-1}H^\top$ (the paper divides it by $m$), and where
# it ends with $R=0$ and collapse, $E$ has one of the forms
#
# $$E = a\,(W^\top W - c\,\langle h\rangle\langle h\rangle^\top)\qquad\text{or}\qquad
#   E\propto\langle h\rangle\langle h\rangle^\top,$$
#
# with $W$ and the mean feature $\langle h\rangle$ of the end. That is necessary, not sufficient: among states with
# $E=0$ are some that end at saddles, and some that collapse only like a power of $t$.

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
from ntkcollapse.theory import initial_condition, invariant

jax.config.update("jax_enable_x64", True)

classes = nc.Classes.balanced(num_classes=3, per_class=6)
kappa = nc.BlockKernel(diagonal=1.0, within=0.5, between=0.1)
times = np.concatenate([[0.0], np.geomspace(1e-2, 150.0, 100)])
kinds = {
    "zero-invariant-scatter": r"$E=0$, $1^\top W=0$",
    "zero-invariant-uncentred": r"$E=0$, $1^\top W\neq 0$",
    "non-collapse": r"$E=e_0vv^\top$, $e_0<0$",
    "non-collapse-nc3": r"$E=e_0vv^\top$, $e_0>0$",
    "gaussian": r"$E\neq 0$, $\langle h\rangle\neq 0$",
}

# %% [markdown]
# The first four starts are centred, $\langle h\rangle=0$ and $b=1/C$, and stay so. In the third and fourth $E$ has the
# one eigenvalue $e_0\neq 0$, on a direction $v$ that no class mean has. The last one has the random positive features
# that one finds behind a ReLU.

# %%
runs = {}
for kind in kinds:
    start = initial_condition(kind, classes, 6, kappa, key=jax.random.key(1))
    if kind == "gaussian":
        start = nc.LastLayer(H=0.5 * jnp.abs(start.H), W=start.W, b=start.b)
    runs[kind] = nc.simulate(start, kappa, classes, times)
    spectrum = np.linalg.eigvalsh(invariant(start, kappa, classes))
    mean = jnp.linalg.norm(start.class_means(classes).mean(1))
    print(
        f"{kind:26s} |⟨h⟩| {float(mean):.1e}  |1ᵀW| {float(jnp.linalg.norm(start.W.sum(0))):.1e}  "
        f"eigenvalues of E from {spectrum[0]:+.3f} to {spectrum[-1]:+.3f}"
    )

# %%
colours = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7")
dashes = ("-", "-", "-", "--", "-")
panels = ("loss", "nc1_seleznova2023", "nc3_seleznova2023")
with plots.style():
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.6), constrained_layout=True)
    for ax, name in zip(axes, panels, strict=True):
        for (kind, label), colour, dash in zip(kinds.items(), colours, dashes, strict=True):
            run = runs[kind]
            ax.loglog(run.times[1:], np.maximum(run[name][1:], 1e-12), dash, color=colour, label=label)
        ax.set_ylim(bottom=1e-6)
        ax.set_xlabel("flow time $t$")
        ax.set_ylabel(plots.described(name).label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)

# %% [markdown]
# All five reach small loss; the losses of the third and the fourth are one curve, since $e_0$ and $-e_0$ exchange the
# parts of $W$ and of the scatter along $v$. The first collapses exponentially. In the second, NC1 and NC3 fall only
# like $1/\sqrt t$. The third keeps within-class scatter for ever, in the direction that $W$ forgets; the fourth keeps a
# part of $W$ that no class mean has. The last one keeps both.
#
# NC3 of the first run stops where the solver's error has moved $E$ from 0, and stops lower with a smaller tolerance:

# %%
start = initial_condition("zero-invariant-scatter", classes, 6, kappa, key=jax.random.key(1))
for rtol in (1e-6, 1e-8, 1e-10):
    end = nc.simulate(start, kappa, classes, times[[0, -1]], method=nc.Method(rtol=rtol, atol=1e-3 * rtol))
    print(f"rtol {rtol:.0e}: NC3 {float(end['nc3_seleznova2023'][-1]):.1e}, ‖E‖ {float(end['invariant_norm'][-1]):.1e}")

# %% [markdown]
# ## What the invariant says
# Distance of $E$ from the first form, relative, with $W$ and $\langle h\rangle$ of that time. $E$ is conserved and the
# distance is not: its value at the end is what decides. For the third and the fourth run the answer is known at the
# start: at collapse $W^\top W$ has $C-1=2$ equal eigenvalues and $\langle h\rangle$ stays 0, so that an $E$ of rank 1
# excludes it.

# %%
for kind, run in runs.items():
    condition, nc1, nc3 = (np.asarray(run[k]) for k in ("necessary_condition", *panels[1:]))
    print(
        f"{kind:26s} distance {condition[0]:.1e} at the start, {condition[-1]:.1e} at the end;  "
        f"NC1 {nc1[-1]:.1e}  NC3 {nc3[-1]:.1e}"
    )
