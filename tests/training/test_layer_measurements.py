"""Layer-wise collapse, test collapse and the feature ansatz as plug-ins of a training, and their figures."""

import dataclasses

import matplotlib as mpl
import numpy as np
import pytest

from ntkcollapse import Trajectory, collapse, ntk, plots
from ntkcollapse.plots.collapse import HELD_OUT_LINES, profile_panels
from ntkcollapse.training import (
    DEFAULT_MEASUREMENTS,
    MEASUREMENTS,
    FeatureAnsatz,
    HeldOutCollapse,
    KrylovBlocks,
    LayerCollapse,
    Moment,
    TrainConfig,
    saved_profile,
    train,
)
from ntkcollapse.training.measurements import moment as moment_module

CONFIG = TrainConfig(
    network="mlp",
    network_options=("widths=(12, 9)",),
    dataset="gaussian-mixture",
    per_class=6,
    test_per_class=4,
    epochs=2,
    batch_size=0,
    measure=("train",),
    measure_every=1,
    measure_log=0,
    probe_per_class=2,
)


def test_layers_and_ansatz_are_measured_along_training():
    """Against the profile of the moment itself and the network's features, and drawn as they are."""
    layers = LayerCollapse(per_class=0, test_per_class=3, neighbours=2, precision=0.5)
    ansatz = FeatureAnsatz(per_class=3)
    moments: list[Moment] = []
    profiles: list[collapse.LayerProfile] = []

    def keep(moment):
        moments.append(moment)
        profiles.append(layers.profile(moment))
        return {}

    run = train(CONFIG, measurements={"layers": layers, "ansatz": ansatz, "keep": keep})
    T, last = len(run.times), moments[-1]
    assert run["layers_nc1_tirer2022"].shape == (T, 4)
    assert run["layers_test_strong_nc1_tirer2022"].shape == (T, 4)
    assert run["layers_test_knn_accuracy"].shape == run["layers_rate_reduction_yu2020"].shape == (T, 4)
    assert run["ansatz_root_correlation"].shape == (T, 3)
    assert profiles[-1].layers == ("trunk/linear_0", "trunk/linear_1", "last_layer", "output")
    np.testing.assert_allclose(run["layers_nc2_seleznova2023"][-1], profiles[-1].train["nc2_seleznova2023"], rtol=1e-6)
    assert run.names == {
        "layers": list(profiles[-1].layers),
        "ansatz": ["trunk/linear_0", "trunk/linear_1", "last_layer"],
    }
    for index in (0, -1):
        again = saved_profile(run, index)
        assert (again.layers, again.widths) == (profiles[index].layers, profiles[index].widths)
        for one, other in ((again.train, profiles[index].train), (again.test, profiles[index].test)):
            assert one.keys() == other.keys()
            for name, values in other.items():
                np.testing.assert_allclose(one[name], values, rtol=1e-6)

    # The features' own value, from the network's features.
    data = last.splits.train
    features = np.asarray(last.network.features(last.variables.params, data.inputs), np.float64)
    expected = collapse.nc1_tirer2022(collapse.ClassStatistics.from_features(features, data.labels))
    np.testing.assert_allclose(run["layers_nc1_tirer2022"][-1, 2], expected, rtol=1e-5)
    # A linear last layer satisfies the ansatz exactly.
    np.testing.assert_allclose(run["ansatz_correlation"][:, -1], 1.0, rtol=1e-5)

    with mpl.rc_context({"backend": "agg"}):
        figure = plots.collapse_profile_figure({"first": profiles[0], "last": profiles[-1]}, title="two")
        panels = profile_panels(tested=True)
        assert len(figure.axes) == len(panels) == 5
        for ax, (_, metrics, _) in zip(figure.axes, panels, strict=True):
            assert len(ax.lines) == 2 * len(metrics)
        drawn = figure.axes[0].lines[1].get_ydata()
        np.testing.assert_allclose(np.asarray(drawn), profiles[-1].train["nc1_tirer2022"])

        panels = plots.ansatz_figure(run).axes
        np.testing.assert_allclose(np.asarray(panels[1].lines[0].get_ydata()), run["ansatz_root_correlation"][:, 0])


def test_blocks_of_the_feature_kernel_are_measured_along_training(monkeypatch):
    """Against the projection of the kernel itself on powers of it; from the kernel, and by products alone."""
    kernels = []

    def keep(moment):
        kernels.append((ntk.empirical_ntk(
            moment.network.evaluation(moment.variables.batch_stats)[0], moment.variables.params, moment.probe.inputs,
            outputs="mean",
        ), moment.probe.classes))  # fmt: skip
        return {}

    config = dataclasses.replace(CONFIG, epochs=1, probe_per_class=3)
    runs, values = [], np.zeros(1)
    for dense in (1000, 0):
        monkeypatch.setattr(moment_module, "DENSE", dense)
        runs.append(train(config, measurements={"blocks": KrylovBlocks(blocks=1), "keep": keep}))
    for i in range(len(runs[0].times)):
        K, classes = np.asarray(kernels[i][0], float), kernels[i][1]
        U = np.linalg.qr(np.concatenate([classes.Y.T, K @ classes.Y.T], axis=1))[0]
        values = np.linalg.eigvalsh(U.T @ K @ U)
        for run in runs:
            assert run["blocks_matrix"].shape[1:] == (20, 20)
            np.testing.assert_allclose(run["blocks_rates"][i], values, rtol=1e-4, atol=1e-5 * values[-1])
            # No further direction than these, and the mean over what is left.
            left = np.linalg.norm(K @ U - U @ (U.T @ K @ U), 2)
            np.testing.assert_allclose(run["blocks_residual"][i], left, rtol=1e-3)
            rest = (np.trace(K) - values.sum()) / 10
            np.testing.assert_allclose(run["blocks_rest"][i], rest, rtol=1e-3)
    np.testing.assert_allclose(runs[0]["blocks_matrix"], runs[1]["blocks_matrix"], atol=2e-4 * values[-1])


def test_test_collapse_is_that_of_all_features():
    """In numpy from the network's features on both parts."""
    moments: list[Moment] = []
    run = train(
        CONFIG,
        measurements={
            "mine": HeldOutCollapse(batch_size=7),
            "keep": lambda moment: (moments.append(moment), {})[1],
        },
    )
    network, variables, (train_part, test_part) = moments[-1].network, moments[-1].variables, moments[-1].splits
    x, z = (np.asarray(network.features(variables.params, p.inputs), np.float64) for p in (train_part, test_part))
    y, w = np.asarray(train_part.labels), np.asarray(test_part.labels)
    M = np.stack([x[y == c].mean(0) for c in range(10)])
    own = np.stack([z[w == c].mean(0) for c in range(10)])

    def between(M):
        return np.square(M - M.mean(0)).sum() / 10

    squares = np.square(z[:, None] - M[None]).sum(2)
    expected = {
        "train_nc1_tirer2022": np.square(x - M[y]).sum() / len(x) / between(M),
        "test_nc1_tirer2022": np.square(z - own[w]).sum() / len(z) / between(own),
        "weak_nc1_tirer2022": squares.min(1).mean() / between(M),
        "strong_nc1_tirer2022": squares[np.arange(len(z)), w].mean() / between(M),
        "train_nc1_seleznova2023": np.mean([x[y == c].std(0) for c in range(10)]),
        "strong_nc1_seleznova2023": np.mean([np.sqrt(np.square(z[w == c] - M[c]).mean(0)) for c in range(10)]),
        "test_ncc_accuracy": np.mean(squares.argmin(1) == w),
    }
    logits = np.asarray(network.outputs(variables.params, test_part.inputs))
    expected["test_nc4_mismatch"] = np.mean(squares.argmin(1) != logits.argmax(1))
    for name, value in expected.items():
        # The trajectory is in float64; features of batches of other sizes may differ in float32's last digit.
        np.testing.assert_allclose(run[name][-1], value, rtol=1e-5, err_msg=name)
    with mpl.rc_context({"backend": "agg"}):
        (ax,) = plots.held_out_figure({"run": run}).axes
        for line, (part, _, _) in zip(ax.lines, HELD_OUT_LINES, strict=True):
            np.testing.assert_allclose(np.asarray(line.get_ydata()), run[f"{part}_nc1_tirer2022"])


def test_by_name_off_by_default_saved_and_resumed_with_its_names(tmp_path):
    """Fewer samples a class than the plug-ins ask for are all that there are."""
    extra = ("test-collapse", "layers", "ansatz")
    assert {*MEASUREMENTS} == {*DEFAULT_MEASUREMENTS, *extra, "blocks", "quasi-interpolation"}
    assert TrainConfig().measure == tuple(DEFAULT_MEASUREMENTS)
    config = dataclasses.replace(CONFIG, measure=extra, measure_every=2, checkpoint_seconds=0.0)

    def stop(step):
        if step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, on_step=stop)
    run = train(config, tmp_path, resume=True)
    # Resumed once more there is nothing left to measure, and what is known comes from the checkpoint.
    train(config, tmp_path, resume=True)
    read = Trajectory.load(tmp_path)
    assert read.names == run.names
    np.testing.assert_array_equal(read["layers_width"], [[64, 12, 9, 10]] * 2)
    assert len(read.names["layers"]) == 4
    assert read["ansatz_correlation"].shape == (2, 3)
    for name in extra:
        assert float(read.statistics[f"seconds_measuring_{name}"]) > 0
    with pytest.raises(ValueError, match="train it with 'layers'"):
        saved_profile(train(CONFIG))
