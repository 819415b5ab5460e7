"""Which code a cell's numbers come from: a fingerprint of the syntax of the modules that it imports.

Comments, docstrings and layout do not count. Whatever else changes may change no number either (a rename, a
refactoring): that is found out by replaying the first steps of the cell; see `experiments.staleness`.
"""

import ast
import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments import configs

PACKAGES = ("research", "experiments")
ROOT = "experiments.running"  # trains and scores every experiment


def fingerprint(planned: Any, root: Path = configs.ROOT) -> str:
    """sha256 (hex) of the modules that an experiment and its evaluations are made of, and of all that these import.

    Args:
      planned: a tree of frozen dataclasses, or a tuple of them.
      root: the folder of the packages.
    """
    return _of(frozenset({ROOT, *_classes(planned)}), root)


@functools.lru_cache(maxsize=1024)  # the cells of a study are made of few modules, each of many
def _of(names: frozenset[str], root: Path) -> str:
    text = "\n".join(f"{name} {_syntax(_path(name, root))}" for name in sorted(modules(names, root)))
    return hashlib.sha256(text.encode()).hexdigest()


def modules(names: Iterable[str], root: Path = configs.ROOT) -> set[str]:
    """Modules of our packages, and those that they import, directly or not."""
    found: set[str] = set()
    todo = [name for name in names if name.split(".")[0] in PACKAGES]
    while todo:
        name = todo.pop()
        if name not in found and _path(name, root).exists():
            found.add(name)
            todo += _imported(_path(name, root), root)
    return found


def _classes(value: Any) -> set[str]:
    """The modules of the classes and functions in a config tree."""
    if isinstance(value, tuple):
        return set().union(*map(_classes, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = (getattr(value, field.name) for field in dataclasses.fields(value))
        return {type(value).__module__}.union(*map(_classes, parts))
    return {value.__module__} if callable(value) else set()


def _path(module: str, root: Path) -> Path:
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.lru_cache(maxsize=1024)
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imported(path: Path, root: Path) -> list[str]:
    """The modules of our packages that a file names in its imports; a name may be a module or something in one."""
    names = []
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] in PACKAGES and _path(name, root).exists()]


@functools.lru_cache(maxsize=1024)
def _syntax(path: Path) -> str:
    return hashlib.sha256(repr(_plain(_parsed(path))).encode()).hexdigest()


def _plain(node: Any) -> Any:
    """Syntax without places, docstrings and empty fields, of which versions of Python have different ones."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        fields["body"] = [item for item in node.body if not _is_text(item)]
    kept = [(name, _plain(value)) for name, value in fields.items() if value not in (None, [])]
    return [type(node).__name__, *kept]


def _is_text(node: ast.AST) -> bool:
    """A string that stands by itself, as docstrings do."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
