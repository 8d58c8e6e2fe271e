"""What of the gap to the theory is the optimiser's? Gradient descent at ever smaller steps, to the same flow time.

    python simulations/ladder/step_size.py --setting digits
    python simulations/ladder/step_size.py --setting mnist
    python simulations/ladder/step_size.py --setting mnist --batch-norm --divide 1 4
    python simulations/ladder/step_size.py --setting mnist --batch-norm --divide 1 --double

The network and data of `ladder.py`. Gradient descent with a step of τ in flow time is stable where τ λ < 2 for the
largest eigenvalue λ of the network's kernel Θ, of all outputs (near the end of training the Hessian of ½‖R‖² is that of
Θ). With batch normalisation Θ is that of the function that training sees, all samples coupled. Prints the residual
parts and τ λ along each run; the figure is left in figures/.
"""

import argparse
import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from ladder import SETTINGS
from scipy.sparse.linalg import LinearOperator, eigsh

from ntkcollapse import Trajectory, plots
from ntkcollapse.clock import Clock
from ntkcollapse.commands import Table, number
from ntkcollapse.data import Dataset, load
from ntkcollapse.networks import Network, Variables, network
from ntkcollapse.training import gradient_descent, log_spaced, parse_options

HERE = Path(__file__).parent
PARTS = {
    "residual_single": r"$\|R - R_{\mathrm{class}}\|$",
    "residual_class": r"$\|R_{\mathrm{class}} - R_{\mathrm{global}}\|$",
    "residual_global": r"$\|R_{\mathrm{global}}\|$",
}


def run_of(net: Network, data: Dataset, learning_rate: float, steps: list[int], dtype: type) -> Trajectory:
    """Residual parts and the largest eigenvalue of Θ, times the step, at the steps named; all in `dtype`."""
    clock = Clock.of_loss("mean", data.classes, learning_rate=learning_rate)
    rows = []
    # The same weights in either precision: drawn in float32.
    start = jax.tree.map(lambda value: value.astype(dtype), net.init(jax.random.key(0), data.inputs))
    data = dataclasses.replace(data, inputs=np.asarray(data.inputs, dtype))
    x = jnp.asarray(data.inputs)

    @jax.jit
    def seen(variables):
        return net.training_outputs(variables, x)[0]

    @jax.jit
    def product(variables, v):
        """Θ v = J Jᵀ v."""

        def f(params):
            return seen(Variables(params, variables.batch_stats))

        (pulled,) = jax.vjp(f, variables.params)[1](v)
        return jax.jvp(f, (variables.params,), (pulled,))[1]

    for step, variables, _ in gradient_descent(net, start, data, learning_rate=learning_rate, at=steps):
        outputs = np.asarray(seen(variables))
        shape = (outputs.size, outputs.size)
        matvec = partial(_flat, product, variables, outputs.shape)
        theta = LinearOperator(shape, matvec=matvec, dtype=outputs.dtype)  # pyright: ignore
        first = np.random.default_rng(step).normal(size=outputs.size)
        top = eigsh(theta, k=1, tol=1e-4, v0=first)[0][0]  # pyright: ignore
        parts = data.classes.parts(outputs.T - data.classes.Y)
        rows.append([*(float(np.linalg.norm(part)) for part in parts), float(clock.time(1)) * top])
    columns = dict(zip((*PARTS, "stability"), np.transpose(rows), strict=True))
    return Trajectory(clock.time(np.asarray(steps)), columns | {"step": np.asarray(steps)}, data.classes)


def _flat(product, variables: Variables, shape: tuple[int, ...], v: np.ndarray) -> np.ndarray:
    return np.asarray(product(variables, v.reshape(shape))).ravel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=tuple(SETTINGS), default="digits")
    parser.add_argument("--batch-norm", action="store_true", help="of the multilayer perceptron")
    parser.add_argument("--divide", type=int, nargs="*", default=(1, 2, 4), help="the setting's learning rate by these")
    parser.add_argument("--double", action="store_true", help="train in float64; float32 rounds small updates away")
    flags = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    setting = SETTINGS[flags.setting]
    widths = setting.options or ("widths=(256,256,64)",)
    options = (*widths, *(("batch_norm=True",) if flags.batch_norm else ()))
    study = flags.setting + ("_batch_norm" if flags.batch_norm else "") + ("_float64" if flags.double else "")
    data = load(setting.dataset, per_class=setting.per_class).train
    net = network(setting.network, data.classes.num_classes, **dict(parse_options("options", options)))
    at = [s for s in log_spaced(setting.steps, setting.records) if s >= setting.start]
    dtype = np.float64 if flags.double else np.float32
    runs, rows = {}, []
    for divisor in flags.divide:
        rate = setting.learning_rate / divisor
        runs[f"learning rate {rate:g}"] = run = run_of(net, data, rate, [s * divisor for s in at], dtype)
        for i, t in enumerate(run.times):
            rows.append([f"{rate:g}", number(t), *(number(float(run[name][i])) for name in (*PARTS, "stability"))])
    print(Table(("learning rate", "flow time", "R_single", "R_class", "R_global", "step x top eigenvalue"), rows))
    with plots.style():
        figure, axes = plt.subplots(1, 4, figsize=(11.5, 3), layout="constrained")
        for ax, (name, label) in zip(
            axes, {**PARTS, "stability": r"$\tau\, \lambda_{\max}(\Theta)$"}.items(), strict=True
        ):
            for i, (said, run) in enumerate(runs.items()):
                ax.plot(run.times, run[name], ".-", color=f"C{i}", label=said)
            ax.set(
                xscale="log", yscale="linear" if name == "stability" else "log", xlabel=r"flow time $t$", title=label
            )
        axes[-1].axhline(2, color="black", linewidth=0.8, linestyle=":")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(runs))
        named = setting.network + (", batch norm" if flags.batch_norm else "")
        figure.suptitle(f"{data.name}, N={data.classes.num_samples}: {named}, full-batch gradient descent")
        print(plots.save(figure, HERE / "figures" / f"step_size_{study}"))


if __name__ == "__main__":
    main()
