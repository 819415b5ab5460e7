"""Tokenizers that come in files, with real weights.

`FromFile` and `Published` are frozen descriptions; what their `ready` returns can encode.
"""

import json
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers

from research.data.catalog import CATALOG, read
from research.data.subwords import Subwords, byte_level, one_line
from research.data.tokenizers import Specials


class TokenizerFile(NamedTuple):
    """A file of a tokenizer: where it is, as messages name it, what is in it, and, where that is said, which of its
    tokens are pad, bos, eos and mask (the token or its id) and whether lines begin with bos.
    """

    place: str
    content: bytes
    roles: Mapping[str, str | int] = {}
    begins: bool | None = None


# What files call their specials, by role: BERT's names, T5's and LLaMA's, Gemma's, GPT-2's.
_TOKENS = {
    "pad": ("[PAD]", "<pad>"),
    "bos": ("[CLS]", "<s>", "<bos>", "<|endoftext|>"),
    "eos": ("[SEP]", "</s>", "<eos>", "<|endoftext|>"),
    "mask": ("[MASK]", "<mask>"),
}
# Files beside a tokenizer's that say which token has which role; what the first says counts.
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "config.json")


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A tokenizer that comes in files; its own ids stay as they are, for weights depend on them.

    pad, bos, eos and mask are the tokens named here, else those that the files name (tokenizer_config.json, then
    special_tokens_map.json, then ids in config.json), else those of the usual names: [PAD] or <pad>; [CLS], <s>, <bos>
    or <|endoftext|>; [SEP], </s>, <eos> or <|endoftext|>; [MASK] or <mask>. A pad that files name and that is also bos,
    eos or unk is not taken, since padding could not be told from it. Sentinel i is <extra_id_i>. Whatever of these the
    file doesn't have gets an id after all of its own: weights need as many rows more.

    Attributes:
      pad_token, bos_token, eos_token, mask_token: how the file writes the special; None: as said above.
      sentinels: how many sentinel ids there are.
      before, after: roles, such as ("eos",), of the specials that the model's encoder reads around a source.
      begins: whether the model, a decoder, reads bos before a line; None: as the files say, in `add_bos_token` or by
        what the tokenizer puts before a text.
    """

    pad_token: str | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    mask_token: str | None = None
    sentinels: int = 0
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    begins: bool | None = None

    def __post_init__(self) -> None:
        """Raise a ValueError for a negative number of sentinels."""
        if self.sentinels < 0:
            raise ValueError(f"{type(self).__name__}.sentinels is {self.sentinels}, expected 0 or more")
        for name in ("before", "after"):
            if not set(getattr(self, name)) <= set(_TOKENS):
                raise ValueError(
                    f"{type(self).__name__}.{name} is {getattr(self, name)!r}, expected some of {', '.join(_TOKENS)}"
                )

    def ready(self, texts: Iterable[str], data_dir: str | Path | None = None) -> Subwords:
        """The tokenizer that the files describe; the texts aren't read.

        Raises:
          ValueError: a file is missing or is not what its name says, or there is no such special token.
          CatalogError: an archive is missing and cannot be downloaded.
        """
        files = self.files(data_dir)
        names = next((names for names in FORMATS if set(names) <= set(files)), None)
        if names is None:
            raise ValueError(
                f"{type(self).__name__}: no tokenizer in {self.place}, expected "
                f"{', or '.join(' and '.join(names) for names in FORMATS)}; name what has one"
            )
        parts = [files[name] for name in names]
        tokenizer = FORMATS[names](*parts)
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise ValueError(f"{parts[0].place}: it has no tokens, expected a vocabulary; replace the file")
        ids = {}
        free = max(vocabulary.values()) + 1
        named, begins = _said(files)
        named = {**named, **parts[0].roles}
        wanted = dict(_TOKENS) | {role: (token,) for role, token in _known(named, vocabulary).items()}
        wanted |= {f"sentinel {i}": (f"<extra_id_{i}>",) for i in range(self.sentinels)}
        for role, usual in wanted.items():
            given = getattr(self, f"{role}_token", None)
            if given is not None and given not in vocabulary:
                raise ValueError(
                    f"{type(self).__name__}.{role}_token is {given!r}, expected a token of {parts[0].place}; "
                    "correct it, or set it to None to have an id added"
                )
            known = [token for token in (usual if given is None else (given,)) if token in vocabulary]
            ids[role] = vocabulary[known[0]] if known else free
            free += not known
        added = sorted(tokenizer.get_added_tokens_decoder().items())
        others = ((i, token.content) for i, token in added if token.special and i not in ids.values())
        model = tokenizer.to_str()
        said = (self.begins, parts[0].begins, begins)
        return Subwords(
            source=self,
            model=model,
            offset=0,
            layout=Specials(
                **{role: ids[role] for role in _TOKENS},
                sentinels=tuple(ids[f"sentinel {i}"] for i in range(self.sentinels)),
                others=tuple(others),
                before=tuple(ids[role] for role in self.before),
                after=tuple(ids[role] for role in self.after),
                begins=next((one for one in said if one is not None), _puts(tokenizer, ids["bos"])),
            ),
            vocab_size=free,
        )

    @property
    def place(self) -> str:
        """Where the files are, as messages name it."""
        raise NotImplementedError

    def files(self, data_dir: str | Path | None) -> dict[str, TokenizerFile]:
        """The files that there are, of any of the formats."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class FromFile(Pretrained):
    """Local files: a `tokenizer.json`; GPT-2's `encoder.json` and `vocab.bpe`, also as `vocab.json` and `merges.txt`;
    or BERT's `vocab.txt`, which is taken as uncased where none of its words has a capital. Files beside them say which
    tokens are special; see `Pretrained`.

    Attributes:
      path: the file, one of the pair, or the folder they are in; `~` is your home.
    """

    path: str

    @property
    def place(self) -> str:
        """The path."""
        return self.path

    def files(self, data_dir: str | Path | None) -> dict[str, TokenizerFile]:
        """The files in the folder that have the name of a format, or the file itself, and those beside."""
        path = Path(self.path).expanduser()
        alone = ("vocab.txt",) if path.suffix == ".txt" else ("tokenizer.json",)
        names = next((names for names in FORMATS if path.name in names), alone)
        if path.is_dir():
            places = {name: path / name for names in FORMATS for name in names if (path / name).is_file()}
        elif len(names) > 1:
            places = {name: path.parent / name for name in names}
        else:
            places = {names[0]: path}
        folder = path if path.is_dir() else path.parent
        places |= {name: folder / name for name in _BESIDE if (folder / name).is_file()}
        try:
            return {name: TokenizerFile(str(place), place.read_bytes()) for name, place in places.items()}
        except OSError as error:
            raise ValueError(
                f"{error.filename}: {error.strerror}, expected a tokenizer's file; change FromFile.path"
            ) from error


@dataclass(frozen=True, kw_only=True)
class Published(Pretrained):
    """The tokenizer in an archive of the data catalog.

    Attributes:
      name: of the entry, whose members are in one of the formats of `FromFile`.
      member: pattern of the members to read; None: all that the entry names, which may be large weights too.
    """

    name: str
    member: str | None = None

    @property
    def place(self) -> str:
        """The entry and the pattern of its members."""
        return f"{self.name}: {self.member or CATALOG[self.name].member}"

    def files(self, data_dir: str | Path | None) -> dict[str, TokenizerFile]:
        """The members of the archive."""
        if self.name not in CATALOG:
            names = ", ".join(sorted(name for name, entry in CATALOG.items() if entry.kind == "checkpoint"))
            raise ValueError(f"Published.name is {self.name!r}, expected one of {names}; correct it")
        entry = CATALOG[self.name]
        members = read(replace(entry, member=self.member or entry.member), data_dir=data_dir)
        return {Path(name).name: TokenizerFile(f"{self.name}: {name}", content) for name, content in members}


def _said(files: Mapping[str, TokenizerFile]) -> tuple[dict[str, str | int], bool | None]:
    """What the files beside a tokenizer's say: tokens or ids by role and of "unk"; whether lines begin with bos."""
    named: dict[str, str | int] = {}
    begins = None
    for name in _BESIDE:
        if name not in files:
            continue
        with _blaming(files[name], "a JSON object"):
            values: dict[str, Any] = dict(json.loads(files[name].content))
        for role in (*_TOKENS, "unk"):
            value = values.get(f"{role}_token", values.get(f"{role}_token_id"))
            value = value.get("content") if isinstance(value, dict) else value
            value = (
                next(iter(value), None) if isinstance(value, list) else value
            )  # several end a text: the first
            if isinstance(value, str | int):
                named.setdefault(role, value)
        if isinstance(values.get("add_bos_token"), bool):
            begins = values["add_bos_token"]
    return named, begins


def _known(named: Mapping[str, str | int], vocabulary: Mapping[str, int]) -> dict[str, str]:
    """The tokens by role, without those that the vocabulary doesn't have."""
    tokens = {i: token for token, i in vocabulary.items()}
    found = {role: tokens.get(value) if isinstance(value, int) else value for role, value in named.items()}
    if found.get("pad") in [found.get(role) for role in ("bos", "eos", "unk")]:
        found["pad"] = None
    return {role: token for role, token in found.items() if role in _TOKENS and token is not None}


def _puts(tokenizer: hf.Tokenizer, bos: int) -> bool:
    """Whether a tokenizer, which it changes, puts bos before a text."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        bare, whole = (tokenizer.encode("a", add_special_tokens=add).ids for add in (False, True))
    except Exception:  # it has no ids for "a"; the library has no class of its own
        return False
    return len(whole) > len(bare) and whole[0] == bos


def _read_json(file: TokenizerFile) -> hf.Tokenizer:
    """A `tokenizer.json` of the tokenizers library."""
    with _blaming(file, "a tokenizer.json of the tokenizers library"):
        return hf.Tokenizer.from_str(file.content.decode())


def _read_pair(vocabulary: TokenizerFile, merges: TokenizerFile) -> hf.Tokenizer:
    """GPT-2's pair: a JSON object of tokens and ids, and a line for each merge after one that names the version."""
    with _blaming(vocabulary, "a JSON object of tokens and their ids"):
        ids = {str(token): int(i) for token, i in json.loads(vocabulary.content).items()}
    with _blaming(merges, f"a merge of two tokens of {vocabulary.place} a line"):
        lines = [
            line for line in merges.content.decode().split("\n") if line and not line.startswith("#version")
        ]
        if not lines:
            raise ValueError("no merge")
        pairs = [(first, second) for first, second in (line.rstrip("\r").split(" ") for line in lines)]
        tokenizer = byte_level(models.BPE(vocab=ids, merges=pairs))
    tokenizer.add_special_tokens([token for token in ("<|endoftext|>",) if token in ids])
    return tokenizer


def _read_words(file: TokenizerFile) -> hf.Tokenizer:
    """BERT's list of words, a line each, whose number is its id (Devlin et al. 2019, section 3)."""
    with _blaming(file, "BERT's vocab.txt, a token a line"):
        words = [line.rstrip("\r") for line in file.content.decode().removesuffix("\n").split("\n")]
        if "[UNK]" not in words:
            raise ValueError("no [UNK]")
        special = [word for word in words if word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")]
        tokenizer = hf.Tokenizer(
            models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
        )
    cased = re.search("[A-Z]", "".join(word for word in words if word not in special)) is not None
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    return tokenizer


@contextmanager
def _blaming(file: TokenizerFile, expected: str) -> Generator[None]:
    """Whatever goes wrong is said in one line that names the file."""
    try:
        yield
    except Exception as error:  # the tokenizers library has no class of its own
        why = one_line(error) if file.content else "it is empty"
        raise ValueError(
            f"{file.place}: cannot be read ({why}), expected {expected}; replace the file"
        ) from error


FORMATS: dict[tuple[str, ...], Callable[..., hf.Tokenizer]] = {
    ("tokenizer.json",): _read_json,
    ("encoder.json", "vocab.bpe"): _read_pair,
    ("vocab.json", "merges.txt"): _read_pair,
    ("vocab.txt",): _read_words,
}
