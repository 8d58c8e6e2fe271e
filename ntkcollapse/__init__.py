"""Block-structured NTK theory of neural collapse beside trained networks.

import ntkcollapse as nc

classes = nc.Classes.balanced(num_classes=10, per_class=100)
kappa = nc.BlockKernel(diagonal=3.0, within=2.0, between=0.6)
run = nc.simulate(nc.LastLayer(H=H, W=W, b=b), kappa, classes, times)

In the order in which one meets them:

    Classes, LastLayer, ReducedStart        samples in classes; features H, classifier W, bias b
    BlockKernel, KrylovKernel, GroupedKernel, DenseKernel, KernelPath, SampleKernel    of the features
    SquaredError, CrossEntropy, Loss, WeightDecay, Flow, AbstractFlow, Method          equations, and those of your own
    simulate, Trajectory, load, Equation    a flow integrated, and what theory and measurement both end as
    networks.of, Recorder, Clock, log_spaced    your network, your loop
    theory, collapse, ntk                   closed forms and rates; metrics; kernels of networks
    data, networks, training, comparison, plots, models    sets, networks, runs, the ladder, figures, seventeen models
"""

from typing import TYPE_CHECKING

from ntkcollapse._lazy import import_on_use

if TYPE_CHECKING:
    from ntkcollapse import collapse, comparison, data, networks, ntk, plots, theory, training
    from ntkcollapse.block_kernel import BlockKernel
    from ntkcollapse.classes import Classes, ResidualParts, class_order
    from ntkcollapse.clock import Clock, Staircase
    from ntkcollapse.compiled import enable_cache
    from ntkcollapse.equation import Equation
    from ntkcollapse.kernel_path import KernelPath
    from ntkcollapse.krylov_kernel import KrylovKernel
    from ntkcollapse.last_layer import LastLayer
    from ntkcollapse.losses import CrossEntropy, Loss, SquaredError
    from ntkcollapse.sample_kernel import DenseKernel, GroupedKernel, SampleKernel
    from ntkcollapse.simulation import SimulationError, simulate
    from ntkcollapse.theory import models
    from ntkcollapse.theory.flow import AbstractFlow, Flow
    from ntkcollapse.theory.method import Method
    from ntkcollapse.theory.reduced import ReducedStart
    from ntkcollapse.training.gradient_descent import log_spaced
    from ntkcollapse.training.recorder import Recorder
    from ntkcollapse.trajectory import Trajectory, load
    from ntkcollapse.weight_decay import WeightDecay

__version__ = "0.1.0"

__all__ = [
    "AbstractFlow",
    "BlockKernel",
    "Classes",
    "Clock",
    "CrossEntropy",
    "DenseKernel",
    "Equation",
    "Flow",
    "GroupedKernel",
    "KernelPath",
    "KrylovKernel",
    "LastLayer",
    "Loss",
    "Method",
    "Recorder",
    "ReducedStart",
    "ResidualParts",
    "SampleKernel",
    "SimulationError",
    "SquaredError",
    "Staircase",
    "Trajectory",
    "WeightDecay",
    "class_order",
    "collapse",
    "comparison",
    "data",
    "enable_cache",
    "load",
    "log_spaced",
    "models",
    "networks",
    "ntk",
    "plots",
    "simulate",
    "theory",
    "training",
]

import_on_use(__name__)
