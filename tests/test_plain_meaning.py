"""What can only mean one thing is taken, and the rest is refused by the name of the argument."""

# Arguments of other types are what this is about.
# pyright: reportArgumentType=false

import jax
import numpy as np
import pytest

import ntkcollapse as nc
from ntkcollapse import data, models, ntk, theory
from ntkcollapse.cli import main

pytestmark = pytest.mark.usefixtures("as_users_call")

RNG = np.random.default_rng(0)
CLASSES = nc.Classes.balanced(3, 3)
H, W, B = RNG.normal(size=(4, 9)), RNG.normal(size=(3, 4)), np.zeros(3)
START = nc.LastLayer(H=H, W=W, b=B)
KAPPA = nc.BlockKernel(3.0, 2.0, 0.6)
TIMES = np.linspace(0, 0.1, 3)
KEY = jax.random.key(0)


def test_numbers_sizes_and_arrays_do():
    expected = nc.simulate(START, KAPPA, CLASSES, TIMES, method=nc.Method(solver="dopri5"), observed=False)
    for start, kappa, classes in (((H, W, B), (3, 2, 0.6), [3, 3, 3]), (START, np.array([3, 2, 0.6]), (3, 3, 3))):
        run = nc.simulate(start, kappa, classes, TIMES, method="dopri5", observed=False)
        np.testing.assert_array_equal(run.states.W, expected.states.W)
        assert run.classes == CLASSES
    flow = nc.Flow((3, 2, 0.6), [3, 3, 3], loss="cross-entropy", weight_decay=(0.1, 0.2, 0.3))
    same = nc.Flow(KAPPA, CLASSES, loss=nc.CrossEntropy(), weight_decay={"H": 0.1, "W": 0.2, "b": 0.3})
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), flow, same))
    assert models.regularised_features([3, 3, 3], 0.1, 0.1).classes == CLASSES
    assert nc.Trajectory(TIMES, {}, [3, 3, 3]).classes == CLASSES
    given = theory.initial_condition("aligned", [3, 3, 3], 4, (3, 2, 0.6), key=KEY)
    np.testing.assert_array_equal(given.H, theory.initial_condition("aligned", CLASSES, 4, KAPPA, key=KEY).H)


REFUSED = {
    "labels for classes": (lambda: nc.simulate(START, KAPPA, CLASSES.labels, TIMES), "classes: expected Classes, or a"),
    "a number of classes": (lambda: nc.simulate(START, KAPPA, 3, TIMES), "classes: expected Classes, or a list"),
    "other sizes": (lambda: nc.simulate(START, KAPPA, [3, 3], TIMES), r"H: expected shape \(any, 6\)"),
    "sizes of a flow": (lambda: nc.Flow(KAPPA, 3), "classes: expected Classes, or a list"),
    "two numbers": (lambda: nc.simulate(START, (3, 2), CLASSES, TIMES), "kernel: expected .* three numbers"),
    "a function of more": (
        lambda: nc.simulate(START, lambda t, s: KAPPA, CLASSES, TIMES),
        "kernel: expected a kernel, got",
    ),
    "a function of t": (lambda: nc.simulate(START, lambda t: "κ", CLASSES, TIMES), "kernel: expected a kernel, got"),
    "a loss of no name": (lambda: nc.Flow(KAPPA, CLASSES, loss="mse"), "loss: expected one of 'squared'"),
    "two decays": (lambda: nc.Flow(KAPPA, CLASSES, weight_decay=(0.1, 0.2)), "weight_decay: expected one rate, three"),
    "no decay": (lambda: nc.Flow(KAPPA, CLASSES, weight_decay=None), "weight_decay: expected rates, got None"),
    "transposed": (lambda: nc.LastLayer(H=H.T, W=W, b=B), r"H: expected shape \(4, N\).*whose transpose fits"),
    "no start": (lambda: nc.simulate({"H": H}, KAPPA, CLASSES, TIMES), r"start: expected a LastLayer .*got dict"),
    "features": (lambda: theory.initial_condition("gaussian", CLASSES, -1, KAPPA, key=KEY), "n: expected numbers abov"),
    "too many": (lambda: theory.initial_condition("small", CLASSES, 10**14, KAPPA, key=KEY), "n: .*fits into memory"),
    "classes": (lambda: nc.Classes.balanced(10**12, 2), "num_classes: expected at most"),
    "part of a sample": (lambda: data.load("digits", per_class=2.5), "per_class: expected a whole number"),
    "a size of text": (lambda: models.layer_peeled(CLASSES, "1", 1), "energy_H: expected a number, got '1'"),
    "NUL in a run": (lambda: nc.Trajectory.load("a\0b"), "path: expected a path that the file system can hold"),
    "a long run": (lambda: nc.Trajectory.load("x" * 5000), "path: expected .* one of 5002 characters; too long"),
    "a number for a run": (lambda: nc.Trajectory.load(5), "path: expected a path, got int"),
    "NUL in data": (lambda: data.load("mnist", path="a\0b"), "path: expected a path that the file system can hold"),
    "NUL in a checkpoint": (
        lambda: ntk.empirical_ntk(lambda p, x: x @ p, W.T, H.T, checkpoint="a\0b"),
        "checkpoint: expected a path that the file system can hold",
    ),
    "a file for a folder": (
        lambda: ntk.empirical_ntk(lambda p, x: x @ p, W.T, H.T, checkpoint=__file__),
        "checkpoint: expected a folder",
    ),
    "times that are one in single precision": (
        lambda: nc.simulate(
            nc.LastLayer(*(a.astype(np.float32) for a in (H, W, B))), KAPPA, CLASSES, [0.0, 1.0, 1.0 + 1e-9]
        ),
        r"times in float32: expected strictly increasing times, got 1\.0 then 1\.0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_rest_is_refused_by_name(case):
    call, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError, FileExistsError), match=message):
        call()


COMMANDS = {
    "--times " + "9" * 400: "times: expected a whole number from 10 to a million",
    "--times 99999999999": "times: expected a whole number from 10 to a million",
    "--features=-1": "features: expected a whole number from 1 to a million, got -1",
    "--features 0": "features: expected a whole number from 1 to a million, got 0",
    "--features " + "9" * 40: "features: expected a whole number from 1",
    "--classes 999999999999": "classes: expected a whole number from 2",
    "--per-class 999999999999999": "classes, n: expected an array that fits into memory",
    "--times 1000000 --features 100000": "times, features: expected an array that fits into memory",
    "--kappa 3 2": "kappa: expected three numbers",
    "--weight-decay 1 2": "weight_decay: expected one rate or three",
    "--config latin.toml": r"config: expected a TOML file in UTF-8, latin\.toml is not: byte 12 is 0xe9",
    "--config deep.toml": r"config: expected a TOML file, deep\.toml has lists or tables too deep",
    "--config large.toml": r"large\.toml: classes: expected a whole number from 2",
    "--config a\0b": r"config: expected a path that the file system can hold, got 'a\\x00b'",
    "--config " + "x" * 5000: "config: expected .*too long",
    "--out a\0b": "out: expected text that UTF-8 can hold, without NUL",
    "--out " + "x" * 5000: "run directory: expected .*too long",
}


@pytest.mark.parametrize("flags", COMMANDS, ids=lambda flags: repr(flags[:40]))
def test_bad_usage_ends_with_status_2_and_one_line(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.toml").write_bytes("model = 'caf\xe9'\n".encode("latin-1"))
    (tmp_path / "deep.toml").write_text("a = " + "[" * 5000 + "]" * 5000)
    (tmp_path / "large.toml").write_text("classes = " + "9" * 40)
    assert main(["simulate", "--classes", "2", "--per-class", "2", *flags.split(" ")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("ntkcollapse simulate: ")
    with pytest.raises(ValueError, match=COMMANDS[flags]):
        raise ValueError(said)


def test_a_byte_order_mark_is_passed_over(tmp_path, capsys):
    file = tmp_path / "config.toml"
    file.write_bytes(b"\xef\xbb\xbf" + f"features = 0\nout = '{tmp_path}/run'\n".encode())
    assert main(["simulate", "--config", str(file)]) == 2
    assert "features: expected a whole number from 1" in capsys.readouterr().err
