"""The rates that a kernel predicts for the three parts of the residual: lazy, at collapse, and at any moment.

Rates are those of residual *norms*, in units of 1/flow time of the loss ½‖R‖²; the part of the loss that a norm squared
stands for decays at twice the rate.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ntkcollapse._checks import check_choice, check_positive, check_real, check_shape
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes
from ntkcollapse.last_layer import LastLayer
from ntkcollapse.sample_kernel import SampleKernel
from ntkcollapse.weight_decay import WeightDecay

Optimiser = Literal["gradient-descent", "nesterov", "heavy-ball"]


class Rates(NamedTuple):
    """−d ln‖·‖/dt of the three orthogonal parts of the residual.

    single: R − R_class; class_: R_class − R_global; global_: R_global.
    """

    single: Float[Array, ""]
    class_: Float[Array, ""]
    global_: Float[Array, ""]


class CollapseRates(NamedTuple):
    """Spectrum of the flow's output kernel at the collapsed state with invariant 0, s = √(m/λ_class).

    perpendicular: rates of the parts for output directions orthogonal to 1: s λ_single, 2 √(m λ_class), s λ_global + N;
    along_ones: for output direction 1: 0 (algebraic, not exponential), √(m λ_class), N;
    scatter: of S, and of NC1 in its variance forms, where 1ᵀW = 0: 2 s λ_single;
    largest: ν_max = max(s λ_global + N, 2 √(m λ_class)), which limits the step of an optimiser.
    """

    perpendicular: Rates
    along_ones: Rates
    scatter: Float[Array, ""]
    largest: Float[Array, ""]


class SpectrumDecay(NamedTuple):
    """Decay of R_single under a spectrum of rates: its norm, and the rate of that norm at each time.

    amplitudes, rates: of the groups; ‖R_single(t)‖² = Σ_g a_g² e^{−2 λ_g t}.
    """

    norm: Float[Array, "*T"]
    rate: Float[Array, "*T"]
    amplitudes: Float[Array, " G"]
    rates: Float[Array, " G"]


def lazy_rates(gamma: BlockKernel, classes: Classes) -> Rates:
    r"""The three rates while the output kernel does not move.

        single  γ_d − γ_c;   class  γ_d − γ_c + m (γ_c − γ_n);   global  γ_d − γ_c + m (γ_c − γ_n) + N γ_n

    For Θ_ks = 0 (k ≠ s) the parts then decay exactly at these rates (`exact.frozen_residual`). R_class on its own is a
    sum of two exponentials, which is why R_class − R_global is followed. m is that of the data set, not of a batch.

    Args:
        gamma: *output* kernel Θ_kk averaged over k, three numbers (of the feature kernel these are not rates).
        classes: balanced.
    Raises:
        ValueError: unequal classes, a general block kernel.
    References:
        Seleznova et al. (2023), Section 4.1 and Table 1.

    >>> rates = lazy_rates(BlockKernel(diagonal=3.0, within=2.0, between=0.5), Classes.balanced(4, 5))
    >>> [float(rate) for rate in rates]
    [1.0, 8.5, 18.5]
    """
    return Rates(*gamma.rates(classes))


def collapse_rates(kappa: BlockKernel, classes: Classes) -> CollapseRates:
    r"""Rates near the collapsed state with invariant 0, from the feature kernel alone.

    There Θ = WWᵀ ⊗ K + I ⊗ (HᵀH + 11ᵀ) with WWᵀ = s Π, HᵀH = Π ⊗ 11ᵀ/s, so that it is diagonal in parts of the residual
    and output directions. See `CollapseRates` for the values.

    Raises:
        ValueError: unequal classes, a general block kernel.
    References:
        Derived here from Seleznova et al. (2023), Sections 5.2 and 5.3.
    """
    λ_single, λ_class, λ_global = kappa.rates(classes)
    m, N = classes.per_class, jnp.asarray(float(classes.num_samples))
    s = jnp.sqrt(m / λ_class)
    between = jnp.sqrt(m * λ_class)
    return CollapseRates(
        perpendicular=Rates(s * λ_single, 2 * between, s * λ_global + N),
        along_ones=Rates(jnp.zeros_like(between), between, N),
        scatter=2 * s * λ_single,
        largest=jnp.maximum(s * λ_global + N, 2 * between),
    )


class UncoupledRates(NamedTuple):
    """What Θ_ks = 0 (k ≠ s) makes of the rates at collapse; see `uncoupled_rates`.

    assumed: rates under the averages of Θ_kk alone; true: those of `collapse_rates`; coupling: ratio of the kernel
    between two outputs to that of one with itself, of the part that the features' motion makes: −1/(C − 1).
    """

    assumed: Rates
    true: CollapseRates
    coupling: Float[Array, ""]


def uncoupled_rates(kappa: BlockKernel, classes: Classes) -> UncoupledRates:
    r"""What the assumption Θ_ks = 0 for k ≠ s costs at the collapsed state with invariant 0.

        Θ_ks = (W Wᵀ)_ks K + δ_ks (HᵀH + 11ᵀ),   W Wᵀ = s (I − 11ᵀ/C):   (W Wᵀ)_ks / (W Wᵀ)_kk = −1/(C − 1)

        single  s λ_single (1 − 1/C)         instead of  s λ_single          and, along 1,  0
        class   √(m λ_class) (2 − 1/C)       instead of  2 √(m λ_class)      and, along 1,  √(m λ_class)
        global  s λ_global (1 − 1/C) + N     instead of  s λ_global + N      and, along 1,  N

    with s = √(m/λ_class). The assumed rates are the averages of the true ones over the C directions of the outputs, the
    C − 1 orthogonal to 1 and 1 itself: off by 1/C or less in the first, which is what the residual of a classifier is
    made of, and by everything in the second, where deviations within classes are not learned at any rate.

    Raises:
        ValueError: unequal classes, a general block kernel.
    References:
        Derived here from Seleznova et al. (2023), Sections 2.3, 5.2 and 5.3.
    """
    C = classes.num_classes
    return UncoupledRates(
        assumed=lazy_rates(output_kernel_at_collapse(kappa, classes), classes),
        true=collapse_rates(kappa, classes),
        coupling=jnp.asarray(-1 / (C - 1)),
    )


def largest_learning_rate(
    kappa: BlockKernel,
    classes: Classes,
    *,
    scale: float = 1.0,
    optimiser: Optimiser = "gradient-descent",
    momentum: float = 0.0,
) -> Float[Array, ""]:
    r"""Learning rate at which a full-batch optimiser stops being linearly stable at the collapsed state.

        gradient descent  2 / ν;   Nesterov  2 (1 + β) / ((1 + 2β) ν);   heavy ball  2 (1 + β) / ν
        ν = scale · ν_max,  ν_max = max(√(m/λ_class) λ_global + N, 2 √(m λ_class))

    Args:
        kappa, classes: as in `collapse_rates`.
        scale: of the loss against ½‖R‖²: 1/(N C) for the mean over samples and outputs.
        optimiser: "gradient-descent", "nesterov" or "heavy-ball".
        momentum: β in [0, 1); 0 for gradient descent.
    Raises:
        ValueError: an unknown optimiser, β outside [0, 1) or given to gradient descent, a scale not above zero.
    References:
        Derived here.
    """
    check_positive("scale", scale)
    return stability_bound(optimiser, momentum) / (scale * collapse_rates(kappa, classes).largest)


def stability_bound(optimiser: Optimiser = "gradient-descent", momentum: float = 0.0) -> float:
    r"""Learning rate times largest eigenvalue of the Hessian at which a full-batch optimiser stops being stable.

        gradient descent  2;   Nesterov  2 (1 + β) / (1 + 2β);   heavy ball  2 (1 + β)

    Args:
        optimiser, momentum: as in `largest_learning_rate`.
    Raises:
        ValueError: an unknown optimiser, β outside [0, 1) or given to gradient descent.
    References:
        Derived here, from the roots of x² − (1 + β − z) x + β and of x² − (1 + β)(1 − z) x + β (1 − z).
    """
    check_choice("optimiser", optimiser, get_args(Optimiser))
    if not 0 <= momentum < 1 or (momentum and optimiser == "gradient-descent"):
        raise ValueError(
            f"momentum: expected a number in [0, 1), and 0 for gradient descent; got {momentum} for {optimiser}."
        )
    reach = {"gradient-descent": 1.0, "nesterov": (1 + momentum) / (1 + 2 * momentum), "heavy-ball": 1 + momentum}
    return 2 * reach[optimiser]


def instantaneous_rates(
    state: LastLayer,
    kernel: SampleKernel,
    classes: Classes,
    *,
    scale: Float[ArrayLike, ""] = 1.0,
    decay: Any = 0.0,
    bias: str = "free",
) -> Rates:
    r"""−d ln‖R_part‖/dt of the three parts at this moment, in the feature-learning regime.

        dR/dt = −s Θ[R] − (λ_H + λ_W) W H − λ_b b 1ᵀ,   Θ[R] = W Wᵀ R K + R (HᵀH + 11ᵀ)
        rate  = −⟨R_part, dR/dt⟩ / ‖R_part‖²

    Exact for the squared error, with classes of any sizes; 11ᵀ and λ_b only where the bias is free. Parts feed each
    other through Θ, so that a rate may be negative (the part grows) and differs from the eigenvalue of any one part.
    Never forms the CN × CN matrix: costs one product by K and about 4 n C N multiplications.

    Args:
        state: last layer at that moment.
        kernel: of the features.
        classes: behind the columns.
        scale, decay, bias: as in `Flow`: of the loss ½‖R‖², the decay of H, W and b, whether the bias moves.
    Returns:
        The rates; NaN for a part that is 0.
    Raises:
        ValueError: shapes that disagree with `classes`.
    References:
        Derived here; the dynamics are those of Seleznova et al. (2023), Section 5.2.
    """
    state.check(classes)
    H, W = state.H, state.W
    decay = jax.tree.map(lambda x: x.astype(W.dtype), WeightDecay.of(decay))
    R = state.residual(classes)
    change = W @ (W.T @ kernel.mv(R, classes)) + (R @ H.T) @ H
    shrinking = (decay.H + decay.W) * (W @ H)
    if bias == "free":
        change = change + R.sum(1, keepdims=True)
        shrinking = shrinking + (decay.b * state.b)[:, None]
    change = jnp.asarray(scale, W.dtype) * change + shrinking
    # The parts are orthogonal; taking that part of Θ[R] too keeps the rounding of large parts out of small ones.
    pairs = zip(classes.parts(R), classes.parts(change), strict=True)
    return Rates(*(jnp.sum(part * moved) / jnp.sum(part * part) for part, moved in pairs))


def output_kernel(state: LastLayer, kappa: BlockKernel, classes: Classes) -> BlockKernel:
    r"""(γ_d, γ_c, γ_n): block values of Θ = WWᵀ ⊗ K + I ⊗ (HᵀH + 11ᵀ), averaged over outputs and pairs.

        γ_d = F κ_d + (Σ_c m_c |M_c|² + tr S) / N + 1,                                   F = ‖W‖² / C
        γ_c = F κ_c + (Σ_c m_c (m_c − 1) |M_c|² − tr S) / Σ_c m_c (m_c − 1) + 1            pairs i ≠ j
        γ_n = F κ_n + (|Σ_c m_c M_c|² − Σ_c m_c² |M_c|²) / (N² − Σ_c m_c²) + 1

    M_c are class means and S the within-class scatter, summed over samples. Averages of Θ_kk; Θ itself also has
    entries (WWᵀ)_ks K between outputs, which at collapse are −1/(C − 1) of those on the diagonal.

    Args:
        state: last layer.
        kappa: feature kernel, three numbers.
        classes: of any sizes, not all of them 1.
    Raises:
        ValueError: shapes that disagree, a general block kernel, no pair of samples within a class.
    Warns:
        UserWarning: γ_n above γ_c or below 0, as `BlockKernel` does.
    References:
        Derived here; block values as defined in Seleznova et al. (2023), Section 2.3.
    """
    state.check(classes)
    return output_kernel_of_moments(
        jnp.sum(jnp.square(state.W)),
        state.class_means(classes),
        jnp.sum(jnp.square(classes.deviations(state.H))),
        kappa,
        classes,
    )


def output_kernel_of_moments(
    weight_square: Float[ArrayLike, ""],
    means: Float[ArrayLike, "n C"],
    scatter_trace: Float[ArrayLike, ""],
    kappa: BlockKernel,
    classes: Classes,
) -> BlockKernel:
    """The block values of `output_kernel`, from ‖W‖², the class means M and tr S: the number of samples is no cost."""
    check_real(means=means, weight_square=weight_square, scatter_trace=scatter_trace)
    check_shape("means", means, (None, classes.num_classes), "(n, C) for classes")
    if not kappa.is_uniform:
        raise ValueError("kappa: expected the three-number form, got a general block kernel; average it first.")
    sizes = classes.sizes
    if max(sizes) == 1:
        raise ValueError("classes: expected a class with two samples, got only single ones; γ_c is a mean over pairs.")
    M, d, N = jnp.asarray(means), classes.weights, float(classes.num_samples)
    F, trace = weight_square / classes.num_classes, jnp.asarray(scatter_trace)
    squares = jnp.square(M).sum(0)
    same, pairs = jnp.sum(d * d * squares), float(sum(m * (m - 1) for m in sizes))
    diagonal = (jnp.sum(d * squares) + trace) / N
    within = (jnp.sum(d * (d - 1) * squares) - trace) / pairs
    between = (jnp.sum(jnp.square(M @ d)) - same) / (N**2 - float(sum(m * m for m in sizes)))
    return BlockKernel(
        diagonal=F * kappa.diagonal + diagonal + 1,
        within=F * kappa.within + within + 1,
        between=F * kappa.between + between + 1,
    )


def output_kernel_at_collapse(kappa: BlockKernel, classes: Classes) -> BlockKernel:
    r"""(γ_d, γ_c, γ_n) at the collapsed state with invariant 0.

        γ_d = s (1 − 1/C) κ_d + (1 − 1/C)/s + 1,  γ_c the same with κ_c,  γ_n = s (1 − 1/C) κ_n − 1/(C s) + 1

    with s = √(m/λ_class). Raises and warns as `output_kernel`; balanced classes.
    """
    C = classes.num_classes
    s = jnp.sqrt(classes.per_class / kappa.lambda_class(classes))
    Π = jnp.eye(C) - 1 / C
    return output_kernel_of_moments(s * (C - 1), Π / jnp.sqrt(s), 0.0, kappa, classes)


def within_class_decay(
    times: Float[ArrayLike, "*T"], R: Float[ArrayLike, "C N"], gamma: SampleKernel, classes: Classes
) -> SpectrumDecay:
    r"""Decay of ‖R_single‖ where within-class deviations have a spectrum of rates instead of one.

        ‖R_single(t)‖² = Σ_g ‖R Q_g‖² e^{−2 λ_g t},     rate(t) = Σ_g λ_g a_g² e^{−2 λ_g t} / Σ_g a_g² e^{−2 λ_g t}

    The rate falls from the mean of the λ_g, weighted by the residual, to the smallest of them: a real network's
    R_single slows down where the single rate γ_d − γ_c does not. With one group this is that rate.

    Args:
        times: flow times.
        R: residual at time 0.
        gamma: *output* kernel with groups of within-class rates: `GroupedKernel`, or `BlockKernel` (one group, or one
            a class).
        classes: behind the columns.
    Raises:
        ValueError: R of another shape than (C, N).
        NotImplementedError: a kernel that is not reducible to groups, or whose class means drive deviations (ask
            `exact.frozen_residual` for that residual).
    References:
        Derived here.
    """
    check_real(times=times, R=R)
    if gamma.num_directions:
        raise NotImplementedError(
            f"gamma: under a {type(gamma).__name__} class means drive deviations, whose decay is then no sum of "
            "exponentials of their own; take the norms of theory.exact.frozen_residual."
        )
    check_shape("R", R, (classes.num_classes, classes.num_samples), "one column a sample of classes")
    rates = gamma.group_rates(classes.num_classes)
    amplitudes = jnp.sqrt(jnp.sum(jnp.square(gamma.split(classes.deviations(jnp.asarray(R)), classes)), axis=(1, 2)))
    t = jnp.asarray(times, dtype=float)
    # In logarithms, because late in time all exponentials underflow while their ratios are still numbers.
    logs = 2 * jnp.log(amplitudes)[None, :] - 2 * t.reshape(-1, 1) * rates[None, :]
    norm = jnp.exp(jax.nn.logsumexp(logs, axis=1) / 2)
    rate = jax.nn.softmax(logs, axis=1) @ rates
    return SpectrumDecay(norm.reshape(t.shape), rate.reshape(t.shape), amplitudes, rates)
