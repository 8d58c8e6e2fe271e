"""Layer-wise collapse: the profile is the metrics of whole activations, for any flax network or pure function."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse import collapse

RNG = np.random.default_rng(0)
LABELS = np.arange(60) % 3
INPUTS = (RNG.normal(size=(3, 8))[LABELS] + RNG.normal(size=(60, 8))).astype(np.float32)
TEST = (INPUTS[:30] + RNG.normal(size=(30, 8)).astype(np.float32), LABELS[:30])


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(4, (3, 3), name="conv")(x.reshape(-1, 2, 4, 1))
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.relu(x).reshape(x.shape[0], -1)
        twice = nn.Dense(32, use_bias=False, name="twice")
        return nn.Dense(3, name="last")(nn.tanh(twice(nn.tanh(twice(x)))))


@pytest.fixture(scope="module")
def net():
    module = Net()
    variables = module.init(jax.random.key(0), INPUTS, train=False)
    return module, variables


def test_layers_come_in_the_order_of_their_calls(net):
    module, variables = net
    output, taps = collapse.record_layers(module, variables, jnp.asarray(INPUTS), train=False)
    assert list(taps) == ["conv", "twice", "twice#2", "last"]
    np.testing.assert_allclose(taps["twice#2"].input, np.tanh(taps["twice"].output), rtol=1e-6)
    np.testing.assert_array_equal(taps["last"].output, np.asarray(output))
    kernel, bias = variables["params"]["last"]["kernel"], variables["params"]["last"]["bias"]
    np.testing.assert_allclose(
        np.asarray(taps["last"].input @ kernel) + np.asarray(bias), np.asarray(output), rtol=1e-5
    )

    seen = {
        at: collapse.flax_activations(module, variables, at=at, train=False)(INPUTS) for at in ("inputs", "outputs")
    }
    assert list(seen["inputs"]) == ["conv", "twice", "twice#2", "last", "output"]
    np.testing.assert_allclose(seen["inputs"]["last"], taps["last"].input, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen["outputs"]["conv"], taps["conv"].output, rtol=1e-5, atol=1e-6)
    modules = collapse.flax_activations(module, variables, at="modules", train=False)(INPUTS)
    assert list(modules) == ["conv", "norm", "twice", "twice#2", "last", "Net"]
    with pytest.raises(ValueError, match="Did you mean 'inputs'"):
        collapse.flax_activations(module, variables, at="input")


class Named(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(5, name="output")(nn.tanh(nn.Dense(4, name="first")(x)))


def test_a_layer_that_is_called_output():
    """What it sees and what the network gives are two entries."""
    module = Named()
    variables = module.init(jax.random.key(0), INPUTS)
    seen = collapse.flax_activations(module, variables)(INPUTS)
    assert {name: value.shape for name, value in seen.items()} == {
        "first": (60, 8),
        "output": (60, 4),
        "output#2": (60, 5),
    }
    np.testing.assert_allclose(seen["output#2"], np.asarray(module.apply(variables, INPUTS)), rtol=1e-5, atol=1e-6)


def whole(x, y, z, w) -> tuple[dict, dict]:
    """All metrics of one layer from its n × n statistics, in numpy."""
    classes = range(3)
    M = np.stack([x[y == c].mean(0) for c in classes], axis=1)
    deviations = x - M.T[y]
    within = deviations.T @ deviations / len(x)
    Mc = M - M.mean(1, keepdims=True)
    between = Mc @ Mc.T / 3
    eigenvalues, U = np.linalg.eigh(between)
    inverse = U[:, -2:] / eigenvalues[-2:] @ U[:, -2:].T
    gram = Mc.T @ Mc
    variances = [np.square(deviations[y == c]).sum() / (y == c).sum() for c in classes]
    cdnv = [(variances[c] + variances[d]) / 2 / np.square(M[:, c] - M[:, d]).sum() for c, d in ((0, 1), (0, 2), (1, 2))]
    train = {
        "nc1_tirer2022": np.trace(within) / np.trace(between),
        "nc1_papyan2020": np.trace(within @ inverse) / 3,
        "nc1_seleznova2023": np.mean([x[y == c].std(0) for c in classes]),
        "nc2_seleznova2023": np.linalg.norm(gram / np.linalg.norm(gram) - (np.eye(3) - 1 / 3) / np.sqrt(2)),
        "mean_cdnv_galanti2022": np.mean(cdnv),
        "ncc_accuracy": np.mean(np.square(x[:, :, None] - M).sum(1).argmin(1) == y),
    }
    # Three vectors of a simplex are √3 apart.
    units = Mc / np.linalg.norm(Mc, axis=0)
    apart = np.array([np.linalg.norm(units[:, c] - units[:, d]) for c, d in ((0, 1), (0, 2), (1, 2))])
    train["nc2_log_energy_liu2023"] = np.mean(np.log(np.sqrt(3) / apart))
    train["nc2_riesz_energy_liu2023"] = np.mean(np.sqrt(3) / apart) - 1
    squares = np.square(z[:, :, None] - M).sum(1)
    own = np.stack([z[w == c].mean(0) for c in classes])
    test = {
        "nc1_tirer2022": np.square(z - own[w]).sum() / len(z) / (np.square(own - own.mean(0)).sum() / 3),
        "weak_nc1_tirer2022": squares.min(1).mean() / np.trace(between),
        "strong_nc1_tirer2022": squares[np.arange(len(z)), w].mean() / np.trace(between),
        "ncc_accuracy": np.mean(squares.argmin(1) == w),
    }
    return train, test


def test_profile_is_the_metrics_of_whole_activations(net):
    """Against the n × n statistics of each layer, though the profile forms none, in batches that do not divide N."""
    module, variables = net
    activations = collapse.flax_activations(module, variables, train=False)
    profile = collapse.layer_profile(activations, INPUTS, LABELS, TEST, batch_size=20)
    assert profile.layers == ("conv", "twice", "twice#2", "last", "output")
    assert profile.widths == (8, 32, 32, 32, 3)
    found = [activations(x) for x in (INPUTS, TEST[0])]
    for i, name in enumerate(profile.layers):
        x, z = (np.asarray(h[name], np.float64).reshape(len(h[name]), -1) for h in found)
        train, test = whole(x, LABELS, z, TEST[1])
        assert set(train) == set(profile.train)
        assert set(test) == set(profile.test)
        # Activations of batches of other sizes may differ in float32's last digit.
        for key, value in train.items():
            np.testing.assert_allclose(profile.train[key][i], value, rtol=2e-5, err_msg=f"{name} {key}")
        for key, value in test.items():
            np.testing.assert_allclose(profile.test[key][i], value, rtol=2e-5, err_msg=f"{name} test {key}")


def test_what_looks_at_all_features_together(net):
    """Neighbours and coding rates of layers, as of their whole activations, in batches that do not divide N."""
    module, variables = net
    activations = collapse.flax_activations(module, variables, train=False)
    profile = collapse.layer_profile(activations, INPUTS, LABELS, TEST, batch_size=25, neighbours=3, precision=0.5)
    x, z = (np.asarray(activations(part)["twice#2"], np.float64) for part in (INPUTS, TEST[0]))
    assert profile.train["knn_accuracy"][2] == collapse.knn_accuracy(x.T, LABELS, neighbours=3)
    assert profile.test["knn_accuracy"][2] == collapse.knn_accuracy(z.T, TEST[1], (x.T, LABELS), neighbours=3)
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    logs = [np.linalg.slogdet(np.eye(32) + 32 / len(part) / 0.25 * part.T @ part)[1] for part in (
        units, *(units[LABELS == c] for c in range(3)))]  # fmt: skip
    # Activations of batches of other sizes may differ in float32's last digit.
    exact = logs[0] / 2 - sum(logs[1:]) / 6
    np.testing.assert_allclose(profile.train["rate_reduction_yu2020"][2], exact, rtol=1e-5)
    assert "rate_reduction_yu2020" not in profile.test


def test_any_pure_function_and_its_depth():
    """A last layer that is the label itself: collapsed, and the first at which the nearest centre never errs."""

    def activations(x):
        onehot = np.eye(3)[x[:, 0].astype(int)]
        return {"noise": x[:, 1:], "label": onehot, "dead": 0 * onehot, "after": 2.0 * onehot}

    x = np.concatenate([LABELS[:, None], RNG.normal(size=(60, 5))], axis=1)
    profile = collapse.layer_profile(activations, x, LABELS)
    # "noise" is what comes in; one layer is enough. Counted from what the first layer gives, it is the second.
    assert profile.ncc_depth() == 1
    assert profile.ncc_depth(first=1) == 2
    assert collapse.layer_profile(lambda x: {"input": x}, np.eye(3)[LABELS], LABELS).ncc_depth() == 0
    np.testing.assert_allclose(profile.train["nc1_tirer2022"][[1, 3]], 0, atol=1e-30)
    np.testing.assert_allclose(
        profile.train["nc2_seleznova2023"], [profile.train["nc2_seleznova2023"][0], 0, 1, 0], atol=1e-7
    )
    assert profile.train["nc1_papyan2020"][2] == np.inf
    assert profile.test == {}


def test_test_data_go_through_the_network_once():
    calls = []

    def activations(x):
        calls.append(len(x))
        return {"x": x}

    collapse.layer_profile(activations, INPUTS, LABELS, TEST, batch_size=60)
    assert calls == [60, 60, 30]


def test_labels_are_checked_before_anything_is_run():
    def never(x):
        raise AssertionError

    with pytest.raises(ValueError, match="labels: expected at least two classes"):
        collapse.layer_profile(never, INPUTS, 0 * LABELS)
    with pytest.raises(ValueError, match="got 3"):
        collapse.layer_profile(never, INPUTS, LABELS, (TEST[0], TEST[1] + 1))


def test_layers_that_are_not_per_sample_are_named():
    x = INPUTS
    with pytest.raises(ValueError, match=r"activations\['mean'\]: expected one row for each of the 60 samples"):
        collapse.layer_profile(lambda x: {"fine": x, "mean": x.mean(0)}, x, LABELS)
    with pytest.raises(ValueError, match=r"activations\['bad'\]: expected finite"):
        collapse.layer_profile(lambda x: {"bad": x * np.nan}, x, LABELS)
    with pytest.raises(ValueError, match="none of class 1"):
        collapse.layer_profile(lambda x: {"x": x}, x, 2 * (LABELS // 2))
    with pytest.raises(ValueError, match="at least one layer"):
        collapse.layer_profile(lambda x: {}, x, LABELS)


def test_singular_split_recomposes_the_layer_and_u_does_not_change_nc1():
    kernel = RNG.normal(size=(8, 5)) @ np.diag([3.0, 2.0, 1.0, 0.1, 0.0])
    x = INPUTS.astype(np.float64)
    parts = collapse.singular_split(kernel, x)
    np.testing.assert_allclose(parts["after U"], x @ kernel, atol=1e-12)
    profile = collapse.layer_profile(lambda x: collapse.singular_split(kernel, x), x, LABELS)
    before, right, after = profile.train["nc1_tirer2022"]
    np.testing.assert_allclose(after, right, rtol=1e-10)
    assert abs(right - before) > 0.01

    # A convolution, as a linear map of its kernel.
    def convolve(x, K):
        return jax.lax.conv_general_dilated(x, K, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    kernel = RNG.normal(size=(3, 3, 2, 4))
    images = RNG.normal(size=(6, 4, 4, 2))
    parts = collapse.singular_split(kernel, images, convolve)
    np.testing.assert_allclose(parts["after U"], convolve(images, kernel), atol=1e-12)
