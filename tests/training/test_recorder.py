"""Loops of one's own through the recorder: what they leave is a run like any other."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import ntkcollapse as nc
from ntkcollapse import networks
from ntkcollapse.commands.compare import compare_command
from ntkcollapse.commands.rates import rates_command
from ntkcollapse.commands.report import report_command
from ntkcollapse.commands.settings import CompareConfig, RatesConfig, ReportConfig
from ntkcollapse.comparison import MeasuredRun, climb
from ntkcollapse.data import gaussian_mixture
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.training import NonFiniteLoss, TrainConfig, train
from tests.networks.own_networks import EquinoxPerceptron, NNXPerceptron

ROOT = Path(__file__).parents[2]
DATA = gaussian_mixture(nc.Classes.balanced(3, 4), 5, seed=0)
X, Y = jnp.asarray(DATA.inputs), jax.nn.one_hot(DATA.labels, 3)
AT = (0, 5, 20, 60)
RATE, LOOP_RATE, DECAY = 0.3, 2.0, 1e-2
CLOCK = nc.Clock.of_loss("mean", DATA.classes, learning_rate=RATE)


def mean_loss(f):
    return jnp.mean(jnp.square(f - Y.astype(f.dtype))) / 2


def network_of_functions(seed: int = 0):
    keys = jax.random.split(jax.random.key(seed), 2)
    params = {"A": jax.random.normal(keys[0], (5, 16)) / 2, "W": jax.random.normal(keys[1], (16, 3)) / 4}
    return networks.of(lambda p, x: jnp.tanh(x @ p["A"]) @ p["W"], X, params), params


def by_hand(params, steps, record):
    """Gradient descent in plain JAX."""
    update = jax.jit(
        lambda p: jax.tree.map(
            lambda a, g: a - RATE * g, p, jax.grad(lambda p: mean_loss(jnp.tanh(X.astype(float) @ p["A"]) @ p["W"]))(p)
        )
    )
    for step in range(steps):
        record(step, params)
        params = update(params)
    record(steps, params)
    return params


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    out = tmp_path_factory.mktemp("recorded") / "run"
    network, params = network_of_functions()
    recorder = nc.Recorder(network, DATA, out, clock=CLOCK, at=AT, keep_networks_at=(5,))
    last = by_hand(params, 60, recorder)
    return recorder, out, network, last


def test_it_records_what_train_records(recorded):
    """The same network, trained by this package's own loop."""
    recorder, _, network, last = recorded
    config = TrainConfig(
        epochs=60, batch_size=0, learning_rate=RATE, momentum=0.0, nesterov=False, weight_decay=0.0, decay_every=0,
        probe_per_class=0, measure=("train", "kappa", "gamma", "last-layer", "parameters"), measure_log=0,
        measure_steps=AT, bias=False,
    )  # fmt: skip
    ours = train(config, splits=nc.data.Splits(DATA, DATA), network=network)
    mine = recorder.trajectory
    assert ours.observables.keys() - mine.observables.keys() == {"learning_rate"}
    np.testing.assert_allclose(mine.times, ours.times, rtol=1e-12)
    for name in mine.observables.keys() - {"seconds"}:
        # Rounding of 60 steps in float64, in another order.
        np.testing.assert_allclose(mine[name], ours[name], rtol=1e-6, atol=1e-9, err_msg=name)
    assert mine.equation.bias == "absent"
    assert mine.equation.own == ("loop", "network", "data")
    np.testing.assert_array_equal(mine.states.W[-1], last["W"].T)


def test_times_are_those_of_the_clock(recorded):
    run = recorded[0].trajectory
    # Steps of the mean over N samples and C outputs.
    np.testing.assert_allclose(run.times, RATE * np.array(AT) / 36, rtol=1e-12)
    np.testing.assert_array_equal(run["step"], AT)


def test_the_directory_is_a_run_like_any_other(recorded, capsys):
    _, out, network, _ = recorded
    assert RunDirectory(out).read_status()["outcome"] == "finished"
    measured = MeasuredRun.load(out, network_of_functions(seed=3)[0], DATA)
    ladder = climb(measured.start(5), throw=True)
    # All rungs that take one network without batch normalisation.
    assert {"block-frozen", "sample-frozen", "features-linearised", "network-linearised", "network-flow"} <= set(
        ladder.rungs
    )
    flow = ladder.rungs["network-flow"]["loss"][-1] / ladder.network["loss"][-1]
    block = ladder.rungs["block-frozen"]["loss"][-1] / ladder.network["loss"][-1]
    # Gradient flow is what small steps follow; three numbers for a kernel are not.
    assert abs(float(flow) - 1) < 0.05 < abs(float(block) - 1)
    compare_command(CompareConfig(run=str(out), starts=(5,)))
    rates_command(RatesConfig(run=str(out)))
    report_command(ReportConfig(run=str(out)))
    assert "theory from step 5" in capsys.readouterr().out
    assert (out / "report.html").exists()
    with pytest.raises(ValueError, match=r"data: expected the set that the run .* got \(6, 6\)"):
        MeasuredRun.load(out, network, gaussian_mixture(nc.Classes.balanced(2, 6), 5, seed=0))
    with pytest.raises(ValueError, match=r"data: the training set differs .* give the data as they were"):
        MeasuredRun.load(out, network, (DATA.inputs + 1e-3, DATA.labels))


def test_between_measurements_nothing_is_looked_at():
    network, params = network_of_functions()
    recorder = nc.Recorder(network, DATA, at=(0, 100), measure=("parameters",))
    recorder(0, params, batch_loss=0.5)
    for step in range(1, 100):
        # Anything that looked at these would fail.
        assert not recorder(step, None)
    assert recorder(100, params, batch_loss=0.25)


def test_values_of_the_loop_stand_beside_and_go_to_writers():
    network, params = network_of_functions()

    class Board:
        def __init__(self):
            self.scalars = []

        def add_scalar(self, name, value, step):
            self.scalars.append((name, value, step))

    class Weights:
        def __init__(self):
            self.rows = []

        def log(self, values, *, step):
            self.rows.append((step, values))

    board, weights, rows = Board(), Weights(), []
    writers = (board, weights, lambda step, values: rows.append((step, values)))
    recorder = nc.Recorder(network, DATA, measure=("train", "layers"), writers=writers)
    recorder(3, params, batch_loss=jnp.asarray(0.5), spectrum=np.arange(4.0))
    run = recorder.trajectory
    assert run["spectrum"].shape == (1, 4)
    # Of the layers, what the last one reads is the features.
    assert run.names["layers"] == ["A", "W", "output"]
    features = np.tanh(np.asarray(X) @ np.asarray(params["A"])).reshape(3, 4, -1)
    spread, means = features.var(1).sum(1).mean(), features.mean(1)
    between = np.square(means - means.mean(0)).sum(1).mean()
    np.testing.assert_allclose(run["layers_nc1_tirer2022"][0, 1], spread / between, rtol=1e-5)
    assert weights.rows == rows
    assert rows[0][0] == 3
    assert rows[0][1].keys() == {"train_loss", "train_accuracy", "batch_loss", "seconds"}
    assert ("batch_loss", 0.5, 3) in board.scalars
    with pytest.raises(ValueError, match="'train_loss' is the name of another value"):
        recorder(4, params, train_loss=1.0)
    with pytest.raises(TypeError, match=r"writers: .*add_scalar or log, got int"):
        nc.Recorder(network, DATA, writers=(3,))


def test_without_a_clock_what_needs_one_says_so(tmp_path):
    network, params = network_of_functions()
    recorder = nc.Recorder(network, (DATA.inputs, DATA.labels), tmp_path / "run", at=AT)
    by_hand(params, 60, recorder)
    run = recorder.trajectory
    np.testing.assert_array_equal(run.times, AT)
    assert not run.equation.in_flow_time
    with pytest.raises(ValueError, match="the recorder was given no clock"):
        compare_command(CompareConfig(run=str(tmp_path / "run")))
    report_command(ReportConfig(run=str(tmp_path / "run")))


def test_what_is_refused(as_users_call, tmp_path):
    network, params = network_of_functions()
    recorder = nc.Recorder(network, DATA, at=(0, 2))
    with pytest.raises(ValueError, match="recorder: expected a step at which it measured"):
        _ = recorder.trajectory
    recorder(1, params)
    for step in (1, 0):
        with pytest.raises(
            ValueError, match=rf"step: expected one after 1, of the call before, got {step}.*resume=True"
        ):
            recorder(step, params)
    wrong: list[Any] = [jnp.asarray(2), 2.0, True]
    for step in wrong:
        with pytest.raises(TypeError, match=r"step: expected a whole number of Python.*wait for it"):
            recorder(step, params)
    with pytest.raises(ValueError, match=r"params: expected 'W' of shape \(16, 3\), as in the network, got \(3, 16\)"):
        recorder(2, {"A": params["A"], "W": params["W"].T})
    with pytest.raises(ValueError, match=r"params: expected 'W' among them"):
        nc.Recorder(network, DATA)(2, {"A": params["A"]})
    with pytest.raises(ValueError, match="at: expected numbers zero or above, got -1"):
        nc.Recorder(network, DATA, at=(-1,))
    with pytest.raises(ValueError, match=r"measure: expected no 'batch'.*batch_loss=loss"):
        nc.Recorder(network, DATA, measure=("batch",))
    with pytest.raises(ValueError, match="measure: expected Splits with a test part as data for 'test'"):
        nc.Recorder(network, DATA, measure=("test",))
    with pytest.raises(ValueError, match=r"network: expected a `networks.Network`.*'ansatz'.*measurements="):
        nc.Recorder(network, DATA, measure=("ansatz",))
    with pytest.raises(TypeError, match=r"network: expected one of this package, got dict; networks.of"):
        nc.Recorder(params, DATA)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="data: expected the 3 classes of the network, got 2"):
        nc.Recorder(network, gaussian_mixture(nc.Classes.balanced(2, 4), 5, seed=0))
    with pytest.raises(NonFiniteLoss, match="not finite at step 3"):
        nc.Recorder(network, DATA)(3, jax.tree.map(lambda a: a * jnp.inf, params))
    ours = networks.mlp((4,), 3)
    with pytest.raises(ValueError, match="params: expected the structure of the network's"):
        nc.Recorder(ours, DATA)(0, params)


def test_a_directory_is_not_lost_and_goes_on(tmp_path):
    network, params = network_of_functions()
    out, kept = tmp_path / "run", {}
    recorder = nc.Recorder(network, DATA, out, clock=CLOCK, at=AT, keep_networks_at=(5,))
    whole = nc.Recorder(network, DATA, clock=CLOCK, at=AT, keep_networks_at=(5,))

    def record(step, params):
        kept[step] = params
        whole(step, params)
        if step <= 20:
            recorder(step, params)

    by_hand(params, 60, record)
    with pytest.raises(FileExistsError, match="pass --overwrite"):
        nc.Recorder(network, DATA, out, at=AT)
    with pytest.raises(ValueError, match=r"loss: expected 'squared' as .* begun with, got 'cross-entropy'"):
        nc.Recorder(network, DATA, out, at=AT, resume=True, loss="cross-entropy")
    other = gaussian_mixture(DATA.classes, 5, seed=1)
    with pytest.raises(ValueError, match="data: the training set differs"):
        nc.Recorder(network, other, out, clock=CLOCK, at=AT, resume=True)
    # The loop saved itself at step 10: what it takes again is recorded again.
    again = nc.Recorder(network, DATA, out, clock=CLOCK, at=AT, keep_networks_at=(5,), resume=True)
    for step in range(10, 61):
        again(step, kept[step])
    assert again.networks.keys() == {5}
    saved = nc.Trajectory.load(out)
    for name in whole.trajectory.observables.keys() - {"seconds"}:
        np.testing.assert_array_equal(saved[name], whole.trajectory[name], err_msg=name)
    again.close()
    nc.Recorder(network, DATA, out, at=AT, overwrite=True).close("interrupted")
    assert RunDirectory(out).read_status()["outcome"] == "interrupted"


def test_what_is_taken_anew_at_other_steps_is_forgotten(tmp_path):
    network, params = network_of_functions()
    with nc.Recorder(network, DATA, tmp_path / "run", measure=("train",)) as recorder:
        for step in (0, 1, 2, 3):
            recorder(step, params)
    with nc.Recorder(network, DATA, tmp_path / "run", measure=("train",), resume=True) as again:
        for step in (2, 5):
            again(step, params)
        assert again.trajectory["step"].tolist() == [0, 1, 2, 5]


PROGRAM = """
import sys, time
import jax
jax.config.update("jax_enable_x64", True)
import ntkcollapse as nc
from tests.training.test_recorder import AT, CLOCK, DATA, by_hand, network_of_functions
network, params = network_of_functions()
recorder = nc.Recorder(network, DATA, sys.argv[1], clock=CLOCK, at=AT)
def record(step, params):
    recorder(step, params)
    if step == 20:
        print("recorded", flush=True)
        time.sleep(600)
by_hand(params, 60, record)
"""


@pytest.mark.slow
def test_a_killed_loop_is_read_meanwhile_and_resumed(tmp_path):
    out = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(out)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "recorded\n"
        assert nc.Trajectory.load(out)["step"].tolist() == [0, 5, 20]
        assert json.loads((out / "status.json").read_text())["outcome"] == "running"
        with pytest.raises(nc.training.RunInUse):
            nc.Recorder(network_of_functions()[0], DATA, out, clock=CLOCK, at=AT, resume=True)
        os.kill(process.pid, signal.SIGKILL)
    network, params = network_of_functions()
    recorder = nc.Recorder(network, DATA, out, clock=CLOCK, at=AT, resume=True)
    by_hand(params, 60, lambda step, params: step >= 10 and recorder(step, params))
    assert nc.Trajectory.load(out)["step"].tolist() == list(AT)


# ---- loops of the frameworks, each as its own documentation writes one


def train_nnx(record, steps):
    model = NNXPerceptron(nnx.Rngs(0), jnp.float32)
    optimizer = nnx.Optimizer(model, optax.sgd(LOOP_RATE), wrt=nnx.Param)

    @nnx.jit
    def update(model, optimizer):
        loss, gradient = nnx.value_and_grad(lambda m: mean_loss(m(X)))(model)
        optimizer.update(model, gradient)
        return loss

    network = networks.of(model, DATA)
    for step in range(steps + 1):
        record(network, step, model, None)
        update(model, optimizer)


def train_equinox(record, steps):
    model, state = eqx.nn.make_with_state(EquinoxPerceptron)(jax.random.key(0), "ema", jnp.float32)
    network, optimizer = networks.of(model, DATA, state=state), optax.sgd(LOOP_RATE)
    chosen = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def update(model, state, chosen, key):
        def loss(model):
            each = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
            f, moved = each(X, state, key=jax.random.split(key, len(X)))
            return mean_loss(f), moved

        (_, moved), gradient = eqx.filter_value_and_grad(loss, has_aux=True)(model)
        updates, chosen = optimizer.update(gradient, chosen)
        return eqx.apply_updates(model, updates), moved, chosen

    # Its keys are keyword arguments, which vmap maps along with the samples.
    for step in range(steps + 1):
        record(network, step, model, state)
        model, state, chosen = update(model, state, chosen, jax.random.key(step))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.tanh(nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x)))
        return nn.Dense(3)(x)


def train_linen(record, steps):
    module = Linen()
    variables = module.init(jax.random.key(0), X, train=False)
    params, stats = variables["params"], variables["batch_stats"]
    network = networks.of(module, DATA, params, {"batch_stats": stats})

    @jax.jit
    def update(params, stats):
        def loss(params):
            f, moved = module.apply({"params": params, "batch_stats": stats}, X, train=True, mutable=["batch_stats"])
            return mean_loss(f), moved["batch_stats"]

        gradient, stats_ = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - LOOP_RATE * (g + DECAY * p), params, gradient), stats_

    for step in range(steps + 1):
        record(network, step, params, stats)
        params, stats = update(params, stats)


def train_haiku(record, steps):
    hk = pytest.importorskip("haiku")

    def forward(x, is_training):
        x = jnp.tanh(hk.BatchNorm(True, True, 0.9)(hk.Linear(16)(x), is_training))
        return hk.Linear(3)(x)

    f = hk.without_apply_rng(hk.transform_with_state(forward))
    params, state = f.init(jax.random.key(0), X, is_training=True)
    network = networks.of(f, DATA, params, state)

    @jax.jit
    def update(params, state):
        def loss(params):
            outputs, moved = f.apply(params, state, X, is_training=True)
            return mean_loss(outputs), moved

        gradient, moved = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - LOOP_RATE * (g + DECAY * p), params, gradient), moved

    for step in range(steps + 1):
        record(network, step, params, state)
        params, state = update(params, state)


def train_pytorch(record, steps):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers = (torch.nn.Linear(5, 16), torch.nn.BatchNorm1d(16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    model, x = torch.nn.Sequential(*layers), torch.from_numpy(np.array(DATA.inputs))
    targets = torch.from_numpy(np.array(Y, np.float32))
    network, optimizer = networks.of(model, DATA), torch.optim.SGD(model.parameters(), LOOP_RATE, weight_decay=DECAY)
    for step in range(steps + 1):
        record(network, step, model, None)
        optimizer.zero_grad()
        (model.train()(x) - targets).square().mean().div(2).backward()
        optimizer.step()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("loop", [train_nnx, train_equinox, train_linen, train_haiku, train_pytorch])
def test_a_loop_of_each_framework_collapses_and_is_compared(loop, tmp_path):
    recorders: list[nc.Recorder] = []
    steps, start = 1000, 50

    def record(network, step, params, state):
        if not recorders:
            clock = nc.Clock.of_loss("mean", DATA.classes, learning_rate=LOOP_RATE)
            at, out = nc.log_spaced(steps, 6), tmp_path / "run"
            options: dict[str, Any] = dict(measure=("train", "kappa", "last-layer"), keep_networks_at=(start,))
            options |= {} if loop in (train_nnx, train_equinox) else {"weight_decay": DECAY}
            recorders.append(nc.Recorder(network, DATA, out, clock=clock, at=at, recompute_statistics=True, **options))
        recorders[0](step, params, state)

    # Frameworks promote types and ranks as JAX does by default.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        loop(record, steps)
    run = nc.Trajectory.load(tmp_path / "run")
    assert float(run["train_accuracy"][-1]) == 1
    assert float(run["nc1_tirer2022"][-1]) < 0.5 * float(run["nc1_tirer2022"][0])
    measured = MeasuredRun.load(tmp_path / "run", recorders[0].networks[start].network, DATA)
    ladder = climb(measured.start(start), ["block-frozen", "sample-frozen"], throw=True)
    losses = {name: float(rung["loss"][-1]) for name, rung in ladder.rungs.items()}
    # Predictions begin at the network's own loss, and fall.
    assert losses["sample-frozen"] < float(ladder.network["loss"][0])
    assert np.isfinite(losses["block-frozen"])
    assert ladder.batch_norm
    # With statistics made anew, evaluation sees what training sees; PyTorch's variance is that of N − 1.
    at = measured.networks[measured.record(start)]
    assert at.coupled is not None
    seen = [np.asarray(jax.jit(f)(at.params, at.inputs)) for f in (at.features, at.coupled)]
    np.testing.assert_allclose(*seen, rtol=0, atol=0.05 * np.abs(seen[1]).max())
