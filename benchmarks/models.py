"""What does one mapped call gain over a loop, and low-rank descent over a semidefinite program, at equal error?

    python benchmarks/models.py                      both questions, some minutes
    python benchmarks/models.py --quick              the same at small size
    python benchmarks/models.py --cvxpy PYTHON       with the semidefinite program, run by an interpreter with cvxpy

1. A phase diagram of 1,024 integrations (weight decay × scale of the start; C = 3, m = 10, n = 8) in one mapped call
   of `simulate`, 128 side by side, against a loop over scipy's solve_ivp on the reduced system. The error is the
   largest in log₁₀ NC1 at the end, against LSODA at rtol 1e-11. Every method runs at the loosest rtol (a power of ten,
   with atol = rtol/1000) whose error is below the target, so that times are compared at equal error. Loops run over 32
   points of the diagram, drawn at random, and their time is multiplied: they do one after the other; errors are at
   those points.
2. The layer-peeled curve of minority cosines (C = 10, 17 ratios) in one `vmap` of `models.layer_peeled.minimizer`,
   against the semidefinite program of Fang et al. (2021), `layer_peeled_sdp.py`. Errors are against the best of eight
   starts.

Compilation is timed apart; every time of a mapped call is the best of the warm repetitions. Times are processor time
(all threads), so that other work on the machine does not enter: of a mapped call on two cores somewhat more than what a
clock on the wall says, of a loop the same.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

import ntkcollapse as nc
from ntkcollapse.commands import Table, number

C, M_PER_CLASS, FEATURES, END = 3, 10, 8, 30.0
# Loosest to tightest.
TOLERANCES = 10.0 ** -np.arange(3.0, 12.0)
TARGETS = (1e-3, 1e-5)
# Points integrated side by side.
BATCH = 128
# Points on which loops are timed.
SAMPLE = 32


def best_of(run, repeats: int):
    """(first call, best of the later ones, result): the first call compiles."""
    times = []
    result = None
    for _ in range(repeats + 1):
        began = time.process_time()
        result = jax.block_until_ready(run())
        times.append(time.process_time() - began)
    return times[0], min(times[1:]), jax.tree.map(np.asarray, result)


def start():
    rng = np.random.default_rng(0)
    H = rng.normal(size=(FEATURES, C * M_PER_CLASS)) / np.sqrt(FEATURES)
    return H, rng.normal(size=(C, FEATURES)) / np.sqrt(FEATURES)


def mapped() -> Callable:
    """(decays, scales, rtol) → NC1 at the end of each, in one call."""
    classes = nc.Classes.balanced(C, M_PER_CLASS)
    H, W = (jnp.asarray(x) for x in start())
    kappa = nc.BlockKernel(1.0, 0.0, 0.0)

    def point(decay, scale, rtol):
        first = nc.LastLayer(H=scale * H, W=scale * W, b=jnp.zeros(C))
        flow = nc.Flow(kappa, classes, weight_decay={"H": decay, "W": decay})
        method = nc.Method(rtol=rtol, atol=1e-3 * rtol, max_steps=10**6)
        run = nc.simulate(first, flow, times=jnp.asarray([0.0, END]), method=method, columns=False)
        return run["nc1_tirer2022"][-1]

    # A mapped loop runs until its slowest lane is done: in batches of neighbours, which are alike, that costs less.
    def many(decays, scales, rtol):
        return jax.lax.map(lambda at: point(at[0], at[1], rtol), (decays, scales), batch_size=BATCH)

    return jax.jit(many)


def looped(decays, scales, method: str, rtol: float) -> np.ndarray:
    """The same by scipy, one after the other: the reduced right-hand side in numpy, K = I."""
    H, W = start()
    means = H.reshape(FEATURES, C, M_PER_CLASS).mean(2)
    deviations = H - np.repeat(means, M_PER_CLASS, axis=1)
    n, m = FEATURES, M_PER_CLASS
    cuts = np.cumsum([n * C, n * n, C * n])

    def field(t, y, decay, scatter):
        M, P, W, b = (x.reshape(s) for x, s in zip(np.split(y, cuts), ((n, C), (n, n), (C, n), (C,)), strict=True))
        R = W @ M + b[:, None] - np.eye(C)
        WP = W @ P
        dM = -W.T @ R - decay * M
        dP = -W.T @ WP - decay * P
        dW = -m * R @ M.T - WP @ scatter @ P.T - decay * W
        return np.concatenate([dM.ravel(), dP.ravel(), dW.ravel(), -m * R.sum(1)])

    seen = []
    for decay, scale in zip(decays, scales, strict=True):
        scatter = scale**2 * deviations @ deviations.T
        y0 = np.concatenate([scale * means.ravel(), np.eye(n).ravel(), scale * W.ravel(), np.zeros(C)])
        out = solve_ivp(field, (0, END), y0, method=method, rtol=rtol, atol=1e-3 * rtol, args=(decay, scatter))
        M, P = out.y[: cuts[0], -1].reshape(n, C), out.y[cuts[0] : cuts[1], -1].reshape(n, n)
        within = np.trace(P @ scatter @ P.T) / (C * m)
        seen.append(within / (np.sum((M - M.mean(1, keepdims=True)) ** 2) / C))
    return np.array(seen)


def phase_diagram(points: int) -> str:
    side = max(2, round(points**0.5))
    decays, scales = (a.ravel() for a in np.meshgrid(np.logspace(-3, -0.5, side), np.logspace(-2, 1, side)))
    sample = np.random.default_rng(1).permutation(decays.size)[: min(SAMPLE, decays.size)]
    some = decays[sample], scales[sample]
    exact = np.log10(looped(*some, "LSODA", 1e-11))

    def error(nc1) -> float:
        return float(np.abs(np.log10(nc1) - exact).max())

    on_device = jnp.asarray(decays), jnp.asarray(scales)
    run = mapped()
    first, second, _ = best_of(lambda: run(*on_device, TOLERANCES[0]), 1)
    methods: dict[str, tuple[Callable, float | None]] = {
        "one mapped `simulate`": (lambda rtol: np.asarray(run(*on_device, rtol))[sample], first - second)
    }
    for name in ("LSODA", "BDF"):
        one_by_one = lambda rtol, name=name: looped(*some, name, rtol)  # noqa: E731
        methods[f"loop over solve_ivp, {name}"] = one_by_one, None
    rows = []
    for name, (values, compilation) in methods.items():
        targets = list(TARGETS)
        for rtol in TOLERANCES:
            began = time.process_time()
            off = error(values(rtol))
            spent = (time.process_time() - began) * (1 if compilation is not None else decays.size / sample.size)
            print(f"{name}: rtol {rtol:.0e}, error {off:.1e}, {spent:.1f} s", file=sys.stderr, flush=True)
            while targets and off < targets[0]:
                compiling = "" if compilation is None else number(compilation)
                rows.append([f"{targets.pop(0):.0e}", name, f"{rtol:.0e}", number(off), number(spent), compiling])
            if not targets:
                break
    rows.sort(key=lambda row: -float(row[0]))
    header = ["error below", "", "rtol", "error", "seconds", "compilation, seconds"]
    title = f"{decays.size} integrations to t = {END:g}"
    return title + "\n\n" + Table(header, rows)


def layer_peeled(points: int, interpreter: str | None) -> str:
    ratios = np.logspace(0, np.log10(20), points)
    sizes = jnp.where(jnp.arange(10)[None, :] < 5, jnp.asarray(ratios)[:, None], 1.0)

    @jax.jit
    def curve(key):
        def at(s):
            best = nc.models.layer_peeled.minimizer(s, 5.0, 1.0, key=key)
            unit = best.W[5:] / jnp.linalg.norm(best.W[5:], axis=1)[:, None]
            return best.value, (jnp.sum(unit @ unit.T) - 5) / 20

        return jax.vmap(at)(sizes)

    first, warm, (loss, cosine) = best_of(lambda: curve(jax.random.key(0)), 2)
    others = [curve(jax.random.key(i)) for i in range(1, 9)]
    least = np.min([np.asarray(value) for value, _ in others], axis=0)
    # Cosines are judged where they are sharp: the loss is flat to second order, more so at the merging itself.
    best = np.asarray(others[0][1])
    rows = [
        [
            "one mapped low-rank BFGS",
            number(warm),
            "",
            number(np.abs(loss - least).max()),
            number(np.abs(cosine - best).max()),
        ]
    ]
    note = f"Compilation of the mapped call: {first - warm:.2g} s."
    if interpreter is None:
        note += "\nThe semidefinite program was left out: name an interpreter that has cvxpy with --cvxpy PYTHON."
    else:
        asked = {"ratios": list(ratios), "classes": 10, "majority": 5, "energy_H": 5.0, "energy_W": 1.0}
        tight = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12}
        solvers = [
            ("Clarabel, default tolerances", "CLARABEL", {}),
            ("Clarabel, tolerances 1e-12", "CLARABEL", tight),
            ("SCS, default tolerances", "SCS", {}),
            ("SCS, eps 1e-7", "SCS", {"eps_abs": 1e-7, "eps_rel": 1e-7, "max_iters": 200_000}),
        ]
        script = Path(__file__).with_name("layer_peeled_sdp.py")
        for label, solver, options in solvers:
            question = json.dumps(asked | {"solver": solver, "options": options})
            said = subprocess.run([interpreter, script, question], capture_output=True, text=True, check=True).stdout
            found = json.loads(said.splitlines()[-1])
            gaps = (np.abs(np.subtract(found[k], b)).max() for k, b in (("loss", least), ("cosine", best)))
            name = f"semidefinite program, {label} (cvxpy {found['cvxpy']})"
            rows.append([name, number(found["seconds"]), number(found["solving"]), *map(number, gaps)])
    header = ["", "seconds", "in the solver alone", "error of the loss", "error of the cosine"]
    return f"Layer-peeled curve, {points} ratios\n\n" + Table(header, rows) + f"\n\n{note}"


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="36 integrations and 5 ratios")
    parser.add_argument("--cvxpy", metavar="PYTHON", help="an interpreter with cvxpy, for the semidefinite program")
    parser.add_argument("--only", choices=("diagram", "peeled"), help="one of the two questions")
    flags = parser.parse_args()
    print(f"Python {platform.python_version()}, jax {jax.__version__}, {jax.devices()[0].platform}\n")
    if flags.only != "peeled":
        print(phase_diagram(36 if flags.quick else 1024), end="\n\n", flush=True)
    if flags.only != "diagram":
        print(layer_peeled(5 if flags.quick else 17, flags.cvxpy))


if __name__ == "__main__":
    main()
