"""Small kernels are made layer by layer here, as large ones are: by themselves they would be one program."""

import pytest

from tests.platforms import as_if


@pytest.fixture(autouse=True)
def layer_by_layer(monkeypatch):
    as_if(monkeypatch, at_once=0)
