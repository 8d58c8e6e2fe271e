"""How a flow is integrated: the choice, apart from the solvers, which take longer to import than a run takes."""

import dataclasses
from typing import Any

from ntkcollapse._checks import check_choice, check_momentum, check_number, check_positive, check_whole
from ntkcollapse.choices import SOLVERS

# Below the first, double precision has no digits left; from 1 on, an error as large as the state would pass.
RTOL = (1e-14, 1.0)


@dataclasses.dataclass(frozen=True)
class Method:
    """How a flow is integrated.

    Args:
        solver: a name of `SOLVERS`, any diffrax solver, or None for the default: linearly implicit extrapolation for
            reduced flows (outside of `vmap`, `jit` and `grad` after explicit steps of order 8, as long as these take
            less work), Tsit5 for full ones, ShARK for flows with noise.
        rtol: of a step's error, relative to the root mean square of each part of the state (H, W and b; or M, P, W
            and b). With the defaults the final error of each part is below 10 rtol wherever the flow itself does not
            amplify errors; what is a small difference of large parts, like a small residual, has that error of the
            parts.
        atol: the same, absolute, in addition. Above zero it hides the growth of starts that are smaller than it.
        max_steps: after which it gives up.
        step: η of gradient descent in place of the flow: y ← y + η d y/dt, with no solver and no tolerances. Times are
            multiples of η from the first one on; with momentum of η/(1 − β), as `Clock` counts them.
        momentum: β of such steps, heavy ball: v ← β v + d y/dt, y ← y + η v.

    Raises:
        ValueError: an unknown solver, an rtol outside [1e-14, 1), an atol below zero, a number of steps that is no
            whole number above 0, a step not above zero or beside a solver, or a momentum outside [0, 1) or without a
            step.

    >>> Method(solver="tsit5", rtol=1e-8).max_steps
    100000
    >>> Method(step=0.1, momentum=0.5).time_of_a_step
    0.2
    """

    solver: str | Any | None = None
    rtol: float = 1e-6
    atol: float = 0.0
    max_steps: int = 100_000
    step: float | None = None
    momentum: float = 0.0

    def __post_init__(self):
        if isinstance(self.solver, str):
            check_choice("solver", self.solver, SOLVERS)
        check_tolerances(self.rtol, self.atol)
        check_whole("max_steps", self.max_steps)
        check_momentum(self.momentum)
        if self.step is None:
            if self.momentum:
                raise ValueError(f"momentum: expected a step beside it, got momentum = {self.momentum} alone.")
            return
        check_number("step", self.step)
        check_positive("step", self.step)
        if self.solver is not None:
            raise ValueError(
                "solver: expected none beside a step, which is one of gradient descent, got both; leave one out."
            )

    @property
    def time_of_a_step(self) -> float:
        """Flow time of one step of gradient descent, η/(1 − β)."""
        if self.step is None:
            raise ValueError("step: expected a step of gradient descent, got a method for flows.")
        return float(self.step) / (1 - float(self.momentum))


def check_tolerances(rtol: Any, atol: Any) -> None:
    """Raises ValueError for tolerances that no step can keep, or every step keeps."""
    check_number("rtol", rtol)
    if not RTOL[0] <= rtol < RTOL[1]:
        raise ValueError(
            f"rtol: expected a relative tolerance from {RTOL[0]:g} to below {RTOL[1]:g}, got {rtol:g}; the default is "
            "1e-6."
        )
    check_number("atol", atol)
    if atol < 0:
        raise ValueError(f"atol: expected a tolerance of 0 or above, got {atol:g}; 0 leaves it all to rtol.")
