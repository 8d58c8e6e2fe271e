"""The lazy regime: the residual under an output kernel that does not change."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse._checks import check_arrays, check_finite, check_shape
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes


def frozen_residual(
    times: Float[ArrayLike, "*T"], R: Float[ArrayLike, "C N"], gamma: BlockKernel, classes: Classes
) -> Float[Array, "*T C N"]:
    r"""Course of the residual under a constant block-structured output kernel, the same for every output.

        R(t) = R e^{−Θt};   balanced, three numbers:
        R(t) = R_single e^{−λ_single t} + (R_class − R_global) e^{−λ_class t} + R_global e^{−λ_global t}

    with λ_single = γ_d − γ_c, λ_class = λ_single + m (γ_c − γ_n), λ_global = λ_class + N γ_n. Unequal classes and the
    general block kernel are exact too: deviations decay at the rate of their class, class means under
    exp(−D^½ Γ D^½ t). Holds where Θ_ks = 0 for outputs k ≠ s and Θ does not move: the lazy regime. Each part of the
    *loss* decays at twice the rate of its residual. Memory: T C N numbers.

    Args:
        times: flow times.
        R: residual at time 0.
        gamma: output kernel Θ_kk, averaged over k.
        classes: behind the columns of R.
    Returns:
        R(t), shape of `times` followed by (C, N).
    Raises:
        ValueError: R of another shape than (C, N), or numbers that are not real, masked or not finite.
    References:
        Seleznova et al. (2023), Section 4.1 and Table 1.
    """
    C, N = classes.num_classes, classes.num_samples
    check_arrays(times=times, R=R)
    check_shape("R", R, (C, N), "one column a sample of classes")
    check_finite("R", R)
    t, R = jnp.asarray(times, dtype=float), jnp.asarray(R, dtype=float)
    rates = classes.expand(jnp.broadcast_to(gamma.lambda_single, (C,)))
    deviations = classes.deviations(R)
    root = jnp.sqrt(classes.weights)
    values, vectors = jnp.linalg.eigh(root[:, None] * gamma.class_gram(classes.weights) * root[None, :])
    coordinates = (classes.means(R) * root[None, :]) @ vectors

    def at(t):
        means = (coordinates * jnp.exp(-t * values)[None, :]) @ vectors.T / root[None, :]
        return deviations * jnp.exp(-t * rates)[None, :] + classes.expand(means)

    return jax.vmap(at)(t.reshape(-1)).reshape(*t.shape, C, N)
