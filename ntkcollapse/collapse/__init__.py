"""Metrics of neural collapse, each under the name of its source: of training or test features, in every layer.

The formulas stand side by side in `docs/collapse_metrics.md`.
"""

from typing import TYPE_CHECKING

from ntkcollapse._lazy import import_on_use

if TYPE_CHECKING:
    from ntkcollapse.collapse.activations import Tap, flax_activations, record_layers
    from ntkcollapse.collapse.agop import (
        LowRankAGOP,
        agop,
        ansatz_correlation,
        low_rank_agop,
        matrix_square_root,
        neural_feature_matrix,
    )
    from ntkcollapse.collapse.coding_rate import RateReduction, maximal_rate_reduction, rate_reduction_yu2020
    from ntkcollapse.collapse.deep_rfm import DeepRFM, DeepRFMLayer, deep_rfm
    from ntkcollapse.collapse.egop import ExpectedGradientOuterProduct, egop
    from ntkcollapse.collapse.few_shot import FewShotError, few_shot_error_galanti2022
    from ntkcollapse.collapse.fisher import concentration_block, fisher_ratio_zarka2021, separation_block, tight_frame
    from ntkcollapse.collapse.held_out import strong_test_collapse, weak_test_collapse
    from ntkcollapse.collapse.kernels import (
        KernelStatistics,
        kernel_nc1_kothapalli2025,
        kernel_nc1_papyan2020,
        kernel_nc2_seleznova2023,
    )
    from ntkcollapse.collapse.layer_agop import LayerAnsatz, layer_agops, layer_kernels, neural_feature_ansatz
    from ntkcollapse.collapse.layers import LayerProfile, layer_profile, singular_split
    from ntkcollapse.collapse.nc1 import nc1_han2022, nc1_papyan2020, nc1_seleznova2023, nc1_tirer2022
    from ntkcollapse.collapse.nc2 import (
        nc2_equiangle_papyan2020,
        nc2_equinorm_papyan2020,
        nc2_maximal_angle_papyan2020,
        nc2_seleznova2023,
        nc2_zhu2021,
        simplex_etf_floor,
        simplex_gram,
    )
    from ntkcollapse.collapse.nc3 import nc3_han2022, nc3_seleznova2023, nc3_zhu2021
    from ntkcollapse.collapse.nc4 import nc4_mismatch, nearest_class_mean
    from ntkcollapse.collapse.nearest_centre import ncc_accuracy, ncc_depth
    from ntkcollapse.collapse.neighbours import knn_accuracy
    from ntkcollapse.collapse.out_of_distribution import (
        auroc,
        nc5_ammar2024,
        neco_ammar2024,
        simplex_angle,
        simplex_distance,
    )
    from ntkcollapse.collapse.pairs import cdnv_galanti2022, mean_cdnv_galanti2022
    from ntkcollapse.collapse.rfm import (
        KernelPredictor,
        RecursiveFeatureMachine,
        kernel_regression,
        laplace_kernel,
        r_squared,
        recursive_feature_machine,
    )
    from ntkcollapse.collapse.statistics import ClassStatistics
    from ntkcollapse.collapse.streaming import RunningStatistics
    from ntkcollapse.collapse.strong import snc1_mixon2022, snc2_mixon2022, snc3_mixon2022
    from ntkcollapse.collapse.summary import evaluate, measure
    from ntkcollapse.collapse.uniformity import (
        nc2_equidistance_wu2024,
        nc2_log_energy_liu2023,
        nc2_riesz_energy_liu2023,
    )

__all__ = [
    "ClassStatistics",
    "DeepRFM",
    "DeepRFMLayer",
    "ExpectedGradientOuterProduct",
    "FewShotError",
    "KernelPredictor",
    "KernelStatistics",
    "LayerAnsatz",
    "LayerProfile",
    "LowRankAGOP",
    "RateReduction",
    "RecursiveFeatureMachine",
    "RunningStatistics",
    "Tap",
    "agop",
    "ansatz_correlation",
    "auroc",
    "cdnv_galanti2022",
    "concentration_block",
    "deep_rfm",
    "egop",
    "evaluate",
    "few_shot_error_galanti2022",
    "fisher_ratio_zarka2021",
    "flax_activations",
    "kernel_nc1_kothapalli2025",
    "kernel_nc1_papyan2020",
    "kernel_nc2_seleznova2023",
    "kernel_regression",
    "knn_accuracy",
    "laplace_kernel",
    "layer_agops",
    "layer_kernels",
    "layer_profile",
    "low_rank_agop",
    "matrix_square_root",
    "maximal_rate_reduction",
    "mean_cdnv_galanti2022",
    "measure",
    "nc1_han2022",
    "nc1_papyan2020",
    "nc1_seleznova2023",
    "nc1_tirer2022",
    "nc2_equiangle_papyan2020",
    "nc2_equidistance_wu2024",
    "nc2_equinorm_papyan2020",
    "nc2_log_energy_liu2023",
    "nc2_maximal_angle_papyan2020",
    "nc2_riesz_energy_liu2023",
    "nc2_seleznova2023",
    "nc2_zhu2021",
    "nc3_han2022",
    "nc3_seleznova2023",
    "nc3_zhu2021",
    "nc4_mismatch",
    "nc5_ammar2024",
    "ncc_accuracy",
    "ncc_depth",
    "nearest_class_mean",
    "neco_ammar2024",
    "neural_feature_ansatz",
    "neural_feature_matrix",
    "r_squared",
    "rate_reduction_yu2020",
    "record_layers",
    "recursive_feature_machine",
    "separation_block",
    "simplex_angle",
    "simplex_distance",
    "simplex_etf_floor",
    "simplex_gram",
    "singular_split",
    "snc1_mixon2022",
    "snc2_mixon2022",
    "snc3_mixon2022",
    "strong_test_collapse",
    "tight_frame",
    "weak_test_collapse",
]

import_on_use(__name__)
