"""gin text of frozen values: `configs.load` makes the same values of it again."""

import collections
import dataclasses
import functools
from typing import Any

from experiments.configs import ConfigError

HEAD = "from __gin__ import dynamic_registration"


def text(name: str, value: Any) -> str:
    """gin text that binds all fields of a frozen value, and of those in it, defaults included.

    Values of one class that differ are bound in scopes of their own, but for the fields in which they agree; so what is
    bound without a scope later is read by all of them.

    Args:
      name: what the value is bound to: the module and the name in it of a class or function that makes it.
      value: a frozen dataclass.

    Raises:
      ConfigError: a value that gin has no literal for.
    """
    found = _Values()
    fields = found.fields(value, name.rpartition(".")[2])
    modules = sorted({module for module, _ in found.known} | {name.rpartition(".")[0]})
    called = _names(modules)
    written = functools.partial(_written, found=found, called=called)
    place, _, own = name.rpartition(".")
    lines = [f"{called[place]}.{own}.{field} = {written(part)}" for field, part in fields.items()]
    for (module, kind), instances in sorted(found.known.items()):
        at = f"{called[module]}.{kind}"
        bound = [{field: written(part) for field, part in one.items()} for one, _ in instances.values()]
        shared = {field: part for field, part in bound[0].items() if all(one[field] == part for one in bound)}
        lines += ["", *(f"{at}.{field} = {part}" for field, part in shared.items())]
        for own_bound, (_, scope) in zip(bound, instances.values(), strict=True):
            lines += [
                f"{scope}/{at}.{field} = {part}" for field, part in own_bound.items() if field not in shared
            ]
    imports = [_import(module, called[module]) for module in modules]
    return "\n".join([HEAD, *imports, "", *lines]) + "\n"


class _Values:
    """The frozen values of a tree, equal ones once: by class, of each its fields and the scope it is bound in."""

    def __init__(self):
        self.known: dict[tuple[str, str], dict[Any, tuple[dict[str, Any], str]]] = collections.defaultdict(
            dict
        )

    def fields(self, value: Any, scope: str) -> dict[str, Any]:
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        for name, part in fields.items():
            self._note(part, f"{scope}_{name}")
        return fields

    def _note(self, value: Any, scope: str) -> None:
        if isinstance(value, tuple):
            for index, part in enumerate(value):
                self._note(part, f"{scope}_{index}")
        elif _frozen(value):
            instances = self.known[_class(value)]
            if value not in instances:
                instances[value] = {}, scope
                instances[value] = self.fields(value, scope), scope

    def reference(self, value: Any, called: str) -> str:
        instances = self.known[_class(value)]
        scope = f"{instances[value][1]}/" if len(instances) > 1 else ""
        return f"@{scope}{called}.{type(value).__qualname__}()"


def _written(value: Any, *, found: _Values, called: dict[str, str]) -> str:
    if isinstance(value, tuple):
        parts = [_written(part, found=found, called=called) for part in value]
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
    if _frozen(value):
        return found.reference(value, called[type(value).__module__])
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    raise ConfigError(
        f"{value!r} has no gin literal, expected a number, a string, a tuple or a frozen dataclass"
    )


def _frozen(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _class(value: Any) -> tuple[str, str]:
    return type(value).__module__, type(value).__qualname__


def _names(modules: list[str]) -> dict[str, str]:
    """What each module is called: its last name, or its whole name where two end alike."""
    ends = collections.Counter(module.rpartition(".")[2] for module in modules)
    return {
        module: end if ends[end := module.rpartition(".")[2]] == 1 else module.replace(".", "_")
        for module in modules
    }


def _import(module: str, name: str) -> str:
    package, _, last = module.rpartition(".")
    return f"from {package} import {last}" + (f" as {name}" if name != last else "")
