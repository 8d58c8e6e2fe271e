"""The settings of every command. Nothing here needs JAX, so that `--help` is quick."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ntkcollapse._coercion import SEED, Whole
from ntkcollapse._config import Settings, setting
from ntkcollapse.choices import INITIAL_CONDITIONS, SIMULATED_MODELS, SOLVERS
from ntkcollapse.comparison.rungs import RUNGS, Rungs
from ntkcollapse.training.config import TrainConfig
from ntkcollapse.training.presets import PRESETS, about_preset

PRESET_CHOICES = {"list": "says what each of them shows and costs", **{name: about_preset(name) for name in PRESETS}}


@dataclass(frozen=True)
class SimulateConfig(Settings):
    """Settings of `ntkcollapse simulate`.

    Integrates the theory from named parameters; writes the run and its figures; prints rates, drift and NC.
    """

    classes: int = setting(4, "number of classes C", whole=Whole(2, 10**6, "from 2 to a million"))
    per_class: tuple[int, ...] = setting((20,), "samples in each class m: one number, or one for each class")
    features: int = setting(16, "number of features n", whole=Whole(1, 10**6, "from 1 to a million"))
    model: str = setting(
        "ntk_collapse", "which model; all but the first bring their own kernel, loss, decay", choices=SIMULATED_MODELS
    )
    parameters: tuple[str, ...] = setting((), "of the model, as name=value: decay_W=0.01 decay_H=0.02")
    kappa: tuple[float, ...] = setting((1.0, 0.5, 0.1), "feature kernel: diagonal, within, between classes")
    initial: str = setting("gaussian", "initial condition", choices=INITIAL_CONDITIONS)
    scale: float = setting(0.3, "size of the initial condition, or the number that it is named for")
    weight_decay: tuple[float, ...] = setting((0.0,), "decay rate of H, W and b, or three rates; per unit flow time")
    bias: str = setting("free", "whether the bias moves", choices=("free", "frozen", "absent"))
    until: float | None = setting(None, "flow time to stop at (default: 10 of the slowest predicted decay times)")
    times: int = setting(200, "number of times to save, log-spaced", whole=Whole(10, 10**6, "from 10 to a million"))
    solver: str | None = setting(
        None,
        "method (default: extrapolation where the flow reduces, else tsit5)",
        choices=SOLVERS,
    )
    rtol: float = setting(1e-6, "tolerance of a step, relative to each part of the state")
    atol: float = setting(0.0, "the same, absolute, in addition")
    seed: int = setting(0, "of the initial condition", whole=SEED)
    out: str = setting("runs/simulate", "run directory")
    overwrite: bool = setting(False, "replace what is in the run directory")


@dataclass(frozen=True)
class TrainCommandConfig(TrainConfig):
    """Settings of `ntkcollapse train`.

    Trains a network on images, measures collapse and kernels on the way; can be stopped and resumed at any time.

    Ctrl-C or SIGTERM writes a checkpoint and stops. With --resume, settings that are not given are those of the run in
    --out. With --preset, they are those of the preset.
    """

    PRESETS: ClassVar[Mapping[str, Path]] = PRESETS

    preset: str | None = setting(None, "settings of a run that shows something", choices=PRESET_CHOICES)
    out: str = setting("runs/train", "run directory")
    resume: bool = setting(False, "go on with the run in --out, with its own settings where no others are given")
    overwrite: bool = setting(False, "replace what is in the run directory")
    keep_networks: tuple[int, ...] = setting(
        (), "steps at which the network is kept (and measured), for `compare` to start from without training again"
    )

    def __new__(cls, **given: Any) -> "TrainCommandConfig":
        self = super().__new__(cls)
        self.__dict__["given"] = frozenset(given)
        return self

    @property
    def given(self) -> frozenset[str]:
        """The settings that were given, be it at their defaults."""
        return self.__dict__["given"]


# What can take several values; all other settings are shared by all runs.
GRID = (
    "network", "dataset", "init", "init_scale", "last_layer_scale", "loss", "learning_rate", "weight_decay",
    "label_noise", "imbalance", "seed",
)  # fmt: skip


def _fields() -> list[tuple[str, Any, Any]]:
    fields = []
    for field in dataclasses.fields(TrainConfig):
        kind, default = field.type, field.default
        if field.name in GRID:
            kind, default = tuple[field.type, ...], (default,)  # pyright: ignore[reportGeneralTypeIssues]
        fields.append((field.name, kind, dataclasses.field(default=default, metadata=field.metadata)))
    return [
        *fields,
        ("out", str, setting("runs/sweep", "directory of all runs")),
        ("executor", str, setting("local", "where runs go", choices=("local", "submitit"))),
        ("executor_options", tuple[str, ...], setting((), "of submitit's executor, as name=value")),
    ]


SweepConfig = dataclasses.make_dataclass("SweepConfig", _fields(), bases=(Settings,), frozen=True)
SweepConfig.__doc__ = """Settings of `ntkcollapse sweep`: those of `train`, some of them with several values.

    Trains every combination of the settings that are given several values; started again, it goes on.

    Runs that diverge are recorded as such and do not stop the others. Each run has its own directory below
    --out, with the figures of `train`.
    """
SweepConfig.__module__ = __name__


@dataclass(frozen=True)
class CompareConfig(Settings):
    """Settings of `ntkcollapse compare`.

    A measured network beside predictions under assumptions from strong to weak, and which assumption costs what.

    Without a run it trains a network on real digits first, as `train` does. The comparison of a run goes on where it
    is: starts and rungs that it has are kept, the others are climbed.
    """

    run: str | None = setting(None, "directory of a trained network (default: train one of a preset)", positional=True)
    preset: str = setting(
        "collapse",
        "which network to train where no run is named",
        choices=PRESET_CHOICES,
    )
    seed: int = setting(0, "of the initial weights of that network", whole=SEED)
    starts: tuple[int | str, ...] = setting(
        (),
        "optimiser steps at whose measured state theory starts; 'terminal' is the step from which on the kernel of the "
        "features is one of blocks in the terminal phase, 'auto' the same where there is one, else a hundredth of the "
        "run (default: auto; of a preset, an early step and a late one)",
        flag="--from",
    )
    rungs: tuple[str, ...] = setting(
        (),
        "rungs of the ladder, from strong assumptions to weak; default: three quick ones without a run, with a run all "
        "but the sample kernel's path",
        choices=Rungs(
            {
                "all": "every rung that is listed; by their names blocks:q for any other q, blocks:q:groups=g with g "
                "rates for what it leaves out, blocks-path:q, and resolvents:m for any other m",
                **RUNGS,
            }
        ),
    )
    records: int = setting(
        40,
        "at how many records at most a run is compared, log-spaced from the start of theory on",
        whole=Whole(1, 10**6, "from 1 to a million"),
    )
    homogeneity: float | None = setting(
        None,
        "degree of the features in decaying weights: rungs 1 to 3 decay H at so many λ (default: what it is measured "
        "to be at the start; 0 under batch normalisation)",
    )
    out: str | None = setting(None, "run directory (default: runs/compare; of a run, the run's own)")
    overwrite: bool = setting(False, "replace what is in the run directory")


@dataclass(frozen=True)
class RatesConfig(Settings):
    """Settings of `ntkcollapse rates`.

    Decay rates of the three residual parts over windows chosen from the data, with uncertainty, beside predictions.

    Predicted at the start of each window: from the output kernel (lazy training), and from last layer and feature
    kernel together (feature learning).
    """

    run: str | None = setting(None, "directory of a run: simulated, or of a trained network", positional=True)
    tolerance: float = setting(0.1, "relative change of the local rate that still counts as one rate")
    spectrum: bool = setting(False, "train again to where R - R_class begins to decay; predict its sum of exponentials")
    out: str | None = setting(None, "where the figure goes (default: the run's own figures)")


@dataclass(frozen=True)
class ReportConfig(Settings):
    """Settings of `ntkcollapse report`.

    One self-contained HTML page of a run: figures, tables, settings, versions, how to cite.
    """

    run: str | None = setting(None, "run directory", positional=True)
    out: str | None = setting(None, "file to write (default: the report in the run directory)")
    overwrite: bool = setting(False, "replace a report that is there")
