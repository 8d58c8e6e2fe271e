"""What does each rung of the ladder cost, against training itself?

    python benchmarks/compare.py              digits, m = 30, MLP 64-256-256-64; several minutes on two quiet cores
    python benchmarks/compare.py --quick      a tiny network, one minute

Every rung predicts the same stretch of training. Costs are in epochs of full-batch training of the same network: the
best of several warm runs, compilation apart. Beside each cost stands how far the rung is from the network in R_class at
the end, which is what the cost buys.
"""

import argparse
import dataclasses
import platform
import time
from importlib.metadata import version

import jax
import numpy as np
import optax

from ntkcollapse.commands import Table, number, percent
from ntkcollapse.commands.network_runs import train_measured
from ntkcollapse.comparison import RUNGS, available_rungs, climb, gaps
from ntkcollapse.data import digits
from ntkcollapse.networks import mlp
from ntkcollapse.training import Stepper, log_spaced, preset


def epoch(per_class: int, widths: tuple[int, ...], learning_rate: float, repeats: int = 50) -> float:
    """Seconds of one full-batch step, warm: the best of several."""
    data = digits(per_class)
    network = mlp(widths, data.classes.num_classes)
    stepper = Stepper(network, optax.sgd(learning_rate))
    state = stepper.start(network.init(jax.random.key(0), data.inputs))
    inputs, labels = jax.device_put((data.inputs, data.labels))
    best, record = np.inf, None
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(repeats):
            state, record = stepper(state, inputs, labels)
        jax.block_until_ready(record)
        best = min(best, (time.perf_counter() - began) / repeats)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=2, help="warm runs of each rung")
    parser.add_argument("--skip", nargs="*", default=(), choices=tuple(RUNGS), help="rungs to leave out")
    flags = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    per_class, widths = (3, (16, 12)) if flags.quick else (30, (256, 256, 64))
    steps, start = (160, 20) if flags.quick else (2560, 80)
    options = (f"widths=({','.join(map(str, widths))})",)
    config = dataclasses.replace(preset("digits"), per_class=per_class, network_options=options, epochs=steps)
    at = {*log_spaced(steps, 8), start}
    run = train_measured(config, at=at, networks_at=at)
    one = epoch(per_class, widths, config.learning_rate)
    rows = []
    for name in available_rungs(run.start(start)):
        if name in flags.skip:
            continue
        rung = RUNGS[name]
        seconds, prediction = [], None
        for _ in range(1 + flags.repeats):
            # A new start, so that kernels are measured anew: they are part of what the rung costs.
            beginning = run.start(start)
            began = time.perf_counter()
            ladder = climb(beginning, [name])
            seconds.append(time.perf_counter() - began)
            prediction = ladder
        if prediction is None or name not in prediction.rungs:
            rows.append([rung.title, "-", "-", "-", "-"])
            continue
        warm = min(seconds[1:])
        off = gaps(prediction.network, prediction.rungs[name], ["residual_class"])["residual_class"].relative[-1]
        rows.append([rung.title, number(seconds[0] - warm), number(warm), number(warm / one), percent(off)])
    N, P = run.trajectory.classes.num_samples, next(iter(run.networks.values())).num_params
    print(f"N = {N}, P = {P}, {steps - start} steps predicted; one epoch (full-batch step): {1e3 * one:.2f} ms")
    print(Table(["rung", "compilation, s", "warm, s", "in epochs", "R_class at the end"], rows))
    print(f"jax {version('jax')}, {platform.machine()}, {jax.devices()}")


if __name__ == "__main__":
    main()
