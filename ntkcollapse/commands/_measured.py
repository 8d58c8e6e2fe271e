"""Measured runs with their networks: trained here, or made again from the settings of a run directory."""

import dataclasses
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ntkcollapse.comparison import MeasuredStart, NetworkAt
from ntkcollapse.comparison.start import check_clock
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.training import TrainConfig, preset, saved_config, train
from ntkcollapse.trajectory import Trajectory


class MeasuredRun(NamedTuple):
    """A run measured on everything it is trained on, and its network at some of its records.

    weight_decay: in units of 1/flow time; title: for figures.
    """

    trajectory: Trajectory
    networks: dict[int, NetworkAt]
    weight_decay: float
    title: str

    @property
    def steps(self) -> list[int]:
        """The optimiser step of each record."""
        return [int(s) for s in np.asarray(self.trajectory.observables["step"])]

    def start(self, step: int, *, homogeneity: float = 0.0, steps: Sequence[int] | None = None) -> MeasuredStart:
        """From the record at this step on; at these steps alone, where they are named."""
        run, networks = self.trajectory, self.networks
        if steps is not None:
            kept = [self.steps.index(s) for s in steps]
            run, networks = run.at_records(kept), {kept.index(i): net for i, net in networks.items() if i in kept}
        at = (self.steps if steps is None else list(steps)).index(step)
        return MeasuredStart(run, at, networks, weight_decay=self.weight_decay, homogeneity=homogeneity)


def digits_run(
    *,
    per_class: int,
    widths: tuple[int, ...],
    learning_rate: float,
    steps: int,
    at: Iterable[int],
    seed: int,
    starts: Sequence[int],
    keep_all: bool = False,
) -> MeasuredRun:
    """A multilayer perceptron on digits by full-batch gradient descent, its networks kept at the starts (or always).

    It is measured at the steps `at`, at the starts, and at the last one.
    """
    check_starts(starts, steps)
    config = dataclasses.replace(
        preset("digits"),
        network_options=(f"widths=({', '.join(map(str, widths))},)",),
        per_class=per_class,
        learning_rate=learning_rate,
        epochs=steps,
        seed=seed,
    )
    title = f"digits/train, m={per_class}: MLP {'-'.join(map(str, widths))}, full-batch gradient descent"
    return trained_run(config, sorted({*at, *starts, steps}), starts, keep_all=keep_all)._replace(title=title)


def _some(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[:8])) + (", ..." if len(steps) > 8 else "")


def default_start(steps: Sequence[int]) -> int:
    """The record nearest to a hundredth of the run, and before its end."""
    before = steps[:-1] or steps
    return before[int(np.argmin(np.abs(np.log1p(before) - np.log1p(steps[-1] / 100))))]


def compared_steps(steps: Sequence[int], records: int) -> set[int]:
    """First and last, and of the steps that a run recorded so many that are evenly spaced in the logarithm."""
    wanted = np.unique(np.rint(np.geomspace(1, max(steps), records)).astype(int))
    return {0, steps[-1], *(min(steps, key=lambda s: abs(np.log1p(s) - np.log1p(w))) for w in wanted)}


def recorded_run(path: Path) -> tuple[Trajectory, list[int]]:
    """The run of a trained network as it was recorded, fit to be compared, and the steps of its records.

    Raises:
        FileNotFoundError: no run there.
        ValueError: a run of the theory, one without kernels, of another loss than the squared one, or without a clock.
    """
    recorded = Trajectory.load(path)
    if not recorded.equation.of_network:
        raise ValueError(f"{path}: expected the run of a trained network, got one of the theory.")
    if recorded.kernel is None:
        raise ValueError(
            f"{path}: expected a run measured with kernels, got one without: train with --measure kappa, and at rates "
            "at which it does not diverge, where κ ends as no block kernel."
        )
    check_clock(recorded)
    if not recorded.equation.is_squared:
        loss = type(recorded.equation.loss).__name__
        raise ValueError(f"{path}: expected a run of the squared loss, which the theory is of, got {loss}.")
    return recorded, [int(s) for s in np.asarray(recorded.observables["step"])]


def made_by_settings(path: Path, recorded: Trajectory) -> bool:
    """Whether the settings of a run make it again: they do not know networks and data that were given from Python."""
    return RunDirectory(path).settings.exists() and not recorded.equation.own


def as_recorded(path: Path, starts: Iterable[int]) -> MeasuredRun:
    """The run of a directory as it is, without its networks: enough for the rungs of block kernels.

    Raises:
        ValueError: as `recorded_run`; a start that is none of its records.
    """
    recorded, steps = recorded_run(path)
    lost = sorted(set(starts) - set(steps))
    if lost:
        raise ValueError(
            f"start: expected a recorded step of a run that cannot be made again, among {_some(steps)}; got {lost}."
        )
    decay = float(recorded.equation.weight_decay.W)
    return MeasuredRun(recorded, {}, decay, str(recorded.settings.get("network", path.name)))


def measured_again(path: Path, starts: Sequence[int], *, at: Iterable[int], keep_all: bool = False) -> MeasuredRun:
    """The run of a directory made again from its settings, measured on its whole training set.

    A run is a function of its settings, so its networks need not have been kept. It is measured at the steps `at`, at
    the starts, and at the last one.

    Raises:
        FileNotFoundError: no run there.
        ValueError: as `recorded_run`; a network or data given from Python, a start outside the run, or a network that
            does not come out as it was recorded.
    """
    recorded, steps = recorded_run(path)
    if not made_by_settings(path, recorded):
        raise ValueError(
            f"{path}: expected a run that its settings make again, got one whose network or data were given from "
            f"Python, or without its {RunDirectory(path).settings.name}; climb from a MeasuredStart with its "
            "network, or name rungs that need none: --rungs block-frozen block-path."
        )
    check_starts(starts, steps[-1])
    settings = _settings(path)
    if "epochs" not in settings:
        again = _digits_again(path, settings, starts, at, keep_all)
    else:
        # A run that was interrupted is made again to the end of the epoch it came to, not to the one it was to reach.
        config = saved_config(path)
        per_epoch = config.build_batches(recorded.training_classes).per_epoch
        config = dataclasses.replace(config, epochs=max(1, -(-steps[-1] // per_epoch)))
        again = trained_run(config, sorted({steps[-1], *at, *starts}), starts, keep_all=keep_all)
    _check_same(recorded, again.trajectory)
    return again


def has_batch_norm(path: Path) -> bool:
    """Whether the network that the settings of a run name normalises by batches; nothing is trained."""
    settings = _settings(path)
    if "epochs" not in settings:
        return False
    config = saved_config(path)
    data = config.build_splits().train
    network = config.build_network(data.classes.num_classes)
    inputs = jax.ShapeDtypeStruct(data.inputs[:2].shape, data.inputs.dtype)
    return bool(jax.eval_shape(network.init, jax.random.key(0), inputs).batch_stats)


def _settings(path: Path) -> dict[str, Any]:
    file = RunDirectory(path).settings
    try:
        return tomllib.loads(file.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file}: expected the settings of a run, could not read them: {error}.") from error


def _digits_again(
    path: Path, settings: dict[str, Any], starts: Sequence[int], at: Iterable[int], keep_all: bool
) -> MeasuredRun:
    names = ("per_class", "widths", "learning_rate", "steps", "seed")
    missing = [name for name in names if name not in settings]
    if missing:
        raise ValueError(
            f"{RunDirectory(path).settings}: expected the settings of `compare`, without which it cannot be made "
            f"again; got none for {', '.join(missing)}."
        )
    values = {name: settings[name] for name in names}
    return digits_run(**{**values, "widths": tuple(values["widths"])}, at=at, starts=starts, keep_all=keep_all)


def trained_run(
    config: TrainConfig, at: Sequence[int], starts: Sequence[int], *, keep_all: bool = False
) -> MeasuredRun:
    """A run from training settings, measured at these steps on its whole training set, its networks kept at the starts.

    Batch normalisation is evaluated with the statistics of the whole set in one batch, whatever the run's own batches
    are: the rungs that let statistics move take them so.
    """
    config = dataclasses.replace(
        config,
        probe_per_class=0,
        measure=("kappa", "gamma", "last-layer"),
        measure_every=0,
        measure_log=0,
        measure_steps=tuple(sorted(at)),
        measure_on="probe",
        keep_states=True,
        recompute_statistics=True,
    )
    run, networks = train(
        config,
        keep_networks_at=at if keep_all else starts,
        statistics_batch_size=0,
        progress=sys.stderr.isatty(),
    )
    data = config.build_splits().train
    index = {int(s): i for i, s in enumerate(np.asarray(run.observables["step"]))}
    N, C = run.classes.num_samples, run.classes.num_classes
    return MeasuredRun(
        run,
        {index[step]: NetworkAt.of(kept.network, kept.variables, data) for step, kept in networks.items()},
        config.weight_decay * N * C,
        f"{run.settings['data']}, N={N}: {config.network}, sgd",
    )


def check_starts(starts: Iterable[int], last: int) -> None:
    """Raises ValueError where a start is not a step before the last one."""
    for start in starts:
        if not 0 <= start < last:
            raise ValueError(f"start: expected a step from 0 to below steps = {last}, got {start}.")


def _check_same(recorded: Trajectory, again: Trajectory) -> None:
    for step, apart in apart_at(recorded, again).items():
        # The same bits on the same machine; elsewhere rounding grows along training.
        if not apart < 1e-2:
            raise ValueError(
                f"run: made again from its settings, W differs by {apart:.2g} of its norm at step {step}; the "
                "data or the versions are not those it was made with."
            )


def apart_at(run: Trajectory, other: Trajectory) -> dict[int, float]:
    """How far W of one run is from W of another, over its norm, at the steps that both recorded.

    It does not depend on what a run is measured on; where it differs, so does the network.
    """
    if run.states is None or other.states is None:
        return {}
    found, index = {}, {int(s): i for i, s in enumerate(np.asarray(other.observables["step"]))}
    for i, step in enumerate(np.asarray(run.observables["step"])):
        if int(step) in index:
            W, V = np.asarray(run.states.W[i]), np.asarray(other.states.W[index[int(step)]])
            if W.shape != V.shape:
                return {int(step): float("inf")}
            found[int(step)] = float(np.linalg.norm(W - V) / np.linalg.norm(W))
    return found
