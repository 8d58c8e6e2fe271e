"""Colours and contours of a phase diagram are where its values are."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import QuadMesh

import ntkcollapse as nc

X, Y = np.geomspace(0.1, 10.0, 5), np.linspace(0.0, 3.0, 4)
VALUES = 10.0 ** (np.log10(X)[None, :] + Y[:, None])


def test_cells_contours_and_gaps():
    values = VALUES.copy()
    values[1, 2] = np.nan
    ax = nc.plots.phase_diagram(X, Y, values, levels=[10.0], theory=VALUES, label="NC1")
    (mesh,) = (drawn for drawn in ax.collections if isinstance(drawn, QuadMesh))
    drawn = mesh.get_array()
    assert drawn is not None
    np.testing.assert_array_equal(np.ma.getmaskarray(drawn), np.isnan(values))
    np.testing.assert_array_equal(np.ma.filled(drawn, np.nan), values)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    corners = np.asarray(mesh.get_coordinates())
    np.testing.assert_allclose(corners[0, :, 0], np.geomspace(0.1 / 10**0.25, 10.0 * 10**0.25, 6))
    np.testing.assert_allclose(corners[:, 0, 1], np.arange(5) - 0.5)
    # log10 x + y = 1 goes through the points of the grid at y = 1.
    theory = ax.collections[-1]
    points = np.concatenate([path.vertices for path in theory.get_paths()])
    at = points[np.isclose(points[:, 1], 1.0)]
    assert len(at)
    np.testing.assert_allclose(at[:, 0], 1.0, rtol=1e-6)
    plt.close("all")


def test_limits_of_the_colours():
    ax = nc.plots.phase_diagram(X, Y, VALUES, limits=(1.0, 1e5), levels=[10.0], theory=VALUES)
    (mesh,) = (drawn for drawn in ax.collections if isinstance(drawn, QuadMesh))
    assert mesh.get_clim() == (1.0, 1e5)
    assert mesh.colorbar is not None
    # Values go from 0.1 to 10⁴.
    assert mesh.colorbar.extend == "min"
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["integrated", "theory"]
    plt.close("all")


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match=r"values: expected shape \(4, 5\), a row for each of y.* got \(5, 4\)"):
        nc.plots.phase_diagram(X, Y, VALUES.T)
    with pytest.raises(ValueError, match="values: expected some that are finite and above zero, got none"):
        nc.plots.phase_diagram(X, Y, -VALUES)
    with pytest.raises(ValueError, match=r"limits: expected two numbers in order, above 0, got \(0.0, 1.0\)"):
        nc.plots.phase_diagram(X, Y, VALUES, limits=(0.0, 1.0))
    with pytest.raises(ValueError, match="x: expected strictly increasing"):
        nc.plots.phase_diagram(X[::-1], Y, VALUES)
