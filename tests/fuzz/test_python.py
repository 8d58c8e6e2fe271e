"""Random arguments of the Python API: refused by this package's own message, or taken."""

import datetime

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import ntkcollapse as nc
from ntkcollapse import collapse, data, models, simulation, theory
from ntkcollapse.equation import Equation
from ntkcollapse.theory import exact
from ntkcollapse.theory.method import Method
from ntkcollapse.training import TrainConfig
from ntkcollapse.weight_decay import WeightDecay
from tests.fuzz.properties import answer, run, sizes

pytestmark = [pytest.mark.usefixtures("as_users_call"), pytest.mark.filterwarnings("ignore")]

CLASSES = nc.Classes.balanced(3, 2)
KAPPA = nc.BlockKernel(3.0, 2.0, 0.6)
RNG = np.random.default_rng(0)
H, W, B = RNG.normal(size=(4, 6)), RNG.normal(size=(3, 4)), np.zeros(3)
START = nc.LastLayer(H=H, W=W, b=B)
TIMES = np.linspace(0.0, 1.0, 4)
LABELS = np.repeat(np.arange(3), 2)
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def as_users_have_it():
    """Without the strict promotion of types and ranks that tests ask for."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Reached(BaseException):
    """In place of what would be computed."""


_SHAPES = st.sampled_from([(), (1,), (3,), (4,), (6,), (0,), (3, 4), (4, 6), (6, 4), (6, 6), (1, 3, 4), (2, 2, 2, 2)])
_TYPES = ["float64", "float32", "float16", "int32", "uint8", "bool", "complex128", "object", "U3", "M8[s]"]


@st.composite
def arrays(draw):
    shape, kind = draw(_SHAPES), draw(st.sampled_from(_TYPES))
    values = np.asarray(draw(st.sampled_from([0, 1, 2, -1, 1e300, np.nan, np.inf])) * np.ones(shape))
    if kind in ("U3", "M8[s]"):
        return np.zeros(shape, kind)
    with np.errstate(all="ignore"):
        array = values.astype(kind)
    if draw(st.booleans()):
        return array
    if draw(st.booleans()) and kind not in ("object",):
        with np.errstate(all="ignore"):
            return jnp.asarray(array)
    return np.ma.masked_array(array, mask=np.zeros(shape, bool))


odd = st.one_of(
    arrays(),
    st.sampled_from(
        [None, True, -1, 0, 1, 2, 10**40, 2**63, 0.5, -0.5, np.nan, np.inf, 1e308, 1j, "", "x", "squared", b"x", (), [],
         (3, 2, 0.6), [3, 3, 3], (3, 3), {}, {"W": 0.1}, {"x": 1}, [[1], [2, 3]], lambda t: t, object(), np.float32(2),
         np.int8(3), datetime.date(2020, 1, 1), KAPPA, CLASSES, START, range(3), {1, 2}, Method(), nc.CrossEntropy]
    ),
)  # fmt: skip

# What is called, with arguments that are right; some of them are replaced.
CALLS = {
    "Classes": (nc.Classes, {"sizes": (2, 2, 2)}),
    "Classes.balanced": (nc.Classes.balanced, {"num_classes": 3, "per_class": 2}),
    "Classes.from_labels": (nc.Classes.from_labels, {"labels": LABELS}),
    "class_order": (nc.class_order, {"labels": LABELS}),
    "BlockKernel": (nc.BlockKernel, {"diagonal": 3.0, "within": 2.0, "between": 0.5}),
    "DenseKernel": (nc.DenseKernel, {"matrix": np.eye(6)}),
    "KernelPath.of": (nc.KernelPath.of, {"times": TIMES, "kernels": [KAPPA] * 4}),
    "LastLayer": (nc.LastLayer, {"H": H, "W": W, "b": B}),
    "from_rows": (nc.LastLayer.from_rows, {"features": H.T, "labels": LABELS, "kernel": W.T, "bias": B}),
    "WeightDecay": (WeightDecay.of, {"rates": 0.1}),
    "Method": (Method, {"solver": "tsit5", "rtol": 1e-6, "atol": 1e-9, "max_steps": 100}),
    "Flow": (nc.Flow, {"kernel": KAPPA, "classes": CLASSES, "loss": "squared", "weight_decay": 0.1, "bias": "free"}),
    "simulate": (nc.simulate, {"start": START, "kappa": KAPPA, "classes": CLASSES, "times": TIMES, "method": "tsit5"}),
    "Trajectory": (nc.Trajectory, {"times": TIMES, "observables": {"loss": TIMES}, "classes": CLASSES}),
    "Trajectory.load": (nc.Trajectory.load, {"path": "nothing"}),
    "initial": (
        theory.initial_condition,
        {"name": "gaussian", "classes": CLASSES, "n": 4, "kappa": KAPPA, "scale": 0.1, "key": KEY},
    ),
    "fit_rate": (theory.fit_rate, {"times": TIMES, "norms": np.exp(-TIMES), "min_efolds": 0.1}),
    "TrainConfig": (
        TrainConfig,
        {"network": "mlp", "dataset": "digits", "epochs": 1, "learning_rate": 0.1, "measure": ("train",), "seed": 0},
    ),
    "Equation": (Equation.from_mapping, {"values": Equation().as_mapping()}),
    "Dataset": (data.Dataset.of, {"inputs": H.T, "labels": LABELS, "name": "own"}),
    "from_arrays": (data.from_arrays, {"x_train": H.T, "y_train": LABELS, "x_test": H.T, "y_test": LABELS}),
    "load": (data.load, {"name": "digits", "path": None, "per_class": 2, "test_per_class": None, "size": None}),
    "statistics": (collapse.ClassStatistics.from_features, {"features": H.T, "labels": LABELS}),
    "layer_peeled": (models.layer_peeled, {"classes": CLASSES, "energy_H": 1.0, "energy_W": 1.0}),
    "regularised": (models.regularised_features, {"classes": CLASSES, "decay_H": 0.1, "decay_W": 0.1}),
    "frozen": (lambda times, R: exact.frozen_residual(times, R, KAPPA, CLASSES), {"times": TIMES, "R": H[:3]}),
}


@sizes(60, 2500)
def test_calls(cases, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def reached(*_, **__):
        raise Reached("integration")

    monkeypatch.setattr(simulation, "_solve", reached)

    def case(data):
        name = data.draw(st.sampled_from([*CALLS]), label="call")
        function, right = CALLS[name]
        wrong = data.draw(st.lists(st.sampled_from([*right]), min_size=1, max_size=2), label="which")
        given = {**right, **{argument: data.draw(odd, label=argument) for argument in wrong}}
        try:
            answer(f"Python: {name}", lambda: function(**given))
        except Reached:
            pass

    run(cases, case)
