"""What is known of a published model: how its `config.json` and the names of its arrays correspond to ours."""

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from typing import Any

from research.interop.tables import Row, Table, placed
from research.interop.weights import Weights
from research.models.config import BIASED, StackConfig
from research.models.families import DecoderConfig, EncoderDecoderConfig, FamilyConfig

# transformers' activations by name, and the gated ones of ours that use them.
ACTIVATIONS = {
    "gelu": "gelu_exact",
    "gelu_python": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_accurate": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_python_tanh": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
GATES = {"gelu": "geglu", "relu": "reglu", "silu": "swiglu"}
GATED = {name: GATES[ours] for name, ours in ACTIVATIONS.items() if ours in GATES}
# What ours are called there.
THEIRS = {
    "gelu_exact": "gelu",
    "gelu": "gelu_new",
    "relu": "relu",
    "silu": "silu",
    "geglu": "gelu_new",
    "reglu": "relu",
    "swiglu": "silu",
}


class ConfigError(ValueError):
    """A config.json says what we cannot express, or our config what theirs cannot. One line."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A published model.

    Attributes:
      name: as messages and exports name it.
      model: its configuration from a config.json; `EmbeddingConfig.rows` is the published number of rows. Every setting
        that would change a number is read, or refused by a `ConfigError`.
      rows: of a configuration, which of its arrays hold which of ours.
      settings: config.json of a configuration; what it cannot say it leaves out. None: it is read only.
      family: whose configurations those are.
      prefix: what the names of a model with a head begin with where those of the bare model do not, such as "bert.".
      ignored: pattern of names that carry nothing of the model, such as buffers.
      copies: rows of arrays that some files hold although the parameters are in another array of `rows` too, such as
        the output layer of tied embeddings. They have to be equal.
      older: what parts of names were in older files, by what they are now.
      model_type: of its config.json; None: its name.
      told_by: a setting that tells its config.json from those of other models of the same model_type.
      scores_tokens: of a configuration, whether it was published with a head that scores tokens.
      language: what its tokens are parts of.
    """

    name: str
    model: Callable[["Settings"], FamilyConfig]
    rows: Callable[[Any], list[Row]]
    settings: Callable[[Any], dict[str, Any]] | None = None
    family: type[FamilyConfig] = DecoderConfig
    prefix: str = ""
    ignored: str = r"$^"
    copies: tuple[Row, ...] = ()
    older: Mapping[str, str] = dataclasses.field(default_factory=dict)
    model_type: str | None = None
    told_by: str | None = None
    scores_tokens: Callable[[Any], bool] = lambda config: True
    language: str = "text"

    def describes(self, values: Mapping[str, Any]) -> bool:
        """Whether a config.json is of this model."""
        there = self.told_by is None or self.told_by in values
        return there and values.get("model_type") == (self.model_type or self.name)

    def sign(self) -> str:
        """What its config.json is known by, as messages say it."""
        told = "" if self.told_by is None else f" with {self.told_by}"
        return f"{self.model_type or self.name!r}{told}"

    def table(self, model: FamilyConfig, present: Weights | None = None) -> Table:
        """The rows with layers filled in; where weights are given, with the names that they have."""
        sizes = {name: (stack.layers, len(stack.pattern)) for name, stack in stacks(model).items()}
        table = placed(self.rows(model), sizes)
        return [(self._called(name, present), ours, form) for name, ours, form in table]

    def repeated(self, table: Table, present: Weights) -> Table:
        """The rows of `copies` that are there and that the table lacks."""
        named = {name for name, _, _ in table}
        copies = [(self._called(name, present), ours, form) for name, ours, form in placed(self.copies, {})]
        return [row for row in copies if row[0] in present.specs() and row[0] not in named]

    def _called(self, name: str, present: Weights | None) -> str:
        if present is None:
            return name
        there = present.specs()
        if not any(other.startswith(self.prefix) for other in there):
            name = name.removeprefix(self.prefix)
        older = [name.replace(now, once) for now, once in self.older.items()]
        return next((other for other in (name, *older) if other in there), name)

    def ignores(self, name: str) -> bool:
        """Whether an array carries nothing of the model."""
        return re.search(self.ignored, name) is not None


NEEDED: Any = object()  # as a default: the setting has to be there


class Settings:
    """A config.json that is read setting by setting. Null is absence, which means the default.

    Attributes:
      values: of the settings.
      place: where they are, as messages name it.
      names: of the arrays that come with them, where there are any.
    """

    def __init__(self, values: Mapping[str, Any], place: str, names: Collection[str] = ()):
        self.values, self.place, self.names = values, place, names

    def get(self, name: str, default: Any) -> Any:
        """A setting, or what its absence means."""
        value = self.values.get(name)
        return default if value is None else value

    def need(self, name: str) -> Any:
        """A setting that has to be there."""
        if self.values.get(name) is None:
            raise ConfigError(f"{self.place}: {name} is missing; complete it as the model was published")
        return self.values[name]

    def chosen(self, name: str, options: Mapping[Any, Any], default: Any) -> Any:
        """What one of several values stands for with us."""
        value = self.get(name, default)
        if not isinstance(value, Hashable) or value not in options:
            raise ConfigError(
                f"{self.place}: {name} is {value!r}, expected one of {', '.join(map(repr, options))}"
            )
        return options[value]

    def count(self, name: str, default: Any = NEEDED, least: int = 1) -> Any:
        """A whole number."""
        return self._fit(
            name,
            default,
            lambda value: type(value) is int and value >= least,
            f"a whole number, {least} or more",
        )

    def counts(self, name: str, default: Any = NEEDED) -> Any:
        """A list of whole numbers above 0."""

        def fits(value: Any) -> bool:
            return isinstance(value, list) and all(type(one) is int and one > 0 for one in value)

        return self._fit(name, default, fits, "a list of whole numbers above 0")

    def number(self, name: str, default: Any = NEEDED) -> Any:
        """A finite number above 0."""
        return self._fit(
            name, default, lambda value: _is_number(value) and 0 < value < math.inf, "a finite number above 0"
        )

    def rate(self, name: str, default: Any = NEEDED) -> Any:
        """A number from 0, below 1."""
        return self._fit(
            name, default, lambda value: _is_number(value) and 0 <= value < 1, "a number from 0, below 1"
        )

    def flag(self, name: str, default: Any = NEEDED) -> Any:
        """True or false."""
        return self._fit(name, default, lambda value: isinstance(value, bool), "true or false")

    def only(self, name: str, *values: Any) -> None:
        """Refuse any other value of a setting than these, the first of which is its default."""
        self.chosen(name, dict.fromkeys(values), values[0])

    def _fit(self, name: str, default: Any, fits: Callable[[Any], bool], expected: str) -> Any:
        value = self.need(name) if default is NEEDED else self.get(name, default)
        if value is not default and not fits(value):
            raise ConfigError(f"{self.place}: {name} is {value!r}, expected {expected}")
        return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def stacks(model: FamilyConfig) -> dict[str, StackConfig]:
    """The stacks of a model by the first part of their parameters' paths."""
    if isinstance(model, EncoderDecoderConfig):
        encoder, decoder = model.stacks()
        return {"encoder": encoder, "decoder": decoder}
    return {"stack": model.stack}


_HOW = ("dtype", "remat", "unroll", "backend", "dropout", "attention_dropout", "input_noise")


def normal(model: FamilyConfig) -> FamilyConfig:
    """The model with all that is derived written out, and without what changes how it is computed or trained, not what
    it is.
    """
    if isinstance(model, EncoderDecoderConfig):
        encoder, decoder = model.stacks()
        model = dataclasses.replace(model, encoder=encoder, decoder=decoder, split_layers=False)

    def plain(stack: StackConfig) -> StackConfig:
        same = StackConfig(layers=stack.layers, width=stack.width, heads=stack.heads, head_dim=stack.features)
        how = {name: getattr(same, name) for name in _HOW}
        biased = tuple(part for part in BIASED if stack.biased(part))
        return dataclasses.replace(
            stack,
            kv_heads=stack.groups,
            head_dim=stack.features,
            hidden=stack.mlp_width,
            use_bias=biased,
            scale=stack.attention_scale,
            **how,
        )

    given = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    changes = {name: plain(value) for name, value in given.items() if isinstance(value, StackConfig)}
    embedding = model.embedding
    if embedding.scale is None:
        (width, *_) = {stack.width for stack in stacks(model).values()}
        embedding = dataclasses.replace(embedding, scale=width**0.5)
    return dataclasses.replace(model, embedding=embedding, **changes)


def inexpressible(name: str, model: FamilyConfig, rebuilt: FamilyConfig) -> ConfigError:
    """That a published model cannot be what ours is, with the first setting that differs.

    Args:
      name: of the published model.
      model: ours.
      rebuilt: what their description of it would be with us.
    """
    setting, ours, theirs = next(differences(model, rebuilt))
    return ConfigError(
        f"{name} cannot say {setting} = {ours!r} (only {theirs!r}); change it, or keep the model as a run"
    )


def differences(ours: Any, theirs: Any, setting: str = "the model") -> Iterator[tuple[str, Any, Any]]:
    """Settings that differ, each with both values, by the class and the name of the field."""
    if dataclasses.is_dataclass(ours) and type(ours) is type(theirs):
        for field in dataclasses.fields(ours):
            name = f"{type(ours).__name__}.{field.name}"
            yield from differences(getattr(ours, field.name), getattr(theirs, field.name), name)
    elif ours != theirs:
        yield setting, ours, theirs
