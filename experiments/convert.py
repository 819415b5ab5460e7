"""Bring weights in and out: python -m experiments.convert --source=smollm2 --out=runs/smollm2

A Hugging Face folder, a .gguf file or a name of the catalog becomes a run folder, which `train --init_from`, `generate`
and `evaluate` read; a run becomes a Hugging Face folder. Whatever does not fit is a line for each name, and nothing is
written then.
"""

import dataclasses
import datetime
import itertools
import json
import os
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers as hf
from absl import app, flags
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from experiments import bindings, folders, origins, pretrained, start
from experiments.configs import ConfigError
from experiments.origins import Origin, Published, Run
from research.data.pretrained import FromFile
from research.data.subwords import tokenizer_json
from research.data.tokenizers import Tokenizer, Vocabulary
from research.interop import architecture as published
from research.interop import hub
from research.interop.weights import Spec, Weights
from research.models.families import Model
from research.models.paths import named
from research.training.checkpoints import Checkpoints, Keep

FLAGS = flags.FLAGS
ROLES = ("pad", "bos", "eos", "mask")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Converted:
    """What the checkpoint of a converted model holds: no optimizer has a state yet."""

    step: Any
    params: Any


@dataclasses.dataclass(frozen=True)
class Watched:
    """Weights that tell how many arrays of them were read."""

    weights: Weights
    advance: Any

    @property
    def place(self) -> str:
        """Where they are."""
        return self.weights.place

    def specs(self) -> Mapping[str, Spec]:
        """What there is, by name."""
        return self.weights.specs()

    def read(self, name: str) -> np.ndarray:
        """The array of that name."""
        self.advance()
        return self.weights.read(name)

    def pieces(self, name: str) -> Iterable[np.ndarray]:
        """The same array in pieces."""
        self.advance()
        return self.weights.pieces(name)


def kind(origin: Origin) -> str:
    """What is at a place, as --from names it."""
    if isinstance(origin, Run):
        return "run"
    return "gguf" if origin.checkpoint.weights.place.endswith(".gguf") else "hf"


def to_run(origin: Published, out: Path, console: Console) -> None:
    """Write a run folder that holds the parameters and no step.

    Raises:
      ConfigError: the folder is not empty, or the model has no tokenizer.
      WeightsError: names are missing, unexpected or of other shapes.
    """
    tokenizer = origin.tokenizer()
    with _watched(origin, console) as watched:
        found = pretrained.loaded(watched, tokenizer)
    planned = origins.suited(origin)
    out.mkdir(parents=True, exist_ok=True)
    source = _written(tokenizer, out, origin.begins) or planned.data.tokenizer
    planned = dataclasses.replace(planned, data=dataclasses.replace(planned.data, tokenizer=source))
    with console.status("writing"):
        with Checkpoints(out / "checkpoints", Keep(), say=console.print) as checkpoints:
            checkpoints.save(Converted(jnp.int32(0), found.params), None)
        record = {
            "status": folders.CONVERTED,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "source": origin.place,
            "fingerprint": pretrained.hash_of(found.params),
            "scores_tokens": origin.scores_tokens,
            "language": origin.language,
            **folders.commit(),
        }
        folders.replace(out / "run.json", folders.text_of(record))
        # Last: with it the folder is a run.
        folders.replace(out / "config.gin", bindings.text("experiments.experiment.train", planned))


def to_hub(origin: Origin, out: Path, architecture: str | None, console: Console) -> str:
    """Write a Hugging Face folder; the architecture that it is of. A tokenizer that cannot be read is left out.

    Raises:
      ConfigError: no architecture, or not the one that is asked for, can say what the model is.
    """
    tokenizer = origins.readable(origin)
    with _watched(origin, console) as watched:
        found = pretrained.loaded(watched, tokenizer)
    name = architecture or inferred(found)
    with console.status("writing"):
        hub.export(found.model, out, name, specials=_ids(tokenizer, found.model))
        if tokenizer is None or _written(tokenizer, out, origin.begins) is None:
            what = (
                f"{type(tokenizer).__name__} has none" if tokenizer else f"none to be read in {origin.place}"
            )
            console.print(f"no tokenizer.json: {what}", markup=False)
    return name


def inferred(found: pretrained.Loaded) -> str:
    """The first architecture that can say what a model is.

    Raises:
      ConfigError: none can; what each cannot say.
    """
    said = []
    for name in hub.written():
        try:
            hub.described(found.config, named(found.params), hub.ARCHITECTURES[name])
        except published.ConfigError as error:
            said.append(str(error))
        else:
            return name
    raise ConfigError(
        f"no architecture of {', '.join(hub.written())} can say what the model is: {'; '.join(said)}"
    )


@contextmanager
def _watched(origin: Origin, console: Console) -> Generator[Any]:
    """The origin, whose arrays move a bar while they are read."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} arrays"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        if not isinstance(origin, Published):
            bars.add_task("reading", total=None)
            yield origin
            return
        weights = origin.checkpoint.weights
        bar = bars.add_task("reading", total=len(weights.specs()))
        counted = Watched(weights, lambda: bars.advance(bar))
        yield dataclasses.replace(origin, checkpoint=dataclasses.replace(origin.checkpoint, weights=counted))


def _ids(tokenizer: Tokenizer | None, model: Model) -> dict[str, int] | None:
    """The specials as config.json says them."""
    if tokenizer is None:
        return None
    ids = {f"{role}_token_id": getattr(tokenizer, role) for role in ("pad", "bos", "eos")}
    return ids | ({"decoder_start_token_id": tokenizer.bos} if model.reads_source else {})


def _written(tokenizer: Tokenizer, out: Path, begins: bool) -> FromFile | None:
    """Write the files of a tokenizer, and what reads them again with the same ids; None: it has none."""
    model = tokenizer_json(tokenizer)
    if model is None:
        return None
    path = out / "tokenizer.json"
    path.write_text(model, encoding="utf-8")
    tokens = hf.Tokenizer.from_str(model)
    names = {f"{role}_token": tokens.id_to_token(getattr(tokenizer, role)) for role in ROLES}
    known = {role: token for role, token in names.items() if token is not None}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": begins, **known}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    sentinels = itertools.takewhile(
        lambda i: tokens.token_to_id(f"<extra_id_{i}>") is not None, itertools.count()
    )
    found: Any = names | _around(tokenizer) | {"begins": begins}
    return FromFile(path=str(path.resolve()), sentinels=len(list(sentinels)), **found)


def _around(tokenizer: Tokenizer) -> dict[str, tuple[str, ...]]:
    """The roles of the specials that an encoder reads around a source."""
    if not isinstance(tokenizer, Vocabulary):
        return {}
    layout = tokenizer.specials()
    role = {getattr(layout, name): name for name in reversed(ROLES)}
    return {side: tuple(role[i] for i in getattr(layout, side)) for side in ("before", "after")}


def main(argv: list[str]) -> int:
    """Convert. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --source=...")
    os.environ.setdefault("RESEARCH_KEEP_MEMORY", "0")  # nothing is computed again and again here
    start.process()
    console = start.console()
    given, wanted = FLAGS["from"].value, FLAGS.to
    try:
        origin, out = origins.opened(FLAGS.source, FLAGS.data_dir), Path(FLAGS.out).expanduser()
        there = kind(origin)
        if given not in (None, there):
            raise ConfigError(f"--from={given}: {FLAGS.source} is of the kind {there}; leave the flag out")
        to = wanted or ("hf" if there == "run" else "run")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"--out={FLAGS.out}: expected a new or an empty folder")
        if to == "hf":
            name = to_hub(origin, out, FLAGS.architecture, console)
            console.print(f"{out}: a {name} for transformers", markup=False)
            return 0
        if not isinstance(origin, Published):
            raise ConfigError(f"--to=run: {FLAGS.source} is a run; copy its folder")
        if FLAGS.architecture:
            raise ConfigError(f"--architecture={FLAGS.architecture} says nothing to --to=run; leave it out")
        to_run(origin, out, console)
        console.print(
            f"{out}: for train --init_from, generate --run_dir and evaluate --run_dir", markup=False
        )
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        return start.fail(error)
    return 0


if __name__ == "__main__":
    flags.DEFINE_enum("from", None, ["hf", "gguf", "run"], "what the source is (default: as it is found)")
    flags.DEFINE_enum("to", None, ["run", "hf"], "what it becomes (default: the other)")
    flags.DEFINE_string("source", None, "a folder, a .gguf file or a name of the catalog", required=True)
    flags.DEFINE_string("out", None, "a new folder", required=True)
    flags.DEFINE_enum("architecture", None, hub.written(), "of --to=hf (default: the first that can say it)")
    flags.DEFINE_string("data_dir", None, "folder of downloaded archives (default: the user's cache)")
    app.run(main)
