"""The lazy regime: the residual under an output kernel that does not change."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse._checks import check_arrays, check_finite, check_shape
from ntkcollapse.classes import Classes
from ntkcollapse.sample_kernel import SampleKernel
from ntkcollapse.theory.reduced import weights_of


def frozen_residual(
    times: Float[ArrayLike, "*T"], R: Float[ArrayLike, "C N"], gamma: SampleKernel, classes: Classes
) -> Float[Array, "*T C N"]:
    r"""Course of the residual under a constant reducible output kernel, the same for every output.

        R(t) = R e^{−Θt};   balanced, three numbers:
        R(t) = R_single e^{−λ_single t} + (R_class − R_global) e^{−λ_class t} + R_global e^{−λ_global t}

    with λ_single = γ_d − γ_c, λ_class = λ_single + m (γ_c − γ_n), λ_global = λ_class + N γ_n. Unequal classes and the
    general block kernel are exact too: deviations decay at the rate of their class, class means under
    exp(−D^½ Γ D^½ t). So are kernels in groups, and `KrylovKernel`, whose rates are the eigenvalues of T on the span of
    U, class means among it, and λ on the rest. Holds where Θ_ks = 0 for outputs k ≠ s and Θ does not move: the lazy
    regime. Each part of the *loss* decays at twice the rate of its residual. Memory: T C N numbers.

    Args:
        times: flow times.
        R: residual at time 0.
        gamma: output kernel Θ_kk, averaged over k.
        classes: behind the columns of R.
    Returns:
        R(t), shape of `times` followed by (C, N).
    Raises:
        ValueError: R of another shape than (C, N), or numbers that are not real, masked or not finite.
        NotImplementedError: a kernel that is not reducible.
    References:
        Seleznova et al. (2023), Section 4.1 and Table 1.
    """
    C, N = classes.num_classes, classes.num_samples
    check_arrays(times=times, R=R)
    check_shape("R", R, (C, N), "one column a sample of classes")
    check_finite("R", R)
    t, R = jnp.asarray(times, dtype=float), jnp.asarray(R, dtype=float)
    means, deviations = classes.means(R), classes.deviations(R)
    V = jnp.asarray(gamma.directions(classes))
    lengths = jnp.sqrt(weights_of(classes.weights, gamma.num_directions))
    values, vectors = jnp.linalg.eigh(lengths[:, None] * gamma.direction_gram(classes.weights) * lengths[None, :])
    root = lengths[:C]
    coordinates = jnp.concatenate([means * root[None, :], deviations @ V], axis=1) @ vectors
    groups, rates = gamma.split(deviations, classes), gamma.group_rates(C)

    def at(t):
        along = (coordinates * jnp.exp(-t * values)[None, :]) @ vectors.T
        rest = jnp.einsum("gcn,g->cn", groups, jnp.exp(-t * rates))
        return rest + classes.expand(along[:, :C] / root[None, :]) + along[:, C:] @ V.T

    return jax.vmap(at)(t.reshape(-1)).reshape(*t.shape, C, N)
