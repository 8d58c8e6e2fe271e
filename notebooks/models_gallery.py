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
# # One equation, every theory of neural collapse
#
# $$\dot H = \Pi_H[-W^\top G K - \lambda_H H] + \text{noise},\qquad
#   \dot W = \Pi_W[-\eta_W G H^\top - \lambda_W W],\qquad
#   \dot b = -\eta_b G 1 - \lambda_b b,\qquad G = \partial\,\text{loss}/\partial\,\text{logits}$$
#
# Each model of the literature chooses a kernel $K$, a loss, a constraint $\Pi$ and a noise. Below, each is built by
# its name, integrated by `simulate` from a random start, and drawn beside its exact answer
# (dashed). Sizes are small, so that the page runs in a minute or two.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import ntkcollapse as nc
from ntkcollapse import models, plots
from ntkcollapse.theory.models.deep_linear import DeepLastLayer

jax.config.update("jax_enable_x64", True)

classes = nc.Classes.balanced(num_classes=3, per_class=4)
rng = np.random.default_rng(0)
H, W = rng.normal(size=(4, 12)), rng.normal(size=(3, 4))
start = nc.LastLayer(H=H, W=W, b=np.zeros(3))
EXACT = {"color": "black", "linestyle": "--", "linewidth": 1}

# %% [markdown]
# The registry knows what each assumes, predicts and who proposed it.

# %%
for entry in models.MODELS.values():
    print(f"{entry.name:24s} {entry.title}\n{'':24s} {entry.source}; answers: {', '.join(entry.answers) or 'itself'}")

# %% [markdown]
# ## Squared error
# Left: without regularisation the invariant $E = W^\top W - HK^{-1}H^\top$ stays, whatever the kernel; equal weight
# decay takes it to 0 like $e^{-2\lambda t}$, which is why weight decay brings collapse. Middle: from a start of size
# $\varepsilon$ free features collapse up to $\varepsilon$. Right: with weight decay the eigenvalues of $WW^\top$ end
# where the closed-form minimiser has them, also for unequal classes.

# %%
with plots.style():
    figure, axes = plt.subplots(1, 3, figsize=(11, 3), constrained_layout=True)
    times = np.linspace(0, 6, 40)
    kernel = nc.BlockKernel(diagonal=3.0, within=2.0, between=0.6)
    for decay, colour in ((0.0, "C0"), (0.2, "C1"), (0.5, "C2")):
        run = nc.simulate(start, models.ntk_collapse(classes, kernel, weight_decay=decay), classes, times)
        axes[0].semilogy(times, run["invariant_norm"], color=colour, label=rf"$\lambda = {decay}$")
        axes[0].semilogy(times, run["invariant_norm"][0] * np.exp(-2 * decay * times), **EXACT)
    axes[0].set(xlabel="t", ylabel=r"$\|E(t)\|$", title="ntk_collapse: the invariant")
    axes[0].legend()

    sizes = np.array([1e-1, 1e-2, 1e-3])
    limit = models.unconstrained_features.limit(classes)
    ends = []
    for size in sizes:
        small = nc.LastLayer(H=size * H, W=size * W, b=np.zeros(3))
        end = nc.simulate(small, models.unconstrained_features(classes), classes, np.array([0.0, 15.0])).last_layer(-1)
        gap = np.linalg.norm(end.W @ end.W.T - limit.weight_gram), np.linalg.norm(end.H - classes.expand(end.W.T / 2))
        ends.append(gap)
    axes[1].loglog(sizes, np.array(ends), "o-", label=[r"$WW^\top$", r"$H$"])
    for power in (1, 2):
        axes[1].loglog(sizes, 5 * sizes**power, **EXACT)
    axes[1].set(xlabel=r"size $\varepsilon$ of the start", title="unconstrained_features: errors of collapse")
    axes[1].legend()

    uneven, times = nc.Classes(sizes=(7, 3, 2)), np.concatenate([[0.0], np.geomspace(0.1, 1500, 80)])
    flow = models.regularised_features(uneven, 0.03, 0.01)
    run = nc.simulate(start, flow, uneven, times)
    axes[2].semilogx(times[1:], np.linalg.eigvalsh(run.states.W @ np.swapaxes(run.states.W, 1, 2))[1:])
    for value in np.linalg.eigvalsh(models.regularised_features.minimizer(uneven, 0.03, 0.01).weight_gram):
        axes[2].axhline(value, **EXACT)
    axes[2].set(xlabel="t", title=r"regularised_features: spectrum of $WW^\top$")
plt.show()

# %% [markdown]
# ## Cross-entropy
# Left: with weight decay every start reaches the minimum. Middle: without it the normalised margin climbs to
# $1/(2\sqrt m(C-1))$, far beyond where the loss itself underflows. Right: norms fixed to spheres, and a classifier
# fixed to a simplex ETF with features in a ball.

# %%
with plots.style():
    figure, axes = plt.subplots(1, 3, figsize=(11, 3), constrained_layout=True)
    flow, times = models.cross_entropy_features(classes, 0.04, 0.01), np.linspace(0, 600, 80)
    for size in (0.1, 1.0, 3.0):
        run = nc.simulate(nc.LastLayer(H=size * H, W=size * W, b=np.zeros(3)), flow, classes, times)
        penalty = 0.02 * (run.states.W**2).sum((1, 2)) + 0.005 * (run.states.H**2).sum((1, 2))
        axes[0].semilogy(times, run["loss"] + penalty)
    axes[0].axhline(models.cross_entropy_features.minimizer(classes, 0.04, 0.01).value, **EXACT)
    axes[0].set(xlabel="t", title="cross_entropy_features: objective")

    times = np.linspace(0, 14, 29)
    run = nc.simulate(start, models.max_margin(classes), classes, times)
    margins = [models.max_margin.margins(h, w, classes) for h, w in zip(run.states.H, run.states.W, strict=True)]
    axes[1].plot(-run["loss"], [m.normalised for m in margins], label="margin")
    axes[1].plot(-run["loss"], [m.smoothed for m in margins], label="smoothed")
    axes[1].axhline(models.max_margin.limit(classes), **EXACT)
    axes[1].set(xscale="log", xlabel=r"$\log 1/L$", xlim=(1, None), ylim=(0, None), title="max_margin: over the norm")
    axes[1].legend()

    flow, times = models.spherical_features(classes, 2.0, 1.5), np.linspace(0, 400, 50)
    run = nc.simulate(flow.retract(start), flow, classes, times)
    axes[2].semilogy(times, run["loss"] - models.spherical_features.minimizer(classes, 2.0, 1.5).value, label="spheres")
    fixed = models.fixed_etf(uneven, 3.0, 2.0, loss="cross-entropy")
    etf = np.sqrt(2.0) * models.fixed_etf.classifier(3, 4, key=jax.random.key(0))
    run = nc.simulate(nc.LastLayer(H=0.1 * H, W=etf, b=np.zeros(3)), fixed, uneven, np.linspace(0, 40, 50))
    gaps = [np.linalg.norm(h - models.fixed_etf.limit(etf, 3.0, uneven)) for h in run.states.H]
    axes[2].semilogy(10 * run.times, gaps, label="fixed ETF, unequal classes (10 t)")
    axes[2].set(xlabel="t", title="spherical_features, fixed_etf: gaps")
    axes[2].legend()
plt.show()

# %% [markdown]
# ## Constraints and imbalance
# Left: on the central path the singular values obey an exact law; integration leaves the surface only by the solver's
# error, and says so. Right: in the layer-peeled model minority classifiers merge at the ratio $R_0$.

# %%
with plots.style():
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 3), constrained_layout=True)
    many = nc.Classes.balanced(num_classes=4, per_class=12)
    X = rng.normal(size=(5, 48))
    flow, times = models.central_path(many), np.concatenate([[0.0], np.logspace(0, 4, 30)])
    on_path = flow.retract(nc.LastLayer(H=X - X.mean(1, keepdims=True), W=np.zeros((4, 5)), b=np.zeros(4)))
    run = nc.simulate(on_path, flow, many, times, method=nc.Method(rtol=1e-8))
    seen = np.stack([models.central_path.signal_to_noise(h, many) for h in run.states.H])
    axes[0].loglog(times[1:], seen[1:])
    axes[0].loglog(times[1:], models.central_path.law(times, seen[0], many)[1:], **EXACT)
    axes[0].set(xlabel="t", title="central_path: singular values")
    print(f"largest correction back to the central path: {float(run.statistics['largest_correction']):.1e}")

    ratios, key = np.logspace(0, 2.3, 15), jax.random.key(0)
    axes[1].semilogx(ratios, models.layer_peeled.cosine_curve(ratios, 4, 2, 5.0, 1.0, key=key), "o-")
    axes[1].axvline(models.layer_peeled.threshold(4, 2, 5.0, 1.0), **EXACT)
    axes[1].set(xlabel=r"$m_A/m_B$", title="layer_peeled: minority cosine")
plt.show()

# %% [markdown]
# ## Depth, normalisation, and what one measures on networks
# Above, from left to right: under two weight layers a class vanishes by a jump, from ½ to 0, at its threshold; with a
# ReLU between them class means become an orthogonal frame of units that no two classes share, and rows of the
# classifier get one length (other starts may end in local minima); batch normalisation is weight decay in polar
# coordinates. Below: logits in a ball end at the vertices of a simplex; a last layer under three homogeneous layers
# gets the norm that symmetric quasi-interpolation predicts; the local elasticity of a network tends to its NTK in
# proportion to the step.

# %%
with plots.style():
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.4), constrained_layout=True)
    axes = axes.ravel()
    decays = np.geomspace(1e-3, 10, 300)
    kept = [models.deep_linear.minimizer(uneven, jnp.full(2, 0.02), decay).outputs for decay in decays]
    axes[0].semilogx(decays, np.array(kept), label=[f"m = {size}" for size in uneven.sizes])
    for size in uneven.sizes:
        # m* = size: m* goes like the square root of λ_H.
        at_one = models.deep_linear.threshold(uneven, jnp.full(2, 0.02), 1.0)
        axes[0].axvline((size / at_one) ** 2, **EXACT)
    axes[0].set(xlabel=r"$\lambda_H$", title="deep_linear: outputs at the minimum")
    axes[0].legend()

    decays, times = jnp.array([0.02, 0.02]), np.concatenate([[0.0], np.geomspace(0.1, 400, 60)])
    draw, flow = np.random.default_rng(1), models.relu_features(classes, decays, 0.01)
    layers = tuple(jnp.asarray(draw.normal(size=shape)) for shape in ((6, 4), (3, 6)))
    deep = DeepLastLayer(H=jnp.asarray(draw.normal(size=(4, 12))), layers=layers)
    run = nc.simulate(deep, flow, classes, times, method=nc.Method(rtol=1e-4, atol=1e-6))
    axes[1].semilogx(times[1:], (run.states.W[1:] ** 2).sum(2))
    axes[1].axhline(models.relu_features.minimizer(classes, decays, 0.01).weight_norms[0], **EXACT)
    axes[1].set(xlabel="t", title=r"relu_features: $\|w_c\|^2$")

    times = np.linspace(0, 20, 60)
    run = nc.simulate(start, models.batch_norm_head(classes, 0.6), classes, times, reduced=False)
    gain, _, shift = jax.vmap(models.batch_norm_head.parameters)(run.states.H)
    weights = (gain**2).sum(1) + (shift**2).sum(1) + (run.states.W**2).sum((1, 2))
    axes[2].semilogy(times, run["loss"] + 0.3 * weights)
    axes[2].axhline(models.batch_norm_head.minimizer(classes, 0.6).value, **EXACT)
    axes[2].set(xlabel="t", title="batch_norm_head: objective")

    times = np.linspace(0, 400, 60)
    inside = nc.LastLayer(H=0.1 * H[:3], W=np.eye(3), b=np.zeros(3))
    run = nc.simulate(inside, models.logit_ball(classes, 2.0), classes, times)
    axes[3].plot(times, run["loss"])
    axes[3].axhline(models.logit_ball.minimizer(classes, 2.0).value, **EXACT)
    axes[3].set(xlabel="t", title="logit_ball: loss")

    times = np.concatenate([[0.0], np.geomspace(1, 4000, 60)])
    run = nc.simulate(start, models.homogeneous(classes, 0.01, layers=3), classes, times)
    axes[4].semilogx(times[1:], (run.states.W[1:] ** 2).sum(2))
    seen = models.homogeneous.quasi_interpolation(run.last_layer(-1).logits, classes)
    axes[4].axhline(models.homogeneous.weight_norm(seen.epsilon, 0.01, 3), **EXACT)
    axes[4].set(xlabel="t", title=r"homogeneous: $\|w_c\|^2$")

    V, w, x, others = (jnp.asarray(rng.normal(size=s)) for s in ((8, 5), (8,), (5,), (6, 5)))
    network = lambda params, x: params[1] @ jnp.tanh(params[0] @ x)  # noqa: E731
    gradient = jax.vmap(lambda z: jnp.concatenate([g.ravel() for g in jax.grad(network)([V, w], z)]))
    kernel, steps = gradient(others) @ gradient(x[None])[0], np.logspace(-5, -2, 7)
    ratios = [
        models.local_elasticity(network, [V, w], x, others, loss_slope=1.0, step=step).kernelised / kernel
        for step in steps
    ]
    axes[5].loglog(steps, np.abs(np.array(ratios) - 1), "o-")
    axes[5].loglog(steps, 10 * steps, **EXACT)
    axes[5].set(xlabel="step", title="local_elasticity: off the NTK by")
plt.show()

# %% [markdown]
# ## Noise
# Left: locally elastic features separate only if the drift contrast $c/t$ has $c > C/2$: the error of telling two
# classes apart, simulated, against its formula (4,000 samples on one path of the class means a colour, so that its
# points fluctuate together: by 5% in the distance of the means). Right: the stationary variance of SVAG on a quadratic
# tends to that of the stochastic differential equation as the amplification grows.

# %%
with plots.style():
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 3), constrained_layout=True)
    two, times = (
        nc.Classes.balanced(num_classes=2, per_class=2000),
        jnp.concatenate([jnp.ones(1), jnp.logspace(0.5, 3, 9)]),
    )
    sign = np.repeat([-1.0, 1.0], 2000)
    origin = nc.LastLayer(H=0.5 * sign[None, :], W=np.zeros((2, 1)), b=np.zeros(2))
    for seed, c in enumerate((0.5, 1.0, 1.5)):
        flow = models.elastic(two, jnp.asarray(c), 0.0, 1.0, power=1.0)
        run = nc.simulate(origin, flow, two, times, method=nc.Method(rtol=1e-3, atol=1e-1), key=jax.random.key(seed))
        X = np.asarray(run.states.H[:, 0])
        axes[0].semilogx(times, ((X - X.mean(1, keepdims=True)) * sign < 0).mean(1), "o", label=f"c = {c}")
        axes[0].semilogx(times[1:], models.elastic.error(times[1:], 1.0, c, 1.0, 2), **EXACT)
    axes[0].set(xlabel="t", title="elastic: error of nearest mean")
    axes[0].legend()

    amplification = np.array([1.0, 2, 4, 8, 16, 32])
    axes[1].semilogx(amplification, models.svag.variance(1.0, 1.0, 0.5, amplification), "o-")
    axes[1].axhline(0.25, **EXACT)
    axes[1].set(xlabel="amplification l", title="svag: stationary variance")
plt.show()
