"""Runs that are killed at random moments end in the bits of one that was not."""

import os
import random
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from ntkcollapse.training import read_status, saved_config, saved_variables
from ntkcollapse.trajectory import Trajectory
from tests.processes import Fork
from tests.training import program


def start(out: Path) -> Fork:
    return Fork(program.run, out)


def finish(out: Path) -> None:
    with start(out) as process:
        assert process.end() == 0, process.said


def kill_at_random(out: Path, generator: random.Random) -> int | None:
    """Starts the run, and kills it some milliseconds after some step; returns that step (0: before the first).

    None where it came to its end before it could be killed.
    """
    progress = out.parent / f"{out.name}.progress"
    progress.write_text("")
    with start(out) as process:
        steps = generator.randint(0, 20)
        began = None
        while process.is_running():
            said = progress.read_text()
            if said and began is None:
                began = int(said)
            if steps == 0 or (began is not None and said and int(said) >= began + steps):
                break
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.1 if steps else 3.0))
        process.kill()
        status = process.end()
        if status == 0:
            return None
        assert status == -signal.SIGKILL, process.said
        return int(progress.read_text() or 0)


def assert_same_run(one: Path, other: Path) -> None:
    runs = [Trajectory.load(path) for path in (one, other)]
    assert runs[0].observables.keys() == runs[1].observables.keys()
    for name in runs[0].observables.keys() - {"seconds"}:
        np.testing.assert_array_equal(runs[0][name], runs[1][name], err_msg=name)
    np.testing.assert_array_equal(runs[0].times, runs[1].times)
    jax.tree.map(np.testing.assert_array_equal, runs[0].states, runs[1].states)
    states = [saved_variables(saved_config(path), path) for path in (one, other)]
    assert states[0][2] == states[1][2] == 40
    jax.tree.map(np.testing.assert_array_equal, states[0][1], states[1][1])


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "run"
    finish(out)
    return out


def killed_and_resumed(reference, tmp_path, times, seed):
    """The steps of real kills, at most `times`: a run that has come to its end has no more to be killed in."""
    generator = random.Random(seed)
    out = tmp_path / "run"
    steps = []
    while len(steps) < times and (step := kill_at_random(out, generator)) is not None:
        steps.append(step)
    finish(out)
    assert_same_run(reference, out)
    return steps


def test_killed_twice(reference, tmp_path):
    assert len(killed_and_resumed(reference, tmp_path, 2, seed=1)) == 2


@pytest.mark.slow
def test_killed_twenty_times(reference, tmp_path):
    """Twenty kills over runs that are started anew when they have come to their end."""
    kills, attempt = 0, 0
    while kills < 20:
        (tmp_path / str(attempt)).mkdir()
        steps = killed_and_resumed(reference, tmp_path / str(attempt), 4, seed=100 + attempt)
        print(f"killed after steps {steps}")
        kills += len(steps)
        attempt += 1


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(reference, tmp_path, signum):
    """In this process: one start-up less."""
    from ntkcollapse.training import Interrupted, train
    from tests.training.settings import small

    out = tmp_path / "run"
    before = signal.getsignal(signum)

    def stop_at(step: int) -> None:
        if step == 17:
            os.kill(os.getpid(), signum)

    with pytest.raises(Interrupted, match=f"{signal.Signals(signum).name} at step 17: the run was saved"):
        train(small(), out, on_step=stop_at)
    assert signal.getsignal(signum) is before
    assert read_status(out)["outcome"] == "interrupted"
    train(small(), out, resume=True)
    assert_same_run(reference, out)
