"""Runs of networks to be compared: what their directory holds where that is enough, else trained again."""

import dataclasses
import tomllib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import jax
import numpy as np

from ntkcollapse._checks import check_choice
from ntkcollapse.commands._summaries import progress
from ntkcollapse.comparison import MeasuredRun, NetworkAt
from ntkcollapse.comparison.start import check_clock
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.phases import ALIGNED_ABOVE, BETWEEN_BELOW, blocks_formed, blocks_of, terminal_phase
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.training import TrainConfig, log_spaced, preset, saved_config, saved_networks, train
from ntkcollapse.trajectory import Trajectory


def load_network_run(path: Path) -> Trajectory:
    """The trajectory of a trained network, one that theory can be compared with.

    Raises:
        FileNotFoundError: no run there.
        ValueError: a run of the theory, one without kernels, of another loss than the squared one, or without a clock.
    """
    run = Trajectory.load(path)
    if not run.equation.of_network:
        raise ValueError(f"{path}: expected the run of a trained network, got one of the theory.")
    if run.kernel is None:
        raise ValueError(
            f"{path}: expected a run measured with kernels, got one without: train with --measure kappa, and at rates "
            "at which it does not diverge, where κ ends as no block kernel."
        )
    check_clock(run)
    if not run.equation.is_squared:
        loss = type(run.equation.loss).__name__
        raise ValueError(f"{path}: expected a run of the squared loss, which the theory is of, got {loss}.")
    return run


def title_of(run: Trajectory) -> str:
    """What was trained, and on what, for figures."""
    note = run.settings
    parts = [str(note[name]) for name in ("network", "optimizer") if name in note]
    return f"{note.get('data', 'data of its own')}, N={run.training_classes.num_samples}: {', '.join(parts)}"


def overview_title(run: Trajectory) -> str:
    """What was trained on what, in words."""
    note, data = run.settings, str(run.settings.get("data", "data of its own")).removesuffix("/train")
    size = f" of {note['parameters']:,} parameters" if "parameters" in note else ""
    return f"{note.get('network', 'a network')}{size} on {run.training_classes.num_samples:,} samples of {data}"


def training_settings(path: Path) -> TrainConfig:
    """The settings that train the network of a run again.

    Raises:
        ValueError: none there, or such as were cut or damaged.
    """
    file = RunDirectory(path).settings
    try:
        values = tomllib.loads(file.read_text()) if file.exists() else {}
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file}: expected the settings of a run, could not read them: {error}.") from error
    if {"per_class", "widths", "learning_rate", "steps", "seed"} <= values.keys():
        # `compare` of earlier versions trained a network of its own kind.
        return dataclasses.replace(
            preset("digits"),
            per_class=values["per_class"],
            network_options=(f"widths=({','.join(map(str, values['widths']))})",),
            learning_rate=values["learning_rate"],
            epochs=values["steps"],
            seed=values["seed"],
        )
    if values and "epochs" not in values:
        raise ValueError(f"{file}: expected the settings of `train`, got some without epochs; put them back.")
    return saved_config(path)


def can_be_trained_again(path: Path, run: Trajectory) -> bool:
    """Whether the settings of a run are there, and know everything that it was made of."""
    return RunDirectory(path).settings.exists() and not run.equation.own


def has_batch_norm(config: TrainConfig) -> bool:
    """Whether the network that these settings name normalises by batches; nothing is trained."""
    data = config.build_splits().train
    network = config.build_network(data.classes.num_classes)
    inputs = jax.ShapeDtypeStruct(data.inputs[:2].shape, data.inputs.dtype)
    return bool(jax.eval_shape(network.init, jax.random.key(0), inputs).batch_stats)


def last_step(config: TrainConfig) -> int:
    """The step that a run of these settings ends at."""
    return config.epochs * config.build_batches(config.build_splits().train.classes).per_epoch


def check_starts(starts: Iterable[int], last: int) -> None:
    """Raises ValueError where a start is not a step before the last one."""
    for start in starts:
        if not 0 <= start < last:
            raise ValueError(f"start: expected a step from 0 to below steps = {last}, got {start}.")


def chosen_start(run: Trajectory, word: str) -> tuple[int, str]:
    """The step that 'terminal' or 'auto' means in a run, and why.

    Raises:
        ValueError: another word; or 'terminal' of a run in which blocks do not form before its last record.
    """
    check_choice("start", word, ("terminal", "auto"))
    steps = [int(step) for step in np.asarray(run["step"])]
    blocks, terminal = blocks_formed(run), terminal_phase(run)
    record = None if blocks is None or terminal is None else max(blocks, terminal)
    if record is not None and terminal is not None and record < len(steps) - 1:
        kernel = blocks_of(run)
        assert kernel is not None
        return steps[record], (
            f"every training sample is right from step {steps[terminal]} on, and from step {steps[record]} on the "
            f"kernel of the features is one of blocks: κ_n/κ_c = {kernel.between[record] / kernel.within[record]:.2g} "
            f"(below {BETWEEN_BELOW:g}), alignment with the labels {kernel.alignment[record]:.2g} (above "
            f"{ALIGNED_ABOVE:g})"
        )
    missing = "a terminal phase" if terminal is None else "blocks that last"
    if word == "terminal":
        raise ValueError(
            f"start: expected a run whose feature kernel becomes one of blocks, got one without {missing}; name a "
            "step, or take 'auto'."
        )
    before = steps[:-1] or steps
    step = before[int(np.argmin(np.abs(np.log1p(before) - np.log1p(steps[-1] / 100))))]
    return step, f"a hundredth of the run, which does not show {missing}"


def compared_steps(steps: Sequence[int], records: int, start: int = 0) -> set[int]:
    """The steps that a run recorded from a start on; of more than `records`, so many, log-spaced since the start."""
    after = [step for step in steps if step >= start]
    if len(after) <= records:
        return set(after)
    wanted = start + np.unique(np.rint(np.geomspace(1, after[-1] - start, records)).astype(int))
    nearest = (min(after, key=lambda s: abs(np.log1p(s - start) - np.log1p(w - start))) for w in wanted)
    return {after[0], after[-1], *nearest}


def placed_steps(start: int, last: int, records: int) -> set[int]:
    """The start, the end, and steps between them that are log-spaced since the start: for a run that is made again."""
    return {start + step for step in log_spaced(last - start, records)}


def lacks(path: Path, run: Trajectory, *, at: Collection[int], networks_at: Collection[int]) -> str:
    """Why a run has to be trained again to be compared at these steps; empty where it has not, or cannot be."""
    if not can_be_trained_again(path, run):
        return ""
    config = training_settings(path)
    kept = saved_networks(config, path) if networks_at else {}
    return _missing(run, config, at, set(networks_at) - kept.keys())


def measured_run(path: Path, run: Trajectory, *, at: Collection[int], networks_at: Collection[int] = ()) -> MeasuredRun:
    """A run measured on its whole training set at these steps, with its network at some of them.

    What is in its directory is taken where it is enough. Otherwise the network is trained again from its settings, of
    which a run is a function, and a line says why.

    Args:
        path: the directory; run: the trajectory in it.
        at: steps to compare at; networks_at: steps at which the network itself is needed.
    Raises:
        ValueError: a run that its settings do not make again, and that lacks something; or a network that does not come
            out as it was recorded.
    """
    config = training_settings(path) if can_be_trained_again(path, run) else None
    kept = saved_networks(config, path) if config is not None and networks_at else {}
    why = _missing(run, config, at, set(networks_at) - kept.keys())
    if why and config is None:
        raise ValueError(_cannot_be_trained_again(path, run, at))
    if why:
        print(f"{path}: trained again to be compared, since {why}\n")
        return train_again(path, run, at=at, networks_at=networks_at)
    if config is None or not networks_at:
        return MeasuredRun(run, {}).at_steps(at)
    data = config.build_splits().train
    return MeasuredRun.of(run, {step: kept[step] for step in networks_at}, data).at_steps(at)


def sample_kernels(
    path: Path, run: Trajectory, records: Iterable[int], per_class: int = 10
) -> dict[int, np.ndarray] | None:
    """Feature kernels of the first samples of each class at some records; None where their networks were not kept."""
    if not can_be_trained_again(path, run):
        return None
    config = training_settings(path)
    steps = {record: int(run["step"][record]) for record in records}
    kept = saved_networks(config, path)
    if not set(steps.values()) <= kept.keys():
        return None
    data = config.build_splits().train
    some = data.balanced(min(per_class, *data.classes.sizes))
    return {
        record: np.asarray(NetworkAt.of(*kept[step], some).feature_kernel(outputs="mean"))
        for record, step in steps.items()
    }


def train_again(path: Path, run: Trajectory, *, at: Collection[int], networks_at: Collection[int] = ()) -> MeasuredRun:
    """The run of a directory trained again from its settings, as `train_measured`.

    One that was interrupted is trained to the end of the epoch that it came to, not to the one it was to reach.

    Raises:
        ValueError: a network that does not come out as it was recorded.
    """
    config, last = training_settings(path), int(np.asarray(run["step"])[-1])
    epochs = max(1, -(-last * config.epochs // last_step(config)))
    again = train_measured(dataclasses.replace(config, epochs=epochs), at={*at, last}, networks_at=networks_at)
    for step, apart in apart_at(run, again.trajectory).items():
        # The same bits on the same machine; elsewhere rounding grows along training.
        if not apart < 1e-2:
            raise ValueError(
                f"run: made again from its settings, W differs by {apart:.2g} of its norm at step {step}; the "
                "data or the versions are not those it was made with."
            )
    return again


def train_measured(config: TrainConfig, *, at: Iterable[int], networks_at: Iterable[int]) -> MeasuredRun:
    """Trains as the settings say, measures what a comparison needs, and keeps the network at some steps.

    The run is measured on its whole training set, at the steps `at` and at the last one. Batch normalisation is
    evaluated with the statistics of the whole set in one batch, whatever the run's own batches are: the rungs that let
    statistics move take them so.
    """
    networks_at = sorted(set(networks_at))
    config = dataclasses.replace(
        config,
        probe_per_class=0,
        measure=("kappa", "gamma", "last-layer"),
        measure_every=0,
        measure_log=0,
        measure_steps=tuple(sorted({*at, *networks_at})),
        measure_on="probe",
        keep_states=True,
        recompute_statistics=True,
    )
    run, networks = train(config, keep_networks_at=networks_at, statistics_batch_size=0, progress=progress())
    return MeasuredRun.of(run, networks, config.build_splits().train)


def apart_at(run: Trajectory, other: Trajectory) -> dict[int, float]:
    """‖W − W'‖ / ‖W‖ of two runs at the steps that both recorded; {} where one of them kept no W.

    It does not depend on what a run is measured on; where it differs, so does the network.
    """
    if not (isinstance(run.states, LastLayer) and isinstance(other.states, LastLayer)):
        return {}
    apart, record = {}, {int(step): i for i, step in enumerate(np.asarray(other["step"]))}
    for i, step in enumerate(map(int, np.asarray(run["step"]))):
        if step in record:
            W, V = np.asarray(run.states.W[i]), np.asarray(other.states.W[record[step]])
            if W.shape != V.shape:
                return {step: float("inf")}
            apart[step] = float(np.linalg.norm(W - V) / np.linalg.norm(W))
    return apart


def _missing(run: Trajectory, config: TrainConfig | None, at: Collection[int], without_network: Collection[int]) -> str:
    """What a comparison at these steps misses in a run as it was recorded; empty where nothing."""
    not_measured = sorted(set(at) - set(map(int, np.asarray(run["step"]))))
    if not isinstance(run.states, LastLayer):
        return "it kept no states"
    if run.on_a_probe:
        return f"it was measured on {run.classes.num_samples} of its {run.training_classes.num_samples} samples"
    if not_measured:
        return f"it was not measured at step {not_measured[0]}"
    if without_network:
        return f"its network was not kept at step {min(without_network)}"
    # The rungs that let batch statistics move take those of the whole set in one batch.
    if config is not None and not (config.recompute_statistics and config.batch_size == 0) and has_batch_norm(config):
        return "its batch statistics were not those of its whole training set"
    return ""


def _cannot_be_trained_again(path: Path, run: Trajectory, at: Collection[int]) -> str:
    steps = [int(step) for step in np.asarray(run["step"])]
    lost = sorted(set(at) - set(steps))
    if lost:
        some = ", ".join(map(str, steps[:8])) + (", ..." if len(steps) > 8 else "")
        return f"start: expected a recorded step of a run that cannot be made again, among {some}; got {lost}."
    return (
        f"{path}: expected a run that its settings make again, got one whose network or data were given from "
        f"Python, or without its {RunDirectory(path).settings.name}; climb from Python with its "
        "network, comparison.MeasuredRun.load(run, network, data), or name rungs that need none: --rungs block-frozen "
        "block-path."
    )
