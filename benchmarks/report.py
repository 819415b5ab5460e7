"""How a benchmark shows and keeps what it measured: one table, on the screen and, with --out, as JSON and markdown."""

import contextlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import start

OUT = flags.DEFINE_string("out", "", "folder for the table as .json and .md; empty: only print")


def versions(*packages: str) -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def accelerator() -> dict[str, str]:
    """The device that is not a CPU and what its kernels come from; nothing on a CPU."""
    if jax.default_backend() == "cpu":
        return {}
    found = versions("jax", "torch", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")
    return {"device": jax.devices()[0].device_kind, **found}


def conditions(**about: Any) -> list[str]:
    """The line below a table of an accelerator that says what it was made with, and with what of `about`."""
    facts = accelerator()
    return [", ".join(f"{name} {value}" for name, value in {**facts, **about}.items()) + "."] if facts else []


def publish(
    name: str,
    lines: Sequence[Sequence[str]],
    rows: Sequence[Mapping[str, Any]],
    *,
    console: Console,
    title: str,
    notes: Sequence[str] = (),
    **about: Any,
) -> None:
    """Print the table and, with --out, write it and its numbers.

    Args:
      name: of the files.
      lines: the table, its head first.
      rows: the numbers it was made from; empty: another table's.
      notes: lines below the table.
      about: what else there is to know of how it was measured.
    """
    shown = Table(*lines[0], title=title)
    for line in lines[1:]:
        shown.add_row(*line)
    console.print(shown)
    for note in notes:
        console.print(note, highlight=False)
    if OUT.value:
        folder = Path(OUT.value)
        folder.mkdir(parents=True, exist_ok=True)
        environment = {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            **accelerator(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            **start.settings(),
            **about,
        }
        record = {"command": sys.argv[1:], "environment": environment, "rows": list(rows)}
        if rows:
            (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        marked = ["| " + " | ".join(line) + " |" for line in lines]
        marked.insert(1, "|" + " --- |" * len(lines[0]))
        text = ["\n".join(marked), *notes]
        (folder / f"{name}.md").write_text("\n\n".join(text) + "\n")
        print(folder / f"{name}.md")
