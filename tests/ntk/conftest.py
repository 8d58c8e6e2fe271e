"""Small kernels are made layer by layer here, as large ones are: by themselves they would be by plain Jacobians."""

import pytest

from ntkcollapse.ntk.engines import layerwise


@pytest.fixture(autouse=True)
def layer_by_layer(monkeypatch):
    monkeypatch.setattr(layerwise, "_COMPILATION", 0)
