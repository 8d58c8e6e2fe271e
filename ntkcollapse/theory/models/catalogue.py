"""The models of neural collapse, each in a few lines: what distinguishes them is which parts of `Flow` they choose.

    Ḣ = Π_H[−Wᵀ G K − λ_H H] + noise,   Ẇ = Π_W[−η_W G Hᵀ − λ_W W],   ḃ = −η_b G 1 − λ_b b,   G = ∂loss/∂logits

Losses and decays are in the units of each source, so that averages over samples have scale 1/N. Models that are no
gradient flow of a last layer (a deep classifier, elastic features) say so in what they return, and measurements on
trained networks stand at the end.
"""

import warnings
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkcollapse._checks import check_choice, check_shape, is_traced
from ntkcollapse._simplex import simplex_cosines, simplex_etf
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.classes import Classes
from ntkcollapse.losses import CrossEntropy, DotRegression, SquaredError, as_loss
from ntkcollapse.sample_kernel import SampleKernel
from ntkcollapse.theory import exact
from ntkcollapse.theory.constraints import CentralPath, FixedFrame, NormBudget, Norms
from ntkcollapse.theory.flow import Flow
from ntkcollapse.theory.invariant import invariant
from ntkcollapse.theory.models import central_path as on_path
from ntkcollapse.theory.models import cross_entropy, duality, elasticity, squared_error
from ntkcollapse.theory.models import layer_peeled as peeled
from ntkcollapse.theory.models import quasi_interpolation as quasi
from ntkcollapse.theory.models import svag as amplified
from ntkcollapse.theory.models.deep_linear import DeepLinearFlow, DeepReLUFlow
from ntkcollapse.theory.models.losses import LogCrossEntropy
from ntkcollapse.theory.models.registry import Number, model
from ntkcollapse.weight_decay import WeightDecay

TESTS = "tests/theory/"
Decay = Number | Mapping[str, float]


def unconstrained() -> BlockKernel:
    """K = I: features that move as if each were a parameter."""
    return BlockKernel(1.0, 0.0, 0.0)


def _decay(H: Number = 0.0, W: Number = 0.0, b: Number = 0.0) -> WeightDecay:
    rates = {"H": H, "W": W, "b": b}
    return WeightDecay.of(rates)  # pyright: ignore[reportArgumentType]


def _warn_trivial(learned, threshold: str, *, stacklevel: int = 3) -> None:
    if not is_traced(learned) and not jnp.all(learned):
        message = f"decay: {threshold}, so that the minimiser is W = H = 0: nothing is learned."
        warnings.warn(message, stacklevel=stacklevel)


def _warn_all_vanish(classes: Classes, decay_W, decay_H) -> None:
    if not is_traced(decay_W, decay_H) and min(float(jnp.min(decay_W)), float(decay_H)) > 0:
        smallest = squared_error.deep_vanishing_size(classes, decay_W, decay_H)
        _warn_trivial(max(classes.sizes) > smallest, "no class is as large as the model's threshold", stacklevel=4)


@model(
    title="gradient flow under a block-structured or any other kernel",
    assumes="constant kernel on samples, squared error or cross-entropy",
    predicts="E = WᵀW − H K⁻¹ Hᵀ conserved (E e^{−2λt} with equal decay); collapse from E = 0 on centred features",
    source="Seleznova et al. (2023)",
    test=TESTS + "test_models.py::test_the_invariant_for_random_kernels_losses_and_sizes",
    limit=exact.collapsed_limit,
    minimizer=exact.regularised_minimiser,
    invariant=invariant,
)
def ntk_collapse(classes: Classes, kernel: SampleKernel, *, weight_decay: Decay = 0.0, loss=None) -> Flow:
    """Features that move under a kernel: the theory of this package."""
    return Flow(kernel, classes, SquaredError() if loss is None else loss, WeightDecay.of(weight_decay))


@model(
    title="unconstrained features, squared error",
    assumes="K = I, loss ½‖R‖², small start, balanced classes",
    predicts="strong collapse; from a start of size ε the errors of SNC1, SNC2, SNC3 scale as ε², ε, ε",
    source="Mixon, Parshall and Pi (2022)",
    test=TESTS + "test_squared_error_models.py::test_strong_collapse_from_small_starts",
    limit=lambda classes: exact.collapsed_limit(unconstrained(), classes),
)
def unconstrained_features(classes: Classes) -> Flow:
    """K = I, and nothing else."""
    return Flow(unconstrained(), classes, SquaredError(), _decay())


@model(
    title="regularised unconstrained features, squared error",
    assumes="K = I, loss (1/2N)‖R‖², decay of W and H, with or without a bias, classes of any sizes",
    predicts="orthogonal frame without a bias, simplex ETF with; class k vanishes iff m_k ≤ N² λ_W λ_H",
    source="Tirer and Bruna (2022); Dang et al. (2023)",
    test=TESTS + "test_squared_error_models.py::test_regularised_minimisers",
    minimizer=squared_error.features_minimiser,
    threshold=squared_error.vanishing_size,
)
def regularised_features(
    classes: Classes, decay_W: Number, decay_H: Number, *, decay_b: Number = 0.0, bias: str = "free"
) -> Flow:
    """Weight decay on free features; "free" or "absent" bias."""
    largest, limit = squared_error.largest_mode(classes, bias=bias), classes.num_samples**2 * decay_W * decay_H
    _warn_trivial(largest > limit, "N² λ_W λ_H is not below the largest mode of the labels")
    loss = SquaredError(1 / classes.num_samples)
    return Flow(unconstrained(), classes, loss, _decay(decay_H, decay_W, decay_b), bias)


@model(
    title="features under a deep linear classifier",
    assumes="W = W_L ⋯ W_1, loss (1/2N)‖R‖², decay of every layer and of H, no bias",
    predicts="orthogonal frames layer by layer; for L ≥ 2 classes vanish by a jump, from (L − 1)/L to 0",
    source="Tirer and Bruna (2022); Dang et al. (2023)",
    test=TESTS + "test_squared_error_models.py::test_deep_linear_minimiser",
    minimizer=squared_error.deep_linear_minimiser,
    threshold=squared_error.deep_vanishing_size,
)
def deep_linear(classes: Classes, decay_W: Float[Array, " L"], decay_H: Number) -> DeepLinearFlow:
    """The classifier a product of L weight layers; starts from a `DeepLastLayer`."""
    _warn_all_vanish(classes, decay_W, decay_H)
    return DeepLinearFlow(classes, SquaredError(1 / classes.num_samples), decay_W, decay_H)


@model(
    title="features under a layer with a ReLU and a classifier",
    assumes="logits W_2 σ(W_1 H), loss (1/2N)‖R‖², decay of both layers and of H, no bias; ‖σ(W_1 H)‖_* = ‖W_1 H‖_*",
    predicts="features behind the ReLU collapse to an orthogonal frame, no two classes share an active unit, W_2 is "
    "aligned with them; value, scales and vanishing of classes as in the linear model",
    source="Tirer and Bruna (2022), nonlinear extended model",
    test=TESTS + "test_relu_model.py::test_relu_minimiser",
    minimizer=squared_error.relu_minimiser,
    threshold=squared_error.deep_vanishing_size,
)
def relu_features(classes: Classes, decay_W: Float[Array, "2"], decay_H: Number) -> DeepReLUFlow:
    """The extended model with a ReLU; starts from a `DeepLastLayer` of two layers."""
    check_shape("decay_W", decay_W, (2,), "one decay for each of two weight layers")
    _warn_all_vanish(classes, decay_W, decay_H)
    return DeepReLUFlow(classes, SquaredError(1 / classes.num_samples), decay_W, decay_H)


@model(
    title="cross-entropy features with weight decay",
    assumes="K = I, mean cross-entropy, decay of W, H, b, balanced classes, n ≥ C − 1",
    predicts="simplex ETF of known scale, reached from any start",
    source="Zhu et al. (2021)",
    test=TESTS + "test_cross_entropy_models.py::test_cross_entropy_minimiser_from_any_start",
    minimizer=cross_entropy.regularised_simplex,
)
def cross_entropy_features(classes: Classes, decay_W: Number, decay_H: Number, *, decay_b: Number = 0.0) -> Flow:
    """Weight decay on free features, under cross-entropy."""
    if classes.is_balanced:
        e = (classes.per_class * decay_W * decay_H) ** 0.5
        _warn_trivial(classes.num_classes * e < 1, "C √(m λ_W λ_H) is at least 1")
    return Flow(unconstrained(), classes, CrossEntropy(1 / classes.num_samples), _decay(decay_H, decay_W, decay_b))


@model(
    title="cross-entropy features without regularisation",
    assumes="K = I, no bias; log of the summed cross-entropy, which is its flow in a time that does not slow down",
    predicts="normalised margin → 1/(2√m (C − 1)), collapse in direction, smoothed margin monotone",
    source="Ji et al. (2022); Lyu and Li (2020)",
    test=TESTS + "test_cross_entropy_models.py::test_margin_of_unregularised_cross_entropy",
    limit=cross_entropy.limiting_margin,
    margins=cross_entropy.margins,
)
def max_margin(classes: Classes) -> Flow:
    """Orbits of plain cross-entropy, far beyond where its loss underflows."""
    return Flow(unconstrained(), classes, LogCrossEntropy(), _decay(), "absent")


@model(
    title="central path",
    assumes="Σ_W = I by projection of the velocity onto its tangent space, W and b their least-squares values, "
    "loss (1/2N)‖R‖², N − C ≥ n",
    predicts="singular values: (N/C)[C² log ω + C ω² + ω⁴/4] = a + t; all ratios → 1 (renormalising "
    "H ← Σ_W^{−1/2} H at every instant is another flow, ω' = ω/(N (C + ω²)))",
    source="Han, Papyan and Donoho (2022)",
    test=TESTS + "test_squared_error_models.py::test_central_path_law",
    law=on_path.central_path_law,
    signal_to_noise=on_path.signal_to_noise,
    loss_parts=on_path.loss_parts,
)
def central_path(classes: Classes) -> Flow:
    """A classifier that follows by least squares, and features whose velocity is projected to keep Σ_W = I."""
    loss = SquaredError(1 / classes.num_samples)
    return Flow(unconstrained(), classes, loss, _decay(), "frozen", CentralPath())


@model(
    title="layer-peeled model (of a network: `train --feature-budget --weight-budget`)",
    assumes="cross-entropy, budgets on mean ‖w_k‖² and class-averaged ‖h‖², majority and minority classes",
    predicts="simplex ETF if balanced; minority classifiers coincide iff m_A/m_B ≥ R₀",
    source="Fang et al. (2021)",
    test=TESTS + "test_cross_entropy_models.py::test_layer_peeled_minority_collapse",
    minimizer=peeled.layer_peeled_minimiser,
    threshold=peeled.collapse_ratio,
    cosine_curve=peeled.cosine_curve,
)
def layer_peeled(classes: Classes, energy_H: Number, energy_W: Number) -> Flow:
    """Norm budgets by projection: no semidefinite program."""
    loss = CrossEntropy(1 / classes.num_samples)
    return Flow(unconstrained(), classes, loss, _decay(), "absent", NormBudget(energy_H, energy_W))


@model(
    title="fixed simplex-ETF classifier (of a network: `train --last-layer simplex-etf`)",
    assumes="W fixed to √energy_W · ETF, ‖h_i‖² ≤ energy_H, dot regression or cross-entropy, any class sizes",
    predicts="every feature ends at √energy_H times its vertex",
    source="Yang et al. (2022)",
    test=TESTS + "test_cross_entropy_models.py::test_fixed_etf_aligns_every_class",
    limit=cross_entropy.fixed_etf_limit,
    classifier=simplex_etf,
)
def fixed_etf(classes: Classes, energy_H: Number, energy_W: Number, *, loss: str = "dot-regression") -> Flow:
    """η_W = 0 and features in a ball; start from W = √energy_W · `.classifier(...)`, b = 0."""
    target = (energy_H * energy_W) ** 0.5
    check_choice("loss", loss, ("dot-regression", "cross-entropy"))
    chosen = DotRegression(target=target) if loss == "dot-regression" else CrossEntropy()
    gram = energy_W * simplex_cosines(classes.num_classes)
    return Flow(unconstrained(), classes, chosen, _decay(), "absent", FixedFrame(energy_H**0.5, gram), rate_W=0.0)


@model(
    title="batch-normalised head",
    assumes="H = γ BN(z) + α 1ᵀ/√N, loss ½‖R‖² or summed cross-entropy, decay β of γ, α, W; balanced classes, no bias; "
    "minima with and without a ReLU",
    predicts="squared error: C(β√m − β²/2), singular values of W √(√m − β); cross-entropy: a simplex ETF for β < √m, "
    "behind a ReLU an orthogonal frame for β < √(m(C − 1)/C); duality gap of any state",
    source="Ergen et al. (2022); Ergen and Pilanci (2021); Dang et al. (2024)",
    test=TESTS + "test_batch_norm_models.py::test_heads_under_cross_entropy",
    minimizer=squared_error.batch_norm_minimiser,
    parameters=squared_error.batch_norm_parameters,
    duality=duality.duality_gap,
)
def batch_norm_head(classes: Classes, decay: Number, *, loss: str = "squared") -> Flow:
    """γ² + α² is the squared norm of a feature's row: unconstrained features in polar coordinates."""
    check_choice("loss", loss, ("squared", "cross-entropy"))
    _warn_trivial(decay < classes.per_class**0.5, "β is at least √m")
    return Flow(unconstrained(), classes, as_loss(loss), _decay(decay, decay), "absent")


@model(
    title="homogeneous networks with weight decay, symmetric quasi-interpolation",
    assumes="squared error with decay on every layer; f_y = 1 − ε, f_k = ε/(C − 1)",
    predicts="λ‖w_c‖² = Σ(y − f)_c f_c/N, equal layer norms, ‖w_c‖² = (ε − Cε²/(C−1))/(Cλ), floor 1/(2C)",
    source="Poggio and Liao (2020); Rangamani and Banburski-Fahey (2022)",
    test=TESTS + "test_measured_models.py::test_quasi_interpolation_on_the_model_and_on_networks",
    weight_identity=quasi.weight_identity,
    layer_imbalance=quasi.layer_imbalance,
    quasi_interpolation=quasi.quasi_interpolation,
    weight_norm=quasi.symmetric_weight_norm,
    weights=quasi.symmetric_weights,
    floor=quasi.centred_floor,
)
def homogeneous(classes: Classes, decay: Number, *, layers: int = 2) -> Flow:
    """The last layer as a network of `layers` homogeneous layers moves it: features of degree `layers` − 1."""
    if layers < 2:
        raise ValueError(f"layers: expected at least 2, the last of them the classifier, got {layers}.")
    limit = classes.num_samples**2 * (layers - 1) * decay**2
    _warn_trivial(squared_error.largest_mode(classes) > limit, "N λ √(L − 1) is not below the largest mode")
    loss = SquaredError(1 / classes.num_samples)
    return Flow(unconstrained(), classes, loss, _decay((layers - 1) * decay, decay), "free")


@model(
    title="spherical features",
    assumes="‖h_i‖ = r_H, ‖w_k‖ = r_W, mean cross-entropy, n ≥ C − 1, balanced classes",
    predicts="simplex ETF, loss log(1 + (C − 1) e^{−r_H r_W C/(C−1)})",
    source="Yaras et al. (2022); Lu and Steinerberger (2022)",
    test=TESTS + "test_cross_entropy_models.py::test_spherical_features_and_logit_ball",
    minimizer=cross_entropy.bounded_simplex,
    floor=cross_entropy.cross_entropy_floor,
)
def spherical_features(classes: Classes, radius_H: Number, radius_W: Number) -> Flow:
    """Norms fixed: a flow on a product of spheres."""
    loss = CrossEntropy(1 / classes.num_samples)
    return Flow(unconstrained(), classes, loss, _decay(), "absent", Norms(radius_H, radius_W, spheres=True))


@model(
    title="minimal energy on a ball",
    assumes="logits themselves in a ball: W = I fixed, n = C, ‖f_i‖ ≤ R, mean cross-entropy",
    predicts="logits at R times the simplex vertices, loss log(1 + (C − 1) e^{−R√(C/(C−1))})",
    source="E and Wojtowytsch (2022)",
    test=TESTS + "test_cross_entropy_models.py::test_spherical_features_and_logit_ball",
    minimizer=cross_entropy.logit_ball,
)
def logit_ball(classes: Classes, radius: Number) -> Flow:
    """Features that are logits up to a rotation: start with W = I (or any orthogonal W) and b = 0."""
    loss, frame = CrossEntropy(1 / classes.num_samples), FixedFrame(radius, jnp.eye(classes.num_classes))
    return Flow(unconstrained(), classes, loss, _decay(), "absent", frame, rate_W=0.0)


@model(
    title="locally elastic stochastic differential equation",
    assumes="class means push samples with intensities α within and β between classes, as often as their class is "
    "drawn; I-model, L-model or pushes along e_k − softmax; noise σ; classes of any sizes",
    predicts="balanced: separation iff the drift contrast c/t has c > C/2, and simplex ETF of the L-model; unequal: "
    "powers of t are eigenvalues of diag(m/N) E",
    source="Zhang, Wang and Su (2021)",
    test=TESTS + "test_stochastic_models.py::test_elastic_sde_separates_at_the_threshold",
    solution=elasticity.elastic_means,
    threshold=elasticity.separation_threshold,
    error=elasticity.separation_error,
    estimate=elasticity.estimate_elasticity,
    rates=elasticity.growth_rates,
    matrix=elasticity.elasticity_matrix,
)
def elastic(
    classes: Classes, intra: Number, inter: Number, noise: Number | None = None, *, kind: str = "I", power: Number = 0.0
) -> elasticity.ElasticFlow:
    """Drift and diffusion of features; the classifier of a start only looks on."""
    return elasticity.ElasticFlow(classes=classes, intra=intra, inter=inter, noise=noise, kind=kind, power=power)


@model(
    title="local elasticity of a trained network (measurement)",
    assumes="any pure f(params, x) with one output; one step of gradient descent on one sample",
    predicts="kernelised similarity over NTK entry → 1 in proportion to the step",
    source="He and Su (2020)",
    test=TESTS + "test_measured_models.py::test_local_elasticity_tends_to_the_kernel",
)
def local_elasticity(f, params, x, others, *, loss_slope, step: float) -> elasticity.StepSimilarity:
    """Both similarity measures from one step; see `theory.models.elasticity.step_similarity`."""
    return elasticity.step_similarity(f, params, x, others, loss_slope=loss_slope, step=step)


@model(
    title="SGD as a stochastic differential equation (optimiser)",
    assumes="mini-batch gradients; variance amplified l-fold at learning rate η/l",
    predicts="stationary variance η s²/(2k − η k²/l) on a quadratic; the SDE as l → ∞",
    source="Li, Malladi and Arora (2021)",
    test=TESTS + "test_stochastic_models.py::test_svag_stationary_variance",
    variance=amplified.stationary_variance,
)
def svag(learning_rate: Number, amplification: int):
    """The optax transformation; see `theory.models.svag.svag`."""
    return amplified.svag(learning_rate, amplification)
