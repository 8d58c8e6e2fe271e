"""The assumptions that part a prediction from the network, and the names of several that are given up at once.

Plain data, without jax: the command line lists rungs before it needs them.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from ntkcollapse._palette import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, YELLOW


class Assumption(NamedTuple):
    """What a rung takes to be so, and the network need not obey.

    name: in tables and legends; colour: of its bar, the same whichever rungs were climbed; beside: its name after that
    of another assumption, where that is shorter.
    """

    name: str
    colour: str
    beside: str = ""


CLASSES_ALIKE = Assumption("classes alike", RED)
ONE_RATE = Assumption("one rate within classes", ORANGE)
# Of what Krylov blocks leave out, in place of one.
SEVERAL_RATES = Assumption("several rates within classes", ORANGE)
NO_CROSS_TERMS = Assumption("no cross terms of means and deviations", YELLOW)
AVERAGE = Assumption("average over features", BLUE)
# Of networks with batch normalisation only; for the others it assumes nothing.
STATISTICS_AT_REST = Assumption("batch statistics at rest", SKY)
# Features move by their kernel Θ^h (or by a mean of it) as it was at the start.
LAZY_FEATURES = Assumption("lazy features", GREEN)
LAZY_LAST_LAYER = Assumption("lazy last layer", "#666666")
FLOW = Assumption("flow instead of the optimiser's steps", PURPLE, beside="the optimiser's steps")

BLOCKS = (CLASSES_ALIKE, ONE_RATE, NO_CROSS_TERMS)


class _ShortName(NamedTuple):
    """What these assumptions are called together, where all of `kept` are still made."""

    name: str
    of: Collection[Assumption]
    kept: Collection[Assumption] = ()


# The first that fits is taken.
_SHORT_NAMES = (
    _ShortName("all of it", (*BLOCKS, AVERAGE, LAZY_FEATURES, FLOW)),
    _ShortName("all but the drift of the block kernel", (*BLOCKS, AVERAGE, FLOW)),
    _ShortName("all that the sample kernel leaves out", (AVERAGE, LAZY_FEATURES, FLOW)),
    _ShortName("block structure", BLOCKS),
    _ShortName("class blocks", (ONE_RATE, NO_CROSS_TERMS)),
    _ShortName("lazy network", (LAZY_LAST_LAYER, LAZY_FEATURES)),
    _ShortName("block kernel drift", (LAZY_FEATURES,), kept=(AVERAGE, *BLOCKS)),
    _ShortName("sample kernel drift", (LAZY_FEATURES,), kept=(AVERAGE,)),
)


def joint_name(given_up: Sequence[Assumption], kept: Collection[Assumption] = ()) -> str:
    """The name of assumptions that are given up at once.

    Args:
        given_up: in the order in which they are named.
        kept: what is still assumed without them.
    """
    left = [one for one in given_up if one != STATISTICS_AT_REST]
    parts = []
    for short in _SHORT_NAMES:
        if set(short.of) <= set(left) and set(short.kept) <= set(kept):
            parts.append((min(given_up.index(one) for one in short.of), short.name, ""))
            left = [one for one in left if one not in short.of]
    parts += [(given_up.index(one), one.name, one.beside) for one in left]
    names = [(i and beside) or name for i, (_, name, beside) in enumerate(sorted(parts))]
    joint = f"{', '.join(names[:-1])}, and {names[-1]}" if len(names) > 1 else "".join(names)
    # Named last, beside whatever else two rungs differ in.
    return ", ".join(filter(None, [joint, STATISTICS_AT_REST.name if STATISTICS_AT_REST in given_up else ""]))
