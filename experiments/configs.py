"""gin: parse config files into frozen values, and say in one line what is wrong with them.

The library knows nothing of gin; the files bind it from outside by dynamic registration. Errors name the thing,
its value, what was expected and where to change it; a binding that nothing used is an error.
"""

import dataclasses
import difflib
import functools
import importlib
import inspect
import pkgutil
import re
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import gin
import gin.config
from beartype import BeartypeConf
from beartype.door import is_bearable
from gin.config_parser import ImportStatement, Location

import research

ROOT = Path(__file__).resolve().parent.parent
# Names for what is loaded, and for what is bound besides the library's classes.
TARGETS = {
    "train": "experiments.experiment",
    "generate": "experiments.writing",
    "evaluate": "experiments.evaluating",
    "Parameters": "experiments.pretrained",
    "Stage": "experiments.stages",
}
_TOWER = BeartypeConf(is_pep484_tower=True)  # an int will do where a float is expected


class ConfigError(ValueError):
    """What is wrong with a config, in one line."""


SCALES = "scale"  # the folder of files of which some bindings may be used by nothing


def load(
    target: Callable[..., Any],
    files: Iterable[str],
    bindings: Sequence[str] = (),
    *,
    base: Sequence[str] = (),
    replaced: Sequence[str] = (),
) -> Any:
    """What `target` returns when called as gin files and bindings say.

    Args:
      target: a class or function that the files configure.
      files: gin files, read in order; relative to the working folder or to the project.
      bindings: gin bindings, e.g. "train.steps=200", over the files'.
      base: gin text that they change; of its bindings some may fall out of use, as of those of a file in a folder
        `scale`: it says how large things are, whichever of them there are.
      replaced: names of classes that files may bind although `bindings` put something else in their place.

    Raises:
      ConfigError: a missing file, a typo, a wrong type, a missing value or an unused binding.
    """
    gin.clear_config()
    if str(ROOT) not in gin.config._LOCATION_PREFIXES:
        gin.add_config_file_search_path(str(ROOT))
    spared = _parse([str(file) for file in files], list(bindings), base)
    _check_types()
    try:
        built = gin.get_configurable(target)()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(_explain(error)) from error
    _check_tree(built)
    unused = [
        binding
        for binding in _unused_bindings()
        if binding not in spared and binding[1].rpartition(".")[2] not in replaced
    ]
    if unused:
        raise ConfigError(
            f"gin binding {_shown(*unused[0])} is used by nothing in this experiment; "
            "remove it, correct its scope or name, or bind what would read it"
        )
    return built


def operative() -> str:
    """The config that the last `load` used, as gin text that gives the same values again."""
    return gin.operative_config_str()


Binding = tuple[str, str, str]  # a scope, a selector and the name of a parameter


def _parse(files: list[str], bindings: list[str], base: Sequence[str]) -> set[Binding]:
    """Parse them all; the bindings of the base and of scales that nothing has bound anew."""
    for file in files:
        _check_exists(file, "--gin_file")
    try:
        for text in base:
            gin.parse_config(text)
        before = _bound()
        for file in files:
            others = _bound()
            gin.parse_config_file(file)
            if Path(file).parent.name == SCALES:
                before |= {
                    binding: value for binding, value in _bound().items() if others.get(binding) is not value
                }
        _register(bindings)
        gin.parse_config(bindings)
        gin.finalize()
    except Exception as error:
        raise ConfigError(_explain(error)) from error
    now = _bound()
    return {binding for binding, value in before.items() if now[binding] is value}


def _bound() -> dict[Binding, Any]:
    """The values of all bindings."""
    return {
        (scope, selector, name): value
        for (scope, selector), names in gin.config._CONFIG.items()
        for name, value in names.items()
    }


def _check_exists(file: str, named_by: str) -> None:
    """The file and all it includes; gin itself fails on a missing include without a word about it."""
    path = next((folder / file for folder in (Path(), ROOT) if (folder / file).is_file()), None)
    if path is None:
        near = _nearest(file, [str(known.relative_to(ROOT)) for known in ROOT.glob("configs/**/*.gin")])
        raise ConfigError(f"gin file {file!r} does not exist{near}; see {named_by}")
    for included in re.findall(r"""(?m)^include\s+['"](.*?)['"]""", path.read_text()):
        _check_exists(included, str(path))


def _register(bindings: list[str]) -> None:
    """Let bindings name any class of the library, whether or not a file has imported its module."""
    modules = {name: found.__module__ for name, found in _library().items()} | TARGETS
    place = Location("--gin_param", 1, 0, "")
    for name in re.findall(r"(?m)(?:^|[/@])([A-Za-z]\w*)", "\n".join(bindings)):
        if name in modules and not gin.config._REGISTRY.matching_selectors(name):
            module = modules[name]
            context = gin.config.ParseContext()
            for imported in ("__gin__.dynamic_registration", module):
                context.process_import(ImportStatement(imported, True, None, place))
            context.get_configurable(f"{module.rsplit('.', 1)[1]}.{name}")


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _explain(error: Exception) -> str:
    """An exception of gin's or of a constructor's in one line, with the nearest valid name."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    message = lines[0] if lines else type(error).__name__
    where = re.search(r"(?m)^\s*(In (?:file|bindings string).*?)$", text)
    place = f" ({where[1].strip().rstrip(':')})" if where else ""

    if match := re.search(r"Configurable '(.*?)' doesn't have a parameter named '(.*?)'", message):
        names = _parameters(gin.config._REGISTRY.get_match(match[1]).wrapped)
        return f"{match[1]}.{match[2]}: no such parameter{_nearest(match[2], names)}{place}"
    if match := re.search(r"No configurable matching (?:reference )?'@?(.*?)(?:\(\))?'", message):
        known = {name.split(".")[-1] for name, _ in gin.config._REGISTRY.items()} | set(_library())
        return f"{match[1]!r}: nothing of that name{_nearest(match[1], known)}{place}"
    if match := re.search(r"Couldn't resolve selector (\S+); .* has no attribute (\w+)", message):
        names = _siblings(match[1])
        return f"{match[1]}: no {match[2]!r} there{_nearest(match[2], names)}{place}"
    if match := re.search(r"'(.*?)' was not provided by an import statement", message):
        return f"{match[1]!r} is not imported in this gin file; add an import line{place}"
    if "malformed node or string" in message:
        return f"a value is not a Python literal; quote strings, write @Name() for objects, %NAME for macros{place}"
    if match := re.search(r"No bindings specified for '(.*?)/gin.macro'", message):
        return f"macro %{match[1]} has no value; bind it, e.g. {match[1]} = ..."
    if match := re.search(r"missing a required argument: ('\w+')", message):
        return f"no value for {match[1]}; bind it in a gin file or with --gin_param"
    if match := re.search(r"(\w+)\.__init__\(\) missing \d+ required keyword-only arguments?: (.*)", message):
        return f"{match[1]}: no value for {match[2]}; bind it in a gin file or with --gin_param"
    inside = re.search(r"In call to configurable '(.*?)'", text)
    return f"{message}{place}" + (f" (building {inside[1]})" if inside and inside[1] not in message else "")


def _parameters(configurable: Any) -> list[str]:
    return list(inspect.signature(configurable).parameters)


@functools.cache
def _library() -> dict[str, type]:
    """The classes of the library's modules by name."""
    names = [found.name for found in pkgutil.walk_packages(research.__path__, "research.")]
    modules = [importlib.import_module(name) for name in names]
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__.startswith("research.") and not name.startswith("_")
    }


def _siblings(selector: str) -> list[str]:
    module = selector.split(".")[0]
    loaded = [m for name, m in list(sys.modules.items()) if name.split(".")[-1] == module]
    return [name for m in loaded for name in dir(m) if not name.startswith("_")]


def _check_types() -> None:
    """Literal values against the annotations of what they are bound to, before anything is built."""
    for (scope, selector), parameters in gin.config._CONFIG.items():
        if selector == "gin.macro":
            continue
        hints = _hints(gin.config._REGISTRY[selector].wrapped)
        for name, value in parameters.items():
            value = _macro_value(value)
            if name in hints and not _holds_reference(value):
                prefix = f"{scope}/" if scope else ""
                _check(f"{prefix}{'.'.join(selector.split('.')[-2:])}.{name}", value, hints[name])


def _check_tree(built: Any) -> None:
    """Every field of a tree of frozen values against its annotation: references are values by now."""
    if not dataclasses.is_dataclass(built) or isinstance(built, type):
        return
    hints = _hints(type(built))
    for field in dataclasses.fields(built):
        value = getattr(built, field.name)
        if field.name in hints:
            _check(f"{type(built).__name__}.{field.name}", value, hints[field.name])
        for part in value if isinstance(value, tuple) else (value,):
            _check_tree(part)


def _check(label: str, value: Any, hint: Any) -> None:
    if not is_bearable(value, hint, conf=_TOWER):
        expected = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
        raise ConfigError(
            f"{label} = {value!r}: expected {expected}; change it in the gin file or --gin_param that binds it"
        )


def _macro_value(value: Any) -> Any:
    """What a %MACRO stands for; anything else unchanged."""
    if isinstance(value, gin.config.ConfigurableReference) and value.selector == "gin.macro":
        return gin.config._CONFIG.get((value.scoped_selector.split("/")[0], "gin.macro"), {}).get(
            "value", value
        )
    return value


def _hints(target: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):
        return {}


def _holds_reference(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_holds_reference(item) for item in value)
    if isinstance(value, dict):
        return any(_holds_reference(item) for item in value.values())
    return isinstance(value, gin.config.ConfigurableReference)


def _unused_bindings() -> list[Binding]:
    """Bindings of the last config that no call has read (gin keeps silent about a wrong scope)."""
    operative = gin.config._OPERATIVE_CONFIG

    def used(scope: str, selector: str, name: str) -> bool:
        return any(
            other == selector
            and name in names
            and (not scope or inner == scope or inner.startswith(scope + "/"))
            for (inner, other), names in operative.items()
        )

    return [binding for binding in _bound() if not used(*binding)]


def _shown(scope: str, selector: str, name: str) -> str:
    """A binding as a gin file would write it."""
    return f"{scope + '/' if scope else ''}{'.'.join(selector.split('.')[-2:])}.{name}"
