"""What runs and their quantities are called: by the equation, and not another one."""

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

from ntkcollapse import (
    BlockKernel,
    Classes,
    CrossEntropy,
    DenseKernel,
    Flow,
    LastLayer,
    SquaredError,
    Trajectory,
    plots,
    simulate,
)
from ntkcollapse.captions import caption, run_name, shown, time_axis
from ntkcollapse.commands._summaries import simulation_table
from ntkcollapse.commands.report import report
from ntkcollapse.equation import Equation
from ntkcollapse.training import TrainConfig, train

CLASSES = Classes.balanced(num_classes=3, per_class=2)
KAPPA = BlockKernel(3.0, 2.0, 0.6)
TIMES = np.linspace(0.0, 1.0, 12)


@pytest.fixture(scope="module")
def cross_entropy_run() -> Trajectory:
    rng = np.random.default_rng(0)
    start = LastLayer(H=rng.normal(size=(4, 6)), W=rng.normal(size=(3, 4)), b=np.zeros(3))
    flow = Flow(DenseKernel(KAPPA.as_matrix(CLASSES)), CLASSES, loss=CrossEntropy())
    return simulate(start, flow, CLASSES, TIMES)


def with_equation(equation: Equation) -> Trajectory:
    seen = {name: np.linspace(3.0, 1.0, 12) for name in ("loss", "residual_single", "nc2_seleznova2023")}
    return Trajectory(TIMES, seen, CLASSES, kernel=KAPPA, equation=equation)


def words_of(figure) -> str:
    figure.canvas.draw()
    words = [text.get_text() for text in figure.findobj(plt.Text)]
    plt.close(figure)
    return "\n".join(words)


def test_a_cross_entropy_run_is_not_called_what_it_is_not(cross_entropy_run):
    plt.switch_backend("agg")
    pages = {
        "figure": words_of(plots.simulation_figure(cross_entropy_run)),
        "table": simulation_table(cross_entropy_run, 0.0),
        "report": report(cross_entropy_run, {}, title="r"),
    }
    assert "flow time $t$ (cross-entropy)" in pages["figure"]
    assert "gradient flow under a dense kernel" in pages["figure"]
    assert "flow time of the loss cross-entropy" in pages["report"]
    for place, page in pages.items():
        for wrong in (r"\frac{1}{2}\|R\|^2", "½‖R‖²", "block-structured", "Residual parts", "residual_single"):
            assert wrong not in page, (place, wrong)
    assert "Invariant" in pages["figure"]
    # Its observable is that loss.
    state = cross_entropy_run.last_layer(-1)
    expected = CrossEntropy().value(state.logits, jnp.asarray(CLASSES.Y))
    np.testing.assert_allclose(cross_entropy_run["loss"][-1], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("equation", "label", "loss"),
    [
        (Equation(), r"flow time $t$ (loss $\frac{1}{2}\|R\|^2$)", r"$\frac{1}{2}\|R\|^2$"),
        (
            Equation(loss=SquaredError(0.1)),
            r"flow time $t$ (loss $0.1\,\frac{1}{2}\|R\|^2$)",
            r"$0.1\,\frac{1}{2}\|R\|^2$",
        ),
        (Equation(loss=CrossEntropy()), "flow time $t$ (cross-entropy)", "cross-entropy"),
        (Equation(producer="network", without_clock="Adam"), "step", r"$\frac{1}{2}\|R\|^2$"),
    ],
)
def test_labels_come_from_the_equation(equation, label, loss):
    run = with_equation(equation)
    assert time_axis(run).label == label
    assert caption("loss", run).label == loss
    assert ("residual_single" in shown(run, "figure")) == equation.is_squared
    assert run_name(run) == ("network" if equation.of_network else "block-structured gradient flow")


def test_runs_of_two_losses_share_an_axis_that_names_neither():
    runs = [with_equation(Equation()), with_equation(Equation(loss=CrossEntropy()))]
    assert time_axis(*runs).label == "flow time $t$"
    assert caption("loss", *runs).label == "loss"
    labels = words_of(plots.comparison_figure({"one": runs[0], "other": runs[1]}))
    assert "Residual parts" in labels


def test_files_carry_names_and_units(tmp_path):
    run = with_equation(Equation())
    run = run.replaced(observables={**run.observables, "seconds": np.arange(12.0), "mine": np.arange(12.0)})
    data = run._stored()
    assert data["observable__residual_single"].attrs == {"long_name": "norm of R - R_class", "units": "1"}
    assert data["observable__seconds"].attrs["units"] == "s"
    assert data["observable__mine"].attrs["long_name"] == "mine"
    assert all(
        {"long_name", "units"} <= set(data[name].attrs) for name in map(str, data) if name.startswith("observable")
    )
    run.save(tmp_path)
    again = Trajectory.load(tmp_path)
    np.testing.assert_array_equal(again["seconds"], run["seconds"])


def test_earlier_files_do_not_call_half_the_squared_residual_a_cross_entropy(tmp_path):
    run = with_equation(Equation())
    data = run._stored()
    for loss, kept in (("cross-entropy", False), ("squared", True)):
        settings = f'{{"producer": "network", "loss": "{loss}", "clock": "steps"}}'
        earlier = data.assign_attrs(settings=settings)
        del earlier.attrs["equation"], earlier.attrs["names"]
        earlier.to_netcdf(tmp_path / "trajectory.nc", engine="h5netcdf")
        assert ("loss" in Trajectory.load(tmp_path).observables) == kept


def test_the_loss_of_a_network_is_the_one_that_it_is_trained_on():
    config = TrainConfig(
        network="mlp", network_options=("widths=(8,10)",), dataset="digits", per_class=12, test_per_class=3, epochs=1,
        batch_size=30, probe_per_class=2, measure=("last-layer",), loss="cross-entropy", seed=1,
    )  # fmt: skip
    run = train(config)
    state, classes = run.last_layer(-1), run.classes
    expected = CrossEntropy().value(state.logits, jnp.asarray(classes.Y))
    np.testing.assert_allclose(run["loss"][-1], expected, rtol=1e-5)
    assert caption("loss", run).label == "cross-entropy"
