"""Streaming statistics are batch statistics, in any cut and any order, to float64's rounding."""

import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkcollapse.collapse import ClassStatistics, RunningStatistics


def direct(features, labels, C) -> RunningStatistics:
    """Two passes in extended precision."""
    x = np.asarray(features, np.longdouble)
    sizes = np.bincount(labels, minlength=C).astype(float)
    means = np.stack([x[labels == c].mean(0) if (labels == c).any() else np.zeros(x.shape[1]) for c in range(C)], 1)
    deviations = x - means.T[labels]
    squares = np.stack([np.square(deviations[labels == c]).sum(0) for c in range(C)], 1)
    return RunningStatistics(sizes, *(np.asarray(v, float) for v in (means, deviations.T @ deviations, squares)))


def assert_close(one, other, offset=1.0):
    """To rounding: means relative to the offset, sums of squares relative to their size, which no offset enters."""
    np.testing.assert_array_equal(one[0], other[0])
    # Means of a few numbers of order 1 + offset, which may cancel.
    np.testing.assert_allclose(one[1], other[1], rtol=0, atol=1e-14 * (1 + offset))
    # The mean's own rounding, offset · 1e-16, times √N deviations of order 1 is all that may remain.
    for i in (2, 3):
        np.testing.assert_allclose(one[i], other[i], rtol=1e-12, atol=1e-13 * max(1.0, offset * 1e-1))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_streaming_is_batch_is_merged_in_any_order(data):
    N = data.draw(st.integers(2, 40))
    seed = data.draw(st.integers(0, 2**32 - 1))
    offset = data.draw(st.sampled_from([0.0, 1.0, 1e3]))
    cuts = sorted(data.draw(st.lists(st.integers(0, N), max_size=6)))
    rng = np.random.default_rng(seed)
    C, n = 3, 4
    features = (offset + rng.normal(size=(N, n))).astype(np.float32)
    labels = rng.integers(0, C, N)
    expected = direct(features, labels, C)
    edges = [0, *cuts, N]
    pieces = [slice(a, b) for a, b in itertools.pairwise(edges) if b > a]

    streamed = RunningStatistics.empty(n, C)
    for piece in pieces:
        streamed = streamed.update(features[piece], labels[piece])
    assert_close(streamed, expected, offset)

    order = data.draw(st.permutations(range(len(pieces))))
    parts = [RunningStatistics.empty(n, C).update(features[pieces[i]], labels[pieces[i]]) for i in order]
    while len(parts) > 1:
        i = data.draw(st.integers(0, len(parts) - 2))
        parts[i : i + 2] = [parts[i].merge(parts[i + 1])]
    assert_close(parts[0], expected, offset)


def test_float32_features_with_a_large_offset_keep_float64_digits():
    """The textbook formula Σhhᵀ − N μμᵀ in float32 has no correct digit here."""
    rng = np.random.default_rng(0)
    features = (1e4 + rng.normal(size=(20_000, 3))).astype(np.float32)
    labels = rng.integers(0, 2, 20_000)
    batches = ((features[i : i + 500], labels[i : i + 500]) for i in range(0, 20_000, 500))
    running = RunningStatistics.of_batches(batches, num_classes=2)
    expected = np.asarray(direct(features, labels, 2).scatter)
    np.testing.assert_allclose(np.asarray(running.scatter), expected, rtol=1e-11, atol=1e-6)
    one = features[labels == 0]
    naive = np.sum(one**2, 0) - np.square(one.mean(0)) * np.float32(len(one))
    assert (np.abs(naive / running.square_deviations[:, 0] - 1) > 0.1).any()


def test_features_that_have_collapsed_exactly_have_no_scatter_at_all():
    """Their mean is themselves: a sum of equal numbers, divided by their count, often is not that number."""
    points = 0.1 * np.arange(1, 10).reshape(3, 3) + 1e4
    labels = np.arange(540) % 3
    batches = [(points[labels][rows], labels[rows]) for rows in (slice(0, 200), slice(200, 540))]
    running = RunningStatistics.of_batches(batches, num_classes=3)
    np.testing.assert_array_equal(running.means, points.T)
    np.testing.assert_array_equal(np.asarray(running.scatter), 0.0)
    np.testing.assert_array_equal(running.square_deviations, 0.0)


def test_merge_on_the_device_and_across_mapped_axes():
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(4, 12, 3)) + 5.0, np.tile(np.arange(3), (4, 4))
    expected = ClassStatistics.from_features(features.reshape(-1, 3), labels.ravel())
    parts = jax.jit(jax.vmap(lambda x, y: ClassStatistics.from_features(x, y, 3)))(features, labels)

    merged = jax.tree.map(lambda x: x[0], parts)
    for i in range(1, 4):
        merged = merged.merge(jax.tree.map(lambda x, i=i: x[i], parts))
    everywhere = jax.vmap(lambda s: s.merge_across("device"), axis_name="device")(parts)
    for a, b, c in zip(*map(jax.tree.leaves, (merged, everywhere, expected)), strict=True):
        np.testing.assert_allclose(a, c, rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(b[2], c, rtol=1e-13, atol=1e-13)


def test_a_class_may_be_missing_from_parts_but_not_from_the_whole():
    features = np.random.default_rng(0).normal(size=(6, 2))
    first = RunningStatistics.empty(2, 3).update(features[:3], [0, 0, 1])
    with pytest.raises(ValueError, match="none of class 2"):
        first.statistics()
    whole = first.merge(pickle.loads(pickle.dumps(RunningStatistics.empty(2, 3).update(features[3:], [2, 1, 2]))))
    expected = ClassStatistics.from_features(features, [0, 0, 1, 2, 1, 2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), whole.statistics(), expected)
    assert whole.statistics().means.dtype == jnp.float64


@pytest.mark.usefixtures("as_users_call")
def test_bad_batches_are_refused():
    running = RunningStatistics.empty(2, 3)
    with pytest.raises(ValueError, match="n = 2 features"):
        running.update(np.ones((4, 3)), [0, 1, 2, 0])
    with pytest.raises(ValueError, match="got 3"):
        running.update(np.ones((4, 2)), [0, 1, 3, 0])
    with pytest.raises(ValueError, match="finite"):
        running.update(np.full((4, 2), np.inf), [0, 1, 2, 0])
    with pytest.raises(ValueError, match="as this one has"):
        running.merge(RunningStatistics.empty(3, 3))
    with pytest.raises(ValueError, match="two classes"):
        RunningStatistics.empty(3, 1)
    with pytest.raises(ValueError, match="at least one batch"):
        RunningStatistics.of_batches([], 3)
