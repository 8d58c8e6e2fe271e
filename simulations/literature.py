"""Metrics and models of the literature on real images: what each says of a network, and of heads trained on a trunk.

    python simulations/literature.py

Digits, 30 images of each for training and 54 for test. First a ReLU network under cross-entropy with weight decay: its
layers by energies on the sphere, neighbours and coding rates beside NC1 and the nearest class centre; its last layer by
what ties cross-entropy to its minimum; its class means by the intensities of locally elastic equations. Then four last
layers, each with the objective of its model, on features that a trunk has to produce: how near they come to the minimum
over free features, by the closed form and by convex duality. A table of each, and a figure; one minute of processor
time.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import ntkcollapse as nc
from ntkcollapse import collapse
from ntkcollapse.commands import Table, number
from ntkcollapse.data import digits
from ntkcollapse.theory import models
from ntkcollapse.theory.models.cross_entropy import CrossEntropyFloor

HERE = Path(__file__).parent
C, PER_CLASS, F32 = 10, 30, jnp.float32
WIDTHS = (64, 128, 128, 64, C)
DECAY, RATE, MOMENTUM = 1e-3, 0.05, 0.9
RECORDS = (0, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 4000)
TRAIN, TEST = digits(PER_CLASS, standardised=True), digits(part="test", standardised=True)
X, X_TEST = (data.inputs.reshape(len(data.labels), -1) for data in (TRAIN, TEST))
CLASSES = nc.Classes.balanced(C, PER_CLASS)
Y = jnp.asarray(CLASSES.Y, F32)


def network(key: Any, widths: tuple[int, ...]) -> list[Any]:
    """Weights of a bias-free ReLU network, He-normal."""
    keys = jax.random.split(key, len(widths) - 1)
    return [
        jax.random.normal(k, (m, n), F32) * (2 / n) ** 0.5 for k, n, m in zip(keys, widths, widths[1:], strict=False)
    ]


def layers(weights: list[Any], x: Any) -> list[Any]:
    """Inputs, features after each ReLU, logits; samples in columns."""
    seen = [x.T]
    for W in weights[:-1]:
        seen.append(jax.nn.relu(W @ seen[-1]))
    return [*seen, weights[-1] @ seen[-1]]


def cross_entropy(f: Any) -> Any:
    """Summed over samples."""
    return jnp.sum(jax.nn.logsumexp(f, axis=0) - jnp.sum(f * Y, axis=0))


def steps(objective: Callable[[Any], Any], optimiser: Any, state: Any, number: int) -> Any:
    """Takes steps on all samples."""

    def step(state: Any, _: Any) -> Any:
        updates, inner = optimiser.update(jax.grad(objective)(state[0]), state[1])
        return (optax.apply_updates(state[0], updates), inner), None

    return jax.lax.scan(step, state, length=number)[0]


def trained() -> list[list[Any]]:
    """The network at every record."""
    optimiser = optax.sgd(RATE, MOMENTUM)

    def objective(weights: Any) -> Any:
        return cross_entropy(layers(weights, X)[-1]) / len(X) + DECAY / 2 * sum(jnp.sum(W**2) for W in weights)

    go = jax.jit(lambda state, n: jax.lax.fori_loop(0, n, lambda _, s: steps(objective, optimiser, s, 1), state))
    weights = network(jax.random.key(0), WIDTHS)
    state, records = (weights, optimiser.init(weights)), [weights]
    for before, after in pairwise(RECORDS):
        state = go(state, after - before)
        records.append(state[0])
    return records


def by_layer(weights: list[Any]) -> tuple[list[str], list[list[str]], collapse.LayerProfile]:
    """A row a layer: collapse, energies, both rules, and the share of the largest coding rate reduction."""

    def activations(x: Any) -> dict[str, Any]:
        return {str(i): h.T for i, h in enumerate(layers(weights, jnp.asarray(x)))}

    profile = collapse.layer_profile(
        activations, X, TRAIN.labels, (X_TEST, TEST.labels), neighbours=5, precision=0.5
    )  # fmt: skip
    names = ("nc1_tirer2022", "nc2_seleznova2023", "nc2_log_energy_liu2023", "nc2_riesz_energy_liu2023")
    rows = []
    for i, width in enumerate(profile.widths):
        frame = collapse.maximal_rate_reduction(CLASSES, width)
        most = collapse.maximal_rate_reduction(CLASSES, width, ranks=min(PER_CLASS, width // C))
        reduction = profile.train["rate_reduction_yu2020"][i]
        accuracies = (profile.test[name][i] for name in ("ncc_accuracy", "knn_accuracy"))
        values = (
            *(profile.train[name][i] for name in names),
            *accuracies,
            reduction,
            reduction / frame,
            reduction / most,
        )
        rows.append([profile.layers[i], str(width), *map(number, values)])
    header = ["layer", "n", "NC1", "NC2", "log energy", "Riesz", "NCC, test", "5-NN, test", "ΔR", "of frame", "of most"]
    return header, rows, profile


def elasticities(records: list[list[Any]]) -> list[list[str]]:
    """A row an interval: intensities of the class means of the last features, and all pairs beside the two numbers."""
    times = np.array(RECORDS) * RATE / (1 - MOMENTUM)
    means = np.stack([np.asarray(CLASSES.means(layers(weights, X)[-2]), np.float64) for weights in records])
    estimate = models.elastic.estimate(times, means)
    matrices = models.elastic.matrix(times, means)
    beside = ~np.eye(C, dtype=bool)
    rows = []
    for i, E in enumerate(matrices):
        contrast = float(estimate.intra[i] - estimate.inter[i])
        c = contrast * np.diff(times)[i] / np.log(times[i + 1] / times[i]) if i else np.nan
        values = estimate.intra[i], estimate.inter[i], c, np.diag(E).mean(), E[beside].mean(), E[beside].std()
        rows.append([f"{RECORDS[i]} to {RECORDS[i + 1]}", *map(number, values)])
    return rows


def last_layer(weights: list[Any]) -> nc.LastLayer:
    """H, W and b = 0."""
    H, W = (np.asarray(value, np.float64) for value in (layers(weights, X)[-2], weights[-1]))
    return nc.LastLayer(H=H, W=W, b=jnp.zeros(C))


def head(kind: str, steps_taken: int = 3000) -> tuple[list[str], Any, Any]:
    """One line (the objective that a trunk reaches, the least one over free features, what duality bounds it by), and
    the singular values of W, as they are and as they should be."""
    trunk, n, N, β = (64, 256, 40), 40, len(X), 1.0
    λ = 4e-3
    loss = "squared" if "squared" in kind else "cross-entropy"
    keys = jax.random.split(jax.random.key(1), 4)
    parameters = {"trunk": network(keys[0], trunk), "W": jax.random.normal(keys[1], (C, n), F32) / n**0.5}
    if kind == "ReLU layer, squared":
        parameters |= {"V": jax.random.normal(keys[2], (n, n), F32) / n**0.5}
    else:
        parameters |= {"γ": jnp.ones(n, F32), "α": jnp.zeros(n, F32)}

    def parts(p: Any) -> tuple[Any, Any, Any]:
        """Features that the classifier sees, what is decayed beside W, and by how much."""
        z = layers(p["trunk"], X)[-1]
        if kind == "ReLU layer, squared":
            return jax.nn.relu(p["V"] @ z), jnp.sum(p["V"] ** 2) + jnp.sum(z**2), λ
        z = z - z.mean(1, keepdims=True)
        H = p["γ"][:, None] * z / jnp.linalg.norm(z, axis=1, keepdims=True) + p["α"][:, None] / N**0.5
        return jax.nn.relu(H) if "ReLU" in kind else H, jnp.sum(p["γ"] ** 2) + jnp.sum(p["α"] ** 2), β

    def objective(p: Any) -> Any:
        H, penalty, decay = parts(p)
        f = p["W"] @ H
        fit = jnp.sum((f - Y) ** 2) / 2 if loss == "squared" else cross_entropy(f)
        fit = fit / N if kind == "ReLU layer, squared" else fit
        return fit + decay / 2 * (penalty + jnp.sum(p["W"] ** 2))

    optimiser = optax.adam(optax.cosine_decay_schedule(3e-3, steps_taken))
    end, _ = jax.jit(lambda p: steps(objective, optimiser, (p, optimiser.init(p)), steps_taken))(parameters)
    H, W = (np.asarray(value, np.float64) for value in (parts(end)[0], end["W"]))
    statistics = collapse.ClassStatistics.from_columns(H, CLASSES)
    singular = np.linalg.svd(W, compute_uv=False)
    if kind == "ReLU layer, squared":
        answer = models.relu_features.minimizer(CLASSES, jnp.asarray([λ, λ]), λ)
        expected, dual = np.sqrt(np.asarray(answer.weight_norms)), ""
    else:
        answer = models.batch_norm_head.minimizer(CLASSES, β, loss=loss, relu="ReLU" in kind)
        expected = np.asarray(answer.singular_values)
        dual = number(
            models.batch_norm_head.duality(nc.LastLayer(H=H, W=W, b=np.zeros(C)), CLASSES, β, β, loss=loss).dual
        )
    means = np.asarray(statistics.means)
    cosines = (means.T @ means / np.outer(*[np.linalg.norm(means, axis=0)] * 2))[~np.eye(C, dtype=bool)]
    value = float(objective(end))
    numbers = value, answer.value, value / float(answer.value) - 1
    frame = collapse.nc1_tirer2022(statistics), cosines.mean(), np.abs(cosines - cosines.mean()).max()
    spectrum = f"{singular[0]:.3f} to {singular[C - 2]:.3f}, {singular[-1]:.3f}"
    wanted = f"{expected[0]:.3f}, {expected[-1]:.3f}"
    return [kind, *map(number, numbers), dual, *map(number, frame), spectrum, wanted], singular, expected


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    records = trained()
    profiles = {}
    for record in (0, len(records) - 1):
        header, rows, profiles[RECORDS[record]] = by_layer(records[record])
        print(f"\nLayers at step {RECORDS[record]}\n\n{Table(header, rows)}")
    end = last_layer(records[-1])
    statistics = collapse.ClassStatistics.from_columns(end.H, CLASSES)
    values = collapse.measure(statistics, end.W, end.b)
    print("\nStrong collapse:", {name: number(value) for name, value in values.items() if name.startswith("snc")})
    rows = []
    for step, weights in zip(RECORDS, records, strict=True):
        floor = models.spherical_features.floor(last_layer(weights), CLASSES)
        rows.append([str(step), *map(number, floor)])
    print(f"\nCross-entropy and what bounds it\n\n{Table(['step', *CrossEntropyFloor._fields], rows)}")
    intensities = elasticities(records)
    header = ["steps", "α", "β", "c of (α − β) = c/t", "mean E_kk", "mean E_kl", "spread of E_kl"]
    print(f"\nElasticities of class means, per flow time\n\n{Table(header, intensities)}")
    kinds = (
        "batch norm, squared",
        "batch norm, cross-entropy",
        "batch norm and ReLU, cross-entropy",
        "ReLU layer, squared",
    )
    header = [
        "head",
        "objective",
        "minimum",
        "above it",
        "dual",
        "NC1",
        "cosine",
        "spread",
        "singular values",
        "predicted",
    ]
    heads = {kind: head(kind) for kind in kinds}
    print(f"\nHeads on a trunk\n\n{Table(header, [row for row, _, _ in heads.values()])}")
    spectra = {kind: pair for kind, (_, *pair) in heads.items()}
    draw(profiles, [[float(cell) if cell != "-" else np.nan for cell in row[1:]] for row in intensities], spectra)


def draw(
    profiles: dict[int, collapse.LayerProfile], intensities: list[list[float]], spectra: dict[str, list[Any]]
) -> None:
    """Layers before and after training, intensities along it, and the classifiers of the heads beside their models'."""
    figure, axes = plt.subplots(1, 5, figsize=(19, 3.6), layout="constrained")
    for (step, profile), style in zip(profiles.items(), ("--", "-"), strict=True):
        depth = np.arange(len(profile.layers))
        axes[0].semilogy(depth, profile.train["nc2_log_energy_liu2023"], style + "o", color="C0", label=f"log, {step}")
        axes[0].semilogy(
            depth, profile.train["nc2_riesz_energy_liu2023"], style + "s", color="C1", label=f"Riesz, {step}"
        )
        axes[1].plot(depth, 1 - profile.test["ncc_accuracy"], style + "o", color="C2", label=f"nearest centre, {step}")
        axes[1].plot(depth, 1 - profile.test["knn_accuracy"], style + "s", color="C3", label=f"5 neighbours, {step}")
        share = [
            value / collapse.maximal_rate_reduction(CLASSES, width)
            for value, width in zip(profile.train["rate_reduction_yu2020"], profile.widths, strict=True)
        ]
        axes[2].plot(depth, share, style + "o", color="C4", label=f"step {step}")
    axes[2].axhline(1, color="0.5", linewidth=0.8)
    for axis, title in zip(
        axes, ("Energy above a simplex ETF", "Test error", "ΔR over that of an orthogonal frame"), strict=False
    ):
        axis.set(title=title, xlabel="layer (0: input)")
        axis.legend(fontsize=8)
    middle = np.sqrt(np.maximum(np.array(RECORDS[:-1]), 5.0) * np.array(RECORDS[1:]))
    for column, name in ((0, "α"), (1, "β"), (3, "mean $E_{kk}$"), (4, "mean $E_{kl}$")):
        axes[3].plot(middle, [row[column] for row in intensities], "-" if column < 2 else ":", marker="o", label=name)
    axes[3].set(title="Elasticities of class means", xlabel="step", xscale="log")
    axes[3].set_yscale("symlog", linthresh=1e-2)
    axes[3].legend(fontsize=8)
    for i, (kind, (singular, expected)) in enumerate(spectra.items()):
        axes[4].plot(np.arange(1, C + 1), singular, "o", color=f"C{i}", label=kind)
        axes[4].plot(np.arange(1, C + 1), expected, "-", color=f"C{i}", linewidth=0.8)
    axes[4].set(title="Singular values of W, and their models'", xlabel="from the largest", ylim=(0, None))
    axes[4].legend(fontsize=7)
    figure.savefig(HERE / "figures" / "literature.png", dpi=110)


if __name__ == "__main__":
    main()
