"""How training ends when it does not end well."""

import signal
from pathlib import Path
from typing import Any


class NonFiniteLoss(FloatingPointError):
    """A step whose loss, gradient or update was not finite.

    `step` is the step that could not be taken; `last` is what there is from before it, None where that is nothing.
    """

    def __init__(self, step: int, last: Any = None):
        super().__init__(
            f"the loss, its gradient or the update is not finite at step {step}: the run diverged; "
            "the state before that step is kept. Lower the learning rate."
        )
        self.step = step
        self.last = last


class Interrupted(Exception):
    """A signal asked the run to stop: its state is in its last checkpoint."""

    def __init__(self, signum: int, step: int, directory: Path | None):
        where = f"; resume it from {directory}" if directory is not None else ""
        super().__init__(f"{signal.Signals(signum).name} at step {step}: the run was saved and stopped{where}.")
        self.signum = signum
        self.step = step
