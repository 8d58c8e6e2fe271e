"""What weight decay makes of a last layer: identities of critical points, and symmetric quasi-interpolation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntkcollapse.last_layer import LastLayer
from ntkcollapse.theory import models
from ntkcollapse.training.measurements.moment import Moment, features_of_all
from ntkcollapse.training.objectives import loss_scale


def quasi_interpolation(moment: Moment) -> dict[str, Any]:
    r"""How far training is from a critical point, and how symmetric its outputs are, on the whole training set.

    "quasi-interpolation" among the measurements of `train`, for the squared loss. With λ of the penalty λ/2 ‖p‖² beside
    the training loss, the mean over N samples and C outputs of half the squared error, λ' = C λ is that of the
    published form, and observed are

        weight_identity_gap      ‖λ'‖w_c‖² − (1/N) Σ_i (y − f)_ci w_cᵀh_i‖ / (‖λ'‖w_c‖²‖ + ‖…‖), over classes
        epsilon, symmetry_residual, epsilon_spread      of `models.homogeneous.quasi_interpolation`
        symmetric_weights_gap    ‖W − ε (M − μ_G 1ᵀ)ᵀ/(λ' (C − 1))‖ / ‖W‖
        layer_imbalance          (max − min) / mean of the squared norms of weight tensors

    The first is 0 at every critical point of any network with decay, without further assumption; the last too where
    the network is homogeneous of degree one in every layer (no biases below, no batch normalisation). The gap of W is 0
    where outputs are symmetric besides. Without decay the gaps of identity and W say nothing, and are NaN.

    Raises:
        ValueError: another loss than the squared one.
    References:
        Rangamani and Banburski-Fahey (2022), the identity and the form of W; Poggio and Liao (2020).
    """
    if moment.loss != "squared":
        raise ValueError(f"measure: expected the squared loss with 'quasi-interpolation', got {moment.loss!r}.")
    train, about = moment.splits.train, models.homogeneous
    classes, (W, b) = train.classes, moment.network.head(moment.variables.params)
    H = features_of_all(moment, train)
    λ = moment.weight_decay / (loss_scale("squared", classes.num_samples, classes.num_classes) * classes.num_samples)
    with jax.enable_x64(True):
        bias = np.zeros(classes.num_classes) if b is None else np.asarray(b, np.float64)
        state = LastLayer(H=H, W=np.asarray(W, np.float64), b=bias)
        outputs = about.quasi_interpolation(state.logits, classes)
        penalty, fit = (np.asarray(side) for side in about.weight_identity(state, classes, λ))
        identity = weights = np.nan
        if λ > 0:
            # Two numbers a class: where both vanish the identity holds.
            size = np.linalg.norm(penalty) + np.linalg.norm(fit)
            identity = np.linalg.norm(penalty - fit) / size if size > 0 else 0.0
            predicted = np.asarray(about.weights(classes.means(state.H), outputs.epsilon, λ))
            weights = np.linalg.norm(state.W - predicted) / np.linalg.norm(state.W)
        leaves = [jnp.asarray(p, float) for p in jax.tree.leaves(moment.variables.params) if p.ndim > 1]
        imbalance = float(about.layer_imbalance(leaves)) if len(leaves) > 1 else np.nan
    return {
        "weight_identity_gap": identity,
        "epsilon": float(outputs.epsilon),
        "symmetry_residual": float(outputs.residual),
        "epsilon_spread": float(outputs.spread),
        "symmetric_weights_gap": weights,
        "layer_imbalance": imbalance,
    }
