"""Functions that are easily got wrong without a word: what the kernel must be, and what must be refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import ntk

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 6))


@pytest.fixture(autouse=True)
def as_users_write():
    """Functions of all kinds come with promotion of all kinds."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def normal(*shape, scale=1.0):
    return jnp.asarray(scale * RNG.normal(size=shape))


def dense_ntk(f, params, x) -> np.ndarray:
    """(N, N, K, K) from `jax.jacrev`, in all leaves of real numbers."""
    jacobians = [np.asarray(j) for j in jax.tree.leaves(jax.jacrev(f)(params, jnp.asarray(x)))]
    flat = np.concatenate([j.reshape(*j.shape[:2], -1) for j in jacobians], axis=2)
    return np.einsum("ikp,jsp->ijks", flat, flat)


FILTER = {"w": normal(1, 4), "v": normal(6, 2)}


def spectral(params, x):
    """A filter in Fourier space: real parameters that meet the data as complex numbers."""
    return jnp.fft.irfft(jnp.fft.rfft(x) * params["w"], n=6) @ params["v"]


def spectral_of_a_kernel(params, x):
    """Convolution by the transform of a parameter."""
    return jnp.fft.irfft(jnp.fft.rfft(x) * jnp.fft.rfft(params["v"][:, 0]), n=6)


@pytest.mark.parametrize("f", [spectral, spectral_of_a_kernel])
@pytest.mark.parametrize("engine", ["layerwise", "jacobian"])
def test_real_parameters_of_a_complex_layer(f, engine):
    expected = dense_ntk(f, FILTER, X)
    np.testing.assert_allclose(ntk.empirical_ntk(f, FILTER, X, engine=engine), expected, atol=1e-12)
    found = ntk.block_statistics(f, FILTER, X, np.array([0, 0, 1, 1]), engine=engine)
    mean = np.einsum("ijkk->ij", expected) / expected.shape[-1]
    np.testing.assert_allclose(found.kernel.between, mean[:2, 2:].mean(), atol=1e-12)


def test_complex_parameters_are_refused():
    params = {"c": normal(6, 3) + 1j * normal(6, 3)}
    with pytest.raises(ValueError, match=r"params: expected real numbers .* got complex128 at \['c'\]"):
        ntk.empirical_ntk(lambda p, x: jnp.abs(x.astype(complex) @ p["c"]) ** 2, params, X)


W = {"w": normal(6, 3), "z": normal(4, 1)}


def normalised(p, x):
    h = jnp.log(x) @ p["w"]
    return (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5)


def running(p, x):
    def step(h, row):
        h = jnp.tanh(h + row @ p["w"])
        return h, h

    return jax.lax.scan(step, jnp.zeros(3), x)[1]


COUPLED = {
    "out of the range of a logarithm": (normalised, np.abs(X)),
    "one sample after the other": (running, X),
    "cumulative": (lambda p, x: jnp.cumsum(x, 0) @ p["w"], X),
    "divided by their number": (lambda p, x: x @ p["w"] / x.shape[0], X),
    "one mask of dropout for a batch": (
        lambda p, x: (x * jax.random.bernoulli(jax.random.key(0), 0.5, x.shape).astype(x.dtype)) @ p["w"],
        X,
    ),
    "a number of its own for each place": (lambda p, x: (x * p["z"][: len(x)]) @ p["w"], X),
    "from three samples on": (lambda p, x: (x - (x.mean(0) if len(x) > 2 else 0.0)) @ p["w"], X),
    "a last sample that is constant": (
        lambda p, x: (x - x.mean(0)) @ p["w"],
        np.concatenate([X[:3], np.full((1, 6), 1 / 3)]),
    ),
    "small beside a large output": (lambda p, x: 1.0 + 1e-6 * (x - x.mean(0)) @ p["w"], X),
    "tokens of which the first and the last are one": (
        lambda p, x: (
            jnp.take(p["w"], x[:, 0], axis=0, mode="clip") - jnp.take(p["w"], x[:, 0], axis=0, mode="clip").mean(0)
        ),
        np.array([[1], [2], [3], [1]]),
    ),
    "behind a last layer of zeros": (lambda p, x: ((x - x.mean(0)) @ p["w"]) @ p["head"], X),
}


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("name", COUPLED)
def test_samples_that_depend_on_their_batch_are_refused(name):
    f, x = COUPLED[name]
    with pytest.raises(ValueError, match="f: the outputs of one sample change by"):
        ntk.empirical_ntk(f, W | {"head": jnp.zeros((3, 2))}, x)


@pytest.mark.parametrize("x", [X[:1], X[:2], np.abs(X), np.ones((3, 6)), np.zeros((2, 6))])
def test_samples_that_do_not_are_taken(x):
    def f(p, x):
        return jnp.log(1.0 + jnp.square(x)) @ p["w"]

    np.testing.assert_allclose(ntk.empirical_ntk(f, W, x), dense_ntk(f, W, x), atol=1e-12)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int32])
@pytest.mark.parametrize("mode", ["clip", "fill"])
def test_tables_longer_than_their_numbers_can_count(kind, mode):
    tokens, params = np.array([[1, 2, 3], [3, 3, 0], [100, 2, 4]], kind), {"table": normal(259, 4)}

    def f(p, tokens):
        return jnp.tanh(jnp.take(p["table"], tokens, axis=0, mode=mode).sum(1))

    theta = ntk.empirical_ntk(f, params, tokens)
    np.testing.assert_allclose(theta, dense_ntk(f, params, tokens.astype(np.int32)), atol=1e-12)


def half(p, x):
    return x.astype(p["w"].dtype) @ p["w"]


@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types")
@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("engine", ["layerwise", "jacobian"])
def test_half_precision_is_summed_in_single(kind, engine):
    x = np.round(4 * (1 + 0.01 * RNG.normal(size=(64, 4)))) / 4 + np.tile([1.0, 0, 0, 0], (64, 1))
    params, labels = {"w": jnp.ones((4, 3), kind)}, np.repeat([0, 1], 32)
    # Gradients are the inputs, which are exact in half precision: so is their kernel in single.
    expected = x @ x.T
    found = ntk.block_statistics(half, params, x, labels, engine=engine, output_pairs=True)
    assert found.class_pairs.dtype == np.float64
    np.testing.assert_allclose(found.class_pairs[0, 1], expected[:32, 32:].mean(), rtol=1e-6)
    np.testing.assert_allclose(found.class_diagonal, np.diag(expected).reshape(2, 32).mean(1), rtol=1e-6)
    theta = ntk.empirical_ntk(half, params, x, outputs="mean", engine=engine)
    np.testing.assert_allclose(theta, expected, rtol=1e-6)


def test_outputs_that_cancel_are_no_sign_of_coupling():
    """Every unit twice, with opposite sign: what is left of the outputs is rounding, another one for each batch."""
    U, V = normal(6, 40), normal(40, 3)
    params = {"U": jnp.concatenate([U, U], axis=1), "V": jnp.concatenate([V, -V])}

    def f(p, x):
        return jnp.tanh(x @ p["U"]) @ p["V"]

    np.testing.assert_allclose(ntk.empirical_ntk(f, params, X), dense_ntk(f, params, X), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("of", "data"), [(np.float32, np.float64), (np.float64, np.float32)])
def test_products_with_outputs_of_another_precision(of, data):
    x, params = X.astype(data), {"w": normal(6, 3).astype(of)}

    def f(p, x):
        return jnp.tanh(x.astype(data) @ p["w"].astype(data))

    v = RNG.normal(size=(4, 3))
    expected = np.einsum("ijks,js->ik", dense_ntk(f, {"w": params["w"].astype(float)}, x.astype(float)), v)
    np.testing.assert_allclose(ntk.NTKOperator(f, params, x)(v), expected, rtol=1e-4)


def test_parameters_that_f_does_not_reach_have_a_kernel_of_zeros():
    operator = ntk.NTKOperator(lambda p, x: x @ p["w"], W, X, parameters="z")
    assert not np.asarray(operator(np.ones((4, 3)))).any()


def test_parameters_of_every_kind():
    params = {"w": normal(6, 3), "depth": 2, "key": jax.random.key(0), "mask": jnp.array([0.0, -jnp.inf, 0.0])}

    def f(p, x):
        h = x
        for _ in range(p["depth"]):
            h = jnp.tanh(h)
        return jax.nn.softmax(h @ p["w"] + jax.lax.stop_gradient(p["mask"]))

    theta = ntk.empirical_ntk(f, params, X, parameters="w")
    expected = dense_ntk(lambda w, x: f(params | {"w": w}, x), params["w"], X)
    np.testing.assert_allclose(theta, expected, atol=1e-12)
    with pytest.raises(TypeError, match=r"x1\[0\]\[0\]: expected an array, got float; np.asarray makes one"):
        ntk.empirical_ntk(f, params, X.tolist(), parameters="w")
