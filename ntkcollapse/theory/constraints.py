"""Surfaces and bodies on which a flow is kept: the Π of the general state equation."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Float

from ntkcollapse._checks import check_positive, is_traced
from ntkcollapse.classes import Classes
from ntkcollapse.last_layer import LastLayer


class Constraint(eqx.Module):
    """A set of allowed states, by its two verbs: the nearest allowed state, and the velocities that do not leave it.

    Projections are orthogonal in the Euclidean metric, so that they belong to flows under K ∝ I.
    """

    @abc.abstractmethod
    def retract(self, state: LastLayer, classes: Classes) -> LastLayer:
        """An allowed state near `state`: itself where it is allowed."""

    @abc.abstractmethod
    def tangent(self, state: LastLayer, velocity: LastLayer, classes: Classes) -> LastLayer:
        """Π: the velocity less what would leave the set, at an allowed state."""

    def check(self, state: LastLayer, classes: Classes, tolerance: float = 1e-6) -> None:
        """Raises ValueError where a start is not allowed; `retract` gives one that is."""
        violation = self.violation(state, classes)
        if not is_traced(violation) and not float(violation) <= tolerance:
            raise ValueError(
                f"start: expected a state that satisfies {self}, got one that is off by {float(violation):.3g} "
                "(relative); start from constraint.retract(start, classes)."
            )

    def violation(self, state: LastLayer, classes: Classes) -> Float[Array, ""]:
        """‖state − retract(state)‖ / ‖state‖ over H, W and b together."""
        allowed = self.retract(state, classes)
        pairs = [(state.H, allowed.H), (state.W, allowed.W), (state.b, allowed.b)]
        off = sum(jnp.sum(jnp.square(x - y)) for x, y in pairs)
        size = sum(jnp.sum(jnp.square(x)) for x, _ in pairs)
        return jnp.sqrt(off / jnp.where(size > 0, size, 1))


def _with(state: LastLayer, H=None, W=None, b=None) -> LastLayer:
    new = tuple(old if x is None else x for x, old in ((H, state.H), (W, state.W), (b, state.b)))
    return eqx.tree_at(lambda s: (s.H, s.W, s.b), state, new)


class Unconstrained(Constraint):
    """Every state is allowed."""

    def retract(self, state, classes):
        del classes
        return state

    def tangent(self, state, velocity, classes):
        del state, classes
        return velocity


class Norms(Constraint):
    """Every feature vector has ‖h_i‖ ≤ radius_H and every classifier ‖w_k‖ ≤ radius_W; = on the spheres.

    Args:
        radius_H, radius_W: None leaves that factor free.
        spheres: whether norms are fixed instead of bounded.
    """

    radius_H: float | Float[Array, ""] | None = None
    radius_W: float | Float[Array, ""] | None = None
    spheres: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        check_positive("radius_H, radius_W", [r for r in (self.radius_H, self.radius_W) if r is not None])

    def retract(self, state, classes):
        del classes
        H, W = (
            x if radius is None else _into_ball(x, radius, axis, self.spheres)
            for x, radius, axis in ((state.H, self.radius_H, 0), (state.W, self.radius_W, 1))
        )
        return _with(state, H=H, W=W)

    def tangent(self, state, velocity, classes):
        del classes
        H, W = (
            v if radius is None else _stay(x, v, radius, axis, self.spheres)
            for x, v, radius, axis in (
                (state.H, velocity.H, self.radius_H, 0),
                (state.W, velocity.W, self.radius_W, 1),
            )
        )
        return _with(velocity, H=H, W=W)


class FixedFrame(Constraint):
    """Feature vectors in a ball, ‖h_i‖ ≤ radius_H, under a classifier at rest with Gram matrix W Wᵀ = gram.

    The nearest classifier with that Gram matrix is S U Vᵀ, with S = gram^{1/2} and S W = U Σ Vᵀ (Procrustes).

    Args:
        radius_H: of the ball.
        gram: (C, C), positive semidefinite, of rank at most n.
    """

    radius_H: float | Float[Array, ""]
    gram: Float[Array, "C C"]

    def __check_init__(self):
        check_positive("radius_H", self.radius_H)

    def retract(self, state, classes):
        del classes
        # W is data, through whose correction no gradient flows; on the way it is at rest and needs none.
        W, gram = jax.lax.stop_gradient(state.W), self.gram.astype(state.W.dtype)
        tolerance = 1e3 * jnp.finfo(W.dtype).eps * jnp.linalg.norm(gram)
        is_off = jnp.linalg.norm(W @ W.T - gram) > tolerance
        correction = jax.lax.cond(is_off, lambda: _nearest_frame(W, gram) - W, lambda: jnp.zeros_like(W))
        return _with(state, H=_into_ball(state.H, self.radius_H, 0, False), W=state.W + correction)

    def tangent(self, state, velocity, classes):
        del classes
        H = _stay(state.H, velocity.H, self.radius_H, 0, False)
        return _with(velocity, H=H, W=jnp.zeros_like(velocity.W))


class NormBudget(Constraint):
    """The layer-peeled budgets, as inequalities.

    (1/C) Σ_k ‖w_k‖² ≤ energy_W,     (1/C) Σ_k (1/m_k) Σ_{i in k} ‖h_i‖² ≤ energy_H
    """

    energy_H: float | Float[Array, ""]
    energy_W: float | Float[Array, ""]

    def __check_init__(self):
        check_positive("energy_H, energy_W", (self.energy_H, self.energy_W))

    def _weights(self, classes: Classes) -> Float[Array, "1 N"]:
        return (classes.expand(1 / classes.weights) / classes.num_classes)[None, :]

    def retract(self, state, classes):
        root = jnp.sqrt(self._weights(classes))
        H = _into_ball(root * state.H, jnp.sqrt(self.energy_H), (0, 1), False) / root
        W = _into_ball(state.W, jnp.sqrt(self.energy_W * classes.num_classes), (0, 1), False)
        return _with(state, H=H, W=W)

    def tangent(self, state, velocity, classes):
        # The surface's normal is (weights · H), not H: the budget is a weighted norm, the metric is not.
        weights = self._weights(classes)
        energy = jnp.sum(weights * jnp.square(state.H))
        normal = weights * state.H
        outward = jnp.sum(normal * velocity.H)
        leaves = (energy >= self.energy_H * (1 - _EDGE)) & (outward > 0)
        H = velocity.H - jnp.where(leaves, outward / jnp.sum(jnp.square(normal)), 0) * normal
        W = _stay(state.W, velocity.W, jnp.sqrt(self.energy_W * classes.num_classes), (0, 1), False)
        return _with(velocity, H=H, W=W)


class CentralPath(Constraint):
    """Features with within-class covariance I, and W, b their least-squares classifier.

        Σ_W = (1/N) Σ_i (h_i − mean)(h_i − mean)ᵀ = I_n,     (W, b) = argmin ‖W H + b 1ᵀ − Y‖

    The velocity is projected onto the tangent space of the first condition. Needs N − C ≥ n, or Σ_W has no full rank.

    Raises:
        ValueError: more than N − C features.
    """

    def retract(self, state, classes):
        n, room = state.H.shape[0], classes.num_samples - classes.num_classes
        if n > room:
            raise ValueError(
                f"H: expected at most N - C = {room} features, or their within-class covariance is singular; got {n}; "
                "take more samples or fewer features."
            )
        deviations = classes.deviations(state.H)
        covariance = deviations @ deviations.T / classes.num_samples
        # Any root will do, since the flow does not see rotations of feature space; this one is smooth.
        H = jsl.solve_triangular(jnp.linalg.cholesky(covariance), state.H, lower=True)
        W, b = least_squares_classifier(H, classes)
        return LastLayer(H=H, W=W, b=b)

    def tangent(self, state, velocity, classes):
        means, deviations = classes.means(velocity.H), classes.deviations(state.H)
        moved = classes.deviations(velocity.H)
        cross = moved @ deviations.T / classes.num_samples
        H = classes.expand(means) + moved - (cross + cross.T) / 2 @ deviations
        # The classifier follows: the derivative of least squares along the motion of the features.
        W, b = jax.jvp(lambda H: least_squares_classifier(H, classes), (state.H,), (H,))[1]
        return LastLayer(H=H, W=W, b=b)


def least_squares_classifier(H: Float[Array, "n N"], classes: Classes) -> tuple[Array, Array]:
    """(W, b) that minimise ‖W H + b 1ᵀ − Y‖, for features of full rank about their mean."""
    Y = classes.Y.astype(H.dtype)
    h, y = H.mean(1), Y.mean(1)
    centred = H - h[:, None]
    W = jnp.linalg.solve(centred @ centred.T, centred @ (Y - y[:, None]).T).T
    return W, y - W @ h


def _nearest_frame(W: Float[Array, "C n"], gram: Float[Array, "C C"]) -> Float[Array, "C n"]:
    """S U Vᵀ with S = gram^{1/2} and S W = U Σ Vᵀ."""
    values, vectors = jnp.linalg.eigh(gram)
    root = vectors * jnp.sqrt(jnp.maximum(values, 0))[None, :] @ vectors.T
    U, _, Vt = jnp.linalg.svd(root @ W, full_matrices=False)
    return root @ (U @ Vt)


# Within this relative distance of its edge a body counts as reached.
_EDGE = 1e-9


def _into_ball(x, radius, axis, sphere):
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=True))
    scale = radius / jnp.where(norm > 0, norm, 1)
    return x * (scale if sphere else jnp.minimum(scale, 1))


def _stay(x, v, radius, axis, sphere):
    square = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    outward = jnp.sum(x * v, axis=axis, keepdims=True)
    leaves = jnp.ones_like(square, bool) if sphere else (square >= radius**2 * (1 - _EDGE)) & (outward > 0)
    return v - jnp.where(leaves, outward / jnp.where(square > 0, square, 1), 0) * x
