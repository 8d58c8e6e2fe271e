"""Every block of docs/extend_the_theory.md runs, and gives what numpy and scipy give for the same equation."""

import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.integrate import simpson, solve_ivp

import ntkcollapse as nc
from ntkcollapse.comparison import RUNGS
from tests.comparison import cases

PAGE = (Path(__file__).parents[1] / "docs" / "extend_the_theory.md").read_text()
BLOCKS = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
# Heading → the code below it; "" is what stands before the first.
SECTIONS = {
    heading: "\n".join(BLOCKS.findall(text))
    for heading, _, text in (part.partition("\n") for part in re.split(r"^## ", "\n" + PAGE, flags=re.MULTILINE))
}


def section(*headings: str, **given: Any) -> dict[str, Any]:
    """What is defined after the first block of the page and those below these headings."""
    if not given:
        return dict(_section(*headings))
    return _run(headings[-1], dict(_section(*headings[:-1])) | given)


@functools.cache
def _section(*headings: str) -> dict[str, Any]:
    """Each is run once after those before it: most of what a test takes is to trace and compile them."""
    return _run(headings[-1], dict(_section(*headings[:-1]))) if headings else _run("", {})


def _run(heading: str, space: dict[str, Any]) -> dict[str, Any]:
    exec(compile(SECTIONS[heading], f"docs/extend_the_theory.md: {heading}", "exec"), space)
    return space


C, n, N = 3, 5, 12
Y = np.repeat(np.eye(C), 4, axis=1)
K = np.kron(np.eye(3), np.full((4, 4), 1.4)) + 0.6 + np.eye(12)


def squared(f):
    return f - Y


def velocity(H, W, b, K=K, gradient=squared):
    """−Wᵀ G K, −G Hᵀ and −G 1, once more in numpy."""
    G = gradient(W @ H + b[:, None])
    return -W.T @ G @ K, -G @ H.T, -G.sum(1)


def packed(*parts):
    return np.concatenate([np.asarray(part, float).ravel() for part in parts])


def unpacked(y, n=n):
    shapes = [(n, N), (C, n), (C,)] * (len(y) // (n * N + C * n + C))
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(y, ends), shapes, strict=True)]


def by_scipy(start, field, times=(0.0, 1.0)):
    """Parts at the last of the times of the flow of `field(t, *parts)` from the start's."""

    def flat(t, y):
        return packed(*field(t, *unpacked(y, len(start[0]))))

    solution = solve_ivp(flat, (times[0], times[-1]), packed(*start), method="DOP853", rtol=1e-10, atol=1e-12)
    return unpacked(solution.y[:, -1], len(start[0]))


def parts(layer):
    return [np.asarray(part) for part in (layer.H, layer.W, layer.b)]


def assert_ends_at(run, expected, atol=2e-5):
    for name, part in zip("HWb", expected, strict=False):
        np.testing.assert_allclose(getattr(run.states, name)[-1], part, rtol=0, atol=atol, err_msg=name)


def invariants(run, kernel=K):
    """WᵀW − H K⁻¹ Hᵀ at all times."""
    H, W = (np.asarray(x) for x in (run.states.H, run.states.W))
    return W.swapaxes(1, 2) @ W - H @ np.linalg.solve(kernel, H.swapaxes(1, 2))


def test_every_block_of_the_page_is_in_a_section_that_is_run():
    assert set(SECTIONS) == {
        "", "Another loss", "A kernel that moves", "Another state", "A constraint", "Noise", "Discrete steps",
        "Another optimiser", "Seen as ours are",
    }  # fmt: skip
    assert all(SECTIONS.values())


def test_losses():
    space = section("Another loss")

    def weighted(f):
        return np.repeat([1.0, 2.0, 4.0], 4)[None, :] * (f - Y)

    def focal(f):
        """∂/∂f of −(1 − p)² log p: (2 (1 − p) p log p − (1 − p)²) (y − softmax)."""
        softmax = np.exp(f) / np.exp(f).sum(0)
        p = np.sum(Y * softmax, axis=0)
        return (2 * (1 - p) * p * np.log(p) - (1 - p) ** 2)[None, :] * (Y - softmax)

    def hinge(f):
        s = 2 * Y - 1
        return -s * np.where(s * f < 1, 1 - s * f, 0)

    for name, gradient in (("weighted", weighted), ("hinge", hinge), ("focal", focal)):
        run = space[name]
        end = by_scipy(parts(space["start"]), lambda t, *q, g=gradient: velocity(*q, gradient=g))
        assert_ends_at(run, end)
        assert float(np.max(run["invariant_drift"])) < 1e-5
    f = end[1] @ end[0] + end[2][:, None]
    p = np.sum(Y * np.exp(f) / np.exp(f).sum(0), axis=0)
    assert float(space["focal"]["loss"][-1]) == pytest.approx(-np.sum((1 - p) ** 2 * np.log(p)), rel=1e-4)


def test_kernels_of_time_and_of_the_state():
    space = section("A kernel that moves")
    start = parts(space["start"])
    within = np.kron(np.eye(3), np.ones((4, 4)))
    assert_ends_at(space["growing"], by_scipy(start, lambda t, *q: velocity(*q, K=K + t * within)))
    np.testing.assert_allclose(space["growing"]["kappa_within"], 2.0 + space["times"], rtol=1e-12)
    assert isinstance(space["growing"].kernel, nc.KernelPath)

    run = space["feedback"]
    assert_ends_at(run, by_scipy(start, lambda t, H, W, b: velocity(H, W, b, K=K * (1 + np.sum(W**2)))))
    size = 1 + np.sum(np.square(np.asarray(run.states.W)), axis=(1, 2))
    np.testing.assert_allclose(run["kappa_diagonal"], 3.0 * size, rtol=1e-12)


def test_momentum():
    space = section("Another state")
    start = parts(space["start"])

    def field(t, *q):
        return *q[3:], *((f - v) / 0.1 for f, v in zip(velocity(*q[:3]), q[3:], strict=True))

    assert_ends_at(space["second_order"], by_scipy([*start, *(0 * part for part in start)], field))

    class Velocities(space["SecondOrder"]):
        def last_layer(self, state):
            return state[1]

    # μ İ + I is its value at the start and 2μ times the integral of ẆᵀẆ − Ḣ K⁻¹ Ḣᵀ.
    fine, both = np.linspace(0.0, 1.0, 201), (space["start"], space["at_rest"])
    q, v = (
        nc.simulate(both, kind(space["kappa"], space["classes"]), times=fine, method=nc.Method(rtol=1e-10, atol=1e-12))
        for kind in (space["SecondOrder"], Velocities)
    )
    H, W, dH, dW = (np.asarray(x) for x in (q.states.H, q.states.W, v.states.H, v.states.W))
    half = dW.swapaxes(1, 2) @ W - dH @ np.linalg.solve(K, H.swapaxes(1, 2))
    moved = invariants(q) + 0.1 * (half + half.swapaxes(1, 2))
    pulled = 2 * 0.1 * simpson(invariants(v), x=fine, axis=0)
    np.testing.assert_allclose(moved[-1] - moved[0], pulled, rtol=0, atol=1e-6)
    assert np.linalg.norm(pulled) > 1e-2


def test_a_constraint():
    space = section("A constraint")

    def field(t, H, W, b):
        dH, dW, db = velocity(H, W, b)
        return dH, dW - dW.mean(0, keepdims=True), db

    assert_ends_at(space["centred"], by_scipy(parts(space["allowed"]), field))
    np.testing.assert_allclose(np.asarray(space["centred"].states.W).sum(1), 0, atol=1e-12)
    assert float(space["centred"].statistics["largest_correction"]) < 1e-12


def test_noise():
    """Without a loss W is an Ornstein-Uhlenbeck process: mean W(0) e^{−λt}, variance σ² (1 − e^{−2λt})/2λ."""
    space = section("Noise")

    class Nothing(nc.Loss):
        scale: float = 1.0

        def value(self, f, Y):
            return jnp.sum(0 * f)

    assert np.all(np.isfinite(np.asarray(space["noisy"]["loss"])))
    wide = nc.LastLayer(H=np.ones((200, 12)), W=np.ones((3, 200)), b=np.zeros(3))
    flow = space["NoisyClassifier"](space["kappa"], space["classes"], Nothing(), {"W": 0.5}, noise=0.2)
    method = nc.Method(rtol=1e-2)
    run = nc.simulate(wide, flow, times=[0.0, 1.0], key=jax.random.key(1), method=method, observed=False)
    W = np.asarray(run.states.W[-1])
    variance = 0.2**2 * (1 - np.exp(-1.0))
    assert W.mean() == pytest.approx(np.exp(-0.5), abs=4 * np.sqrt(variance / W.size))
    assert W.var() == pytest.approx(variance, rel=4 * np.sqrt(2 / W.size))
    np.testing.assert_array_equal(run.states.H[-1], wide.H)


def loop(start, step, momentum, count, velocity=velocity):
    """Parts after each of so many steps of gradient descent."""
    q, v = [part.copy() for part in start], [0 * part for part in start]
    every = [[part.copy() for part in q]]
    for _ in range(count):
        v = [momentum * old + f for old, f in zip(v, velocity(*q), strict=True)]
        q = [part + step * moved for part, moved in zip(q, v, strict=True)]
        every.append([part.copy() for part in q])
    return every


def test_discrete_steps():
    space = section("Discrete steps")
    start = parts(space["start"])
    for run, step, momentum in ((space["descent"], 0.01, 0.0), (space["heavy_ball"], 0.001, 0.9)):
        every = loop(start, step, momentum, 100)
        assert run.settings["flow"] == "reduced"
        assert run.settings["step"] == step
        assert not run.equation.plain
        for i in range(11):
            for name, part in zip("HWb", every[10 * i], strict=True):
                np.testing.assert_allclose(getattr(run.last_layer(i), name), part, rtol=0, atol=1e-13)
    # A step moves the invariant by η² (H GᵀG Hᵀ − Wᵀ G K Gᵀ W), exactly.
    options = {"times": 0.01 * np.arange(11), "method": nc.Method(step=0.01), "reduced": False}
    full = nc.simulate(space["start"], nc.Flow(space["kappa"], space["classes"]), **options)
    H, W, b = (np.asarray(x) for x in (full.states.H, full.states.W, full.states.b))
    G = W @ H + b[:, :, None] - Y
    GH, WG = G @ H.swapaxes(1, 2), W.swapaxes(1, 2) @ G
    change = 0.01**2 * (GH.swapaxes(1, 2) @ GH - WG @ K @ WG.swapaxes(1, 2))
    np.testing.assert_allclose(np.diff(invariants(full), axis=0), change[:-1], rtol=0, atol=1e-14)
    assert np.abs(change).max() > 1e-4


def test_an_inertia_brings_the_flow_nearer_to_steps_with_momentum():
    space = section("Another state", "Discrete steps")
    inertia = 0.9 * 0.001 / 0.1**2
    flow = space["SecondOrder"](space["kappa"], space["classes"], inertia=inertia)
    nearer = nc.simulate((space["start"], space["at_rest"]), flow, times=space["times"])
    apart = [float(np.abs(run.states.W[-1] - space["heavy_ball"].states.W[-1]).max()) for run in (nearer, space["run"])]
    assert apart[0] < 0.2 * apart[1]


def test_other_optimisers():
    space = section("Another optimiser")
    start = parts(space["start"])

    def signs(*q):
        return [np.sign(part) for part in velocity(*q, K=np.eye(N))]

    assert_ends_at(space["signs"], loop(start, 0.01, 0.0, 100, signs)[-1], atol=1e-12)

    def unit(t, *q):
        v = velocity(*q, K=np.eye(N))
        return [part / np.linalg.norm(packed(*v)) for part in v]

    assert_ends_at(space["normalised"], by_scipy(start, unit))


def test_it_is_drawn_and_stands_on_the_ladder_beside_ours(monkeypatch):
    network = cases.linear_network(bias=False)
    measured = cases.run_of([network.last_layer] * len(cases.TIMES), cases.TIMES)
    # Set to be put back.
    monkeypatch.setitem(RUNGS, "block-inertia", RUNGS["block-frozen"])
    space = section("Another state", "Seen as ours are", measured=measured)
    ladder = space["ladder"]
    assert list(ladder.rungs) == ["block-frozen", "block-inertia"]
    start = parts(network.last_layer)
    kernel = np.asarray(cases.KAPPA.as_matrix(cases.CLASSES))

    def field(t, *q):
        return *q[3:], *((f - v) / 0.1 for f, v in zip(velocity(*q[:3], K=kernel), q[3:], strict=True))

    H, W, b, *_ = by_scipy([*start, *(0 * part for part in start)], field, cases.TIMES)
    loss = np.sum((W @ H + b[:, None] - Y) ** 2) / 2
    assert float(ladder.rungs["block-inertia"]["loss"][-1]) == pytest.approx(loss, rel=1e-5)
    assert abs(float(ladder.rungs["block-frozen"]["loss"][-1]) - loss) > 1e-2 * loss
    assert set(space["second_order"].observables) == set(space["run"].observables)
    assert "1i  block kernel, with inertia" in [
        text.get_text() for text in space["ladder_figure"].legends[0].get_texts()
    ]
    drawn = [line.get_ydata() for axes in space["figure"].axes for line in axes.lines]
    loss = np.asarray(space["second_order"]["loss"])[1:]
    assert any(len(y) == 10 and np.allclose(np.asarray(y, float), loss) for y in drawn)
    plt.close("all")
