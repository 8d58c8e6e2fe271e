"""Every theory of neural collapse that is an instance of one state equation, by name.

`nc.models.<name>(...)` builds a flow that `simulate` integrates; its exact answers are attributes,
`nc.models.<name>.minimizer(...)`, `.limit(...)`, `.threshold(...)`. `MODELS` is the registry, `table()` its
description; `catalogue.py` is the file to read.
"""

from ntkcollapse.theory.models.catalogue import (
    batch_norm_head,
    central_path,
    cross_entropy_features,
    deep_linear,
    elastic,
    fixed_etf,
    homogeneous,
    layer_peeled,
    local_elasticity,
    logit_ball,
    max_margin,
    ntk_collapse,
    regularised_features,
    relu_features,
    spherical_features,
    svag,
    unconstrained_features,
)
from ntkcollapse.theory.models.registry import MODELS, Model, table

__all__ = [
    "MODELS",
    "Model",
    "batch_norm_head",
    "central_path",
    "cross_entropy_features",
    "deep_linear",
    "elastic",
    "fixed_etf",
    "homogeneous",
    "layer_peeled",
    "local_elasticity",
    "logit_ball",
    "max_margin",
    "ntk_collapse",
    "regularised_features",
    "relu_features",
    "spherical_features",
    "svag",
    "table",
    "unconstrained_features",
]
