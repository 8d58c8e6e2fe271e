"""A training loop of one's own, measured on the way: what it leaves is a run like any other."""

import dataclasses
import operator
import os
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Protocol

import jax
import numpy as np

from ntkcollapse._checks import check_choice, check_positive
from ntkcollapse._config import Settings, as_mapping, setting
from ntkcollapse.checkpoints import Checkpoint, Checkpoints
from ntkcollapse.choices import ENGINES, LOSSES, MEASUREMENTS
from ntkcollapse.clock import Clock
from ntkcollapse.data import Batches, Dataset, Splits
from ntkcollapse.data.dataset import as_splits
from ntkcollapse.equation import Equation
from ntkcollapse.networks import AbstractNetwork, Variables, num_params
from ntkcollapse.networks.kept import KeptNetwork, as_arrays, check_data, network_notes, variables_from
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.training.errors import NonFiniteLoss
from ntkcollapse.training.evaluation import recomputed_statistics
from ntkcollapse.training.measurements import Measurement, Moment, chosen
from ntkcollapse.training.measuring import measured_values
from ntkcollapse.training.objectives import summed_loss
from ntkcollapse.training.plan import described
from ntkcollapse.training.recorded import STATES, stand_still, trajectory_of
from ntkcollapse.training.records import Records, checked_values
from ntkcollapse.trajectory import Trajectory

# Of the table of measurements, those that a recorder can make of any network.
_OF_ANY = ("train", "test", "kappa", "gamma", "last-layer", "parameters", "test-collapse")
_OF_TEST = ("test", "test-collapse")
_NO_CLOCK = "the recorder was given no clock"


class Writer(Protocol):
    """What gets the numbers of each record beside the run: a function of the step and of numbers by name."""

    def __call__(self, step: int, values: Mapping[str, float], /) -> Any: ...


@dataclasses.dataclass(frozen=True)
class RecorderConfig(Settings):
    """What a recorded run was begun with, as its directory keeps it."""

    network: str = setting("", "the network")
    data: str = setting("", "the data")
    loss: str = setting("squared", "of the loop", choices=LOSSES)
    weight_decay: float = setting(0.0, "λ of λ/2 ‖p‖² in the loss of the loop")
    steps_per_epoch: int = setting(1, "of the loop")
    measure: tuple[str, ...] = setting((), "what is measured")
    probe_per_class: int = setting(0, "samples of each class; 0 for all")
    recompute_statistics: bool = setting(False, "batch statistics of the whole set before measuring")


class Recorder:
    """Measures a network in a training loop of one's own.

        recorder = nc.Recorder(network, data, out="runs/mine", clock=clock, at=nc.log_spaced(1000, 30))
        for step in range(1001):
            recorder(step, params, state)
            ...

    At steps that are not in `at` a call compares two whole numbers, and neither looks at the parameters nor waits for
    them. `trajectory` is the run so far, and with a directory it is there after every record, for `Trajectory.load`,
    `ntkcollapse compare`, `rates` and `report`, while the loop goes on. A loop that was killed goes on from what it
    saved itself, with `resume=True`: records from the first step that it calls again are made anew.

    Args:
        network: of this package, or made by `networks.of`.
        data: what the loop trains on, as `Dataset`, `Splits` or (inputs, labels).
        out: run directory; nothing is written without one.
        clock: steps as flow time, see `Clock`; without, times are steps, and what needs flow time (decay rates beside
            predictions, the ladder) says that it has none.
        at: steps to measure at; every call without.
        measure: names of `MEASUREMENTS`: loss and accuracy, kernels, last layer and norms by default, and the test set
            where there is one. "ansatz" takes networks of this package.
        measurements: functions of a `Moment` of one's own, by name, as for `train`.
        loss: of the loop: "squared" or "cross-entropy".
        weight_decay: λ of the penalty λ/2 ‖p‖² over weights beside the loss that the clock is of; decoupled decay by
            `Clock.decay_rate`.
        steps_per_epoch: of the loop.
        probe_per_class: samples of each class that last layer and kernels are measured on; 0 for all of `data`, as the
            ladder asks for.
        keep_networks_at: steps at which the network is kept, and measured, for rungs that need more of it than its
            last layer: `networks`, and in the directory, for `comparison.MeasuredRun.load`.
        recompute_statistics: batch statistics of all of `data` in one batch before measuring, as the rungs that let
            them move ask for.
        ntk_engine: of the empirical NTK.
        resume: go on with the run in `out`, begin where there is none. overwrite: replace it.
        writers: what else gets the numbers of every record: a `SummaryWriter` of TensorBoard, a run of Weights & Biases
            (or anything with `add_scalar(name, value, step)` or `log(values, step=step)`), or a function of step and
            values.
    Raises:
        TypeError: data, writers or a network of another kind.
        ValueError: unknown names, steps below zero, a measurement that asks for what is not there, or with `resume` a
            run that was begun otherwise.
        RunInUse, FileExistsError: see `RunDirectory.locked` and `RunDirectory.check`.
    """

    # Those of this process that hold a directory: a cell of a notebook that is run again lets go of its last one.
    _open: ClassVar["weakref.WeakValueDictionary[str, Recorder]"] = weakref.WeakValueDictionary()

    def __init__(
        self,
        network: AbstractNetwork,
        data: Dataset | Splits | tuple[Any, Any],
        out: str | os.PathLike | None = None,
        *,
        clock: Clock | None = None,
        at: Iterable[int] | None = None,
        measure: Sequence[str] | None = None,
        measurements: Mapping[str, Measurement] | None = None,
        loss: str = "squared",
        weight_decay: float = 0.0,
        steps_per_epoch: int = 1,
        probe_per_class: int = 0,
        keep_networks_at: Iterable[int] = (),
        recompute_statistics: bool = False,
        ntk_engine: str = "layerwise",
        resume: bool = False,
        overwrite: bool = False,
        writers: Sequence[Any] = (),
    ):
        if not isinstance(network, AbstractNetwork):
            raise TypeError(
                f"network: expected one of this package, got {type(network).__name__}; networks.of(model, x) makes one."
            )
        self._splits, has_test = as_splits(data)
        train = self._splits.train
        if measure is None:
            measure = tuple(name for name in _OF_ANY[:-1] if has_test or name not in _OF_TEST)
        measure = (measure,) if isinstance(measure, str) else tuple(measure)
        _check_measure(measure, network, has_test)
        check_choice("loss", loss, LOSSES)
        check_choice("ntk_engine", ntk_engine, {"auto": "", **ENGINES.meanings})
        check_positive("weight_decay", weight_decay, zero=True)
        check_positive("steps_per_epoch", steps_per_epoch)
        if network.num_classes != train.classes.num_classes:
            raise ValueError(
                f"data: expected the {network.num_classes} classes of the network, got {train.classes.num_classes}."
            )
        self._network, self._clock, self._engine = network, clock, ntk_engine
        self._kept_at = frozenset(_steps("keep_networks_at", keep_networks_at))
        self._at = None if at is None else frozenset(_steps("at", at)) | self._kept_at
        self._config = RecorderConfig(
            network=described(network),
            data=train.name,
            loss=loss,
            weight_decay=weight_decay,
            steps_per_epoch=steps_per_epoch,
            measure=(*measure, *(measurements or {})),
            probe_per_class=probe_per_class,
            recompute_statistics=recompute_statistics,
        )
        self._measurements = chosen(measure, measurements)
        self._probe = train.balanced(probe_per_class, argument="probe_per_class") if probe_per_class else train
        self._like = jax.eval_shape(network.init, jax.random.key(0), train.inputs)
        self._writers = [_writer(writer) for writer in writers]
        self._digests = {name: part.digest for name, part in self._splits._asdict().items()}
        self.records = Records(self._measurements)
        self.networks: dict[int, KeptNetwork] = {}
        self._last, self._begins_again = -1, False
        self._directory = None if out is None else RunDirectory(out)
        self._held = ExitStack()
        self._finalizer = weakref.finalize(self, self._held.close)
        if self._directory is not None:
            try:
                self._begin(self._directory, resume, overwrite)
            except BaseException:
                self._finalizer()
                raise
        self._left = time.perf_counter()

    # ---- in the loop

    def __call__(self, step: int, params: Any, state: Any = None, **values: Any) -> bool:
        """Measures where this step is one to measure at, and says whether it was.

        Args:
            step: optimiser steps taken, a whole number of Python.
            params, state: the network there: parameters and state, its `Variables`, or the module of its framework.
            values: numbers or arrays of the loop to record beside (the loss of its batch, say).
        Raises:
            TypeError: a step that is an array, which would have to be waited for.
            ValueError: a step that is not after the last one, parameters of another structure or shape, a state that is
                missing, or values whose names are taken.
            NonFiniteLoss: parameters or features are too large to measure; `last` is the trajectory before.
        """
        if step.__class__ is not int:
            step = _whole(step)
        if step <= self._last:
            raise ValueError(
                f"step: expected one after {self._last}, of the call before, got {step}; a loop that begins again goes "
                "on with Recorder(..., resume=True), or records into another directory."
            )
        if self._begins_again:
            self._begin_again(step)
        self._last = step
        if self._at is not None and step not in self._at:
            return False
        self._measure(step, params, state, values)
        return True

    def _measure(self, step: int, params: Any, state: Any, given: Mapping[str, Any]) -> None:
        began = time.perf_counter()
        config, seconds, train = self._config, self.records.seconds, self._splits.train
        variables = self._network.variables(params, state)
        check_structure(variables, self._like)
        seconds["training"] += began - self._left
        if config.recompute_statistics:
            variables = recomputed_statistics(self._network, variables, train, Batches(train.classes, None, 0))
        moment = Moment(
            self._network.as_stepped(),
            variables,
            self._probe,
            self._splits,
            loss=config.loss,
            step=step,
            record=None,
            engine=self._engine,
            with_kernel="kappa" in self._measurements,
            weight_decay=config.weight_decay,
        )
        if not moment.is_finite:
            self._write_status("diverged")
            raise NonFiniteLoss(step, self.trajectory if self.records.steps else None)
        values = measured_values(self._measurements, {"": moment}, seconds)
        values |= checked_values("values of the call", given, values)
        values |= {f"state_{name}": getattr(moment.last_layer, name) for name in STATES}
        if step in self._kept_at:
            self.networks[step] = KeptNetwork(self._network, jax.tree.map(np.array, variables))
        seconds["measuring"] += time.perf_counter() - began
        self.records.append(step, values | {"seconds": seconds["training"] + seconds["measuring"]})
        self._save(step)
        numbers = {name: float(value) for name, value in self.records.newest.items() if np.ndim(value) == 0}
        for write in self._writers:
            write(step, numbers)
        self._left = time.perf_counter()

    # ---- what there is

    @property
    def trajectory(self) -> Trajectory:
        """The run so far.

        Raises:
            ValueError: nothing was measured yet.
        """
        if not self.records.steps:
            raise ValueError("recorder: expected a step at which it measured, got none yet; call it in the loop.")
        config, clock, steps = self._config, self._clock, np.asarray(self.records.steps)
        reason = _NO_CLOCK if clock is None else stand_still(clock.time(steps))
        W, b = jax.eval_shape(self._network.head, self._like.params)
        equation = Equation(
            producer="network",
            loss=summed_loss(config.loss),
            weight_decay={"W": clock.decay_rate(config.weight_decay) if clock is not None and not reason else 0.0},
            bias="absent" if b is None else "free",
            clock=None if reason else clock,
            without_clock=reason,
            training_classes=self._splits.train.classes,
            own=("loop", "network", "data"),
        )
        settings = as_mapping(config) | {
            "parameters": num_params(self._like.params),
            "features": int(W.shape[1]),
            "data_sha256": self._digests["train"],
        }
        times = steps.astype(float) if reason or clock is None else clock.time(steps)
        return trajectory_of(self.records, times, self._probe.classes, config.steps_per_epoch, equation, settings)

    def close(self, outcome: str = "finished") -> None:
        """Lets go of the directory; its status says how the run ended."""
        if self._finalizer.alive:
            self._write_status(outcome)
            self._finalizer()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        self.close("finished" if kind is None else "failed")

    # ---- its directory

    def _begin(self, directory: RunDirectory, resume: bool, overwrite: bool) -> None:
        before = self._open.get(str(directory.path.resolve()))
        if before is not None:
            before._finalizer()
        self._held.enter_context(directory.locked("record"))
        directory.check(resume=resume, overwrite=overwrite)
        self._checkpoints = Checkpoints(directory.checkpoints)
        self._saved_networks = Checkpoints(directory.networks, keep=None)
        goes_on = resume and directory.settings.exists()
        if goes_on:
            self._check_settings(directory)
            saved = self._checkpoints.newest()
            if saved is not None:
                self._restore(saved, directory)
        directory.begin(self._config, resume=goes_on)
        self._write_status("running")
        self._open[str(directory.path.resolve())] = self

    def _check_settings(self, directory: RunDirectory) -> None:
        there = directory.read_settings(RecorderConfig)
        for field in dataclasses.fields(RecorderConfig):
            old, new = getattr(there, field.name), getattr(self._config, field.name)
            if old != new:
                raise ValueError(
                    f"{field.name}: expected {old!r} as the run in {directory} was begun with, got {new!r}; resume "
                    "with the same, or record into another directory."
                )

    def _restore(self, saved: Checkpoint, directory: RunDirectory) -> None:
        check_data(saved, self._digests, f"{directory}", "resume with the same")
        self.records.restore(saved)
        for step in self._saved_networks.steps():
            kept = self._saved_networks.at(step)
            self.networks[step] = KeptNetwork(self._network, variables_from(kept, self._network, directory))
        self._begins_again = True

    def _begin_again(self, step: int) -> None:
        """Forgets what was recorded from this step on: the loop takes these steps anew."""
        self.records.drop_from(step)
        self.networks = {known: kept for known, kept in self.networks.items() if known < step}
        self._checkpoints.drop_after(step - 1)
        self._saved_networks.drop_after(step - 1)
        self._begins_again = False

    def _save(self, step: int) -> None:
        """The records and the trajectory, so that nothing that was measured is lost."""
        directory = self._directory
        if directory is None:
            return
        notes = {"network": network_notes(self._splits.train), "data": self._digests}
        if step in self.networks:
            arrays, structure = as_arrays("variables", self.networks[step].variables)
            self._saved_networks.save(step, arrays, notes | structure)
        self._checkpoints.save(step, self.records.arrays(), notes | self.records.notes())
        with directory.writing(directory.trajectory):
            self.trajectory.save(directory.path, overwrite=True)
        if self._at and step >= max(self._at):
            # Nothing more will be written: others may.
            self.close()
        else:
            self._write_status("running")

    def _write_status(self, outcome: str) -> None:
        if self._directory is not None:
            steps = max(self._at) if self._at else self._last
            self._directory.write_status(outcome=outcome, step=max(self._last, 0), steps=max(steps, 0))


def check_structure(variables: Variables, like: Variables) -> None:
    """Raises ValueError where variables are not of the structure and shapes of a network's."""
    for name, given, expected in zip(Variables._fields, variables, like, strict=True):
        if jax.tree.structure(given) != jax.tree.structure(expected):
            raise ValueError(
                f"{name}: expected the structure of the network's, {jax.tree.structure(expected)}, got "
                f"{jax.tree.structure(given)}."
            )
        for path, leaf in jax.tree.leaves_with_path(expected):
            got = np.shape(_at(given, path))
            if got != leaf.shape:
                raise ValueError(
                    f"{name}: expected shape {leaf.shape} at {jax.tree_util.keystr(path)}, as in the network, "
                    f"got {got}."
                )


def _at(tree: Any, path: Any) -> Any:
    return dict(jax.tree.leaves_with_path(tree))[path]


def _check_measure(names: Iterable[str], network: AbstractNetwork, has_test: bool) -> None:
    for name in names:
        check_choice("measure", name, MEASUREMENTS)
        if name == "batch":
            raise ValueError(
                "measure: expected no 'batch', which the loop knows and a recorder does not; hand it over, "
                "recorder(step, params, state, batch_loss=loss)."
            )
        if name in _OF_TEST and not has_test:
            raise ValueError(f"measure: expected Splits with a test part as data for {name!r}, got a training set.")
        if name == "ansatz":
            # Of another network this says what to do instead.
            _ = network.module


def _steps(name: str, steps: Iterable[int]) -> list[int]:
    whole = [_whole(step, name) for step in steps]
    check_positive(name, whole, zero=True)
    return whole


def _whole(step: Any, name: str = "step") -> int:
    if not isinstance(step, bool | jax.Array):
        try:
            return operator.index(step)
        except TypeError:
            pass
    raise TypeError(
        f"{name}: expected a whole number of Python, got {type(step).__name__}; count steps in Python, since reading "
        "them from a device would wait for it at every step."
    )


def _writer(writer: Any) -> Callable[[int, Mapping[str, float]], Any]:
    """A function of step and numbers, of what a library calls its writer."""
    if hasattr(writer, "add_scalar"):
        return lambda step, values: [writer.add_scalar(name, value, step) for name, value in values.items()]
    if hasattr(writer, "log"):
        return lambda step, values: writer.log(dict(values), step=step)
    if callable(writer):
        return writer
    raise TypeError(
        f"writers: expected a function of (step, values), or an object with add_scalar or log, got "
        f"{type(writer).__name__}."
    )
