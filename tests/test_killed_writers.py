"""Whatever is written is there as it was or as it is to be, wherever its writer is killed, and on a full disk."""

import subprocess
from contextlib import suppress

import numpy as np
import pytest
from matplotlib.figure import Figure

from ntkcollapse import Classes, Trajectory, _netcdf
from ntkcollapse._files import replacing
from ntkcollapse.checkpoints import Checkpoints
from ntkcollapse.commands.settings import SimulateConfig
from ntkcollapse.comparison import Ladder, load_ladders, save_ladders
from ntkcollapse.ntk._partial import PartialResults
from ntkcollapse.plots import save
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.training.sweep import _write
from tests.killed import killed_at_each_step, killed_while_writing, said_of_a_full_disk

# The killed process draws its figures, and so must what it is compared with.
pytestmark = pytest.mark.drawn


def _run(loss: float) -> Trajectory:
    return Trajectory(np.arange(300.0), {"loss": np.full(300, loss)}, Classes((2, 2)))


RUNS = {loss: _run(loss) for loss in (1.0, 2.0)}
LADDERS = {loss: {3: Ladder(network=run, rungs={}, failures={})} for loss, run in RUNS.items()}
# Written in a forked process, where JAX must not compute.
FILES = {loss: run._stored() for loss, run in RUNS.items()}


class Trajectories:
    """Of a run that goes on: the file alone is replaced."""

    name = "trajectory.nc"

    def write(self, path, value):
        path.mkdir(exist_ok=True)
        _netcdf.write(path / self.name, {"/": FILES[value]})

    def read(self, path):
        return float(Trajectory.load(path)["loss"][-1])


class Simulations:
    """`simulate --overwrite`: the pair of settings and trajectory."""

    name = "trajectory.nc"

    def write(self, path, value):
        RunDirectory(path).put(SimulateConfig(scale=value), lambda folder: Trajectories().write(folder, value))

    def read(self, path):
        loss, directory = Trajectories().read(path), RunDirectory(path)
        assert directory.is_ours
        # A trajectory may have lost its settings, and never has those of another.
        assert not directory.settings.exists() or directory.read_settings(SimulateConfig).scale == loss
        return loss


class Comparisons:
    name = "comparison.nc"

    def write(self, path, value):
        path.mkdir(exist_ok=True)
        save_ladders(path, LADDERS[value])

    def read(self, path):
        return float(load_ladders(path)[3].network["loss"][-1])


class Steps:
    """Checkpoints: the newest that can be read."""

    name = "checkpoints"

    def write(self, path, value):
        Checkpoints(RunDirectory(path).checkpoints).save(int(value), {"x": np.full(5000, value)}, {"of": value})

    def read(self, path):
        saved = Checkpoints(RunDirectory(path).checkpoints).newest()
        assert saved is not None
        assert (saved.arrays["x"] == saved.notes["of"]).all()
        return saved.notes["of"]


class Kernels:
    """What is finished of an NTK."""

    name = "kernel.npz"

    def write(self, path, value):
        partial = PartialResults(path, lambda: "this work")
        partial.save("kernel", int(value), lambda: [np.full(5000, value)], at_once=True)

    def read(self, path):
        done, (array,) = PartialResults(path, lambda: "this work").load("kernel")
        assert (array == done).all()
        return done


class Settings:
    name = "config.toml"

    def write(self, path, value):
        RunDirectory(path).begin(SimulateConfig(scale=value, parameters=("x" * 9000,)))

    def read(self, path):
        return RunDirectory(path).read_settings(SimulateConfig).scale


class Statuses:
    name = "status.json"

    def write(self, path, value):
        path.mkdir(exist_ok=True)
        RunDirectory(path).write_status(outcome="running", step=value, more="x" * 9000)

    def read(self, path):
        return RunDirectory(path).read_status()["step"]


class Summaries:
    name = "summary.csv"

    def write(self, path, value):
        path.mkdir(exist_ok=True)
        _write([{"step": value}] * 3000, path)

    def read(self, path):
        first, *rows = (path / self.name).read_text().split()
        assert first == "step"
        assert len(rows) == 3000
        assert len(set(rows)) == 1
        return float(rows[0])


class Figures:
    name = "figures"

    def write(self, path, value):
        figure = Figure(figsize=(value, value))
        figure.subplots().plot(np.sin(np.arange(2000)))
        save(figure, RunDirectory(path).figure("rates"))

    def read(self, path):
        pdf, png = (RunDirectory(path).figure("rates").with_suffix(suffix) for suffix in (".pdf", ".png"))
        assert pdf.read_bytes()[-6:] == b"%%EOF\n"
        assert png.read_bytes()[-8:] == b"IEND\xaeB`\x82"
        return 1.0 if png.stat().st_size < self.middle else 2.0

    def __init__(self):
        self.middle = 0.0


class Pages:
    name = "report.html"

    def write(self, path, value):
        path.mkdir(exist_ok=True)
        with replacing(RunDirectory(path).report) as part:
            part.write_text(f"{value}" * 3000)

    def read(self, path):
        text = RunDirectory(path).report.read_text()
        assert len(text) == 9000
        return float(text[:3])


WRITERS = [Trajectories, Simulations, Comparisons, Steps, Kernels, Settings, Statuses, Summaries, Figures, Pages]


@pytest.fixture(params=WRITERS, ids=lambda kind: kind.__name__)
def writer(request, tmp_path):
    made = request.param()
    if isinstance(made, Figures):
        sizes = []
        for value in (1.0, 2.0):
            made.write(tmp_path / "sizes", value)
            sizes.append(RunDirectory(tmp_path / "sizes").figure("rates").with_suffix(".png").stat().st_size)
        made.middle = sum(sizes) / 2
    return made


def test_killed_at_each_step(writer, tmp_path):
    path = tmp_path / "run"
    writer.write(path, 1.0)
    values = []
    for step in killed_at_each_step(lambda: writer.write(path, 2.0)):
        values.append(writer.read(path))
        assert values[-1] in (1.0, 2.0), step
        # Whoever comes next finds no trace of it, and writes as if nothing had been.
        writer.write(path, 1.0) if writer.name != "checkpoints" else Checkpoints(path / "checkpoints").remove()
        if writer.name == "checkpoints":
            writer.write(path, 1.0)
    assert len(values) >= 3
    # The one before the last fsync has replaced the file already.
    assert values[0] == 1.0
    assert writer.read(path) == 2.0


@pytest.mark.parametrize("size", [0, 100, 2000])
def test_killed_while_writing(writer, tmp_path, size):
    path = tmp_path / "run"
    writer.write(path, 1.0)
    assert killed_while_writing(lambda: writer.write(path, 2.0), size)
    assert writer.read(path) == 1.0
    writer.write(path, 2.0)
    assert writer.read(path) == 2.0


@pytest.mark.parametrize("size", [0, 100, 2000])
def test_a_full_disk(writer, tmp_path, size):
    path = tmp_path / "run"
    writer.write(path, 1.0)
    before = {file for file in path.rglob("*") if file.is_file()}
    said = said_of_a_full_disk(lambda: writer.write(path, 2.0), size)
    assert said is not None
    assert str(path) in said
    assert writer.read(path) == 1.0
    assert {file for file in path.rglob("*") if file.is_file()} <= before


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one MiB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a disk is not permitted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_full(writer, small_disk):
    path, filler = small_disk / "run", small_disk / "filler"
    writer.write(path, 1.0)
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(512))
    with pytest.raises(OSError, match=str(path)):
        writer.write(path, 2.0)
    assert writer.read(path) == 1.0
    filler.unlink()
    writer.write(path, 2.0)
    assert writer.read(path) == 2.0
