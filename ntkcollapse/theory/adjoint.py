"""Steps of an integration that are kept, and gone through backwards.

Of the forward pass, every step's numbers are kept (its begin, its length), and the state before every m-th step: m is 1
at first, and doubles whenever `BLOCK` states are there. Backwards, the states between two of these are made again, in
two stages of at most `BLOCK` states each.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# States that are kept at once, of all steps, of one part of them and of a part of that.
BLOCK = 64
# Steps that can be kept: 24 bytes each, for every run of a batch.
LONGEST = 2**15


def capacity() -> int:
    """The number of steps that can be kept."""
    return min(LONGEST, BLOCK**3)


class Record(NamedTuple):
    """Accepted steps: how many, m, what is known of each, and the states."""

    count: Any
    apart: Any
    steps: dict[str, Any]
    states: Any

    @classmethod
    def empty(cls, y: Float[Array, " m"], **kinds: Any) -> "Record":
        """No steps yet, of each of which numbers of these kinds will be known."""
        steps = {name: jnp.zeros(capacity(), kind) for name, kind in kinds.items()}
        return cls(jnp.asarray(0), jnp.asarray(1), steps, jnp.zeros((BLOCK, len(y)), y.dtype))

    def with_step(self, kept, y: Float[Array, " m"], **numbers: Any) -> "Record":
        """One more step, from y, unless it was rejected."""
        # What lies beyond the arrays is not written.
        at = jnp.where(kept, self.count, capacity())
        set_at = lambda name, x: self.steps[name].at[at].set(x.astype(self.steps[name].dtype), mode="drop")  # noqa: E731
        steps = {name: set_at(name, x) for name, x in numbers.items()}
        states, apart = jax.lax.cond(
            kept & (self.count == BLOCK * self.apart),
            lambda: (self.states.at[: BLOCK // 2].set(self.states[::2]), 2 * self.apart),
            lambda: (self.states, self.apart),
        )
        row = jnp.where(kept & (self.count % apart == 0), self.count // apart, BLOCK)
        return Record(self.count + jnp.where(kept, 1, 0), apart, steps, states.at[row].set(y, mode="drop"))

    @property
    def known(self) -> Array:
        """1, or NaN where there were more steps than can be kept."""
        return jnp.where(self.count > capacity(), jnp.nan, 1.0).astype(self.states.dtype)

    def backwards(self, step: Callable, pull_back: Callable, carry: Any) -> Any:
        """Carries something through all steps, the last one first.

        step: from the numbers of a step and the state before it, the state after it. pull_back: from these and what is
        carried, what is carried before the step.
        """

        def numbers(k):
            return {name: x[k] for name, x in self.steps.items()}

        def one_by_one(first, y, size, carry):
            """Through `size` ≤ BLOCK steps, from the state before the first."""

            def forward(i, states):
                return states.at[i + 1].set(step(numbers(first + i), states[i]))

            states = jnp.zeros((BLOCK, len(y)), y.dtype).at[0].set(y)
            states = jax.lax.fori_loop(0, size - 1, forward, states)

            def backward(i, carry):
                i = size - 1 - i
                return pull_back(numbers(first + i), states[i], carry)

            return jax.lax.fori_loop(0, size, backward, carry)

        def part(number, carry):
            """From one kept state to the next."""
            number = (self.count - 1) // self.apart - number
            first = number * self.apart
            size = jnp.minimum(self.apart, self.count - first)
            parts = (size + BLOCK - 1) // BLOCK

            def forward(i, carry):
                y, states = carry
                y = step(numbers(first + i), y)
                return y, states.at[jnp.where((i + 1) % BLOCK == 0, (i + 1) // BLOCK, BLOCK)].set(y, mode="drop")

            y = self.states[number]
            states = jnp.zeros((BLOCK, len(y)), y.dtype).at[0].set(y)
            _, states = jax.lax.fori_loop(0, (parts - 1) * BLOCK, forward, (y, states))

            def backward(i, carry):
                i = parts - 1 - i
                return one_by_one(first + i * BLOCK, states[i], jnp.minimum(BLOCK, size - i * BLOCK), carry)

            return jax.lax.fori_loop(0, parts, backward, carry)

        return jax.lax.fori_loop(0, (self.count + self.apart - 1) // self.apart, part, carry)
