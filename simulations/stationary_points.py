"""Where weight decay comes to rest: is E proportional to WᵀW, as features of one degree in their weights would have it?

    python simulations/stationary_points.py

For features homogeneous of degree p in weights that decay, p λ H = −Θ^h[WᵀR] at a stationary point, and λ W = −R Hᵀ.
If Θ^h were one kernel K for all features, WᵀW = p H K⁻¹ Hᵀ, and ‖E‖ over the sum of its parts' norms (p − 1)/(p + 1).
Small networks of one degree on digits are brought to a stationary point by L-BFGS, and each assumption between is
tested. A table in simulations/results; a minute of processor time.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

import ntkcollapse as nc
from ntkcollapse.commands import number, table
from ntkcollapse.data import load

HERE = Path(__file__).parent
# Fewer samples than pixels that vary: kernels are invertible, but for units that are off.
WIDTH, PER_CLASS = 16, 5
# Name → features of one input under weights, shapes of these, and the degree in them.
NETWORKS: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...], int]] = {
    "linear": (lambda A, x: A[0] @ x, ((WIDTH, 64),), 1),
    "two linear layers": (lambda A, x: A[1] @ (A[0] @ x), ((WIDTH, 64), (WIDTH, WIDTH)), 2),
    "ReLU": (lambda A, x: jax.nn.relu(A[0] @ x), ((WIDTH, 64),), 1),
    "z|z|": (lambda A, x: (A[0] @ x) * jnp.abs(A[0] @ x), ((WIDTH, 64),), 2),
    "z squared": (lambda A, x: (A[0] @ x) ** 2, ((WIDTH, 64),), 2),
    "z cubed": (lambda A, x: (A[0] @ x) ** 3, ((WIDTH, 64),), 3),
}


def stationary(features: Any, shapes: Any, x: Any, Y: Any, decay: float, seed: int) -> tuple[Any, Any, float]:
    """Weights of the features and W where the gradient of ½‖R‖² + λ/2 ‖weights‖² is 0, and what is left of it."""
    keys = jax.random.split(jax.random.key(seed), len(shapes) + 1)
    start = [jax.random.normal(k, s) / s[-1] ** 0.5 for k, s in zip(keys, (*shapes, (10, WIDTH)), strict=True)]
    flat, back = jax.flatten_util.ravel_pytree(start)

    def loss(p: Any) -> Any:
        *A, W = back(p)
        H = jax.vmap(lambda x: features(A, x), out_axes=1)(x)
        return 0.5 * jnp.sum((W @ H - Y) ** 2) + 0.5 * decay * jnp.sum(p**2)

    gradient = jax.jit(jax.value_and_grad(loss))
    options = {"maxiter": 20000, "maxfun": 40000, "ftol": 0.0, "gtol": 1e-9, "maxcor": 40}
    out = minimize(lambda p: tuple(map(np.asarray, gradient(p))), flat, jac=True, method="L-BFGS-B", options=options)
    *A, W = back(jnp.asarray(out.x))
    return A, W, float(np.linalg.norm(gradient(out.x)[1]) / (decay * np.linalg.norm(out.x)))


def compared(name: str, decay: float, seed: int) -> list[str]:
    """One line: what is left of the gradient; ratio and alignment under all of Θ^h, its mean, and its blocks."""
    features, shapes, p = NETWORKS[name]
    data = load("digits", per_class=PER_CLASS).train
    x, classes = jnp.asarray(np.asarray(data.inputs, float).reshape(-1, 64)), data.classes
    A, W, left = stationary(features, shapes, x, classes.Y, decay, seed)
    H = jax.vmap(lambda x: features(A, x), out_axes=1)(x)
    J = jax.vmap(lambda x: jnp.concatenate([g.reshape(WIDTH, -1) for g in jax.jacrev(features)(A, x)], axis=1))(x)
    theta = np.asarray(jnp.einsum("ikp,jlp->kilj", J, J))
    n, N = H.shape
    gram = np.asarray(W.T @ W)
    whole = np.asarray(H).reshape(-1) @ np.linalg.pinv(theta.reshape(n * N, n * N), rcond=1e-10)
    # (WᵀW)_kj = p Σ_i [Θ^h⁻¹ H]_ki H_ji, without any assumption on Θ^h.
    exact = whole.reshape(n, N) @ np.asarray(H).T
    mean = np.einsum("kikj->ij", theta) / n
    averaged = np.asarray(H) @ np.linalg.pinv(mean, rcond=1e-10) @ np.asarray(H).T
    means = nc.DenseKernel(jnp.asarray(mean)).block_means(classes)
    blocks = np.asarray(nc.BlockKernel(*map(float, means)).as_matrix(classes))
    blocked = np.asarray(H) @ np.linalg.solve(blocks, np.asarray(H).T)
    cells = [f"{name}, {decay:g}", str(p), f"{left:.0e}", number(float(0.5 * np.sum((W @ H - classes.Y) ** 2)))]
    for other in (exact, averaged, blocked):
        cells.append(f"{np.sum(gram * other) / np.sum(other**2):.2f}, {np.sum(gram * other) / _norms(gram, other):.2f}")
    E = gram - averaged
    cells.append(
        f"{np.linalg.norm(E) / (np.linalg.norm(gram) + np.linalg.norm(averaged)):.2f} ({(p - 1) / (p + 1):.2f})"
    )
    return cells


def _norms(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a) * np.linalg.norm(b))


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    header = ["network, decay", "p", "gradient left", "loss", "Θ^h: ratio, alignment", "its mean", "three numbers"]
    lines = []
    for name in NETWORKS:
        for decay in (0.03, 0.3):
            lines.append(compared(name, decay, 0))
            print(lines[-1], flush=True)
    text = table([*header, "|E| relative, mean (predicted)"], lines)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "stationary_points.txt").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
