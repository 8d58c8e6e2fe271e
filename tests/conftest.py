"""Tests run in float64, under strict dtype promotion and without silent rank promotion."""

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def compiled_code_is_let_go():
    """Compiled functions hold mapped memory, of which a process may have 65,530 pieces; past that the compiler dies."""
    yield
    jax.clear_caches()
