"""Gradients of parameters as products of inputs and cotangents, one operation at a time, against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkcollapse._platforms import number
from ntkcollapse.ntk import empirical_ntk
from ntkcollapse.ntk._uses import Convolution, SlidConvolution, recognise
from ntkcollapse.ntk.engines import Chunks, Layerwise, layerwise
from tests.ntk.zoo import Case, normal

CASES = {
    "same": {"x": (1, 6, 5, 2), "w": (3, 3, 2, 4), "padding": ((1, 1), (1, 1))},
    "no padding": {"x": (1, 6, 5, 2), "w": (3, 2, 2, 1), "padding": ((0, 0), (0, 0))},
    "uneven padding": {"x": (1, 5, 5, 1), "w": (2, 3, 1, 2), "padding": ((0, 2), (3, 0))},
    "cropped": {"x": (1, 7, 6, 2), "w": (3, 3, 2, 2), "padding": ((-1, 0), (1, -1))},
    "stride across": {"x": (1, 6, 7, 2), "w": (3, 3, 2, 2), "padding": ((1, 1), (1, 1)), "strides": (1, 2)},
    "stride along": {"x": (1, 7, 6, 2), "w": (3, 3, 2, 2), "padding": ((1, 1), (1, 1)), "strides": (2, 1)},
    "dilated window": {"x": (1, 8, 7, 2), "w": (3, 2, 2, 2), "padding": ((2, 1), (0, 1)), "window_dilation": (2, 3)},
    "dilated input": {"x": (1, 4, 5, 2), "w": (3, 3, 2, 2), "padding": ((1, 2), (1, 1)), "input_dilation": (2, 3)},
    "groups": {"x": (1, 5, 5, 4), "w": (3, 3, 2, 6), "padding": ((1, 1), (1, 1)), "groups": 2},
    "one axis": {"x": (1, 7, 3), "w": (3, 3, 2), "padding": ((1, 1),)},
    "three axes": {"x": (1, 4, 3, 5, 2), "w": (2, 3, 2, 2, 2), "padding": ((1, 0), (1, 1), (0, 1))},
    "channels first": {"x": (1, 2, 6, 5), "w": (4, 2, 3, 3), "padding": ((1, 1), (1, 1)), "layout": "NCHW"},
}
LAYOUTS = {3: ("NWC", "WIO", "NWC"), 4: ("NHWC", "HWIO", "NHWC"), 5: ("NDHWC", "DHWIO", "NDHWC")}


@pytest.mark.parametrize("name", CASES)
def test_gradient_of_a_convolution(name):
    """Unfolded inputs, and cotangents that slide: the chain rule of JAX, in the shape of the kernel."""
    case = CASES[name]
    x, w = jnp.asarray(normal(0, *case["x"])), jnp.asarray(normal(1, *case["w"]))
    space = x.ndim - 2

    def f(w):
        return jax.lax.conv_general_dilated(
            x,
            w,
            case.get("strides", (1,) * space),
            case["padding"],
            lhs_dilation=case.get("input_dilation"),
            rhs_dilation=case.get("window_dilation"),
            dimension_numbers=("NCHW", "OIHW", "NCHW") if case.get("layout") else LAYOUTS[x.ndim],
            feature_group_count=case.get("groups", 1),
        )

    y, pull = jax.vjp(f, w)
    d = jnp.asarray(normal(2, *y.shape))
    (expected,) = pull(d)
    (equation,) = (e for e in jax.make_jaxpr(f)(w).eqns if e.primitive.name == "conv_general_dilated")
    shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in (x, w, y)]
    use = recognise("conv_general_dilated", equation.params, shapes[:2], shapes[2:], 1)
    assert isinstance(use, Convolution)
    slides = case.get("strides", (1,))[0] == 1
    slid = SlidConvolution.of(use)
    for one in (use, slid) if slides else (use,):
        a, δ = one.input(x), one.cotangent(d)
        assert a.shape == (one.groups, one.positions, one.inputs)
        assert δ.shape == (one.groups, one.positions, one.outputs)
        gradient = one.gradient(jnp.einsum("gto,gti->goi", δ, a))
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-13 * np.abs(expected).max())
    fewer = slides and 1.2 * slid.positions * (slid.inputs + slid.outputs) <= use.positions * (use.inputs + use.outputs)
    assert isinstance(use.for_forming(1), SlidConvolution) == fewer
    # Cotangents of many outputs would be more to write than inputs are.
    assert use.for_forming(12) is use


def network(p, x):
    h = jax.lax.conv_general_dilated(x, p["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(h).sum((1, 2)) @ p["w"]


@pytest.mark.parametrize(("kept", "num_outputs"), [("gradients", 2), ("factors", 2), ("at once", 1)])
def test_kernels_slide_for_one_output(kept, num_outputs, monkeypatch):
    params = {"conv": jnp.asarray(normal(0, 3, 3, 3, 4)), "w": jnp.asarray(normal(1, 4, num_outputs))}
    x = normal(2, 5, 4, 4, 3)
    jacobian = Case(network, params, x).jacobian()
    expected = np.einsum("ikp,jkp->ij", jacobian, jacobian) / num_outputs
    slid, of = [], SlidConvolution.of
    monkeypatch.setattr(SlidConvolution, "of", lambda use: slid.append(use) or of(use))
    if kept == "at once":
        # Few samples take what compiles fast.
        monkeypatch.setattr(layerwise, "number", lambda name: 0 if name == "few" else number(name))
    else:
        chunks = Chunks(samples=2, outputs=1, blocks=2, pieces=2, working=3000)
        monkeypatch.setattr(Layerwise, "chunks", lambda *_: chunks)
        monkeypatch.setattr(layerwise, "way", lambda *_: kept)
    got = empirical_ntk(network, params, x, outputs="mean")
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13 * np.abs(expected).max())
    assert slid
