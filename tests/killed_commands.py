"""A program that kills a command again and again, and says whether it ended as one that was left alone.

`python -m tests.killed_commands KIND FOLDER KILLS SEED`: what is killed is forked from this process, which has imported
everything and started nothing, so that kills fall into the work and not into the imports.
"""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import ntkcollapse.commands.compare
import ntkcollapse.commands.sweep
import ntkcollapse.ntk._partial
import ntkcollapse.plots
from ntkcollapse import Trajectory, ntk
from ntkcollapse.cli import main
from ntkcollapse.comparison import load_ladders
from ntkcollapse.training import train
from tests.training.settings import small

_TINY = [
    "--dataset", "orthogonal", "--dataset-options", "classes=3", "dimension=20", "--per-class", "4",
    "--test-per-class", "2", "--network", "mlp", "--network-options", "widths=(6,)", "--epochs", "30",
    "--batch-size", "0", "--measure-log", "6", "--probe-per-class", "0",
]  # fmt: skip


def _train(out: Path) -> int:
    train(small(checkpoint_seconds=0.0), out, resume=(out / "config.toml").exists())
    return 0


def _sweep(out: Path) -> int:
    return main(["sweep", *_TINY, "--out", str(out), "--seed", "0", "1", "2", "--measure", "train", "kappa"])


def _compare(out: Path) -> int:
    rungs = ["block-frozen", "block-path", "sample-frozen", "sample-path"]
    return main(["compare", str(out), "--from", "1", "4", "--rungs", *rungs])


def _prepare_compare(out: Path) -> None:
    assert main(["train", *_TINY, "--out", str(out), "--keep-networks", "1", "4", "--per-class", "4"]) == 0


def _kernel(out: Path) -> int:
    ntkcollapse.ntk._partial._SECONDS_BETWEEN_SAVES = 0.0
    ntkcollapse.ntk._partial._SHARE = 1e9
    generator = np.random.default_rng(0)
    x, w = generator.normal(size=(60, 7)), generator.normal(size=(7, 3))
    theta = ntk.empirical_ntk(lambda p, x: jax.numpy.tanh(x @ p), w, x, checkpoint=out / "partial", memory=2000)
    np.save(out / "theta.npy", np.asarray(theta))
    return 0


def _runs(out: Path) -> dict[str, Any]:
    """Everything that a folder holds of runs, comparisons and kernels, but for the time that it took."""
    kept: dict[str, Any] = {}
    for file in sorted(out.rglob("trajectory.nc")):
        run, of = Trajectory.load(file), file.parent.relative_to(out)
        kept |= {f"{of}/{k}": v for k, v in run.observables.items() if "seconds" not in k}
        kept |= {f"{of}/state{i}": leaf for i, leaf in enumerate(jax.tree.leaves(run.states))}
    for file in sorted(out.rglob("comparison.nc")):
        for step, ladder in load_ladders(file.parent).items():
            for name, run in ladder.rungs.items():
                kept |= {f"{step}/{name}/{k}": v for k, v in run.observables.items()}
    for file in out.rglob("theta.npy"):
        kept["theta"] = np.load(file)
    for file in sorted(out.rglob("figures/*")):
        # Drawn whole, and nothing of a killed process beside it.
        assert not file.name.startswith("."), file
        assert file.read_bytes()[-8:] == b"IEND\xaeB`\x82" if file.suffix == ".png" else b"%%EOF" in file.read_bytes()
        kept[f"figure {file.relative_to(out)}"] = np.ones(())
    return kept


KINDS: dict[str, tuple[Callable[[Path], int], Callable[[Path], None]]] = {
    "train": (_train, lambda out: None),
    "sweep": (_sweep, lambda out: None),
    "compare": (_compare, _prepare_compare),
    "kernel": (_kernel, lambda out: None),
}


def _apart(call: Callable[[], Any]) -> int:
    """The process that does it."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        status = call() or 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def _ended(child: int, until: float) -> bool:
    """Whether the process came to its end by then."""
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == 0, "failed by itself"
            return True
        time.sleep(0.002)
    return False


def _main(kind: str, folder: Path, kills: int, seed: int) -> None:
    from jax._src import xla_bridge

    assert not xla_bridge.backends_are_initialized()
    command, prepare = KINDS[kind]
    made, reference, generator = folder / "made", folder / "reference", random.Random(seed)
    made.mkdir()
    assert _ended(_apart(lambda: prepare(made)), time.monotonic() + 600)
    shutil.copytree(made, reference)
    began = time.monotonic()
    assert _ended(_apart(lambda: command(reference)), began + 600)
    # Again, with all compiled: how long it takes then.
    shutil.copytree(made, folder / "timed")
    began = time.monotonic()
    assert _ended(_apart(lambda: command(folder / "timed")), began + 600)
    duration, attempt, killed, times = time.monotonic() - began, 0, 0, []
    outs = []
    while killed < kills:
        out = folder / f"attempt{attempt}"
        shutil.copytree(made, out)
        outs.append(out)
        for _ in range(6):
            wait = generator.uniform(0.1, 1.0) * duration
            child = _apart(lambda out=out: command(out))
            if _ended(child, time.monotonic() + wait):
                break
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            times.append(round(wait / duration, 2))
            killed += 1
        else:
            assert _ended(_apart(lambda out=out: command(out)), time.monotonic() + 600)
        attempt += 1
    print(f"{killed} kills, at these parts of {duration:.1f} s: {times}")
    expected = _runs(reference)
    assert expected
    for out in outs:
        found = _runs(out)
        assert found.keys() == expected.keys(), (out, found.keys() ^ expected.keys())
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=f"{out}: {name}")
    print("bits identical")


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
