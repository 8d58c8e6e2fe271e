"""Everything that decides a training run."""

import dataclasses
from typing import TYPE_CHECKING, Any

from ntkcollapse._checks import check_momentum, check_positive
from ntkcollapse._coercion import SEED, Whole
from ntkcollapse._config import Settings, setting
from ntkcollapse._options import parse_options
from ntkcollapse.choices import (
    COMPUTE_DTYPES,
    DATASETS,
    DEFAULT_MEASUREMENTS,
    ENGINES,
    IMBALANCES,
    INITIALISERS,
    LAST_LAYERS,
    LOSSES,
    MEASUREMENTS,
    NETWORKS,
    OPTIMIZERS,
    OWN,
    REFUSED_OPTIMIZERS,
    SYNTHETIC,
)

# Settings alone need no JAX: what they build is imported where it is built.
if TYPE_CHECKING:
    import optax

    from ntkcollapse.classes import Classes
    from ntkcollapse.clock import Staircase
    from ntkcollapse.data import Batches, Splits
    from ntkcollapse.networks import Network


# Measurements along a run where the settings do not say how many.
FEWEST_MEASUREMENTS, MOST_MEASUREMENTS = 6, 32
# Networks compute in it.
_SINGLE = 1.2e-38, 3.4e38
# The convolutions of VGG halve the images five times.
_SIZES = {"vgg11": 32, "vgg16": 32}

_SAID_ELSEWHERE = {
    "use_bias": "the setting 'bias'",
    "initialiser": "the setting 'init'",
    "num_classes": "the number of classes of the data",
}


@dataclasses.dataclass(frozen=True)
class TrainConfig(Settings):
    """Settings of `train`, with the paper's values by default. Checked as a whole when built.

    Raises:
        ValueError: a value out of range, an unknown name, or options that network or optimiser do not take.
    """

    network: str = setting("resnet20", "architecture", choices=NETWORKS)
    network_options: tuple[str, ...] = setting((), "options of the architecture, as name=value: widths=64,64")
    dataset: str = setting("mnist", "data set", choices=DATASETS)
    dataset_options: tuple[str, ...] = setting((), "of a synthetic set, as name=value")
    data_path: str | None = setting(None, "file or folder of the set; known sets are looked for without it")
    download: bool = setting(False, "fetch the official files where none are found")
    per_class: int | None = setting(None, "training samples of each class; all without it")
    test_per_class: int | None = setting(None, "test samples of each class; all without it")
    image_size: int | None = setting(None, "resize images to so many pixels squared; 32 for VGG without it")
    standardised: bool = setting(False, "inputs of mean 0 and deviation 1 by channel, instead of [0, 1]")
    label_noise: float = setting(0.0, "share of each class's training labels moved to other classes")
    random_labels: bool = setting(False, "training labels permuted: they know nothing of the inputs")
    imbalance: float = setting(
        1.0, "largest class over smallest in the training set, sizes rounded; above 1 it asks for --no-balanced"
    )
    imbalance_kind: str = setting("exponential", "how class sizes differ", choices=IMBALANCES)
    init: str = setting("lecun-normal", "initial weights", choices=INITIALISERS)
    init_scale: float = setting(1.0, "factor on all initial weights")
    last_layer_scale: float = setting(1.0, "one more factor on those of the last layer")
    bias: bool = setting(True, "the last layer has a bias")
    last_layer: str = setting("trained", "what the weights of the last layer are", choices=LAST_LAYERS)
    feature_budget: float | None = setting(
        None,
        "largest ‖h‖² of any one sample (the layer-peeled model bounds the mean over classes): longer features are "
        "scaled back to it; no flow time",
    )
    weight_budget: float | None = setting(
        None,
        "largest mean over classes of ‖w‖², to which W is scaled back after each step; of simplex-etf the value, 1 "
        "without it; no flow time",
    )
    loss: str = setting("squared", "loss, a mean over the batch", choices=LOSSES)
    optimizer: str = setting(
        "sgd", "optimiser of optax or optax.contrib", choices=OPTIMIZERS, refused=REFUSED_OPTIMIZERS
    )
    optimizer_options: tuple[str, ...] = setting((), "options of the optimiser, as name=value")
    learning_rate: float = setting(0.05, "at the start, per step of the mean loss; 1 for lbfgs")
    momentum: float = setting(0.9, "of sgd")
    nesterov: bool = setting(True, "Nesterov's form of the momentum of sgd")
    weight_decay: float = setting(
        5e-4, "λ of λ/2 ‖p‖² in the loss, over tensors with more than one axis; with every optimiser"
    )
    decay_factor: float = setting(0.1, "on the learning rate at every decay")
    decay_every: int = setting(120, "epochs between decays; 0 for none")
    epochs: int = setting(400, "passes over the training set")
    batch_size: int = setting(120, "samples a step; 0 for all")
    balanced: bool = setting(True, "every batch has the same number of every class")
    compute_dtype: str = setting(
        "float32",
        "precision of the passes of training; parameters, losses and all that is measured stay in float32",
        choices=COMPUTE_DTYPES,
    )
    measure: tuple[str, ...] = setting(
        DEFAULT_MEASUREMENTS,
        "what is measured, in place of the default",
        choices=MEASUREMENTS,
    )
    measure_every: int = setting(0, "epochs between measurements; 0 for none of these")
    measure_log: int | None = setting(
        None,
        "so many measurements, evenly spaced in the logarithm of the step; without it 32, or at least 6 where kernels "
        "would take more than a tenth of the training",
        whole=Whole(0, 10**6, "from 0 to a million"),
    )
    measure_steps: tuple[int, ...] = setting((), "more steps to measure at")
    measure_on: str = setting(
        "probe", "what last layer and kernels are measured on", choices=("probe", "batch", "both")
    )
    probe_per_class: int = setting(12, "samples of each class in the fixed probe set; 0 for the training set")
    recompute_statistics: bool = setting(False, "batch statistics of the whole training set before measuring")
    ntk_engine: str = setting(
        "layerwise", "engine of the empirical NTK", choices={"auto": "the quickest one", **ENGINES.meanings}
    )
    keep_states: bool = setting(True, "keep H, W, b of the probe at every measurement")
    checkpoint_seconds: float = setting(60.0, "time between checkpoints; 0 for one after every step")
    seed: int = setting(
        0,
        "of initial weights, order of the data, label noise and synthetic data",
        whole=SEED,
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("learning_rate", "init_scale", "last_layer_scale", "decay_factor", "epochs", "imbalance"):
            check_positive(name, getattr(self, name))
        for name in (
            "weight_decay", "decay_every", "batch_size", "measure_every", "measure_log", "probe_per_class",
            "checkpoint_seconds", "measure_steps",
        ):  # fmt: skip
            check_positive(name, getattr(self, name), zero=True)
        for name in ("learning_rate", "init_scale", "last_layer_scale", "decay_factor", "weight_decay"):
            value = getattr(self, name)
            if value and not _SINGLE[0] <= value <= _SINGLE[1]:
                raise ValueError(
                    f"{name}: expected a number that single precision holds, from {_SINGLE[0]:g} to {_SINGLE[1]:g}, "
                    f"got {value:g}, which networks would compute with as {0 if value < 1 else 'infinity'}."
                )
        for name in ("per_class", "test_per_class", "image_size", "feature_budget", "weight_budget"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        check_momentum(self.momentum)
        self._check_last_layer()
        # Built to be checked: neither computes anything.
        self.build_network(2)
        self.build_optimizer()
        if not 0 <= self.label_noise <= 1:
            raise ValueError(f"label_noise: expected a number from 0 to 1, got {self.label_noise}.")
        if self.imbalance < 1:
            raise ValueError(f"imbalance: expected at least 1, got {self.imbalance}.")
        if self.optimizer == "lbfgs" and (self.learning_rate, self.decay_every) != (1, 0):
            raise ValueError(
                "learning_rate, decay_every: expected 1 and 0 with lbfgs, which finds its step by line search; "
                f"got {self.learning_rate} and {self.decay_every}."
            )
        if self.dataset in SYNTHETIC:
            from ntkcollapse.data import check_synthetic

            check_synthetic(self.dataset, self._dataset_options())
        elif self.dataset_options:
            raise ValueError(
                f"dataset_options: expected none for {self.dataset}, which has none; got {self.dataset_options!r}."
            )
        if self.data_path is not None and self.dataset in ("digits", *SYNTHETIC):
            raise ValueError(
                f"data_path: expected none for {self.dataset}, which has no files; got {self.data_path!r}."
            )
        if self.data_path is None and self.dataset in OWN:
            raise ValueError(f"data_path: expected the {self.dataset} that holds your own set, got none.")
        if self.image_size is not None and self.dataset in SYNTHETIC:
            raise ValueError(
                f"image_size: expected none for {self.dataset}, which has no images; got {self.image_size}."
            )
        smallest = _SIZES.get(self.network)
        if smallest is not None and self.image_size is not None and self.image_size < smallest:
            raise ValueError(
                f"image_size: expected at least {smallest} for {self.network}, which halves images five times; got "
                f"{self.image_size}. Leave it out for {smallest}."
            )
        if self.probe_per_class == 1 and {"kappa", "gamma"} & set(self.measure):
            raise ValueError(
                "probe_per_class: expected at least 2 samples a class for kernels, whose mean within classes is one "
                "over pairs; got 1; take more, or leave kappa and gamma out of measure."
            )
        if "quasi-interpolation" in self.measure and self.loss != "squared":
            raise ValueError(f"measure: expected the squared loss with 'quasi-interpolation', got {self.loss!r}.")
        if self.measure_on != "probe" and not (self.balanced and self.batch_size):
            raise ValueError("measure_on: measuring on the batch asks for balanced batches of a stated size.")

    def _check_last_layer(self) -> None:
        fixed = self.last_layer != "trained"
        if fixed and self.last_layer_scale != 1:
            raise ValueError(
                f"last_layer_scale: expected 1 with {self.last_layer}, whose scale is weight_budget; got "
                f"{self.last_layer_scale:g}."
            )
        if self.loss != "dot-regression":
            return
        if not fixed or self.bias:
            raise ValueError(
                "loss: expected last_layer 'simplex-etf' and bias=False (--no-bias) with dot-regression, which pushes "
                f"no feature away from other classes' weights; got {self.last_layer!r} and bias={self.bias}."
            )
        energy_W = 1.0 if self.weight_budget is None else self.weight_budget
        if self.feature_budget is None or abs(self.feature_budget * energy_W - 1) > 1e-6:
            raise ValueError(
                "feature_budget: expected 1 / weight_budget with dot-regression, so that the right class's logit is "
                f"at most its target 1; got {self.feature_budget} and a weight_budget of {energy_W:g}. Take "
                f"feature_budget {1 / energy_W:g}."
            )

    @property
    def departs_from_flow(self) -> str:
        """Why training does not follow the theory's flow of (H, W, b), whatever its clock; empty where it may."""
        if self.last_layer != "trained":
            return "the last layer is fixed, which the theory's flow moves"
        if self.feature_budget is not None or self.weight_budget is not None:
            return "features or weights are scaled back into a budget, which the theory's flow does not do"
        return ""

    def build_splits(self) -> "Splits":
        """The training and test part, with what was asked to be done to them."""
        from ntkcollapse.data import (
            imbalanced,
            label_noise,
            load,
            random_labels,
            standardised_splits,
            synthetic_splits,
        )

        if self.dataset in SYNTHETIC:
            splits = synthetic_splits(
                self.dataset,
                per_class=self.per_class,
                test_per_class=self.test_per_class,
                seed=self.seed,
                options=self._dataset_options(),
            )
        else:
            splits = load(
                self.dataset,
                path=self.data_path,
                download=self.download,
                per_class=self.per_class,
                test_per_class=self.test_per_class,
                size=self.image_size or _SIZES.get(self.network),
            )
        if self.imbalance != 1:
            splits = splits._replace(train=imbalanced(splits.train, self.imbalance, kind=self.imbalance_kind))
        if self.standardised:
            splits = standardised_splits(splits)
        train = splits.train
        if self.label_noise:
            train = label_noise(train, self.label_noise, seed=self.seed)
        if self.random_labels:
            train = random_labels(train, seed=self.seed)
        return splits._replace(train=train)

    def _dataset_options(self) -> dict[str, Any]:
        return dict(parse_options("dataset_options", self.dataset_options))

    def build_network(self, num_classes: int) -> "Network":
        """The network, not initialised yet."""
        from ntkcollapse.networks import Initialiser, network

        initialiser = Initialiser(self.init, self.init_scale, self.last_layer_scale)
        options = dict(parse_options("network_options", self.network_options))
        for option, said in _SAID_ELSEWHERE.items():
            if option in options:
                raise ValueError(f"network_options: {option} is {said}; got it as an option.")
        made = network(self.network, num_classes, initialiser=initialiser, use_bias=self.bias, **options)
        return dataclasses.replace(
            made, classifier=self.last_layer, feature_budget=self.feature_budget, weight_budget=self.weight_budget
        )

    def build_optimizer(self) -> "optax.GradientTransformation":
        """The optimiser, of learning rate 1."""
        from ntkcollapse.training.optimizers import optimizer

        options = parse_options("optimizer_options", self.optimizer_options)
        return optimizer(self.optimizer, momentum=self.momentum, nesterov=self.nesterov, options=options)

    def build_batches(self, classes: "Classes") -> "Batches":
        """The order of the samples.

        Raises:
            ValueError: a batch size that does not fit the classes; or balanced batches of an imbalance that was asked
                for, which would not be trained on.
        """
        if self.imbalance != 1 and not classes.is_balanced and self.balanced and self.batch_size:
            raise ValueError(
                f"balanced: expected no balanced batches with imbalance {self.imbalance:g}, got balanced=True: every "
                "class would weigh the same in every batch. Take --no-balanced (balanced=False), or batch_size 0."
            )
        from ntkcollapse.data import Batches

        return Batches(classes, self.batch_size or None, self.seed, self.balanced)

    def build_schedule(self, steps_per_epoch: int) -> "Staircase":
        """The learning rate along steps."""
        from ntkcollapse.clock import Staircase

        return Staircase(self.learning_rate, self.decay_factor, self.decay_every * steps_per_epoch)

    def measured_steps(self, steps_per_epoch: int, log: int = MOST_MEASUREMENTS) -> frozenset[int]:
        """The steps to measure at: always the first and the last.

        log: measurements evenly spaced in the logarithm of the step, where the settings do not say how many.
        """
        last = self.epochs * steps_per_epoch
        steps = {0, last, *(s for s in self.measure_steps if s <= last)}
        if self.measure_every:
            steps |= set(range(0, last + 1, self.measure_every * steps_per_epoch))
        log = log if self.measure_log is None else self.measure_log
        if log:
            from ntkcollapse.training.gradient_descent import log_spaced

            steps |= set(log_spaced(last, log))
        return frozenset(steps)
