"""Weight decay as rates of the flow: how fast features, classifier and bias shrink by themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkcollapse._checks import check_arrays, check_choice, check_positive, check_shape


class WeightDecay(eqx.Module):
    """Decay rates of features, classifier and bias: Ḣ gains −λ_H H, Ẇ gains −λ_W W, ḃ gains −λ_b b.

    In units of 1/flow time. A penalty (wd/2)‖W‖² beside the *mean* loss over N samples and C outputs is λ_W = N C wd.
    """

    H: Float[Array, ""]
    W: Float[Array, ""]
    b: Float[Array, ""]

    @classmethod
    def of(cls, rates: "float | Array | Sequence[float] | Mapping[str, float] | WeightDecay") -> "WeightDecay":
        """Makes the rates: from one number for all three, three numbers (H, W, b), or a mapping; names left out are 0.

        Raises:
            ValueError: an unknown name, two or more than three numbers, or a rate that is negative or not finite.
        """
        if isinstance(rates, WeightDecay):
            return rates
        if isinstance(rates, Mapping):
            named: Mapping[str, Any] = rates
        elif getattr(rates, "shape", ()) == (3,):
            check_arrays(weight_decay=rates)
            named = dict(zip("HWb", jnp.asarray(rates), strict=True))
        elif isinstance(rates, Sequence) and not isinstance(rates, str):
            if len(rates) != 3:
                raise ValueError(
                    f"weight_decay: expected one rate, three rates (H, W, b) or a mapping from some of them, got "
                    f"{len(rates)} rates; name them, as in {{'W': 0.1}}."
                )
            named = dict(zip("HWb", rates, strict=True))
        else:
            named = dict.fromkeys("HWb", rates)
        for name in named:
            check_choice("weight_decay", name, ("H", "W", "b"))
        for rate in named.values():
            if rate is None:
                raise ValueError("weight_decay: expected rates, got None; leave it out, or give 0.")
            check_arrays(weight_decay=rate)
            check_shape("weight_decay", rate, (), "one rate for each of H, W and b")
        check_positive("weight_decay", list(named.values()), zero=True)
        return cls(**{name: jnp.asarray(named.get(name, 0.0), dtype=float) for name in "HWb"})
