"""Rates of contrasts against the dense kernel, its exponential, and the linearised flow of a small start."""

import numpy as np
import pytest
from scipy.linalg import expm

from ntkcollapse import BlockKernel, Classes
from ntkcollapse.theory import contrast_norms, lazy_contrasts, small_start_contrasts

CLASSES, KERNEL = Classes((2, 3, 5)), BlockKernel(3.0, 2.0, 0.5)
MEMBER = np.repeat(np.eye(3), CLASSES.sizes, axis=1)
DENSE = 1.0 * np.eye(10) + 1.5 * MEMBER.T @ MEMBER + 0.5


@pytest.mark.usefixtures("as_users_call")
def test_lazy_contrasts_are_those_of_the_dense_kernel():
    found = lazy_contrasts(KERNEL, CLASSES)
    # Seven more of the dense kernel are λ_single = 1.
    np.testing.assert_allclose(found.rates, np.linalg.eigvalsh(DENSE)[7:], rtol=1e-12)
    t, R = 0.07, np.random.default_rng(0).normal(size=(3, 3))
    later = R @ MEMBER @ expm(-t * DENSE) @ MEMBER.T / np.asarray(CLASSES.sizes)
    norms = np.asarray(contrast_norms(np.stack([R, later]), CLASSES, found.directions))
    np.testing.assert_allclose(norms[1], norms[0] * np.exp(-t * np.asarray(found.rates)), rtol=1e-11)
    np.testing.assert_allclose(np.sum(norms[0] ** 2), np.sum((R @ MEMBER) ** 2), rtol=1e-12)
    with pytest.raises(ValueError, match="directions"):
        contrast_norms(R, CLASSES, np.eye(2))


def test_small_starts_grow_as_the_linearised_flow_does():
    """The Jacobian of (H, W, b) ↦ (−WᵀRK, −RHᵀ, −R1) at H = W = 0, b = d/N, by differences of a quadratic map."""
    n, (C, N) = 1, (3, 10)
    Y, rest = MEMBER, np.asarray(CLASSES.sizes) / 10

    def field(z):
        H, W, b = z[: n * N].reshape(n, N), z[n * N : n * (N + C)].reshape(C, n), z[n * (N + C) :]
        R = W @ H + b[:, None] - Y
        return np.concatenate([(-W.T @ R @ DENSE).ravel(), (-R @ H.T).ravel(), -R.sum(1)])

    z = np.concatenate([np.zeros(n * (N + C)), rest])
    J = np.stack([(field(z + e) - field(z - e)) / 2 for e in np.eye(len(z))], axis=1)
    # A step of 1 is exact up to cubic terms, which only mix three of H, W, b: none along one axis.
    growing = np.sort(np.linalg.eigvals(J).real)[-2:]
    found = small_start_contrasts(KERNEL, CLASSES)
    np.testing.assert_allclose(found.rates[1:], growing, rtol=1e-10)
    assert float(found.rates[0]) < 1e-6
    equal = Classes.balanced(4, 5)
    rates = small_start_contrasts(KERNEL, equal).rates
    np.testing.assert_allclose(rates[1:], np.sqrt(5 * (1 + 5 * 1.5)), rtol=1e-12)
