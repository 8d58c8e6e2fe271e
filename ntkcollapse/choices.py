"""Everything that has a name on the command line: what it is, and where it is made.

A name is written here once. Settings, `--help` and error messages read these tables; what a name stands for is imported
when it is looked up, so that reading a table costs nothing. To add a network, a synthetic set, a format of data, a
measurement, an optimiser, an initial condition or a solver: write it, and add its line here. Rungs of the ladder stand
in `comparison.rungs`.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple


def imported(where: str) -> Any:
    """What "module:attribute" stands for."""
    module, _, attribute = where.partition(":")
    return getattr(import_module(module), attribute)


class Choices(Mapping[str, Any]):
    """Name → what it stands for, imported when it is looked up.

    table: name → (what it means, in a few words; "module:attribute").
    """

    def __init__(self, table: Mapping[str, tuple[str, str]]):
        self.meanings = {name: meaning for name, (meaning, _) in table.items()}
        self._where = {name: where for name, (_, where) in table.items()}

    def __getitem__(self, name: str) -> Any:
        return imported(self._where[name])

    # That of `Mapping` would import.
    def __contains__(self, name: object) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


class Optimizer(NamedTuple):
    """How optax makes an optimiser.

    meaning: in a few words; module: of its function; linear: whether its updates are those of rate 1 times the learning
    rate; mask: its argument that keeps weight decay from some parameters, "" where it has none; decay: its option of
    weight decay under that mask; rate: its argument of the learning rate, "" where it is given none.
    """

    meaning: str
    module: str = "optax"
    linear: bool = True
    mask: str = ""
    decay: str = ""
    rate: str = "learning_rate"

    def make(self, name: str) -> Callable:
        """Its function."""
        return getattr(import_module(self.module), name)


def meanings(choices: Collection[str]) -> dict[str, str]:
    """Name → what it is, of any of the tables here; nothing of a mere list of names."""
    if isinstance(choices, Choices):
        return choices.meanings
    if isinstance(choices, Mapping):
        return {name: getattr(entry, "meaning", entry) for name, entry in choices.items()}
    return {}


NETWORKS = Choices(
    {
        "mlp": (
            "multilayer perceptron on flattened inputs; options widths, activation, batch_norm",
            "ntkcollapse.networks.mlp:mlp",
        ),
        "cnn": ("small convolutional network; options widths, batch_norm, momentum", "ntkcollapse.networks.cnn:cnn"),
        "resnet8": (
            "small residual network; options widths, shortcut, momentum",
            "ntkcollapse.networks.resnet:resnet8",
        ),
        "resnet20": (
            "ResNet of 20 layers for small images; options shortcut, momentum",
            "ntkcollapse.networks.resnet:resnet20",
        ),
        "vgg11": (
            "VGG of 8 convolutions; images of 32 × 32 or more; option momentum",
            "ntkcollapse.networks.vgg:vgg11",
        ),
        "vgg16": (
            "VGG of 13 convolutions; images of 32 × 32 or more; option momentum",
            "ntkcollapse.networks.vgg:vgg16",
        ),
        "densenet40": ("DenseNet of 40 layers; options form, momentum", "ntkcollapse.networks.densenet:densenet40"),
        "gru": (
            "gated recurrent unit that reads images row by row; option width",
            "ntkcollapse.networks.gru:gru",
        ),
        "vision-transformer": (
            "small vision transformer on patches; options width, depth, heads, patch",
            "ntkcollapse.networks.vision_transformer:vision_transformer",
        ),
    }
)

INITIALISERS = Choices(
    {
        "lecun-normal": (
            "normal, cut at two deviations, variance 1/fan-in",
            "ntkcollapse.networks.initialisers:lecun_normal",
        ),
        "uniform": ("uniform on ±1/√fan-in, biases too, as in PyTorch", "ntkcollapse.networks.initialisers:uniform"),
        "he-normal": ("normal, variance 2/fan-out", "ntkcollapse.networks.initialisers:he_normal"),
    }
)

IMAGES = {
    "digits": "8 × 8 images of digits that ship with scikit-learn",
    "mnist": "28 × 28 images of digits",
    "fashion-mnist": "28 × 28 images of clothes",
    "cifar10": "32 × 32 coloured images of 10 classes",
    "cifar100": "32 × 32 coloured images of 100 classes",
}
# Formats of data of one's own: functions of the path that give `Splits`.
OWN = Choices(
    {
        "folder": ("your own images, one folder a class, at data_path", "ntkcollapse.data.sources:load_folder"),
        "npz": (
            "your own arrays x_train, y_train, x_test, y_test in the file data_path",
            "ntkcollapse.data.sources:load_npz",
        ),
    }
)
SYNTHETIC = Choices(
    {
        "gaussian-mixture": (
            "normal clouds around the vertices of a simplex; options classes, dimension, separation, noise",
            "ntkcollapse.data.synthetic_splits:mixture",
        ),
        "orthogonal": (
            "orthogonal inputs: nothing to generalise; options classes, dimension",
            "ntkcollapse.data.synthetic_splits:orthogonal",
        ),
    }
)
DATASETS = IMAGES | OWN.meanings | SYNTHETIC.meanings
IMBALANCES = {
    "exponential": "sizes falling geometrically by class",
    "step": "small in the second half of the classes",
}

LAST_LAYERS = {
    "trained": "weights that training moves",
    "simplex-etf": "a simplex ETF that stays as it is drawn: C n parameters fewer; no flow time",
}

LOSSES = Choices(
    {
        "squared": ("half the squared error, over samples and outputs", "ntkcollapse.training.objectives:squared"),
        "cross-entropy": ("−log softmax at the label, over samples", "ntkcollapse.training.objectives:cross_entropy"),
        "dot-regression": (
            "½ (f_y − 1)², over samples; with a fixed last layer and features in a ball",
            "ntkcollapse.training.objectives:dot_regression",
        ),
    }
)

# Of the passes of training.
COMPUTE_DTYPES = ("float32", "bfloat16")

# What a run measures unless told otherwise. In the order in which they are made: what is shared is paid for by the
# first that needs it. The others look at every layer, or at all features of both parts.
_MEASUREMENTS = "ntkcollapse.training.measurements"
MEASUREMENTS = Choices(
    {
        "batch": ("loss, accuracy and gradient norm on the batch of the last step", f"{_MEASUREMENTS}.losses:batch"),
        "train": ("loss and accuracy on the training set", f"{_MEASUREMENTS}.losses:train_split"),
        "test": ("loss and accuracy on the test set", f"{_MEASUREMENTS}.losses:test_split"),
        "kappa": ("the kernel of the features and its alignment", f"{_MEASUREMENTS}.kernels:kappa"),
        "gamma": ("the kernel of the outputs and its alignment", f"{_MEASUREMENTS}.kernels:gamma"),
        "last-layer": ("collapse, residual and invariant of the last layer", f"{_MEASUREMENTS}.last_layer:last_layer"),
        "parameters": ("norms of parameters and weights", f"{_MEASUREMENTS}.parameters:parameters"),
        "test-collapse": ("collapse of test features; only where named", f"{_MEASUREMENTS}.held_out:held_out_collapse"),
        "layers": ("collapse in every layer; only where named", f"{_MEASUREMENTS}.layers:layer_collapse"),
        "ansatz": (
            "weights beside gradient outer products; only where named",
            f"{_MEASUREMENTS}.ansatz:feature_ansatz",
        ),
        "blocks": ("the feature kernel in Krylov blocks; only where named", f"{_MEASUREMENTS}.blocks:krylov_blocks"),
        "quasi-interpolation": (
            "identities that weight decay leads to, squared loss; only where named",
            f"{_MEASUREMENTS}.quasi_interpolation:quasi_interpolation",
        ),
    }
)
DEFAULT_MEASUREMENTS = ("batch", "train", "test", "kappa", "gamma", "last-layer", "parameters")

ENGINES = Choices(
    {
        "layerwise": ("one backward pass an output, layer by layer", "ntkcollapse.ntk.engines.layerwise:Layerwise"),
        "jacobian": ("the whole Jacobian, chunk by chunk", "ntkcollapse.ntk.engines.jacobian:Jacobian"),
        "ntvp": ("kernel-vector products, without a Jacobian", "ntkcollapse.ntk.engines.ntvp:NTVP"),
        "neural-tangents": (
            "the package of that name, where it is installed",
            "ntkcollapse.ntk.engines.neural_tangents:NeuralTangents",
        ),
    }
)

_INITIAL = "ntkcollapse.theory.initial"
INITIAL_CONDITIONS = Choices(
    {
        "gaussian": ("independent normal entries of H and W, b = 0", f"{_INITIAL}:gaussian"),
        "small": ("all entries normal and small: an invariant of order scale²", f"{_INITIAL}:small"),
        "aligned": ("W and class means on common modes, E = 0, no scatter", f"{_INITIAL}:aligned"),
        "saddle": ("as aligned, with one mode that dies out", f"{_INITIAL}:saddle"),
        "zero-invariant": ("E = 0, random, no scatter", f"{_INITIAL}:zero_invariant"),
        "zero-invariant-scatter": ("E = 0 with scatter in C − 1 dimensions", f"{_INITIAL}:zero_invariant_scatter"),
        "zero-invariant-uncentred": ("E = 0 with scatter in C dimensions", f"{_INITIAL}:zero_invariant_uncentred"),
        "non-collapse": ("E ≠ 0: the loss vanishes, NC1 does not", f"{_INITIAL}:non_collapse"),
        "non-collapse-nc3": ("E ≠ 0: variability collapses, self-duality fails", f"{_INITIAL}:non_collapse_nc3"),
        "collapsed": ("neural collapse, R = 0", f"{_INITIAL}:collapsed"),
        "with-invariant": ("|E| = scale, relative; its sign is that of scale", f"{_INITIAL}:with_invariant"),
        "with-alignment": ("scale is the cosine between W and the class means", f"{_INITIAL}:with_alignment"),
        "perturbed-collapse": ("neural collapse, perturbed by scale, relative", f"{_INITIAL}:perturbed_collapse"),
    }
)

TABLES = {
    "text": "columns for a terminal",
    "latex": "a tabular each, for the package booktabs",
    "csv": "comma-separated values",
}

SOLVERS = Choices(
    {
        "tsit5": ("Tsitouras, order 5", "diffrax:Tsit5"),
        "dopri5": ("Dormand and Prince, order 5", "diffrax:Dopri5"),
        "dopri8": ("Dormand and Prince, order 8", "diffrax:Dopri8"),
        "kvaerno3": ("Kværnø, implicit, order 3", "diffrax:Kvaerno3"),
        "kvaerno5": ("Kværnø, implicit, order 5", "diffrax:Kvaerno5"),
        "shark": ("for flows with noise, strong order 3/2", "diffrax:ShARK"),
        "chebyshev": (
            "Runge, Kutta and Chebyshev: explicit, for stiff flows",
            "ntkcollapse.theory.chebyshev:RungeKuttaChebyshev",
        ),
    }
)

# Those that start from any state; the others (see docs/models.md) are built in Python.
_CATALOGUE = "ntkcollapse.theory.models.catalogue"
SIMULATED_MODELS = Choices(
    {
        "ntk_collapse": (
            "the theory of this package; takes kappa, weight_decay and bias",
            f"{_CATALOGUE}:ntk_collapse",
        ),
        "unconstrained_features": (
            "squared error; no parameters",
            f"{_CATALOGUE}:unconstrained_features",
        ),
        "regularised_features": (
            "squared error with decay; parameters decay_W, decay_H, decay_b, bias",
            f"{_CATALOGUE}:regularised_features",
        ),
        "cross_entropy_features": (
            "cross-entropy with decay; parameters decay_W, decay_H, decay_b",
            f"{_CATALOGUE}:cross_entropy_features",
        ),
        "max_margin": ("cross-entropy without decay, in a time that does not slow down", f"{_CATALOGUE}:max_margin"),
        "central_path": ("least-squares classifier, renormalised features", f"{_CATALOGUE}:central_path"),
        "layer_peeled": ("cross-entropy, norm budgets; parameters energy_H, energy_W", f"{_CATALOGUE}:layer_peeled"),
        "batch_norm_head": (
            "batch normalisation before the head; parameters decay, loss",
            f"{_CATALOGUE}:batch_norm_head",
        ),
        "homogeneous": ("homogeneous network with decay; parameters decay, layers", f"{_CATALOGUE}:homogeneous"),
        "spherical_features": (
            "cross-entropy on spheres; parameters radius_H, radius_W",
            f"{_CATALOGUE}:spherical_features",
        ),
    }
)

_CONTRIB = "optax.contrib"
OPTIMIZERS = {
    "acprop": Optimizer("Adam with asynchronous moments", _CONTRIB, False, "mask", "weight_decay"),
    "adabelief": Optimizer("Adam by the variance of gradients"),
    "adadelta": Optimizer("rates from past updates", mask="weight_decay_mask", decay="weight_decay"),
    "adafactor": Optimizer("factored second moments", "optax", False, "weight_decay_mask", "weight_decay_rate"),
    "adagrad": Optimizer("rates from all past gradients"),
    "adam": Optimizer("Adam"),
    "adamax": Optimizer("Adam with the maximum norm"),
    "adamaxw": Optimizer("Adamax with decoupled decay", mask="mask", decay="weight_decay"),
    "adamw": Optimizer("Adam with decoupled decay", mask="mask", decay="weight_decay"),
    "adan": Optimizer("adaptive Nesterov momentum", mask="mask", decay="weight_decay"),
    "ademamix": Optimizer("Adam with a second, slow momentum", _CONTRIB, False, "mask", "weight_decay"),
    "adopt": Optimizer("Adam that converges for any β₂", _CONTRIB, False),
    "amsgrad": Optimizer("Adam with the largest second moment"),
    "cocob": Optimizer("coin betting, no rate to tune", _CONTRIB, False, "mask", "weight_decay"),
    "dadapt_adamw": Optimizer("AdamW that finds its rate", _CONTRIB, False),
    "dog": Optimizer("rate from distance over gradients", _CONTRIB, False, "mask", "weight_decay"),
    "dowg": Optimizer("rate from distance over weighted gradients", _CONTRIB, False, "mask", "weight_decay"),
    "fromage": Optimizer("steps relative to Frobenius norms", linear=False),
    "galore": Optimizer("AdamW on low-rank gradients", _CONTRIB, False, "mask", "weight_decay"),
    "lamb": Optimizer("Adam with rates by layer", mask="mask", decay="weight_decay"),
    "lars": Optimizer("momentum with rates by layer", "optax", False, "weight_decay_mask", "weight_decay"),
    "lbfgs": Optimizer("L-BFGS with line search; learning_rate 1", rate=""),
    "lion": Optimizer("signs of momentum", mask="mask", decay="weight_decay"),
    "madgrad": Optimizer("dual averaging with momentum", _CONTRIB, False),
    "momo": Optimizer("momentum with model-based rate", _CONTRIB, False),
    "momo_adam": Optimizer("Adam with model-based rate", _CONTRIB, False),
    "muon": Optimizer("orthogonalised momentum", _CONTRIB, False, "weight_decay_mask", "weight_decay"),
    "nadam": Optimizer("Adam with Nesterov momentum"),
    "nadamw": Optimizer("Nadam with decoupled decay", mask="mask", decay="weight_decay"),
    "novograd": Optimizer("second moments by layer"),
    "optimistic_adam": Optimizer("Adam for games, older form"),
    "optimistic_adam_v2": Optimizer("Adam for games"),
    "optimistic_gradient_descent": Optimizer("gradient descent for games"),
    "polyak_sgd": Optimizer("Polyak's step size; learning_rate is the largest", linear=False, rate="max_learning_rate"),
    "prodigy": Optimizer("AdamW that finds its rate, faster", _CONTRIB, False),
    "radam": Optimizer("rectified Adam"),
    "rmsprop": Optimizer("rates from recent gradients"),
    "rprop": Optimizer("signs of gradients, rate by parameter"),
    "schedule_free_adamw": Optimizer("AdamW without a schedule", _CONTRIB, False),
    "schedule_free_sgd": Optimizer("SGD without a schedule", _CONTRIB, False),
    "sgd": Optimizer("gradient descent with the settings momentum and nesterov"),
    "sign_sgd": Optimizer("signs of gradients"),
    "signum": Optimizer("signs of averaged gradients"),
    "simplified_ademamix": Optimizer("AdEMAMix with one momentum", _CONTRIB, False, "mask", "weight_decay"),
    "sm3": Optimizer("second moments of rows and columns"),
    "sophia": Optimizer("estimated diagonal of the Hessian", _CONTRIB, False, "weight_decay_mask", "weight_decay"),
    "yogi": Optimizer("Adam with slowly growing second moments"),
}
# Optimisers of optax that are not built from a learning rate, or not for this step: why, and what to take instead.
REFUSED_OPTIMIZERS = {
    "noisy_sgd": "its state holds a random key, which checkpoints cannot hold; take sgd with small batches",
    "dpsgd": "it needs the gradient of every sample and a seed; a step has the gradient of the batch",
    "schedule_free": "it needs another optimiser inside; take schedule_free_sgd or schedule_free_adamw",
    "mechanize": "it needs another optimiser inside; take prodigy, which finds its rate too",
    "sam": "it needs two other optimisers; take one of those",
}
