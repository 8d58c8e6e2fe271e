"""Class-block statistics against the dense kernel, and the identities they satisfy."""

# Stubs of other packages are narrower than what they return.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse.classes import Classes
from ntkcollapse.ntk import _partial, block_statistics
from ntkcollapse.ntk._grouping import group
from ntkcollapse.ntk.engines import Layerwise
from tests.ntk.zoo import MAKERS, case, dense_ntk, normal

LABELS = {4: np.asarray([1, 0, 1, 0]), 5: np.asarray([1, 0, 1, 0, 1])}


def reference(theta, labels):
    """Means over entries by loops over pairs of samples."""
    N, K, C = len(labels), theta.shape[2], labels.max() + 1
    diagonal = np.stack([np.mean([np.diag(theta[i, i]) for i in range(N) if labels[i] == c], 0) for c in range(C)], 1)
    pairs = np.empty((K, C, C))
    for c in range(C):
        for d in range(C):
            entries = [
                np.diag(theta[i, j]) for i in range(N) for j in range(N) if i != j and (labels[i], labels[j]) == (c, d)
            ]
            pairs[:, c, d] = np.mean(entries, axis=0)
    same, off = labels[:, None] == labels, ~np.eye(N, dtype=bool)
    three = [theta[mask].mean(0) for mask in (~off, same & off, ~same)]
    return diagonal, pairs, three


def check(got, theta, labels):
    diagonal, pairs, three = reference(theta, labels)
    tolerance = {"rtol": 0, "atol": 1e-11 * np.abs(theta).max()}
    np.testing.assert_allclose(got.output_diagonal, diagonal, **tolerance)
    np.testing.assert_allclose(got.output_pairs, pairs, **tolerance)
    np.testing.assert_allclose(np.stack(got.per_output), [np.diag(value) for value in three], **tolerance)
    kernel = got.kernel
    np.testing.assert_allclose(
        [kernel.diagonal, kernel.within, kernel.between], [np.trace(v) / len(v) for v in three], **tolerance
    )
    if got.output_blocks is not None:
        blocks = got.output_blocks
        np.testing.assert_allclose([blocks.diagonal, blocks.within, blocks.between], three, **tolerance)
        block = np.asarray(
            [
                [three[0] if i == j else three[1] if labels[i] == labels[j] else three[2] for j in range(len(labels))]
                for i in range(len(labels))
            ]
        )
        off = block * (1 - np.eye(block.shape[2]))
        np.testing.assert_allclose(got.off_output, np.linalg.norm(off) / np.linalg.norm(block), rtol=1e-9)


@pytest.mark.parametrize("name", MAKERS)
def test_against_the_dense_kernel(name):
    c, theta = case(name), dense_ntk(name)
    labels = LABELS[len(c.x)]
    check(block_statistics(c.f, c.params, c.x, labels), theta, labels)


@pytest.mark.parametrize("engine", ["layerwise", "jacobian", "ntvp"])
@pytest.mark.parametrize("memory", [None, 9000.0])
def test_engines_and_small_batches(engine, memory):
    # 9000 bytes: outputs in turns, two samples a batch, groups that are filled up.
    c, theta, labels = case("plain"), dense_ntk("plain"), LABELS[5]
    check(block_statistics(c.f, c.params, c.x, labels, engine=engine, memory=memory), theta, labels)


@pytest.fixture(scope="module")
def many():
    """Three classes of unequal size in mixed order, with a dense kernel."""
    c = case("plain")
    x = normal(1, 23, 6)
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [4, 12, 7]))
    J = jax.jit(jax.jacobian(c.f))(c.params, x)
    J = np.concatenate([np.asarray(leaf).reshape(23, 3, -1) for leaf in jax.tree.leaves(J)], axis=2)
    return c, x, labels, np.einsum("ikp,jsp->ijks", J, J)


def test_unequal_classes_and_residual(many):
    c, x, labels, theta = many
    exact = block_statistics(c.f, c.params, x, labels, residual="exact")
    check(exact, theta, labels)
    mean = np.einsum("ijkk->ij", theta) / 3
    same = labels[:, None] == labels
    k = exact.kernel
    B = np.where(np.eye(23), k.diagonal, np.where(same, k.within, k.between))
    want = np.linalg.norm(mean - B) / np.linalg.norm(mean)
    np.testing.assert_allclose(exact.residual, want, rtol=1e-10)
    assert exact.residual_standard_error == 0
    # The means are those of the closest block kernel: any other is farther.
    assert np.linalg.norm(mean - 1.01 * B) > np.linalg.norm(mean - B)
    estimate = block_statistics(
        c.f, c.params, x, labels, residual="estimate", probes=40, key=jax.random.key(0), memory=2e4
    )
    check(estimate, theta, labels)
    # One draw of forty probes: within four of its standard errors, which are a few percent.
    assert abs(estimate.residual - want) < 4 * estimate.residual_standard_error < 0.3


def test_a_kernel_of_block_structure_has_no_residual():
    # A linear network with one output on orthonormal samples: Θ = I + 1, diagonal 2 and every other entry 1.
    def f(p, x):
        return x @ p["w"] + p["b"][None, :]

    got = block_statistics(f, {"w": normal(0, 9, 1), "b": np.zeros(1)}, np.eye(9), np.arange(9) % 3, residual="exact")
    kernel = got.kernel
    np.testing.assert_allclose([kernel.diagonal, kernel.within, kernel.between], [2, 1, 1], rtol=1e-14)
    assert got.residual < 1e-14
    assert got.is_ordered


def test_a_violated_order_is_told_not_warned_of(many):
    c, x, _, theta = many
    # Classes by the sign of the kernel's largest contrast, in halves: neighbours of the other class are nearer.
    mean = np.einsum("ijkk->ij", theta) / 3
    order = np.argsort(np.linalg.eigh(mean)[1][:, -2])
    labels = np.empty(23, int)
    labels[order] = np.arange(23) % 2
    got = block_statistics(c.f, c.params, x, labels)
    assert float(got.kernel.within) < float(got.kernel.between)
    assert not got.is_ordered


COLLAPSED = {
    # Products of which Grams are taken, with one position and with four, gradients that are formed, and the rest.
    "in": normal(10, 2, 2, 24, 32) / 9,
    "dense": normal(11, 128, 40) / 11,
    "thin": normal(12, 40, 2) / 6,
    "bias": normal(13, 2),
}


def collapsing(p, x):
    h = jax.lax.conv_general_dilated(x, p["in"], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    h = jnp.tanh(h.reshape(x.shape[0], -1)) @ p["dense"]
    return jnp.tanh(h) @ p["thin"] + p["bias"][None, :]


@pytest.fixture(scope="module", params=[1e-2, 1e-4])
def collapsed(request):
    """Samples alike to `spread` in their classes, as float32, and λ_single from Jacobians of the same in float64."""
    generator, sizes = np.random.default_rng(0), [30, 30, 30]
    labels = np.repeat([0, 1, 2], sizes)
    means = generator.normal(size=(3, 4, 4, 24))
    x = (means[labels] + request.param * generator.normal(size=(90, 4, 4, 24))).astype(np.float32)
    params = {name: value.astype(np.float32) for name, value in COLLAPSED.items()}
    exact = jax.tree.map(lambda v: jnp.asarray(v, float), params)
    J = jax.jit(jax.jacobian(collapsing))(exact, jnp.asarray(x, float))
    J = np.concatenate([np.asarray(leaf).reshape(90, 2, -1) for leaf in jax.tree.leaves(J)], axis=2)
    groups = J.reshape(3, 30, 2, -1)
    deviations = groups - groups.mean(1, keepdims=True)
    return x, labels, params, np.einsum("cikp,cisp->ks", deviations, deviations) / (3 * 29)


@pytest.mark.parametrize("engine", ["layerwise", "jacobian"])
@pytest.mark.parametrize("pairs", [False, True])
def test_lambda_single_of_samples_that_are_nearly_alike(collapsed, engine, pairs):
    """A difference of single-precision means would be rounding: 1e-7 of the diagonal, and λ_single is 1e-8 of it."""
    x, labels, params, single = collapsed
    mixed = np.random.default_rng(1).permutation(90)
    for order, memory in ((np.arange(90), None), (mixed, None), (mixed, 3e6)):
        got = block_statistics(
            collapsing, params, x[order], labels[order], engine=engine, output_pairs=pairs, memory=memory
        )
        # Gradients in single precision have rounding of their own, 1e-6 of them: 1% of the smaller spread.
        np.testing.assert_allclose(got.lambda_single, np.trace(single) / 2, rtol=1e-3)
        np.testing.assert_allclose(got.kernel.lambda_single, np.trace(single) / 2, rtol=1e-3)
        diagonal, within, _ = got.per_output
        np.testing.assert_allclose(diagonal - within, np.diag(single), rtol=1e-3)
        if got.output_blocks is not None:
            blocks = got.output_blocks
            np.testing.assert_allclose(
                blocks.diagonal - blocks.within, single, rtol=1e-3, atol=1e-3 * np.abs(single).max()
            )
    if pairs and memory is None:
        assert got.output_blocks is not None


def test_single_precision_says_what_it_cannot_hold(collapsed):
    x, labels, params, single = collapsed
    statistics = block_statistics(collapsing, params, x, labels, output_pairs=False)
    with jax.enable_x64(False):
        small = np.trace(single) / 2 < 1e-4 * statistics.class_diagonal.mean()
        assert statistics.lambda_single > 0
        if small:
            with pytest.raises(ValueError, match=r"kernel: λ_single = .* of which float32 resolves .*jax_enable_x64"):
                statistics.kernel  # noqa: B018


def test_stop_and_resume(many, tmp_path, monkeypatch):
    c, x, labels, theta = many
    monkeypatch.setattr(_partial, "_SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(_partial, "_SHARE", np.inf)
    calls = []

    class Stopping(Layerwise):
        def add(self, problem, sums, batch, first_output):
            calls.append(None)
            if len(calls) == self.after:
                raise KeyboardInterrupt
            return super().add(problem, sums, batch, first_output)

        after = 4

    arguments = (c.f, c.params, x, labels)
    options: dict[str, Any] = {
        "memory": 9000.0,
        "checkpoint": tmp_path,
        "residual": "estimate",
        "key": jax.random.key(0),
    }
    with pytest.raises(KeyboardInterrupt):
        block_statistics(*arguments, engine=Stopping(), **options)
    assert list(tmp_path.glob("*.npz"))
    with pytest.raises(ValueError, match="partial results of another computation"):
        block_statistics(c.f, c.params, x + 1, labels, engine=Stopping(), **options)
    with pytest.raises(ValueError, match="another function"):
        block_statistics(lambda p, x: 2 * c.f(p, x), c.params, x, labels, engine=Stopping(), **options)
    Stopping.after = -1
    calls.clear()
    resumed = block_statistics(*arguments, engine=Stopping(), **options)
    done = len(calls)
    check(resumed, theta, labels)
    calls.clear()
    whole = block_statistics(*arguments, engine=Stopping(), **(options | {"checkpoint": None}))
    assert done == len(calls) - 3
    np.testing.assert_array_equal(resumed.output_pairs, whole.output_pairs)
    np.testing.assert_array_equal(resumed.residual, whole.residual)
    assert not list(tmp_path.glob("*.npz"))


@pytest.mark.parametrize("sizes", [(100, 97, 90), (17, 40, 5)])
def test_groups_of_rounded_sizes_hold_every_sample_once(sizes):
    classes = Classes(sizes)
    order = np.random.default_rng(0).permutation(sum(sizes))
    for batch in (8, 33, 200):
        grouping = group(order, classes, batch)
        shapes = {members.shape for members, *_ in grouping.batches()}
        seen = np.concatenate([members[mask] for members, mask, _ in grouping.batches()])
        assert len(shapes) == 1
        np.testing.assert_array_equal(np.sort(seen), np.arange(sum(sizes)))


def test_nearly_the_same_number_of_samples_has_the_same_shapes():
    def shape(m):
        return next(iter(group(np.arange(3 * m), Classes((m,) * 3), 4096).batches()))[0].shape

    assert shape(97) == shape(100) == shape(104) != shape(105)
