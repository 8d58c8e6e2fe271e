"""`ntkcollapse simulate`: the theory from named parameters."""

import dataclasses
import inspect
import sys
import time

import jax
import numpy as np

from ntkcollapse import plots
from ntkcollapse._checks import check_positive
from ntkcollapse._options import check_options, parse_options
from ntkcollapse.block_kernel import BlockKernel
from ntkcollapse.choices import INITIAL_CONDITIONS, SIMULATED_MODELS
from ntkcollapse.classes import Classes
from ntkcollapse.commands._summaries import files_line, simulation_table
from ntkcollapse.commands.rates import rates_table
from ntkcollapse.commands.settings import SimulateConfig
from ntkcollapse.comparison import measured_rates
from ntkcollapse.data.memory import check_affordable
from ntkcollapse.run_directory import RunDirectory
from ntkcollapse.simulation import SimulationError, simulate
from ntkcollapse.theory.flow import Flow
from ntkcollapse.theory.method import Method, check_tolerances


def simulate_command(config: SimulateConfig) -> None:
    """Does what `SimulateConfig` says."""
    per_class = config.per_class * (config.classes if len(config.per_class) == 1 else 1)
    if len(per_class) != config.classes:
        raise ValueError(f"per_class: expected one number or {config.classes}, got {len(per_class)}.")
    if len(config.kappa) != 3:
        raise ValueError(f"kappa: expected three numbers (diagonal, within, between), got {len(config.kappa)}.")
    if len(config.weight_decay) not in (1, 3):
        raise ValueError(f"weight_decay: expected one rate or three (H, W, b), got {len(config.weight_decay)}.")
    check_tolerances(config.rtol, config.atol)
    check_positive("weight_decay", config.weight_decay, zero=True)
    classes = Classes(sizes=per_class)
    columns = classes.num_classes + min(config.features, classes.num_samples)
    check_affordable("times, features", (config.times, config.features, columns), 8, "save at fewer times")
    kappa = BlockKernel(*config.kappa)
    kappa.check(classes)
    decay = dict(zip("HWb", config.weight_decay * (3 // len(config.weight_decay)), strict=True))
    start = INITIAL_CONDITIONS[config.initial](
        classes, config.features, kappa, scale=config.scale, key=jax.random.key(config.seed)
    )
    model = _model(config, classes)
    if (config.bias if model is None else model.bias) == "absent":
        start = dataclasses.replace(start, b=0 * start.b)
    if model is not None:
        start = model.retract(start)
    until = _slowest_time(kappa, classes) * 10 if config.until is None else config.until
    if not until > 0:
        raise ValueError(f"until: expected a flow time above 0, got {until}.")
    times = np.concatenate([[0.0], np.geomspace(1e-4, 1.0, config.times - 1) * until])
    out = RunDirectory(config.out)
    method = Method(solver=config.solver, rtol=config.rtol, atol=config.atol)
    flow = Flow(kappa, classes, weight_decay=decay, bias=config.bias) if model is None else model
    title = f"C={classes.num_classes}, m={per_class[0] if classes.is_balanced else per_class}, n={config.features}, "
    title += f"{config.model} {' '.join(config.parameters)}, " if model is not None else f"κ={config.kappa}, "
    title += f"start: {config.initial} ({config.scale:g})"
    failure = None
    with out.locked("simulate"):
        out.check(overwrite=config.overwrite)
        began = time.perf_counter()
        try:
            run = simulate(start, flow, times=times, method=method, progress=sys.stderr.isatty())
        except SimulationError as error:
            if error.trajectory is None:
                raise
            run, failure = error.trajectory, error
        seconds = time.perf_counter() - began
        # Not before it is known that there is something to put in the place of an earlier run.
        out.put(dataclasses.replace(config, until=until), run.save)
        # Where nothing moves there is nothing to draw.
        drawn = plots.comparison_panels({"theory": run})
        figures = plots.save(plots.simulation_figure(run, title=title), out.figure("simulation")) if drawn else []
    print(simulation_table(run, seconds))
    if model is None:
        print()
        print(rates_table(run, measured_rates(run)))
    if "largest_correction" in run.statistics:
        print(
            f"largest correction back to the constraint: {float(run.statistics['largest_correction']):.2g} (relative)"
        )
    print(files_line(out.path, figures))
    if failure is not None:
        raise failure


def _model(config: SimulateConfig, classes: Classes) -> Flow | None:
    """The flow of a named model with its parameters; None for the theory's own, which the other flags describe."""
    if config.model == "ntk_collapse":
        if config.parameters:
            raise ValueError("parameters: ntk_collapse takes --kappa, --weight-decay and --bias instead.")
        return None
    if any(config.weight_decay) or config.bias != "free":
        raise ValueError(
            f"weight_decay, bias: expected none beside model {config.model!r}, which brings its own; "
            "use --parameters (for instance decay_W=0.01 decay_H=0.01)."
        )
    build = SIMULATED_MODELS[config.model].build
    given = check_options(config.model, build, dict(parse_options("parameters", config.parameters)), taken=("classes",))
    parameters = list(inspect.signature(build).parameters.values())[1:]
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in given]
    if missing:
        takes = ", ".join(p.name for p in parameters)
        raise ValueError(
            f"parameters: {config.model} takes {takes}; {', '.join(missing)} missing: give each as name=value."
        )
    return build(classes, **given)


def _slowest_time(kappa: BlockKernel, classes: Classes) -> float:
    """1 / (λ_single √(m/λ_class)): the decay time of deviations near collapse, with the mean m where classes differ."""
    m = classes.num_samples / classes.num_classes
    lambda_single = float(kappa.lambda_single)
    lambda_class = lambda_single + m * float(kappa.within - kappa.between)
    return 1 / (lambda_single * np.sqrt(m / lambda_class))
