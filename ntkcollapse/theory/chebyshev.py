"""A stabilised explicit Runge-Kutta solver for stiff flows with a real, negative spectrum."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from ntkcollapse._arrays import as_array, module_of
from ntkcollapse._checks import check_whole

# Damping: inside the stability region every mode but the slowest shrinks by at least 1 − ε/3 a step.
ε = 2 / 13


# Steps for which an estimate of the spectral radius serves. It costs as much as a step of two or three stages.
SERVES = 10
# What it is raised by.
SAFETY = 1.2


class Radius(NamedTuple):
    """An estimate of the spectral radius, the vector it was found on, and the steps taken since."""

    bound: Float[Array, ""]
    direction: PyTree
    age: Int[Array, ""]


class ChebyshevState(NamedTuple):
    """What one step hands to the next: the slope where it ended, the counter, and what is known of the radius."""

    slope: PyTree
    evaluations: Int[Array, ""]
    radius: Radius | None


class RungeKuttaChebyshev(diffrax.AbstractAdaptiveSolver):
    r"""Second-order Runge-Kutta-Chebyshev method (RKC2) with its embedded error estimate.

    An explicit method of s stages that is stable for h ρ ≤ 0.653 (s² − 1), where ρ is the spectral radius of a Jacobian
    with real, negative spectrum. s is chosen anew in every step from h and ρ, so that a stiff solve over a time T
    needs about √(ρT) evaluations where an ordinary explicit pair needs ρT, without linear algebra and in the memory
    of six states. Accuracy, not stability, sets the step.

    `spectral_radius(t, y, args)` returns an upper bound of ρ; a bound twice too high costs √2 in stages, one too low is
    unstable (the error estimate then rejects steps). Without one, ρ is estimated by power iteration on the Jacobian
    (forward-mode products) at every tenth step, warm-started from the last time and raised by a fifth; its work is
    counted. Where ρ grows by more than that within ten steps, rejections shorten them until the next estimate.

    Works under `jit`, `vmap` (all members then go through as many stages as the one that needs most) and reverse-mode
    `grad` (checkpointed inside each step); no derivative is taken through ρ.

    With scan_kind "host" the loops over stages and products run in Python around compiled pieces, for steps that are
    taken one by one outside of `jit`: XLA's loops on a CPU run convolutions some ten times slower than straight code.

    A step that would need more than `max_stages` is refused: an adaptive controller shortens it, at the cost of one
    evaluation; constant steps end with an unsuccessful result. Rounding errors grow like s² inside a step, which is
    harmless in float64 and limits s to some tens in float32.

    Final `solver_state.evaluations` (with `SaveAt(solver_state=True)`) counts evaluations in accepted steps.

    Args:
        spectral_radius: (t, y, args) → upper bound of the Jacobian's spectral radius, a scalar; or None.
        max_stages: largest number of stages in a step.
        scan_kind: kind of the loop over stages; "lax" gives up reverse mode, "bounded" is for forward mode, "host" is
            for `integrate_by_steps`.

    Raises:
        ValueError: fewer than 2 stages.

    References:
        Sommeijer, Shampine and Verwer (1998), RKC: an explicit solver for parabolic PDEs, J. Comput. Appl. Math. 88.
    """

    spectral_radius: Callable | None = None
    max_stages: int = eqx.field(static=True, default=1000)
    scan_kind: Literal["checkpointed", "lax", "bounded", "host"] = eqx.field(static=True, default="checkpointed")

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar = diffrax.ThirdOrderHermitePolynomialInterpolation

    def __check_init__(self):
        check_whole("max_stages", self.max_stages)
        if self.max_stages < 2:
            raise ValueError(f"max_stages: expected at least 2, got {self.max_stages}.")

    def order(self, terms):
        del terms
        return 2

    def error_order(self, terms):
        # The estimate is h³ y'''/15 to leading order, that of the method itself: no lower embedded order.
        del terms
        return 3

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def init(self, terms, t0, t1, y0, args):
        del t1
        slope = (_compiled_field if self.scan_kind == "host" else _field)(terms, t0, y0, args)
        radius = None
        if self.spectral_radius is None:
            direction = scattered_direction(y0)
            radius = Radius(jnp.zeros_like(_norm(direction)), direction, jnp.asarray(SERVES, jnp.int32))
        return ChebyshevState(slope, jnp.asarray(1, jnp.int32), radius)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        f0, evaluations, radius = solver_state
        if made_jump is not False:
            f0 = jax.lax.cond(made_jump, lambda: terms.vf(t0, y0, args), lambda: f0)
        on_host = self.scan_kind == "host"
        if self.spectral_radius is None:
            radius, work = _radius(terms, t0, y0, args, radius, on_host=on_host)
            ρ = radius.bound
        else:
            ρ, work = self.spectral_radius(t0, y0, args), 0
        begin = _compiled_begin if on_host else _begin
        control, hf0, s, too_many, θ, Y1 = begin(terms, t0, t1, y0, f0, ρ, self.max_stages)
        y1 = self._stages(terms, t0, t1, y0, hf0, args, control, s, θ, Y1)
        close = _compiled_close if on_host else _close
        y1, f1, hf1, y_error = close(terms, t1, y0, y1, hf0, args, control, too_many)
        # Adaptive controllers reject on the infinite error and drop this verdict with the step.
        result = diffrax.RESULTS.where(too_many, diffrax.RESULTS.dt_min_reached, diffrax.RESULTS.successful)
        dense_info = dict(y0=y0, y1=y1, k0=hf0, k1=hf1)
        return y1, y_error, dense_info, ChebyshevState(f1, evaluations + s + work, radius), result

    def _stages(self, terms, t0, t1, y0, hf0, args, control, s, θ, Y1):
        """Y_s of the three-term recurrence of the shifted Chebyshev polynomials, from Y_1."""
        if self.scan_kind == "host":
            Y, Y_before = Y1, y0
            for j in range(2, int(s) + 1):
                j = as_array(np.asarray(j, s.dtype))
                Y, Y_before = _compiled_stage(terms, t0, t1, y0, hf0, args, control, θ, s, j, Y, Y_before), Y
            return Y

        def body(carry):
            j, Y, Y_before = carry
            return j + 1, _stage(terms, t0, t1, y0, hf0, args, control, θ, s, j, Y, Y_before), Y

        _, y1, _ = eqxi.while_loop(
            lambda carry: carry[0] <= s,
            body,
            (jnp.asarray(2, s.dtype), Y1, y0),
            max_steps=None if self.scan_kind == "lax" else self.max_stages - 1,
            kind=self.scan_kind,
        )
        return y1


def _field(terms, t0, y0, args):
    return terms.vf(t0, y0, args)


def _begin(terms, t0, t1, y0, f0, ρ, largest):
    """What the stages share: h, h f₀, their number and whether it is too large, their angle θ; and Y_1."""
    control = terms.contr(t0, t1)
    hf0 = terms.prod(f0, control)
    s, too_many = _number_of_stages(jax.lax.stop_gradient(jnp.abs(t1 - t0) * ρ), largest)
    θ = _angle(s, jnp.result_type(t0, float))
    first = _coefficients(θ, s, 1).slope
    return control, hf0, s, too_many, θ, jax.tree.map(lambda y, f: y + _cast(first, y) * f, y0, hf0)


def _stage(terms, t0, t1, y0, hf0, args, control, θ, s, j, Y, Y_before):
    """Y_j from Y_{j−1} and Y_{j−2}."""
    a = _coefficients(θ, s, j)
    hf = terms.vf_prod(t0 + a.time * (t1 - t0), Y, args, control)

    def combine(Y, Y_before, y, hf, hf0):
        μ, ν, μs, γs = (_cast(x, y) for x in (a.one_back, a.two_back, a.slope, a.first_slope))
        return (1 - μ - ν) * y + μ * Y + ν * Y_before + μs * hf + γs * hf0

    return jax.tree.map(combine, Y, Y_before, y0, hf, hf0)


def _close(terms, t1, y0, y1, hf0, args, control, too_many):
    """Where the step ends, its slope there, as it is and times h, and the error estimate."""
    f1 = terms.vf(t1, y1, args)
    hf1 = terms.prod(f1, control)
    # A step so long that it overflows must not reach the controller as NaN, which it can neither accept nor
    # reject: it ends where it began, with an infinite error.
    finite = jax.tree.map(lambda y, hf: jnp.all(jnp.isfinite(y) & jnp.isfinite(hf)), y1, hf1)
    failed = too_many | ~jnp.stack(jax.tree.leaves(finite)).all()
    y1, hf1 = jax.tree.map(lambda new, old: jnp.where(failed, old, new), (y1, hf1), (y0, hf0))

    def estimate(y0, y1, hf0, hf1):
        error = 0.8 * (y0 - y1) + 0.4 * (hf0 + hf1)
        return jnp.where(failed, jnp.asarray(jnp.inf, error.dtype), error)

    return y1, f1, hf1, jax.tree.map(estimate, y0, y1, hf0, hf1)


_compiled_field, _compiled_begin = eqx.filter_jit(_field), eqx.filter_jit(_begin)
_compiled_stage, _compiled_close = eqx.filter_jit(_stage), eqx.filter_jit(_close)


class _StageCoefficients(NamedTuple):
    """Y_j = (1 − μ − ν) y₀ + μ Y_{j−1} + ν Y_{j−2} + μ̃ h F_{j−1} + γ̃ h F₀, with F_{j−1} taken at c_{j−1}."""

    one_back: Array
    two_back: Array
    slope: Array
    first_slope: Array
    time: Array


def _angle(s: Int[Array, ""], dtype) -> Float[Array, ""]:
    """θ with w₀ = 1 + ε/s² = cosh θ. The half angle keeps the digits that arccosh near 1 would lose."""
    return 2 * jnp.arcsinh(jnp.sqrt(ε / 2) / s.astype(dtype))


def _coefficients(θ, s, j) -> _StageCoefficients:
    """Coefficients of stage j among s, in closed form: the Chebyshev polynomials at w₀ = cosh θ are T_j = cosh jθ."""

    def chebyshev(k):
        # T_k, T_k', T_k'' at w₀, from cosh kθ and sinh θ d/dw₀ = d/dθ.
        k = jnp.asarray(k).astype(θ.dtype)
        T, S = jnp.cosh(k * θ), jnp.sinh(k * θ) / sinh
        return T, k * S, k * (k * T - S * w0) / sinh**2

    def b(k):
        # b₀ = b₁ = b₂: the second-order conditions leave the first two free.
        k = jnp.maximum(k, 2)
        _, first, second = chebyshev(k)
        return second / first**2

    w0, sinh = jnp.cosh(θ), jnp.sinh(θ)
    _, first, second = chebyshev(s)
    w1 = first / second
    if isinstance(j, int) and j == 1:
        zero = jnp.zeros_like(θ)
        return _StageCoefficients(zero, zero, b(2) * w1, zero, zero)
    T_before, first_before, second_before = chebyshev(j - 1)
    b_j, b_before = b(j), b(j - 1)
    slope = 2 * b_j * w1 / b_before
    # c₁ = c₂ / T₂'(w₀) is the one that does not follow the general law: T₁'' = 0.
    _, first_2, second_2 = chebyshev(2)
    c_1 = w1 * second_2 / first_2**2
    return _StageCoefficients(
        one_back=2 * b_j * w0 / b_before,
        two_back=-b_j / b(j - 2),
        slope=slope,
        first_slope=-(1 - b_before * T_before) * slope,
        time=jnp.where(j == 2, c_1, w1 * second_before / first_before),
    )


def _number_of_stages(hρ: Float[Array, ""], largest: int) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """The fewest stages s with h ρ ≤ (2/3)(s² − 1)(1 − 2ε/15), and whether they exceed the largest number."""
    wanted = jnp.ceil(jnp.sqrt(1 + hρ * (1.5 / (1 - 2 * ε / 15))))
    # Not finite: ρ overflowed, and no step of this length makes sense.
    too_many = ~(wanted <= largest)
    s = jnp.where(too_many, 2, jnp.maximum(wanted, 2)).astype(jnp.int32)
    return s, too_many


def _radius(terms, t, y, args, known, *, on_host):
    """The estimate, made anew where it has served its time, and the work in evaluations."""

    def anew(_):
        bound, direction, work = _power_iteration(terms, t, y, args, known.direction, on_host=on_host)
        return Radius(bound, direction, jnp.ones_like(known.age)), work

    def still(_):
        return known._replace(age=known.age + 1), jnp.zeros_like(known.age)

    if on_host:
        return (anew if known.age >= SERVES else still)(None)
    return jax.lax.cond(known.age >= SERVES, anew, still, None)


def spectral_radius(flow, t, y, direction: PyTree, *, on_host: bool) -> tuple[Float[Array, ""], PyTree]:
    """Spectral radius of the Jacobian of a field flow(t, y), raised by a fifth, and the vector it was found on.

    By power iteration from `direction`; from Python with `on_host`, for fields with convolutions.
    """
    estimate = _power_iteration if on_host else _compiled_power_iteration
    ρ, direction, _ = estimate(diffrax.ODETerm(_call), t, y, flow, direction, on_host=on_host)
    return ρ, direction


def _call(t, y, flow):
    return flow(t, y)


def _power_iteration(terms, t, y, args, direction, *, on_host, tolerance=0.02, most=50):
    """Estimated spectral radius of ∂vf/∂y, the vector it was found on, and the work in evaluations."""
    arrays, rest = eqx.partition((terms, t, y, args, direction), eqx.is_array)
    terms, t, y, args, direction = eqx.combine(jax.lax.stop_gradient(arrays), rest)

    def unsettled(carry):
        k, size, before, _ = carry
        return (k < most) & (jnp.abs(size - before) > tolerance * size)

    def body(carry):
        k, before, _, v = carry
        size, v = (_compiled_product if on_host else _product)(terms, t, y, args, v)
        return k + 1, size, before, v

    carry = body((jnp.asarray(0, jnp.int32), jnp.full_like(_norm(direction), jnp.inf), None, direction))
    if on_host:
        while unsettled(carry):
            carry = body(carry)
    else:
        carry = jax.lax.while_loop(unsettled, body, carry)
    k, size, _, v = carry
    # Where J vanishes on the vector there is nothing to go on with: start over from the old one.
    v = jax.tree.map(lambda new, old: jnp.where(_cast(size, new) > 0, new, old), v, direction)
    return SAFETY * size, v, 2 * k


_compiled_power_iteration = eqx.filter_jit(_power_iteration)


def _product(terms, t, y, args, v):
    """‖J v‖ and J v over it, J the field's Jacobian. It costs about two evaluations."""
    Jv = jax.jvp(lambda y: terms.vf(t, y, args), (y,), (v,))[1]
    size = _norm(Jv)
    return size, jax.tree.map(lambda x: x / _cast(jnp.where(size > 0, size, 1), x), Jv)


_compiled_product = eqx.filter_jit(_product)


def scattered_direction(y: PyTree) -> PyTree:
    """A unit vector without symmetry, so that no invariant subspace of the flow hides the largest eigenvalue."""
    leaves, treedef = jax.tree.flatten(y)
    xp: Any = module_of(y)
    v = [xp.cos(xp.square(xp.arange(x.size, dtype=x.dtype) + i)).reshape(x.shape) for i, x in enumerate(leaves)]
    size = xp.sqrt(sum(xp.sum(xp.square(x)) for x in v))
    return treedef.unflatten([as_array(x / size.astype(x.dtype)) for x in v])


def _norm(y: PyTree) -> Float[Array, ""]:
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(y)))


def _cast(x: Array, like: Array) -> Array:
    return x.astype(jnp.result_type(like))
