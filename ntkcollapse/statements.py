"""What the literature says and the package holds: every statement, model and metric, with its function, test, figure.

`shown()` is all of it, by the work that states it: the statements of the NTK paper (`theory.STATEMENTS`), the models
(`theory.models.MODELS`), the metrics of collapse (the table of observables), and `OTHERS`, which stand in none of
these. To add an entry, register a model or a metric, or write a `Shown` among `OTHERS`; a test fails where one names a
function, a test or a figure that there is not.
"""

from typing import NamedTuple

from ntkcollapse.observable_table import Observable, metrics
from ntkcollapse.theory import STATEMENTS
from ntkcollapse.theory.models import MODELS

NTK_PAPER = "Neural (tangent kernel) collapse (Seleznova et al., 2023), the paper and talks on it"
REVIEW = "Neural collapse: a review on modelling principles and generalization (Kothapalli, 2023), and what it reviews"
AGOP = "Average gradient outer product as a mechanism for deep neural collapse (Beaglehole, Súkeník et al., 2024)"
POSTER = (
    "Neural collapse in deep homogeneous classifiers and the role of weight decay (Rangamani and Banburski-Fahey, 2022)"
)
SOURCES = (NTK_PAPER, REVIEW, AGOP, POSTER)


class Shown(NamedTuple):
    """One entry: the work of `SOURCES` that it is told by, what it is, and where the package has it.

    where: place or author within the source; function: its dotted name; test: file::function; figure: a file in which
    it is seen at work, empty where there is none.
    """

    source: str
    where: str
    what: str
    function: str
    test: str
    figure: str = ""


_GALLERY, _PHASES = "notebooks/models_gallery.ipynb", "simulations/figures/invariant_and_collapse.png"
_COURSE, _LAYERS = "docs/figures/collapse.png", "simulations/figures/layerwise_mlp_mnist_small.png"
_LITERATURE, _RFM = "simulations/figures/literature.png", "simulations/figures/deep_rfm_mnist_2000.png"
_METRICS = "tests/collapse/test_last_layer_metrics.py::"
_BEYOND = "tests/collapse/test_transfer_and_distance.py::"
_SPREAD = "tests/collapse/test_uniformity_and_strong_collapse.py::"

_UNSEEN, _ELSEWHERE = "simulations/figures/unseen_classes.png", "simulations/figures/elsewhere.png"
_UNEQUAL = "simulations/figures/open_questions_imbalance.png"
_DECAY = "simulations/figures/weight_decay_identities_mnist.png"
_QUESTIONS = "simulations/figures/open_questions_architectures.png"
_LOW_RANK = "simulations/figures/low_rank_regression.png"
_FIXED = "simulations/figures/fixed_last_layer.png"

# Figures of the statements of the NTK paper that are drawn, by function.
_FIGURES = {
    "BlockKernel": _COURSE,
    "lazy_rates": "notebooks/2_three_rates.ipynb",
    "Flow": _COURSE,
    "ReducedFlow": _COURSE,
    "simulate": "notebooks/1_block_structured_gradient_flow.ipynb",
    "paper_invariant": _PHASES,
    "alignment": _PHASES,
    "nc1_seleznova2023": _COURSE,
}
# Tests and figures of metrics, by the function behind them.
_MEASURED = {
    "nc1_tirer2022": (_METRICS + "test_hand_computed", _COURSE),
    "nc1_seleznova2023": (_METRICS + "test_stored_trajectories", _COURSE),
    "nc1_papyan2020": (_METRICS + "test_rank_is_truncated_where_the_pseudo_inverse_of_a_matrix_is_not", _LAYERS),
    "nc1_han2022": (_METRICS + "test_hand_computed", ""),
    "mean_cdnv_galanti2022": (
        "tests/collapse/test_pairs_and_centres.py::test_cdnv_of_known_variances_and_distances", ""
    ),
    "nc2_seleznova2023": (_METRICS + "test_zero_on_a_simplex_etf", _COURSE),
    "nc2_equinorm_papyan2020": (_METRICS + "test_hand_computed", ""),
    "nc2_equiangle_papyan2020": (_METRICS + "test_hand_computed", ""),
    "nc2_maximal_angle_papyan2020": (_METRICS + "test_hand_computed", ""),
    "nc2_zhu2021": (_METRICS + "test_hand_computed", ""),
    "nc2_log_energy_liu2023": (_SPREAD + "test_no_directions_have_less_energy_than_a_simplex", _LITERATURE),
    "nc2_riesz_energy_liu2023": (_SPREAD + "test_energies_of_directions_by_hand", _LITERATURE),
    "nc2_equidistance_wu2024": (_SPREAD + "test_energies_of_directions_by_hand", ""),
    "nc3_seleznova2023": (_METRICS + "test_hand_computed", _COURSE),
    "nc3_han2022": (_METRICS + "test_hand_computed", ""),
    "nc3_zhu2021": (_METRICS + "test_hand_computed", ""),
    "snc1_mixon2022": (_SPREAD + "test_strong_collapse_and_known_distances_from_it", ""),
    "snc2_mixon2022": (_SPREAD + "test_strong_collapse_and_known_distances_from_it", ""),
    "snc3_mixon2022": (_SPREAD + "test_strong_collapse_and_known_distances_from_it", ""),
}  # fmt: skip
# Models whose work is not the review.
_MODELS_OF = {"ntk_collapse": NTK_PAPER, "homogeneous": POSTER}


def _statement_of_paper(where: str, what: str, function: str, test: str) -> Shown:
    file, name = test.rsplit(".", 1)
    figure = _FIGURES.get(function.rsplit(".", 1)[1], "")
    return Shown(NTK_PAPER, where, what, function, f"{file.replace('.', '/')}.py::{name}", figure)


def _metric(entry: Observable) -> Shown:
    name = entry.function if isinstance(entry.function, str) else entry.name
    test, figure = _MEASURED.get(name, ("", ""))
    return Shown(REVIEW, entry.source, f"metric: {entry.meaning}", f"ntkcollapse.collapse.{name}", test, figure)


def shown() -> tuple[Shown, ...]:
    """All entries, by source: statements, models, metrics, and what is written down here."""
    models = (
        Shown(
            _MODELS_OF.get(name, REVIEW),
            entry.source,
            f"model: {entry.title}",
            f"ntkcollapse.theory.models.{name}",
            entry.test,
            _GALLERY,
        )
        for name, entry in MODELS.items()
    )
    entries = (*(_statement_of_paper(*s) for s in STATEMENTS), *models, *(_metric(m) for m in metrics()), *OTHERS)
    return tuple(sorted(entries, key=lambda entry: SOURCES.index(entry.source)))


OTHERS = (
    Shown(
        NTK_PAPER, "beside Section 5.2", "equal weight decay takes the invariant to zero, E(t) = E(0) e^{−2λt}",
        "ntkcollapse.theory.invariant.invariant",
        "tests/theory/test_models.py::test_weight_decay_takes_the_invariant_to_zero", "notebooks/5_weight_decay.ipynb",
    ),
    Shown(
        NTK_PAPER, "Appendix C", "block values of the empirical NTK, and what they leave out",
        "ntkcollapse.ntk.block_statistics", "tests/ntk/test_statistics.py::test_against_the_dense_kernel", _COURSE,
    ),
    Shown(
        REVIEW, "Papyan, Han & Donoho (2020)", "NC4: the classifier decides as the nearest class mean",
        "ntkcollapse.collapse.nc4_mismatch", _METRICS + "test_nc4_counts_disagreements_and_the_bias_matters", _COURSE,
    ),
    Shown(
        REVIEW, "Galanti, Galanti & Ben-Shaul (2022)", "nearest class centre by layer, and the effective depth",
        "ntkcollapse.collapse.ncc_depth",
        "tests/collapse/test_pairs_and_centres.py::test_depth_is_the_first_layer_within_tolerance", _LAYERS,
    ),
    Shown(
        REVIEW, "Cohen, Sapiro & Giryes (2018)", "k nearest neighbours by layer",
        "ntkcollapse.collapse.knn_accuracy", _SPREAD + "test_nearest_neighbours_by_brute_force", _LITERATURE,
    ),
    Shown(
        REVIEW, "Hui, Belkin & Nakkiran (2022)", "collapse of test data, weak",
        "ntkcollapse.collapse.weak_test_collapse",
        "tests/collapse/test_pairs_and_centres.py::test_weak_is_never_above_strong",
        "simulations/figures/test_collapse_mlp_mnist_small.png",
    ),
    Shown(
        REVIEW, "Hui, Belkin & Nakkiran (2022)", "collapse of test data, strong",
        "ntkcollapse.collapse.strong_test_collapse",
        "tests/collapse/test_pairs_and_centres.py::test_weak_and_strong_by_hand",
        "simulations/figures/test_collapse_mlp_mnist_small.png",
    ),
    Shown(
        REVIEW, "Galanti, György & Hutter (2022)", "few-shot error on classes that training did not have",
        "ntkcollapse.collapse.few_shot_error_galanti2022",
        _BEYOND + "test_few_shot_error_is_the_mean_over_all_choices_of_examples", _UNSEEN,
    ),
    Shown(
        REVIEW, "Ammar et al. (2024)", "NC5: what is out of distribution is orthogonal to class means",
        "ntkcollapse.collapse.nc5_ammar2024",
        _BEYOND + "test_distances_from_the_simplex_at_its_vertices_its_centre_and_outside", _ELSEWHERE,
    ),
    Shown(
        AGOP, "uses of collapse", "out of distribution by distance from the simplex",
        "ntkcollapse.collapse.simplex_distance",
        _BEYOND + "test_distances_from_the_simplex_at_its_vertices_its_centre_and_outside", _ELSEWHERE,
    ),
    Shown(
        REVIEW, "Yang et al. (2022)", "a last layer fixed to a simplex ETF in training, with dot regression",
        "ntkcollapse.networks.Network",
        "tests/training/test_fixed_last_layer.py::test_the_last_layer_is_a_simplex_and_stays_one", _FIXED,
    ),
    Shown(
        REVIEW, "Fang et al. (2021)", "budgets in training: of W as in the layer-peeled model, of every feature",
        "ntkcollapse.networks.Network", "tests/training/test_fixed_last_layer.py::test_budgets", _FIXED,
    ),
    Shown(
        NTK_PAPER, "open question", "unequal classes: the rate at which each contrast is learnt, lazily",
        "ntkcollapse.theory.lazy_contrasts",
        "tests/theory/test_contrasts.py::test_lazy_contrasts_are_those_of_the_dense_kernel", _UNEQUAL,
    ),
    Shown(
        NTK_PAPER, "open question", "unequal classes: the rate at which each contrast grows from a small start",
        "ntkcollapse.theory.small_start_contrasts",
        "tests/theory/test_contrasts.py::test_small_starts_grow_as_the_linearised_flow_does",
    ),
    Shown(
        NTK_PAPER, "open question", "blocks of the kernel under recurrence", "ntkcollapse.networks.gru",
        "tests/networks/test_sequences.py::test_gru_is_its_recurrence", _QUESTIONS,
    ),
    Shown(
        NTK_PAPER, "open question", "blocks of the kernel under attention", "ntkcollapse.networks.vision_transformer",
        "tests/networks/test_sequences.py::test_transformer_is_its_attention", _QUESTIONS,
    ),
    Shown(
        AGOP, "Trivedi et al. (2014)", "expected gradient outer product",
        "ntkcollapse.collapse.egop", _BEYOND + "test_expected_outer_product_of_a_quadratic_of_normal_inputs", _LOW_RANK,
    ),
    Shown(
        AGOP, "talk", "low-rank regression: R² with and without a learnt metric",
        "ntkcollapse.collapse.r_squared",
        _BEYOND + "test_learnt_metric_explains_a_low_rank_target_and_finds_its_outer_product", _LOW_RANK,
    ),
    Shown(
        POSTER, "theorem", "w_c = ε (μ_c − μ_G)/(λ (C − 1)), measured along training",
        "ntkcollapse.theory.models.quasi_interpolation.symmetric_weights",
        "tests/training/test_unseen_and_decay_measurements.py::test_quasi_interpolation", _DECAY,
    ),
    Shown(
        REVIEW, "Zarka, Guth & Mallat (2021)", "Fisher ratio, separation and concentration by tight frames",
        "ntkcollapse.collapse.fisher_ratio_zarka2021",
        "tests/collapse/test_fisher_and_kernels.py::test_fisher_ratio_by_hand_and_under_linear_maps",
    ),
    Shown(
        REVIEW, "Yu, Chan, You, Song & Ma (2020)", "maximal coding rate reduction by layer",
        "ntkcollapse.collapse.rate_reduction_yu2020",
        "tests/collapse/test_coding_rate.py::test_nothing_passes_the_maximum", _LITERATURE,
    ),
    Shown(
        REVIEW, "Lu & Steinerberger (2022)", "cross-entropy is tied to its minimum over features and weights in balls",
        "ntkcollapse.theory.models.cross_entropy.cross_entropy_floor",
        "tests/theory/test_cross_entropy_models.py::test_cross_entropy_is_tied_to_its_minimum_in_balls",
    ),
    Shown(
        REVIEW, "Ergen & Pilanci (2021)", "convex duality bounds how far a last layer is from its global minimum",
        "ntkcollapse.theory.models.duality.duality_gap", "tests/theory/test_batch_norm_models.py::test_duality_gap",
    ),
    Shown(
        REVIEW, "Zhang, Wang & Su (2021)", "elasticities from measured class means, for any classes",
        "ntkcollapse.theory.models.elasticity.elasticity_matrix",
        "tests/theory/test_elasticity_of_unequal_classes.py::test_all_intensities_between_classes", _LITERATURE,
    ),
    Shown(
        AGOP, "definition", "average gradient outer product", "ntkcollapse.collapse.agop",
        "tests/collapse/test_agop.py::test_linear_functions", _RFM,
    ),
    Shown(
        AGOP, "Radhakrishnan et al. (2024)", "recursive feature machine",
        "ntkcollapse.collapse.recursive_feature_machine",
        "tests/collapse/test_rfm.py::test_rfm_finds_the_directions_of_its_target",
    ),
    Shown(
        AGOP, "mechanism", "deep recursive feature machines collapse layer by layer", "ntkcollapse.collapse.deep_rfm",
        "tests/collapse/test_rfm.py::test_deep_rfm_collapses_by_a_near_constant_factor_on_real_digits", _RFM,
    ),
    Shown(
        AGOP, "networks", "the right singular vectors of a layer collapse, its rotation does not",
        "ntkcollapse.collapse.singular_split",
        "tests/collapse/test_layers.py::test_singular_split_recomposes_the_layer_and_u_does_not_change_nc1",
    ),
    Shown(
        AGOP, "networks", "neural feature ansatz: WᵀW in proportion to the AGOP of its layer",
        "ntkcollapse.collapse.neural_feature_ansatz",
        "tests/collapse/test_agop.py::test_ansatz_sets_in_while_a_network_of_small_initial_weights_is_trained",
    ),
    Shown(
        AGOP, "Kothapalli & Tirer (2025)", "NC1 of a kernel's features, NNGP and NTK",
        "ntkcollapse.collapse.kernel_nc1_kothapalli2025",
        "tests/collapse/test_fisher_and_kernels.py::test_linear_kernel_is_its_features",
    ),
    Shown(
        POSTER, "Lemma 1", "centred collapse without a bias has a loss of at least 1/(2C)",
        "ntkcollapse.theory.models.quasi_interpolation.centred_floor",
        "tests/theory/test_measured_models.py::test_quasi_interpolation_on_the_model_and_on_networks",
    ),
    Shown(
        POSTER, "identity", "λ‖w_c‖² = Σ(y − f)_c f_c/N at critical points, class by class",
        "ntkcollapse.theory.models.quasi_interpolation.weight_identity",
        "tests/theory/test_measured_models.py::test_identities_of_a_trained_network", _DECAY,
    ),
    Shown(
        POSTER, "assumption", "symmetric quasi-interpolation",
        "ntkcollapse.theory.models.quasi_interpolation.quasi_interpolation",
        "tests/theory/test_measured_models.py::test_quasi_interpolation_on_the_model_and_on_networks", _GALLERY,
    ),
    Shown(
        POSTER, "theorem", "‖w_c‖² = (ε − C ε²/(C − 1))/(C λ), w_c = ε (μ_c − μ_G)/(λ (C − 1))",
        "ntkcollapse.theory.models.homogeneous.weight_norm",
        "tests/theory/test_measured_models.py::test_quasi_interpolation_on_the_model_and_on_networks", _GALLERY,
    ),
)  # fmt: skip


def as_markdown() -> str:
    """The table in Markdown: `python -m ntkcollapse.statements > docs/statements.md`."""
    rows = [
        "# Statements, models and metrics, and what shows them",
        "",
        "Each with the function that holds it, the test that holds the function, and a figure in which it is seen at",
        "work (– where nothing is drawn). Written by `python -m ntkcollapse.statements` from the registries of",
        "statements, models and observables and from `ntkcollapse/statements.py`; a test fails where an entry names",
        "nothing.",
        "",
    ]
    entries = shown()
    for source in SOURCES:
        rows += [f"## {source}", "", "| where | what | function | test | figure |", "|---|---|---|---|---|"]
        for entry in (entry for entry in entries if entry.source == source):
            file, name = entry.test.split("::")
            figure = f"[{entry.figure.rsplit('/', 1)[1]}](../{entry.figure})" if entry.figure else "–"
            cells = [
                entry.where,
                entry.what,
                f"`{entry.function.removeprefix('ntkcollapse.')}`",
                f"[`{name}`](../{file})",
            ]
            rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in [*cells, figure]) + " |")
        rows.append("")
    return "\n".join(rows)


if __name__ == "__main__":
    print(as_markdown(), end="")
