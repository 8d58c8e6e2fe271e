"""How a run in training says how far it has come: a bar in a terminal, or a line now and then."""

import sys
import time
from typing import Literal

from tqdm import tqdm

from ntkcollapse.choices import MEASUREMENTS
from ntkcollapse.training.config import MOST_MEASUREMENTS
from ntkcollapse.training.plan import Plan
from ntkcollapse.training.progress import Progress

Progressing = bool | Literal["bar", "lines"]

# Seconds between two lines.
_EVERY = 30.0
# A run whose measuring takes less is not worth a line on it.
_WORTH_SAYING = 10.0


class Announcer:
    """Says on standard error what a run costs and how far it has come; a context that ends the bar.

    Before the first step, that kernels are measured less often than they would be if they cost less. After the third
    record, which was measured with everything compiled, what measuring will cost; when the training accuracy first is
    1, that the terminal phase has begun.

    Args:
        plan: of the run.
        how: True or "bar", "lines", or False for nothing.
    """

    def __init__(self, plan: Plan, how: Progressing):
        self.plan, self.how = plan, "bar" if how is True else how
        self.bar = tqdm(total=plan.last, disable=self.how != "bar", unit="step", dynamic_ncols=True, smoothing=0.1)
        self._said_at = self._began = time.monotonic()
        self._records, self._first, self._costs_said, self._terminal = 0, 0, False, False
        self._measuring = 0.0

    def __enter__(self) -> "Announcer":
        if self.how and self.plan.spaced < MOST_MEASUREMENTS:
            self._say(
                f"measuring {self.plan.spaced} times along the run, so that kernels take about a tenth of its work; "
                f"--measure-log {MOST_MEASUREMENTS} (measure_log={MOST_MEASUREMENTS}) has more"
            )
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def close(self) -> None:
        """Ends the bar."""
        self.bar.close()

    def show(self, run: Progress) -> None:
        """What there is to say after a step."""
        if not self.how:
            return
        self.bar.update(run.step - self.bar.n)
        records = len(run.records.steps)
        if records > self._records:
            self.bar.set_postfix(run.records.headline())
            self._of_record(run, records)
        now = time.monotonic()
        if self.how == "lines" and now - self._said_at >= _EVERY:
            numbers = ", ".join(f"{name} {value}" for name, value in run.records.headline().items())
            taken, left = run.step - self._first, self.plan.last - run.step
            # Before, most of the time went into compilation.
            known = taken > 100 and 20 * taken > left
            time_left = f"; about {_duration((now - self._began) * left / taken)} left" if known else ""
            self._say(f"step {run.step} of {self.plan.last}: {numbers}{time_left}", now)

    def _of_record(self, run: Progress, records: int) -> None:
        measuring = run.records.seconds["measuring"]
        one, self._measuring = measuring - self._measuring, measuring
        if not self._records:
            # What was there when the run went on counts for nothing.
            self._first = run.step
        elif not self._costs_said and records > 2:
            self._costs_said = True
            left = sum(step > run.step for step in self.plan.measured_at)
            if left and left * one >= _WORTH_SAYING:
                names = ", ".join(name for name in self.plan.measurements if name in MEASUREMENTS)
                self._say(
                    f"measuring {left} more times ({names}) will take about {_duration(left * one)}, {one:.2g} s each; "
                    "--measure and --measure-log say what and how often"
                )
        newest = run.records.newest.get("train_accuracy")
        if not self._terminal and newest is not None and float(newest) >= 1:
            self._terminal = True
            if time.monotonic() - self._began >= _WORTH_SAYING:
                self._say(f"step {run.step}: the terminal phase begins, every training sample is classified rightly")
        self._records = records

    def _say(self, line: str, now: float | None = None) -> None:
        self._said_at = time.monotonic() if now is None else now
        tqdm.write(line, file=sys.stderr)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
