"""Everything of a training run that follows from its settings, and from what was given from Python beside them."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import jax
import optax

from ntkcollapse._config import as_mapping
from ntkcollapse.clock import Clock, Staircase
from ntkcollapse.data import Batches, Dataset, Splits
from ntkcollapse.networks import AbstractNetwork, Variables
from ntkcollapse.ntk.kernel_work import kernel_work
from ntkcollapse.training.config import FEWEST_MEASUREMENTS, MOST_MEASUREMENTS, TrainConfig
from ntkcollapse.training.gradient_descent import log_spaced
from ntkcollapse.training.measurements import Measurement, chosen
from ntkcollapse.training.measurements.moment import DENSE
from ntkcollapse.training.step import Stepper

# Settings that may change when a run goes on: how far, and what it does not depend on.
FREE = ("epochs", "checkpoint_seconds", "data_path", "download", "ntk_engine")

# Of defaults that have changed: checkpoints of before hold digests that leave these out.
FIRST_DEFAULTS = {"measure_every": 1, "measure_log": 0}

# Of the work of a training, what measured kernels may take by default; and multiplications that are no matter, half a
# second's.
_KERNELS, _LITTLE = 0.1, 1e10


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run before it starts; the same in every process that goes on with it.

    Attributes:
        config: the settings.
        splits: training and test part. probe: what last layer and kernels are measured on.
        network: not initialised. initial: its variables before the first step. stepper: takes its steps.
        batches: the order of the samples. statistics_batches: over which batch statistics are averaged.
        schedule: the learning rate along steps; None for an optimiser of the caller's own, which contains it.
        measurements: by name.
        networks_at: steps whose network is kept.
        clock: steps → flow time of the caller's own optimiser.
        own: what was given from Python in place of settings: which part → a description of it.
    """

    config: TrainConfig
    splits: Splits
    probe: Dataset
    network: AbstractNetwork
    initial: Variables
    stepper: Stepper
    batches: Batches
    statistics_batches: Batches
    schedule: Staircase
    measurements: Mapping[str, Measurement]
    networks_at: frozenset[int]
    clock: Clock | None
    own: Mapping[str, str]

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        *,
        measurements: Mapping[str, Measurement] | None = None,
        splits: Splits | None = None,
        network: AbstractNetwork | None = None,
        optimizer: optax.GradientTransformation | None = None,
        clock: Clock | None = None,
        statistics_batch_size: int | None = None,
        keep_networks_at: Iterable[int] = (),
    ) -> "Plan":
        """Makes the plan from what `train` is given.

        Raises:
            ValueError: parts that do not go together, or a network that cannot take the data.
        """
        if clock is not None and optimizer is None:
            raise ValueError("clock: expected none without an optimizer of your own, got one: the settings have it.")
        own = {} if splits is None else {"data": splits.train.name}
        own |= {} if network is None else {"network": described(network)}
        own |= {} if optimizer is None else {"optimizer": described(optimizer)}
        splits = config.build_splits() if splits is None else splits
        splits.check()
        train = splits.train
        network = config.build_network(train.classes.num_classes) if network is None else network
        optimizer = config.build_optimizer() if optimizer is None else optimizer
        batches = config.build_batches(train.classes)
        last, networks_at = config.epochs * batches.per_epoch, frozenset(int(step) for step in keep_networks_at)
        if wrong := sorted(step for step in networks_at if not 0 <= step <= last):
            raise ValueError(f"keep_networks_at: expected steps from 0 to the last one, {last}, got {wrong}.")
        m = config.probe_per_class
        return cls(
            config=config,
            splits=splits,
            probe=train.balanced(m, argument="probe_per_class") if m else train,
            network=network,
            initial=network.init(jax.random.key(config.seed), train.inputs),
            stepper=Stepper(network, optimizer, config.loss, config.weight_decay, config.compute_dtype),
            batches=batches,
            statistics_batches=(
                batches
                if statistics_batch_size is None
                else Batches(train.classes, statistics_batch_size or None, seed=config.seed)
            ),
            schedule=config.build_schedule(batches.per_epoch),
            measurements=chosen(config.measure, measurements),
            networks_at=networks_at,
            clock=clock,
            own=own,
        )

    @property
    def last(self) -> int:
        """The step that the run ends at."""
        return self.config.epochs * self.batches.per_epoch

    @cached_property
    def measured_at(self) -> frozenset[int]:
        """The steps to measure at; networks are kept where they are measured."""
        return self.config.measured_steps(self.batches.per_epoch, self.spaced) | self.networks_at

    @cached_property
    def spaced(self) -> int:
        """Measurements evenly spaced in the logarithm of the step, unless the settings say how many.

        So many that kernels take at most a tenth of the multiplications of all steps, within 6 and 32; 32 where that is
        little on any machine.
        """
        kernels = [which for which, name in enumerate(("kappa", "gamma")) if name in self.measurements]
        if self.config.measure_log is not None or not kernels:
            return MOST_MEASUREMENTS
        params, x = self.initial.params, self.probe.inputs
        functions = self.network.evaluation(self.initial.batch_stats)
        works = [kernel_work(functions[which], params, x, pairs=len(x) <= DENSE) for which in kernels]
        one = sum(work.kernel for work in works) * (2 if self.config.measure_on == "both" else 1)
        batch = self.splits.train.inputs.shape[0] / self.batches.per_epoch
        room = max(_KERNELS * self.last * 3 * batch * works[0].forward, _LITTLE)
        most = len(log_spaced(self.last, MOST_MEASUREMENTS))
        return MOST_MEASUREMENTS if most * one <= room else max(FEWEST_MEASUREMENTS, int(room // one))

    def rate(self, step: int) -> float:
        """What the update of this step is multiplied by."""
        return 1.0 if "optimizer" in self.own else self.schedule(step)

    def measured_on(self, step: int) -> dict[str, Dataset]:
        """The samples that last layer and kernels are measured on, by what the names of the values begin with."""
        if self.config.measure_on == "probe":
            return {"": self.probe}
        # Before the first step, the batch is the one that it will take.
        epoch, batch = divmod(max(step - 1, 0), self.batches.per_epoch)
        rows, train = self.batches.epoch(epoch)[batch], self.splits.train
        current = Dataset.of(train.inputs[rows], train.labels[rows], name=f"{train.name}/batch")
        return {"": current} if self.config.measure_on == "batch" else {"": self.probe, "on_batch_": current}

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the training and of the test part."""
        return {name: part.digest for name, part in self.splits._asdict().items()}

    @property
    def settings_digest(self) -> str:
        """SHA-256 of the settings that decide the run, those at their first defaults left out."""
        defaults = as_mapping(TrainConfig()) | FIRST_DEFAULTS
        values = {
            name: value
            for name, value in as_mapping(self.config).items()
            if name not in FREE and value != defaults.get(name)
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def described(part: Any) -> str:
    """A network or an optimiser in words that are the same in another process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(part))
