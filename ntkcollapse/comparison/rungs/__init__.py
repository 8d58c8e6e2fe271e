"""The rungs of the ladder: predictions under assumptions from strong to weak.

Every rung is a function of a `MeasuredStart` and the times asked for, and gives states and logits there; what is
observed of them is the same for all (`ladder.climb`). `registry` says which rungs there are.
"""

from ntkcollapse.comparison.rungs.assumptions import Assumption, joint_name
from ntkcollapse.comparison.rungs.registry import CHAINS, RUNGS, Needs, Rung, Rungs, chain, given_up

__all__ = ["CHAINS", "RUNGS", "Assumption", "Needs", "Rung", "Rungs", "chain", "given_up", "joint_name"]
