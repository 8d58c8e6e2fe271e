"""Networks kept along a run, optimisers given from Python, and settings by name."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from ntkcollapse.clock import Clock
from ntkcollapse.training import PRESETS, NonFiniteLoss, TrainConfig, about_preset, preset, saved_networks, train
from ntkcollapse.trajectory import Trajectory
from tests.training.settings import small
from tests.training.test_resuming import stopped

PLAIN = {"network_options": ("widths=(8, 10)",), "measure": ("train",)}


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def full_batch():
    """The digits preset, small: as `ntkcollapse compare` trains where no run is named."""
    changes = {"network_options": ("widths=(12,10)",), "per_class": 4, "epochs": 20, "measure_log": 0}
    return train(dataclasses.replace(preset("digits"), **changes), keep_networks_at=(5, 0))


def test_what_gradient_descent_measured_by_itself_gave(full_batch):
    """Numbers of a former second way to train and measure, which had the same W to the last bit."""
    run, networks = full_batch
    assert run["step"].tolist() == [0, 5, 20]
    assert list(networks) == [0, 5]
    W = [
        [-0.19467367231845856, 0.11440782994031906, -0.021831097081303596, 0.048091206699609756],
        [-0.1945779025554657, 0.11420364677906036, -0.021214013919234276, 0.05146266147494316],
        [-0.19326969981193542, 0.11385680735111237, -0.016276882961392403, 0.05989949032664299],
    ]
    # In single precision, whose sums another machine takes in another order.
    np.testing.assert_allclose(run.states.W[:, 3, :4], W, rtol=1e-5)
    np.testing.assert_allclose(run.times, [0.0, 0.00375, 0.015], rtol=1e-14)
    recorded = {
        "loss": [34.045391874176964, 20.637515466054207, 18.17480675696299],
        "kappa_diagonal": [4.267151355743408, 2.979952096939087, 2.6684720516204834],
        "kappa_within": [2.917653799057007, 1.5498443841934204, 1.3178532123565674],
        "gamma_between": [3.9421002864837646, 2.053927183151245, 1.7495087385177612],
        "invariant_norm": [4.753789325081143, 4.822792605955894, 4.842151761899836],
        "nc1_papyan2020": [167.71131756872003, 5.478625885155496, 8.407677040514633],
    }
    for name, value in recorded.items():
        np.testing.assert_allclose(run[name], value, rtol=2e-5, err_msg=name)


def test_networks_are_those_that_were_measured(full_batch):
    run, networks = full_batch
    for step, kept in networks.items():
        index = run["step"].tolist().index(step)
        W = np.asarray(kept.variables.params["last_layer"]["kernel"], np.float64).T
        np.testing.assert_array_equal(W, run.states.W[index])


def test_networks_are_saved_and_a_resumed_run_has_them_all(tmp_path):
    """With batch statistics, which are those of the measurement."""
    config = small(epochs=1, measure=("train",), recompute_statistics=True)
    _, whole = train(config, tmp_path / "one", keep_networks_at=(0, 2, 6))
    stopped(config, tmp_path / "two", 4, keep_networks_at=(0, 2, 6))
    assert list(saved_networks(config, tmp_path / "two")) == [0, 2]
    run, resumed = train(config, tmp_path / "two", resume=True, keep_networks_at=(0, 2, 6))
    assert run["step"].tolist() == [0, 2, 6, 8]
    saved = saved_networks(config, tmp_path / "two")
    assert list(whole) == list(resumed) == list(saved) == [0, 2, 6]
    for step, kept in whole.items():
        assert jax.tree.leaves(kept.variables.batch_stats)
        assert_same(kept.variables, resumed[step].variables)
        assert_same(kept.variables, saved[step].variables)
        assert saved[step].network == kept.network
    # What was not kept on the way is not there afterwards.
    with pytest.raises(ValueError, match=r"keep_networks_at: expected steps after 8, .* \[0, 2, 6\]; got \[4\]"):
        train(config, tmp_path / "two", resume=True, keep_networks_at=(2, 4))
    # Another run in its place has networks of its own.
    train(config, tmp_path / "two", overwrite=True)
    assert saved_networks(config, tmp_path / "two") == {}


def test_steps_outside_the_run_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"keep_networks_at: expected steps from 0 to the last one, 8, got \[-1, 9\]"):
        train(small(epochs=1, **PLAIN), tmp_path / "run", keep_networks_at=(9, 3, -1))
    assert not (tmp_path / "run").exists()


def test_settings_changed_behind_a_checkpoint_are_refused(tmp_path):
    config, out = small(epochs=1, **PLAIN), tmp_path / "run"
    train(config, out)
    file = out / "config.toml"
    whole = file.read_text()
    assert "learning_rate = 0.5\n" in whole
    file.write_text(whole.replace("learning_rate = 0.5\n", "learning_rate = 0.25\n"))
    with pytest.raises(ValueError, match=r"settings: expected those that the checkpoints in .* were written with"):
        train(dataclasses.replace(config, learning_rate=0.25, epochs=2), out, resume=True)
    file.write_text("")
    with pytest.raises(ValueError, match="found an empty file"):
        train(TrainConfig(), out, resume=True)
    # How far a run goes may be changed there.
    file.write_text(whole.replace("epochs = 1\n", "epochs = 2\n"))
    assert train(dataclasses.replace(config, epochs=3), out, resume=True)["step"].tolist() == [0, 8, 16, 24]


def test_an_optimiser_of_ones_own_takes_the_place_of_the_named_one(tmp_path):
    config = small(epochs=1, decay_every=0, momentum=0.0, nesterov=False, learning_rate=0.25, weight_decay=0.0, **PLAIN)
    named = train(config)
    run = train(config, tmp_path / "run", optimizer=optax.sgd(0.25))
    np.testing.assert_array_equal(run["train_loss"], named["train_loss"])
    assert run.equation.own == ("optimizer",)
    assert (run.equation.clock, run.equation.in_flow_time) == (None, False)
    assert "without a clock" in run.equation.without_clock
    np.testing.assert_array_equal(run.times, run["step"])
    assert "learning_rate" not in run.observables
    assert Trajectory.load(tmp_path / "run").equation.own == ("optimizer",)
    with pytest.raises(ValueError, match="optimizer: expected what the run in"):
        train(dataclasses.replace(config, epochs=2), tmp_path / "run", resume=True)
    again = train(dataclasses.replace(config, epochs=2), tmp_path / "run", resume=True, optimizer=optax.sgd(0.25))
    assert again["step"].tolist() == [0, 8, 16]


def test_a_clock_of_ones_own(tmp_path):
    config = small(epochs=1, **PLAIN)
    clock = Clock(learning_rate=0.25, scale=1 / 2400)
    run = train(config, optimizer=optax.sgd(0.25), clock=clock)
    np.testing.assert_allclose(run.times, [0, 8 * 0.25 / 2400], rtol=1e-14)
    assert run.equation.in_flow_time
    assert run.equation.clock == clock
    with pytest.raises(ValueError, match="clock: expected none without an optimizer of your own"):
        train(config, clock=clock)


def test_parameters_that_grow_beyond_measure_end_a_run(tmp_path):
    """Finite in single precision, and too large for any square of them: known before anything is measured."""
    config = small(epochs=1, init_scale=1e16, measure=("parameters",), network_options=("widths=(8, 10)",))
    with pytest.raises(NonFiniteLoss, match="at step 0") as caught:
        train(config)
    assert caught.value.last is None


def test_what_a_measurement_refuses_is_no_divergence(tmp_path):
    def refuses(moment):
        raise ValueError("no such layer")

    with pytest.raises(ValueError, match="no such layer"):
        train(small(epochs=1, **PLAIN), measurements={"mine": refuses})


@pytest.mark.parametrize("name", PRESETS)
def test_presets_say_what_they_show_and_cost(name):
    assert isinstance(preset(name), TrainConfig)
    assert len(about_preset(name)) > 40
    assert PRESETS[name].read_text().startswith("# ")


@pytest.mark.slow
def test_the_preset_of_collapse_collapses():
    """What README, the demo and the preset's own first line say of it."""
    run = train(dataclasses.replace(preset("collapse"), measure=("train", "kappa", "last-layer"), measure_log=2))
    end = {name: float(run[name][-1]) for name in run.observables if run[name].ndim == 1}
    assert end["train_accuracy"] == 1
    assert end["nc1_tirer2022"] < 1e-4
    assert max(end["nc2_seleznova2023"], end["nc3_seleznova2023"]) < 0.1
    assert end["nc4_mismatch"] == 0
    assert end["kappa_between"] < 0.01 * end["kappa_diagonal"]


def test_unknown_presets_are_named():
    with pytest.raises(ValueError, match=r"preset: expected one of .*digits.* Did you mean"):
        preset("digit")
