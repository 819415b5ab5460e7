"""The named models of configs/models: what they are, and how many parameters beside what is published.

    python -m experiments.models            # a line for each model
    python -m experiments.models --write    # and the tables of docs/models.md
    python -m experiments.models --check    # fails where docs/models.md is not what the configs say

Parameters are counted from the traced model, so that no size needs memory.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from rich.table import Table

from experiments import configs, experiment, folders, start
from experiments.experiment import Experiment
from experiments.published import PUBLISHED
from research.analysis import tables
from research.attention.masks import And, Mask, Not, Or
from research.models.config import BIASED, StackConfig
from research.models.families import EncoderConfig, EncoderDecoderConfig, FamilyConfig

FOLDER = configs.ROOT / "configs" / "models"
DOCS = configs.ROOT / "docs" / "models.md"
ARMS = ("causal_denoising", "prefix_denoising", "encoder_decoder_denoising")  # ours, to compare with


@dataclasses.dataclass(frozen=True)
class Named:
    """A named model.

    Attributes:
      name: of its file in configs/models.
      planned: the experiment that the file describes.
    """

    name: str
    planned: Experiment

    @property
    def model(self) -> FamilyConfig:
        """Its configuration."""
        return self.planned.model

    @property
    def stacks(self) -> list[StackConfig]:
        """Its stacks: one, or the encoder's and the decoder's."""
        model = self.model
        if not isinstance(model, EncoderDecoderConfig):
            return [model.stack]
        return [model.decoder] if model.tied else list(model.stacks())

    @property
    def vocab(self) -> int:
        """Rows of its token table, as published."""
        rows = self.model.embedding.rows or PUBLISHED[self.name].vocab
        assert rows is not None, f"{self.name}: neither EmbeddingConfig.rows nor Published.vocab is set"
        return rows

    @functools.cached_property
    def parameters(self) -> int:
        """How many it has."""
        return count(self.model, self.vocab)

    @property
    def agreement(self) -> str:
        """How the count compares with what is published."""
        published = PUBLISHED[self.name]
        if published.count is None:
            return "none published"
        if not published.agrees(self.parameters):
            return "no"
        said = "exactly" if published.exact else "to its digits"
        return f"{said}, {published.apart[0]:,} apart" if published.apart[0] else said


def count(model: FamilyConfig, vocab: int) -> int:
    """Parameters of a model with `vocab` tokens."""
    built = jax.eval_shape(lambda: model.build(vocab=vocab, key=jax.random.key(0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(built))


@functools.cache
def named(name: str) -> Named:
    """The model of a file in configs/models.

    Raises:
      ConfigError: there is none, or it is wrong.
    """
    return Named(name, experiment.load([f"configs/models/{name}.gin"])[0])


def every() -> list[Named]:
    """All named models, in the order of `PUBLISHED`.

    Raises:
      ConfigError: a file is wrong, or nothing says what is published of it.
    """
    unlisted = {path.stem for path in FOLDER.glob("*.gin")} - set(PUBLISHED)
    if unlisted:
        raise configs.ConfigError(
            f"configs/models/{min(unlisted)}.gin: expected in PUBLISHED; add it to experiments/published.py"
        )
    return [named(name) for name in PUBLISHED]


def arms() -> list[Named]:
    """The arms of the study of architectures that have one objective."""
    files = [f"configs/architecture/{name}.gin" for name in ARMS]
    return [
        Named(f"architecture/{name}", experiment.load([file])[0])
        for name, file in zip(ARMS, files, strict=True)
    ]


# What a model is, in cells of a table.


def short(value: Any) -> str:
    """A value of a config as Python would write it, without what is as by default."""
    if isinstance(value, And | Or):
        sign = " & " if isinstance(value, And) else " | "
        parts = [short(part) for part in value.parts]
        return sign.join(f"({part})" if " " in part else part for part in parts)
    if isinstance(value, Not):
        return f"~({short(value.part)})"
    if isinstance(value, float):
        return f"{value:g}"
    if not dataclasses.is_dataclass(value):
        return repr(value)
    parts = []
    for field in dataclasses.fields(value):
        own = getattr(value, field.name)
        if own != field.default:
            parts.append(f"{field.name}={short(own)}" if field.kw_only else short(own))
    return f"{type(value).__name__}({', '.join(parts)})"


def _family(one: Named) -> str:
    tied = isinstance(one.model, EncoderDecoderConfig) and one.model.tied
    return type(one.model).__name__.removesuffix("Config") + (" of one stack" if tied else "")


def _mask(one: Named) -> str:
    def layered(mask: Mask, stack: StackConfig) -> str:
        seen = [short(spec.visible(mask)) for spec in stack.pattern]
        return seen[0] if len(set(seen)) == 1 else f"by turns {' and '.join(seen)}"

    model, target = one.model, layered(one.model.mask, one.stacks[-1])
    if not isinstance(model, EncoderDecoderConfig):
        return target
    return f"{layered(model.encoder_mask, one.stacks[0])}; {target}; across {short(model.cross_mask)}"


def _of_stacks(cell: Callable[[StackConfig], str]) -> Callable[[Named], str]:
    return lambda one: "; ".join(dict.fromkeys(cell(stack) for stack in one.stacks))


def _positions(stack: StackConfig) -> str:
    return ", ".join(dict.fromkeys(short(spec.positions or stack.positions) for spec in stack.pattern))


def _norm(stack: StackConfig) -> str:
    said = f"{stack.norm}, {stack.placement}, {stack.epsilon:g}"
    if stack.input_norm:
        said += ", the input too"
    return said if stack.residual == 1 else f"{said}, stream x {stack.residual:.4g}"


def _activation(stack: StackConfig) -> str:
    return stack.activation


def _heads(stack: StackConfig) -> str:
    if stack.groups == stack.heads:
        said = "multi-head"
    else:
        said = f"{stack.groups} key-value" if stack.groups > 1 else "multi-query"
    if stack.scale is not None:
        said += f", scores x {stack.scale:g}"
    if stack.softcap is not None:
        said += f", soft cap {stack.softcap:g}"
    return f"{said}, sinks" if stack.sinks else said


def _biases(stack: StackConfig) -> str:
    parts = [part for part in BIASED if stack.biased(part)]
    return {0: "none", len(BIASED): "all"}.get(len(parts), ", ".join(parts))


def _memory(stack: StackConfig) -> str:
    if stack.memory is None:
        return "none"
    older, said = stack.memory.compression, f"{stack.memory.length} states"
    return said if older is None else f"{said}, {older.length} of {older.rate} each ({type(older).__name__})"


def _objective(one: Named) -> str:
    return short(one.planned.data.objective)


def _embedding(one: Named) -> str:
    model, config, width = one.model, one.model.embedding, one.stacks[0].width
    scaled = math.isclose(config.logit_scale, width**-0.5)
    said = {
        "tied" if model.tied_embeddings else "untied": True,
        "a table for each side": isinstance(model, EncoderDecoderConfig) and not model.shared_embeddings,
        f"adaptive {config.cutoffs}": bool(config.cutoffs),
        f"{config.shrink} times narrower each": config.shrink > 1,
        "head projection": config.head_projection,
        "x m^1/2": config.scale is None,
        f"x {short(config.scale)}": config.scale not in (None, 1),
        f"{config.types} types": config.types > 0,
        "transform": config.transform,
        "bias": config.bias,
        "logits x m^-1/2" if scaled else f"logits x {config.logit_scale:g}": config.logit_scale != 1,
        f"soft cap {short(config.softcap)}": config.softcap is not None,
        "pooler": isinstance(model, EncoderConfig) and model.pooler,
        "classes": isinstance(model, EncoderConfig) and model.classes is not None,  # not tokens
    }
    return ", ".join(part for part, there in said.items() if there)


KINDS: dict[str, Callable[[Named], str]] = {
    "family": _family,
    "mask": _mask,
    "positions": _of_stacks(_positions),
    "norm": _of_stacks(_norm),
    "activation": _of_stacks(_activation),
    "heads": _of_stacks(_heads),
    "objective": _objective,
    "memory": _of_stacks(_memory),
    "biases": _of_stacks(_biases),
    "embedding": _embedding,
}


def _head_sizes(stack: StackConfig) -> str:
    return f"{stack.heads} x {stack.features}"


SIZES: dict[str, Callable[[Named], str]] = {
    "model": lambda one: f"`{one.name}`",
    "layers": lambda one: " + ".join(str(stack.layers) for stack in one.stacks),
    "width": lambda one: str(one.stacks[0].width),
    "heads": _of_stacks(_head_sizes),
    "MLP": _of_stacks(lambda stack: str(stack.mlp_width)),
    "vocabulary": lambda one: f"{one.vocab:,}",
    "parameters": lambda one: f"{one.parameters:,}",
    "published": lambda one: PUBLISHED[one.name].count or "",
    "agrees": lambda one: one.agreement,
    "source": lambda one: PUBLISHED[one.name].source,
}


# The page.


def kinds(models: Iterable[Named]) -> str:
    """The table of what models are, one row for neighbours that differ in sizes alone."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for one in models:
        rows.setdefault(tuple(cell(one) for cell in KINDS.values()), []).append(f"`{one.name}`")
    return _markdown(["model", *KINDS], ([", ".join(names), *cells] for cells, names in rows.items()))


def sizes(models: Iterable[Named]) -> str:
    """The table of sizes and counts."""
    return _markdown(list(SIZES), ([cell(one) for cell in SIZES.values()] for one in models))


def notes(models: Iterable[Named]) -> str:
    """Why counts differ, a line each."""
    lines = []
    for one in models:
        published = PUBLISHED[one.name]
        if published.apart[0]:
            lines.append(f"- `{one.name}`: {published.apart[0]:,} apart are {published.apart[1]}.")
        if published.differs:
            lines.append(f"- `{one.name}`: {published.differs}.")
    return "\n".join(lines) + "\n"


def differences(models: Iterable[Named]) -> str:
    """What the files say is not as published, a line each."""
    found = ((one.name, line) for one in models for line in remarks(FOLDER / f"{one.name}.gin"))
    return "".join(f"- `{name}`: {line}\n" for name, line in found)


def remarks(file: Path) -> Iterator[str]:
    """The comments of a gin file that begin with "Differs:", on lines of their own, each as one line."""
    for comment in re.findall(r"(?m)^# Differs: (.+(?:\n#   .+)*)", file.read_text(encoding="utf-8")):
        yield re.sub(r"\n#\s*", " ", comment)


def page(document: str) -> str:
    """docs/models.md with its generated parts as the configs have them.

    Raises:
      TableError: the markers of a part are missing.
    """
    models = every()
    parts = {
        "kinds": kinds([*arms(), *models]),
        "sizes": sizes(models),
        "notes": notes(models),
        "differences": differences(models),
    }
    for name, part in parts.items():
        document = tables.inserted(document, f"models/{name}", part, place=DOCS.name)
    return document


def _markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)


def table(models: Iterable[Named]) -> Table:
    """Counts for the terminal."""
    shown = Table("model", box=None, pad_edge=False)
    for name in ("parameters", "published"):
        shown.add_column(name, justify="right")
    for name in ("agrees", "source"):
        shown.add_column(name)
    for one in models:
        published = PUBLISHED[one.name]
        shown.add_row(one.name, f"{one.parameters:,}", published.count or "", one.agreement, published.source)
    return shown


def main(argv: list[str]) -> int:
    """Print the models; write or check their page. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --write")
    console = start.console()
    start.process()
    try:
        console.print(table(every()), highlight=False)
        written = DOCS.read_text(encoding="utf-8")
        current = page(written)
        if flags.FLAGS.write:
            folders.replace(DOCS, current)
        elif flags.FLAGS.check and current != written:
            return start.fail(
                f"{DOCS}: not what configs/models says; run python -m experiments.models --write"
            )
    except (ValueError, OSError) as error:
        return start.fail(error)
    return 0


if __name__ == "__main__":
    flags.DEFINE_bool("write", False, "write the tables of docs/models.md")
    flags.DEFINE_bool("check", False, "fail where docs/models.md is not what the configs say")
    app.run(main)
