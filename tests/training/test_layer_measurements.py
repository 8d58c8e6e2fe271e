"""Layer-wise collapse and the feature ansatz as plug-ins of a training, and the figure of a profile."""

import matplotlib as mpl
import numpy as np

from ntkcollapse import collapse
from ntkcollapse.plots.collapse import PROFILE_PANELS, collapse_profile_figure
from ntkcollapse.training import Moment, TrainConfig, train
from ntkcollapse.training.layer_measurements import FeatureAnsatz, LayerCollapse

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
    probe_per_class=2,
)


def test_layers_and_ansatz_are_measured_along_training():
    layers, ansatz = LayerCollapse(per_class=0, test_per_class=3), FeatureAnsatz(per_class=3)
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
    assert run["ansatz_root_correlation"].shape == (T, 3)
    assert profiles[-1].layers == ("trunk/linear_0", "trunk/linear_1", "last_layer", "output")
    np.testing.assert_allclose(run["layers_nc2_seleznova2023"][-1], profiles[-1].train["nc2_seleznova2023"], rtol=1e-6)

    # The features' own value, from the network's features.
    data = last.splits.train
    features = np.asarray(last.network.features(last.variables.params, data.inputs), np.float64)
    expected = collapse.nc1_tirer2022(collapse.ClassStatistics.from_features(features, data.labels))
    np.testing.assert_allclose(run["layers_nc1_tirer2022"][-1, 2], expected, rtol=1e-5)
    # A linear last layer satisfies the ansatz exactly.
    np.testing.assert_allclose(run["ansatz_correlation"][:, -1], 1.0, rtol=1e-5)

    with mpl.rc_context({"backend": "agg"}):
        figure = collapse_profile_figure({"first": profiles[0], "last": profiles[-1]}, title="two")
        assert len(figure.axes) == len(PROFILE_PANELS)
        for ax, (_, metrics, _) in zip(figure.axes, PROFILE_PANELS, strict=True):
            assert len(ax.lines) == 2 * len(metrics)
        drawn = figure.axes[0].lines[1].get_ydata()
        np.testing.assert_allclose(np.asarray(drawn), profiles[-1].train["nc1_tirer2022"])
