"""What does a digit cost? Error of the final state against seconds, for our default and the best of others.

    python benchmarks/work_precision.py --out runs/work_precision.json      # minutes; stopped, it goes on
    python benchmarks/work_precision.py --out ... --only ours               # measures one method anew
    python benchmarks/work_precision.py --out ... --figure figure.png       # draws what has been measured

Three flows of C = 4 classes and n = 16 features: over a short time (not stiff), over a long one, and with 1,000
samples in each class over a long one (stiff). Every method integrates the same reduced equations (M, P, W, b) from
the same start and saves the end alone. Error: the largest, over the four parts, of the root mean square error over
that of the part, against Dormand and Prince's method of order 8 (diffrax) at 1e-13. Seconds are of the processor, all
threads, the least of the calls after a first, two of them or as many as half a second has; what the first of all
took, which compiles, stands behind the name. What
takes longer than ten seconds is left out, and so are the tighter tolerances of that method.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp
from threadpoolctl import threadpool_limits

from ntkcollapse import BlockKernel, Classes
from ntkcollapse.commands import Table, number
from ntkcollapse.theory.extrapolation import integrate_reduced
from ntkcollapse.theory.reduced import ReducedFlow, ReducedState, speed

jax.config.update("jax_enable_x64", True)

C, n = 4, 16
TOLERANCES = (1e-3, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
PROBLEMS = {
    "short, m = 25, T = 0.05": (25, 0.05),
    "long, m = 25, T = 20": (25, 20.0),
    "stiff, m = 1,000, T = 20": (1_000, 20.0),
}
LONGEST = 10.0


class Problem:
    """One reduced flow, for JAX and for numpy."""

    def __init__(self, m: int, until: float):
        rng = np.random.default_rng(0)
        classes, self.until = Classes.balanced(C, m), until
        scatter = m * C * 0.09 * np.eye(n) * rng.uniform(0.5, 1.5, n)
        self.flow = ReducedFlow(
            BlockKernel(3.0, 2.0, 0.6), classes.weights.astype(float), jnp.asarray(scatter)[None], bias="free"
        )
        M, W = 0.3 * rng.normal(size=(n, C)) / np.sqrt(m), 0.1 * rng.normal(size=(C, n))
        self.start = ReducedState(M=jnp.asarray(M), P=jnp.eye(n)[None], W=jnp.asarray(W), b=jnp.zeros(C))
        self.parts = [np.asarray(x) for x in jax.tree.leaves(self.start)]
        self.cuts = np.cumsum([x.size for x in self.parts])[:-1]
        self.y = np.concatenate([x.ravel() for x in self.parts])
        kernel, d = self.flow.kernel.at(0.0), np.asarray(self.flow.sizes)
        self.fixed = (
            np.asarray(kernel.class_gram(d)),
            np.asarray(kernel.group_rates(C)),
            d,
            np.asarray(scatter)[None],
        )

    def split(self, y):
        return [x.reshape(p.shape) for x, p in zip(np.split(y, self.cuts), self.parts, strict=True)]

    def speed(self, t, y):
        del t
        with np.errstate(all="ignore"):
            M, P, W, b = self.split(y)
            out = speed(M, P, W, b, *self.fixed, free=True, targets=np.eye(C), ones=np.ones(C))
        return np.concatenate([x.ravel() for x in out])

    def error(self, parts, exact) -> float:
        rms = lambda x: float(np.sqrt(np.mean(np.square(x))))  # noqa: E731
        return max(rms(np.asarray(a) - e) / rms(e) for a, e in zip(parts, exact, strict=True))


def ours(problem: Problem, rtol: float):
    out = integrate_reduced(problem.flow, problem.start, np.array([0.0, problem.until]), rtol=rtol)
    return [np.asarray(x)[-1] for x in jax.tree.leaves(out.states)]


def scipys(method: str) -> Callable:
    def integrated(problem: Problem, rtol: float):
        began = time.process_time()

        def watched(t, y):
            if time.process_time() - began > LONGEST:
                raise TimeoutError
            return problem.speed(t, y)

        with threadpool_limits(1):
            out = solve_ivp(watched, (0.0, problem.until), problem.y, method=method, rtol=rtol, atol=rtol * 1e-3)
        if not out.success:
            raise RuntimeError(out.message)
        return problem.split(out.y[:, -1])

    return integrated


def diffraxs(solver: diffrax.AbstractSolver, max_steps: int) -> Callable:
    @jax.jit
    def integrated(start, flow, until, rtol):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, flow: flow(t, y)), solver, 0.0, until, None, start, flow,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=rtol * 1e-3), max_steps=max_steps, throw=False,
            adjoint=diffrax.ForwardMode(),
        )  # fmt: skip

    def called(problem: Problem, rtol: float):
        out = jax.block_until_ready(integrated(problem.start, problem.flow, problem.until, rtol))
        if not bool(diffrax.is_okay(out.result)):
            raise RuntimeError("too many steps")
        return [x[-1] for x in jax.tree.leaves(out.ys)]

    return called


# Steps after which diffrax, which cannot be watched, is told to give up: about as long as the others are given.
METHODS: dict[str, Callable] = {
    "ours": ours,
    "diffrax Tsit5": diffraxs(diffrax.Tsit5(), 100_000),
    "diffrax Dopri8": diffraxs(diffrax.Dopri8(), 50_000),
    "diffrax Kvaerno5": diffraxs(diffrax.Kvaerno5(), 2_000),
    "scipy DOP853": scipys("DOP853"),
    "scipy LSODA": scipys("LSODA"),
    "scipy Radau": scipys("Radau"),
}


def reference(name: str, problem: Problem, kept: Path) -> list[np.ndarray]:
    """The final state near rounding, from a file beside the results where it has been computed."""
    file = kept.with_suffix(f".{name.split(',')[0]}.npz")
    if not file.exists():
        np.savez(file, *diffraxs(diffrax.Dopri8(), 10_000_000)(problem, 1e-13))
    with np.load(file) as arrays:
        return [arrays[key] for key in arrays.files]


def measured(call: Callable, problem: Problem, rtol: float, exact) -> dict:
    """Seconds and error of one method at one tolerance; seconds None where it failed, or took too long."""
    spent, parts = [], []
    try:
        while len(spent) < 3 or (sum(spent[1:]) < 0.5 and len(spent) < 300):
            began = time.process_time()
            parts = call(problem, rtol)
            spent.append(time.process_time() - began)
            if sum(spent) > LONGEST:
                break
    except (TimeoutError, RuntimeError) as failure:
        return {"seconds": None, "error": None, "why": "too long" if isinstance(failure, TimeoutError) else "failed"}
    return {"seconds": min(spent[1:] or spent), "first": spent[0], "error": problem.error(parts, exact), "why": ""}


def measure(out: Path, only: Iterable[str]) -> dict:
    """Fills the table in a file, cell by cell; methods in `only` anew."""
    cells = json.loads(out.read_text()) if out.exists() else {}
    cells = {key: cell for key, cell in cells.items() if key.split(" | ")[1] not in only}
    out.parent.mkdir(parents=True, exist_ok=True)
    for name, (m, until) in PROBLEMS.items():
        problem = Problem(m, until)
        exact = reference(name, problem, out)
        for method, call in METHODS.items():
            before: dict = {"seconds": 0.0}
            for rtol in TOLERANCES:
                key = f"{name} | {method} | {rtol:.0e}"
                if key not in cells:
                    late = before["seconds"] is None or before["seconds"] > LONGEST / 4
                    none = {"seconds": None, "error": None, "why": ""}
                    cells[key] = none if late else measured(call, problem, rtol, exact)
                    out.write_text(json.dumps(cells, indent=1))
                before = cells[key]
        first = {
            method: cells[f"{next(iter(PROBLEMS))} | {method} | {TOLERANCES[0]:.0e}"].get("first", 0.0)
            for method in METHODS
        }
        rows = [
            [
                f"{method} ({number(first[method])} s)",
                *(_cell(cells[f"{name} | {method} | {r:.0e}"]) for r in TOLERANCES),
            ]
            for method in METHODS
        ]
        print(Table([name, *(f"{r:.0e}" for r in TOLERANCES)], rows) + "\n", flush=True)
    return cells


def _cell(cell: dict) -> str:
    return cell["why"] if cell["seconds"] is None else f"{number(cell['seconds'])} s, {cell['error']:.0e}"


def draw(cells: dict, file: str) -> None:
    """Seconds against final error, one panel a flow."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(PROBLEMS), figsize=(11, 3.6), sharey=True, layout="constrained")
    for ax, name in zip(axes, PROBLEMS, strict=True):
        for method in METHODS:
            points = [cells[f"{name} | {method} | {r:.0e}"] for r in TOLERANCES]
            points = [(p["error"], p["seconds"]) for p in points if p["seconds"] is not None]
            style = {"lw": 2.5, "color": "black"} if method == "ours" else {"lw": 1.0}
            ax.loglog(*(zip(*points, strict=True) if points else ([], [])), marker="o", ms=3, label=method, **style)
        ax.invert_xaxis()
        ax.set(title=name, xlabel="error of the final state")
    axes[0].set_ylabel("processor seconds")
    axes[-1].legend(fontsize=7, loc="lower right")
    figure.savefig(file, dpi=150)


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/work_precision.json"), help="what has been measured")
    parser.add_argument("--only", nargs="*", default=[], choices=METHODS, help="methods to measure anew")
    parser.add_argument("--figure", help="file of a diagram")
    args = parser.parse_args()
    cells = measure(args.out, args.only)
    if args.figure:
        draw(cells, args.figure)


if __name__ == "__main__":
    main()
