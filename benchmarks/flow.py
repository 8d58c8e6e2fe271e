"""How long does the flow take, and which integrator should be the default?

    python benchmarks/flow.py              all tables, about 15 minutes on two cores
    python benchmarks/flow.py --quick      the same at small size, one minute

1. Time of one right-hand side of the reduced flow against the number of samples.
2. Time to t = 40 at m = 6,000 samples in each of C = 10 classes, n = 64 features, κ = (1, .5, .1): the default solver
   against other diffrax solvers, implicit methods on (M, W, b) with the scatter eliminated, and LSODA on the full
   system, each at the loosest tolerance that ends with an error of 1e-5 or less.

Seconds are processor time of this process, the best of several warm runs; compilation is timed apart. BLAS gets one
thread (OPENBLAS_NUM_THREADS=1), as XLA's loops have. Errors are the largest in M and W at the end,
relative to the largest entry, against the default solver at rtol 1e-9; that the implicit solvers' errors shrink against
it as theirs should is what makes it a reference.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from ntkcollapse import BlockKernel, Classes
from ntkcollapse.commands import Table
from ntkcollapse.theory.chebyshev import RungeKuttaChebyshev
from ntkcollapse.theory.integrate import integrate
from ntkcollapse.theory.reduced import ReducedFlow, ReducedStart, spectral_radius

# The three values of the kernel: made into one inside `main`, where float64 is on.
VALUES = (1.0, 0.5, 0.1)

# The final error at which solvers are compared.
TARGET = 1e-5


class OutOfTime(Exception):
    """A run took longer than it was given."""


def start_of(kind: str, m: int, n: int, C: int, seed: int = 0) -> ReducedStart:
    """A "near" start: W of size 1/√n, means balanced against it, little scatter; "generic": offset means."""
    rng = np.random.default_rng(seed)
    lambda_single, lambda_class = 0.5, 0.5 + m * 0.4
    W = rng.normal(size=(C, n)) / np.sqrt(n)
    if kind == "near":
        M = np.sqrt(lambda_class / m) * rng.normal(size=(n, C)) / np.sqrt(n)
        A = rng.normal(size=(n, n)) / np.sqrt(n)
        S = 0.05 * lambda_single * A @ A.T
    else:
        M = 0.5 + 0.5 * rng.normal(size=(n, C))
        S = 0.09 * m * C * np.eye(n)
    return ReducedStart(M=M, scatter=S, W=W, b=np.zeros(C))


def best_of(run: Callable, repeats: int) -> tuple[float, float, Any]:
    """(first call, best of the later ones, result): the first call compiles; long runs are not repeated."""
    times = []
    result = None
    for _ in range(repeats + 1):
        began = time.process_time()
        result = jax.block_until_ready(run())
        times.append(time.process_time() - began)
        if len(times) > 1 and times[-1] > 10:
            break
    return times[0], min(times[1:]), result


def right_hand_sides(n: int, C: int, sizes: list[int]) -> str:
    """Microseconds of one evaluation: the same for every m, because m is only a number in it."""

    @eqx.filter_jit
    def many(flow, state):
        # A chain of Euler steps of length 0: each evaluation waits for the one before.
        return jax.lax.fori_loop(0, 2000, lambda i, y: jax.tree.map(lambda a, f: a + 1e-30 * f, y, flow(0.0, y)), state)

    best = dict.fromkeys(sizes, np.inf)
    # In turns, so that a machine that changes its pace changes it for all.
    for _ in range(10):
        for m in sizes:
            start = start_of("near", m, n, C)
            flow = ReducedFlow(BlockKernel(*VALUES), Classes.balanced(C, m).weights, start.scatter)
            _, seconds, _ = best_of(lambda flow=flow, start=start: many(flow, start.state), 1)
            best[m] = min(best[m], seconds / 2000 * 1e6)
    cells = [[f"{m:,}", f"{us:.1f}", f"{us / best[sizes[0]]:.2f}"] for m, us in best.items()]
    return Table(["m", "µs per evaluation", "ratio"], cells)


class Eliminated(eqx.Module):
    """The flow on (M, W, b) alone: S = λ_single (WᵀW − M Γ⁻¹ Mᵀ − I(0)), what the invariant leaves of the scatter."""

    sizes: jax.Array
    constant: jax.Array

    @classmethod
    def of(cls, start: ReducedStart, sizes) -> "Eliminated":
        gram = (
            start.M @ jnp.linalg.solve(BlockKernel(*VALUES).class_gram(sizes), start.M.T)
            + start.scatter[0] / BlockKernel(*VALUES).lambda_single
        )
        return cls(sizes, start.W.T @ start.W - gram)

    def __call__(self, t, state, args=None):
        del t, args
        M, W, b = state
        d, Γ = self.sizes, BlockKernel(*VALUES).class_gram(self.sizes)
        RD = (W @ M + b[:, None] - jnp.eye(len(d))) * d[None, :]
        S = BlockKernel(*VALUES).lambda_single * (W.T @ W - M @ jnp.linalg.solve(Γ, M.T) - self.constant)
        return -W.T @ (RD @ Γ), -(RD @ M.T + W @ S), -RD.sum(1)


@eqx.filter_jit
def solve(flow, start, times, solver, rtol, max_steps):
    return integrate(flow, start, times, solver=solver, rtol=rtol, atol=rtol * 1e-3, max_steps=max_steps)


def scipy_run(flow, start, until: float, method: str, rtol: float, limit: float, jacobian: bool):
    """scipy's integrator on a jitted right-hand side, stopped after `limit` seconds."""
    flat, unravel = jax.flatten_util.ravel_pytree(start)
    f = jax.jit(lambda y: jax.flatten_util.ravel_pytree(flow(0.0, unravel(y)))[0])
    jac = jax.jit(jax.jacfwd(f))
    f(flat)
    if jacobian:
        jac(flat)
    began, reached = time.process_time(), [0.0]

    def timed(t, y):
        reached[0] = max(reached[0], t)
        if time.process_time() - began > limit:
            raise OutOfTime(f"{reached[0]:.3g}")
        return np.asarray(f(y))

    options: dict[str, Any] = {"jac": lambda t, y: np.asarray(jac(y))} if jacobian else {}
    out = solve_ivp(timed, (0, until), np.asarray(flat), method=method, rtol=rtol, atol=rtol * 1e-3, **options)
    return time.process_time() - began, unravel(jnp.asarray(out.y[:, -1])), out


def full_system(start: ReducedStart, m: int, C: int, n: int):
    """The flow in all n × N features as plain arrays; their deviations have the scatter of `start`."""
    root = jnp.asarray(np.linalg.cholesky(np.asarray(start.scatter[0]) + 1e-12 * np.eye(n)))
    N = m * C
    rng = np.random.default_rng(1)
    classes = Classes.balanced(C, m)
    X = classes.deviations(rng.normal(size=(n, N)))
    X = root @ jnp.linalg.inv(jnp.linalg.cholesky(X @ X.T)) @ X
    H = classes.expand(start.M) + X

    def flow(t, state):
        H, W, b = state
        R = W @ H + b[:, None] - classes.Y
        return -W.T @ BlockKernel(*VALUES).mv(R, classes), -R @ H.T, -R.sum(1)

    return flow, (H, start.W, start.b), classes


def error_of(M, W, reference) -> float:
    M_ref, W_ref = reference
    scale = max(np.abs(M_ref).max(), np.abs(W_ref).max())
    return float(max(np.abs(np.asarray(M) - M_ref).max(), np.abs(np.asarray(W) - W_ref).max()) / scale)


def to_the_end(kind: str, m: int, n: int, C: int, until: float, limit: float, repeats: int) -> str:
    """For each solver the loosest tolerance, from 1e-3 down by tens, that ends with an error of TARGET or less."""
    start = start_of(kind, m, n, C)
    sizes = Classes.balanced(C, m).weights
    flow, eliminated = ReducedFlow(BlockKernel(*VALUES), sizes, start.scatter), Eliminated.of(start, sizes)
    times = jnp.asarray([0.0, until])
    small = (start.M, start.W, start.b)
    chebyshev = RungeKuttaChebyshev(spectral_radius)
    out = solve(flow, start.state, times, chebyshev, jnp.asarray(1e-9), 4_000_000)
    reference = (np.asarray(out.states.M[-1]), np.asarray(out.states.W[-1]))
    rows = []

    def add(name, run):
        """`run(rtol)` gives (seconds, compilation, work, error)."""
        row = [name, "-", f"> {limit:.0f}", "-", "-", "-"]
        for rtol in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8):
            try:
                seconds, compiling, work, error = run(rtol)
            except OutOfTime as late:
                row = [name, f"{rtol:.0e}", f"> {limit:.0f}", "-", f"until {late}", "-"]
                break
            row = [name, f"{rtol:.0e}", f"{seconds:.3g}", compiling, work, f"{error:.1e}"]
            if error <= TARGET or seconds > limit:
                break
        rows.append(row)
        print("  ".join(row), file=sys.stderr, flush=True)

    def diffrax_run(solver, flow, start, max_steps=4_000_000):
        def run(rtol):
            first, best, out = best_of(lambda: solve(flow, start, times, solver, jnp.asarray(rtol), max_steps), repeats)
            states = out.states
            M, W = (states.M, states.W) if hasattr(states, "M") else states[:2]
            if not bool(out.successful):
                raise OutOfTime(f"{max_steps:,} steps")
            steps = f"{int(out.statistics['num_steps']):,} steps"
            return best, f"{first - best:.1f}", steps, error_of(M[-1], W[-1], reference)

        return run

    def scipy_row(method, flow, start, jacobian, pick):
        def run(rtol):
            seconds, end, out = scipy_run(flow, start, until, method, rtol, limit, jacobian)
            M, W = pick(end)
            return seconds, "-", f"{out.nfev:,} evaluations", error_of(M, W, reference)

        return run

    add("Chebyshev (default), reduced flow", diffrax_run(chebyshev, flow, start.state))
    rho = float(spectral_radius(0.0, start.state, flow))
    if rho * until < 3e5:
        add("Tsit5 (diffrax), reduced flow", diffrax_run(diffrax.Tsit5(), flow, start.state))
    else:
        # Stability limits the step: evaluations grow as ρ t, so a short run says how long the whole one takes.
        share = 1e5 / (rho * until)
        short = jnp.asarray([0.0, share * until])
        _, best, out = best_of(
            lambda: solve(flow, start.state, short, diffrax.Tsit5(), jnp.asarray(1e-3), 4_000_000), 1
        )
        steps = int(out.statistics["num_steps"])
        said = f"{best / share:.0f} extrapolated from t = {share * until:.2g}"
        rows.append(["Tsit5 (diffrax), reduced flow", "1e-03", said, "-", f"{steps / share:,.0f} steps", "-"])
    add("Kvaerno5 (diffrax) on (M, W, b)", diffrax_run(diffrax.Kvaerno5(), eliminated, small, 5_000))
    add("BDF (scipy) on (M, W, b)", scipy_row("BDF", eliminated, small, True, lambda e: e[:2]))
    unknowns = n * m * C + C * n + C
    memory = 8 * unknowns**2 / 2**30
    if memory < 4:
        full, everything, classes = full_system(start, m, C, n)
        pick = lambda e: (classes.means(e[0]), e[1])  # noqa: E731
        add("LSODA (scipy), full system", scipy_row("LSODA", full, everything, False, pick))
    else:
        rows.append([f"LSODA (scipy), full system: {unknowns:,} unknowns", "-", f"needs {memory:,.0f} GiB", *"---"])
    header = ["solver", "rtol", "CPU seconds, warm", "compilation", "work", "final error"]
    return Table(header, rows)


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, one minute")
    parser.add_argument("--tables", nargs="+", choices=("rhs", "small", "near", "generic"), help="only these")
    arguments = parser.parse_args()
    quick, wanted = arguments.quick, arguments.tables or ("rhs", "small", "near", "generic")
    n, C = (16, 4) if quick else (64, 10)
    print(f"{platform.machine()}, {jax.devices()[0].platform}, Python {platform.python_version()}")
    print(", ".join(f"{name} {version(name)}" for name in ("jax", "diffrax", "equinox", "numpy", "scipy")))
    if "rhs" in wanted:
        print(f"\nRight-hand side of the reduced flow, n = {n}, C = {C}\n")
        print(right_hand_sides(n, C, [10, 1_000, 1_000_000]), flush=True)
    for name, kind, m in (("small", "near", 12), ("near", "near", 6000), ("generic", "generic", 6000)):
        if name not in wanted:
            continue
        m = m if m < 100 or not quick else 200
        print(f"\nTo t = 40 from a {kind} start, m = {m:,}, n = {n}, C = {C}\n", flush=True)
        print(to_the_end(kind, m, n, C, 40.0, 10.0 if quick else 120.0, 1 if quick else 3), flush=True)


if __name__ == "__main__":
    main()
