"""A trajectory comes back from its file as it was, and nothing that is saved gets lost."""

import importlib.metadata

import equinox as eqx
import h5netcdf
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import ntkcollapse as nc
from ntkcollapse import (
    BlockKernel,
    Classes,
    Clock,
    CrossEntropy,
    DenseKernel,
    Equation,
    GroupedKernel,
    KernelPath,
    LastLayer,
    Loss,
    SquaredError,
    Staircase,
    Trajectory,
    load,
    simulate,
    trajectory,
)
from tests.cases import UNEQUAL, kernels, random_state

TIMES = np.array([0.0, 0.5, 2.0])
BALANCED = Classes.balanced(3, 4)


def record(kernel=None, **more) -> Trajectory:
    rng = np.random.default_rng(0)
    N, C = UNEQUAL.num_samples, UNEQUAL.num_classes
    states = LastLayer.stacked(rng.normal(size=(3, 5, N)), rng.normal(size=(3, C, 5)), rng.normal(size=(3, C)))
    return Trajectory(
        TIMES,
        {"loss": np.array([3.0, 2.0, 1.0]), "profile": rng.normal(size=(3, 4))},
        UNEQUAL,
        **{"states": states, "kernel": kernel, "settings": {"seed": 3, "nested": {"rate": 0.1}}, **more},
    )


def grouped(scale: float) -> GroupedKernel:
    """Kernels that differ in size only, so that a path through them has one basis."""
    base = GroupedKernel.from_matrix(np.eye(9), UNEQUAL, groups=2)
    return eqx.tree_at(lambda k: (k.gram, k.rates), base, (scale * base.gram, scale * base.rates))


@pytest.mark.parametrize(
    "kernel",
    [
        None,
        BlockKernel(3.0, 2.0, 0.6),
        *kernels(UNEQUAL).values(),
        KernelPath(TIMES, diagonal=[3.0, 4.0, 5.0], within=[1.0, 1.0, 2.0], between=[0.1, 0.1, 0.1]),
        KernelPath.of(TIMES, [DenseKernel(np.eye(9) * s) for s in (1.0, 2.0, 3.0)]),
        KernelPath.of(TIMES, [grouped(s) for s in (1.0, 2.0, 3.0)]),
    ],
    ids=lambda k: type(k).__name__,
)
def test_saved_and_loaded(tmp_path, kernel):
    run = record(kernel, statistics={"num_steps": 7}, deviations=np.ones((5, 9)))
    run.save(tmp_path / "run")
    again = Trajectory.load(tmp_path / "run")
    assert jax.tree.structure(run) == jax.tree.structure(again)
    for a, b in zip(jax.tree.leaves(run), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
        assert jnp.result_type(a) == jnp.result_type(b)
    assert again.settings == {"seed": 3, "nested": {"rate": 0.1}}


def test_other_tools_read_it(tmp_path):
    file = record().save(tmp_path)
    with xr.open_dataset(file) as data:
        np.testing.assert_array_equal(data["observable__loss"], [3.0, 2.0, 1.0])
        assert data["state__W"].dims == ("time", "class", "feature")


def test_nothing_saved_is_overwritten_or_half_written(tmp_path, monkeypatch):
    run = record()
    file = run.save(tmp_path)
    before = file.read_bytes()
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        run.save(tmp_path)

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h5py.Group, "create_dataset", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run.save(tmp_path, overwrite=True)
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["trajectory.nc"]


def test_bad_records_and_files_say_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"observables\['loss'\]: expected shape \(3\)"):
        Trajectory(TIMES, {"loss": np.zeros(2)}, UNEQUAL)
    with pytest.raises(ValueError, match=r"states\.H: expected shape \(3, any, 9\), \(time, feature, sample\)"):
        Trajectory(
            TIMES, {}, UNEQUAL, states=LastLayer.stacked(np.zeros((3, 5, 8)), np.zeros((3, 3, 5)), np.zeros((3, 3)))
        )
    with pytest.raises(
        TypeError, match=r"states: expected a LastLayer or a ReducedState .* got a dict; LastLayer.stacked"
    ):
        record(states={"H": np.zeros((3, 5, 9))})
    with pytest.raises(ValueError, match="strictly increasing"):
        Trajectory(TIMES[::-1].copy(), {}, UNEQUAL)
    with pytest.raises(ValueError, match=r"Did you mean 'loss'"):
        record()["los"]
    with pytest.raises(ValueError, match="observables only"):
        Trajectory(TIMES, {"loss": np.zeros(3)}, Classes(sizes=(1, 1))).last_layer(0)
    with pytest.raises(FileNotFoundError, match="no trajectory here"):
        Trajectory.load(tmp_path)
    (tmp_path / "trajectory.nc").write_bytes(b"not netCDF")
    with pytest.raises(ValueError, match=r"trajectory.nc: expected a netCDF file"):
        Trajectory.load(tmp_path)
    xr.Dataset({"x": 1}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="got another one"):
        Trajectory.load(tmp_path / "other.nc")


def test_what_runs_from_its_sources_says_its_version(monkeypatch):
    known = importlib.metadata.version

    def missing(name):
        if name in ("ntkcollapse", "diffrax"):
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    versions = trajectory._installed.__wrapped__()
    assert versions["ntkcollapse"] == nc.__version__
    assert versions["numpy"] == np.__version__
    assert "diffrax" not in versions


def test_a_file_keeps_the_versions_that_computed_it(tmp_path):
    """Not those of the process that reads or writes it again."""
    classes = Classes.balanced(num_classes=2, per_class=3)
    run = Trajectory(np.arange(2.0), {"loss": np.ones(2)}, classes, versions={"jax": "0.0.1"})
    run.save(tmp_path / "first")
    Trajectory.load(tmp_path / "first").save(tmp_path / "second")
    assert Trajectory.load(tmp_path / "second").versions == {"jax": "0.0.1"}
    assert Trajectory(np.arange(2.0), {}, classes).versions["numpy"] == np.__version__


class Hinge(Loss):
    scale: float = 1.0

    def value(self, f, Y):
        return (f * Y).sum()

    def gradient(self, f, Y):
        return Y


EQUATIONS = {
    "theorem": Equation(loss=SquaredError(0.5), weight_decay={"H": 0.1, "W": 0.2}, bias="absent", plain=False),
    "network": Equation(
        producer="network",
        weight_decay={"W": 0.36},
        clock=Clock(Staircase(0.3, 0.1, 120), 1 / 36, 0.9, True),
        training_classes=Classes(sizes=(4, 5, 6)),
        own=("data",),
    ),
    "without clock": Equation(producer="network", loss=CrossEntropy(), without_clock="adam rescales gradients"),
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_a_file_keeps_the_equation(tmp_path, name):
    record(equation=EQUATIONS[name], names={"profile": list("abcd")}).save(tmp_path)
    again = Trajectory.load(tmp_path)
    assert jax.tree.structure(again.equation) == jax.tree.structure(EQUATIONS[name])
    for a, b in zip(jax.tree.leaves(again.equation), jax.tree.leaves(EQUATIONS[name]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.names == {"profile": list("abcd")}


def test_of_a_loss_of_ones_own_a_file_keeps_the_name(tmp_path):
    run = record(equation=Equation(loss=Hinge()))
    assert not run.equation.is_squared
    run.save(tmp_path)
    again = Trajectory.load(tmp_path).equation
    assert not again.is_squared
    with pytest.raises(ValueError, match="loss: expected Hinge itself, got a file that keeps its name only"):
        again.loss.value(jnp.zeros((3, 9)), jnp.zeros((3, 9)))
    # Saved once more, it is still known by its name.
    Trajectory.load(tmp_path).save(tmp_path / "again")
    assert Trajectory.load(tmp_path / "again").equation.loss == again.loss


def test_bad_equations_do_not_build():
    with pytest.raises(ValueError, match=r"producer: expected one of .*; got 'networks'. Did you mean"):
        Equation(producer="networks")
    with pytest.raises(ValueError, match="weight_decay: expected numbers zero or above"):
        Equation(weight_decay=-1.0)
    with pytest.raises(ValueError, match=r"loss: expected one of 'squared', 'cross-entropy'; got 'crossentropy'"):
        Equation(loss="crossentropy")
    with pytest.raises(ValueError, match="equation: expected the keys"):
        Equation.from_mapping(Equation().as_mapping() | {"weight_decai": 0.1})


# What files of before say in their settings, and what it means.
EARLIER = {
    "trained": (
        {
            "producer": "network", "loss": "squared", "clock": "flow", "scale": 1 / 36, "weight_decay": 0.01,
            "learning_rate": 0.3, "momentum": 0.9, "nesterov": True, "decay_every": 2, "decay_factor": 0.1,
            "steps_per_epoch": 60, "training_samples": 15, "training_class_sizes": [4, 5, 6], "bias": True,
            "own_data": "mine", "names": {"profile": ["a", "b", "c", "d"]},
        },
        EQUATIONS["network"],
    ),
    "theory": (
        {
            "producer": "theory", "loss": "SquaredError", "scale": 0.5, "bias": "absent", "plain": False,
            "weight_decay": {"H": 0.1, "W": 0.2, "b": 0.0},
        },
        EQUATIONS["theorem"],
    ),
    "adam": (
        {
            "producer": "network", "loss": "cross-entropy", "clock": "steps", "weight_decay": 0.0, "bias": True,
            "without_clock": "adam rescales gradients", "scale": 1 / 9, "learning_rate": 0.1,
        },
        EQUATIONS["without clock"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EARLIER)
def test_files_of_before_load(tmp_path, name):
    settings, equation = EARLIER[name]
    file = record(settings=settings).save(tmp_path)
    with h5netcdf.File(file, "a") as data:
        del data.attrs["equation"], data.attrs["names"], data.attrs["sha256"]
    again = Trajectory.load(tmp_path)
    assert jax.tree.structure(again.equation) == jax.tree.structure(equation)
    np.testing.assert_allclose(jax.tree.leaves(again.equation), jax.tree.leaves(equation))
    assert again.names == settings.get("names", {})


def test_one_flipped_bit_is_seen(tmp_path):
    """In the numbers of an observable, of a state and of the kernel, and in the equation."""
    kappa = BlockKernel(3.0, 2.0, 0.625)
    run = record(kappa)
    file = run.save(tmp_path)
    whole = file.read_bytes()
    patterns = {
        "observable": np.asarray(run["loss"], "<f8").tobytes(),
        "state": np.asarray(run.states.W, "<f8").tobytes()[:64],
        "kernel": np.asarray(kappa.between, "<f8").tobytes(),
        "equation": b'"producer": "theory"',
    }
    for part, pattern in patterns.items():
        at = whole.find(pattern)
        assert at >= 0, part
        damaged = bytearray(whole)
        damaged[at + len(pattern) // 2] ^= 0b100
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"trajectory\.nc: expected a netCDF file of Trajectory\.save"):
            Trajectory.load(tmp_path)
    file.write_bytes(whole)
    assert Trajectory.load(tmp_path).times.shape == (3,)


@pytest.mark.parametrize("what", ["an array removed", "another kernel", "classes in another order", "a key lost"])
def test_a_file_that_was_changed_is_refused(tmp_path, what):
    file = record(BlockKernel(3.0, 2.0, 0.6)).save(tmp_path)
    if what == "an array removed":
        with h5py.File(file, "a") as data:
            del data["observable__loss"]
    with h5netcdf.File(file, "a") as data:
        if what == "another kernel":
            data.attrs["kernel"] = "DenseKernel"
        elif what == "classes in another order":
            data.variables["class_sizes"][:] = np.asarray(UNEQUAL.sizes)[::-1]
        elif what == "a key lost":
            del data.attrs["versions"]
    with pytest.raises(ValueError, match=r"trajectory\.nc: expected a netCDF file of Trajectory\.save"):
        Trajectory.load(tmp_path)


def test_every_cut_of_a_file_is_refused(tmp_path):
    whole = record().save(tmp_path).read_bytes()
    for length in np.linspace(0, len(whole) - 1, 40).astype(int):
        (tmp_path / "trajectory.nc").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"trajectory\.nc: expected a netCDF file"):
            Trajectory.load(tmp_path)


def test_a_full_disk_is_an_error_and_leaves_what_was_there(tmp_path, monkeypatch):
    run = record()
    before = run.save(tmp_path).read_bytes()

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        run.save(tmp_path, overwrite=True)
    assert (tmp_path / "trajectory.nc").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["trajectory.nc"]


def test_half_precision_is_kept_exactly(tmp_path):
    for kind in (jnp.bfloat16, jnp.float16):
        values = jnp.asarray([1.0, 0.333, 1e-3], kind)
        Trajectory(TIMES, {"mine": values}, UNEQUAL).save(tmp_path / kind.__name__)
        again = Trajectory.load(tmp_path / kind.__name__)
        np.testing.assert_array_equal(again["mine"], values.astype(jnp.float32))


@pytest.mark.parametrize("name", ["layer/norm", "layer__norm"])
def test_names_that_files_would_confuse_are_refused(name):
    with pytest.raises(ValueError, match="observables: expected names without '/' and '__'"):
        Trajectory(TIMES, {name: np.zeros(3)}, UNEQUAL)


def test_a_trajectory_is_a_mapping_of_its_observables(tmp_path):
    run = simulate(random_state(5, BALANCED), BlockKernel(3.0, 2.0, 0.6), BALANCED, [0.0, 0.5, 2.0])
    assert ("loss" in run, "lost" in run) == (True, False)
    assert list(run) == list(run.keys()) == list(run.observables)
    np.testing.assert_array_equal(dict(run)["loss"], run["loss"])
    with pytest.raises(KeyError, match=r"^observable: expected .*Did you mean 'loss'\?$"):
        run["los"]

    frame = run.to_dataframe()
    np.testing.assert_array_equal(frame.index, run.times)
    np.testing.assert_array_equal(frame["nc1_tirer2022"], run["nc1_tirer2022"])
    assert set(frame) == {name for name, value in run.items() if value.ndim == 1}
    # Read back by another library's reader: every digit.
    file = run.to_csv(tmp_path / "tables" / "run.csv")
    header, *rows = file.read_text().splitlines()
    at = header.split(",").index("loss")
    assert header.startswith("time,")
    assert [float(row.split(",")[at]) for row in rows] == [float(x) for x in run["loss"]]
    with pytest.raises(FileExistsError, match=r"run\.csv exists"):
        run.to_csv(file)

    data = run.to_dataset()
    assert set(data) == {*run.keys(), "M", "P", "W", "b"}
    np.testing.assert_array_equal(data["W"].sel(time=0.5), run.states.W[1])
    assert data["loss"].attrs["units"] == run._stored()["observable__loss"].attrs["units"]
    run.save(tmp_path)
    np.testing.assert_array_equal(load(tmp_path)["loss"], run["loss"])


def test_a_printed_trajectory_shows_its_sizes_and_numbers():
    run = simulate(random_state(5, BALANCED), BlockKernel(3.0, 2.0, 0.6), BALANCED, [0.0, 0.5, 2.0])
    lines = str(run).splitlines()
    assert lines[0] == "Trajectory of 3 records, t = 0 to 2"
    assert lines[1].split() == "classes 3 of 4 samples".split()
    told = {line.split()[0]: line.split()[1:] for line in lines[4:-1]}
    assert told["loss"] == [f"{run['loss'][0]:.4g}", "->", f"{run['loss'][-1]:.4g}"]
    assert {"nc1_tirer2022", "nc2_seleznova2023", "nc3_seleznova2023"} <= set(told)
    # Of several runs at once, of shapes, and within transformations there are no numbers to show.
    several = jax.tree.map(lambda x: jnp.stack([x, x]), run)
    for other in (several, jax.eval_shape(lambda: run), jax.tree.map(lambda x: None, run)):
        assert str(other).startswith("Trajectory(")
    assert jax.vmap(lambda x: (str(run.replaced(times=run.times * x)), x)[1])(jnp.ones(1)).tolist() == [1.0]
