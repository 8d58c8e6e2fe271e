"""Class balance, coverage, and order as a function of seed and epoch."""

import numpy as np
import pytest

from ntkcollapse.classes import Classes
from ntkcollapse.data import Batches


def test_balanced_batches_have_the_same_number_of_every_class():
    classes = Classes((7, 9, 8))
    labels = np.asarray(classes.labels)
    batches = Batches(classes, 6, seed=0)
    assert batches.per_epoch == 3
    for epoch in range(3):
        rows = batches.epoch(epoch)
        assert rows.shape == (3, 6)
        assert all(np.bincount(labels[batch]).tolist() == [2, 2, 2] for batch in rows)
        # Drawn without replacement.
        assert len(np.unique(rows)) == rows.size


def test_every_sample_of_a_larger_class_is_drawn_in_some_epoch():
    batches = Batches(Classes((4, 12)), 4, seed=1)
    seen = {int(row) for epoch in range(40) for row in batches.epoch(epoch).ravel()}
    # A sample of the larger class is in an epoch with probability 1/3: in none of 40 with probability 9e-8.
    assert seen == set(range(16))


def test_order_is_a_function_of_seed_and_epoch():
    classes = Classes.balanced(10, 24)
    one, same, other = (Batches(classes, 120, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(one.epoch(5), same.epoch(5))
    assert (one.epoch(5) != one.epoch(6)).any()
    assert (one.epoch(5) != other.epoch(5)).any()


@pytest.mark.parametrize(
    ("sizes", "size", "balanced", "expected"),
    [
        ((4, 8), None, True, True),
        ((4, 8), 4, False, True),
        ((6, 6), 4, True, True),
        ((4, 8), 4, True, False),
    ],
)
def test_all_samples_come_equally_often_where_batches_say_so(sizes, size, balanced, expected):
    batches = Batches(Classes(sizes), size, 0, balanced)
    counts = np.bincount(np.concatenate([batches.epoch(epoch).ravel() for epoch in range(400)]), minlength=12)
    # Drawn 400 times, shares vary by some percent; a class of twice the size comes half as often.
    assert (counts.max() < 1.3 * counts.min()) == expected
    assert batches.represent_all == expected


def test_unbalanced_batches_are_a_permutation_cut():
    rows = Batches(Classes((7, 9, 8)), 5, seed=0, balanced=False).epoch(0)
    assert rows.shape == (4, 5)
    assert len(np.unique(rows)) == 20


def test_a_batch_of_everything_is_the_set():
    np.testing.assert_array_equal(Batches(Classes((2, 3)), None, seed=0).epoch(9), [np.arange(5)])


@pytest.mark.parametrize(
    ("size", "message"),
    [(16, "multiple of the 3 classes"), (99, "at most the 24 samples"), (24, "3 times the 7 samples"), (0, "above")],
)
def test_sizes_that_cannot_be(size, message):
    with pytest.raises(ValueError, match=f"batch_size: .*{message}"):
        Batches(Classes((7, 9, 8)), size, seed=0)
