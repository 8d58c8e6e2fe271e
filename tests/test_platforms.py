"""What is compiled can be compiled for accelerators: lowered for them here, where there is none."""

import re
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from ntkcollapse import BlockKernel, Classes, Flow, Method, _platforms, simulate, simulation
from ntkcollapse._platforms import CONSTANTS, Choice, runs_on
from ntkcollapse._precision import exact_products, in_precision
from ntkcollapse.networks import network
from ntkcollapse.ntk import NTKOperator, _memory, empirical_ntk, within_class_eigenvalues
from ntkcollapse.ntk._problem import prepare
from ntkcollapse.ntk.engines import Layerwise
from ntkcollapse.ntk.engines._engine import Batch, Sums
from ntkcollapse.training import Stepper, optimizer
from tests.cases import random_state
from tests.platforms import as_if

CLASSES = Classes((4, 3, 5))
START = random_state(5, CLASSES)
TIMES = np.array([0.0, 0.5, 2.0])


def loss(between, **options):
    model = {name: options.pop(name) for name in ("loss", "weight_decay") if name in options}
    return simulate(START, Flow(BlockKernel(3.0, 2.0, between), CLASSES, **model), times=TIMES, **options)["loss"]


RUNS = {
    "reduced": loss,
    "phase diagram": jax.vmap(loss),
    "gradient": jax.grad(lambda between: loss(between, weight_decay=0.01)[-1]),
    "full": lambda between: loss(between, reduced=False),
    "cross-entropy": lambda between: loss(between, loss="cross-entropy"),
    "chebyshev": lambda between: loss(between, method="chebyshev"),
    "implicit": lambda between: loss(between, reduced=False, method="kvaerno5"),
}


def products(text: str) -> list[str]:
    """Lines of a lowered program that multiply matrices or convolve."""
    return [line for line in text.splitlines() if re.search(r"stablehlo\.(dot_general|convolution)", line)]


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("run", list(RUNS))
def test_integrations_are_lowered_for(platform, run):
    """Without a callback into Python, and with all digits in every product."""
    between = jnp.array([0.5, 0.6]) if run == "phase diagram" else jnp.asarray(0.6)
    program = export.export(jax.jit(RUNS[run]), platforms=[platform])(between)
    text = program.mlir_module()
    assert not [name for name in re.findall(r"custom_call @(\w+)", text) if "callback" in name]
    assert products(text)
    assert not [line for line in products(text) if "HIGHEST" not in line]


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("engine", ["jacobian", "layerwise"])
def test_kernels_of_networks_are_lowered_for(platform, engine):
    """Of convolutions in single precision: no callback, no number of double precision, all digits in every product."""
    net, images = network("cnn", widths=(2, 3)), jnp.ones((3, 8, 8, 1), jnp.float32)
    params, statistics = net.init(jax.random.key(0), images[:1])
    _, outputs = net.evaluation(statistics)
    kernel = jax.jit(lambda params: empirical_ntk(outputs, params, images, engine=engine))
    text = export.export(kernel, platforms=[platform])(params).mlir_module()
    assert not [name for name in re.findall(r"custom_call @(\w+)", text) if "callback" in name]
    assert "f64" not in text
    assert products(text)
    assert not [line for line in products(text) if "HIGHEST" not in line]
    with jax.default_matmul_precision("bfloat16"):
        chosen = export.export(jax.jit(lambda params: kernel(params)), platforms=[platform])(params).mlir_module()
    assert [line for line in products(chosen) if "HIGHEST" not in line]


def lowered(function, *arguments) -> str:
    """The program for cuda and for tpu, of which nothing is left to the host."""
    text = export.export(jax.jit(function), platforms=["cuda", "tpu"])(*arguments).mlir_module()
    called = re.findall(r"custom_call @(\w+)", text)
    assert not [name for name in called if "callback" in name or "lapack" in name]
    return text


def convolved(p, x):
    h = jax.lax.conv_general_dilated(x, p["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(h).mean((1, 2)) @ p["w"] + p["b"][None, :]


PARAMS = {name: jnp.ones(shape, jnp.float32) for name, shape in {"conv": (3, 3, 1, 4), "w": (4, 3), "b": (3,)}.items()}
IMAGES, IMAGE_CLASSES = jnp.ones((4, 5, 5, 1), jnp.float32), Classes((2, 2))


@pytest.mark.parametrize("outputs", ["full", "diagonal", "mean"])
@pytest.mark.parametrize("engine", ["layerwise", "layer by layer", "jacobian", "ntvp", "neural-tangents"])
def test_engines_are_lowered_in_each_form(engine, outputs, monkeypatch):
    if engine == "layer by layer":
        engine = "layerwise"
        as_if(monkeypatch, at_once=0)
    options: Any = {"outputs": outputs, "engine": engine}
    text = lowered(lambda p, x: empirical_ntk(convolved, p, x, x[:2], **options), PARAMS, IMAGES)
    assert "f64" not in text
    assert products(text)
    assert not [line for line in products(text) if "HIGHEST" not in line]
    with exact_products("tensorfloat32"):
        chosen = lowered(lambda p, x: empirical_ntk(convolved, p, x, x[:2], **options), PARAMS, IMAGES)
    assert not [line for line in products(chosen) if "HIGHEST" in line]


@pytest.mark.parametrize("together", [0, 2**30])
def test_sums_over_classes_are_lowered(together, monkeypatch):
    as_if(monkeypatch, together=together)
    problem = prepare(convolved, PARAMS, {"x": IMAGES})

    @in_precision
    def sums(x):
        none = Sums.zeros(problem, 3, 2, 0, output_pairs=True)
        batch = Batch(x, jnp.arange(2), jnp.ones(4, jnp.float32), jnp.zeros((4, 0), jnp.float32))
        return Layerwise().add(problem, none, batch, jnp.zeros((), int)).scatter

    text = lowered(sums, IMAGES)
    assert "f64" not in text
    assert not [line for line in products(text) if "HIGHEST" not in line]


@pytest.mark.parametrize("outputs", ["full", "mean"])
def test_products_with_the_kernel_are_lowered(outputs):
    def product(p, x, v):
        return NTKOperator(convolved, p, x, outputs=outputs, memory=1e6).matmat(v)

    shape = (4, 3, 2) if outputs == "full" else (4, 2)
    text = lowered(product, PARAMS, IMAGES, jnp.ones(shape, jnp.float32))
    assert "f64" not in text
    assert not [line for line in products(text) if "HIGHEST" not in line]


def test_spectra_are_lowered():
    text = lowered(lambda K: within_class_eigenvalues(K, IMAGE_CLASSES), jnp.eye(4, dtype=jnp.float32))
    assert not [line for line in products(text) if "HIGHEST" not in line]


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_training_is_lowered(compute_dtype):
    """One step, and several in one program."""
    with jax.enable_x64(False):
        net = network("mlp", 2, widths=(3,), batch_norm=True)
        stepper = Stepper(net, optimizer("sgd"), "squared", 1e-3, compute_dtype)
        state = stepper.start(net.init(jax.random.key(0), IMAGES))
        labels, rows, rates = jnp.zeros(4, int), jnp.zeros((5, 2), int), np.ones(5)
        texts = [
            lowered(lambda state: stepper(state, IMAGES, labels, rows[0], 0.1, 0), state),
            lowered(lambda state: stepper.several(state, IMAGES, labels, rows, rates, 0, 3), state),
        ]
    for text in texts:
        assert "f64" not in text
        assert ("bf16" in text) == (compute_dtype == "bfloat16")
    assert "stablehlo.while" in texts[1]


def test_default_solvers_with_noise_and_in_steps_are_lowered():
    text = lowered(lambda between: loss(between, method=Method(step=0.5, momentum=0.0)), jnp.asarray(0.6))
    assert products(text)
    noisy = Flow(BlockKernel(3.0, 2.0, 0.6), CLASSES, noise=0.1)
    assert products(lowered(lambda key: simulate(START, noisy, times=TIMES, key=key)["loss"], jax.random.key(0)))


@pytest.mark.parametrize(
    ("on", "batched", "double", "work", "where"),
    [
        ("cpu", False, True, 1e12, "cpu"),
        ("cuda", False, True, 1e3, "cpu"),
        ("cuda", True, True, 1e3, "cuda"),
        ("cuda", False, True, 1e9, "cuda"),
        ("tpu", False, False, 1e9, "tpu"),
        ("tpu", True, True, 1e9, "cpu"),
    ],
)
def test_small_runs_go_to_the_cpu(on, batched, double, work, where):
    assert runs_on(on, batched=batched, double=double, work=work) == where


class Accelerator:
    """A device that is not here."""

    def __init__(self, limit: int, used: int, platform: str = "gpu"):
        self.platform = platform
        self._stats = {"bytes_limit": limit, "bytes_in_use": used}

    def memory_stats(self):
        return self._stats


def test_budget_is_that_of_the_fullest_device(monkeypatch):
    devices = [Accelerator(80 * 2**30, 0), Accelerator(80 * 2**30, 60 * 2**30)]
    monkeypatch.setattr(_memory, "here", lambda: devices[0])
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: devices)
    monkeypatch.setattr(_platforms, "platform", lambda device=None: "cuda")
    assert _memory.budget(None) == 5 * 2**30
    assert _memory.budget(1e6) == 10**6
    devices[1] = Accelerator(10**15, 0)
    devices[0] = Accelerator(10**15, 0)
    assert _memory.budget(None) == 64 * 2**30
    assert _platforms.number("traffic") == 80


def test_where_a_run_is_placed(monkeypatch):
    """Beside a GPU or a TPU that are not here."""
    flow, full = Flow(BlockKernel(3.0, 2.0, 0.6), CLASSES), Method(solver="tsit5")
    cpu, dense = jax.devices()[0], Flow(np.eye(12), CLASSES)
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (START, dense))
    place = simulation._device_of
    assert place(flow, START, TIMES, full, None, None) is None, "on a CPU nothing is moved"
    monkeypatch.setattr(simulation, "platform", lambda: "cuda")
    assert place(flow, START, TIMES, full, None, None) == cpu
    assert place(flow, START, TIMES, full, None, "cpu") == cpu
    as_if(monkeypatch, single_run=1e3)
    assert place(dense, START, TIMES, full, None, None) is None, "large matrices stay on the accelerator"
    assert place(flow, START, TIMES, Method(), None, None) == cpu, "the default method runs on the host"
    monkeypatch.setattr(simulation, "platform", lambda: "tpu")
    monkeypatch.setattr(simulation, "_warned", set())
    monkeypatch.setitem(CONSTANTS, "double", CONSTANTS["double"]._replace(tpu=Choice(0, "data sheet")))
    assert place(single[1], single[0], TIMES, full, None, None) is None
    with pytest.warns(UserWarning, match="tpu has no double precision: it runs on the CPU"):
        run = simulate(START, dense, times=TIMES, method="tsit5", observed=False)
    assert run.states.W.devices() == {cpu}
    with pytest.raises(ValueError, match="device: expected a platform that is here, got 'tpu'"):
        simulate(START, flow, times=TIMES, device="tpu")
    with pytest.raises(ValueError, match="device: expected none under"):
        jax.jit(lambda between: loss(between, device="cpu"))(0.6)


class Checked(Flow):
    """The theorem, with a check of its own that fails late."""

    def __call__(self, t, state, args=None):
        state = eqx.tree_at(lambda s: s.W, state, eqx.error_if(state.W, t > 1.0, "t is beyond 1"))
        return super().__call__(t, state)


def test_checks_of_others_are_what_they_were():
    """Those of a flow of one's own, and those of diffrax where others call it with the same shapes."""
    flow = Checked(BlockKernel(3.0, 2.0, 0.6), CLASSES)
    with pytest.raises(Exception, match="t is beyond 1"):
        simulate(START, flow, times=TIMES, observed=False)
    simulate(START, Flow(BlockKernel(3.0, 2.0, 0.6), CLASSES), times=TIMES, reduced=False, observed=False)
    with pytest.raises(Exception, match=r"(in|de)creasing|sorted"):
        diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: -y),
            diffrax.Tsit5(),
            0.0,
            2.0,
            0.1,
            jnp.ones(2),
            saveat=diffrax.SaveAt(ts=jnp.array([0.0, 2.0, 0.5])),
        )
