"""Orbax's errors, one line each.

Orbax logs the traceback of each that it raises; and it closes its event loop under reads and writes that still go on,
which then end in a traceback too, or write where a failed save was removed. Importing this module ends both.
"""

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any


def _finishing(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run_until_complete` that ends with the last task of what Orbax runs, not with the first that fails."""

    async def others() -> None:
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)

    def run_until_complete(loop: Any, future: Any) -> Any:
        try:
            return run(loop, future)
        finally:
            if asyncio.iscoroutine(future) and "orbax" in future.cr_code.co_filename:
                run(loop, others())

    return run_until_complete


logging.getLogger("absl").addFilter(lambda entry: "orbax" not in entry.pathname)
asyncio.BaseEventLoop.run_until_complete = _finishing(asyncio.BaseEventLoop.run_until_complete)  # ty: ignore


def cause(error: BaseException) -> str:
    """The system's own words where there are some, the leaf where it is known, or else the first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if system := re.search(r"([^:]+?) *\[os_error_code", str(error)):
        return system[1].strip()
    if leaf := re.search(r'"([^"]+)/[^"/]*" in OCDBT', str(error)):
        return f"damaged at {leaf[1]}"
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"
