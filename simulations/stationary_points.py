"""Where weight decay comes to rest: is E proportional to WᵀW, as features of one degree in their weights would have it?

    python simulations/stationary_points.py              every network, two decays; a few minutes of processor time
    python simulations/stationary_points.py --networks ReLU "z cubed" --decays 0.3

For features homogeneous of degree p in weights that decay, p λ H = −Θ^h[WᵀR] at a stationary point, and λ W = −R Hᵀ.
If Θ^h were one kernel K for all features, WᵀW = p H K⁻¹ Hᵀ, and ‖E‖ over the sum of its parts' norms (p − 1)/(p + 1).
Small networks on digits are brought to rest by L-BFGS, and each assumption between is made in turn: distance from rest,
degree (kinks, biases that do not decay), Θ^h inverted where it is not invertible, a kernel of each feature by itself,
their mean, its three numbers. What was found is kept in simulations/results and not sought twice.
"""

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

import ntkcollapse as nc
from ntkcollapse.commands import Table, number
from ntkcollapse.data import load

HERE = Path(__file__).parent
# Fewer samples than pixels that vary: kernels are invertible, but for units that are off.
WIDTH, PER_CLASS = 16, 5
# Below this share of the largest eigenvalue a direction counts as one that Θ^h does not move.
RANK = 1e-10


class Trunk(NamedTuple):
    """Features of one input under weights, the shapes of these, the degree in those that decay, and which do not."""

    features: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    degree: int
    free: tuple[int, ...] = ()


_ONE, _TWO = ((WIDTH, 64),), ((WIDTH, 64), (WIDTH, WIDTH))
NETWORKS: dict[str, Trunk] = {
    "linear": Trunk(lambda A, x: A[0] @ x, _ONE, 1),
    "two linear layers": Trunk(lambda A, x: A[1] @ (A[0] @ x), _TWO, 2),
    "ReLU": Trunk(lambda A, x: jax.nn.relu(A[0] @ x), _ONE, 1),
    "ReLU, biases": Trunk(lambda A, x: jax.nn.relu(A[0] @ x + A[1]), (*_ONE, (WIDTH,)), 1, free=(1,)),
    "two ReLU layers": Trunk(lambda A, x: jax.nn.relu(A[1] @ jax.nn.relu(A[0] @ x)), _TWO, 2),
    "z|z|": Trunk(lambda A, x: (A[0] @ x) * jnp.abs(A[0] @ x), _ONE, 2),
    "z squared": Trunk(lambda A, x: (A[0] @ x) ** 2, _ONE, 2),
    "z squared, then linear": Trunk(lambda A, x: A[1] @ (A[0] @ x) ** 2, _TWO, 3),
    "z cubed": Trunk(lambda A, x: (A[0] @ x) ** 3, _ONE, 3),
}
STAGES = ("as it is", "all of Θ^h", "each feature", "their mean", "three numbers")


def stationary(trunk: Trunk, x: Any, Y: Any, decay: float, seed: int, iterations: int) -> tuple[Any, Any, float]:
    """Weights of the features and W where the gradient of ½‖R‖² + λ/2 ‖decayed weights‖² is 0, and what is left."""
    keys = jax.random.split(jax.random.key(seed), len(trunk.shapes) + 1)
    start = [jax.random.normal(k, s) / s[-1] ** 0.5 for k, s in zip(keys, (*trunk.shapes, (10, WIDTH)), strict=True)]
    flat, back = jax.flatten_util.ravel_pytree(start)

    def loss(p: Any) -> Any:
        *A, W = back(p)
        H = jax.vmap(lambda x: trunk.features(A, x), out_axes=1)(x)
        squares = sum(jnp.sum(a**2) for k, a in enumerate((*A, W)) if k not in trunk.free)
        return 0.5 * jnp.sum((W @ H - Y) ** 2) + 0.5 * decay * squares

    gradient = jax.jit(jax.value_and_grad(loss))
    options = {"maxiter": iterations, "maxfun": 2 * iterations, "ftol": 0.0, "gtol": 1e-9, "maxcor": 40}
    out = minimize(lambda p: tuple(map(np.asarray, gradient(p))), flat, jac=True, method="L-BFGS-B", options=options)
    *A, W = back(jnp.asarray(out.x))
    return A, W, float(np.linalg.norm(gradient(out.x)[1]) / (decay * np.linalg.norm(out.x)))


class Rest(NamedTuple):
    """What was found at rest.

    left: of the gradient, over the pull of the decay; loss: ½‖R‖²; degree: ⟨J A, H⟩/‖H‖² of the decayed weights A, and
        the cosine of the two; still: share of WᵀR in directions that Θ^h does not move, which its pseudo-inverse loses;
    forward: the best ratio of −WᵀR K/λ to H for each form of K, p where all is well, and their alignment; no inverse;
    stages: the best ratio of WᵀW to each form of H K⁻¹ Hᵀ, and their alignment;
    relative: ‖E‖ over the sum of its parts' norms, under the mean of the features' kernels and under three numbers.
    """

    left: float
    loss: float
    degree: tuple[float, float]
    still: float
    forward: dict[str, tuple[float, float]]
    stages: dict[str, tuple[float, float]]
    relative: tuple[float, float]


def at_rest(name: str, decay: float, seed: int, iterations: int = 5000) -> Rest:
    """Brings a network to rest, and makes one assumption after the other."""
    trunk = NETWORKS[name]
    data = load("digits", per_class=PER_CLASS).train
    x, classes = jnp.asarray(np.asarray(data.inputs, float).reshape(-1, 64)), data.classes
    A, W, left = stationary(trunk, x, classes.Y, decay, seed, iterations)
    H = np.asarray(jax.vmap(lambda x: trunk.features(A, x), out_axes=1)(x))
    n, N = H.shape
    W, R = np.asarray(W), np.asarray(W) @ H - np.asarray(classes.Y)
    jacobians = jax.vmap(lambda x: jax.jacrev(trunk.features)(A, x))(x)
    J = np.concatenate([np.asarray(g).reshape(N, n, -1) for g in jacobians], axis=2).transpose(1, 0, 2)
    pull = np.concatenate([np.ravel(a) * (k not in trunk.free) for k, a in enumerate(A)])
    moved = J @ pull
    theta = np.einsum("kip,jlp->kilj", J, J.transpose(1, 0, 2), optimize=True)
    values, vectors = np.linalg.eigh(theta.reshape(n * N, n * N))
    kept = values > RANK * values[-1]
    whole = vectors[:, kept] @ ((vectors[:, kept].T @ H.reshape(-1)) / values[kept])
    force = (W.T @ R).reshape(-1)
    mean = np.einsum("kikj->ij", theta) / n
    numbers = nc.DenseKernel(jnp.asarray(mean)).block_means(classes)
    three = np.asarray(nc.BlockKernel(*map(float, numbers)).as_matrix(classes))
    F = force.reshape(n, N)
    forward = {
        "all of Θ^h": -(theta.reshape(n * N, n * N) @ force).reshape(n, N) / decay,
        "each feature": -np.stack([theta[k, :, k] @ F[k] for k in range(n)]) / decay,
        "their mean": -F @ mean / decay,
        "three numbers": -F @ three / decay,
    }
    gram = W.T @ W
    # One threshold for all features: what is inverted of one that is off is noise.
    own = [np.linalg.eigh(theta[k, :, k]) for k in range(n)]
    inverses = [v[:, e > RANK * values[-1]] / e[e > RANK * values[-1]] @ v[:, e > RANK * values[-1]].T for e, v in own]
    forms = {
        # λ W = −R Hᵀ alone: what is not at rest shows here.
        "as it is": -(W.T @ R) @ H.T / decay,
        "all of Θ^h": whole.reshape(n, N) @ H.T,
        "each feature": np.stack([inverses[k] @ H[k] for k in range(n)]) @ H.T,
        "their mean": H @ np.linalg.pinv(mean, rcond=RANK) @ H.T,
        "three numbers": H @ np.linalg.solve(three, H.T),
    }
    sizes = {stage: float(np.linalg.norm(form)) for stage, form in forms.items()}
    size = float(np.linalg.norm(gram))
    return Rest(
        left=left,
        loss=float(0.5 * np.sum(R**2)),
        degree=(
            float(np.sum(moved * H) / np.sum(H**2)),
            float(np.sum(moved * H) / np.linalg.norm(moved) / np.linalg.norm(H)),
        ),
        still=float(np.linalg.norm(vectors[:, ~kept].T @ force) / np.linalg.norm(force)),
        forward={stage: _ratio(H, form) for stage, form in forward.items()},
        stages={
            stage: (float(np.sum(gram * form)) / sizes[stage] ** 2, float(np.sum(gram * form)) / (size * sizes[stage]))
            for stage, form in forms.items()
        },
        relative=tuple(
            float(np.linalg.norm(gram - forms[stage])) / (size + sizes[stage])
            for stage in ("their mean", "three numbers")
        ),  # pyright: ignore[reportArgumentType]
    )


def _ratio(H: np.ndarray, form: np.ndarray) -> tuple[float, float]:
    product = float(np.sum(form * H))
    return product / float(np.sum(H**2)), product / float(np.linalg.norm(form) * np.linalg.norm(H))


def line(name: str, decay: float, seed: int, rest: Rest) -> list[str]:
    """One row of the table."""
    p = NETWORKS[name].degree
    return [
        f"{name}, {decay:g}, {seed}",
        str(p),
        f"{rest.left:.0e}",
        number(rest.loss),
        f"{rest.degree[0]:.2f}, {rest.degree[1]:.2f}",
        f"{rest.still:.2f}",
        *(f"{ratio:.2f}, {alignment:.2f}" for ratio, alignment in (*rest.forward.values(), *rest.stages.values())),
        f"{rest.relative[0]:.2f}, {rest.relative[1]:.2f} ({(p - 1) / (p + 1):.2f})",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--decays", type=float, nargs="+", default=[0.03, 0.3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--iterations", type=int, default=5000)
    flags = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    head = [
        "network, decay, seed",
        "p",
        "gradient left",
        "loss",
        "degree, cosine",
        "not moved by Θ^h",
        *(f"-WᵀRK/λ: {s}" for s in STAGES[1:]),
        *STAGES,
    ]
    header = [*head, "|E| relative: mean, three numbers (predicted)"]
    lines = []
    for name, decay, seed in itertools.product(flags.networks, flags.decays, flags.seeds):
        file = HERE / "results" / "stationary_points" / f"{name}_{decay:g}_{seed}_{flags.iterations}.json"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(at_rest(name, decay, seed, flags.iterations)._asdict()))
        lines.append(line(name, decay, seed, Rest(**json.loads(file.read_text()))))
        print(lines[-1], flush=True)
        (HERE / "results" / "stationary_points.txt").write_text(Table(header, lines) + "\n")
    print(Table(header, lines))


if __name__ == "__main__":
    main()
