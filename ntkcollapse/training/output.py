"""What a training run writes into its directory, and reads from there to go on."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntkcollapse.checkpoints import Checkpoint, Checkpoints
from ntkcollapse.networks import num_params
from ntkcollapse.networks.kept import KeptNetwork, as_arrays, check_data, from_arrays, network_notes, variables_from
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.training.plan import Plan
from ntkcollapse.training.progress import Progress
from ntkcollapse.training.recorded import recorded_trajectory
from ntkcollapse.training.step import StepRecord, TrainingState
from ntkcollapse.trajectory import Trajectory


class Output:
    """The checkpoints, kept networks, status and trajectory of a run; nothing is written without a directory."""

    def __init__(self, plan: Plan, directory: RunDirectory | None):
        self.plan, self.directory = plan, directory
        if directory is not None:
            self.checkpoints = Checkpoints(directory.checkpoints)
            self.networks = Checkpoints(directory.networks, keep=None)
        self._saved_at = time.monotonic()
        self._published = -1

    # ---- to go on

    def check_length(self) -> None:
        """Raises ValueError where the run in the directory has come further than the settings ask for."""
        steps = self.checkpoints.steps() if self.directory is not None else []
        if steps and steps[-1] > self.plan.last:
            raise ValueError(
                f"epochs: expected at least {-(-steps[-1] // self.plan.batches.per_epoch)}, since the run in "
                f"{self.directory} has come to step {steps[-1]}, got {self.plan.config.epochs}, which end at step "
                f"{self.plan.last}; start another run."
            )

    def resumed(self) -> Progress | None:
        """The run as its newest checkpoint has it; None where there is none.

        Raises:
            ValueError: it is of other settings or data, or of other parts given from Python.
            CheckpointError: no checkpoint can be read.
        """
        if self.directory is None:
            return None
        saved, writes = self.checkpoints.newest(), jax.process_index() == 0
        if writes:
            self.networks.drop_after(-1 if saved is None else saved.step)
        if saved is None:
            return None
        if writes:
            self.checkpoints.drop_after(saved.step)
        self._check(saved)
        plan, where = self.plan, self.directory
        variables = variables_from(saved, plan.network, where)
        optimizer = from_arrays("optimizer", saved, jax.eval_shape(plan.stepper.start, variables).opt_state, where)
        record = None
        if "step/loss" in saved.arrays:
            record = StepRecord(*(jnp.asarray(saved.arrays[f"step/{name}"]) for name in StepRecord._fields))
        state = TrainingState(jnp.asarray(saved.step, jnp.int32), variables, optimizer)
        progress = Progress(plan, state, step=saved.step, record=record)
        progress.records.restore(saved)
        progress.networks = self._kept(saved.step)
        return progress

    def _kept(self, step: int) -> dict[int, KeptNetwork]:
        """The networks that were to be kept until this step."""
        wanted = sorted(s for s in self.plan.networks_at if s <= step)
        if lost := sorted(set(wanted) - set(self.networks.steps())):
            raise ValueError(
                f"keep_networks_at: expected steps after {step}, to which the run in {self.directory} has come, or "
                f"such as it has kept, {self.networks.steps() or 'none'}; got {lost}."
            )
        network = self.plan.network
        return {
            s: KeptNetwork(network, variables_from(self.networks.at(s), network, self.networks.directory))
            for s in wanted
        }

    def _check(self, saved: Checkpoint) -> None:
        """Raises ValueError where a run is to go on with something else than what it was started with."""
        where = self.directory
        for part, what in (("network", "network"), ("data", "splits"), ("optimizer", "optimizer")):
            old, new = saved.notes["own"].get(part), self.plan.own.get(part)
            if old != new:
                raise ValueError(f"{what}: expected what the run in {where} was started with, {old}, got {new}.")
        measured = [name.removeprefix("measuring_") for name in saved.notes["seconds"] if name.startswith("measuring_")]
        if set(measured) != set(self.plan.measurements):
            raise ValueError(
                f"measurements: expected those that the run in {where} was started with, {', '.join(measured)}; "
                f"got {', '.join(self.plan.measurements)}. Give the functions of your own again."
            )
        check_data(saved, self.plan.digests, f"{where}", "resume with the same files")
        if saved.notes["settings"] != self.plan.settings_digest:
            raise ValueError(
                f"settings: expected those that the checkpoints in {where} were written with; its saved settings have "
                "been changed since: put them back."
            )

    # ---- on the way

    def write_status(self, progress: Progress, outcome: str, **more: Any) -> None:
        """How far the run has come, and how it stands."""
        if self.directory is not None:
            self.directory.write_status(outcome=outcome, step=progress.step, steps=self.plan.last, **more)

    def save_in_time(self, progress: Progress) -> None:
        """A checkpoint if it is time for one, and what was measured until then, for others to read meanwhile."""
        # A run of a step a second should not lose a minute, nor one of a thousand steps spend its time on saving.
        if self.directory is None or time.monotonic() - self._saved_at < self.plan.config.checkpoint_seconds:
            return
        self.save(progress, "running")
        if self._published != progress.records.steps[-1]:
            self.publish(progress, "running")

    def save(self, progress: Progress, outcome: str) -> None:
        """A checkpoint of everything that the rest of the run depends on, and the status.

        Raises:
            NonFiniteLoss: the run had stopped before; nothing is written.
            CheckpointError: it could not be written.
        """
        if self.directory is None:
            return
        progress.look()
        of = {"network": network_notes(self.plan.splits.train), "data": self.plan.digests}
        for step in progress.networks.keys() - set(self.networks.steps()):
            arrays, structure = as_arrays("variables", progress.networks[step].variables)
            self.networks.save(step, arrays, of | structure)
        variables, structure = as_arrays("variables", progress.state.variables)
        optimizer, more = as_arrays("optimizer", progress.state.opt_state)
        arrays = variables | optimizer | progress.records.arrays()
        if progress.record is not None:
            arrays |= {f"step/{name}": np.asarray(value) for name, value in progress.record._asdict().items()}
        notes = {"settings": self.plan.settings_digest, "own": dict(self.plan.own)}
        self.checkpoints.save(progress.step, arrays, notes | of | structure | more | progress.records.notes())
        self._saved_at = time.monotonic()
        self.write_status(progress, outcome)

    def finish(self, progress: Progress, outcome: str) -> Trajectory:
        """The trajectory, saved after the last checkpoint; only then does the status say how the run ended."""
        if self.directory is not None and self.checkpoints.steps()[-1:] != [progress.step]:
            self.save(progress, "running")
        trajectory = self.publish(progress, outcome)
        self.write_status(progress, outcome, seconds=progress.records.seconds)
        return trajectory

    def publish(self, progress: Progress, outcome: str) -> Trajectory:
        """The trajectory so far, in the run's directory where it has one."""
        plan, train = self.plan, self.plan.splits.train
        trajectory = recorded_trajectory(
            progress.records,
            plan.config,
            plan.measured_on(progress.step)[""].classes,
            train.classes,
            plan.batches,
            plan.schedule,
            own=tuple(plan.own),
            clock=plan.clock,
            outcome=outcome,
            parameters=num_params(plan.initial.params),
            features=int(plan.network.head(plan.initial.params)[0].shape[1]),
            data=train.name,
            data_sha256=plan.digests["train"],
            devices=[str(device) for device in progress.placed.devices],
            **{f"own_{part}": said for part, said in plan.own.items()},
        )
        if self.directory is not None:
            with self.directory.writing(self.directory.trajectory):
                trajectory.save(self.directory.path, overwrite=True)
        self._published = progress.records.steps[-1]
        return trajectory
