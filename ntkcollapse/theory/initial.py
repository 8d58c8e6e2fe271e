"""Named initial states of the flow, each with the property that its theory needs.

All have one signature, (classes, n, kappa, *, scale, key), and can be mapped over keys, kernels and scales:

    gaussian                 generic: nothing holds
    small                    all of size `scale`: ends near collapse, up to that size
    aligned                  E = 0, no scatter, W and M share singular directions: logistic laws
    saddle                   as aligned, the last mode with the wrong sign: ends at a saddle, NC2 fails
    zero-invariant           E = 0, no scatter, 1ᵀW = 0, not aligned: collapses
    zero-invariant-scatter   E = 0, scatter, 1ᵀW = 0: collapses exponentially
    zero-invariant-uncentred E = 0, scatter, 1ᵀW ≠ 0: NC1 and NC3 only fall like 1/√t
    non-collapse             E = e₀ v vᵀ/m with e₀ < 0: NC1 fails
    non-collapse-nc3         the same with e₀ > 0: NC3 fails
    collapsed                neural collapse, exactly

and by what they are for, where `scale` is the number that is asked for:

    with-invariant           ‖E‖ = scale, relative to ‖WᵀW‖ + ‖H K⁻¹ Hᵀ‖
    with-alignment           the cosine between W and the centred class means is scale
    perturbed-collapse       neural collapse, and a random perturbation of relative size scale

Arrays have JAX's default precision: float64 where jax_enable_x64 is set.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse._checks import (
    check_arrays,
    check_choice,
    check_key,
    check_positive,
    check_shape,
    check_whole,
    is_traced,
)
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.choices import INITIAL_CONDITIONS
from ntkcollapse.classes import Classes, as_classes
from ntkcollapse.data.memory import check_affordable
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.sample_kernel import SampleKernel
from ntkcollapse.theory.flow import as_kernel

Scale = float | Float[ArrayLike, ""]


def gaussian(classes: Classes, n: int, kappa: SampleKernel, *, scale: Scale = 1.0, key: Array) -> LastLayer:
    """H ~ scale N(0, 1), W ~ scale N(0, 1/n), b = 0; `kappa` is not read."""
    del kappa
    _check_room(classes, n, 1)
    s, keys = _scale(scale), jax.random.split(key, 2)
    return LastLayer(
        H=s * jax.random.normal(keys[0], (n, classes.num_samples)),
        W=s * jax.random.normal(keys[1], (classes.num_classes, n)) / n**0.5,
        b=jnp.zeros(classes.num_classes),
    )


def small(classes: Classes, n: int, kappa: SampleKernel, *, scale: Scale = 1e-3, key: Array) -> LastLayer:
    """H, W, b ~ scale N(0, 1): the invariant is scale² times a matrix of order 1. `kappa` is not read.

    For unconstrained features the end is within O(scale) of neural collapse, in WWᵀ within O(scale²).
    """
    del kappa
    _check_room(classes, n, 1)
    s, keys = _scale(scale), jax.random.split(key, 3)
    return LastLayer(
        H=s * jax.random.normal(keys[0], (n, classes.num_samples)),
        W=s * jax.random.normal(keys[1], (classes.num_classes, n)),
        b=s * jax.random.normal(keys[2], (classes.num_classes,)),
    )


def aligned(classes: Classes, n: int, kappa: SampleKernel, *, scale: Scale = 0.01, key: Array) -> LastLayer:
    """W M = U diag(α) Uᵀ with α uniform in [½, 3/2] scale and the target 1; E = 0, S = 0, ⟨h⟩ = 0, b = 1/C.

    Each α follows `exact.logistic_mode`. Balanced classes, n ≥ C − 1.
    """
    return _aligned(classes, n, kappa, scale, key, last_sign=1.0)


def saddle(classes: Classes, n: int, kappa: SampleKernel, *, scale: Scale = 0.1, key: Array) -> LastLayer:
    """A start as `aligned` with the last α negative: that mode dies out, and the loss ends at m/2.

    In floating point the saddle is left again after a time of about 37/√(m λ_class).
    """
    return _aligned(classes, n, kappa, scale, key, last_sign=-1.0)


def zero_invariant(classes: Classes, n: int, kappa: SampleKernel, *, scale: Scale = 0.3, key: Array) -> LastLayer:
    """E = 0 without scatter: W and M random in a common (C − 1)-dimensional space, 1ᵀW = 0, ⟨h⟩ = 0, b = d/N.

    Of the two kinds of such states it is the one that collapses (for balanced classes): the rotation between W and M
    has determinant +1. Class means have entries of about `scale`. Any sizes, any reducible kernel, n ≥ C − 1.
    """
    return _zero_invariant(classes, n, kappa, scale, key, rank=classes.num_classes - 1, scatter=False)


def zero_invariant_scatter(
    classes: Classes, n: int, kappa: SampleKernel, *, scale: Scale = 0.3, key: Array
) -> LastLayer:
    """E = 0 with scatter of the size of the class means, all in a (C − 1)-dimensional space; 1ᵀW = 0, b = d/N.

    The scatter decays exponentially. Any sizes, any kernel, n ≥ C − 1.
    """
    return _zero_invariant(classes, n, kappa, scale, key, rank=classes.num_classes - 1, scatter=True)


def zero_invariant_uncentred(
    classes: Classes, n: int, kappa: SampleKernel, *, scale: Scale = 0.3, key: Array
) -> LastLayer:
    """E = 0 with scatter in a C-dimensional space, so that 1ᵀW ≠ 0: tr S falls only like 1/(2t). n ≥ C."""
    return _zero_invariant(classes, n, kappa, scale, key, rank=classes.num_classes, scatter=True)


def non_collapse(classes: Classes, n: int, kappa: SampleKernel, *, scale: Scale = 0.1, key: Array) -> LastLayer:
    """`aligned` class modes, and one within-class direction v with invariant e₀ < 0: the loss vanishes, NC1 stays.

    (1ᵀW v)²/C = x and vᵀSv/λ_single = 2x with x = ¼ √(m/λ_class), a quarter of the squared singular values of the
    collapsed W: e₀ = −x. Balanced classes of at least 2 samples, n ≥ C. Its course: `exact.aligned_pair`.
    """
    return _non_collapse(classes, n, kappa, scale, key, weight=1.0, scatter=2.0)


def non_collapse_nc3(classes: Classes, n: int, kappa: SampleKernel, *, scale: Scale = 0.1, key: Array) -> LastLayer:
    """A start as `non_collapse` with both sizes exchanged, e₀ = +x > 0: NC1 is reached, self-duality is not."""
    return _non_collapse(classes, n, kappa, scale, key, weight=2.0, scatter=1.0)


def collapsed(classes: Classes, n: int, kappa: SampleKernel, *, scale: Scale = 1.0, key: Array) -> LastLayer:
    """Neural collapse: W = scale (m/λ_class)^¼ U Vᵀ, M = (λ_class/m)^¼ V Uᵀ / scale, S = 0, b = 1/C; R = 0.

    Scale 1 is the state with invariant 0; any other one is a fixed point too, with E ∝ WᵀW. n ≥ C − 1.
    """
    _check_room(classes, n, classes.num_classes - 1)
    s = _scale(scale)
    U, V = _output_basis(classes.num_classes), _frame(key, n, classes.num_classes - 1)
    quarter = (classes.per_class / _block(kappa).lambda_class(classes)) ** 0.25
    return _centred(classes, M=V @ U.T / (s * quarter), W=s * quarter * U @ V.T)


def with_invariant(classes: Classes, n: int, kappa: SampleKernel, *, scale: Scale = 0.1, key: Array) -> LastLayer:
    """The start `zero-invariant-scatter` with W → a W, a² = (1 + r)/(1 − r): ‖E‖ = |r| (‖WᵀW‖ + ‖H K⁻¹ Hᵀ‖).

    r = `scale`, above −1 and below 1: E is positive semi-definite where r > 0, negative where r < 0. Any sizes, any
    kernel, n ≥ C − 1.
    """
    r = _scale(scale, signed=True)
    state = _zero_invariant(classes, n, kappa, 0.3, key, rank=classes.num_classes - 1, scatter=True)
    return LastLayer(H=state.H, W=jnp.sqrt((1 + r) / (1 - r)) * state.W, b=state.b)


def with_alignment(classes: Classes, n: int, kappa: SampleKernel, *, scale: Scale = 0.5, key: Array) -> LastLayer:
    """cos ∠(Wᵀ, M − μ 1ᵀ) = `scale`, above −1 and below 1, so that NC3 begins at √(2 − 2 scale).

    Class means random with mean 0 and entries of about 0.3, W random but for that cosine and centred; no scatter,
    tr E = 0, b = 1/C. Any sizes, any kernel, n ≥ 2.
    """
    _check_room(classes, n, 2)
    cosine, (means, rest) = _scale(scale, signed=True), jax.random.split(key, 2)
    C = classes.num_classes
    M, other = (G - G.mean(1, keepdims=True) for G in (jax.random.normal(k, (n, C)) for k in (means, rest)))
    along = M / jnp.linalg.norm(M)
    other = other - jnp.sum(other * along) * along
    Wt = cosine * along + jnp.sqrt(1 - cosine**2) * other / jnp.linalg.norm(other)
    H = classes.expand(0.3 * M)
    # ‖W‖² = tr H K⁻¹ Hᵀ: what E is about is directions, not sizes.
    size = jnp.sqrt(jnp.sum(H * kappa.solve(H, classes)))
    return LastLayer(H=H, W=size * Wt.T, b=jnp.full(C, 1 / C))


def perturbed_collapse(classes: Classes, n: int, kappa: SampleKernel, *, scale: Scale = 0.1, key: Array) -> LastLayer:
    """`collapsed`, with normal numbers added to H and W of `scale` times the norm of each. n ≥ C − 1.

    What is left of the perturbation in the end says in which directions collapse attracts.
    """
    at, *noise = jax.random.split(key, 3)
    state, s = collapsed(classes, n, kappa, key=at), _scale(scale)

    def moved(value, key):
        step = jax.random.normal(key, value.shape)
        return value + s * jnp.linalg.norm(value) / jnp.linalg.norm(step) * step

    return LastLayer(H=moved(state.H, noise[0]), W=moved(state.W, noise[1]), b=state.b)


def initial_condition(
    name: str, classes: Classes | Sequence[int], n: int, kappa: Any, *, scale: Scale | None = None, key: Array
) -> LastLayer:
    """The initial state of this name; `scale` None is the name's own default.

    Classes may be a list of their sizes, and kappa what `Flow` takes.

    Raises:
        ValueError: an unknown name, a scale out of range, too few features for the name, or unequal classes or a
            general kernel where the name stands for a balanced construction.

    >>> state = initial_condition(
    ...     "collapsed", Classes.balanced(3, 4), 5, BlockKernel(3.0, 2.0, 0.6), key=jax.random.key(0)
    ... )
    >>> bool(abs(state.residual(Classes.balanced(3, 4))).max() < 1e-5)
    True
    """
    check_choice("name", name, INITIAL_CONDITIONS)
    check_key("key", key)
    kernel = as_kernel(kappa)
    if not isinstance(kernel, SampleKernel):
        raise TypeError(f"kappa: expected a kernel at one time, got a {type(kernel).__name__}; take its value `at(t)`.")
    options = {} if scale is None else {"scale": scale}
    return INITIAL_CONDITIONS[name](as_classes(classes), n, kernel, key=key, **options)


def _aligned(classes: Classes, n: int, kappa: SampleKernel, scale: Scale, key: Array, last_sign: float) -> LastLayer:
    C, m, λ_class = classes.num_classes, classes.per_class, _block(kappa).lambda_class(classes)
    _check_room(classes, n, C - 1)
    modes, outputs, features = jax.random.split(key, 3)
    α = _scale(scale) * jax.random.uniform(modes, (C - 1,), minval=0.5, maxval=1.5)
    U = _output_basis(C) @ _orthogonal(outputs, C - 1)
    V = _frame(features, n, C - 1)
    # Invariant 0 in each mode: w² = α √(m/λ_class), and M has the singular value α/w.
    w = jnp.sqrt(α * jnp.sqrt(m / λ_class))
    signs = jnp.ones(C - 1).at[-1].set(last_sign)
    return _centred(classes, M=(V * (signs * α / w)[None, :]) @ U.T, W=(U * w[None, :]) @ V.T)


def _zero_invariant(
    classes: Classes, n: int, kernel: SampleKernel, scale: Scale, key: Array, rank: int, scatter: bool
) -> LastLayer:
    C, N = classes.num_classes, classes.num_samples
    _check_room(classes, n, rank)
    space, means, spread, rotation = jax.random.split(key, 4)
    V = _frame(space, n, rank)
    # In coordinates of that space: class means with sample mean 0 in `rank` dimensions, and deviations from them.
    d = classes.weights
    U = _weighted_basis(classes)
    G = jax.random.normal(means, (rank, C - 1))
    if rank == C - 1:
        # The sign of det G decides, with the rotation below, whether the state without scatter collapses.
        G = G.at[:, 0].multiply(jnp.sign(jnp.linalg.det(G)))
    X = classes.expand(G @ U.T * jnp.sqrt(N / C / d)[None, :])
    if scatter:
        X = X + classes.deviations(jax.random.normal(spread, (rank, N)))
    X = _scale(scale) * X
    # WᵀW = H K⁻¹ Hᵀ has one solution up to a rotation of the outputs.
    factor = jnp.linalg.cholesky(X @ kernel.solve(X, classes).T)
    Q = _orthogonal(rotation, rank)
    outputs = _output_basis(C) if rank == C - 1 else jnp.eye(C)
    return LastLayer(H=V @ X, W=outputs @ Q @ factor.T @ V.T, b=d / N)


def _non_collapse(
    classes: Classes, n: int, kappa: SampleKernel, scale: Scale, key: Array, weight: float, scatter: float
) -> LastLayer:
    kappa = _block(kappa)
    C, m, λ_class = classes.num_classes, classes.per_class, kappa.lambda_class(classes)
    _check_room(classes, n, C)
    if m < 2:
        raise ValueError(f"classes: expected at least 2 samples a class, got {m}: there is no within-class direction.")
    modes, direction, samples = jax.random.split(key, 3)
    state = _aligned(classes, n, kappa, scale, modes, last_sign=1.0)
    # v: random, orthogonal to the class modes; g: random, within classes.
    v = jax.random.normal(direction, (n,))
    rows = jnp.linalg.svd(state.W, full_matrices=False)[2][: C - 1]
    v = v - rows.T @ (rows @ v)
    v = v / jnp.linalg.norm(v)
    g = classes.deviations(jax.random.normal(samples, (classes.num_samples,)))
    g = g / jnp.linalg.norm(g)
    x = jnp.sqrt(m / λ_class) / 4
    ω, s = jnp.sqrt(weight * x), jnp.sqrt(scatter * x * kappa.lambda_single)
    return LastLayer(
        H=state.H + s * v[:, None] * g[None, :], W=state.W + ω * jnp.full((C, 1), C**-0.5) * v[None, :], b=state.b
    )


def _centred(classes: Classes, *, M: Float[Array, "n C"], W: Float[Array, "C n"]) -> LastLayer:
    C = classes.num_classes
    return LastLayer(H=classes.expand(M), W=W, b=jnp.full(C, 1 / C))


def _output_basis(C: int) -> Float[Array, "C C-1"]:
    """Orthonormal columns orthogonal to 1 (Helmert contrasts)."""
    k = jnp.arange(1.0, C)[None, :]
    i = jnp.arange(float(C))[:, None]
    return jnp.where(i < k, 1.0, jnp.where(i == k, -k, 0.0)) / jnp.sqrt(k * (k + 1))


def _weighted_basis(classes: Classes) -> Float[Array, "C C-1"]:
    """Orthonormal columns orthogonal to √d, so that means G Uᵀ D^{-½} have Σ_c m_c M_c = 0; Helmert for equal sizes."""
    C = classes.num_classes
    root = jnp.sqrt(classes.weights / classes.num_samples)
    # The reflection that takes 1/√C to √(d/N) takes what is orthogonal to one to what is orthogonal to the other.
    normal = root - C**-0.5
    square = jnp.sum(normal**2)
    U = _output_basis(C)
    reflected = U - 2 * normal[:, None] * (normal @ U)[None, :] / jnp.where(square > 0, square, 1)
    return jnp.where(square > 1e-24, reflected, U)


def _orthogonal(key: Array, size: int) -> Float[Array, "size size"]:
    """Random rotation: orthogonal with determinant +1."""
    Q = jax.random.orthogonal(key, size)
    return Q.at[0].multiply(jnp.sign(jnp.linalg.det(Q)))


def _frame(key: Array, n: int, rank: int) -> Float[Array, "n rank"]:
    """Random orthonormal columns."""
    return jnp.linalg.qr(jax.random.normal(key, (n, rank)))[0]


def _scale(scale: Scale, *, signed: bool = False) -> Float[Array, ""]:
    """The scale as a number above 0, or, where `signed`, above −1 and below 1."""
    check_arrays(scale=scale)
    check_shape("scale", scale, (), "a number")
    if not signed:
        check_positive("scale", scale)
    elif not is_traced(scale) and not np.abs(np.asarray(scale)) < 1:
        raise ValueError(f"scale: expected a number above -1 and below 1 for this initial condition, got {scale}.")
    return jnp.asarray(scale, dtype=float)


def _block(kappa: SampleKernel) -> BlockKernel:
    if not isinstance(kappa, BlockKernel):
        raise ValueError(
            f"kappa: expected a BlockKernel for this initial condition, got {type(kappa).__name__}; its modes are "
            "those of the three-number form."
        )
    return kappa


def _check_room(classes: Classes, n: int, rank: int) -> None:
    check_whole("n", n)
    if n < rank:
        raise ValueError(f"n: expected at least {rank} features for this initial condition, got {n}.")
    rows = classes.num_samples + classes.num_classes
    check_affordable("classes, n", (rows, max(n, rank)), 8, "take fewer classes, samples or features")
