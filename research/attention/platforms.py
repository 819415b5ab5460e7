"""Which kind of device a program is made for: the one JAX runs on, unless it is compiled for another ahead of time."""

import contextlib
import contextvars
from collections.abc import Generator

import jax

_TARGET: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


def platform() -> str:
    """ "cpu", "gpu" or "tpu"."""
    return _TARGET.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(name: str) -> Generator[None]:
    """What is traced inside is made for devices of that platform, which need not be here."""
    token = _TARGET.set(name)
    try:
        yield
    finally:
        _TARGET.reset(token)
