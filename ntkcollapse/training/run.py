"""A whole training run: data, network, steps, measurements, checkpoints; one call from settings to trajectory."""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import TypedDict, Unpack, overload

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from ntkcollapse._platforms import constant
from ntkcollapse.clock import Clock
from ntkcollapse.data import Splits
from ntkcollapse.networks import AbstractNetwork
from ntkcollapse.networks.kept import KeptNetwork
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.training.announcer import Announcer, Progressing
from ntkcollapse.training.config import TrainConfig
from ntkcollapse.training.errors import Interrupted, NonFiniteLoss
from ntkcollapse.training.measurements import Measurement
from ntkcollapse.training.output import Output
from ntkcollapse.training.plan import Plan
from ntkcollapse.training.progress import Progress
from ntkcollapse.training.saved_runs import check_settings
from ntkcollapse.training.signals import StopRequest, stop_requested
from ntkcollapse.trajectory import Trajectory


class _Options(TypedDict, total=False):
    resume: bool
    overwrite: bool
    measurements: Mapping[str, Measurement] | None
    splits: Splits | None
    network: AbstractNetwork | None
    optimizer: optax.GradientTransformation | None
    clock: Clock | None
    statistics_batch_size: int | None
    progress: Progressing
    on_step: Callable[[int], None] | None


@overload
def train(
    config: TrainConfig,
    out: str | os.PathLike | None = None,
    *,
    keep_networks_at: None = None,
    **more: Unpack[_Options],
) -> Trajectory: ...


@overload
def train(
    config: TrainConfig,
    out: str | os.PathLike | None = None,
    *,
    keep_networks_at: Iterable[int],
    **more: Unpack[_Options],
) -> tuple[Trajectory, dict[int, KeptNetwork]]: ...


def train(
    config: TrainConfig,
    out: str | os.PathLike | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    measurements: Mapping[str, Measurement] | None = None,
    splits: Splits | None = None,
    network: AbstractNetwork | None = None,
    optimizer: optax.GradientTransformation | None = None,
    clock: Clock | None = None,
    keep_networks_at: Iterable[int] | None = None,
    statistics_batch_size: int | None = None,
    progress: Progressing = False,
    on_step: Callable[[int], None] | None = None,
) -> Trajectory | tuple[Trajectory, dict[int, KeptNetwork]]:
    """Trains as the settings say, measures on the way, and returns the trajectory.

    With a directory, the run leaves its settings, status, checkpoints and trajectory there (see `RunDirectory`), and
    can be stopped and resumed at any moment: order of the data, learning rate, batch statistics and measurements are
    functions of the step and the settings, so that a resumed run ends in the same bits as one that was never stopped.

    Several devices share each batch (`jax.devices()`, where their number divides it), normalised as one. On an
    accelerator the data lie on the device, and up to fifty steps between two measurements are one program. Several
    processes (`jax.distributed.initialize`) call it with the same arguments: the first one writes, and what asks one
    of them to stop stops all at the next look.

    Args:
        config: the settings.
        out: run directory; nothing is written without one.
        resume: go on from the newest checkpoint in `out`, from the start where there is none.
        overwrite: replace the run in `out`.
        measurements: your own, by name: functions of a `Moment` that return numbers or arrays of a fixed shape by name.
            Arrays of text (what the entries of another are called) become the `names` of the trajectory.
        splits, network: in place of those that the settings name.
        optimizer: any optax transformation in place of the one that the settings name. It contains its learning rate:
            `learning_rate` and its decay, `momentum` and `optimizer_options` of the settings are not used, and times
            are optimiser steps.
        clock: of an `optimizer` of your own: its steps as flow time.
        keep_networks_at: steps at which the network itself is kept; it is measured there too. With a directory they are
            saved in it, for `saved_networks` and `ntkcollapse compare`.
        statistics_batch_size: with `recompute_statistics`, the size of the batches of the training set over which batch
            statistics are averaged, 0 for the whole set in one; the run's own batches without.
        progress: True or "bar" for a bar with loss, accuracy, NC1, alignment and the time left; "lines" for a line of
            them on standard error every half a minute, as a log file can hold, and before it what measuring will cost.
        on_step: called with the number of steps taken after each (for tests and schedulers).
    Returns:
        Observables at each measured step, among them "step", "epoch", "learning_rate" and "seconds" since the start;
        states and κ on the probe (no κ where it was not a block kernel at some step, as with λ_single ≤ 0). Times are
        flow time for sgd (of the loss ½‖R‖² summed over the training set), steps for other optimisers, for balanced
        batches of unequal classes, and where rates decay so far that flow times are the same in floating point;
        `equation.without_clock` says why. `statistics` has seconds spent on training and on each
        measurement. With `keep_networks_at`, also the networks by step, with the batch statistics they were measured
        with.
    Raises:
        NonFiniteLoss: the run diverged; `last` is the trajectory up to there, whose last state is the last good one;
            None where the start was not finite.
        Interrupted: SIGINT or SIGTERM came; everything is in the checkpoint, and what was measured so far is saved.
        CheckpointError: a checkpoint could not be written; the run can be resumed from those before.
        RunInUse, FileExistsError, ValueError: see `RunDirectory.check`, `RunDirectory.locked`, `check_settings`.
    """
    with ExitStack() as stack:
        directory = None if out is None else RunDirectory(out)
        # Of several processes the first one writes, and all read.
        writes = jax.process_index() == 0
        if directory is not None and writes:
            stack.enter_context(directory.locked("train"))
            directory.check(resume=resume, overwrite=overwrite)
            if resume:
                check_settings(config, directory)
        # Settings that do not go together are refused here, before anything that is there is touched.
        plan = Plan.of(
            config,
            measurements=measurements,
            splits=splits,
            network=network,
            optimizer=optimizer,
            clock=clock,
            statistics_batch_size=statistics_batch_size,
            keep_networks_at=keep_networks_at or (),
        )
        output = Output(plan, directory)
        if resume:
            output.check_length()
        # Whoever sees that the run is there may ask it to stop.
        stop = stack.enter_context(stop_requested())
        if directory is not None and writes:
            directory.begin(config, resume=resume)
        begun = (output.resumed() if resume else None) or Progress.start(plan)
        if jax.process_count() > 1:
            output = output if writes else Output(plan, None)
            multihost_utils.sync_global_devices("ntkcollapse: everyone has read where the run stands")
        bar = stack.enter_context(Announcer(plan, progress if writes else False))
        trajectory = _run_to_its_end(begun, output, bar, stop, on_step)
        return trajectory if keep_networks_at is None else (trajectory, dict(sorted(begun.networks.items())))


def _run_to_its_end(
    run: Progress, output: Output, bar: Announcer, stop: StopRequest, on_step: Callable[[int], None] | None
) -> Trajectory:
    """The trajectory of the whole run; however the run ends, its directory says so."""
    # Who looks at every step is shown every step.
    watched = on_step is not None or run.plan.config.checkpoint_seconds == 0
    together = 1 if watched else constant("steps")
    output.write_status(run, "running")
    try:
        if not run.records.steps:
            run.measure()
        bar.show(run)
        while not run.is_over:
            run.advance(together)
            output.save_in_time(run)
            bar.show(run)
            if on_step is not None:
                on_step(run.step)
            signum = stop.signum if jax.process_count() == 1 else _of_any_process(run, stop.signum)
            if signum is not None:
                output.save(run, "interrupted")
                output.publish(run, "interrupted")
                raise Interrupted(signum, run.step, None if output.directory is None else output.directory.path)
    except NonFiniteLoss as error:
        bar.close()
        # From the start itself there is neither a measurement nor a state to go on from.
        if run.records.steps:
            error.last = output.finish(run, "diverged")
        else:
            output.write_status(run, "diverged")
        raise
    except (Interrupted, OSError):
        raise
    except Exception as error:
        output.write_status(run, "failed", error=f"{type(error).__name__}: {error}")
        raise
    return output.finish(run, "finished")


def _of_any_process(run: Progress, signum: int | None) -> int | None:
    """The signal that any of the processes has had: all are asked where all look at the state."""
    if not run.is_looked_at(run.step):
        return None
    return int(np.max(multihost_utils.process_allgather(np.asarray(signum or 0)))) or None
