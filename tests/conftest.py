"""Every annotated function of the library has its shapes checked while it is tested."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0"
)  # tests compile more than they compute

from jaxtyping import install_import_hook

CHECKED = ("attention", "batch", "data", "models", "training", "evaluation", "generation", "interop")
install_import_hook([f"research.{name}" for name in CHECKED], "beartype.beartype")

import hypothesis
import jax
import pytest

# How long an example takes says more of what else the machine does, and of what is compiled for it, than of the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True, scope="session")
def _compilation_cache(tmp_path_factory):
    """Compiled programs are kept between runs, so that a second one is quick. Each worker keeps its own: JAX writes
    an entry in place, and a worker that read half of another's would crash.
    """
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        folder = os.path.join(cache, "architecture-ablations", "xla-tests", worker)
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(autouse=True, scope="module")
def _programs_do_not_pile_up():
    """Compiled programs are let go after each file: a process that has mapped many thousands of them crashes."""
    yield
    jax.clear_caches()
