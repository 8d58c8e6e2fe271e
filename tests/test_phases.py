"""Moments of a run and what is said of them, on records written by hand."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from ntkcollapse import Classes, Clock, Equation, LastLayer, Staircase, Trajectory, plots
from ntkcollapse.commands._verdicts import ladder_line, verdict
from ntkcollapse.commands.network_runs import chosen_start, compared_steps, placed_steps
from ntkcollapse.comparison import Ladder
from ntkcollapse.phases import blocks_formed, blocks_of, features_moved, rate_drops, terminal_phase

CLASSES = Classes.balanced(num_classes=2, per_class=3)
STEPS = np.array([0, 1, 2, 4, 8, 16, 32])


def run(**changes) -> Trajectory:
    """Right on every sample from step 2 on; of blocks from step 8 on; the rate drops at 10 and 20."""
    clock = Clock(Staircase(0.1, 0.1, 10), scale=1 / 12)
    within = np.array([0.3, 0.3, 0.3, 0.9, 0.8, 0.8, 0.8])
    between = np.array([0.2, 0.2, 0.05, 0.01, 0.02, 0.01, 0.004])
    pairs = np.stack([w * np.eye(2) + b * (1 - np.eye(2)) for w, b in zip(within, between, strict=True)])
    seen = {
        "step": STEPS,
        "epoch": STEPS / 2,
        "train_accuracy": np.array([0.5, 0.5, 1, 1, 1, 1, 1]),
        "nc1_tirer2022": np.geomspace(1, 1e-6, 7),
        "nc2_seleznova2023": np.geomspace(1, 1e-2, 7),
        "nc3_seleznova2023": np.geomspace(2, 2e-2, 7),
        "nc4_mismatch": np.array([0.5, 0.5, 0.1, 0, 0, 0, 0]),
        "residual_single": np.geomspace(4, 1e-3, 7),
        "residual_class": np.geomspace(3, 1e-3, 7),
        "invariant_alignment": np.linspace(0.2, 0.9, 7),
        "invariant_relative": np.linspace(0.8, 0.4, 7),
        "kappa_diagonal": 2 * np.ones(7),
        "kappa_within": 2 * within,
        "kappa_between": 2 * between,
        "kappa_alignment": np.array([0.5, 0.5, 0.5, 0.7, 0.9, 0.9, 0.9]),
        "kappa_class_pairs": 2 * pairs,
    }
    H = np.ones((7, 2, 6)) * np.array([1, 1.05, 1.2, 1.5, 2, 2, 3])[:, None, None]
    states = LastLayer.stacked(H, np.zeros((7, 2, 2)), np.zeros((7, 2)))
    equation = Equation(producer="network", clock=clock, training_classes=changes.pop("training", None))
    return Trajectory(clock.time(STEPS), seen | changes, CLASSES, states=states, equation=equation)


def test_moments():
    some = run()
    assert terminal_phase(some) == 2
    # κ_n is a tenth of κ_c at step 4, where the kernel is not aligned yet.
    assert blocks_formed(some) == 4
    assert rate_drops(some) == [10, 20, 30]
    moved = features_moved(some)
    assert moved is not None
    np.testing.assert_allclose(moved, [0, 0.05, 0.2, 0.5, 1, 1, 2], rtol=1e-12)
    blocks = blocks_of(some)
    assert blocks is not None
    np.testing.assert_allclose(blocks.between[-1], 0.004)


def test_moments_that_there_are_not():
    assert terminal_phase(run(train_accuracy=np.full(7, 0.9))) is None
    # Blocks that do not last have not formed.
    assert blocks_formed(run(kappa_alignment=np.linspace(0.9, 0.5, 7))) is None
    assert blocks_formed(run(kappa_alignment=np.full(7, 0.9), kappa_between=np.full(7, 0.01))) == 0
    theory = run().replaced(equation=Equation(), states=None)
    assert terminal_phase(theory) is None
    assert features_moved(theory) is None
    bare = Trajectory(STEPS.astype(float), {}, CLASSES)
    assert blocks_of(bare) is None
    assert rate_drops(bare) == []


def test_the_verdict_leads_with_what_happened():
    said = verdict(run()).splitlines()
    assert said == [
        "terminal phase: training accuracy 1 from step 2 (epoch 1) on",
        "collapse: collapsed; tr Σ_W/tr Σ_B 1 → 1.00e-06, NC2 1 → 0.01, NC3 2 → 0.02, NC4 0",
        "blocks: formed at step 8 (epoch 4); between/diagonal 0.2 → 0.004, within/diagonal 0.3 → 0.8, alignment with "
        "labels 0.5 → 0.9",
        "features moved by 200%: lazy rates do not apply from step 2 (epoch 1) on",
    ]
    lazy = run(nc2_seleznova2023=np.ones(7), train_accuracy=np.full(7, 0.5))
    still = lazy.replaced(states=LastLayer.stacked(np.ones((7, 2, 6)), np.zeros((7, 2, 2)), np.zeros((7, 2))))
    first, second, *_, last = verdict(still).splitlines()
    assert first == "terminal phase: not reached, training accuracy 0.5 at the end"
    assert second.startswith("collapse: no; ")
    assert last == "features moved by 0%: below 10% throughout, as lazy training needs"


def test_numbers_of_a_probe_say_so():
    of_probe = run(training=Classes.balanced(num_classes=2, per_class=30))
    first, *others = verdict(of_probe).splitlines()
    assert "probe" not in first, "training accuracy is of the training set"
    assert "on a probe of 6 of 60 samples" in others[0]
    assert "on a probe of 6 of 60 samples" in others[-1]


def test_theory_starts_where_blocks_have_formed():
    step, why = chosen_start(run(), "terminal")
    assert step == 8
    assert "right from step 2 on" in why
    assert "κ_n/κ_c = 0.025 (below 0.1), alignment with the labels 0.9 (above 0.8)" in why
    without = run(kappa_alignment=np.full(7, 0.5))
    step, why = chosen_start(without, "auto")
    assert (step, why) == (0, "a hundredth of the run, which does not show blocks that last")
    with pytest.raises(ValueError, match="one without blocks that last"):
        chosen_start(without, "terminal")
    with pytest.raises(ValueError, match="Did you mean 'terminal'"):
        chosen_start(run(), "termnal")


def test_records_lie_between_start_and_end():
    # 1, 2.3, 5.1, 12, 26 and 60 steps after the start, at the nearest records in the logarithm.
    assert compared_steps(list(range(0, 101, 2)), 6, 40) == {40, 42, 46, 52, 66, 100}
    assert compared_steps([0, 10, 20, 30], 40, 10) == {10, 20, 30}
    placed = sorted(placed_steps(40, 100, 6))
    assert placed[0] == 40
    assert placed[-1] == 100
    # Evenly spaced in the logarithm of the steps since the start: 60^(1/5) = 2.27 each.
    since = np.array(placed[2:], float) - 40
    assert (since[1:] / since[:-1]).max() < 3.1


def test_how_long_theory_holds_in_a_sentence():
    network = run()
    theory = Trajectory(
        network.times,
        {
            "residual_single": network["residual_single"] * np.array([1, 1.05, 1.05, 1.5, 1.5, 1.5, 2]),
            "residual_class": network["residual_class"] * np.array([1, 1.5, 1.5, 1.5, 1.5, 1.5, 0.5]),
            "nc2_seleznova2023": network["nc2_seleznova2023"] * 1.01,
        },
        CLASSES,
    )
    assert ladder_line(Ladder(network, {"block-frozen": theory}, {})) == (
        "theory (block kernel, frozen) within 10%: R_single until step 2 (x2 at the end); R_class-R_global not "
        "to the next record (x0.5 at the end); NC2 to the end (x1 at the end)"
    )
    assert ladder_line(Ladder(network, {}, {})) == ""


def test_the_overview_shows_kernels_and_theory_from_its_start_on():
    plt.switch_backend("agg")
    network = run()
    assert plots.has_overview(network)
    # Half of the way in alignment, from 0.5 to 0.9, is 0.7 at record 3.
    assert plots.pictured(network) == [0, 3, 6]
    later = network.at_records([4, 5, 6])
    ladder = Ladder(later, {"block-frozen": later}, {})
    kernels = {i: np.asarray(network["kappa_class_pairs"][i]).repeat(3, 0).repeat(3, 1) for i in (0, 6)}
    figure = plots.overview_figure(network, kernels=kernels, ladder=ladder, title="t")
    images = [ax.get_images()[0].get_array() for ax in figure.axes if ax.get_images()]
    # Over the mean of the diagonal.
    np.testing.assert_allclose(np.asarray(images[1]), kernels[6] / 1.6)
    panel = next(ax for ax in figure.axes if ax.get_title() == "theorem beside the network: residual")
    assert panel.get_xlabel() == "epochs since step 8"
    dots, *_, line = panel.lines
    np.testing.assert_allclose(np.asarray(dots.get_ydata(), float), later["residual_single"])
    x = np.asarray(line.get_xdata(), float)
    np.testing.assert_allclose([x[0], x[-1]], [4 / 3, 12])
    assert len(x) > 100
    figure.canvas.draw()
    plt.close("all")
    bare = Trajectory(network.times, {"step": STEPS}, CLASSES)
    with pytest.raises(ValueError, match="run: expected a network measured with its feature kernel"):
        plots.overview_figure(bare)
