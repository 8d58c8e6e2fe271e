"""Training with measurement on the way: one step, plain gradient descent, whole runs, sweeps of them."""

from typing import TYPE_CHECKING

from ntkcollapse._lazy import import_on_use

if TYPE_CHECKING:
    from ntkcollapse._options import parse_options
    from ntkcollapse.checkpoints import Checkpoint, CheckpointError, Checkpoints
    from ntkcollapse.choices import DEFAULT_MEASUREMENTS, LOSSES, MEASUREMENTS, OPTIMIZERS
    from ntkcollapse.networks.kept import KeptNetwork
    from ntkcollapse.run_directory import RunInUse
    from ntkcollapse.training.announcer import Progressing
    from ntkcollapse.training.config import TrainConfig
    from ntkcollapse.training.errors import Interrupted, NonFiniteLoss
    from ntkcollapse.training.evaluation import evaluate, recomputed_statistics
    from ntkcollapse.training.gradient_descent import Snapshot, gradient_descent, log_spaced
    from ntkcollapse.training.measurements.ansatz import FeatureAnsatz
    from ntkcollapse.training.measurements.blocks import KrylovBlocks
    from ntkcollapse.training.measurements.held_out import HeldOutCollapse
    from ntkcollapse.training.measurements.layers import LayerCollapse, saved_profile
    from ntkcollapse.training.measurements.moment import Measurement, Moment
    from ntkcollapse.training.measurements.unseen import OutOfDistribution, UnseenClasses
    from ntkcollapse.training.objectives import batch_loss, loss_scale
    from ntkcollapse.training.optimizers import TakesRate, optimizer
    from ntkcollapse.training.presets import PRESETS, about_preset, preset, preset_table
    from ntkcollapse.training.recorder import Recorder, Writer
    from ntkcollapse.training.run import train
    from ntkcollapse.training.saved_runs import read_status, saved_config, saved_networks, saved_variables
    from ntkcollapse.training.step import Stepper, StepRecord, TrainingState
    from ntkcollapse.training.sweep import combinations, summarise, sweep
    from ntkcollapse.training.sweep_run import run_one

__all__ = [
    "DEFAULT_MEASUREMENTS",
    "LOSSES",
    "MEASUREMENTS",
    "OPTIMIZERS",
    "PRESETS",
    "Checkpoint",
    "CheckpointError",
    "Checkpoints",
    "FeatureAnsatz",
    "HeldOutCollapse",
    "Interrupted",
    "KeptNetwork",
    "KrylovBlocks",
    "LayerCollapse",
    "Measurement",
    "Moment",
    "NonFiniteLoss",
    "OutOfDistribution",
    "Progressing",
    "Recorder",
    "RunInUse",
    "Snapshot",
    "StepRecord",
    "Stepper",
    "TakesRate",
    "TrainConfig",
    "TrainingState",
    "UnseenClasses",
    "Writer",
    "about_preset",
    "batch_loss",
    "combinations",
    "evaluate",
    "gradient_descent",
    "log_spaced",
    "loss_scale",
    "optimizer",
    "parse_options",
    "preset",
    "preset_table",
    "read_status",
    "recomputed_statistics",
    "run_one",
    "saved_config",
    "saved_networks",
    "saved_profile",
    "saved_variables",
    "summarise",
    "sweep",
    "train",
]

import_on_use(__name__)
