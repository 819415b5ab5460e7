"""Corpora of one's own files: what is sound is read exactly, and what is not is one line that says where."""

import bz2
import gzip
import json
import lzma
import re
import sys

import datasets
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from research.data.documents import Document, Record, Turn
from research.data.local import HuggingFace, JSONLines, Parquet, TextFiles

COMPRESS = {
    "": lambda raw: raw,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda raw: pyarrow.compress(raw, codec="zstd", asbytes=True),
}
DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Me."},
]
TURNS = (Turn("system", "Be brief."), Turn("user", "Who?"), Turn("assistant", "Me."))


def refused(corpus, expected, data_dir=None):
    """The one line that says why a corpus is not read."""
    with pytest.raises(ValueError, match=re.escape(expected)) as raised:
        corpus.documents(data_dir)
    message = str(raised.value)
    assert "\n" not in message
    return message


def json_file(folder, *rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet_file(folder, rows, name="rows.parquet", **options):
    path = folder / name
    parquet.write_table(
        rows if isinstance(rows, pyarrow.Table) else pyarrow.Table.from_pylist(rows), path, **options
    )
    return path


def json_corpus(folder, rows, **fields):
    return JSONLines(pattern=str(json_file(folder, *rows)), **fields)


def parquet_corpus(folder, rows, **fields):
    return Parquet(pattern=str(parquet_file(folder, rows)), **fields)


def saved_corpus(folder, rows, **fields):
    datasets.Dataset.from_list(rows).save_to_disk(folder / "saved")
    return HuggingFace(path=str(folder / "saved"), **fields)


TABLES = pytest.mark.parametrize("corpus", [json_corpus, parquet_corpus, saved_corpus])


@pytest.fixture(autouse=True, scope="module")
def _no_progress_bars():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.mark.parametrize("suffix", COMPRESS)
def test_text_is_read_through_its_compression(tmp_path, suffix):
    raw = "\ufeffnaïve\r\n".encode()
    (tmp_path / f"a.txt{suffix}").write_bytes(COMPRESS[suffix](raw))
    found = TextFiles(pattern=f"{tmp_path}/*").documents()
    assert found == (Document(f"a.txt{suffix}", "naïve\r\n"),)


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESS if suffix])
@pytest.mark.parametrize("damage", [lambda raw: raw[:-6], lambda raw: b"plain text, not compressed"])
@pytest.mark.parametrize("kind", [TextFiles, JSONLines])
def test_damaged_compression_is_named(tmp_path, suffix, damage, kind):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(damage(COMPRESS[suffix](b'{"text": "some"}\n' * 100)))
    message = refused(kind(pattern=str(path)), f"{path}: cannot be read (")
    assert f"expected a sound {suffix} file" in message


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("text")

    def denied(self, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", denied)
    refused(
        TextFiles(pattern=str(path)), f"{path}: cannot be read (Permission denied), expected a readable file"
    )


@pytest.mark.parametrize("kind", [JSONLines, Parquet])
def test_a_pattern_without_a_match_is_named(tmp_path, kind):
    setting = f"{kind.__name__}.pattern"
    message = refused(kind(pattern=f"{tmp_path}/*.x"), f"{setting} '{tmp_path}/*.x' matches no file")
    assert message.endswith(f"change {setting}")


ROWS = [
    {
        "text": "one",
        "q": "Q1",
        "a": "A1",
        "n": 7,
        "by": "ann",
        "chat": DIALOGUE,
        "deep": {"en": "one", "fr": "un"},
    },
    {
        "text": "two",
        "q": "Q2",
        "a": "A2",
        "n": 5,
        "by": "ann",
        "chat": DIALOGUE,
        "deep": {"en": "two", "fr": "deux"},
    },
]


@TABLES
def test_rows_become_documents(tmp_path, corpus):
    found = corpus(tmp_path, ROWS).documents()
    assert [(item.text, item.group) for item in found] == [("one", ""), ("two", "")]
    assert all(isinstance(item, Document) for item in found)
    named = corpus(tmp_path, ROWS, name="n", group="by").documents()
    assert named == (Document("5", "two", "ann"), Document("7", "one", "ann"))


@TABLES
def test_rows_become_records(tmp_path, corpus):
    pairs = corpus(tmp_path, ROWS, inputs="q", target="a", name="text", group="by").documents()
    assert pairs == (Record.pair("one", "Q1", "A1", "ann"), Record.pair("two", "Q2", "A2", "ann"))
    nested = corpus(tmp_path, ROWS, inputs="deep.en", target="deep.fr", name="n").documents()
    assert nested == (Record.pair("5", "two", "deux"), Record.pair("7", "one", "un"))
    numbers = corpus(tmp_path, ROWS, inputs="q", target="n", name="text").documents()
    assert [item.turns[1].text for item in numbers] == ["7", "5"]
    dialogues = corpus(tmp_path, ROWS, messages="chat", name="text").documents()
    assert dialogues == (Record("one", TURNS), Record("two", TURNS))


def test_default_names_are_files_and_places(tmp_path):
    (tmp_path / "deep").mkdir()
    json_file(tmp_path, {"text": "b"}, {"text": "c"}, name="z.jsonl")
    (tmp_path / "deep" / "a.jsonl").write_text('\n{"text": "a"}\n \n')
    found = JSONLines(pattern=f"{tmp_path}/**/*.jsonl").documents()
    assert [(item.name, item.text) for item in found] == [
        ("deep/a.jsonl:000000002", "a"),
        ("z.jsonl:000000001", "b"),
        ("z.jsonl:000000002", "c"),
    ]
    assert parquet_corpus(tmp_path, ROWS).documents()[1].name == "rows.parquet:000000001"
    assert saved_corpus(tmp_path, ROWS).documents()[1].name == "train:000000001"


@settings(max_examples=25)
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip), min_size=1, max_size=8
    ),
    suffix=st.sampled_from(sorted(COMPRESS)),
    ascii=st.booleans(),
)
def test_any_text_survives_json_and_parquet(tmp_path_factory, texts, suffix, ascii):
    folder = tmp_path_factory.mktemp("any")
    raw = "".join(json.dumps({"text": text}, ensure_ascii=ascii) + "\n" for text in texts).encode()
    (folder / f"a.jsonl{suffix}").write_bytes(COMPRESS[suffix](raw))
    table = pyarrow.table({"text": texts})
    parquet_file(folder, table, row_group_size=2)
    for corpus in (JSONLines(pattern=f"{folder}/*.jsonl*"), Parquet(pattern=f"{folder}/*.parquet")):
        assert [item.text for item in corpus.documents()] == texts


@TABLES
@pytest.mark.parametrize(
    ("rows", "fields", "expected"),
    [
        ([{"text": 3}], {}, "field 'text' is int 3, expected a string"),
        ([{"text": ["a"]}], {}, "field 'text' is list ['a'], expected a string"),
        (
            [{"text": " "}],
            {},
            "field 'text' is blank, expected text; repair it or set {kind}.skip_blank = True",
        ),
        ([{"a": "x", "b": "y"}], {}, "no field 'text' (there are 'a', 'b'); change {kind}.text or the file"),
        (
            [{"a": {"b": "x"}}],
            {"text": "a.c"},
            "no field 'a.c' (there are 'b'); change {kind}.text or the file",
        ),
        ([{"a": "x"}], {"text": "a.c"}, "no field 'a.c' (str 'x' is no object)"),
        (
            [{"q": "x", "a": True}],
            {"inputs": "q", "target": "a"},
            "field 'a' is bool True, expected a string",
        ),
        ([{"q": 1, "a": "x"}], {"inputs": "q", "target": "a"}, "field 'q' is int 1, expected a string"),
        (
            [{"text": "x", "g": 1.5}],
            {"group": "g"},
            "field 'g' is float 1.5, expected a string or an integer",
        ),
        ([{"text": "x", "g": ""}], {"name": "g"}, "field 'g' is str '', expected a string or an integer"),
        ([{"m": "hello"}], {"messages": "m"}, "field 'm' is str 'hello', expected a list of messages"),
        (
            [{"m": ["hello"]}],
            {"messages": "m"},
            "message 0 of field 'm' is str 'hello', expected an object with",
        ),
        (
            [{"m": [{"role": "bot", "content": "x"}]}],
            {"messages": "m"},
            "of system, user, assistant and a string as",
        ),
        (
            [{"m": [{"role": "user"}]}],
            {"messages": "m"},
            "message 0 of field 'm' is dict {'role': 'user'}, expected",
        ),
        (
            [{"m": DIALOGUE[:2]}],
            {"messages": "m"},
            "the assistant says nothing in field 'm', expected a text to learn",
        ),
    ],
)
def test_a_wrong_row_is_named(tmp_path, corpus, rows, fields, expected):
    described = corpus(tmp_path, rows, **fields)
    message = refused(described, expected.replace("{kind}", type(described).__name__))
    assert str(tmp_path) in message


def test_a_wrong_row_is_named_by_its_place(tmp_path):
    rows = [{"text": "x"}, {"text": None}]
    assert f"{tmp_path}/rows.jsonl line 2: field" in refused(json_corpus(tmp_path, rows), "is blank")
    assert f"{tmp_path}/rows.parquet row 1: field" in refused(parquet_corpus(tmp_path, rows), "is blank")
    assert f"HuggingFace.path '{tmp_path}/saved' row 1: field" in refused(
        saved_corpus(tmp_path, rows), "is blank"
    )


@TABLES
def test_blank_rows_are_left_out_on_demand(tmp_path, corpus):
    rows = [
        {"text": "x", "a": ""},
        {"text": None, "a": "y"},
        {"text": " \n", "a": "z"},
        {"text": "w", "a": "v"},
    ]
    assert [item.text for item in corpus(tmp_path, rows, skip_blank=True).documents()] == ["x", "w"]
    pairs = corpus(tmp_path, rows, inputs="text", target="a", skip_blank=True).documents()
    assert [item.turns for item in pairs] == [(Turn("user", "w"), Turn("assistant", "v"))]
    chats = [{"m": DIALOGUE[:2]}, {"m": DIALOGUE}]
    assert [item.turns for item in corpus(tmp_path, chats, messages="m", skip_blank=True).documents()] == [
        TURNS
    ]
    refused(corpus(tmp_path, rows[1:3], skip_blank=True), "every row is blank, expected some text")


@TABLES
def test_names_that_repeat_are_named(tmp_path, corpus):
    described = corpus(tmp_path, [{"text": "x"}, {"text": "y"}, {"text": "x"}], name="text")
    kind = type(described).__name__
    message = refused(described, f"expected names that differ; change {kind}.name")
    assert "its name 'x' is also that of" in message


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"inputs": "q"},
            "JSONLines.inputs = 'q', JSONLines.target = None: expected fields for both, or None",
        ),
        (
            {"target": "a"},
            "JSONLines.inputs = None, JSONLines.target = 'a': expected fields for both, or None",
        ),
        (
            {"messages": "m", "inputs": "q", "target": "a"},
            "JSONLines.messages = 'm', JSONLines.inputs = 'q': expected",
        ),
        ({"most_line_bytes": 0}, "JSONLines.most_line_bytes = 0: expected at least 1"),
    ],
)
def test_fields_that_contradict_are_refused(fields, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        JSONLines(pattern="*", **fields)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", ": there is no row in it, expected at least one; remove it or narrow JSONLines.pattern"),
        (b" \n\n", ": there is no row in it"),
        (b'{"text": "a"}\n{"text": \n', " line 2: not JSON (Expecting value at column "),
        (b'{"text": "a"}\n{"text": "b"} x\n', " line 2: not JSON (Extra data at column 15)"),
        (b'{"text": "a"}\n{"text": "b', " line 2: not JSON (Unterminated string starting at at column 10)"),
        (b"[" * 100_000 + b"\n", " line 1: not JSON ("),
        (b'{"text": ' + b"1" * 5000 + b"}\n", " line 1: not JSON ("),
        (b'{"text": "a"}\n["b"]\n', " line 2: no field 'text' (list ['b'] is no object)"),
        (b'{"text": "a"}\n{"text": "\xe9"}\n', " line 2: byte 0xe9 at offset 24 is not UTF-8"),
        (b'{"text": "a"}\n\0\0\n', " line 2: a zero byte at offset 14, expected text, not binary data"),
        (
            b'{"text": "a"}\n{"text": "b\\ud800"}\n',
            r" line 2: field 'text': half a character ('\ud800') at",
        ),
        (
            b'{"text": "' + b"a" * 90 + b'"}\n',
            " line 1: longer than 100 bytes, expected one JSON object a line",
        ),
        (b'{"text": "a"}\n' + b" " * 101, " line 2: longer than 100 bytes"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_json_lines_are_named(tmp_path, raw, expected, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](raw))
    most = 100 if "longer" in expected else 1 << 20
    refused(JSONLines(pattern=str(path), most_line_bytes=most), f"{path}{expected}")


def test_the_longest_line_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes("\ufeff".encode() + b'{"text": "a"}\n')
    assert JSONLines(pattern=f"{tmp_path}/*", most_line_bytes=17).documents()[0].text == "a"
    refused(JSONLines(pattern=f"{tmp_path}/*", most_line_bytes=16), "line 1: longer than 16 bytes")


def test_parquet_streams_all_row_groups_of_compact_types(tmp_path):
    texts = [f"text {i}" for i in range(100)]
    table = pyarrow.table(
        {
            "text": pyarrow.array(texts).dictionary_encode(),
            "unread": [b"\xff"] * 100,
            "group": ["a", "b"] * 50,
        }
    )
    path = parquet_file(tmp_path, table, row_group_size=7, compression="zstd")
    found = Parquet(pattern=str(path), group="group").documents()
    assert [item.text for item in found] == texts
    assert [item.group for item in found] == ["a", "b"] * 50


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda raw: b"", " row 0: cannot be read (Parquet file size is 0 bytes), expected sound data"),
        (
            lambda raw: b"not a Parquet file, but text",
            " row 0: cannot be read (Parquet magic bytes not found",
        ),
        (lambda raw: raw[:-9], " row 0: cannot be read ("),
        (
            lambda raw: raw[:4] + b"\xff" * 40 + raw[44:],
            " row 0: cannot be read (Couldn't deserialize thrift",
        ),
    ],
)
def test_damaged_parquet_is_named(tmp_path, damage, expected):
    path = parquet_file(tmp_path, [{"text": f"text {i}"} for i in range(1000)])
    path.write_bytes(damage(path.read_bytes()))
    message = refused(Parquet(pattern=str(path)), f"{path}{expected}")
    assert message.endswith("write it anew or narrow Parquet.pattern")


def test_a_parquet_cell_that_is_not_utf8_is_named(tmp_path):
    raw = pyarrow.array([b"ok", b"caf\xe9", b"ok"])
    path = parquet_file(
        tmp_path, pyarrow.table({"text": pyarrow.Array.from_buffers(pyarrow.string(), 3, raw.buffers())})
    )
    assert str(path) in refused(Parquet(pattern=str(path)), f"{path} row 1: cannot be read (")


def test_parquet_without_rows_is_named(tmp_path):
    path = parquet_file(tmp_path, pyarrow.table({"text": pyarrow.array([], pyarrow.string())}))
    refused(Parquet(pattern=str(path)), f"{path}: there is no row in it, expected at least one")


def test_a_folder_of_data_files(tmp_path):
    folder, cache = tmp_path / "data", tmp_path / "cache"
    folder.mkdir()
    json_file(folder, {"text": "b"}, {"text": "a"}, name="train.jsonl")
    assert [item.text for item in HuggingFace(path=str(folder)).documents(cache)] == ["b", "a"]
    assert (cache / "huggingface").is_dir()
    place = f"HuggingFace.path '{folder}', split"
    refused(HuggingFace(path=str(folder), split="test"), f"{place} 'test': ValueError (Unknown split", cache)
    refused(
        HuggingFace(path=str(folder), subset="x"),
        f"{place} 'train': ValueError (BuilderConfig 'x' not",
        cache,
    )


def test_saved_splits_and_names_of_classes(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    parts = {
        name: datasets.Dataset.from_dict({"text": [name], "label": [label]}, features)
        for name, label in {"train": 1, "test": 0, "hidden": -1}.items()
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")

    def corpus(split):
        return HuggingFace(path=str(tmp_path / "saved"), split=split, inputs="text", target="label")

    for split, label in {"train": "good", "test": "bad"}.items():
        assert corpus(split).documents() == (Record.pair(f"{split}:000000000", split, label),)
    refused(corpus("hidden"), "row 0: field 'label' is blank, expected text")
    refused(
        corpus("dev"),
        "split 'dev': ValueError (there is no such split, expected one of train, test, hidden)",
    )


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "doesn't contain any data files)"),
        ({"train.jsonl": '{"text": "a"}\n{"text":\n'}, "JSON parse error"),
        ({"data.py": "raise SystemExit('this must not run')"}, "Dataset scripts are no longer supported"),
        ({"state.json": "{}"}, "FileNotFoundError ("),
    ],
)
def test_folders_the_library_refuses_are_one_line(tmp_path, files, expected):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    message = refused(HuggingFace(path=str(folder)), expected, tmp_path / "cache")
    assert message.startswith(f"HuggingFace.path '{folder}', split 'train': ")
    assert message.endswith("change HuggingFace.path, split or subset")


def test_saved_data_that_is_damaged_or_empty(tmp_path):
    corpus = saved_corpus(tmp_path, [{"text": "a"}])
    place = f"HuggingFace.path '{tmp_path}/saved', split 'train': "
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:40])
    assert refused(corpus, place).startswith(place)
    assert refused(saved_corpus(tmp_path, []), place).startswith(place)


def test_a_missing_folder_and_an_absent_library(tmp_path, monkeypatch):
    missing = HuggingFace(path=f"{tmp_path}/nowhere")
    refused(missing, f"HuggingFace.path '{tmp_path}/nowhere': there is no such folder, expected one")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(missing, "needs the package `datasets`, expected it installed; run `pip install datasets`")


def test_the_hub_without_a_network(tmp_path, monkeypatch):
    asked = {}

    def load_dataset(*args, **kwargs):
        asked.update(kwargs, args=args)
        raise ConnectionError("Couldn't reach the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = refused(
        HuggingFace(path="some/corpus", subset="small"),
        "ConnectionError (Couldn't reach the Hub); ",
        tmp_path,
    )
    assert message.endswith("load it where there is a network, `save_to_disk` it and name that folder")
    cache = str(tmp_path / "huggingface")
    assert asked == {"args": ("some/corpus", "small"), "split": "train", "cache_dir": cache}
