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
# # The three rates
#
# While the output kernel $\Theta$ stays what it is (lazy training) and has block structure
# $(\gamma_d,\gamma_c,\gamma_n)$, the three parts of the residual decay as pure exponentials, at
#
# $$\lambda_{single}=\gamma_d-\gamma_c,\qquad \lambda_{class}=\lambda_{single}+m(\gamma_c-\gamma_n),\qquad
#   \lambda_{global}=\lambda_{class}+N\gamma_n .$$
#
# The gap between them grows with the number of samples $m$ in a class: classes are learned first, single samples last.

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
# ## Read back from a noisy run
# The exact residual, seen with 3% of noise. `measured_rates` finds a window by itself, fits, and judges the fit against
# the eigenvalues of the kernel.

# %%
rng = np.random.default_rng(0)
times = np.linspace(0.0, 4.0, 120)
R = frozen_residual(times, rng.normal(size=(4, classes.num_samples)), gamma, classes)
parts = [np.linalg.norm(np.stack(part), axis=(1, 2)) for part in zip(*(classes.parts(r) for r in R), strict=True)]
names = ("residual_single", "residual_class", "residual_global")
seen = {name: norm * np.exp(0.03 * rng.normal(size=120)) for name, norm in zip(names, parts, strict=True)}
seen |= {f"gamma_{k}": np.full(120, float(getattr(gamma, k))) for k in ("diagonal", "within", "between")}
run = nc.Trajectory(times, seen, classes, settings={"producer": "network"})
found = measured_rates(run, {"class": (0.0, 1.0), "global": (0.0, 0.4)})
for part, rate in found.items():
    verdict = rate.verdicts["eigenvalue"]
    print(f"{part:7s} {rate.fit.rate:7.3f} ± {rate.fit.uncertainty:.3f}, predicted {verdict.predicted:7.3f}")
figure = plots.rates_figure(run, found, title="lazy regime, 3% of noise")

# %% [markdown]
# ## When one rate is not enough
# Within classes a real kernel has a spectrum, not one eigenvalue. Then $\|R_{single}\|$ is a sum of exponentials: it
# starts at their mean, and ends at the slowest.

# %%
A = rng.normal(size=(32, 24))
kernel = nc.DenseKernel(np.asarray(gamma.as_matrix(classes)) + A @ A.T / 40)
spread = nc.GroupedKernel.from_matrix(kernel.matrix, classes, groups=28)
late = np.linspace(0.0, 12.0, 200)
decay: SpectrumDecay = within_class_decay(late, R[0], spread, classes)
with plots.style():
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
    mean = float(np.mean(np.asarray(decay.rates)))
    axes[0].semilogy(late, decay.norm, color=plots.COLOURS["residual_single"], label="measured spectrum")
    axes[0].semilogy(late, decay.norm[0] * np.exp(-mean * late), "--", color="black", label="one rate, its mean")
    axes[0].set_ylim(1e-3, 20)
    axes[0].set_ylabel(plots.LABELS["residual_single"])
    axes[1].plot(late, decay.rate, color=plots.COLOURS["residual_single"])
    axes[1].axhline(mean, linestyle="--", color="black")
    axes[1].set_ylabel(r"rate of $\|R-R_{\mathrm{class}}\|$")
    for ax in axes:
        ax.set_xlabel("flow time $t$")
    axes[0].legend()
