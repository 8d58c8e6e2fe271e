"""Training with measurement on the way: one step, plain gradient descent, whole runs, sweeps of them."""

from typing import TYPE_CHECKING

from ntkcollapse._lazy import import_on_use

if TYPE_CHECKING:
    from ntkcollapse._options import parse_options
    from ntkcollapse.choices import DEFAULT_MEASUREMENTS, LOSSES, MEASUREMENTS, OPTIMIZERS
    from ntkcollapse.training.checkpoints import Checkpoint, Checkpoints
    from ntkcollapse.training.config import TrainConfig
    from ntkcollapse.training.errors import CheckpointError, Interrupted, NonFiniteLoss, RunInUse
    from ntkcollapse.training.evaluation import evaluate, recomputed_statistics
    from ntkcollapse.training.gradient_descent import Snapshot, gradient_descent, log_spaced
    from ntkcollapse.training.layer_measurements import FeatureAnsatz, HeldOutCollapse, LayerCollapse, saved_profile
    from ntkcollapse.training.measured import measure, measured_descent
    from ntkcollapse.training.measurements import Measurement, Moment
    from ntkcollapse.training.objectives import batch_loss, loss_scale
    from ntkcollapse.training.optimizers import TakesRate, optimizer
    from ntkcollapse.training.run import saved_variables, train
    from ntkcollapse.training.run_files import read_status, saved_config
    from ntkcollapse.training.step import Stepper, StepRecord, TrainingState
    from ntkcollapse.training.sweep import combinations, summarise, sweep
    from ntkcollapse.training.sweep_run import run_one

__all__ = [
    "DEFAULT_MEASUREMENTS",
    "LOSSES",
    "MEASUREMENTS",
    "OPTIMIZERS",
    "Checkpoint",
    "CheckpointError",
    "Checkpoints",
    "FeatureAnsatz",
    "HeldOutCollapse",
    "Interrupted",
    "LayerCollapse",
    "Measurement",
    "Moment",
    "NonFiniteLoss",
    "RunInUse",
    "Snapshot",
    "StepRecord",
    "Stepper",
    "TakesRate",
    "TrainConfig",
    "TrainingState",
    "batch_loss",
    "combinations",
    "evaluate",
    "gradient_descent",
    "log_spaced",
    "loss_scale",
    "measure",
    "measured_descent",
    "optimizer",
    "parse_options",
    "read_status",
    "recomputed_statistics",
    "run_one",
    "saved_config",
    "saved_profile",
    "saved_variables",
    "summarise",
    "sweep",
    "train",
]

import_on_use(__name__)
