"""What does a digit cost? Error of the final state against seconds, for our default and the best of others.

    python benchmarks/work_precision.py

Three flows of C = 4 classes and n = 16 features: over a short time (not stiff), over a long one, and with 10,000
samples in each class over a long one (stiff). Every method integrates the same reduced equations (M, P, W, b) from
the same start and saves the end alone. Error: the largest, over the four parts, of the root mean square error over
that of the part, against Dormand and Prince's method of order 8 at 3e-14 (scipy) or, where it is too slow, ours at
1e-13. Seconds are of the processor, all threads, second of two calls; diffrax is compiled before. What takes longer
than a minute or fails is left out.
"""

import time
import warnings
from collections.abc import Callable

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp
from threadpoolctl import threadpool_limits

from ntkcollapse import BlockKernel, Classes
from ntkcollapse.commands import number, table
from ntkcollapse.theory.extrapolation import integrate_reduced
from ntkcollapse.theory.reduced import ReducedFlow, ReducedState, speed

jax.config.update("jax_enable_x64", True)

C, n = 4, 16
TOLERANCES = (1e-3, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
PROBLEMS = {
    "short, m = 25, T = 0.05": (25, 0.05),
    "long, m = 25, T = 20": (25, 20.0),
    "stiff, m = 10,000, T = 20": (10_000, 20.0),
}
LONGEST = 60.0


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
            1.0,
        )

    def split(self, y):
        return [x.reshape(p.shape) for x, p in zip(np.split(y, self.cuts), self.parts, strict=True)]

    def speed(self, t, y):
        del t
        with np.errstate(all="ignore"):
            M, P, W, b = self.split(y)
            out = speed(M, P, W, b, *self.fixed, decay=(0.0, 0.0, 0.0), free=True, targets=np.eye(C), ones=np.ones(C))
        return np.concatenate([x.ravel() for x in out])

    def error(self, parts, exact) -> float:
        rms = lambda x: float(np.sqrt(np.mean(np.square(x))))  # noqa: E731
        return max(rms(np.asarray(a) - e) / rms(e) for a, e in zip(parts, exact, strict=True))


def ours(problem: Problem, rtol: float):
    out = integrate_reduced(problem.flow, problem.start, np.array([0.0, problem.until]), rtol=rtol)
    return [x[-1] for x in jax.tree.leaves(out.states)]


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


def diffraxs(solver: diffrax.AbstractSolver) -> Callable:
    @jax.jit
    def integrated(start, flow, until, rtol):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, flow: flow(t, y)), solver, 0.0, until, None, start, flow,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=rtol * 1e-3), max_steps=200_000, throw=False,
        )  # fmt: skip

    def called(problem: Problem, rtol: float):
        out = jax.block_until_ready(integrated(problem.start, problem.flow, problem.until, rtol))
        if not bool(diffrax.is_okay(out.result)):
            raise RuntimeError("too many steps")
        return [x[-1] for x in jax.tree.leaves(out.ys)]

    return called


METHODS: dict[str, Callable] = {
    "ours": ours,
    "diffrax Tsit5": diffraxs(diffrax.Tsit5()),
    "diffrax Dopri8": diffraxs(diffrax.Dopri8()),
    "diffrax Kvaerno5": diffraxs(diffrax.Kvaerno5()),
    "scipy DOP853": scipys("DOP853"),
    "scipy LSODA": scipys("LSODA"),
    "scipy Radau": scipys("Radau"),
}


def main() -> None:
    warnings.simplefilter("ignore")
    for name, (m, until) in PROBLEMS.items():
        problem = Problem(m, until)
        try:
            exact = scipys("DOP853")(problem, 3e-14)
        except TimeoutError:
            exact = [np.asarray(x) for x in ours(problem, 1e-13)]
        rows = []
        for method, call in METHODS.items():
            cells, late = [], False
            for rtol in TOLERANCES:
                if late:
                    cells.append("")
                    continue
                try:
                    call(problem, rtol)
                    began = time.process_time()
                    parts = call(problem, rtol)
                    spent = time.process_time() - began
                    cells.append(f"{number(spent)} s, {problem.error(parts, exact):.0e}")
                    late = spent > LONGEST / 4
                except (TimeoutError, RuntimeError) as failure:
                    cells.append("too long" if isinstance(failure, TimeoutError) else "failed")
                    late = True
            rows.append([method, *cells])
        print(table([name, *(f"{r:.0e}" for r in TOLERANCES)], rows) + "\n", flush=True)


if __name__ == "__main__":
    main()
