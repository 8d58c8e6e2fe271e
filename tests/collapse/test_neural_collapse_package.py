"""Agreement with the PyTorch package neural-collapse 0.1 (rhubarbwu), where its definitions are right.

Its numbers were recorded once, in float64, on the recipe below: MeanAccumulator, VarNormAccumulator, CovarAccumulator
and DecAccumulator over one batch, then the functions of `neural_collapse.measure`. Where it stands apart:

- its pinv form takes the pseudo-inverse of Σ_B as a matrix, at that library's default cut-off; its svd form has the
  rank C − 1. The two agree here.
- its CDNV is summed in a float32 matrix whatever the input: seven digits.
- its agreement of the classifier with the nearest class mean leaves out the bias.
- its energies on the sphere are summed in a float32 matrix as well; the Riesz power is n − 2.
- it has no feature-wise standard deviation, no lengths-and-angles form of NC2, and NC3 only as a product.
"""

import numpy as np
import pytest

from ntkcollapse import collapse
from ntkcollapse.collapse import ClassStatistics

RECORDED = {
    "covariance_ratio_pinv": 0.27492232509717196,
    "covariance_ratio_svd": 0.27492232509717196,
    "covariance_ratio_quotient": 0.3593327375053529,
    "variability_cdnv": 0.16673171520233154,
    "simplex_etf_error_means": 0.5631419547309153,
    "simplex_etf_error_weights": 0.6469098703924926,
    "self_duality_error": 0.6272818552080024,
    "one_minus_clf_ncc_agreement": 0.18333333333333335,
    "log_kernel_mean": -0.4581022560596466,
    "log_kernel_variance": 0.02828105539083481,
    "riesz_kernel_mean": 0.20914877951145172,
}


def recipe():
    rng = np.random.default_rng(7)
    C, n, N = 4, 6, 60
    labels = np.arange(N) % C
    means = rng.normal(size=(C, n))
    features = means[labels] + 0.5 * rng.normal(size=(N, n))
    W = means - means.mean(0) + 0.3 * rng.normal(size=(C, n))
    return features, labels, W, rng.normal(size=C)


def test_agreement():
    features, labels, W, b = recipe()
    statistics = ClassStatistics.from_features(features, labels)
    values = collapse.measure(statistics, W)
    pairs = {
        "covariance_ratio_pinv": values["nc1_papyan2020"],
        "covariance_ratio_svd": values["nc1_papyan2020"],
        "covariance_ratio_quotient": values["nc1_tirer2022"],
        "simplex_etf_error_means": values["nc2_seleznova2023"],
        "simplex_etf_error_weights": values["nc2_zhu2021"],
        "self_duality_error": values["nc3_zhu2021"],
        "one_minus_clf_ncc_agreement": float(collapse.nc4_mismatch(features.T, W, None, statistics.means)),
    }
    for name, value in pairs.items():
        assert value == pytest.approx(RECORDED[name], rel=1e-12), name
    assert values["mean_cdnv_galanti2022"] == pytest.approx(RECORDED["variability_cdnv"], rel=1e-7)
    # Ours are above those of a simplex ETF, whose four vertices are √(8/3) apart.
    simplex = np.sqrt(8 / 3)
    assert values["nc2_log_energy_liu2023"] == pytest.approx(RECORDED["log_kernel_mean"] + np.log(simplex), rel=1e-6)
    assert values["nc2_equidistance_wu2024"] ** 2 == pytest.approx(RECORDED["log_kernel_variance"], rel=1e-6)
    riesz = float(collapse.nc2_riesz_energy_liu2023(statistics, power=4.0))
    assert riesz == pytest.approx(RECORDED["riesz_kernel_mean"] * simplex**4 - 1, rel=1e-6)
    # The decision of the network itself, with its bias, is another one.
    assert float(collapse.nc4_mismatch(features.T, W, b, statistics.means)) == pytest.approx(17 / 60)
