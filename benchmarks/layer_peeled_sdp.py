"""The layer-peeled curve by its authors' semidefinite program: needs numpy and cvxpy, and nothing of this package.

    python benchmarks/layer_peeled_sdp.py '{"ratios": [1], "classes": 10, "majority": 5, "energy_H": 5, "energy_W": 1}'

Prints JSON: loss and minority cosine at each ratio, seconds in all and in the solver alone. `models.py` calls it with
the interpreter that `--cvxpy` names.

    min over X ⪰ 0 of Σ_k w_k [log Σ_j exp X_{k, C+j} − X_{k, C+k}],   tr X_HH ≤ C energy_H,   tr X_WW ≤ C energy_W

X is the Gram matrix of (h_1 … h_C, w_1 … w_C): Fang et al. (2021).
"""

import json
import sys
import time

import cvxpy as cp  # pyright: ignore[reportMissingImports]
import numpy as np


def main() -> None:
    asked = json.loads(sys.argv[1])
    C, A = asked["classes"], asked["majority"]
    X, weights = cp.Variable((2 * C, 2 * C), PSD=True), cp.Parameter(C, nonneg=True)
    losses = cp.hstack([cp.log_sum_exp(X[k, C:]) - X[k, C + k] for k in range(C)])
    budgets = [cp.trace(X[:C, :C]) <= C * asked["energy_H"], cp.trace(X[C:, C:]) <= C * asked["energy_W"]]
    # The weights are a parameter: cvxpy compiles the problem once, for all ratios.
    problem = cp.Problem(cp.Minimize(weights @ losses), budgets)
    options = asked.get("options", {})
    found, solving = [], 0.0
    began = time.process_time()
    for ratio in asked["ratios"]:
        sizes = np.where(np.arange(C) < A, ratio, 1.0)
        weights.value = sizes / sizes.sum()
        problem.solve(solver=asked.get("solver", "CLARABEL"), **options)
        solving += problem.solver_stats.solve_time
        gram = X.value[C + A :, C + A :]
        norms = np.sqrt(np.diag(gram))
        cosines, B = gram / np.outer(norms, norms), C - A
        found.append((float(problem.value), float((cosines.sum() - B) / (B * (B - 1)))))
    spent = time.process_time() - began
    loss, cosine = zip(*found, strict=True)
    print(json.dumps({"loss": loss, "cosine": cosine, "seconds": spent, "solving": solving, "cvxpy": cp.__version__}))


if __name__ == "__main__":
    main()
