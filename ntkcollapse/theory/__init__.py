"""The equations: flow, reduction, invariant, rates, exact solutions, initial conditions.

`STATEMENTS` says, for each statement of Seleznova, Weitzner, Giryes, Kutyniok and Chou, "Neural (Tangent Kernel)
Collapse" (NeurIPS 2023), which function holds it and which test it against what; the README shows it as a table.
"""

from typing import TYPE_CHECKING, NamedTuple

from ntkcollapse._lazy import import_on_use

if TYPE_CHECKING:
    from ntkcollapse.theory import exact
    from ntkcollapse.theory.chebyshev import RungeKuttaChebyshev
    from ntkcollapse.theory.contrasts import Contrasts, contrast_norms, lazy_contrasts, small_start_contrasts
    from ntkcollapse.theory.decay_law import DecayFit, fit_decay
    from ntkcollapse.theory.flow import AbstractFlow, Flow
    from ntkcollapse.theory.initial import INITIAL_CONDITIONS, initial_condition
    from ntkcollapse.theory.invariant import (
        InvariantTerms,
        alignment,
        invariant,
        invariant_terms,
        necessary_condition_residual,
        paper_invariant,
    )
    from ntkcollapse.theory.rate_fit import RateFit, RateVerdict, compare_rates, fit_rate
    from ntkcollapse.theory.rates import (
        CollapseRates,
        Rates,
        SpectrumDecay,
        UncoupledRates,
        collapse_rates,
        instantaneous_rates,
        largest_learning_rate,
        lazy_rates,
        output_kernel,
        output_kernel_at_collapse,
        output_kernel_of_moments,
        stability_bound,
        uncoupled_rates,
        within_class_decay,
    )
    from ntkcollapse.theory.reduced import ReducedFlow, ReducedStart, ReducedState

__all__ = [
    "INITIAL_CONDITIONS",
    "STATEMENTS",
    "AbstractFlow",
    "CollapseRates",
    "Contrasts",
    "DecayFit",
    "Flow",
    "InvariantTerms",
    "RateFit",
    "RateVerdict",
    "Rates",
    "ReducedFlow",
    "ReducedStart",
    "ReducedState",
    "RungeKuttaChebyshev",
    "SpectrumDecay",
    "Statement",
    "UncoupledRates",
    "alignment",
    "collapse_rates",
    "compare_rates",
    "contrast_norms",
    "exact",
    "fit_decay",
    "fit_rate",
    "initial_condition",
    "instantaneous_rates",
    "invariant",
    "invariant_terms",
    "largest_learning_rate",
    "lazy_contrasts",
    "lazy_rates",
    "necessary_condition_residual",
    "output_kernel",
    "output_kernel_at_collapse",
    "output_kernel_of_moments",
    "paper_invariant",
    "small_start_contrasts",
    "stability_bound",
    "uncoupled_rates",
    "within_class_decay",
]


class Statement(NamedTuple):
    """One statement of the paper: where it stands there, what it says, the function that holds it, and its test."""

    where: str
    what: str
    function: str
    test: str


STATEMENTS = (
    Statement(
        "Section 2.3",
        "block structure of the NTK: three values",
        "ntkcollapse.block_kernel.BlockKernel",
        "tests.test_kernels.test_block_kernel_is_its_dense_matrix",
    ),
    Statement(
        "Section 2.3",
        "Θ_ks = 0 (k ≠ s), and what it costs at collapse: there the ratio is −1/(C − 1), and rates of contrasts of "
        "outputs are off by up to 1/C",
        "ntkcollapse.theory.rates.uncoupled_rates",
        "tests.theory.test_rates.test_what_uncoupled_outputs_cost_at_collapse",
    ),
    Statement(
        "Section 4.1, Table 1",
        "eigenvalues λ_single, λ_class, λ_global and their multiplicities",
        "ntkcollapse.block_kernel.BlockKernel.eigenvalues",
        "tests.test_kernels.test_theorem_eigenvalues",
    ),
    Statement(
        "Section 4.1, Table 1",
        "three convergence rates of the residual under a frozen kernel",
        "ntkcollapse.theory.rates.lazy_rates",
        "tests.theory.test_exact.test_frozen_residual_parts_decay_at_the_three_rates",
    ),
    Statement(
        "Section 5.2",
        "dynamics of H, W, b in R, R_class, R_global",
        "ntkcollapse.theory.flow.Flow",
        "tests.theory.test_flow.test_right_hand_side_of_the_theorem",
    ),
    Statement(
        "Section 5.2",
        "the same dynamics on class means and scatter, exactly",
        "ntkcollapse.theory.reduced.ReducedFlow",
        "tests.theory.test_flow.test_reference_trajectory",
    ),
    Statement(
        "Section 5.2, equation (26)",
        "the invariant E",
        "ntkcollapse.theory.invariant.paper_invariant",
        "tests.theory.test_invariant.test_invariant_is_its_definition_and_the_papers_form",
    ),
    Statement(
        "Section 5.2",
        "E with the global mean in a term of its own, (α/λ_class) ⟨h⟩⟨h⟩ᵀ",
        "ntkcollapse.theory.invariant.invariant_terms",
        "tests.theory.test_invariant.test_the_form_with_the_mean_feature",
    ),
    Statement(
        "Section 5.2",
        "E does not change along the flow",
        "ntkcollapse.simulation.simulate",
        "tests.test_simulation.test_default_solver_reaches_its_tolerance_and_conserves_the_invariant",
    ),
    Statement(
        "Section 5.3",
        "E = 0 and centred features: the collapsed state",
        "ntkcollapse.theory.exact.collapsed_limit",
        "tests.theory.test_exact.test_collapsed_limit_is_where_the_references_end",
    ),
    Statement(
        "assumption",
        "n > C, which the paper assumes: n ≥ C − 1 is enough for the collapsed state",
        "ntkcollapse.simulation.simulate",
        "tests.test_simulation.test_collapse_needs_c_minus_one_features",
    ),
    Statement(
        "Section 5.3",
        "collapse needs E ∝ WᵀW − c⟨h⟩⟨h⟩ᵀ",
        "ntkcollapse.theory.invariant.necessary_condition_residual",
        "tests.theory.test_invariant.test_collapse_satisfies_the_necessary_condition",
    ),
    Statement(
        "Figure 2",
        "alignment of the invariant's two parts",
        "ntkcollapse.theory.invariant.alignment",
        "tests.theory.test_invariant.test_alignment",
    ),
    Statement(
        "Appendix C",
        "NC1 to NC3 as the experiments measure them",
        "ntkcollapse.collapse.nc1_seleznova2023",
        "tests.theory.test_flow.test_reference_trajectory",
    ),
)

import_on_use(__name__)
