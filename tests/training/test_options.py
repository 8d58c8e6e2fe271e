"""Options of network and optimiser, given as name=value: what is taken, and what is refused before any compute."""

import pytest

from ntkcollapse.networks import MLPTrunk
from ntkcollapse.training import TrainConfig, parse_options


def trunk(*options: str) -> MLPTrunk:
    made = TrainConfig(network="mlp", network_options=options).build_network(10).trunk
    assert isinstance(made, MLPTrunk)
    return made


def test_booleans_and_none_in_either_spelling():
    given = ("a=true", "b=false", "c=none", "d=True", "e=None", "f='true'", "g=[1, 2]", "h=text", "i=1e-3")
    assert dict(parse_options("x", given)) == {
        "a": True, "b": False, "c": None, "d": True, "e": None, "f": "true", "g": (1, 2), "h": "text", "i": 1e-3,
    }  # fmt: skip
    assert trunk("widths=(12,)", "batch_norm=false") == MLPTrunk((12,))
    assert trunk("widths=[12]", "batch_norm=true") == MLPTrunk((12,), batch_norm=True)


def test_an_option_given_twice():
    with pytest.raises(ValueError, match="network_options: expected every option once, got widths again"):
        trunk("widths=(12,)", "widths=(13,)")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mlp", "batch_norm=maybe", r"batch_norm \(option of mlp\): expected true or false, got 'maybe' \(str\)"),
        ("mlp", "batch_norm=1", "batch_norm .*expected true or false, got 1"),
        ("mlp", "widths=abc", "widths .*expected a list, each entry a whole number"),
        ("mlp", "widths=5", "widths .*expected a list"),
        ("mlp", "widths=(3.7,)", "widths .*expected a whole number, got 3.7"),
        ("mlp", "activation=3", "activation .*expected text, got 3"),
        ("mlp", "param_dtype=int32", "param_dtype .*expected a floating type such as float32, got 'int32'"),
        ("mlp", "num_classes=3", "num_classes is the number of classes of the data"),
        ("mlp", "initialiser=he", "initialiser is the setting 'init'"),
        ("mlp", "use_bias=False", "network_options: use_bias is the setting 'bias'"),
        ("resnet20", "momentum=x", "momentum .*expected a number, got 'x'"),
        ("resnet20", "momentum=2", r"momentum: expected a number in \[0, 1\), got 2"),
        ("densenet40", "momentum=-0.1", "momentum: expected a number in .*got -0.1"),
        ("vgg16", "momentum=1", "momentum: expected a number in .*got 1"),
        ("vision-transformer", "heads=two", "heads .*expected a whole number, got 'two'"),
        ("vision-transformer", "depth=1.5", "depth .*expected a whole number, got 1.5"),
        ("vision-transformer", "heads=0", "heads: expected numbers above zero"),
        ("vision-transformer", "depth=-1", "depth: expected numbers above zero"),
    ],
)
def test_options_of_networks_are_checked(name, options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(network=name, network_options=(options,))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adam", "b1=abc", r"b1 \(option of adam\): expected a number, got 'abc' \(str\)"),
        ("adam", "b1=[1]", r"b1 .*expected a number, got \(1,\)"),
        ("adam", "b1=true", "b1 .*expected a number, got True"),
        ("adam", "b1=1e999", "b1 .*expected a number, got inf"),
        ("adam", "nesterov=0", "nesterov .*expected true or false, got 0"),
        ("adam", "mu_dtype=int8", "mu_dtype .*expected a floating type"),
        ("adam", "learning_rate=0.1", "option of adam: expected one of .*got 'learning_rate'"),
        ("rmsprop", "momentum=fast", "momentum .*expected a number, got 'fast'"),
    ],
)
def test_options_of_optimisers_are_checked(name, options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(optimizer=name, optimizer_options=(options,))


def test_equal_options_are_one_optimiser():
    """Runs that share it share one compiled step."""
    one, two = (
        TrainConfig(optimizer="rmsprop", optimizer_options=options).build_optimizer()
        for options in (
            ("momentum=none", "nesterov=false", "decay=1"),
            ("decay=1.0", "nesterov=False", "momentum=None"),
        )
    )
    assert one is two
