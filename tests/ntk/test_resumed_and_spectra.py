"""Statistics and spectra where they easily go wrong: units, unequal classes, copies of an eigenvalue, resuming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import BlockKernel, Classes
from ntkcollapse.ntk import (
    NTKOperator,
    _fastest,
    _partial,
    block_statistics,
    empirical_ntk,
    label_alignment,
    spectral_density,
    spectrum,
    top_eigenvalues,
    within_class_eigenvalues,
)
from ntkcollapse.ntk.engines import Layerwise
from ntkcollapse.ntk.statistics import BlockStatistics, OutputBlocks
from tests.ntk.zoo import case, normal


def linear(p, x):
    return x @ p["w"]


# ---- classes of unequal size

UNEQUAL = np.concatenate([10 + normal(0, 10, 1) / 10, 0.03 + normal(1, 2, 1) / 100])
LABELS = np.repeat([0, 1], [10, 2])


def test_unequal_classes_have_an_alignment_and_a_residual_without_three_positive_rates():
    theta, Y = UNEQUAL @ UNEQUAL.T, np.eye(2)[LABELS]
    want = (theta * (Y @ Y.T)).sum() / np.linalg.norm(theta) / np.linalg.norm(Y @ Y.T)
    arguments = (linear, {"w": np.ones((1, 1))}, UNEQUAL, LABELS)
    np.testing.assert_allclose(label_alignment(*arguments).alignment, want, rtol=1e-12)
    same, off = LABELS[:, None] == LABELS, ~np.eye(12, dtype=bool)
    diagonal, within, between = (theta[mask].mean() for mask in (~off, same & off, ~same))
    assert diagonal < within
    B = np.where(off, np.where(same, within, between), diagonal)
    got = block_statistics(*arguments, residual="exact")
    np.testing.assert_allclose(got.residual, np.linalg.norm(theta - B) / np.linalg.norm(theta), rtol=1e-10)
    options = {"residual": "estimate", "probes": 40, "key": jax.random.key(0)}
    estimate = block_statistics(*arguments, **options)  # pyright: ignore
    assert abs(estimate.residual - got.residual) < 4 * estimate.residual_standard_error
    with pytest.raises(ValueError, match=r"λ_single .* classes of 2 to 10 samples.*`class_kernel`"):
        _ = got.kernel
    np.testing.assert_allclose(got.class_kernel.diagonal, [np.diag(theta)[LABELS == c].mean() for c in (0, 1)])


def test_equal_samples_have_no_three_rates():
    x = np.repeat([[1.0], [2.0]], 3, axis=0)
    got = block_statistics(linear, {"w": np.ones((1, 1))}, x, np.repeat([0, 1], 3))
    with pytest.raises(ValueError, match=r"λ_single .* above zero, got 0: samples of one class have the same"):
        _ = got.kernel


# ---- components off the output's own

ZERO = np.zeros((2, 2))


def off_output(diagonal, within, between):
    classes = Classes(sizes=(2, 3))
    blocks = OutputBlocks(*(jnp.asarray(v) for v in (diagonal, within, between)))
    return BlockStatistics(jnp.ones((2, 2)), jnp.ones((2, 2, 2)), blocks, None, classes).off_output


@pytest.mark.parametrize("unit", [1.0, 1e-170])
def test_small_components_off_the_output_keep_their_digits(unit):
    small = np.asarray([[0, 1e-10], [1e-10, 0]])
    # 5 diagonal entries of an output, 20 others; two outputs, two pairs.
    got = off_output(unit * np.eye(2), unit * small, ZERO)
    np.testing.assert_allclose(got, np.sqrt(8 * 2 * 1e-20 / (5 * 2)), rtol=1e-12)


def test_a_kernel_of_zeros_has_nothing_off_the_output():
    assert off_output(ZERO, ZERO, ZERO) == 0


# ---- spectra


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-9), (np.float32, 1e-4)])
@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_within_class_eigenvalues_in_any_units(unit, dtype, rtol):
    classes = Classes(sizes=(2, 5, 3))
    A = normal(0, 10, 12)
    Z = np.eye(3)[np.asarray(classes.labels)]
    Q = np.eye(10) - Z @ np.diag(1 / Z.sum(0)) @ Z.T
    want = unit * np.linalg.eigvalsh(Q @ (A @ A.T) @ Q)[3:]
    got = within_class_eigenvalues(jnp.asarray(unit * A @ A.T, dtype), classes)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, want, rtol=rtol)


def test_classes_of_one_sample_have_nothing_within():
    kernel = BlockKernel(diagonal=3.0, within=2.0, between=0.5)
    classes = Classes(sizes=(1, 1))
    assert within_class_eigenvalues(kernel.as_matrix(classes), classes).shape == (0,)


@pytest.mark.parametrize("name", ["num_matvecs", "num_probes"])
def test_a_density_of_nothing_is_refused(name):
    c = case("plain")
    numbers = {"num_matvecs": 2, "num_probes": 2} | {name: 0}
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        spectral_density(NTKOperator(c.f, c.params, c.x), key=jax.random.key(0), **numbers)


@pytest.mark.parametrize("num", [1, 5, 12, 30])
def test_all_copies_of_an_eigenvalue_are_found(num):
    # A linear layer: Θ = x xᵀ ⊗ I, every eigenvalue once for each of its ten outputs.
    x = normal(0, 20, 8)
    operator = NTKOperator(linear, {"w": np.ones((8, 10))}, x)
    want = np.repeat(np.linalg.eigvalsh(x @ x.T)[::-1], 10)[:num]
    values, vectors = top_eigenvalues(operator, num, key=jax.random.key(0))
    np.testing.assert_allclose(values, want, rtol=1e-9)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(num), atol=1e-12)
    matrix = np.kron(x @ x.T, np.eye(10))
    np.testing.assert_allclose(matrix @ vectors, vectors * values, atol=1e-6 * want[0])


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_looking_for_copies_costs_less_than_the_eigenvalues(power, monkeypatch):
    x = np.linalg.qr(normal(0, 120, 120))[0] * np.arange(1.0, 121) ** (-power / 2)
    products, first = [], []
    call, lanczos = NTKOperator.__call__, spectrum.eigsh
    monkeypatch.setattr(NTKOperator, "__call__", lambda self, v: products.append(None) or call(self, v))

    def counting(*given, **options):
        result = lanczos(*given, **options)
        first.append(len(products))
        return result

    monkeypatch.setattr(spectrum, "eigsh", counting)
    operator = NTKOperator(linear, {"w": np.ones((120, 1))}, x)
    values, _ = top_eigenvalues(operator, 10, key=jax.random.key(0))
    np.testing.assert_allclose(values, np.arange(1.0, 11) ** -power, rtol=1e-9)
    assert 0 < len(products) - first[0] <= first[0]


# ---- resuming


def with_array(number):
    stats = jnp.full(4, number)
    return lambda p, x: jnp.tanh(x @ p["w"] - stats[None, :]) @ p["v"]


def with_array_of_a_called_function(number):
    stats = jnp.full(4, number)
    inner = jax.jit(lambda h: jnp.tanh(h - stats[None, :]))
    shift = jnp.full(4, number)
    branches = [lambda h: h, lambda h: h - shift[None, :]]
    return lambda p, x: inner(jax.lax.switch(jnp.asarray(1), branches, x @ p["w"])) @ p["v"]


def with_rule_backwards(number):
    @jax.custom_vjp
    def product(w, x):
        return x @ w

    product.defvjp(lambda w, x: (x @ w, (w, x)), lambda r, ct: ((1 + number) * r[1].T @ ct, ct @ r[0].T))
    return lambda p, x: jnp.tanh(product(p["w"], x)) @ p["v"]


def with_rule_forwards(number):
    @jax.custom_jvp
    def bend(h):
        return jnp.tanh(h)

    bend.defjvps(lambda t, out, h: (1 + number) * t * (1 - out**2))
    return lambda p, x: bend(x @ p["w"]) @ p["v"]


@pytest.mark.parametrize("make", [with_array, with_array_of_a_called_function, with_rule_backwards, with_rule_forwards])
def test_only_the_same_function_is_resumed(make, tmp_path, monkeypatch):
    monkeypatch.setattr(_partial, "_SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(_partial, "_SHARE", np.inf)
    params, x = {"w": normal(0, 3, 4), "v": normal(1, 4, 2)}, normal(2, 12, 3)
    batches = []

    class Stopping(Layerwise):
        after = 3

        def add(self, problem, sums, batch, first_output):
            batches.append(None)
            if len(batches) == self.after:
                raise KeyboardInterrupt
            return super().add(problem, sums, batch, first_output)

    def run(f, checkpoint=tmp_path):
        return block_statistics(
            f, params, x, np.repeat([0, 1], 6), engine=Stopping(), memory=2000.0, checkpoint=checkpoint
        )

    with pytest.raises(KeyboardInterrupt):
        run(make(0.0))
    with pytest.raises(ValueError, match="partial results of another computation"):
        run(make(1.0))
    Stopping.after = -1
    whole = run(make(0.0), None)
    batches.clear()
    np.testing.assert_array_equal(run(make(0.0)).output_pairs, whole.output_pairs)
    resumed = len(batches)
    run(make(0.0))
    assert resumed == len(batches) - resumed - 2


def test_arrays_are_found_in_functions_that_a_trace_calls():
    # JAX moves most of them to the top by itself.
    h, number = jnp.ones(4), np.asarray([1.0, 2.0, 3.0, 4.0])
    called = jax.make_jaxpr(lambda h: h - number)(h)
    trace = jax.make_jaxpr(jax.jit(lambda h: 2 * h))(h)
    (call,) = trace.jaxpr.eqns
    call = call.replace(params=call.params | {"jaxpr": (called,)})
    trace = trace.replace(jaxpr=trace.jaxpr.replace(eqns=[call]))
    assert any(np.array_equal(array, number) for array in _partial._arrays_in(trace))


# ---- the fastest engine, and gradients


def test_a_little_more_free_memory_is_no_other_choice(monkeypatch):
    c, available = case("plain"), []
    works = _fastest.engine_works
    monkeypatch.setattr(_fastest, "engine_works", lambda *given: available.append(given[-1]) or works(*given))
    for memory in (300e6, 300e6 + 4096, 290e6):
        empirical_ntk(c.f, c.params, c.x, outputs="mean", engine="auto", memory=memory)
    assert available == [2**28] * 3


@pytest.mark.parametrize("engine", ["layerwise", "jacobian", "ntvp"])
def test_gradients_of_the_kernel_are_those_of_the_dense_one(engine):
    # Σ Θ_ks(x_i, x_j) c_ijks for any c, differentiated in the parameters, with and without jit.
    params = {"w": jnp.asarray(normal(0, 3, 4)), "v": jnp.asarray(normal(1, 4, 2))}
    x, weights = normal(2, 5, 3), normal(3, 5, 5, 2, 2)

    def f(p, x):
        return jnp.tanh(x @ p["w"]) @ p["v"]

    def dense(p):
        h = jnp.tanh(x @ p["w"])
        slope = jnp.einsum("ih,hk->ikh", 1 - h**2, p["v"])
        theta = jnp.einsum("ih,jh,ks->ijks", h, h, jnp.eye(2))
        return (weights * (theta + jnp.einsum("ij,ikh,jsh->ijks", x @ x.T, slope, slope))).sum()

    def ours(p):
        return (weights * empirical_ntk(f, p, x, engine=engine)).sum()

    want = jax.grad(dense)(params)
    for take in (jax.grad(ours), jax.jit(jax.grad(ours))):
        got = take(params)
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-10, atol=1e-10)
