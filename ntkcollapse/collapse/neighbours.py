"""k nearest neighbours: what features say of classes without a classifier, and without class means."""

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Shaped

from ntkcollapse._checks import check_finite, check_real, check_shape, check_whole
from ntkcollapse.collapse.statistics import check_label_range


def knn_accuracy(
    H: Float[ArrayLike, "n N"],
    labels: Shaped[ArrayLike, " N"] | Sequence[int],
    train: tuple[Float[ArrayLike, "n K"], Shaped[ArrayLike, " K"]] | None = None,
    *,
    neighbours: int = 10,
) -> float:
    r"""Fraction of samples whose class is the most frequent one among their k nearest training features.

    The rule beside `ncc_accuracy`: it needs classes to be together, not to be balls about their means, so that it is
    right earlier in depth and in training. Where features have collapsed the two agree.

    Args:
        H: features in columns.
        labels: class of each column.
        train: training features in columns and their classes; None takes H itself, each sample without itself (leave
            one out).
        neighbours: k. Of classes with as many votes the one of lower index wins.
    Returns:
        Between 0 and 1. Distances are Euclidean, in float64 about the mean of the training features; costs N K n, in
        pieces.
    Raises:
        ValueError: shapes that disagree, numbers that are not finite, labels that are not 0, …, C−1, or fewer training
            features than k.
    References:
        Cohen, Sapiro & Giryes (2018) compare the rule with networks, layer by layer.

    >>> import numpy as np
    >>> H = np.array([[0.0, 0.1, 0.3, 1.0, 1.1, 1.2]])
    >>> knn_accuracy(H, [0, 0, 1, 1, 1, 1], neighbours=1), knn_accuracy(H, [0, 0, 1, 1, 1, 1], neighbours=3)
    (0.8333333333333334, 0.5)
    """
    from sklearn.neighbors import NearestNeighbors

    check_whole("neighbours", neighbours)
    own = train is None
    points, names = (H, labels) if train is None else train
    check_real(H=H, labels=labels, train=points)
    for name, X in (("H", H), ("train", points)):
        check_shape(name, X, (None, None), "(n features, samples), one column a sample")
        check_finite(name, X)
    check_shape("H", H, (np.shape(points)[0], None), "(n features, N samples) with n as train has")
    X, P = (np.asarray(A, dtype=np.float64).T for A in (H, points))
    z, C = check_label_range(names, len(P), None)
    # A class that training features do not have is never found, and no error.
    y, _ = check_label_range(labels, len(X), None)
    if neighbours > len(P) - own:
        raise ValueError(
            f"neighbours: expected at most the {len(P) - own} training features that there are"
            f"{' besides the sample itself' if own else ''}, got {neighbours}."
        )
    centre = P.mean(0)
    search = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(P - centre)
    nearest = search.kneighbors(None if own else X - centre, return_distance=False)
    votes = (z[nearest][:, :, None] == np.arange(C)).sum(1)
    return float(np.mean(votes.argmax(1) == y))
