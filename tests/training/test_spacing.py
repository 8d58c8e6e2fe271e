"""How often kernels are measured where the settings do not say."""

import jax.numpy as jnp
import pytest

from ntkcollapse.ntk.kernel_work import KernelWork, kernel_work
from ntkcollapse.training import announcer as said_by
from ntkcollapse.training import plan as planned
from ntkcollapse.training.plan import Plan
from tests.ntk.zoo import normal
from tests.training.settings import small


def test_multiplications_of_a_kernel():
    params = {"w": normal(0, 6, 5), "b": normal(1, 5), "v": normal(2, 5, 3)}

    def f(p, x):
        return jnp.tanh(x @ p["w"] + p["b"][None, :]) @ p["v"]

    # Passes; Grams of inputs and cotangents for all pairs, or gradients alone. No way back to the samples.
    passes = 20 * (6 * 5 + 5 * 3 + 3 * 5 * 3)
    assert kernel_work(f, params, normal(3, 20, 6)) == KernelWork(45, passes + 20**2 * (6 + 3 * 5 + 5 + 3 * 3))
    alone = passes + 20 * 3 * (6 * 5 + 5 * 3)
    assert kernel_work(f, params, normal(3, 20, 6), pairs=False) == KernelWork(45, alone)


@pytest.mark.parametrize(("kernel", "expected"), [(1e8, 32), (6e8, 10), (1e10, 6)])
def test_kernels_are_at_most_a_tenth_of_a_long_run(kernel, expected, monkeypatch, capsys):
    # 200,000 multiplications a sample and pass: at most 6e9 for the kernels of the run.
    plan = Plan.of(small(measure=("kappa",), measure_every=0, measure_log=None))
    samples = plan.last * len(plan.splits.train.inputs) / plan.batches.per_epoch
    monkeypatch.setattr(planned, "_LITTLE", 0)
    monkeypatch.setattr(planned, "kernel_work", lambda *_, **__: KernelWork(round(6e9 / (0.3 * samples)), int(kernel)))
    assert plan.spaced == expected
    assert len(plan.measured_at) <= expected + 1
    with said_by.Announcer(plan, "lines"):
        said = capsys.readouterr().err
    assert ("--measure-log 32" in said) == (expected < 32)


def test_what_is_asked_for_is_measured(monkeypatch):
    monkeypatch.setattr(planned, "kernel_work", lambda *_, **__: KernelWork(1, 10**15))
    for changes in ({"measure": ("kappa",), "measure_log": 20}, {"measure": ("train",), "measure_log": None}):
        plan = Plan.of(small(**changes))
        count = changes["measure_log"] or 32
        assert plan.measured_at == plan.config.measured_steps(plan.batches.per_epoch, count)


def test_a_small_run_is_measured_as_often_as_ever():
    plan = Plan.of(small(measure=("kappa", "gamma"), measure_log=None))
    assert plan.spaced == 32
