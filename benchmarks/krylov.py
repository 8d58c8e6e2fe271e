"""What a kernel in Krylov blocks, or of resolvents, costs to make and to integrate, by the number of samples.

    python benchmarks/krylov.py
    python benchmarks/krylov.py --operator random-features --samples 600 6000 60000

Features are those of a perceptron 64-32-32-8 on ten Gaussian clusters; their kernel, the mean over the eight features,
is asked for products alone, or in its place that of 256 random features, whose products cost next to nothing. Seconds
are processor time. The second simulation is timed: the first one compiles, once for each shape.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntkcollapse as nc

C, n, WIDTHS = 10, 8, (64, 32, 32, 8)
# The whole kernel takes N² numbers, and N steps of N n operations: beyond this it is not tried.
MOST_WHOLE = 1_000


def features(params, x):
    """A perceptron with ReLU."""
    for A in params[:-1]:
        x = jax.nn.relu(x @ A.T)
    return x @ params[-1].T


def problem(N: int):
    """Inputs in class order, weights, and a start on their features."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(C, WIDTHS[0]))
    params = [rng.normal(size=(out, into)) / np.sqrt(into / 2) for into, out in itertools.pairwise(WIDTHS)]
    W = rng.normal(size=(C, n)) / np.sqrt(n)
    # Last, so that every N has the same network.
    classes = nc.Classes.balanced(C, N // C)
    x = np.repeat(centres, N // C, axis=0) + 0.7 * rng.normal(size=(N, WIDTHS[0]))
    H = np.asarray(features(params, jnp.asarray(x))).T
    start = nc.LastLayer(H=H, W=W, b=np.zeros(C))
    return params, x, classes, start


class Counted:
    """An operator that counts its products with a vector."""

    def __init__(self, operator: Callable, N: int):
        self.many, self.shape, self.dtype, self.count = (
            getattr(operator, "matmat", operator),
            (N, N),
            np.dtype(float),
            0,
        )

    def matmat(self, X):
        self.count += X.shape[1]
        return self.many(X)


def operator_of(kind: str, params, x) -> Callable:
    """K v of the perceptron's features, or of random features of the inputs."""
    if kind == "network":
        return nc.ntk.NTKOperator(features, params, jnp.asarray(x), outputs="mean")
    directions = np.random.default_rng(1).normal(size=(256, x.shape[1])) / np.sqrt(x.shape[1])
    Φ = np.maximum(x @ directions.T, 0)
    return lambda v: Φ @ (Φ.T @ v) / Φ.shape[1] + 0.05 * v


def seconds(function: Callable, repeats: int = 1) -> tuple[Any, float]:
    """What it gives, and the least processor time of several calls."""
    best, out = np.inf, None
    for _ in range(repeats):
        began = time.process_time()
        out = jax.block_until_ready(function())
        best = min(best, time.process_time() - began)
    return out, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[600, 6_000, 60_000])
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--operator", choices=("network", "random-features"), default="network")
    flags = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print(f"C = {C}, n = {n}; seconds of processor time")
    print(
        "| N | directions | products with a vector | to make it | to integrate it | steps | ms a step | whole kernel |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for N in flags.samples:
        params, x, classes, start = problem(N)
        operator = Counted(operator_of(flags.operator, params, x), N)
        operator.matmat(np.ones((N, C)))
        # To the same flow time in units of the fastest part, whatever N.
        times, method, whole = np.linspace(0.0, 20.0, 21) / N, nc.Method(rtol=1e-6), "-"
        if N <= MOST_WHOLE:
            dense = nc.DenseKernel(np.asarray(operator.matmat(np.eye(N))))
            options = {"method": nc.Method(solver="chebyshev", rtol=1e-6), "observed": False}
            nc.simulate(start, dense, classes, times, **options)
            whole = f"{seconds(lambda: nc.simulate(start, dense, classes, times, **options), 3)[1]:.2f}"  # noqa: B023
        kinds = {
            f"{flags.blocks} blocks": lambda: nc.KrylovKernel.of(operator, classes, blocks=flags.blocks),  # noqa: B023
            "2 resolvents": lambda: nc.KrylovKernel.for_flow(operator, start, classes, times[-1], resolvents=2),  # noqa: B023
        }
        for name, made in kinds.items():
            operator.count = 0
            kernel, to_make = seconds(made)
            reduced = nc.ReducedStart.of(start, kernel, classes)

            def flow():
                return nc.simulate(reduced, kernel, classes, times, method=method, observed=False)  # noqa: B023

            products = operator.count
            flow()
            run, to_integrate = seconds(flow, 3)
            steps = int(run.statistics["num_steps"])
            print(
                f"| {N:,} | {len(kernel.matrix)}, {name} | {products} | {to_make:.1f} | {to_integrate:.2f} | {steps} | "
                f"{1e3 * to_integrate / steps:.1f} | {whole} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
