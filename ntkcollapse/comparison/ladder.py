"""The ladder: one measured run beside predictions under assumptions from strong to weak."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ntkcollapse._arrays import as_array, module_of
from ntkcollapse._checks import check_choice
from ntkcollapse.classes import Classes
from ntkcollapse.collapse.nc4 import nearest_class_mean
from ntkcollapse.comparison.rungs import RUNGS
from ntkcollapse.comparison.rungs._course import Course
from ntkcollapse.comparison.start import MeasuredStart
from ntkcollapse.equation import Equation
from ntkcollapse.kernel_path import KernelPath
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.observable_table import Observable, group, metrics
from ntkcollapse.observables import Observables, block_observables, observe
from ntkcollapse.sample_kernel import SampleKernel
from ntkcollapse.trajectory import Trajectory


class Ladder(NamedTuple):
    """A measured run from its start on, and what each rung says of it, all observed alike at the same times.

    network: the run from the start on; rungs: name → prediction; failures: name → why a rung is missing;
    homogeneity, weight_decay: of the start that all rungs were climbed from, see `MeasuredStart`;
    batch_norm: whether the network has batch statistics.
    """

    network: Trajectory
    rungs: dict[str, Trajectory]
    failures: dict[str, str]
    homogeneity: float = 0.0
    weight_decay: float = 0.0
    batch_norm: bool = False


def climb(
    start: MeasuredStart,
    rungs: Sequence[str] | None = None,
    *,
    options: dict[str, dict[str, Any]] | None = None,
    throw: bool = False,
    keep_states: bool = False,
    on_rung: Callable[[str], None] | None = None,
) -> Ladder:
    """Predictions of the rungs named, observed as the network was.

    Every rung is observed with the run's own measured block kernel κ(t) at the same time, so that the invariant means
    the same for all of them: rung 1 conserves it under its frozen kernel, which is not this one.

    Args:
        start: of the prediction.
        rungs: names of `RUNGS`; by default all that the start has what they need for.
        options: rung → options of its own (tolerances, step, number of groups, method).
        throw: whether a rung that fails or does not fit into memory raises; it is named in `failures` otherwise.
        keep_states: whether trajectories keep H, W and b (T n N numbers a rung).
        on_rung: called with the name before each rung.
    Raises:
        ValueError: an unknown rung, what `MeasuredStart` says is missing, or options that a rung refuses. A measured
            kernel that a rung cannot take (one that is singular, say) is a failure like the others.
    """
    if rungs is None:
        rungs = available_rungs(start)
    found, failures = {}, {}
    for name in rungs:
        check_choice("rungs", name, RUNGS)
        if on_rung is not None:
            on_rung(name)
        try:
            course = RUNGS[name].predict(start, start.times, **(options or {}).get(name, {}))
        except (MemoryError, RuntimeError, ValueError) as error:
            # What the start lacks, and options that a rung refuses, are the caller's.
            asked_for = name in (options or {}) or start.lacks(RUNGS[name].needs)
            if throw or (isinstance(error, ValueError) and asked_for):
                raise
            failures[name] = str(error)
            continue
        found[name] = observed(course, start, name, keep_states=keep_states)
        if len(course.times) < len(start.times):
            failures[name] = f"stopped at t = {float(course.times[-1]):.6g}"
    return Ladder(
        network=start.network_run,
        rungs=found,
        failures=failures,
        homogeneity=start.homogeneity,
        weight_decay=start.weight_decay,
        batch_norm=not start.lacks("batch statistics"),
    )


def joined(ladder: Ladder | None, more: Ladder) -> Ladder:
    """A ladder with the rungs of another one from the same start, in their order; the new ones count.

    The network is that of the first. A failure stands until its rung is there to the end.
    """
    if ladder is None:
        return more
    rungs = ladder.rungs | more.rungs
    failures = {name: why for name, why in ladder.failures.items() if name not in more.rungs} | more.failures
    batch_norm = ladder.batch_norm or more.batch_norm
    in_order = {name: rungs[name] for name in RUNGS.in_order(rungs)}
    return ladder._replace(rungs=in_order, failures=failures, batch_norm=batch_norm)


def available_rungs(start: MeasuredStart) -> tuple[str, ...]:
    """The rungs that a start has what they need for, in the ladder's order."""
    return tuple(name for name, rung in RUNGS.items() if not start.lacks(rung.needs))


def observed(course: Course, start: MeasuredStart, name: str, *, keep_states: bool = False) -> Trajectory:
    """A rung's states as a trajectory of the same observables as the network's."""
    run = start.run
    assert run.kernel is not None
    logits = course.logits
    if logits is None:
        W, H, b = map(module_of(course.W, course.H).asarray, (course.W, course.H, course.b))
        logits = as_array(W @ H + b[:, :, None])
    states = (course.H, course.W, course.b)
    observables = _observe(states, logits, run.kernel, course.times, start.classes, metrics(along_runs=True))
    # The measured κ goes into the invariant alone; what stands beside it is the rung's own kernel, where it has one.
    observables = {k: v for k, v in observables.items() if not k.startswith("kappa_")}
    if course.kernel is not None:
        means = _block_means(course.kernel, course.times, start.classes)
        observables |= block_observables(means)
    return Trajectory(
        course.times,
        observables,
        start.classes,
        states=LastLayer.stacked(course.H, course.W, course.b) if keep_states else None,
        statistics=course.statistics,
        equation=Equation(**start.flow_options),
        settings={
            "rung": name,
            "number": RUNGS[name].number,
            "label": RUNGS[name].label,
            "start": start.index,
            "weight_decay": start.weight_decay,
            "homogeneity": start.homogeneity,
            "of": run.settings,
        },
    )


@eqx.filter_jit
def _observe(states, logits, kernel, times, classes: Classes, entries: tuple[Observable, ...]) -> Observables:
    def at(inputs):
        (H, W, b), f, t = inputs
        seen = observe(LastLayer(H=H, W=W, b=b), classes, kernel.at(t), metrics=entries)
        R = f - classes.Y
        norms = [jnp.linalg.norm(part) for part in classes.parts(R)]
        seen |= dict(zip(group("Residual parts"), norms, strict=True))
        decided = jnp.argmax(f, axis=0)
        mismatch = decided != nearest_class_mean(H, classes.means(H))
        return seen | {
            "loss": jnp.sum(jnp.square(R)) / 2,
            "accuracy": jnp.mean((decided == classes.labels).astype(f.dtype)),
            "nc4_mismatch": jnp.mean(mismatch.astype(f.dtype)),
        }

    return jax.lax.map(at, (states, logits, times))


@eqx.filter_jit
def _block_means(kernel: SampleKernel | KernelPath, times, classes: Classes):
    return jax.lax.map(lambda t: kernel.at(t).block_means(classes), times)


def step_of(run: Trajectory, index: int) -> int | None:
    """The optimiser step of a record, where the run says so."""
    return int(np.asarray(run.observables["step"])[index]) if "step" in run.observables else None
