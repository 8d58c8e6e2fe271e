"""From the kernel of features to the kernel of outputs, through a linear layer."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse._checks import check_real, check_shape
from ntkcollapse._precision import Precision, in_precision
from ntkcollapse.ntk.engines._contract import EXACT


@in_precision
def output_ntk_from_features(
    feature_ntk: Float[ArrayLike, "A B n n"],
    features1: Float[ArrayLike, "A n"],
    features2: Float[ArrayLike, "B n"],
    weight: Float[ArrayLike, "C n"],
    *,
    use_bias: bool = True,
    precision: Precision | None = None,
) -> Float[Array, "A B C C"]:
    r"""Output kernel of f = W h + b from its feature kernel, exact.

    $$\Theta_{ks}(x, x') = \delta_{ks} (\langle h(x), h(x') \rangle + 1) + w_k^\top \Theta^h(x, x') w_s$$

    The first term is the kernel of the last layer's own parameters (1 for the bias), the second that of all others.

    Args:
        feature_ntk: Θ^h, all pairs of the n features: `empirical_ntk(features, ..., outputs="full")`.
        features1, features2: h, one row a sample.
        weight: W as in `LastLayer`, (C, n): the transpose of flax's kernel.
        use_bias: whether the layer has a bias that is trained.
        precision: as in `empirical_ntk`.
    Raises:
        ValueError: shapes that disagree, or numbers that are not real or masked.
    """
    check_real(feature_ntk=feature_ntk, features1=features1, features2=features2, weight=weight)
    theta, h1, h2, W = (jnp.asarray(a) for a in (feature_ntk, features1, features2, weight))
    A, B, n, _ = theta.shape
    check_shape("features1", h1, (A, n), "one row for each first sample of feature_ntk")
    check_shape("features2", h2, (B, n), "one row for each second sample of feature_ntk")
    check_shape("weight", W, (None, n), "(C, n): one row an output; transpose flax's kernel")
    own = jnp.matmul(h1, h2.T, precision=EXACT) + float(use_bias)
    eye = jnp.eye(W.shape[0], dtype=own.dtype)
    through = jnp.einsum("kn,abnm,sm->abks", W, theta, W, precision=EXACT)
    return own[:, :, None, None] * eye[None, None] + through
