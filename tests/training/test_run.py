"""Whole runs: what they record, what they refuse, what they leave behind."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse._platforms import CONSTANTS, Choice
from ntkcollapse.classes import Classes
from ntkcollapse.data import Batches, Dataset, from_arrays
from ntkcollapse.networks import mlp
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.training import (
    MEASUREMENTS,
    NonFiniteLoss,
    RunInUse,
    Stepper,
    TrainConfig,
    evaluate,
    read_status,
    recomputed_statistics,
    saved_config,
    saved_variables,
    train,
)
from ntkcollapse.training.step import _advance
from ntkcollapse.trajectory import Trajectory
from tests.platforms import as_if
from tests.processes import Fork
from tests.training.settings import convolutional, small


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run with everything measured, and its directory."""
    out = tmp_path_factory.mktemp("run") / "run"
    # Calls of all functions are kept in one place: when it is full, each new one puts an old one out.
    jax.clear_caches()
    compiled = _advance._cache_size()  # pyright: ignore
    run = train(small(measure=tuple(MEASUREMENTS), measure_log=4), out)
    return run, out, _advance._cache_size() - compiled  # pyright: ignore


def test_one_compilation_a_run(measured):
    # None where another test of this process has compiled the same step before.
    assert measured[2] <= 1


def test_what_is_recorded(measured):
    run, _, _ = measured
    assert set(np.asarray(run["step"]).tolist()) >= {0, 8, 16, 24, 32, 40}
    np.testing.assert_array_equal(run["epoch"], np.asarray(run["step"]) / 8)
    names = {
        "batch_loss", "gradient_norm", "train_loss", "train_accuracy", "test_loss", "test_accuracy",
        "nc1_seleznova2023", "nc2_seleznova2023", "nc3_seleznova2023", "nc4_mismatch", "kappa_diagonal",
        "gamma_between", "kappa_class_pairs", "kappa_alignment", "gamma_alignment", "invariant_norm",
        "invariant_alignment", "class_means_norm", "scatter_norm", "mean_feature_norm", "residual_single",
        "residual_class", "residual_global", "weight_norm", "parameter_norm", "learning_rate", "seconds",
    }  # fmt: skip
    assert names <= run.observables.keys()
    arrays = {name: np.asarray(value).reshape(len(run.times), -1) for name, value in run.items()}
    finite = {name: np.array([np.isfinite(row).all() for row in rows]) for name, rows in arrays.items()}
    blocks = {name: known for name, known in finite.items() if name.startswith("blocks_")}
    assert all(known[1:].all() for name, known in finite.items() if name not in blocks)
    # Samples on which no feature is alive have no kernel: it is singular from the third record on.
    assert all(known.tolist() == [True, True, *[False] * 6] for known in blocks.values())
    assert float(run["train_loss"][-1]) < 0.5 * float(run["train_loss"][0])
    # The learning rate falls by ten after epochs 2 and 4.
    at = {int(s): float(r) for s, r in zip(run["step"], run["learning_rate"], strict=True)}
    assert at[0] == 0.5
    assert at[16] == pytest.approx(0.05)
    assert at[32] == pytest.approx(0.005)


def test_the_clock_is_flow_time(measured):
    """η summed over steps / (1 − β) / (N C): 16 steps of 0.5, 16 of 0.05, 8 of 0.005."""
    run, _, _ = measured
    assert run.equation.in_flow_time
    assert float(run.times[-1]) == pytest.approx((8 + 0.8 + 0.04) / 0.1 / (240 * 10), rel=1e-12)


def test_states_are_those_of_the_network(measured):
    run, out, _ = measured
    network, variables, step = saved_variables(saved_config(out), out)
    assert step == 40
    probe = small().build_splits().train.balanced(2)
    state, _ = network.last_layer(variables, probe.inputs, probe.labels)
    np.testing.assert_array_equal(np.asarray(state.H, np.float64), run.states.H[-1])
    last = run.last_layer(-1)
    right = np.asarray(last.logits).argmax(0) == probe.labels
    assert float(run["accuracy"][-1]) == pytest.approx(right.mean())


def test_kappa_is_the_mean_of_the_dense_kernel(measured):
    """Against per-sample gradients of the features, one by one."""
    run, out, _ = measured
    network, variables, _ = saved_variables(saved_config(out), out)
    probe = small().build_splits().train.balanced(2)
    features, _ = network.evaluation(variables.batch_stats)
    jacobian = jax.jacrev(features)(variables.params, jnp.asarray(probe.inputs))
    N, n = 20, 10
    rows = np.concatenate([np.asarray(leaf).reshape(N, n, -1) for leaf in jax.tree.leaves(jacobian)], axis=2)
    kernel = np.einsum("ikp,jkp->ij", rows, rows) / n
    labels = probe.labels
    same = (labels[:, None] == labels) & ~np.eye(N, dtype=bool)
    # float32 gradients.
    assert float(run["kappa_diagonal"][-1]) == pytest.approx(np.diag(kernel).mean(), rel=1e-5)
    assert float(run["kappa_within"][-1]) == pytest.approx(kernel[same].mean(), rel=1e-5)
    assert float(run["kappa_between"][-1]) == pytest.approx(kernel[labels[:, None] != labels].mean(), rel=1e-5)
    Y = (labels[:, None] == labels).astype(float)
    alignment = (kernel * Y).sum() / np.linalg.norm(kernel) / np.linalg.norm(Y)
    assert float(run["kappa_alignment"][-1]) == pytest.approx(alignment, rel=1e-5)
    pairs = np.asarray(run["kappa_class_pairs"])[-1]
    np.testing.assert_allclose(pairs[3, 5], kernel[6:8, 10:12].mean(), rtol=1e-4)
    np.testing.assert_allclose(pairs[4, 4], kernel[8, 9], rtol=1e-4)


def test_block_means_beyond_dense_probes_agree(monkeypatch):
    """Large probes take the other way: block sums, never N × N."""
    config = small(measure=("kappa", "last-layer"), epochs=1)
    dense = train(config)
    monkeypatch.setattr("ntkcollapse.training.measurements.moment.DENSE", 0)
    blocks = train(config)
    # float32 sums in another order.
    for name in ("kappa_diagonal", "kappa_within", "kappa_between", "kappa_class_pairs", "invariant_alignment"):
        np.testing.assert_allclose(blocks[name], dense[name], rtol=1e-3, atol=1e-5, err_msg=name)
    assert (np.asarray(blocks["kappa_alignment"]) >= np.asarray(dense["kappa_alignment"]) - 1e-9).all()


def test_the_directory_holds_everything(measured):
    run, out, _ = measured
    assert {p.name for p in out.iterdir()} >= {"config.toml", "status.json", "trajectory.nc", "checkpoints"}
    assert read_status(out)["outcome"] == "finished"
    loaded = Trajectory.load(out)
    np.testing.assert_array_equal(loaded["train_loss"], run["train_loss"])
    assert saved_config(out) == small(measure=tuple(MEASUREMENTS), measure_log=4)


def test_a_second_start_is_refused(measured):
    _, out, _ = measured
    with pytest.raises(FileExistsError, match="found one in use"):
        train(small(), out)
    with pytest.raises(ValueError, match=r"learning_rate: expected 0\.5 as the run"):
        train(small(learning_rate=0.1, measure=tuple(MEASUREMENTS), measure_log=4), out, resume=True)
    with RunDirectory(out).locked("train"), pytest.raises(RunInUse, match="`ntkcollapse train`, process"):
        train(small(measure=tuple(MEASUREMENTS), measure_log=4), out, resume=True)


def test_a_measurement_of_ones_own(tmp_path):
    def largest(moment):
        return {"largest_feature": moment.last_layer.H.max(), "per_class": moment.last_layer.b}

    run = train(small(epochs=1), measurements={"largest": largest})
    np.testing.assert_array_equal(run["largest_feature"], run.states.H.max((1, 2)))
    assert run["per_class"].shape == (2, 10)
    assert "seconds_measuring_largest" in run.statistics

    def unsteady(moment):
        return {"x": np.zeros(1 + moment.step)}

    with pytest.raises(ValueError, match="measurement 'x': expected the same names and shapes"):
        train(small(epochs=1), measurements={"unsteady": unsteady})


@pytest.mark.parametrize("rate", [1e3, 1e30])
def test_divergence_stops_with_the_last_good_state(tmp_path, rate):
    out = tmp_path / "run"
    config = small(learning_rate=rate, decay_every=0, network_options=("widths=(8, 10)",))
    with pytest.raises(NonFiniteLoss, match="not finite at step") as caught:
        train(config, out)
    run = caught.value.last
    assert run.settings["outcome"] == read_status(out)["outcome"] == "diverged"
    assert np.isfinite(np.asarray(run["train_loss"])[0])
    assert 0 <= caught.value.step < 40
    _, variables, step = saved_variables(config, out)
    assert step == caught.value.step
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(variables))


def test_full_batch_is_gradient_descent(tmp_path):
    """One batch of everything, no momentum, no penalty: the loss falls as plain gradient descent makes it."""
    from ntkcollapse.training import gradient_descent

    config = small(
        batch_size=0, epochs=5, momentum=0.0, weight_decay=0.0, decay_every=0, network_options=("widths=(8, 10)",)
    )
    run = train(config)
    splits = config.build_splits()
    network = config.build_network(10)
    variables = network.init(jax.random.key(0), splits.train.inputs)
    seen = gradient_descent(network, variables, splits.train, learning_rate=0.5, at=range(6))
    wanted = [evaluate(network, s.variables, splits.train, "squared")[0] for s in seen]
    # float32 sums in another order.
    np.testing.assert_allclose(run["train_loss"], wanted, rtol=1e-5)


def test_evaluation_in_chunks_is_that_of_the_whole():
    generator = np.random.default_rng(0)
    classes = Classes((701, 602))
    data = Dataset(generator.normal(size=(1303, 3)).astype(np.float32), classes, "x")
    network = mlp((4,), 2)
    variables = network.init(jax.random.key(0), data.inputs)
    loss, accuracy = evaluate(network, variables, data, "squared")
    outputs = np.asarray(network.outputs(variables.params, data.inputs), np.float64)
    # float32 losses of single samples.
    assert loss == pytest.approx(((outputs - np.eye(2)[data.labels]) ** 2).mean() / 2, rel=1e-5)
    assert accuracy == pytest.approx((outputs.argmax(1) == data.labels).mean())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e8])
def test_recomputed_statistics_are_means_over_batches(scale):
    generator = np.random.default_rng(0)
    data = Dataset((scale * generator.normal(1, 2, (12, 3))).astype(np.float32), Classes((6, 6)), "x")
    network = mlp((4,), 2, batch_norm=True)
    variables = network.init(jax.random.key(0), data.inputs)
    batches = Batches(data.classes, 4, seed=0)
    found = recomputed_statistics(network, variables, data, batches).batch_stats["trunk"]["norm_0"]
    z = data.inputs[batches.epoch(0)] @ np.asarray(variables.params["trunk"]["linear_0"]["kernel"])
    # 1/(1 − 0.9) in float32 costs one digit.
    np.testing.assert_allclose(found["mean"], z.mean(1).mean(0), rtol=1e-4, atol=1e-5 * scale)
    np.testing.assert_allclose(found["var"], z.var(1).mean(0), rtol=1e-4)


def test_measuring_on_the_batch():
    chosen = {"epochs": 1, "measure": ("kappa", "last-layer", "train")}
    run = train(small(measure_on="batch", **chosen))
    assert run.states.H.shape == (2, 10, 30)
    assert run.classes.num_samples == 30
    # On both: states and classes are the probe's, and what is seen of the batch is what it is alone.
    both, probe = train(small(measure_on="both", **chosen)), train(small(**chosen))
    assert both.classes == probe.classes
    for name in ("nc1_papyan2020", "kappa_within", "residual_single"):
        np.testing.assert_array_equal(both[f"on_batch_{name}"], run[name])
        np.testing.assert_array_equal(both[name], probe[name])
        assert not np.allclose(run[name], probe[name])
    assert "on_batch_train_loss" not in both.observables
    # Evaluated after the step, the batch of the last step is not the one at the start.
    with pytest.raises(ValueError, match="measure_on: measuring on the batch asks for balanced"):
        small(measure_on="batch", batch_size=0)


def on_eight_devices(out: Path) -> None:
    """What a process with eight simulated devices finds."""
    jax.config.update("jax_enable_x64", True)
    run = train(small(batch_size=80))
    found: dict[str, Any] = {"devices": run.settings["devices"], "loss": run["train_loss"].tolist()}
    train_part, test_part = small().build_splits()
    kept = slice(0, 239)
    splits = from_arrays(train_part.inputs[kept], train_part.labels[kept], test_part.inputs, test_part.labels)
    found["of_one"] = train(small(batch_size=0, epochs=1), splits=splits).settings["devices"]
    # Calls of all functions are kept in one place: when it is full, each new one puts an old one out.
    jax.clear_caches()
    compiled = _advance._cache_size()  # pyright: ignore
    run = convolutional()
    found["compiled"] = _advance._cache_size() - compiled  # pyright: ignore
    found["convolutional"] = {name: run[name].tolist() for name in ("train_loss", "batch_loss", "gradient_norm")}
    found["features"] = run.states.H[-1].tolist()
    CONSTANTS["steps"] = CONSTANTS["steps"]._replace(cpu=Choice(50, "unknown"))
    found["in_blocks"] = train(small(batch_size=80))["train_loss"].tolist()
    out.write_text(json.dumps(found))


def test_eight_devices_agree_with_one(tmp_path):
    """Each batch is spread over eight simulated devices and normalised as one, step by step or several at once."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    with Fork(on_eight_devices, tmp_path / "found", XLA_FLAGS=flags) as process:
        assert process.end() == 0, process.said
    eight = json.loads((tmp_path / "found").read_text())
    assert len(eight["devices"]) == 8
    # 239 samples a step are for one device.
    assert eight["of_one"] == eight["devices"][:1]
    one = train(small(batch_size=80))
    # Sums over the batch in another order, over 15 steps in float32; statistics of a part of it would be off by 10%.
    for name in ("loss", "in_blocks"):
        np.testing.assert_allclose(eight[name], one["train_loss"], rtol=1e-4)
    # Convolutions with batch norm, likewise: six steps, in training mode, in evaluation mode and in the features.
    one = convolutional()
    for name, value in eight["convolutional"].items():
        np.testing.assert_allclose(value, one[name], rtol=1e-3, err_msg=name)
    size = float(np.abs(one.states.H[-1]).max())
    np.testing.assert_allclose(eight["features"], one.states.H[-1], atol=1e-3 * size)
    assert eight["compiled"] == 1


def test_blocks_of_steps_are_the_run(monkeypatch):
    """As on an accelerator: fewer programs are started, and records are those of single steps."""
    one = train(small(measure_steps=(3,)))
    as_if(monkeypatch, steps=16)
    calls = []
    several = Stepper.several
    monkeypatch.setattr(Stepper, "several", lambda self, *args: calls.append(args[-1]) or several(self, *args))
    blocks = train(small(measure_steps=(3,)))
    assert sum(calls) == 40
    assert len(calls) == 6
    for name in ("step", "train_loss", "batch_loss", "gradient_norm", "learning_rate"):
        # Two programs, in single precision, over 40 steps.
        np.testing.assert_allclose(blocks[name], one[name], rtol=1e-3, err_msg=name)
    watched = []
    train(small(epochs=1), on_step=watched.append)
    assert watched == list(range(1, 9))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="network: expected one of"):
        TrainConfig(network="resnet21")
    with pytest.raises(ValueError, match="learning_rate: expected numbers above zero"):
        TrainConfig(learning_rate=0)
    with pytest.raises(ValueError, match="network_options: expected entries of the form name=value"):
        TrainConfig(network_options=("depth",)).build_network(10)
    with pytest.raises(ValueError, match="measure: expected one of"):
        TrainConfig(measure=("nc1",))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"momentum": 2.0}, r"momentum: expected a number in \[0, 1\), got 2"),
        ({"label_noise": 7.0}, "label_noise: expected a number from 0 to 1, got 7"),
        ({"imbalance": 0.5}, "imbalance: expected at least 1, got 0.5"),
        ({"ntk_engine": "layerwize"}, "Did you mean 'layerwise'"),
        ({"measure_steps": (-5,)}, "measure_steps: expected"),
        ({"per_class": 0}, "per_class: expected"),
        ({"optimizer": "lbfgs", "decay_every": 0}, "learning_rate, decay_every: expected 1 and 0 with lbfgs"),
        ({"optimizer": "lbfgs", "learning_rate": 1.0}, "learning_rate, decay_every: expected 1 and 0 with lbfgs"),
    ],
)
def test_settings_out_of_range_do_not_build(wrong, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**wrong)


def test_data_are_changed_as_asked():
    changed = small(label_noise=0.25, imbalance=2.0).build_splits().train
    assert max(changed.classes.sizes) / min(changed.classes.sizes) > 1.5


def test_both_parts_of_the_mixture_are_of_one_mixture():
    """The nearest mean of the training part is right about the test part as often as about its own."""
    train, test = small(dataset="gaussian-mixture", per_class=200, test_per_class=50).build_splits()
    assert set(train.classes.sizes) == {200}
    assert set(test.classes.sizes) == {50}
    means = np.stack([train.inputs[train.labels == c].mean(0) for c in range(10)])
    nearest = np.linalg.norm(test.inputs[:, None] - means, axis=2).argmin(1)
    # Means 4 apart, noise 1: Bayes' error is at most 9 Φ(−2) = 0.2.
    assert (nearest == test.labels).mean() > 0.8
    assert not {row.tobytes() for row in train.inputs} & {row.tobytes() for row in test.inputs}
