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
# # The three rates
#
# The residual $R$ of $N$ samples has three orthogonal parts: what differs within a class ("single"), between class
# means ("class"), and their global mean ("global"). While the output kernel $\Theta$ stays what it is (lazy training)
# and has block structure $(\gamma_d,\gamma_c,\gamma_n)$, they decay as pure exponentials, at
#
# $$\lambda_{single}=\gamma_d-\gamma_c,\qquad \lambda_{class}=\lambda_{single}+m(\gamma_c-\gamma_n),\qquad
#   \lambda_{global}=\lambda_{class}+N\gamma_n .$$
#
# The gap between them grows with the number of samples $m$ in a class: classes are learned first, single samples last.

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
from ntkcollapse.comparison import measured_rates
from ntkcollapse.theory import SpectrumDecay, lazy_rates, within_class_decay
from ntkcollapse.theory.exact import frozen_residual

jax.config.update("jax_enable_x64", True)

classes = nc.Classes.balanced(num_classes=4, per_class=8)
gamma = nc.BlockKernel(diagonal=1.0, within=0.7, between=0.3)
rates = lazy_rates(gamma, classes)
print("single, class, global:", [round(float(rate), 3) for rate in rates])

# %% [markdown]
# ## Read back from a noisy residual
# Not a network: the exact residual of that kernel from a random start, seen with 3% of noise. `measured_rates` finds
# its windows by itself, fits, and judges each fit against the eigenvalue: does it agree, within two errors of the fit
# or within 10%?

# %%
rng = np.random.default_rng(0)
times = np.linspace(0.0, 4.0, 120)
R = frozen_residual(times, rng.normal(size=(4, classes.num_samples)), gamma, classes)
parts = [np.linalg.norm(np.stack(part), axis=(1, 2)) for part in zip(*(classes.parts(r) for r in R), strict=True)]
names = ("residual_single", "residual_class", "residual_global")
seen = {name: norm * np.exp(0.03 * rng.normal(size=120)) for name, norm in zip(names, parts, strict=True)}
seen |= {f"gamma_{k}": np.full(120, float(getattr(gamma, k))) for k in ("diagonal", "within", "between")}
run = nc.Trajectory(times, seen, classes)
found = measured_rates(run)
for part, rate in found.items():
    verdict = rate.verdicts["eigenvalue"]
    print(
        f"{part:7s} {rate.fit.rate:7.3f} ± {rate.fit.uncertainty:.3f}, predicted {verdict.predicted:7.3f}: "
        f"{verdict.deviation:+.1f} errors, {'agrees' if verdict.agrees else 'does not agree'}"
    )
figure = plots.rates_figure(run, found, title="frozen block kernel, 3% of noise")

# %% [markdown]
# ## When one rate is not enough
# Within classes a real kernel has a spectrum, not one eigenvalue. Here a random positive matrix, added to the block
# kernel, stands for it. With amplitudes $a_k$ of the residual on the eigenvectors, at rates $r_k$,
# $\|R_{single}\|=\sqrt{\sum_k a_k^2 e^{-2r_kt}}$. Its rate begins at the mean of the $r_k$ weighted by $a_k^2$, and
# falls towards the slowest of them.

# %%
A = rng.normal(size=(32, 24))
kernel = nc.DenseKernel(np.asarray(gamma.as_matrix(classes)) + A @ A.T / 40)
spread = nc.GroupedKernel.from_matrix(kernel.matrix, classes, groups=28)
late = np.linspace(0.0, 12.0, 200)
decay: SpectrumDecay = within_class_decay(late, R[0], spread, classes)
r, power = np.asarray(decay.rates), np.square(np.asarray(decay.amplitudes))
marks = {
    "mean": (float(r.mean()), "--"),
    "weighted by the residual": (float(r @ power / power.sum()), "-."),
    "slowest": (float(r.min()), ":"),
}
print("rates:", {name: round(rate, 3) for name, (rate, _) in marks.items()})
print(f"rate of the norm: {float(decay.rate[0]):.3f} at t = 0, {float(decay.rate[-1]):.3f} at t = {late[-1]:.0f}")

# %%
with plots.style():
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
    colour = plots.described("residual_single").colour
    axes[0].semilogy(late, decay.norm, color=colour, label="28 rates")
    axes[0].semilogy(late, decay.norm[0] * np.exp(-marks["mean"][0] * late), "--", color="black", label="their mean")
    axes[0].set_ylim(1e-3, 20)
    axes[0].set_ylabel(plots.described("residual_single").label)
    axes[1].plot(late, decay.rate, color=colour)
    for name, (rate, dashes) in marks.items():
        axes[1].axhline(rate, linestyle=dashes, color="black", linewidth=1, label=name)
    axes[1].set_ylim(bottom=0)
    axes[1].set_ylabel(r"rate of $\|R-R_{\mathrm{class}}\|$")
    for ax in axes:
        ax.set_xlabel("flow time $t$")
        ax.legend()
