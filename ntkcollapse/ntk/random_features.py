"""Random projections of gradients: a few numbers a sample whose inner products are the empirical NTK, with an error."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ntkcollapse._checks import check_choice, check_finite, check_key, check_whole
from ntkcollapse._platforms import behind
from ntkcollapse._precision import Precision, in_precision
from ntkcollapse.ntk._memory import budget, evened, fit
from ntkcollapse.ntk._problem import Problem, one_like, prepare
from ntkcollapse.ntk._samples import one_array
from ntkcollapse.ntk.engines import OUTPUTS, Outputs, contract
from ntkcollapse.ntk.engines.layerwise import sample_bytes
from ntkcollapse.ntk.products import _filled, _forth


class RandomFeatures(eqx.Module):
    r"""Features φ of samples, (N, K, d), with E ⟨φ_k(x), φ_s(x')⟩ = Θ_ks(x, x').

    Those of two sets of samples belong together where key, number and parameters were the same.
    """

    features: Float[Array, "N K d"]

    def kernel(self, other: "RandomFeatures | None" = None, *, outputs: Outputs = "mean") -> Float[Array, "A B ..."]:
        """The kernel they make, of the samples with themselves or with those of `other`; shapes as `empirical_ntk`.

        Raises:
            ValueError: an unknown name, or features of another number or of another number of outputs.
        """
        return self._estimate(other, outputs)[0]

    def standard_error(
        self, other: "RandomFeatures | None" = None, *, outputs: Outputs = "mean"
    ) -> Float[Array, "A B ..."]:
        r"""Standard error of each entry of `kernel`, from how its d terms scatter; d − 1 degrees of freedom.

        $$\mathrm{Var}\,\langle \phi_k(x), \phi_s(x') \rangle
          \le (\Theta_{kk}(x, x) \Theta_{ss}(x', x') + \Theta_{ks}(x, x')^2) / d$$

        Raises:
            ValueError: as `kernel`, or fewer than two features.
        """
        d = self.features.shape[2]
        if d < 2:
            raise ValueError(f"num_features: expected at least 2 for an error, got {d}.")
        mean, term = self._estimate(other, outputs)

        def add(j, squares):
            return squares + jnp.square(d * term(j) - mean)

        return jnp.sqrt(jax.lax.fori_loop(0, d, add, jnp.zeros_like(mean)) / (d * (d - 1)))

    @in_precision
    def _estimate(self, other, outputs):
        check_choice("outputs", outputs, OUTPUTS)
        g = self.features
        h = g if other is None else other.features
        if h.shape[1:] != g.shape[1:]:
            raise ValueError(f"other: expected (K, d) = {g.shape[1:]} as these features have, got {h.shape[1:]}.")
        share = g.shape[1] if outputs == "mean" else 1

        def one(v, j):
            return jax.lax.dynamic_slice_in_dim(v, j, 1, 2)

        def term(j):
            return contract(one(g, j), one(h, j), outputs) / share

        return contract(g, h, outputs) / share, term


@in_precision
def random_features(
    f: Callable,
    params: PyTree,
    x: Any,
    num_features: int,
    *,
    key: PRNGKeyArray,
    parameters: Any = None,
    in_axes: Any = 0,
    memory: int | float | None = None,
    precision: Precision | None = None,
) -> RandomFeatures:
    r"""Random projections of the gradients of f, whose inner products are unbiased for the empirical NTK.

    $$\phi_k(x)_j = \frac{1}{\sqrt d} \langle r_j, \nabla_\theta f_k(x) \rangle, \quad r_1, \dots, r_d \in \{-1, 1\}^P$$

    By the lemma of Johnson and Lindenstrauss distances of gradients are kept to a relative ε with d of order log(N)/ε².
    Each feature is the derivative of f along one direction (`jax.linearize`), for all samples and outputs: the cost is
    d forward passes over the samples, and no gradient is made. Memory grows with N·K·d.

    Args:
        f, params, x, parameters, in_axes, memory, precision: as in `empirical_ntk`.
        num_features: d.
        key: of the directions; feature j of a key is the same whatever d, `memory` and samples are.
    Raises:
        ValueError, TypeError: as `empirical_ntk`, or an f with a rule of differentiation that goes backwards only.
    References:
        Johnson, Lindenstrauss (1984); Achlioptas (2003), "Database-friendly random projections".
    """
    check_whole("num_features", num_features)
    check_key("key", key)
    f, samples = one_array(f, {"x": x}, in_axes)
    problem, x = prepare(f, params, samples, parameters), samples["x"]
    n, d = len(x), num_features
    each = 3 * problem.num_params * problem.dtype.itemsize
    together = evened(d, fit(budget(memory) // 2, each, d))
    chunk = evened(n, fit(budget(memory) // 2, together * sample_bytes(problem, one_like(x)), n))
    out = np.zeros((n, problem.num_outputs, d), problem.dtype)

    def sent():
        for first in range(0, d, together):
            # The last ones are filled up by more than were asked for: one shape is compiled.
            directions = _signs(problem, key, jnp.arange(first, first + together))
            for i in range(0, n, chunk):
                part = jnp.asarray(x[i : i + chunk])
                try:
                    moved = _forth(problem, _filled(part, chunk, zero=False), directions, None)
                except TypeError as error:
                    raise TypeError(
                        "f: expected a function that JAX differentiates forwards, got one with a rule of its own that "
                        "goes backwards only (jax.custom_vjp); use `empirical_ntk`."
                    ) from error
                yield first, i, moved[: d - first, : len(part)]

    for first, i, moved in behind(sent()):
        moved = np.moveaxis(np.asarray(moved), 0, -1)
        check_finite("gradients of f", moved)
        out[i : i + chunk, :, first : first + together] = moved
    return RandomFeatures(jnp.asarray(out / np.sqrt(d).astype(out.dtype)))


@eqx.filter_jit
def _signs(problem: Problem, key: PRNGKeyArray, numbers: Array) -> PyTree:
    """Directions of random signs with these numbers, one on each first axis."""
    leaves, treedef = jax.tree.flatten(problem.params)

    def one(number):
        keys = jax.random.split(jax.random.fold_in(key, number), len(leaves))
        parts = [jax.random.rademacher(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(treedef, parts)

    return jax.vmap(one)(numbers)
