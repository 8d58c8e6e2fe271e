"""Numbers that mean nothing are refused by name before anything is computed, on the command line and in Python."""

import dataclasses
import re

import jax
import numpy as np
import pytest

import ntkcollapse as nc
from ntkcollapse import cli, data, models, simulation
from ntkcollapse.commands import COMMANDS, settings
from ntkcollapse.commands import simulate as simulate_module
from ntkcollapse.theory import fit_rate
from ntkcollapse.training import TrainConfig
from ntkcollapse.training.gradient_descent import log_spaced

# The types of arguments are checked in tests alone.
pytestmark = pytest.mark.usefixtures("as_users_call")

CLASSES = nc.Classes.balanced(3, 2)
RNG = np.random.default_rng(0)
START = nc.LastLayer(H=RNG.normal(size=(4, 6)), W=RNG.normal(size=(3, 4)), b=np.zeros(3))
KAPPA = (3.0, 2.0, 0.6)
TIMES = np.linspace(0.0, 1.0, 4)


class Computed(BaseException):
    """Something was."""


@pytest.fixture
def nothing_is_computed(monkeypatch):
    def computed(*_, **__):
        raise Computed

    monkeypatch.setattr(simulate_module, "simulate", computed)


SIMULATE = {
    "--rtol 2": r"rtol: expected a relative tolerance from 1e-14 to below 1, got 2; ",
    "--rtol 1": r"rtol: expected a relative tolerance .* got 1; ",
    "--rtol 0": r"rtol: expected a relative tolerance .* got 0; ",
    "--rtol 1e-20": r"rtol: expected a relative tolerance .* got 1e-20; ",
    "--rtol nan": r"rtol: expected a number, got nan",
    "--rtol -1e-6": r"rtol: .* got -1e-06",
    "--atol -1": r"atol: expected a tolerance of 0 or above, got -1",
    "--atol inf": r"atol: expected a number, got inf",
    "--seed -1": r"seed: expected a whole number from 0 to 2³² − 1, got -1",
    "--seed 99999999999": r"seed: expected a whole number from 0 to 2³² − 1, got 99999999999",
    "--seed 0.5": r"seed: expected a whole number, got '0.5'",
    "--scale 0": r"scale: expected numbers above zero, got 0",
    "--scale -1": r"scale: expected numbers above zero, got -1",
    "--scale nan": r"scale: expected a number, got nan",
    "--until 0": r"until: expected a flow time above 0, got 0",
    "--until -1": r"until: .* got -1",
    "--weight-decay -1": r"weight_decay: expected numbers zero or above, got -1",
    "--kappa 1 2 3": r"diagonal, within: expected",
    "--kappa 0 0 0": r"diagonal, within: expected",
    "--per-class 0": r"got 0",
    "--features 0": r"features: expected a whole number from 1 to a million, got 0",
    "--classes 1": r"classes: expected a whole number from 2 to a million, got 1",
    "--times 1": r"times: expected a whole number from 10 to a million, got 1",
}


@pytest.mark.parametrize("flags", [*SIMULATE])
@pytest.mark.usefixtures("nothing_is_computed")
def test_simulate(flags, tmp_path, capsys):
    # A number below zero belongs to its flag only where it is joined to it.
    given = [flags.replace(" ", "=")] if flags.count(" ") == 1 else flags.split()
    assert cli.main(["simulate", *given, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ntkcollapse simulate: ")
    assert len(said.splitlines()) == 1
    assert re.search(SIMULATE[flags], said), said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [command.settings for command in COMMANDS.values()], ids=[*COMMANDS])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 10**40, True])
def test_no_setting_takes_what_is_no_number(kind, value):
    for field in dataclasses.fields(kind):
        one = field.default[0] if isinstance(field.default, tuple) and field.default else field.default
        if type(one) not in (int, float):
            continue
        if value == 10**40 and type(one) is float:
            continue
        with pytest.raises(ValueError, match=f"^{field.name}: expected"):
            kind(**{field.name: (value,) if isinstance(field.default, tuple) else value})


@pytest.mark.parametrize("kind", [settings.SimulateConfig, settings.CompareConfig, TrainConfig])
@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, "1"])
def test_seeds_of_settings(kind, seed):
    with pytest.raises(ValueError, match=r"^seed: expected a whole number"):
        kind(seed=seed)
    assert kind(seed=2**32 - 1).seed == 2**32 - 1


@pytest.mark.parametrize("name", ["learning_rate", "init_scale", "last_layer_scale", "decay_factor", "weight_decay"])
@pytest.mark.parametrize("value", [1e-46, 1e39])
def test_what_single_precision_does_not_hold(name, value):
    """A learning rate of 1e-46 trained nothing, and said nothing."""
    with pytest.raises(ValueError, match=rf"^{name}: expected a number that single precision holds"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize("value", ["-1", "0", "1", "1e300"])
def test_tolerance_of_rates(value, tmp_path, capsys):
    """Before a file is read. What is no tolerance was said of each part to be why it has no exponential."""
    assert cli.main(["rates", str(tmp_path), f"--tolerance={value}"]) == 2
    said = capsys.readouterr().err
    assert f"tolerance: expected a relative change above 0 and below 1, got {float(value):g}" in said


@pytest.mark.parametrize("records", [0, -1, 2**62])
def test_records_of_comparisons(records):
    with pytest.raises(ValueError, match=r"^records: expected a whole number from 1 to a million"):
        settings.CompareConfig(records=records)


def test_as_many_measurements_as_memory_holds():
    with pytest.raises(ValueError, match=r"^measure_log: expected a whole number from 0 to a million"):
        TrainConfig(measure_log=2**62)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, None, True, "1"])
def test_seeds_of_data(seed):
    rows = data.gaussian_mixture(CLASSES, 3, seed=0)
    draws = [
        lambda: data.gaussian_mixture(CLASSES, 3, seed=seed),
        lambda: data.orthogonal_inputs(CLASSES, seed=seed),
        lambda: data.random_labels(rows, seed=seed),
        lambda: data.label_noise(rows, 0.5, seed=seed),
        lambda: data.Batches(CLASSES, 3, seed),
        lambda: data.synthetic_splits("orthogonal", per_class=2, test_per_class=2, seed=seed),
    ]
    for draw in draws:
        with pytest.raises(ValueError, match=r"^seed: expected a whole number"):
            draw()


@pytest.mark.parametrize("rtol", [2, 1, 0, -1e-6, np.nan, np.inf, 1e-20, True, "1e-6", None, np.full(3, 1e-6)])
def test_relative_tolerance(rtol):
    with pytest.raises((ValueError, TypeError), match=r"^rtol: expected"):
        nc.Method(rtol=rtol)


@pytest.mark.parametrize("atol", [-1, np.nan, np.inf, True, "0", None, np.zeros(3)])
def test_absolute_tolerance(atol):
    with pytest.raises((ValueError, TypeError), match=r"^atol: expected"):
        nc.Method(atol=atol)


def test_numbers_of_arrays_do():
    assert nc.Method(rtol=np.float32(0.5), atol=np.array(0.25)).rtol == 0.5  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("steady", [0, -1, np.nan, True, np.ones(2)])
def test_steady(steady):
    with pytest.raises(ValueError, match=r"^steady: expected"):
        nc.simulate(START, KAPPA, CLASSES, TIMES, steady=steady)


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_an_absolute_tolerance_above_the_start(scale):
    """Every step would pass, and what comes out would be no solution."""
    start = jax.tree.map(lambda x: scale * x, START)
    with pytest.raises(ValueError, match=r"^atol: expected less than the size of the start, .* got "):
        nc.simulate(start, KAPPA, CLASSES, TIMES, method=nc.Method(atol=2 * scale))


@pytest.mark.parametrize(
    ("kappa", "size", "until", "match"),
    [
        (1e300, 1.0, 1.0, r"^start, kappa, weight_decay: expected numbers whose squares"),
        (1.0, 1e150, 1.0, r"^start, kappa, weight_decay: expected numbers whose squares"),
        (1.0, 1.0, 1e300, r"^times: expected less than 1e\+16 of the flow's fastest time scales"),
        (1.0, 1.0, 1e20, r"^times: expected less than 1e\+16 of the flow's fastest time scales"),
        (1.0, 1e200, 1.0, r"^scatter: expected finite numbers"),
    ],
)
def test_beyond_double_precision(kappa, size, until, match):
    """Refused at once; before, a hundred thousand steps were tried."""
    start = jax.tree.map(lambda x: size * x, START)
    with pytest.raises(ValueError, match=match):
        nc.simulate(start, tuple(kappa * k for k in KAPPA), CLASSES, [0.0, until])


def test_what_double_precision_holds_is_integrated():
    """At rest: R_single and R_class are gone, and what is left of the loss is rounding."""
    run = nc.simulate(START, KAPPA, CLASSES, [0.0, 1e14])
    assert float(run["loss"][-1]) < 1e-20
    assert int(run.statistics["num_steps"]) < 200


@pytest.mark.parametrize("dtype", [jax.numpy.bfloat16, np.float16])
def test_half_precision_is_integrated_in_single(dtype, monkeypatch):
    """LAPACK has none: it ended in a TypeError of JAX."""
    half = jax.tree.map(lambda x: jax.numpy.asarray(x).astype(dtype), START)
    single = jax.tree.map(lambda x: x.astype(np.float32), half)
    monkeypatch.setattr(simulation, "_warned", {"float32"})
    runs = [nc.simulate(start, KAPPA, CLASSES, TIMES) for start in (half, single)]
    assert runs[0].last_layer(-1).W.dtype == np.float32
    np.testing.assert_array_equal(runs[0]["loss"], runs[1]["loss"])


@pytest.mark.parametrize("index", [0.5, 4, -5, None, "1"])
def test_saved_times_are_counted(index):
    run = nc.simulate(START, KAPPA, CLASSES, TIMES, observed=False)
    with pytest.raises(ValueError, match=r"^index: expected a saved time from -4 to 3, got"):
        run.last_layer(index)
    counts: list = [np.int8(1), jax.numpy.asarray(1)]
    assert all(run.last_layer(count).W.shape == (3, 4) for count in counts)


def test_whole_numbers():
    norms = np.exp(-np.linspace(0, 9, 40))
    for wrong in (np.nan, 6.5, True):
        with pytest.raises(ValueError, match=r"^min_points: expected a whole number"):
            fit_rate(np.linspace(0, 9, 40), norms, min_points=wrong)  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match=r"^count: expected a whole number"):
            log_spaced(100, wrong)  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match=r"^batch_size: expected a whole number"):
            data.Batches(CLASSES, wrong, 0)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["decay_H", "decay_W"])
def test_models_take_one_number(name):
    rates = {"decay_H": 0.1, "decay_W": 0.1, name: np.ones(3)}
    for model in (models.regularised_features, models.cross_entropy_features):
        with pytest.raises(ValueError, match=rf"^{name}: expected shape \(\), one number"):
            model(CLASSES, **rates)


@pytest.mark.parametrize("kernels", [np.array(0.0), None, 3, "abc", nc.BlockKernel(3.0, 2.0, 0.6)])
def test_paths_take_lists(kernels):
    with pytest.raises(TypeError, match=r"^kernels: expected a list of kernels"):
        nc.KernelPath.of(TIMES, kernels)
