"""The tokenizer in a GGUF file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers as hf
from tokenizers import decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel, Digits

from research.data.pretrained import Pretrained, TokenizerFile
from research.interop.gguf_file import File
from research.interop.weights import WeightsError

_KEY = "tokenizer.ggml."
_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's types of tokens that a text is searched for

# How text is cut before pieces are merged, by what llama.cpp calls it. A converter that knows no better writes
# "default"; transformers cuts it as GPT-2 does.
_CUTS: dict[str, Callable[[], Any]] = {
    "gpt-2": lambda: ByteLevel(add_prefix_space=False),
    "default": lambda: ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre_tokenizers.Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    ),
}


@dataclass(frozen=True, kw_only=True)
class FromGGUF(Pretrained):
    """The byte-level BPE in a GGUF file (`tokenizer.ggml.model` "gpt2").

    Its bos, eos, pad and mask are those whose ids the metadata gives, and lines begin with bos where `add_bos_token` is
    true. The rest is as `Pretrained` says.

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
        begins = file.metadata.get(f"{_KEY}add_bos_token")
        return {"tokenizer.json": TokenizerFile(file.place, tokenizer.to_str().encode(), roles, begins)}


def _built(file: File) -> hf.Tokenizer:
    """The tokenizer."""
    kind = file.metadata.get(f"{_KEY}model")
    if kind != "gpt2":
        raise WeightsError(
            f"{file.place}: {_KEY}model is {kind!r}, expected 'gpt2' (byte-level BPE); give another tokenizer, such as "
            "FromFile of the model's tokenizer.json"
        )
    cut = file.metadata.get(f"{_KEY}pre", "default")
    if cut not in _CUTS:
        raise WeightsError(
            f"{file.place}: {_KEY}pre is {cut!r}, expected one of {', '.join(map(repr, _CUTS))}; give another "
            "tokenizer, such as FromFile of the model's tokenizer.json"
        )
    if file.metadata.get(f"{_KEY}add_space_prefix", False):
        raise WeightsError(
            f"{file.place}: {_KEY}add_space_prefix is True, expected False; give another tokenizer"
        )
    tokens, kinds, merges = (
        file.metadata.get(f"{_KEY}{name}", ()) for name in ("tokens", "token_type", "merges")
    )
    try:
        pairs = [(first, second) for first, second in (merge.split(" ") for merge in merges)]
        model = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs)
    except Exception as error:  # the tokenizers library has no class of its own
        raise WeightsError(
            f"{file.place}: its merges do not fit its tokens ({' '.join(str(error).split())[:200]}), expected two "
            "tokens for each; download it again"
        ) from error
    tokenizer = hf.Tokenizer(model)
    tokenizer.pre_tokenizer = _CUTS[cut]()
    tokenizer.decoder = decoders.ByteLevel()
    found = list(zip(tokens, kinds, strict=False))
    tokenizer.add_special_tokens([token for token, kind in found if kind == _CONTROL])
    tokenizer.add_tokens([token for token, kind in found if kind == _USER_DEFINED])
    return tokenizer
