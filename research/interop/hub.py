"""Hugging Face folders, `config.json` and safetensors, as models of ours and back."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from research.data.pretrained import FORMATS, FromFile
from research.data.tokenizers import TokenizerSource
from research.interop import bert, chatglm, glm, gpt2, llama, t5, tables, transformer_xl, weights
from research.interop.architecture import Architecture, ConfigError, Settings, inexpressible, normal
from research.interop.weights import Weights
from research.models.families import FamilyConfig, Model
from research.models.paths import named, path_of

ARCHITECTURES: dict[str, Architecture] = {
    one.name: one
    for one in (
        gpt2.GPT2,
        llama.LLAMA,
        llama.MISTRAL,
        llama.GLM4,
        bert.BERT,
        t5.T5,
        glm.GLM,
        chatglm.CHATGLM,
        chatglm.CHATGLM2,
        transformer_xl.TRANSFORMER_XL,
    )
}
SHARD = 5 * 10**9  # bytes of a file, as Hugging Face writes them


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A published model that has not been read yet.

    Attributes:
      config: of the model.
      architecture: whose names the arrays have.
      weights: the arrays.
      tokenizer: the published one, where it is known.
    """

    config: FamilyConfig
    architecture: Architecture
    weights: Weights
    tokenizer: TokenizerSource | None = None

    @property
    def vocab(self) -> int:
        """Rows of its token table."""
        rows = self.config.embedding.rows
        assert rows is not None  # a published model says so
        return rows

    def model(self) -> Model:
        """The model with the published parameters, in float32.

        Raises:
          WeightsError: arrays are missing, unexpected or of another shape; a line for each.
        """
        abstract = jax.eval_shape(lambda: self.config.build(vocab=self.vocab, key=jax.random.key(0)))
        graph, state = nnx.split(abstract)
        shapes = named(nnx.to_pure_dict(state))
        table = self.architecture.table(self.config, self.weights)
        copies = self.architecture.repeated(table, self.weights)
        tables.check(table, self.weights, shapes, ignored=self.architecture.ignores, copies=copies)
        made = tables.read(table, self.weights, shapes, copies=copies)
        leaves, structure = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(state))
        params = [jax.device_put(made.pop(path_of(path))) for path, _ in leaves]  # on a CPU without a copy
        return nnx.merge(graph, jax.tree.unflatten(structure, params))


def open_folder(folder: str | Path) -> Checkpoint:
    """The model in a folder as Hugging Face lays it out; no array is read yet.

    Raises:
      ConfigError: config.json is missing, or describes what we cannot express.
      WeightsError: there are no safetensors, or they are damaged.
    """
    folder = Path(folder).expanduser()
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"it is a {type(values).__name__}")
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be read ({said}), expected the config.json of a model") from error
    architecture = next((one for one in ARCHITECTURES.values() if one.describes(values)), None)
    if architecture is None:
        known = ", ".join(one.sign() for one in ARCHITECTURES.values())
        raise ConfigError(f"{path}: model_type is {values.get('model_type')!r}, expected one of {known}")
    found = weights.folder_weights(folder)
    try:
        config = architecture.model(Settings(values, str(path), found.specs()))
    except ConfigError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # what our config refuses
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    return Checkpoint(config, architecture, found, _tokenizer(folder, architecture, values))


def _tokenizer(folder: Path, architecture: Architecture, values: Mapping[str, Any]) -> TokenizerSource | None:
    """The tokenizer whose files are in a folder."""
    if not any(all((folder / name).is_file() for name in names) for names in FORMATS):
        return None
    if architecture is t5.T5 and values.get("decoder_start_token_id", 0) == values.get("pad_token_id", 0):
        return FromFile(path=str(folder), **t5.SPECIALS)
    return FromFile(path=str(folder))


def export(
    model: Model,
    folder: str | Path,
    architecture: str,
    *,
    specials: Mapping[str, int] | None = None,
    dtype: Any = np.float32,
    shard: int = SHARD,
) -> list[Path]:
    """Write a model as Hugging Face reads it: config.json and safetensors. Returns the files.

    Args:
      model: its config's `EmbeddingConfig.rows` may be None: the table says.
      folder: is made; files of these names in it are replaced.
      architecture: the `model_type` to write.
      specials: ids of specials for config.json, such as {"eos_token_id": 2}; None: those of the architecture.
      dtype: of the arrays.
      shard: bytes of a file at most, but for an array that has more.

    Raises:
      ConfigError: the architecture cannot say what the config does.
    """
    folder, one = Path(folder).expanduser(), ARCHITECTURES[architecture]
    config, values = described(model.config, params := named(nnx.to_pure_dict(nnx.state(model))), one)
    folder.mkdir(parents=True, exist_ok=True)
    table = one.table(config)
    specs, arrays = tables.specs(table, params, dtype), tables.write(table, params)
    files = weights.save(folder, specs, arrays, metadata={"format": "pt"}, shard=shard)
    path = folder / "config.json"
    values |= {**(specials or {}), "dtype": np.dtype(dtype).name}
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    return [path, *files]


def described(
    config: FamilyConfig, params: Mapping[str, Any], architecture: Architecture
) -> tuple[FamilyConfig, dict[str, Any]]:
    """A config with its rows filled in, and its config.json.

    Raises:
      ConfigError: the architecture cannot say what the config does.
    """
    if architecture.settings is None:
        raise ConfigError(
            f"{architecture.name} is read and not written; expected one of {', '.join(written())}"
        )
    if type(config) is not architecture.family:
        raise ConfigError(
            f"{architecture.name} is a model of {architecture.family.__name__}, not of {type(config).__name__}"
        )
    rows = params["embedding/table"].shape[0]
    config = dataclasses.replace(config, embedding=dataclasses.replace(config.embedding, rows=rows))
    values = architecture.settings(config)
    rebuilt = architecture.model(Settings(values, "config.json"))
    if normal(rebuilt) != normal(config):
        raise inexpressible(architecture.name, normal(config), normal(rebuilt))
    return config, values


def written() -> list[str]:
    """The architectures that models can be exported as."""
    return [name for name, one in ARCHITECTURES.items() if one.settings is not None]
