"""Feature and output kernels, and the infinite-width limit."""

# Stubs of other packages are narrower than what they return.
# pyright: reportCallIssue=false

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse.ntk import empirical_ntk, infinite_width_kernel, output_ntk_from_features, predict_lazily, stax
from tests.ntk.zoo import normal


def test_outputs_from_features():
    params = {"trunk": normal(0, 5, 4), "W": normal(1, 4, 3), "b": normal(2, 3)}

    def features(p, x):
        return jnp.tanh(x @ p["trunk"])

    def outputs(p, x):
        return features(p, x) @ p["W"] + p["b"][None, :]

    x, y = normal(3, 3, 5), normal(4, 2, 5)
    h = [features(params, z) for z in (x, y)]
    theta_h = empirical_ntk(features, params, x, y)
    got = output_ntk_from_features(theta_h, h[0], h[1], params["W"].T)
    np.testing.assert_allclose(got, empirical_ntk(outputs, params, x, y), rtol=1e-12, atol=1e-12)
    without = output_ntk_from_features(theta_h, h[0], h[1], params["W"].T, use_bias=False)
    np.testing.assert_allclose(got - without, np.broadcast_to(np.eye(3), (3, 2, 3, 3)), atol=1e-12)
    with pytest.raises(ValueError, match="transpose flax"):
        inspect.unwrap(output_ntk_from_features)(theta_h, h[0], h[1], params["W"])


def test_infinite_width_is_reached_as_one_over_root_width():
    layers = stax()
    x = normal(0, 4, 3)
    distances = []
    for width in (64, 256, 1024):
        init, apply, kernel_fn = layers.serial(layers.Dense(width, b_std=0.1), layers.Erf(), layers.Dense(1))
        limit = infinite_width_kernel(kernel_fn, x)
        draws = []
        for key in jax.random.split(jax.random.key(0), 12):
            params = init(key, x.shape)[1]
            draws.append(np.square(empirical_ntk(apply, params, x, outputs="mean") - limit).mean())
        distances.append(np.sqrt(np.mean(draws)))
    slope = np.polyfit(np.log([64, 256, 1024]), np.log(distances), 1)[0]
    # Twelve draws a width leave about 10 % on each distance, hence 0.06 on the slope over a factor of 16.
    assert abs(slope + 0.5) < 0.15
    assert distances[-1] < 0.05 * np.abs(limit).max()


def test_lazy_prediction_is_the_closed_form():
    A = normal(0, 4, 4)
    kernel, targets, initial = A @ A.T + np.eye(4), normal(1, 4, 2), normal(2, 4, 2)
    times = np.asarray([0.0, 0.1, 1.0])
    values, vectors = np.linalg.eigh(kernel)
    want = [targets + vectors @ np.diag(np.exp(-values * t)) @ vectors.T @ (initial - targets) for t in times]
    got = predict_lazily(jnp.asarray(kernel), jnp.asarray(targets), jnp.asarray(initial), times)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("as_users_call")
def test_lazy_prediction_refuses_what_is_no_kernel():
    """An indefinite kernel once gave outputs of 1.0, where the flow had grown to 6.5e10."""
    x = np.linspace(-3, 3, 60)[:, None]
    kernel, targets = np.exp(-((x - x.T) ** 2)), np.sin(x)
    predict_lazily(kernel, targets, 0 * targets, [1.0])  # its smallest eigenvalues are rounding
    for bad, message in (
        (kernel - 0.3 * np.eye(60), "kernel: expected eigenvalues of zero or above, got -0.3"),
        (kernel * np.nan, "kernel: expected finite numbers, got nan"),
        (kernel + np.triu(kernel, 1), "kernel: expected a symmetric kernel"),
        (kernel + 0j, "kernel: expected real numbers, got dtype complex128"),
        (np.zeros((60, 60, 2, 2)), r"kernel: expected shape \(any, any\), \(N, N\), .*outputs=.mean."),
        (kernel[:, :50], r"kernel: expected shape \(60, 60\)"),
    ):
        with pytest.raises(ValueError, match=message):
            predict_lazily(bad, targets, 0 * targets, [100.0])
    with pytest.raises(ValueError, match="initial: expected finite numbers"):
        predict_lazily(kernel, targets, np.full_like(targets, np.inf), [1.0])
