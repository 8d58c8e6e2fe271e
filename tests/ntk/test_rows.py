"""What traces prove about rows: never more than is so, and what networks are made of."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ntkcollapse.ntk import _rows, empirical_ntk
from ntkcollapse.ntk._trace import trace
from tests.ntk.zoo import MAKERS, case, normal

X = normal(0, 4, 6)
W = {"w": normal(1, 6, 3), "v": normal(2, 4), "u": normal(3, 3, 3), "table": normal(4, 9, 6)}
NHWC = ("NHWC", "HWIO", "NHWC")


@pytest.fixture(autouse=True)
def as_users_write():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def proven(f, params, x) -> bool:
    one, two, three = (trace(f, params, jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype))[0] for n in (1, 2, 3))
    by_several = _rows.apart(two, three) and _rows.same_numbers(one, two)
    assert by_several or not _rows.apart(one, three)
    return by_several or _rows.apart(one, three)


def is_so(f, params, x) -> bool:
    """Every row alone, at another place and beside other rows, for numbers of rows that no trace was made for."""
    y = np.asarray(f(params, x))
    alone = np.concatenate([f(params, x[i : i + 1]) for i in range(len(x))])
    beside = np.asarray(f(params, np.concatenate([x[:1], 0.7 * x[::-1], x[:1]])))
    same = np.allclose(y, alone, rtol=1e-10) and np.allclose(beside[[0, -1]], y[[0, 0]], rtol=1e-10)
    return bool(same and np.allclose(f(params, x[::-1]), y[::-1], rtol=1e-10))


def image(x):
    return x.reshape(x.shape[0], 3, 2, 1)


def along(axis):
    """What goes along a dimension: of one row for axis 1, from row to row for axis 0."""

    def window(x):
        size = (3, 1) if axis == 0 else (1, 3)
        return lax.reduce_window(x, -jnp.inf, lax.max, size, (1, 1), "SAME")

    return {
        "cumsum": lambda p, x: jnp.cumsum(x, axis) @ p["w"],
        "sort": lambda p, x: jnp.sort(x, axis) @ p["w"],
        "flip": lambda p, x: jnp.flip(x, axis) @ p["w"],
        "roll": lambda p, x: jnp.roll(x, 1, axis) @ p["w"],
        "softmax": lambda p, x: jax.nn.softmax(x, axis) @ p["w"],
        "centred": lambda p, x: (x - x.mean(axis, keepdims=True)) @ p["w"],
        "argmax": lambda p, x: (jnp.argmax(x, axis, keepdims=True) * x) @ p["w"],
        "window": lambda p, x: window(x) @ p["w"],
        "place": lambda p, x: (x + lax.broadcasted_iota(float, x.shape, axis)) @ p["w"],
        "attention": lambda p, x: (
            jnp.einsum("nij,njk->nik" if axis == 1 else "inj,jnk->ink", *(x[:, :, None] * x[:, None, :],) * 2).sum(2)[
                :, :4
            ]
            if axis == 1
            else (x @ x.T @ x) @ p["w"]
        ),
        "scan": lambda p, x: (
            jnp.moveaxis(
                lax.scan(lambda h, part: (h + part, h * part), x.sum(axis), jnp.moveaxis(x, axis, 0))[1], 0, axis
            )
            @ p["w"]
        ),
        "fft": lambda p, x: jnp.abs(jnp.fft.fft(x, axis=axis)) @ p["w"],
        "one of them": lambda p, x: (x + jnp.take(x, jnp.array([0]), axis=axis)) @ p["w"],
        "padded": lambda p, x: (
            jnp.pad(x, ((1, 0), (0, 0)) if axis == 0 else ((0, 0), (1, 0)))[: x.shape[0], :6] @ p["w"]
        ),
        "updated": lambda p, x: (
            (jnp.asarray(x).at[0].set(1.0) if axis == 0 else jnp.asarray(x).at[:, 0].set(1.0)) @ p["w"]
        ),
        "loop": lambda p, x: lax.fori_loop(0, 3, lambda _, h: h + jnp.cumsum(h, axis), x) @ p["w"],
        "branch": lambda p, x: lax.cond(p["v"][0] > 0, lambda h: jnp.cumsum(h, axis), lambda h: h, x) @ p["w"],
        "norm": lambda p, x: (x / jnp.linalg.norm(x, axis=axis, keepdims=True)) @ p["w"],
        "split": lambda p, x: (
            sum(jnp.split(jnp.concatenate([x, 2 * x], axis), 2, axis), start=jnp.cumsum(x, axis)) @ p["w"]
        ),
    }


@pytest.mark.parametrize("name", along(0))
def test_from_row_to_row_is_never_proven(name):
    f = along(0)[name]
    assert not is_so(f, W, X)
    assert not proven(f, W, X)


# What has no rule, and is tried with numbers.
TRIED = {"roll", "updated"}


@pytest.mark.parametrize("name", along(1))
def test_what_goes_along_a_row_is_proven(name):
    f = along(1)[name]
    assert is_so(f, W, X)
    assert proven(f, W, X) or name in TRIED


NUMBERED = {
    "their number": lambda p, x: x @ p["w"] / x.shape[0],
    "a sum of ones": lambda p, x: x @ p["w"] / jnp.ones(x.shape[0]).sum(),
    "a count": lambda p, x: x @ p["w"] / jnp.arange(x.shape[0])[-1],
    "one number each": lambda p, x: x * jnp.concatenate([p["v"]] * 2)[: x.shape[0], None],
    "drawn": lambda p, x: x * jax.random.normal(jax.random.key(0), x.shape),
    "the first alone": lambda p, x: jnp.asarray(x).at[0].multiply(2.0),
    "more than two": lambda p, x: x - (x.mean() if len(x) > 2 else 0.0),
    "more than one": lambda p, x: x * (2.0 if len(x) > 1 else 1.0),
    "reshaped": lambda p, x: x.reshape(-1).reshape(6, -1).T,
    "turned": lambda p, x: x.T.reshape(x.shape),
    "power": lambda p, x: x ** len(x),
    "batched convolution": lambda p, x: lax.conv_general_dilated(
        image(x).transpose((3, 1, 2, 0)), jnp.ones((1, 1, x.shape[0], x.shape[0])), (1, 1), "SAME",
        dimension_numbers=NHWC,
    ).transpose((3, 1, 2, 0)).reshape(x.shape),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERED)
def test_what_depends_on_place_or_number_is_never_proven(name):
    f = NUMBERED[name]
    assert not is_so(f, W, X)
    assert not proven(f, W, X)


def gated(p, x):
    """A recurrence, a table of rows, a convolution, products on either side, a rule of differentiation of its own."""

    def step(h, part):
        h = jnp.tanh(part[:, None] * p["v"][None, :3] + h @ p["u"])
        return h, h.sum(1)

    tokens = jnp.clip(jnp.round(jnp.abs(x)).astype(int), 0, 8)
    h = x + jnp.take(p["table"], tokens, axis=0).mean(1)
    h, sums = lax.scan(step, jnp.zeros((x.shape[0], 3)), h.T)
    kernel = jnp.ones((2, 1, 1, 2))
    pooled = lax.conv_general_dilated(image(x), kernel, (1, 1), "SAME", dimension_numbers=NHWC)
    pooled = nn.avg_pool(nn.max_pool(pooled, (2, 1), (1, 1)), (1, 2), (1, 2))
    return jax.nn.relu(jnp.concatenate([h, sums.T, pooled.reshape(x.shape[0], -1)], axis=1))


@pytest.mark.parametrize("name", [m for m in MAKERS if m != "unusual"])
def test_networks_are_proven(name):
    c = case(name)
    assert proven(c.f, c.params, c.x)


def test_a_network_of_every_kind_of_operation_is_proven():
    assert is_so(gated, W, X)
    assert proven(gated, W, X)


def test_constants_of_the_traces_are_compared():
    values = (n * np.ones(6) for n in range(1, 20))

    def f(p, x):
        return (x * next(values)) @ p["w"]

    assert not proven(f, W, X)


def test_nothing_is_tried_where_it_is_proven(monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr("ntkcollapse.ntk._problem._check_uncoupled", never)
    empirical_ntk(lambda p, x: jnp.tanh(x @ p["w"]), W, X)
