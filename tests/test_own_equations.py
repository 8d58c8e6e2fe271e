"""Equations of one's own are integrated as they are, and observed with their own kernel."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from ntkcollapse import AbstractFlow, BlockKernel, Classes, Flow, KernelPath, LastLayer, Method, SquaredError, simulate
from tests.cases import random_state

CLASSES = Classes.balanced(3, 4)
VALUES: Any = (3.0, 2.0, 0.6)
KAPPA = BlockKernel(*VALUES)
TIMES = np.linspace(0.0, 1.0, 5)
START = random_state(5, CLASSES)
METHOD = Method(solver="dopri8", rtol=1e-11, atol=1e-13)


def by_scipy(gradient, kernel):
    """W at the last time of Ḣ = −Wᵀ G K, Ẇ = −G Hᵀ, ḃ = −G 1, written once more in numpy."""
    n, N, C = 5, 12, 3
    Y, K0 = np.asarray(CLASSES.Y), np.asarray(KAPPA.as_matrix(CLASSES))

    def field(t, y):
        H, W, b = y[: n * N].reshape(n, N), y[n * N : -C].reshape(C, n), y[-C:]
        G = gradient(W @ H + b[:, None], Y)
        return np.concatenate([(-W.T @ G @ kernel(K0, W, t)).ravel(), (-G @ H.T).ravel(), -G.sum(1)])

    y0 = np.concatenate([np.asarray(x).ravel() for x in (START.H, START.W, START.b)])
    end = solve_ivp(field, (0.0, 1.0), y0, method="DOP853", rtol=1e-11, atol=1e-13).y[:, -1]
    return end[n * N : -C].reshape(C, n)


class GrowingKernel(Flow):
    """The feature kernel grows with the classifier: K (1 + ‖W‖²)."""

    def kernel_at(self, t, state):
        size = 1 + jnp.sum(jnp.square(state.W))
        return jax.tree.map(lambda x: size * x, self.kernel.at(t))

    def __call__(self, t, state, args=None):
        flow = Flow(self.kernel_at(t, state), self.classes, self.loss, self.weight_decay)
        return flow(t, state)


class Quartic(SquaredError):
    """¼ Σ (f − Y)⁴ under the name and scale of another loss."""

    def value(self, f, Y):
        return self.scale * jnp.sum((f - Y) ** 4) / 4

    def gradient(self, f, Y):
        return self.scale * (f - Y) ** 3


class Doubled(BlockKernel):
    """Twice the block kernel in `mv` alone."""

    def mv(self, X, classes):
        return 2 * super().mv(X, classes)

    def solve(self, X, classes):
        return super().solve(X, classes) / 2


OWN = {
    "flow": (GrowingKernel(KAPPA, CLASSES), lambda f, Y: f - Y, lambda K, W, t: K * (1 + np.sum(W**2))),
    "loss": (Flow(KAPPA, CLASSES, loss=Quartic()), lambda f, Y: (f - Y) ** 3, lambda K, W, t: K),
    "kernel": (Flow(Doubled(*VALUES), CLASSES), lambda f, Y: f - Y, lambda K, W, t: 2 * K),
}


@pytest.mark.parametrize("part", OWN)
def test_an_equation_of_ones_own_is_not_replaced_by_ours(part):
    flow, gradient, kernel = OWN[part]
    run = simulate(START, flow, times=TIMES, method=METHOD)
    assert run.settings["flow"] == "full"
    np.testing.assert_allclose(run.states.W[-1], by_scipy(gradient, kernel), rtol=0, atol=1e-8)
    with pytest.raises(ValueError, match="reduced: the reduction is exact for squared error under a reducible kernel"):
        simulate(START, flow, times=TIMES, reduced=True)
    assert run.equation.plain == (part != "flow")
    assert run.equation.is_squared == (part != "loss")


def test_a_kernel_of_the_state_is_what_the_invariant_is_observed_with():
    flow = OWN["flow"][0]
    run = simulate(START, flow, times=TIMES, method=METHOD)
    size = 1 + np.sum(np.square(np.asarray(run.states.W)), axis=(1, 2))
    np.testing.assert_allclose(run["kappa_diagonal"], 3.0 * size, rtol=1e-12)
    assert isinstance(run.kernel, KernelPath)
    kappa = run.kernel_at(-1)
    assert isinstance(kappa, BlockKernel)
    assert float(kappa.within) == pytest.approx(2.0 * size[-1])
    state = run.last_layer(-1)
    K = size[-1] * np.asarray(KAPPA.as_matrix(CLASSES))
    invariant = state.W.T @ state.W - state.H @ np.linalg.solve(K, np.asarray(state.H).T)
    assert float(run["invariant_norm"][-1]) == pytest.approx(np.linalg.norm(invariant), rel=1e-9)


def test_a_kernel_that_says_it_is_reducible_is_reduced():
    class Named(BlockKernel):
        """A block kernel by another name: nothing that acts is changed."""

    run = simulate(START, Flow(Named(*VALUES), CLASSES), times=TIMES, method=METHOD)
    assert run.settings["flow"] == "reduced"
    assert not Doubled.reducible


def test_what_is_meant_plainly_is_taken():
    """Three numbers for a kernel, a loss by its name, three decays, plain times."""
    by_words = Flow((3.0, 2.0, 0.6), CLASSES, loss="squared", weight_decay=(0.1, 0.2, 0.0))
    by_types = Flow(KAPPA, CLASSES, loss=SquaredError(), weight_decay={"H": 0.1, "W": 0.2})
    runs = [simulate(START, flow, times=[0.0, 0.5, 1.0]) for flow in (by_words, by_types)]
    np.testing.assert_array_equal(runs[0].states.W, runs[1].states.W)
    with pytest.raises(TypeError, match="got the function 'drifting'; for a kernel that depends on time give a Kernel"):
        Flow(drifting, CLASSES)
    with pytest.raises(ValueError, match=r"weight_decay: expected one rate, three rates .* got 2 rates"):
        Flow(KAPPA, CLASSES, weight_decay=(0.1, 0.2))
    with pytest.raises(TypeError, match="times: expected the flow times to save at, got none"):
        simulate(START, KAPPA, CLASSES)
    with pytest.raises(TypeError, match="classes: expected the classes behind the columns of H, got none"):
        simulate(START, KAPPA, times=TIMES)


def drifting(t, state):
    return KAPPA


def test_times_that_single_precision_cannot_tell_apart_are_refused():
    single = LastLayer(*(np.asarray(x, np.float32) for x in (START.H, START.W, START.b)))
    with pytest.raises(ValueError, match="times in float32: expected strictly increasing times"):
        simulate(single, KAPPA, CLASSES, np.array([0.0, 1.0, 1.0 + 1e-12]))


class Bare(AbstractFlow):
    """The flow of H alone, with every part written down; nothing makes parts of plain words."""

    kernel: Any
    classes: Any
    loss: Any
    weight_decay: Any
    bias: str = eqx.field(static=True)
    constraint: Any
    noise: Any

    @property
    def is_plain(self):
        return False

    def last_layer(self, state: Any) -> Any:
        return state

    def __call__(self, t, state: Any, args=None) -> Any:
        return jax.tree.map(jnp.zeros_like, state)


class Unfinished(AbstractFlow):
    """No parts but two."""

    classes: Classes
    kernel: Any

    @property
    def is_plain(self):
        return False

    def last_layer(self, state: Any) -> Any:
        return state

    def __call__(self, t, state: Any, args=None) -> Any:
        return state


class Pair(Flow):
    """A state (layer, velocity)."""

    def last_layer(self, state: Any) -> Any:
        return state[0]


class Words(Flow):
    """Its last layer is none."""

    def last_layer(self, state: Any) -> Any:
        return "H, W, b"


class Short(Flow):
    """Its speed is that of H alone."""

    def __call__(self, t, state: Any, args=None) -> Any:
        return state.H


class Still(Unfinished):
    """Half of the methods."""

    loss: Any = None
    weight_decay: Any = None
    bias: str = "free"
    constraint: Any = None
    noise: Any = None
    __call__: Any = AbstractFlow.__call__
    is_plain: Any = AbstractFlow.is_plain


class Forgetful(Flow):
    """Its __init__ sets one field."""

    def __init__(self, kernel):
        self.kernel = kernel


unfinished: Any = Unfinished
still: Any = Still


def bare(**others):
    flow = Flow(KAPPA, CLASSES)
    parts = {name: getattr(flow, name) for name in ("kernel", "classes", "loss", "weight_decay", "bias", "constraint")}
    return Bare(**{**parts, "noise": None, **others})


def run(flow: Any, start: Any = START, times: Any = TIMES, **options: Any):
    return lambda: simulate(start, flow, times=times, **options)


BAD: dict[str, tuple[Any, str]] = {
    "no loss": (
        lambda: unfinished(CLASSES, KAPPA),
        r"Unfinished: expected .* got none of the name .*loss.*ntkcollapse\.Flow",
    ),
    "no speed": (
        lambda: still(CLASSES),
        "Still: expected a flow with all .* of AbstractFlow, got none of the name __call__, is_plain; add",
    ),
    "a field left out": (
        lambda: Forgetful(KAPPA),
        r"Forgetful.classes: expected a value from its __init__, got none; set self.classes there",
    ),
    "a loss by name": (
        run(bare(loss="squared")),
        r"Bare.loss: expected a Loss, got str; a subclass of ntkcollapse.Flow",
    ),
    "a list of sizes": (run(bare(classes=[4, 4, 4])), "Bare.classes: expected a Classes, got list"),
    "one decay": (run(bare(weight_decay=0.1)), "Bare.weight_decay: expected a WeightDecay, got float"),
    "three numbers": (run(bare(kernel=VALUES)), "Bare.kernel: expected a SampleKernel or KernelPath or .*, got tuple"),
    "no constraint": (run(bare(constraint=None)), "Bare.constraint: expected a Constraint, got NoneType"),
    "noise of no size": (run(bare(noise=0.1)), r"Bare.diffusion: expected a method `diffusion\(state\)` beside noise"),
    "an unknown bias": (run(bare(bias="none")), "bias: expected one of 'free'"),
    "a part of the state": (
        run(Pair(KAPPA, CLASSES)),
        "start: expected a state of which Pair.last_layer gives H, W and b",
    ),
    "no last layer": (run(Words(KAPPA, CLASSES)), "Words.last_layer: expected a LastLayer, .* got str of a LastLayer"),
    "a part of the speed": (run(Short(KAPPA, CLASSES)), r"Short: expected d state/dt as a pytree like the state, with"),
    "no flow": (run(Unfinished), "kernel: expected a kernel, got the function 'Unfinished', which is none"),
    "fixed steps": (
        run(Flow(KAPPA, CLASSES), method=Method(solver=diffrax.Euler())),
        r"solver: expected one that estimates the error of a step, got one of fixed steps.*Method\(step=...\)",
    ),
    "no solver": (
        run(Flow(KAPPA, CLASSES), method=Method(solver=diffrax.Tsit5)),
        "solver: expected one",
    ),
    "two ways": (lambda: Method(solver="tsit5", step=0.1), "solver: expected none beside a step"),
    "a step backwards": (lambda: Method(step=-0.1), "step: expected numbers above zero"),
    "momentum alone": (lambda: Method(momentum=0.9), "momentum: expected a step beside it"),
    "all momentum": (lambda: Method(step=0.1, momentum=1.0), r"momentum: expected a number in \[0, 1\)"),
    "between steps": (
        run(Flow(KAPPA, CLASSES), times=[0.0, 0.25], method=Method(step=0.1)),
        "times: expected multiples of 0.1 after the first .*, got 0.25: between two steps there is nothing",
    ),
    "within a step": (
        run(Flow(KAPPA, CLASSES), times=[0.0, 1e-9], method=Method(step=0.1)),
        "times: expected multiples",
    ),
    "too many steps": (
        run(Flow(KAPPA, CLASSES), times=[0.0, 1.0], method=Method(step=0.1, max_steps=9)),
        "times: expected at most max_steps = 9 steps until the last, got 10",
    ),
    "steps with noise": (
        run(Flow(KAPPA, CLASSES, noise=0.1), method=Method(step=0.25), key=jax.random.key(0)),
        r"step: expected a flow without noise beside Method\(step=0.25\), got Flow with noise; .*'shark'.*noise=None",
    ),
    "no key": (run(Flow(KAPPA, CLASSES, noise=0.1)), r"key: expected .* with noise, got none; give key=jax.random.key"),
    "a key for nothing": (
        run(Flow(KAPPA, CLASSES), key=jax.random.key(0)),
        "key: expected none for a flow without noise, got a key; leave it out",
    ),
    "noise for another solver": (
        run(Flow(KAPPA, CLASSES, noise=0.1), method="chebyshev", key=jax.random.key(0)),
        "solver: expected one for flows with noise, got RungeKuttaChebyshev; leave it out, or take 'shark'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_flow_of_ones_own_lacks_is_named_before_any_compute(case):
    action, message = BAD[case]
    with pytest.raises((TypeError, ValueError), match=message):
        action()


def test_derivatives_reach_what_functions_of_a_flow_hold():
    """A number that a function closes over is in no array of the flow: of its equation, its loss and its kernel."""

    def equation(a):
        class Scaled(Flow):
            def __call__(self, t, state, args=None):
                return jax.tree.map(lambda x: a * x, super().__call__(t, state))

        return Scaled(KAPPA, CLASSES)

    def loss(a):
        class ScaledError(SquaredError):
            def gradient(self, f, Y):
                return a * (f - Y)

        return Flow(KAPPA, CLASSES, loss=ScaledError())

    def kernel(a):
        return Flow(lambda t: (3.0 + a * t, 2.0, 0.6), CLASSES)

    # The same by scipy: the first two are one equation.
    scaled = lambda a: (lambda f, Y: a * (f - Y), lambda K, W, t: K)  # noqa: E731
    growing = lambda a: (lambda f, Y: f - Y, lambda K, W, t: K + a * t * np.eye(12))  # noqa: E731
    h = 1e-4
    for flow, parts in ((equation, scaled), (loss, scaled), (kernel, growing)):

        def final(a, flow=flow):
            run = simulate(START, flow(a), times=TIMES, method=METHOD, observed=False)
            return jnp.sum(jnp.square(run.states.W[-1]))

        lower, middle, upper = (np.sum(by_scipy(*parts(a)) ** 2) for a in (1.1 - h, 1.1, 1.1 + h))
        value, derivative = jax.value_and_grad(final)(1.1)
        np.testing.assert_allclose(value, middle, rtol=1e-9)
        np.testing.assert_allclose(derivative, (upper - lower) / (2 * h), rtol=1e-6)


def test_derivatives_reach_what_a_loss_holds_that_the_equation_does_not():
    """A value that is a times another, with a gradient of its own: the derivative of what is observed is that other."""

    def last(a):
        class Valued(SquaredError):
            def value(self, f, Y):
                return a * super().value(f, Y)

            def gradient(self, f, Y):
                return f - Y

        return simulate(START, Flow(KAPPA, CLASSES, loss=Valued()), times=TIMES)["loss"][-1]

    # Not compiled as a whole, in which a number that is held goes another way.
    value, derivative = jax.value_and_grad(last)(1.1)
    np.testing.assert_allclose(1.1 * derivative, value, rtol=1e-12)
