"""Do wide networks with small outputs decay at the three rates, the closer the wider?

    python simulations/lazy_width.py             some ten minutes on two quiet cores, most of it the widest
    python simulations/lazy_width.py --quick     seconds

One hidden ReLU layer in NTK units, every unit twice with opposite sign so that outputs start at 0, on inputs whose Gram
matrix has blocks: at infinite width the output kernel has blocks too. Targets have a random part of each sample's own
(for R_single). Steps are finite: a mode of rate λ decays as gradient descent has it, at −ln(1 − τλ)/τ.

Beside each network, the one linearised at its start: what it deviates by is how far γ is from blocks at that width, and
the rest is training's.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from ntkcollapse import BlockKernel, Classes, Trajectory, ntk, plots
from ntkcollapse.clock import Clock
from ntkcollapse.commands import Table
from ntkcollapse.comparison import measured_rates
from ntkcollapse.equation import Equation
from ntkcollapse.observables import kernel_observables

HERE = Path(__file__).parent
CLASSES = Classes.balanced(num_classes=3, per_class=4)
PARTS = ("single", "class", "global")


def inputs() -> np.ndarray:
    """Rows of squared norm N with the correlations of a block kernel."""
    gram = np.asarray(BlockKernel(diagonal=1.0, within=0.6, between=0.2).as_matrix(CLASSES))
    values, vectors = np.linalg.eigh(gram)
    return vectors * np.sqrt(values * len(gram))[None, :]


def outputs(params, x):
    """V relu(U x) / √width."""
    U, V = params
    return jax.nn.relu(x @ U / x.shape[1] ** 0.5) @ V / V.shape[0] ** 0.5


def run_of(width: int, seed: int, *, linearised: bool, points: int = 3000) -> Trajectory:
    """Gradient descent with steps far below stability, its residual parts at every step."""
    keys, x = jax.random.split(jax.random.key(seed), 3), jnp.asarray(inputs())
    U, V = jax.random.normal(keys[0], (x.shape[1], width // 2)), jax.random.normal(keys[1], (width // 2, 3))
    params = (jnp.concatenate([U, U], axis=1), jnp.concatenate([V, -V]))
    gamma = ntk.block_statistics(outputs, params, x, np.asarray(CLASSES.labels)).kernel
    step = 0.05 / float(gamma.rates(CLASSES)[2])
    # Targets with a part of their own for each sample: labels alone leave R_single at 0.
    Y = CLASSES.Y.T + 0.5 * jax.random.normal(keys[2], (CLASSES.num_samples, 3))

    def parts(R):
        return jnp.stack([jnp.linalg.norm(part) for part in CLASSES.parts(R.T)])

    def advance(params, _):
        gradient = jax.grad(lambda p: jnp.sum((outputs(p, x) - Y) ** 2) / 2)(params)
        return jax.tree.map(lambda p, g: p - step * g, params, gradient), parts(outputs(params, x) - Y)

    def advance_linearised(R, theta):
        return R - step * jnp.einsum("ijcd,jd->ic", theta, R), parts(R)

    if linearised:
        theta = ntk.empirical_ntk(outputs, params, x)
        _, norms = jax.jit(lambda R: jax.lax.scan(lambda R, _: advance_linearised(R, theta), R, None, points))(-Y)
    else:
        _, norms = jax.jit(lambda p: jax.lax.scan(advance, p, None, length=points))(params)
    seen = {f"residual_{part}": norms[:, i] for i, part in enumerate(PARTS)}
    constant = {k: jnp.full(points, v) for k, v in kernel_observables(gamma, "gamma").items()}
    return Trajectory(step * np.arange(points), seen | constant, CLASSES, equation=Equation(producer="network"))


def deviations(run: Trajectory) -> list[float]:
    """|fitted rate / eigenvalue of γ − 1| of each part."""
    gamma = BlockKernel(*(run[f"gamma_{k}"][0] for k in ("diagonal", "within", "between")))
    # One e-fold of each: beyond it what other parts feed into it shows.
    windows = {p: (0.0, 1.0 / float(λ)) for p, λ in zip(PARTS, gamma.rates(CLASSES), strict=True)}
    steps, found = Clock(learning_rate=float(run.times[1])), []
    for rate in measured_rates(run, windows).values():
        assert rate.fit is not None
        found.append(abs(rate.fit.rate / float(steps.mode_rate(rate.eigenvalue)) - 1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    flags = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    widths = (64, 512) if flags.quick else (64, 256, 1024, 4096, 16384, 65536)
    seeds = range(2 if flags.quick else 5)
    rows, means = [], {"network": [], "linearised": []}
    for width in widths:
        for name, of in means.items():
            runs = (run_of(width, seed, linearised=name == "linearised") for seed in seeds)
            of.append(np.mean([deviations(run) for run in runs], axis=0))
        rows.append([str(width), *(f"{100 * value:.2f}%" for of in means.values() for value in of[-1])])
        print(rows[-1], flush=True)
    heads = [f"λ_{part}{said}" for said in ("", ", linearised") for part in PARTS]
    text = Table(["width", *heads], rows)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "lazy_width.txt").write_text(text + "\n")
    print(text)
    with plots.style():
        figure, ax = plt.subplots(figsize=(4.6, 3.4), constrained_layout=True)
        for i, part in enumerate(PARTS):
            colour = plots.described(f"residual_{part}").colour
            network, linearised = (np.array(of)[:, i] for of in means.values())
            ax.loglog(widths, network, "o-", color=colour, label=rf"$\lambda_{{\mathrm{{{part}}}}}$")
            ax.loglog(widths, linearised, "o:", color=colour, markerfacecolor="none")
        ax.plot([], [], "o:", color="grey", markerfacecolor="none", label="linearised")
        first = np.mean(means["network"][0])
        ax.loglog(widths, first * (np.array(widths) / widths[0]) ** -0.5, "--", color="grey", label=r"width$^{-1/2}$")
        ax.set_xlabel("width")
        ax.set_ylabel("|fitted rate / eigenvalue of γ − 1|")
        ax.legend()
    print(plots.save(figure, HERE / "figures" / "lazy_width")[-1])


if __name__ == "__main__":
    main()
