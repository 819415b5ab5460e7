"""Curated corpora: exact shares and totals, held-out text left alone, and sentences that only change places."""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data.corpora import StandardLibrary
from research.data.curation import Deduplicated, Diversity, Repeated, ShuffledSentences, ShuffledTargets
from research.data.documents import Corpus, Document, Record, place, split
from research.data.duplicates import near
from research.data.layouts import Concatenate
from research.data.objectives import CausalLM
from research.data.pipeline import Data


@dataclass(frozen=True, kw_only=True)
class Given:
    """A corpus of what it is given."""

    items: tuple

    def documents(self, data_dir=None):
        return self.items


def made(count=40, seed=0, least=200, most=900):
    rng = np.random.default_rng(seed)
    items = []
    for i in range(count):
        text, length = "", int(rng.integers(least, most))
        while len(text) < length:
            words = [f"w{j}" for j in rng.zipf(1.3, size=int(rng.integers(3, 9))) % 500]
            text += " ".join(words).capitalize() + ". "
        items.append(Document(f"d{i:03}", text.strip()))
    return Given(items=tuple(items))


def records(count=60, size=50):
    return Given(items=tuple(Record.pair(f"r{i:03}", f"{i:03}" * (size // 3), "yes") for i in range(count)))


def parts(corpus):
    items = corpus.documents()
    return split(items, alike=near(items))


def size(items):
    return sum(len(item.text) for item in items)


def texts(items):
    return [(item.name, item.text) for item in items]


SPANS = [("test", 0.0, 0.1), ("validation", 0.1, 0.2), ("train", 0.2, 1.0)]
ALL = [
    lambda corpus: Repeated(corpus=corpus, share=0.3, repeats=5),
    lambda corpus: Diversity(corpus=corpus, documents_kept=10, characters=400, types=80),
    lambda corpus: ShuffledSentences(corpus=corpus),
    lambda corpus: ShuffledSentences(corpus=corpus, across=False),
    lambda corpus: Deduplicated(corpus=corpus, threshold=0.8),
]


@pytest.mark.parametrize("wrap", ALL)
def test_wrappers_are_corpora_with_unique_names_in_order_and_can_be_repeated(wrap):
    curated = wrap(made())
    assert isinstance(curated, Corpus)
    items = curated.documents()
    names = [item.name for item in items]
    assert names == sorted(set(names))
    assert all(item.text for item in items)
    assert items == curated.documents()


@pytest.mark.parametrize("wrap", ALL[:2])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_held_out_stays_as_it_was(wrap, seed):
    plain = made(seed=seed)
    copy = plain.items[0].text.replace(" w1 ", " w9 ", 1)  # near a text that may be in another split
    corpus = Given(items=(*plain.items, Document("e", copy)))
    before, after = parts(corpus), parts(wrap(corpus))
    said = [
        {name: [(item.name, item.text) for item in part] for name, part in each.items()}
        for each in (before, after)
    ]
    assert said[0]["test"] == said[1]["test"]
    assert said[0]["validation"] == said[1]["validation"]
    assert said[0]["train"] != said[1]["train"]


@pytest.mark.parametrize("wrap", ALL[2:4])
def test_shuffled_documents_stay_in_their_split(wrap):
    before, after = parts(made()), parts(wrap(made()))
    for name in before:
        assert [item.name for item in before[name]] == [item.name for item in after[name]]


def test_of_exact_duplicates_in_training_text_the_first_by_name_stays():
    plain = made().items
    copies = [Document(f"a{item.name}", item.text.replace(" ", "  ")) for item in plain]
    found = Given(items=(*copies, *plain))
    before, after = parts(found), parts(Deduplicated(corpus=found))
    assert len(before["train"]) == 2 * len(after["train"])
    assert all(item.name.startswith("a") for item in after["train"])
    assert len(before["test"]) == len(after["test"]) > 0


def test_near_duplicates_go_only_with_a_threshold():
    plain = made(least=600).items
    copies = [Document(f"{item.name}.twin", f"{item.text} w1 w2") for item in plain]
    found = Given(items=tuple(sorted((*copies, *plain), key=lambda item: item.name)))
    train = parts(found)["train"]
    assert texts(parts(Deduplicated(corpus=found))["train"]) == texts(train)
    left = Deduplicated(corpus=found, threshold=0.8)
    for name in ("test", "validation"):
        assert texts(parts(left)[name]) == texts(parts(found)[name]) != []
    assert [item.name for item in parts(left)["train"]] == [
        item.name for item in train if not item.name.endswith(".twin")
    ]
    assert Deduplicated(corpus=left, threshold=0.8).documents() == left.documents()


@settings(max_examples=25)
@given(st.floats(0.05, 1.0), st.integers(1, 20), st.integers(0, 9))
def test_the_share_of_repetitions_is_exact(share, repeats, seed):
    corpus = made(count=30)
    train = parts(Repeated(corpus=corpus, share=share, repeats=repeats, seed=seed))["train"]
    total = size(parts(corpus)["train"])
    copies = [item for item in train if "#" in item.name]
    once = [item for item in train if "#" not in item.name]
    assert size(once) == round((1 - share) * total)
    assert abs(size(train) - total) <= repeats / 2
    pool = Counter(item.name.rpartition("#")[0] for item in copies)
    assert set(pool.values()) == {repeats}
    for name in pool:
        of_name = [item for item in copies if item.name.rpartition("#")[0] == name]
        assert {item.name for item in of_name} == {f"{name}#{k}" for k in range(1, repeats + 1)}
        assert len({(item.text, item.group) for item in of_name}) == 1


def test_what_stands_once_is_the_same_for_every_number_of_repeats_and_pools_are_nested():
    few, many = (Repeated(corpus=made(), share=0.5, repeats=repeats).documents() for repeats in (2, 20))
    assert [item for item in few if "#" not in item.name] == [item for item in many if "#" not in item.name]
    pools = [{item.name: item.text for item in items if item.name.endswith("#1")} for items in (few, many)]
    assert pools[1]
    assert size(item for item in few if item.name.endswith("#1")) > sum(map(len, pools[1].values()))
    assert all(pools[0][name].startswith(text) for name, text in pools[1].items())


def test_once_and_repeated_text_do_not_overlap():
    train = parts(Repeated(corpus=made(), share=0.5, repeats=3))["train"]
    whole = {item.name: item.text for item in made().items}
    pieces = {}
    for item in train:
        if item.name.endswith("#1") or "#" not in item.name:
            pieces.setdefault(item.name.partition("#")[0], []).append(item.text)
    split_texts = [name for name, texts in pieces.items() if len(texts) == 2]
    assert len(split_texts) == 1  # one document is cut where the parts meet
    once, pool = pieces[split_texts[0]]
    assert whole[split_texts[0]].startswith(once + pool)


def test_records_are_repeated_whole():
    corpus = records()
    train = parts(Repeated(corpus=corpus, share=0.5, repeats=4))["train"]
    longest = max(len(item.text) for item in corpus.items)
    original = {item.turns for item in corpus.items}
    assert all(item.turns in original for item in train)
    copies = size(item for item in train if "#" in item.name)
    assert abs(copies - 0.5 * size(parts(corpus)["train"])) <= 4 * longest


def test_another_seed_takes_another_pool():
    one, other = (Repeated(corpus=made(), share=0.2, repeats=10, seed=seed).documents() for seed in (0, 1))
    assert {i.name for i in one if "#" in i.name} != {i.name for i in other if "#" in i.name}


@settings(max_examples=25)
@given(st.integers(1, 20), st.integers(100, 4000), st.integers(0, 9))
def test_characters_are_held_equal_for_any_number_of_documents(count, characters, seed):
    corpus = made()
    kept = Diversity(corpus=corpus, documents_kept=count, characters=characters, seed=seed)
    if characters > size(parts(Diversity(corpus=corpus, documents_kept=count, seed=seed))["train"]):
        with pytest.raises(ValueError, match="Diversity.characters"):
            kept.documents()
        return
    train = parts(kept)["train"]
    assert len(train) == count
    assert size(train) == characters
    whole = {item.name: item.text for item in corpus.items}
    assert all(whole[item.name].startswith(item.text) for item in train)
    cut = [len(item.text) for item in train if item.text != whole[item.name]]
    if cut:  # all to one length, and no whole one is longer
        assert max(cut) - min(cut) <= 1
        assert max(len(item.text) for item in train) == max(cut)


def test_fewer_documents_are_part_of_more():
    few, more = (set(parts(Diversity(corpus=made(), documents_kept=n))["train"]) for n in (5, 15))
    assert few < more


def test_cut_lengths_by_hand():
    # The longest of 2, 10, 30 and 30 characters are cut until 27 are left: 2, 8, 8 and 9.
    groups = {
        part: next(f"{i}" for i in range(99) if low <= place(f"{i}".encode()) < high)
        for part, low, high in SPANS
    }
    trained = [
        Document(name, name * length, groups["train"])
        for name, length in zip("abcd", (10, 2, 30, 30), strict=True)
    ]
    held = [Document(part, part, groups[part]) for part in ("validation", "test")]
    kept = Diversity(corpus=Given(items=(*trained, *held)), characters=27)
    lengths = {item.name: len(item.text) for item in kept.documents()}
    assert lengths == {"a": 8, "b": 2, "c": 8, "d": 9, "validation": 10, "test": 4}


def test_only_sentences_of_frequent_words_are_left():
    lines = ["The cat sat. ", "The dog sat. ", "A zebra ran! ", "The cat ran."]
    corpus = Given(items=tuple(Document(f"d{i}", "".join(lines)) for i in range(40)))
    kept = Diversity(corpus=corpus, types=4, near_duplicates=None)  # the, cat, ran, sat
    with pytest.raises(
        ValueError, match="split 'validation' is empty|split 'test' is empty|split 'train' is empty"
    ):
        kept.documents()  # equal texts stay together
    corpus = Given(items=tuple(Document(f"d{i}", "".join(lines), group=str(i)) for i in range(40)))
    kept = Diversity(corpus=corpus, types=4, near_duplicates=None)
    assert {item.text for item in split(kept.documents())["train"]} == {"The cat sat. The cat ran."}


@pytest.mark.parametrize("types", [20, 100, 10_000])
def test_types_are_at_most_so_many(types):
    train = parts(Diversity(corpus=made(), types=types))["train"]
    found = {word for item in train for word in re.findall(r"\w+", item.text.lower())}
    assert 0 < len(found) <= types


def test_all_types_leave_every_sentence():
    before, after = parts(made())["train"], parts(Diversity(corpus=made(), types=10**6))["train"]
    assert texts(before) == texts(after)


def test_a_record_is_one_sentence():
    rows = tuple(
        Record.pair(f"r{i:03}", f"common {i}" if i % 2 else "common word", "yes", str(i)) for i in range(60)
    )
    train = split(Diversity(corpus=Given(items=rows), types=3, near_duplicates=None).documents())["train"]
    assert {item.turns[0].text for item in train} == {"common word"}


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_shuffling_keeps_all_sentences_and_how_many_a_document_has(across, seed):
    def sentences(item):
        return [line.strip(".") for line in item.text.split(". ")]

    before = made(count=30)
    curated = ShuffledSentences(corpus=before, across=across, seed=seed)
    for part, items in parts(before).items():
        after = parts(curated)[part]
        assert [len(sentences(item)) for item in items] == [len(sentences(item)) for item in after]
        assert Counter(s for item in items for s in sentences(item)) == Counter(
            s for item in after for s in sentences(item)
        )
        own = [Counter(sentences(a)) == Counter(sentences(b)) for a, b in zip(items, after, strict=True)]
        assert all(own) != across
    assert texts(curated.documents()) != texts(before.documents())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda c: Deduplicated(corpus=c, threshold=0.0), "Deduplicated.threshold = 0.0"),
        (lambda c: Deduplicated(corpus=c, threshold=1.5), "Deduplicated.threshold = 1.5"),
        (lambda c: Repeated(corpus=c, share=0.0, repeats=2), "share = 0.0"),
        (lambda c: Repeated(corpus=c, share=1.1, repeats=2), "share = 1.1"),
        (lambda c: Repeated(corpus=c, share=0.5, repeats=0), "repeats = 0"),
        (lambda c: Repeated(corpus=c, share=0.1, repeats=10**9).documents(), "make a pool of 0"),
        (lambda c: Repeated(corpus=records(), share=0.1, repeats=50).documents(), "room for at least one"),
        (lambda c: Diversity(corpus=c, documents_kept=0), "Diversity.documents_kept = 0"),
        (lambda c: Diversity(corpus=c, characters=0), "Diversity.characters = 0"),
        (lambda c: Diversity(corpus=c, types=0), "Diversity.types = 0"),
        (
            lambda c: Diversity(corpus=c, documents_kept=999).documents(),
            "Diversity.documents_kept = 999: the corpus",
        ),
        (
            lambda c: Diversity(corpus=c, characters=10**9).documents(),
            "Diversity.characters = 1000000000: the corpus",
        ),
        (lambda c: Diversity(corpus=c, characters=3).documents(), "at least one for each of"),
        (lambda c: Diversity(corpus=records(), types=1).documents(), "Diversity.types = 1: the corpus has 0"),
        (lambda c: Diversity(corpus=records(), characters=50).documents(), "is a record"),
        (lambda c: ShuffledSentences(corpus=records()).documents(), "is a record"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(make, said):
    with pytest.raises(ValueError, match=said) as error:
        make(made())
    assert "\n" not in str(error.value)


def test_curation_for_another_split_than_datas_is_refused():
    corpus = Repeated(corpus=ShuffledSentences(corpus=StandardLibrary(), test=0.2), share=0.1, repeats=10)
    with pytest.raises(ValueError, match="ShuffledSentences: validation, test, near_duplicates = ") as caught:
        Data(corpus=corpus, objective=CausalLM(), layout=Concatenate())
    assert "\n" not in str(caught.value)


def test_curation_inside_other_curation_is_checked_too():
    corpus = Deduplicated(corpus=Diversity(corpus=StandardLibrary(), characters=1000, test=0.02))
    with pytest.raises(ValueError, match="Diversity: validation, test, near_duplicates = "):
        Data(corpus=corpus, objective=CausalLM(), layout=Concatenate())


@pytest.mark.parametrize("across", [True, False])
def test_shuffled_near_duplicates_stay_where_their_originals_are(across):
    base = made(30, seed=3, least=900, most=1500).items
    twins = [Document(f"{item.name}.twin", item.text.replace("w7 ", "w8 ", 1)) for item in base]
    corpus = Given(items=tuple(sorted((*base, *twins), key=lambda item: item.name)))

    def places(items):
        return {item.name: name for name, part in split(items, alike=near(items)).items() for item in part}

    shuffled = ShuffledSentences(corpus=corpus, across=across).documents()
    assert places(shuffled) == places(corpus.items)


def test_targets_are_permuted_in_training_alone():
    corpus = Given(
        items=tuple(Record.pair(f"r{i:03}", f"{i:03} {i * i}", ["yes", "no"][i % 3 == 0]) for i in range(300))
    )
    before, after = parts(corpus), parts(ShuffledTargets(corpus=corpus))
    for name in ("validation", "test"):
        assert texts(after[name]) == texts(before[name])
    assert [item.turns[0] for item in after["train"]] == [item.turns[0] for item in before["train"]]
    targets = [[item.turns[-1].text for item in split["train"]] for split in (before, after)]
    assert Counter(targets[0]) == Counter(targets[1])
    # Permuted, two targets of shares 1/3 and 2/3 are what they were in 5 of 9 records; 240 records spread by 0.03.
    same = np.mean([one == other for one, other in zip(*targets, strict=True)])
    assert 0.45 < same < 0.66
    assert texts(after["train"]) != texts(parts(ShuffledTargets(corpus=corpus, seed=1))["train"])
    with pytest.raises(ValueError, match="has documents, expected records"):
        ShuffledTargets(corpus=made()).documents()
