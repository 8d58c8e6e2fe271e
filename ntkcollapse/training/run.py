"""A whole training run: data, network, steps, measurements, checkpoints; one call from settings to trajectory."""

import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from ntkcollapse.clock import Staircase
from ntkcollapse.data import Batches, Dataset, Splits
from ntkcollapse.networks import Network, Variables, num_params
from ntkcollapse.training.catalogue import MEASUREMENTS, chosen
from ntkcollapse.training.checkpoints import Checkpoint, Checkpoints
from ntkcollapse.training.config import TrainConfig
from ntkcollapse.training.errors import Interrupted, NonFiniteLoss
from ntkcollapse.training.evaluation import recomputed_statistics
from ntkcollapse.training.measurements import ON_PROBE, Measurement, Moment
from ntkcollapse.training.placement import Placement
from ntkcollapse.training.recorded import STATES, recorded_trajectory
from ntkcollapse.training.records import Records, checked_values
from ntkcollapse.training.run_files import check_directory, locked, occupy, write_status, writing
from ntkcollapse.training.signals import stop_requested
from ntkcollapse.training.step import Stepper, StepRecord, TrainingState
from ntkcollapse.trajectory import Trajectory

# How often the state is looked at for having stopped at a step that was not finite.
_LOOK_EVERY = 50


def train(
    config: TrainConfig,
    out: str | os.PathLike | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    measurements: Mapping[str, Measurement] | None = None,
    splits: Splits | None = None,
    network: Network | None = None,
    statistics_batch_size: int | None = None,
    progress: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> Trajectory:
    """Trains as the settings say, measures on the way, and returns the trajectory.

    With a directory, the run leaves `config.toml`, `status.json`, checkpoints and `trajectory.nc` there, and can be
    stopped and resumed at any moment: order of the data, learning rate, batch statistics and measurements are functions
    of the step and the settings, so that a resumed run ends in the same bits as one that was never stopped.

    Several devices share each batch (`jax.devices()`, where their number divides it), normalised as one.

    Args:
        config: the settings.
        out: run directory; nothing is written without one.
        resume: go on from the newest checkpoint in `out`, from the start where there is none.
        overwrite: replace the run in `out`.
        measurements: your own, by name: functions of a `Moment` that return numbers or arrays of a fixed shape by name.
            Arrays of text (what the entries of another are called) become the `names` of the trajectory.
        splits, network: in place of those that the settings name.
        statistics_batch_size: with `recompute_statistics`, the size of the batches of the training set over which batch
            statistics are averaged, 0 for the whole set in one; the run's own batches without.
        progress: a bar with loss, accuracy, NC1, alignment and the time left.
        on_step: called with the number of steps taken after each (for tests and schedulers).
    Returns:
        Observables at each measured step, among them "step", "epoch", "learning_rate" and "seconds" since the start;
        states and κ on the probe (no κ where it was not a block kernel at some step, as with λ_single ≤ 0). Times are
        flow time for sgd (of the loss ½‖R‖² summed over the training set), steps for other optimisers, for balanced
        batches of unequal classes, and where rates decay so far that flow times are the same in floating point;
        `equation.without_clock` says why. `statistics` has seconds spent on training and on each
        measurement.
    Raises:
        NonFiniteLoss: the run diverged; `last` is the trajectory up to there, whose last state is the last good one;
            None where the start was not finite.
        Interrupted: SIGINT or SIGTERM came; everything is in the checkpoint, and what was measured so far is saved.
        CheckpointError: a checkpoint could not be written; the run can be resumed from those before.
        RunInUse, FileExistsError, ValueError: see `check_directory`, `locked`.
    """
    with ExitStack() as stack:
        path = None
        if out is not None:
            path = Path(out)
            stack.enter_context(locked(path))
            check_directory(config, path, resume=resume, overwrite=overwrite)
        # Settings that do not go together are refused here, before anything that is there is touched.
        run = _Run(config, path, measurements, splits, network, statistics_batch_size)
        if resume:
            run.check_length()
        if path is not None:
            occupy(config, path, resume=resume)
        stop = stack.enter_context(stop_requested())
        bar = stack.enter_context(
            tqdm(total=run.last, disable=not progress, unit="step", dynamic_ncols=True, smoothing=0.1)
        )
        try:
            run.begin()
            bar.update(run.step)
            if run.records.rows:
                bar.set_postfix(run.records.headline())
            while run.step < run.last:
                run.advance()
                bar.update(1)
                if run.seen_now:
                    bar.set_postfix(run.records.headline())
                if on_step is not None:
                    on_step(run.step)
                if stop.signum is not None:
                    run.save("interrupted")
                    run.publish("interrupted")
                    raise Interrupted(stop.signum, run.step, path)
        except NonFiniteLoss as error:
            bar.close()
            # From the start itself there is neither a measurement nor a state to go on from.
            if run.records.steps:
                error.last = run.finish("diverged")
            else:
                run.say("diverged")
            raise
        except (Interrupted, OSError):
            raise
        except Exception as error:
            if run.begun:
                run.say("failed", error=f"{type(error).__name__}: {error}")
            raise
        return run.finish("finished")


class _Run:
    """The moving parts of a run: state, records, clocks. Everything else follows from the settings."""

    def __init__(
        self,
        config: TrainConfig,
        path: Path | None,
        measurements: Mapping[str, Measurement] | None,
        splits: Splits | None,
        network: Network | None,
        statistics_batch_size: int | None = None,
    ):
        self.config, self.path = config, path
        # What the settings do not name is named by itself.
        self.own = {} if splits is None else {"own_data": splits.train.name}
        self.own |= {} if network is None else {"own_network": described(network)}
        self.splits = config.build_splits() if splits is None else splits
        self.splits.check()
        train = self.splits.train
        self.network = config.build_network(train.classes.num_classes) if network is None else network
        self.batches: Batches = config.build_batches(train.classes)
        self.statistics_batches = self.batches
        if statistics_batch_size is not None:
            self.statistics_batches = Batches(train.classes, statistics_batch_size or None, seed=config.seed)
        self.schedule: Staircase = config.build_schedule(self.batches.per_epoch)
        self.last = config.epochs * self.batches.per_epoch
        self.plan = config.measured_steps(self.batches.per_epoch)
        self.measurements = chosen(config.measure, measurements)
        self.probe = (
            train if config.probe_per_class == 0 else train.balanced(config.probe_per_class, argument="probe_per_class")
        )
        self.initial = self.network.init(jax.random.key(config.seed), train.inputs)
        self.stepper = Stepper(self.network, config.build_optimizer(), config.loss, config.weight_decay)
        self.checkpoints = None if path is None else Checkpoints(path / "checkpoints")
        self.data_digest, self.test_digest = (
            hashlib.sha256(part.inputs.tobytes() + part.labels.tobytes()).hexdigest() for part in self.splits
        )
        self.records = Records(self.measurements)
        self.state: TrainingState
        self.record: StepRecord | None = None
        self.step = 0
        self.begun, self.seen_now = False, False
        self.published = -1
        self.saved_at = time.monotonic()
        self._epoch = (-1, np.zeros((0, 0), np.int32))

    def check_length(self) -> None:
        """Raises ValueError where the run in the directory has come further than the settings ask for."""
        steps = self.checkpoints.steps() if self.checkpoints is not None else []
        if steps and steps[-1] > self.last:
            raise ValueError(
                f"epochs: expected at least {-(-steps[-1] // self.batches.per_epoch)}, since the run in {self.path} "
                f"has come to step {steps[-1]}, got {self.config.epochs}, which end at step {self.last}; start "
                "another run."
            )

    def begin(self) -> None:
        """Places the data, and the state of the newest checkpoint or of the start."""
        self.placed = Placement.of(self.splits.train, self.config.batch_size)
        start = self.stepper.start(self.initial)
        found = None
        if self.checkpoints is not None:
            self.checkpoints.clean()
            found = self.checkpoints.newest()
            if found is not None:
                self.checkpoints.drop_after(found.step)
            if found is not None:
                self._check_own(found)
        self.state = jax.device_put(start if found is None else self._restore(found, start), self.placed.replicated)
        self.say("running")
        self.begun = True
        if found is None:
            self._measure()

    def advance(self) -> None:
        """One step, the measurements due after it, and a checkpoint if it is time."""
        began = time.perf_counter()
        epoch, batch = divmod(self.step, self.batches.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self.batches.epoch(epoch))
        rows = None if self.config.batch_size == 0 else jax.device_put(self._epoch[1][batch], self.placed.rows)
        self.state, self.record = self.stepper(
            self.state, self.placed.inputs, self.placed.labels, rows, self.schedule(self.step), self.step
        )
        self.step += 1
        self.records.seconds["training"] += time.perf_counter() - began
        due = self.step in self.plan or self.step == self.last
        if due or self.step % _LOOK_EVERY == 0:
            # Between these, steps are queued without waiting.
            self._look()
        self.seen_now = due
        if due:
            self._measure()
        # A run of a step a second should not lose a minute, nor one of a thousand steps spend its time on saving.
        if self.checkpoints is not None and time.monotonic() - self.saved_at >= self.config.checkpoint_seconds:
            self.save("running")
            if self.published != self.records.steps[-1]:
                # What was measured so far, for other tools to read while the run goes on.
                self.publish("running")

    def save(self, outcome: str) -> None:
        """A checkpoint of everything that the rest of the run depends on, and the status."""
        if self.checkpoints is None:
            return
        self._look()
        leaves = jax.tree.leaves(self.state)
        arrays = {f"state/{i:05d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        if self.record is not None:
            arrays |= {f"step/{name}": np.asarray(value) for name, value in self.record._asdict().items()}
        notes = {
            "data": self.data_digest,
            "test": self.test_digest,
            "structure": str(jax.tree.structure(self.state)),
            **self.own,
            **self.records.notes(),
        }
        self.checkpoints.save(self.step, arrays | self.records.arrays(), notes)
        self.saved_at = time.monotonic()
        self.say(outcome)

    def say(self, outcome: str, **more: Any) -> None:
        """The status of the run, where it has a directory."""
        if self.path is not None:
            write_status(self.path, outcome=outcome, step=self.step, steps=self.last, **more)

    def finish(self, outcome: str) -> Trajectory:
        """The trajectory, saved after the last checkpoint; only then is the outcome said."""
        if self.checkpoints is not None and self.checkpoints.steps()[-1:] != [self.step]:
            self.save("running")
        trajectory = self.publish(outcome)
        self.say(outcome, seconds=self.records.seconds)
        return trajectory

    def publish(self, outcome: str) -> Trajectory:
        """The trajectory so far, in the run's directory where it has one."""
        config, train = self.config, self.splits.train
        trajectory = recorded_trajectory(
            self.records,
            config,
            self._measured_on()[""].classes,
            train.classes,
            self.batches,
            self.schedule,
            outcome=outcome,
            parameters=num_params(self.initial.params),
            features=int(self.initial.params["last_layer"]["kernel"].shape[0]),
            data=train.name,
            data_sha256=self.data_digest,
            devices=[str(device) for device in self.placed.devices],
            own=tuple(name.removeprefix("own_") for name in self.own),
            **self.own,
        )
        if self.path is not None:
            with writing(self.path / "trajectory.nc"):
                trajectory.save(self.path, overwrite=True)
        self.published = self.records.steps[-1]
        return trajectory

    def _look(self) -> None:
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
            self._measure()
            raise NonFiniteLoss(taken)

    def _measure(self) -> None:
        began = time.perf_counter()
        variables = jax.tree.map(jnp.copy, self.state.variables)
        if len(jax.devices()) > 1:
            variables = jax.device_put(variables, jax.devices()[0])
        # Steps know nothing of initial weights, nor should what is compiled for measuring.
        network = self.stepper.network
        if self.config.recompute_statistics:
            variables = recomputed_statistics(network, variables, self.splits.train, self.statistics_batches)
        moments = {
            prefix: Moment(
                network,
                variables,
                on,
                self.splits,
                loss=self.config.loss,
                step=self.step,
                record=self.record,
                engine=self.config.ntk_engine,
                with_kernel="kappa" in self.measurements,
            )
            for prefix, on in self._measured_on().items()
        }
        moment = moments[""]
        values: dict[str, Any] = {}
        seconds = self.records.seconds
        try:
            for name, measurement in self.measurements.items():
                start = time.perf_counter()
                # Those of the catalogue share some of what they find.
                taken = () if measurement is MEASUREMENTS.get(name) else values
                for prefix in moments if name in ON_PROBE else ("",):
                    # Waits for what is computed: else its time would count as another's.
                    found = checked_values(name, measurement(moments[prefix]), taken)
                    values |= {prefix + key: value for key, value in found.items()}
                seconds[f"measuring_{name}"] += time.perf_counter() - start
            if self.config.keep_states:
                values |= {f"state_{name}": getattr(moment.last_layer, name) for name in STATES}
            values["learning_rate"] = self.schedule(self.step)
        except ValueError:
            # Parameters can be finite and what follows from them not: then the next loss would show it.
            if _blown_up(variables, self.network, moment.probe):
                raise NonFiniteLoss(self.step) from None
            raise
        seconds["measuring"] += time.perf_counter() - began
        self.records.append(self.step, values | {"seconds": seconds["training"] + seconds["measuring"]})

    def _measured_on(self) -> dict[str, Dataset]:
        """The samples that last layer and kernels are measured on, by what their names begin with."""
        if self.config.measure_on == "probe":
            return {"": self.probe}
        # Before the first step, the batch is the one that it will take.
        epoch, batch = divmod(max(self.step - 1, 0), self.batches.per_epoch)
        rows = self.batches.epoch(epoch)[batch]
        train = self.splits.train
        current = Dataset.of(train.inputs[rows], train.labels[rows], name=f"{train.name}/batch")
        return {"": current} if self.config.measure_on == "batch" else {"": self.probe, "on_batch_": current}

    def _check_own(self, found: Checkpoint) -> None:
        """Raises ValueError where a run is to go on without what was given to it from Python, or with another."""
        kept = found.notes["seconds"]
        measured = [name.removeprefix("measuring_") for name in kept if name.startswith("measuring_")]
        for name, what in (("own_network", "network"), ("own_data", "splits")):
            old, new = found.notes.get(name), self.own.get(name)
            if old != new:
                raise ValueError(f"{what}: expected what the run in {self.path} was started with, {old}, got {new}.")
        if set(measured) != set(self.measurements):
            raise ValueError(
                f"measurements: expected those that the run in {self.path} was started with, {', '.join(measured)}; "
                f"got {', '.join(self.measurements)}. Give the functions of your own again."
            )

    def _restore(self, found: Checkpoint, start: TrainingState) -> TrainingState:
        for part, digest, own in (("training", "data", self.data_digest), ("test", "test", self.test_digest)):
            if found.notes.get(digest, own) != own:
                raise ValueError(
                    f"data: the {part} set differs from the one that the run in {self.path} was started on; "
                    "resume with the same files."
                )
        leaves, structure = jax.tree.flatten(start)
        saved = [found.arrays.get(f"state/{i:05d}", np.zeros(leaf.shape, leaf.dtype)) for i, leaf in enumerate(leaves)]
        shapes = [np.shape(leaf) for leaf in saved] == [leaf.shape for leaf in leaves]
        if found.notes["structure"] != str(structure) or not shapes:
            raise ValueError(f"network: what was saved in {self.path} is of another network or optimiser.")
        self.step = found.step
        self.records.restore(found)
        if "step/loss" in found.arrays:
            self.record = StepRecord(*(jnp.asarray(found.arrays[f"step/{name}"]) for name in StepRecord._fields))
        return jax.tree.unflatten(structure, saved)


def described(network: Network) -> str:
    """A network in words that are the same in another process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(network))


def _blown_up(variables: Variables, network: Network, probe: Dataset) -> bool:
    size = float(optax.tree.norm(variables.params))
    features = network.features(variables.params, probe.inputs, variables.batch_stats)
    return not np.isfinite(size) or size > 1e15 or not np.isfinite(np.asarray(features)).all()


def saved_variables(
    config: TrainConfig, out: str | os.PathLike, *, splits: Splits | None = None, network: Network | None = None
) -> tuple[Network, Variables, int]:
    """The network of a run, its variables in the newest checkpoint, and the step they are of.

    Args:
        config: the settings of the run.
        out: its directory.
        splits, network: those that were given to `train` in place of what the settings name.
    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: it is of other data or another network.
    """
    run = _Run(config, Path(out), None, splits, network)
    assert run.checkpoints is not None
    found = run.checkpoints.newest()
    if found is None:
        raise FileNotFoundError(f"{out}: no checkpoint here.")
    state = run._restore(found, run.stepper.start(run.initial))
    return run.network, state.variables, found.step
