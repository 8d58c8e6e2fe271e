"""Norms whose squares overflow or vanish, and their derivatives, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import _safe

A = jnp.array([[3.0, -1.0, 2.0], [0.5, 3.0, -3.0]])


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_norm_and_its_derivatives(scale):
    """∇‖A‖ = U = A/‖A‖ and ∇²‖A‖ = (1 − U Uᵀ)/‖A‖, also where three entries are the largest."""
    length = np.linalg.norm(A)
    U = A.reshape(-1) / length
    np.testing.assert_allclose(_safe.norm(scale * A), scale * length, rtol=1e-15)
    np.testing.assert_allclose(jax.grad(_safe.norm)(scale * A).reshape(-1), U, rtol=1e-14)
    hessian = jax.hessian(_safe.norm)(scale * A).reshape(6, 6)
    np.testing.assert_allclose(scale * hessian, (np.eye(6) - np.outer(U, U)) / length, atol=1e-14)


def test_derivatives_of_a_norm_ask_for_no_largest_entry():
    """Compiled once for the maximum and once more for the comparison, with other roundings, no entry would equal it."""
    for f in (_safe.norm, lambda A: _safe.unit(A).sum()):
        slope = jax.grad(f)
        for derivative in (slope, jax.grad(lambda A, slope=slope: jnp.sum(slope(A) ** 2))):
            assert "= eq " not in str(jax.make_jaxpr(derivative)(A))


def test_nothing_has_norm_and_derivative_zero():
    nothing = jnp.zeros((2, 3))
    assert float(_safe.norm(nothing)) == 0
    assert not jnp.any(jax.grad(_safe.norm)(nothing))
    assert not jnp.any(_safe.unit(nothing))
