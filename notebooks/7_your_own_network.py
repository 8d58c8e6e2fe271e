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
# # Your own network, your own loop
#
# `nc.networks.of` takes a network as you have it; `nc.Recorder` measures it in your own training loop. What comes out
# is a run like any other: compared with the theory, plotted, reported.

# %%
# Installs the package where it is missing, as on Colab.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("ntkcollapse") is None:
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", "ntkcollapse"])

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import ntkcollapse as nc
from ntkcollapse import ntk, plots
from ntkcollapse.comparison import MeasuredRun, climb
from ntkcollapse.data import gaussian_mixture

jax.config.update("jax_enable_x64", True)

data = gaussian_mixture(nc.Classes.balanced(3, 8), 6, seed=0)
x, y = jnp.asarray(data.inputs), jax.nn.one_hot(data.labels, 3)
kernel = lambda network, v: ntk.block_statistics(network.evaluation(v.batch_stats)[0], v.params, x, data.labels).kernel  # noqa: E731
show = lambda k: print("κ_d, κ_c, κ_n:", [round(float(part), 3) for part in (k.diagonal, k.within, k.between)])  # noqa: E731

# %% [markdown]
# ## flax nnx
# The module goes in as it is; its batch normalisation and dropout are at rest where kernels are measured. The last
# layer is found.

# %%
rngs = nnx.Rngs(0)
model = nnx.Sequential(
    nnx.Linear(6, 24, rngs=rngs), nnx.BatchNorm(24, rngs=rngs), jnp.tanh, nnx.Dropout(0.1, rngs=rngs),
    nnx.Linear(24, 8, rngs=rngs), jnp.tanh, nnx.Linear(8, 3, rngs=rngs),
)  # fmt: skip
network = nc.networks.of(model, data)
print(network.own)
show(kernel(network, network.variables(model)))

# %% [markdown]
# ## Equinox
# A module of one sample, and its state where it has one.

# %%
keys = jax.random.split(jax.random.key(0), 2)
layers = lambda: eqx.nn.Sequential(  # noqa: E731
    [
        eqx.nn.Linear(6, 24, key=keys[0]), eqx.nn.BatchNorm(24, "batch", mode="batch"), eqx.nn.Lambda(jnp.tanh),
        eqx.nn.Linear(24, 3, key=keys[1]),
    ]
)  # fmt: skip
model, state = eqx.nn.make_with_state(layers)()
network = nc.networks.of(model, data, state=state)
print(network.own)
show(kernel(network, network.variables(model, state)))

# %% [markdown]
# ## Haiku
# What `hk.transform_with_state` gives, with its parameters and state.

# %%
if importlib.util.find_spec("haiku") is None:
    print("Haiku is not installed: pip install 'ntkcollapse[haiku]'")
else:
    import haiku as hk

    normalised = lambda x, is_training: hk.BatchNorm(True, True, 0.9)(hk.Linear(24)(x), is_training)  # noqa: E731
    f = hk.transform_with_state(lambda x, is_training: hk.Linear(3)(jnp.tanh(normalised(x, is_training))))
    params, state = f.init(jax.random.key(0), x, is_training=True)
    network = nc.networks.of(f, data, params, state)
    print(network.own)
    show(kernel(network, network.variables(params, state)))

# %% [markdown]
# ## PyTorch
# A module is traced by `torch.export` and runs in JAX from there on; it is trained where it is, and the recorder reads
# its weights at the steps that it measures at.

# %%
if importlib.util.find_spec("torch") is None:
    print("PyTorch is not installed: pip install 'ntkcollapse[pytorch]'")
else:
    import torch

    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 24), torch.nn.BatchNorm1d(24), torch.nn.ReLU(), torch.nn.Linear(24, 3)
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    inputs, targets = torch.from_numpy(np.array(data.inputs)), torch.from_numpy(np.array(y, np.float32))
    recorder = nc.Recorder(nc.networks.of(model, data), data, at=nc.log_spaced(500, 6))
    for step in range(501):
        recorder(step, model)
        optimizer.zero_grad()
        ((model.train()(inputs) - targets) ** 2).mean().backward()
        optimizer.step()
    print("NC1:", np.round(np.asarray(recorder.trajectory["nc1_tirer2022"]), 3))

# %% [markdown]
# ## Your own loop
# Three lines of it are the recorder's: made, called, read. The clock turns steps of the mean loss into flow time, and
# the network is kept at step 20, for predictions from there.

# %%
rngs = nnx.Rngs(1)
model = nnx.Sequential(
    nnx.Linear(6, 24, rngs=rngs), jnp.tanh, nnx.Linear(24, 8, rngs=rngs), jnp.tanh, nnx.Linear(8, 3, rngs=rngs)
)
optimizer = nnx.Optimizer(model, optax.sgd(0.15), wrt=nnx.Param)
loss = lambda model: jnp.mean((model(x) - y) ** 2) / 2  # noqa: E731
update = nnx.jit(lambda model, optimizer: optimizer.update(model, nnx.grad(loss)(model)))

clock = nc.Clock.of_loss("mean", data.classes, learning_rate=0.15)
recorder = nc.Recorder(
    nc.networks.of(model, data), data, clock=clock, at=nc.log_spaced(1500, 40), keep_networks_at=(20,)
)
for step in range(1501):
    recorder(step, model)
    update(model, optimizer)
run = recorder.trajectory
print({name: float(np.round(run[name][-1], 4)) for name in ("train_loss", "train_accuracy", "nc1_tirer2022")})

# %% [markdown]
# ## Compared
# The run and the network that was kept, and the rungs of the ladder from there. With `out="runs/mine"` the same is in a
# directory: `ntkcollapse report runs/mine` while the loop goes on, and `MeasuredRun.load("runs/mine", network, data)`.

# %%
rungs = ("block-frozen", "sample-frozen", "features-linearised", "network-flow")
ladder = climb(MeasuredRun.of(run, recorder.networks, data).start(20), rungs)
figure = plots.ladder_figure(ladder, title="a network of your own, predictions from step 20")
for name in rungs:
    gap = ladder.rungs[name]["loss"][-1] / ladder.network["loss"][-1]
    print(f"{name:20s} loss at the end, over the network's: {float(gap):.3g}")

# %% [markdown]
# The gradient flow of the network itself ends at its loss, within a thousandth: steps are small enough for the clock.
# With a block kernel (rung 1) the predicted loss falls 17,000 times too far: on these data three numbers overstate how
# fast single samples are learned. With the kernel of every pair of samples (rung 3) it ends at 0.4 of the network's,
# with linearised features (rung 4) at 2.6 times.
