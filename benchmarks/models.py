"""What does one mapped call gain over a loop, and low-rank descent over a semidefinite program?

    python benchmarks/models.py             both questions, some minutes
    python benchmarks/models.py --quick     the same at small size

1. A phase diagram of 1,000 integrations (weight decay × scale of the start; C = 3, m = 10, n = 8) in one `vmap` of
   `simulate`, against a loop over scipy's solve_ivp (LSODA and RK45) on the reduced system, each at two tolerances.
   Errors are in log₁₀ NC1 at the end, against runs at rtol 1e-10.
2. The layer-peeled curve of minority cosines (C = 10, 17 ratios) in one `vmap` of `models.layer_peeled.minimizer`,
   against the semidefinite program of Fang et al. (2021) in cvxpy (needs `pip install cvxpy`).

Compilation is timed apart; every time is the best of the warm repetitions.
"""

import argparse
import importlib
import importlib.util
import platform
import time
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

import ntkcollapse as nc
from ntkcollapse._table import number, table

C, M_PER_CLASS, FEATURES, END = 3, 10, 8, 30.0


def best_of(run, repeats: int):
    """(first call, best of the later ones, result): the first call compiles."""
    times = []
    result = None
    for _ in range(repeats + 1):
        began = time.perf_counter()
        result = jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return times[0], min(times[1:]), np.asarray(result)


def start():
    rng = np.random.default_rng(0)
    H = rng.normal(size=(FEATURES, C * M_PER_CLASS)) / np.sqrt(FEATURES)
    return H, rng.normal(size=(C, FEATURES)) / np.sqrt(FEATURES)


def mapped(rtol: float):
    """(decays, scales) → NC1 at the end of each, in one call."""
    classes = nc.Classes.balanced(C, M_PER_CLASS)
    H, W = (jnp.asarray(x) for x in start())
    kappa = nc.BlockKernel(1.0, 0.0, 0.0)

    def point(decay, scale):
        first = nc.LastLayer(H=scale * H, W=scale * W, b=jnp.zeros(C))
        rates = {"H": decay, "W": decay}
        times = jnp.asarray([0.0, END])
        run = nc.simulate(
            first,
            kappa,
            classes,
            times,
            weight_decay=rates,
            columns=False,
            rtol=rtol,
            atol=1e-3 * rtol,
            max_steps=10**6,
        )
        return run["nc1_tirer2022"][-1]

    return jax.jit(jax.vmap(point))


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
    exact = np.log10(looped(decays, scales, "LSODA", 1e-10))
    rows = []
    for rtol in (1e-4, 1e-6):
        run = mapped(rtol)
        first, warm, seen = best_of(lambda run=run: run(jnp.asarray(decays), jnp.asarray(scales)), 2)
        error = np.abs(np.log10(seen) - exact).max()
        rows.append([f"one mapped `simulate`, rtol {rtol:.0e}", number(warm), number(first - warm), number(error)])
    for method, rtol in (("LSODA", 1e-4), ("LSODA", 1e-6), ("RK45", 1e-4), ("RK45", 1e-6)):
        began = time.perf_counter()
        seen = looped(decays, scales, method, rtol)
        spent = time.perf_counter() - began
        error = np.abs(np.log10(seen) - exact).max()
        rows.append([f"loop over solve_ivp, {method}, rtol {rtol:.0e}", number(spent), "", number(error)])
    title = f"{decays.size} integrations to t = {END:g}"
    return title + "\n\n" + table(["", "seconds", "compilation, seconds", "error in log10 NC1"], rows)


def semidefinite(ratio: float, classes: int, majority: int, energy_H: float, energy_W: float) -> tuple[float, float]:
    """(loss, minority cosine) of the authors' convex relaxation."""
    cp: Any = importlib.import_module("cvxpy")
    K = classes
    weights = np.where(np.arange(K) < majority, ratio, 1.0)
    weights = weights / weights.sum()
    X = cp.Variable((2 * K, 2 * K), PSD=True)
    loss = sum(w * (cp.log_sum_exp(X[k, K:]) - X[k, K + k]) for k, w in enumerate(weights))
    budgets = [cp.trace(X[:K, :K]) / K <= energy_H, cp.trace(X[K:, K:]) / K <= energy_W]
    problem = cp.Problem(cp.Minimize(loss), budgets)
    problem.solve()
    gram = X.value[K + majority :, K + majority :]
    norms = np.sqrt(np.diag(gram))
    cosines = gram / np.outer(norms, norms)
    B = K - majority
    return float(problem.value), float((cosines.sum() - B) / (B * (B - 1)))


def layer_peeled(points: int) -> str:
    ratios = np.logspace(0, np.log10(20), points)
    key = jax.random.key(0)
    sizes = jnp.where(jnp.arange(10)[None, :] < 5, jnp.asarray(ratios)[:, None], 1.0)
    values = jax.jit(jax.vmap(lambda s: nc.models.layer_peeled.minimizer(s, 5.0, 1.0, key=key).value))
    curve = jax.jit(lambda r: nc.models.layer_peeled.cosine_curve(r, 10, 5, 5.0, 1.0, key=key))
    first, warm, cosines = best_of(lambda: curve(jnp.asarray(ratios)), 2)
    losses = np.asarray(values(sizes))
    rows = [["one mapped low-rank BFGS", number(warm), number(first - warm), ""]]
    if importlib.util.find_spec("cvxpy"):
        began = time.perf_counter()
        found = np.array([semidefinite(r, 10, 5, 5.0, 1.0) for r in ratios])
        spent = time.perf_counter() - began
        worse = (found[:, 0] - losses).max()
        rows.append([f"semidefinite program, cvxpy {version('cvxpy')}", number(spent), "", number(worse)])
        note = f"largest difference of the cosines: {np.abs(found[:, 1] - cosines).max():.2g}"
    else:
        note = "cvxpy is not installed: the semidefinite program was left out."
    header = ["", "seconds", "compilation, seconds", "loss above the mapped one"]
    return f"Layer-peeled curve, {points} ratios\n\n" + table(header, rows) + f"\n\n{note}"


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="36 integrations and 5 ratios")
    quick = parser.parse_args().quick
    print(f"Python {platform.python_version()}, jax {jax.__version__}, {jax.devices()[0].platform}\n")
    print(phase_diagram(36 if quick else 1024), end="\n\n")
    print(layer_peeled(5 if quick else 17))


if __name__ == "__main__":
    main()
