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
# # Theory beside a trained network, on real digits
#
# A small multilayer perceptron learns real $8\times 8$ digits. From a state measured on the way, the theory predicts
# the rest, under assumptions from strong to weak: rungs 1, 2a, 2b, 3 and 4 of the ladder drop one after another. Where
# two neighbours part, the assumption between them is what fails. Rung 5, lazy training, stands beside rung 4 and
# assumes more: that the last layer is linearised too.

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

from ntkcollapse import plots
from ntkcollapse.comparison import RUNGS, MeasuredRun, attribute, climb
from ntkcollapse.training import preset, train

jax.config.update("jax_enable_x64", True)

config = dataclasses.replace(
    preset("digits"), per_class=5, network_options=("widths=(32,16)",), epochs=2000, measure_log=60
)


# %% [markdown]
# ## Train and measure
# Last layer and feature kernel are measured at log-spaced steps; the network itself is kept at step 40, where the
# predictions start.

# %%
run, networks = train(config, keep_networks_at=[40])
start = MeasuredRun.of(run, networks, config.build_splits().train).start(40)

# %% [markdown]
# ## Climb the ladder

# %%
rungs = (
    "block-frozen",
    "class-pairs",
    "within-spectrum",
    "sample-frozen",
    "features-linearised",
    "network-linearised",
)
ladder = climb(start, rungs)
for name in rungs:
    print(f"{RUNGS[name].number:2s}  {RUNGS[name].label}")
figure = plots.ladder_figure(ladder, title="digits, 5 images of each; predictions from step 40")

# %% [markdown]
# ## Who owns the gap
# Factors between neighbouring rungs multiply to the gap between the theorem and the network; below, their $\log_{10}$
# at the last step: $+1$ is a factor of ten by which dropping the assumption raises the prediction. On so small a
# network and so few images the numbers are an illustration, not a finding.

# %%
shown = ("residual_single", "residual_class", "nc1_seleznova2023", "nc2_seleznova2023")
found = {name: attribute(ladder, name) for name in shown}
for name, split in found.items():
    print(f"{name}: log10 of network / rung 1 = {split.gap[-1] / np.log(10):+.3f}")
    for share in split.shares:
        print(f"    {share.change[-1] / np.log(10):+.3f}  {share.assumption}")
figure = plots.attribution_figure(found)
plt.show()
