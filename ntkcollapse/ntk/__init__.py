"""The empirical NTK of any pure f(params, x): which kernel, apart from how it is computed."""

from ntkcollapse.ntk._neural_tangents import neural_tangents
from ntkcollapse.ntk.alignment import Alignment, label_alignment, matrix_alignment
from ntkcollapse.ntk.cost import Cost, block_statistics_cost
from ntkcollapse.ntk.empirical import empirical_ntk
from ntkcollapse.ntk.heads import output_ntk_from_features
from ntkcollapse.ntk.infinite_width import infinite_width_kernel, predict_lazily, stax
from ntkcollapse.ntk.parts import layer_ntks, ntk_diagonal
from ntkcollapse.ntk.products import NTKOperator, ntk_vector_product
from ntkcollapse.ntk.random_features import RandomFeatures, random_features
from ntkcollapse.ntk.spectrum import Levels, count_levels, spectral_density, top_eigenvalues, within_class_eigenvalues
from ntkcollapse.ntk.statistics import BlockStatistics, OutputBlocks, block_statistics

__all__ = [
    "Alignment",
    "BlockStatistics",
    "Cost",
    "Levels",
    "NTKOperator",
    "OutputBlocks",
    "RandomFeatures",
    "block_statistics",
    "block_statistics_cost",
    "count_levels",
    "empirical_ntk",
    "infinite_width_kernel",
    "label_alignment",
    "layer_ntks",
    "matrix_alignment",
    "neural_tangents",
    "ntk_diagonal",
    "ntk_vector_product",
    "output_ntk_from_features",
    "predict_lazily",
    "random_features",
    "spectral_density",
    "stax",
    "top_eigenvalues",
    "within_class_eigenvalues",
]
