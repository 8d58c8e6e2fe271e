"""A training run under way: its state, what has been measured of it, and one step more."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from ntkcollapse._precision import in_precision
from ntkcollapse.data import Dataset
from ntkcollapse.networks import Variables
from ntkcollapse.networks.kept import KeptNetwork
from ntkcollapse.training.errors import NonFiniteLoss
from ntkcollapse.training.evaluation import recomputed_statistics
from ntkcollapse.training.measurements import Moment
from ntkcollapse.training.measuring import measured_values
from ntkcollapse.training.placement import Placement
from ntkcollapse.training.plan import Plan
from ntkcollapse.training.recorded import STATES
from ntkcollapse.training.records import Records
from ntkcollapse.training.step import StepRecord, TrainingState

# How often the state is looked at for having stopped at a step that was not finite.
_LOOK_EVERY = 50


class Progress:
    """Where a run is.

    Attributes:
        plan: what it follows.
        placed: the training set on devices.
        state: after `step` steps.
        step: steps taken, so far as is known.
        record: of the last step taken; None before the first.
        records: what has been measured.
        networks: those kept so far, by step.
    """

    def __init__(self, plan: Plan, state: TrainingState, *, step: int = 0, record: StepRecord | None = None):
        self.plan = plan
        self.placed = Placement.of(plan.splits.train, plan.config.batch_size)
        self.state = jax.device_put(state, self.placed.replicated)
        self.step, self.record = step, record
        self.records = Records(plan.measurements)
        self.networks: dict[int, KeptNetwork] = {}
        self._epoch = (-1, np.zeros((0, 0), np.int32))

    @classmethod
    def start(cls, plan: Plan) -> "Progress":
        """Before the first step."""
        return cls(plan, plan.stepper.start(plan.initial))

    @property
    def is_over(self) -> bool:
        """Whether the last step has been taken."""
        return self.step >= self.plan.last

    @property
    def is_due(self) -> bool:
        """Whether the network is to be measured at this step."""
        return self.step in self.plan.measured_at or self.is_over

    def advance(self, most: int = 1) -> None:
        """One step, or up to `most` in one program until the next look or measurement; and the measurements due then.

        Raises:
            NonFiniteLoss: an earlier step could not be taken, see `look`.
        """
        began = time.perf_counter()
        plan, full = self.plan, self.plan.config.batch_size == 0
        given = self.state, self.placed.inputs, self.placed.labels
        if most == 1:
            rows = None if full else jax.device_put(self._rows(self.step), self.placed.rows)
            self.state, self.record = plan.stepper(*given, rows, plan.rate(self.step), self.step)
            self.step += 1
        else:
            steps = [self.step]
            while len(steps) < most and not self.is_looked_at(steps[-1] + 1):
                steps.append(steps[-1] + 1)
            # Filled up to one length with what is not taken.
            filled = steps + steps[-1:] * (most - len(steps))
            rows = None if full else jax.device_put(np.stack([*map(self._rows, filled)]), self.placed.rows_of_steps)
            rates = np.asarray([*map(plan.rate, filled)])
            self.state, self.record = plan.stepper.several(*given, rows, rates, self.step, len(steps))
            self.step += len(steps)
        self.records.seconds["training"] += time.perf_counter() - began
        if self.is_looked_at(self.step):
            # Between these, steps are queued without waiting.
            self.look()
        if self.is_due:
            self.measure()

    def _rows(self, step: int) -> np.ndarray:
        """The samples of the batch of a step."""
        epoch, batch = divmod(step, self.plan.batches.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self.plan.batches.epoch(epoch))
        return self._epoch[1][batch]

    def is_looked_at(self, step: int) -> bool:
        """Whether the state is waited for after so many steps."""
        return step in self.plan.measured_at or step >= self.plan.last or step % _LOOK_EVERY == 0

    def look(self) -> None:
        """Waits for the device; where it stopped before the step asked for, goes back there and measures.

        Raises:
            NonFiniteLoss: it stopped.
        """
        began = time.perf_counter()
        taken = int(self.state.step)
        self.records.seconds["training"] += time.perf_counter() - began
        if taken < self.step:
            # What was seen since is of later batches.
            self.step, self.record = taken, None
            self.measure()
            raise NonFiniteLoss(taken)

    @in_precision
    def measure(self) -> None:
        """Adds what is measured at this step to the records, and keeps the network where that is asked for.

        Raises:
            NonFiniteLoss: parameters, or features of the probe, are too large to measure.
        """
        began = time.perf_counter()
        plan, seconds = self.plan, self.records.seconds
        variables = self._variables()
        moments = {name: self._moment(variables, on) for name, on in plan.measured_on(self.step).items()}
        if not moments[""].is_finite:
            raise NonFiniteLoss(self.step)
        values = measured_values(plan.measurements, moments, seconds)
        if plan.config.keep_states:
            values |= {f"state_{name}": getattr(moments[""].last_layer, name) for name in STATES}
        if "optimizer" not in plan.own:
            values["learning_rate"] = plan.schedule(self.step)
        if self.step in plan.networks_at:
            self.networks[self.step] = KeptNetwork(plan.network, variables)
        seconds["measuring"] += time.perf_counter() - began
        self.records.append(self.step, values | {"seconds": seconds["training"] + seconds["measuring"]})

    def _variables(self) -> Variables:
        """The variables at this step, the next one's to overwrite no more, with batch statistics to measure with."""
        variables = jax.tree.map(jnp.copy, self.state.variables)
        if len(jax.devices()) > 1:
            # Every process measures on a device of its own.
            variables = jax.tree.map(lambda leaf: jax.device_put(leaf.addressable_data(0)), variables)
        if not self.plan.config.recompute_statistics:
            return variables
        train, batches = self.plan.splits.train, self.plan.statistics_batches
        return recomputed_statistics(self.plan.stepper.network, variables, train, batches)

    def _moment(self, variables: Variables, on: Dataset) -> Moment:
        return Moment(
            # Steps know nothing of initial weights, nor should what is compiled for measuring.
            self.plan.stepper.network,
            variables,
            on,
            self.plan.splits,
            loss=self.plan.config.loss,
            step=self.step,
            record=self.record,
            engine=self.plan.config.ntk_engine,
            with_kernel="kappa" in self.plan.measurements,
            weight_decay=self.plan.config.weight_decay,
        )
