"""Settings, data and network that do not go together are refused before a directory is occupied."""

import tomllib

import numpy as np
import pytest
import tomli_w

from ntkcollapse.data import Dataset, Splits
from ntkcollapse.training import TrainConfig, saved_config, train
from tests.training.settings import small


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dataset": "digits", "data_path": "x"}, "data_path: expected none for digits"),
        ({"dataset": "gaussian-mixture", "data_path": "x"}, "data_path: expected none for gaussian-mixture"),
        ({"dataset": "gaussian-mixture", "image_size": 8}, "image_size: expected none for gaussian-mixture"),
        ({"dataset": "folder"}, "data_path: expected the folder that holds your own set, got none"),
        ({"dataset": "digits", "dataset_options": ("classes=3",)}, "dataset_options: expected none for digits"),
        (
            {"dataset": "orthogonal", "dataset_options": ("noise=3",)},
            "option of orthogonal: expected one of 'classes', 'd",
        ),
        ({"dataset": "orthogonal", "dataset_options": ("seed=3",)}, "option of orthogonal: expected one of"),
        ({"dataset": "gaussian-mixture", "dataset_options": ("clases=3",)}, "Did you mean 'classes'"),
        ({"dataset": "gaussian-mixture", "dataset_options": ("classes=1",)}, "classes .*: expected at least 2, got 1"),
        ({"dataset": "gaussian-mixture", "dataset_options": ("noise=-1",)}, "noise .*: expected numbers zero or above"),
        ({"dataset": "gaussian-mixture", "dataset_options": ("separation=far",)}, "separation .*: expected a number"),
        ({"dataset": "orthogonal", "dataset_options": ("dimension=0",)}, "dimension .*: expected numbers above zero"),
        ({"imbalance_kind": "linear"}, "imbalance_kind: expected one of 'exponential', 'step'"),
        ({"network": "vgg11", "image_size": 28}, "image_size: expected at least 32 for vgg11.*got 28"),
        ({"seed": 2**70}, "seed: expected a whole number from 0 to 2³² − 1, got 1180591620717411303424"),
        ({"epochs": 2**70}, "epochs: expected a whole number of at most 64 bits"),
        ({"probe_per_class": 1}, "probe_per_class: expected at least 2 samples a class for kernels"),
    ],
)
def test_settings_that_would_be_ignored_or_undefined_do_not_build(wrong, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**wrong)


def test_one_sample_a_class_is_a_probe_without_kernels():
    run = train(small(probe_per_class=1, measure=("last-layer", "train"), epochs=1))
    assert np.isfinite(np.asarray(run["train_loss"])).all()


@pytest.mark.parametrize("changes", [{"imbalance": 12.0}, {"dataset": "gaussian-mixture"}])
def test_standardised_is_the_training_part_in_use(changes):
    """Mean 0 and deviation 1 of what is trained on; the test part in the same units."""
    plain, scaled = (small(standardised=s, per_class=60, **changes).build_splits() for s in (False, True))
    # float32 rounding of some thousands of numbers of size 1.
    assert abs(scaled.train.inputs.mean(dtype=float)) < 1e-5
    assert abs(scaled.train.inputs.std(dtype=float) - 1) < 1e-5
    mean, deviation = plain.train.inputs.mean(dtype=float), plain.train.inputs.std(dtype=float)
    np.testing.assert_allclose(scaled.test.inputs, (plain.test.inputs - mean) / deviation, atol=1e-5)


def test_synthetic_sets_and_kinds_of_imbalance_as_asked(tmp_path):
    config = small(
        dataset="orthogonal", dataset_options=("classes=4",), per_class=24, test_per_class=2, imbalance=6.0,
        imbalance_kind="step", balanced=False, batch_size=10, epochs=1, measure=("train",),
    )  # fmt: skip
    run = train(config, tmp_path / "run")
    assert config.build_splits().train.classes.sizes == (24, 24, 4, 4)
    assert run.settings["data"] == "orthogonal/train/imbalanced-step-6"
    assert saved_config(tmp_path / "run") == config
    # Settings saved before there were these fields.
    file = tmp_path / "run" / "config.toml"
    saved = tomllib.loads(file.read_text())
    del saved["dataset_options"], saved["imbalance_kind"]
    file.write_text(tomli_w.dumps(saved))
    older = saved_config(tmp_path / "run")
    assert (older.dataset_options, older.imbalance_kind) == ((), "exponential")


def test_balanced_batches_do_not_undo_an_imbalance_unseen(tmp_path):
    with pytest.raises(ValueError, match=r"balanced: expected no balanced batches with imbalance 4.*--no-balanced"):
        train(small(epochs=1, imbalance=4.0, measure=("train",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # The whole set in every step is as imbalanced as it is.
    whole = small(imbalance=4.0, batch_size=0)
    assert whole.build_batches(whole.build_splits().train.classes).represent_all


def test_messages_name_the_setting_that_is_too_large(tmp_path):
    with pytest.raises(ValueError, match=r"^probe_per_class: expected 1 to 10"):
        train(small(per_class=10, batch_size=30, probe_per_class=12), tmp_path / "run")
    with pytest.raises(ValueError, match=r"^test_per_class: expected 1 to 54"):
        train(small(test_per_class=1000), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_test_part_that_the_network_cannot_be_tested_on(tmp_path):
    splits = small().build_splits()
    inputs, labels = splits.test.inputs, splits.test.labels
    smaller = splits.test.replace(inputs[:, :7])
    with pytest.raises(ValueError, match=r"digits/test: expected samples of shape \(8, 8, 1\).*got \(7, 8, 1\)"):
        train(small(), tmp_path / "run", splits=Splits(splits.train, smaller))
    more = Dataset.of(np.concatenate([inputs] * 2), np.concatenate([labels, labels + 5]), name="other")
    with pytest.raises(ValueError, match="other: expected the 10 classes of digits/train, got 15"):
        train(small(), tmp_path / "run", splits=Splits(splits.train, more))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "resnet20", "dataset": "gaussian-mixture"}, r"ResNetTrunk cannot take samples of shape \(64,\)"),
        ({"network": "vision-transformer", "dataset": "gaussian-mixture"}, "VisionTransformerTrunk cannot take"),
    ],
)
def test_networks_that_do_not_fit_leave_nothing(tmp_path, changes, message):
    config = small(**{"network_options": (), "probe_per_class": 2, **changes})
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
