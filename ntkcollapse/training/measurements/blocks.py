"""The feature kernel in Krylov blocks: what class means and deviations do to each other."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkcollapse import ntk
from ntkcollapse.krylov_kernel import KrylovKernel, most_blocks
from ntkcollapse.training.measurements.moment import Moment


@dataclass(frozen=True)
class KrylovBlocks:
    """T, λ and ‖B_(q+1)‖ of the feature kernel on the probe, as `KrylovKernel.of` has them.

    "blocks" among the measurements of `train`: observables "blocks_matrix" (C (1 + q), C (1 + q)), block tridiagonal,
    its first C rows those of the class indicators; "blocks_rates", its eigenvalues in ascending order; "blocks_rest",
    the mean rate of all that is orthogonal; and "blocks_residual". Directions are those of each record, one for each
    class in each block, so that T is the same whatever signs a decomposition takes. NaN where a kernel is not
    positive on them, as that of a collapsed network in single precision, and where a block has fewer than C.

    Args:
        blocks: q, or as many as the probe has room for.
    """

    blocks: int = 3

    def __call__(self, moment: Moment) -> dict[str, Any]:
        classes = moment.probe.classes
        q = min(self.blocks, most_blocks(classes))
        R = min((1 + q) * classes.num_classes, classes.num_samples)
        T, rates, rest, residual = np.full((R, R), np.nan), np.full(R, np.nan), np.nan, np.nan
        try:
            kernel = KrylovKernel.of(*_kernel_of(moment), blocks=q)
        except ValueError as error:
            if "positive-definite" not in str(error):
                raise
        else:
            rest, residual = float(kernel.rates[0]), float(kernel.residual)
            if kernel.matrix.shape == T.shape:
                T, rates = np.asarray(kernel.matrix), np.linalg.eigvalsh(kernel.matrix)
        return {"blocks_matrix": T, "blocks_rates": rates, "blocks_rest": rest, "blocks_residual": residual}


def _kernel_of(moment: Moment) -> tuple[Any, Any]:
    """The feature kernel on the probe, as a matrix where that is at hand, and its classes."""
    classes = moment.probe.classes
    if moment.kappa.matrix is not None:
        return moment.kappa.matrix, classes
    f = moment.network.evaluation(moment.variables.batch_stats)[0]
    return ntk.NTKOperator(f, moment.variables.params, moment.probe.inputs, outputs="mean"), classes


krylov_blocks = KrylovBlocks()
