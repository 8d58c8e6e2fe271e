"""Small kernels are made layer by layer here, as large ones are: by themselves they would be one program."""

import pytest

from ntkcollapse.ntk.engines import layerwise


@pytest.fixture(autouse=True)
def layer_by_layer(monkeypatch):
    monkeypatch.setattr(layerwise, "_AT_ONCE", 0)
