"""What an integration gives, whichever solver made it."""

import enum
from typing import Any

import equinox as eqx
from jaxtyping import Int, PyTree

from ntkcollapse._types import AnyArray


class Outcome(enum.IntEnum):
    """How an integration ended."""

    SUCCESSFUL = 0
    STEADY = 1
    TOO_MANY_STEPS = 2
    STEP_TOO_SMALL = 3
    SOLVER_FAILED = 4

    @property
    def reason(self) -> str:
        """The outcome in words."""
        return {
            Outcome.SUCCESSFUL: "the last time was reached.",
            Outcome.STEADY: "nothing moved any more.",
            Outcome.TOO_MANY_STEPS: "the maximum number of solver steps was reached.",
            Outcome.STEP_TOO_SMALL: "the step became as small as rounding.",
            Outcome.SOLVER_FAILED: "the solver's own equations could not be solved.",
        }[self]


class Integration(eqx.Module):
    """States at the times asked for, and how the solver fared.

    states: as the start, with a leading time axis; infinite after the time reached.
    statistics: num_steps, num_accepted_steps, num_rejected_steps; largest_correction where steps are retracted,
        num_evaluations where they are counted.
    outcome: a number of `Outcome`.
    """

    states: PyTree
    statistics: dict[str, Any]
    outcome: Int[AnyArray, ""]

    @property
    def successful(self):
        """Whether it came to its end, or to where nothing moved any more."""
        return self.outcome <= Outcome.STEADY

    @property
    def is_steady(self):
        """Whether it stopped before its last time because nothing moved any more."""
        return self.outcome == Outcome.STEADY
