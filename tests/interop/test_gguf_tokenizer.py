"""Tokenizers in GGUF files: the ids that the metadata mean, by references that are written here."""

import json
import re
import shutil

import numpy as np
import pytest
import tokenizers as hf
from gguf_files import TABLE, TEXTS, sentencepiece, write
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from research.data.subwords import BPE
from research.data.tokenizers import Tokenizer, TokenizerSource
from research.interop.gguf import open_file
from research.interop.gguf_tokenizer import FromGGUF, PublishedGGUF
from research.interop.weights import WeightsError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Byte-level pieces; their ids are 4 above those of a file."""
    texts = ["the cat sat on the mat 1999 12  34, the cats\n"] * 3
    return BPE(size=300).ready(texts, tmp_path_factory.mktemp("data"))


def described(trained, **changes):
    """The metadata of a tokenizer: three control tokens, the pieces, one token of the user's."""
    model = json.loads(trained.model)["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    tokens = ["<|end|>", "<|user|>", "<|assistant|>", *pieces, "cat sat"]
    values = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": [3, 3, 3, *[1] * len(pieces), 4],
        "merges": [" ".join(pair) for pair in model["merges"]],
        "bos_token_id": 1,
        "eos_token_id": 0,
        "padding_token_id": 0,
        "add_bos_token": False,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (values | changes).items()}


@pytest.fixture
def tokenized(tmp_path, trained):
    """Writes a file with a tokenizer and gives it."""

    def made(known=trained, **changes):
        path = write(tmp_path / "a.gguf", TABLE, described(known, **changes))
        checkpoint = open_file(path)
        assert checkpoint.tokenizer == FromGGUF(path=str(path))
        assert isinstance(checkpoint.tokenizer, TokenizerSource)
        return checkpoint.tokenizer

    return made


def test_tokenizer(tokenized, trained):
    ready = tokenized().ready(())
    assert isinstance(ready, Tokenizer)
    last = 3 + len(json.loads(trained.model)["model"]["vocab"])
    assert (ready.bos, ready.eos) == (1, 0)
    assert (ready.pad, ready.mask, ready.vocab_size) == (last + 1, last + 2, last + 3)  # padding is no end
    for text in ("the cats, naïve 😀\n\n", "  on   the mat", "<|end|> the"):
        ids = ready.encode(text)
        assert ids.tolist() == (trained.encode(text) - 1).tolist()
        assert ready.decode(ids) == text
        assert ready.byte_count(ids) == len(text.encode())
    assert ready.encode("a cat sat").tolist()[-1] == last
    assert ready.decode([1, last, 2, 0]) == "<bos>cat sat<|assistant|><eos>"


def test_where_digits_are_cut(tokenized, trained):
    text = "12  1999"
    plain = (trained.encode(text) - 1).tolist()
    assert tokenized(pre="gpt-2").ready(()).encode(text).tolist() == plain
    assert tokenized(pre="default").ready(()).encode(text).tolist() == plain
    alone = [
        piece
        for part in ("1", "2", "  ", "1", "9", "9", "9")
        for piece in (trained.encode(part) - 1).tolist()
    ]
    assert tokenized(pre="smollm").ready(()).encode(text).tolist() == alone != plain


def test_a_padding_of_its_own(tokenized):
    assert tokenized(padding_token_id=2).ready(()).pad == 2


@pytest.mark.parametrize(
    ("said", "begins"),
    [
        ({"add_bos_token": None}, False),
        ({"add_bos_token": False}, False),
        ({"add_bos_token": True}, True),
        ({"add_bos_token": None, "pre": "llama-bpe"}, True),
        ({"add_bos_token": None, "pre": "qwen2"}, False),
        ({"add_bos_token": False, "pre": "llama-bpe"}, False),
    ],
)
def test_the_file_says_whether_lines_begin_with_bos(tokenized, said, begins):
    assert tokenized(**said).ready(()).begins == begins


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "t5"}, "tokenizer.ggml.model is 't5', expected 'gpt2' (byte-level BPE) or 'llama'"),
        ({"pre": "tekken"}, "tokenizer.ggml.pre is 'tekken', expected one of 'gpt-2', 'default', 'smollm'"),
        ({"add_space_prefix": True}, "add_space_prefix is True, expected False"),
        ({"merges": ["t h e"]}, "its merges do not fit its tokens"),
        ({"merges": ["zz yy"]}, "its merges do not fit its tokens"),
    ],
)
def test_other_tokenizers_are_refused(tokenized, changes, said):
    source = tokenized(**changes)  # the model is read without it
    with pytest.raises(WeightsError) as raised:
        source.ready(())
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_went_away(tokenized, tmp_path):
    source = tokenized()
    shutil.move(tmp_path / "a.gguf", tmp_path / "b.gguf")
    with pytest.raises(WeightsError, match=r"a\.gguf: cannot be read"):
        source.ready(())


# Llama 3's and Qwen2's cuts.

PUBLISHED = (  # the pattern of Llama 3's tokenizer.json; that of Qwen2 takes digits one by one
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
PARTS = (
    "I",
    "'M",
    " sure",
    ",",
    " we",
    "'ll",
    " see",
    " ",
    " ",
    "123",
    "45",
    "!!\n\n",
    " ",
    " x",
    "\t",
    " y",
    " ",
)
PARTS += ("2", "nd", "\r\n\r\n", " é日本", " ", "½", " ")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Byte-level pieces among which are words that Llama 3 cuts."""
    return BPE(size=400).ready(
        ["12345 12345 I'M I'M !!\n\n we'll we'll see"] * 9, tmp_path_factory.mktemp("data")
    )


@pytest.mark.parametrize("pre", ["llama-bpe", "llama3", "llama-v3", "falcon3", "qwen2"])
def test_words_as_llama_3_and_qwen2_cut_them(tokenized, whole, pre):
    text, pattern = "".join(PARTS), PUBLISHED
    parts = PARTS
    if pre == "qwen2":
        pattern = pattern.replace("{1,3}", "")
        parts = [one for part in PARTS for one in (part if part.isdigit() else [part])]
    ready = tokenized(whole, pre=pre).ready(())
    cut = hf.Tokenizer.from_str(ready.model).pre_tokenizer.pre_tokenize_str(text)
    assert [text[first:last] for _, (first, last) in cut] == list(parts)
    independent = hf.Tokenizer.from_str(whole.model)
    split = pre_tokenizers.Split(hf.Regex(pattern), behavior="isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    independent.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    for line in (text, "i'Ve 1234567 8", "\n\n\n  \n a", "12345!!\n\nI'M", "x\u00a0\u2003y  "):
        ids = ready.encode(line)
        assert ids.tolist() == [3 + i for i in independent.encode(line).ids]
        assert ready.decode(ids) == line
    assert len(tokenized(whole, pre="gpt-2").ready(()).encode("12345")) == 1 < len(ready.encode("12345"))


def test_llama_3_takes_a_word_that_is_a_token_whole(tokenized, trained):
    known = described(trained)
    tokens = [*known["tokenizer.ggml.tokens"], "Ġzebra"]
    changes = {"tokens": tokens, "token_type": [*known["tokenizer.ggml.token_type"], 1]}
    found = {
        pre: tokenized(**changes, pre=pre).ready(()).encode(" zebra").tolist()
        for pre in ("llama-bpe", "qwen2")
    }
    assert found["llama-bpe"] == [len(tokens) - 1]
    assert len(found["qwen2"]) == 6


# SentencePiece's.

SPELLED = ["<s>", "</s> <unk>", "<0x41>", "<0xE6>"]  # names of tokens that a text spells
LINES = (
    *TEXTS,
    *SPELLED,
    "",
    " ",
    "  two blanks  ",
    "the   cats\n\n\n    mats\t\t",
    "naïve 😀👩‍👧 日本語 ½\u00a0é e\u0301",
    "a aa aaa aaaa aaaaaaa",
    "\n",
)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A file's tokenizer, and its metadata."""
    metadata = sentencepiece()
    path = write(tmp_path_factory.mktemp("pieces") / "a.gguf", TABLE, metadata)
    return open_file(path).tokenizer.ready(()), metadata


def merged(text, metadata, before="▁"):
    """The ids by SentencePiece's rule: of all neighbours that are a token together those with the highest score become
    it, the first of them first; what is left and is no token becomes its bytes.
    """
    tokens, scores, kinds = (
        metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type")
    )
    ids = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind == 1}
    found = []
    for part in re.split(r"(<\|user\|>)", text):
        if part == "<|user|>":
            found.append(tokens.index(part))
            continue
        symbols = list((before + part).replace(" ", "▁") if part else "")
        while joined := [
            (-scores[ids[one + other]], place)
            for place, (one, other) in enumerate(zip(symbols, symbols[1:], strict=False))
            if one + other in ids
        ]:
            _, place = min(joined)
            symbols[place : place + 2] = ["".join(symbols[place : place + 2])]
        for symbol in symbols:
            found += [ids[symbol]] if symbol in ids else [3 + byte for byte in symbol.encode()]
    return found


def test_the_pieces_are_worth_comparing(pieces):
    """Some are made in several ways, some of blanks, and some characters have none."""
    ready, metadata = pieces
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = json.loads(ready.model)["model"]["merges"]
    assert len(merges) > len({"".join(pair) for pair in merges}) > 100
    assert {"▁the", "▁▁▁▁", "▁aaa", "本の猫"} <= set(tokens)
    assert not {"😀", "\n", "½"} & set(tokens)


@pytest.mark.parametrize("text", LINES)
def test_sentencepiece(pieces, text):
    ready, metadata = pieces
    ids = ready.encode(text)
    assert ids.tolist() == merged(text, metadata)
    assert ready.decode(ids) == text
    assert ready.byte_count(ids) == len(text.encode()) + bool(text)  # a blank is put before it
    assert np.isin(ids, ready.text_ids).all()


@given(
    text=st.lists(
        st.sampled_from(["the", "cat", "mat", " ", "  ", "\n", "a", "t", "é", "😀", "<|user|>", "日"])
    ).map("".join)
)
@example(text="<|user|> the cat<|user|>\nmat")
@settings(max_examples=60)
def test_sentencepiece_of_any_text(pieces, text):
    ready, metadata = pieces
    assert ready.encode(text).tolist() == merged(text, metadata)


def test_sentencepiece_specials(pieces):
    ready, metadata = pieces
    size = len(metadata["tokenizer.ggml.tokens"])
    assert (ready.bos, ready.eos, ready.begins) == (1, 2, True)
    assert (ready.pad, ready.mask, ready.vocab_size) == (size, size + 1, size + 2)
    assert ready.byte_count([0, 1, 2]) == 0
    line = [1, *ready.encode("the cat"), size - 1, *ready.encode(" mat"), 0, 2]
    assert ready.decode(line) == "<bos>the cat<|user|>  mat<unk><eos>"


def test_a_text_that_spells_a_control_token_stays_text(tmp_path):
    """Also where its pieces would come together as one."""
    metadata = sentencepiece()
    for key, more in (
        ("tokens", ["<", ">", "▁<", "▁<s", "<s"]),
        ("scores", [-900.0] * 5),
        ("token_type", [1] * 5),
    ):
        metadata[f"tokenizer.ggml.{key}"] += more
    ready = FromGGUF(path=str(write(tmp_path / "a.gguf", TABLE, metadata))).ready(())
    for text in ("<s>", "a<s>"):
        ids = ready.encode(text)
        assert ids.tolist() == merged(text, metadata)
        assert ready.bos not in ids
        assert ready.decode(ids) == text


def test_sentencepiece_goes_on_from_a_text(pieces):
    """Piece by piece, as text is shown while it is written: blanks stay, and bytes that are no whole character yet come
    as one mark behind what is whole.
    """
    ready, _ = pieces
    ids = ready.encode("the cat 😀😀 sat")
    whole = ready.decode(ids[1:], continues=True)
    assert ready.decode(ids[:1]) + whole == "the cat 😀😀 sat"
    assert ready.decode(ids[1:]) == whole.removeprefix(" ")
    for size in range(len(ids) - 1):
        said = ready.decode(ids[1 : 1 + size], continues=True)
        assert whole.startswith(said.rstrip("\ufffd"))
        assert said.count("\ufffd") <= 1


@pytest.mark.parametrize("said", [False, True])
def test_whether_a_blank_is_put_before_a_text(tmp_path, said):
    metadata = sentencepiece()
    metadata |= {"tokenizer.ggml.add_space_prefix": said, "tokenizer.ggml.add_bos_token": said}
    ready = FromGGUF(path=str(write(tmp_path / "a.gguf", TABLE, metadata))).ready(())
    assert ready.begins == said
    for text in ("the cat", " the cat", "  the"):
        ids = ready.encode(text)
        assert ids.tolist() == merged(text, metadata, before="▁" if said else "")
        assert ready.decode(ids) == text
        assert ready.byte_count(ids) == len(text.encode()) + said


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"scores": [0.0]}, "scores has 1 values, expected one for each of 480 tokens"),
        ({"scores": None}, "scores has 0 values, expected one for each of 480 tokens"),
        ({"token_type": [1, 1]}, "token_type has 2 values, expected one for each of 480 tokens"),
        ({"unknown_token_id": 480}, "unknown_token_id is 480, expected one of 480 tokens"),
    ],
)
def test_sentencepiece_that_lacks_something_is_refused(tmp_path, changes, wrong):
    metadata = sentencepiece() | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(WeightsError) as raised:
        FromGGUF(path=str(write(tmp_path / "a.gguf", TABLE, metadata))).ready(())
    assert wrong in str(raised.value)
    assert "\n" not in str(raised.value)


def test_only_gguf_files_of_the_catalog_have_a_tokenizer_in_them():
    with pytest.raises(ValueError, match=r"PublishedGGUF.name is 'minilm', expected one of smollm2") as error:
        PublishedGGUF(name="minilm").ready((), None)
    assert "\n" not in str(error.value)
