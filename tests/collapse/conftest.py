"""What the tests of this folder share."""

import pytest
from jaxtyping import config


@pytest.fixture
def as_users_call():
    """Without the runtime checks of annotations, which tests add: the package's own errors are what users see."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
