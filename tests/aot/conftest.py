"""What is compiled for a machine that is not here can be written to the compilation cache and not read again."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="session")
def _no_compilation_cache(_compilation_cache):
    """Off before the first program: JAX decides once in a process whether it keeps any."""
    jax.config.update("jax_enable_compilation_cache", False)
