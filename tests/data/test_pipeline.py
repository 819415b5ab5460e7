"""The window is the unit: the same ids in the same order for every arm, resumable anywhere."""

import dataclasses
import itertools
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from research.data import denoising, duplicates, layouts, objectives, pipeline
from research.data.documents import Document, Record
from research.data.mixing import Mixture, Part
from research.data.pipeline import Data
from research.data.streams import Stream
from research.data.windows import Chat, TokenWindow


@dataclasses.dataclass(frozen=True)
class Texts:
    """A hundred short documents whose bytes name the document and the place."""

    letters: str = "abcdefghijk"

    def documents(self, data_dir=None):
        return tuple(
            Document(f"{i:03}", "".join(f"{i:03}{j:02}{self.letters}" for j in range(4))) for i in range(100)
        )


@dataclasses.dataclass(frozen=True)
class Sums:
    """Records of many lengths, in groups of ten."""

    def documents(self, data_dir=None):
        return tuple(
            Record.pair(f"{i:04}", f"{i}+{i * i}=", str(i + i * i), group=str(i // 10)) for i in range(400)
        )


@dataclasses.dataclass(frozen=True)
class Letters:
    """A synthetic task: a letter and itself again."""

    length: int = 8

    def sample(self, rng, tokenizer):
        ids = rng.integers(4, 30, self.length).astype(np.int32)
        return TokenWindow.pair(ids, ids)


def load(objective=None, layout=None, corpus=None, **changes):
    return Data(
        corpus=corpus or Texts(),
        objective=objective or objectives.PrefixLM(),
        layout=layout or layouts.Concatenate(),
        **{"window": 16, "batch": 4, **changes},
    ).load()


def read(batch, data):
    """The text of each row, whatever its layout."""
    rows = []
    for row in range(len(batch.labels)):
        source = [] if batch.source is None else batch.source.ids[row].tolist()
        rows.append(data.tokenizer.decode(source + batch.labels[row].tolist()))
    return rows


def same(one, other):
    pairs = [(one.target, other.target), (one.source, other.source)]
    assert all((a is None) == (b is None) for a, b in pairs)
    return (one.weights == other.weights).all() and all(
        (a.ids == b.ids).all() and (a.slots.segment == b.slots.segment).all()
        for a, b in pairs
        if a is not None
    )


def take(batches, count):
    return list(itertools.islice(batches, count))


def test_arms_see_the_same_windows_step_by_step():
    arms = [
        load(objectives.PrefixLM(), layouts.Concatenate()),
        load(objectives.PrefixLM(), layouts.Split()),
        load(objectives.CausalLM(), layouts.Concatenate()),
        load(objectives.CausalLM(loss="targets"), layouts.Concatenate()),
    ]
    texts = [[read(batch, arm) for batch in take(arm.training(seed=3), 60)] for arm in arms]
    assert texts[0] == texts[1] == texts[2] == texts[3]
    orders = {arm.order(3, 60) for arm in [*arms, load(denoising.SpanCorruption(), layouts.Split())]}
    assert len(orders) == 1
    assert orders != {arms[0].order(4, 60)}


def test_the_order_is_the_order_of_what_was_drawn():
    data = load()
    draws = data.draws(5)
    assert draws.first(700).tolist() == [[draws[i].part, draws[i].window] for i in range(700)]


def test_an_epoch_holds_every_window_once():
    data = load(batch=1)
    count = len(data.windows[0]["train"])
    texts = [read(batch, data)[0] for batch in take(data.training(0), 2 * count)]
    assert sorted(texts[:count]) == sorted(texts[count:])
    assert len(set(texts[:count])) == count
    assert texts[:count] != texts[count:]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pack": 3},
        {"layout": layouts.Split(), "pack": 2},
        {"objective": objectives.CausalLM(), "layout": Stream()},
        {"objective": objectives.Seq2Seq(), "corpus": Sums(), "window": 24, "pack": 4},
    ],
    ids=["plain", "packed", "packed pairs", "stream", "packed records"],
)
def test_training_resumes_anywhere(changes):
    data = load(**{"objective": objectives.PrefixLM(least=0.2, most=0.8), **changes})
    batches = data.training(0)
    take(batches, 17)
    state = batches.get_state()
    expected = take(batches, 5)
    resumed = data.training(0)
    resumed.set_state(state)
    assert all(same(a, b) for a, b in zip(expected, take(resumed, 5), strict=True))


def test_an_example_does_not_depend_on_the_batch_it_is_in():
    changes = {"objective": objectives.PrefixLM(least=0.2, most=0.8)}
    few, many = load(batch=2, **changes), load(batch=12, **changes)
    rows = [row for batch in take(few.training(1), 12) for row in batch.target.ids.tolist()]
    assert rows == [row for batch in take(many.training(1), 2) for row in batch.target.ids.tolist()]


@pytest.mark.parametrize("layout", [layouts.Concatenate(), Stream()])
def test_hosts_share_a_batch(layout):
    data = load(objectives.CausalLM(), layout)
    whole = take(data.training(2), 7)
    parts = [take(data.training(2, host=host, hosts=2), 7) for host in range(2)]
    for batch, *halves in zip(whole, *parts, strict=True):
        assert (batch.target.ids == np.concatenate([half.target.ids for half in halves])).all()


@pytest.mark.parametrize("layout", [layouts.Concatenate(), Stream()])
def test_a_run_of_one_host_goes_on_where_two_were(layout):
    data = load(objectives.CausalLM(), layout)
    two = [data.training(2, host=host, hosts=2) for host in range(2)]
    for one in two:
        take(one, 3)
    resumed = data.training(2)
    resumed.set_state(two[0].get_state())
    whole = take(data.training(2), 5)
    assert (next(resumed).target.ids == whole[3].target.ids).all()
    two[1].set_state(resumed.get_state())
    assert (next(two[1]).target.ids == whole[4].target.ids[2:]).all()


def test_packing_hosts_never_take_the_same_example():
    data = load(objectives.CausalLM(), pack=3)
    count = len(data.windows[0]["train"])
    seen = [
        read(batch, data)[row][place : place + 16]
        for host in range(2)
        for batch in take(data.training(0, host=host, hosts=2), count // 12 // 2)
        for row in range(2)
        for place in (0, 16, 32)
    ]
    assert len(set(seen)) == len(seen)


def test_hosts_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match=r"Data\.batch = 4 rows for host 0 of 3"):
        load().training(0, hosts=3)


def test_packed_rows_hold_examples_with_their_own_prefix():
    batch = next(load(pack=3).training(0))
    slots = batch.target.slots
    assert batch.labels.shape == (4, 48)
    assert set(np.unique(slots.segment)) == {1, 2, 3}
    for row, segment in itertools.product(range(4), (1, 2, 3)):
        mine = slots.segment[row] == segment
        assert slots.position[row][mine].tolist() == list(range(16))
        assert slots.prefix[row][mine].tolist() == [True] * 9 + [False] * 7
        assert batch.weights[row][mine].tolist() == [0.0] * 8 + [1.0] * 8


def test_packed_pairs_have_the_same_segments_on_both_sides():
    data = load(objectives.PrefixLM(least=0.2, most=0.8), layouts.Split(), pack=2)
    batch = next(data.training(0))
    for row in range(4):
        sides = (batch.source.slots.segment[row], batch.target.slots.segment[row])
        assert set(sides[0]) - {0} == set(sides[1]) - {0}


def test_packing_records_loses_none_and_fills_the_rows():
    data = load(objectives.Seq2Seq(), corpus=Sums(), window=24, pack=8, batch=4)
    count = len(data.windows[0]["train"])
    batches = data.training(0)
    taken, filled = Counter(), []
    while batches.get_state()["next"] < count:
        batch = next(batches)
        segment = batch.target.slots.segment
        filled.append((segment > 0).mean())
        for row in range(4):
            for one in range(1, segment[row].max() + 1):
                taken[data.tokenizer.decode(batch.labels[row][segment[row] == one])] += 1
    assert np.mean(filled[:-1]) > 0.95
    waiting = len(batches.get_state()["waiting"])
    assert sum(taken.values()) + waiting == batches.get_state()["next"]
    assert len(taken) >= count - waiting - 4 * 8


def test_records_of_a_group_are_in_one_split():
    data = load(objectives.Seq2Seq(), corpus=Sums(), window=24)
    groups = {
        split: {int(data.tokenizer.decode(window.ids).split("+")[0]) // 10 for window in windows}
        for split, windows in data.windows[0].items()
    }
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["validation"]
    assert sum(len(windows) for windows in data.windows[0].values()) == 400


def test_records_that_are_too_long_are_left_out_and_counted():
    data = load(objectives.Seq2Seq(most_targets=4), corpus=Sums(), window=24)
    assert sum(windows.left_out for windows in data.windows[0].values()) == sum(
        len(str(i + i * i)) > 4 for i in range(400)
    )


def test_a_dialogue_is_scored_where_the_assistant_speaks():
    data = load(objectives.CausalLM(loss="targets"), corpus=Sums(), window=64, format=Chat())
    batch = next(data.training(0))
    for row in range(4):
        scored = data.tokenizer.decode(batch.labels[row][batch.weights[row] > 0])
        whole = data.tokenizer.decode(batch.labels[row])
        assert whole.endswith(f"<|end|>\n<|assistant|>\n{scored}")
        assert scored.endswith("<|end|>\n")
        assert scored.removesuffix("<|end|>\n").isdigit()


def test_no_document_is_in_two_splits():
    data = load()
    names = {
        split: {data.tokenizer.decode(window.ids)[:3] for window in windows}
        for split, windows in data.windows[0].items()
    }
    assert not names["train"] & names["test"]
    assert not names["train"] & names["validation"]
    assert not names["validation"] & names["test"]


@dataclasses.dataclass(frozen=True)
class Versions:
    """Thirty texts, each in three versions that differ in one word of a hundred."""

    def documents(self, data_dir=None):
        words = [[f"w{text}x{place}" for place in range(100)] for text in range(30)]
        return tuple(
            Document(f"{text:02}.{version}", " ".join([*words[text][:50], str(version), *words[text][50:]]))
            for text in range(30)
            for version in range(3)
        )


def test_near_duplicates_are_in_one_split():
    def texts(data, split):
        return {data.tokenizer.decode(window.ids).split("x")[0] for window in data.windows[0][split]}

    def straddling(data):
        return texts(data, "train") & (texts(data, "test") | texts(data, "validation"))

    corpus = dataclasses.replace(load(corpus=Versions()).data, window=500)
    assert not straddling(corpus.load())
    assert straddling(dataclasses.replace(corpus, near_duplicates=None).load())


def test_near_duplicates_are_sought_once_for_the_same_documents(monkeypatch):
    """Arms that differ in their objective or layout read the same ones, and to look takes longer than all the rest."""
    sought = []

    def near(items, threshold):
        sought.append((len(items), threshold))
        return duplicates.near(items, threshold=threshold)

    pipeline._alike.cache_clear()
    monkeypatch.setattr(pipeline, "duplicates", SimpleNamespace(near=near))
    load(objectives.CausalLM())
    load(objectives.PrefixLM(), layout=layouts.Split())
    assert sought == [(100, 0.8)]
    load(near_duplicates=0.9)
    load(corpus=Sums(), objective=objectives.Seq2Seq())
    assert sought == [(100, 0.8), (100, 0.9), (400, 0.8)]


def test_held_out_batches_are_the_same_whenever_called():
    data = load(objectives.CausalLM(), evaluation=objectives.PrefixLM(least=0.2, most=0.8), held_out=7)
    first, second = data.held_out("test"), data.held_out("test")
    assert sum((batch.target.slots.segment.sum(-1) > 0).sum() for batch in first) == 7
    for a, b in zip(first, second, strict=True):
        assert same(a, b)
        assert a.weights.shape == (4, 16)


def test_replay_is_exact_over_a_cycle_and_keeps_the_order_of_what_it_is_mixed_with():
    parts = (
        Part(corpus=Texts(), weight=0.75, name="new", loss_weight=2.0),
        Part(corpus=Texts("lmnopqrstuv"), weight=0.25, name="old", objective=objectives.CausalLM()),
    )
    mixed, alone = load(corpus=Mixture(parts=parts), batch=8), load(batch=6)
    for batch, pure in zip(take(mixed.training(0), 20), take(alone.training(0), 20), strict=True):
        texts = read(batch, mixed)
        old = np.array([bool(set("lmnopqrstuv") & set(text)) for text in texts])
        assert old.sum() == 2
        assert [text for text, replayed in zip(texts, old, strict=True) if not replayed] == read(pure, alone)
        assert (batch.weights.max(1) == np.where(old, 1, 2)).all()
    both = mixed.held_out("test")
    assert sum(batch.weights.sum() for batch in both) == sum(
        batch.weights.sum() for part in range(2) for batch in mixed.held_out("test", part)
    )


def test_a_synthetic_task_makes_its_windows_and_none_is_in_two_splits():
    data = load(objectives.Seq2Seq(), corpus=Letters(1), examples=40, held_out=20, validation=0.3, test=0.3)
    seen = {split: {int(window.ids[0]) for window in windows} for split, windows in data.windows[0].items()}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]
    assert len(data.windows[0]["train"]) == 40
    batch = next(data.training(0))
    assert (
        (batch.labels == batch.labels[:, :1]) | (batch.labels == data.tokenizer.eos) | (batch.labels == 0)
    ).all()


def test_what_is_alike_in_two_parts_of_a_mixture_is_in_one_split():
    @dataclasses.dataclass(frozen=True)
    class Version:
        number: int

        def documents(self, data_dir=None):
            return tuple(one for one in Versions().documents() if one.name.endswith(str(self.number)))

    parts = tuple(Part(corpus=Version(number), name=str(number)) for number in range(2))
    data = load(corpus=Mixture(parts=parts), window=500)
    first, second = (
        {split: {data.tokenizer.decode(one.ids).split("x")[0] for one in part[split]} for split in part}
        for part in data.windows
    )
    assert first == second
    assert all(first.values())


def test_a_synthetic_task_makes_only_what_the_objective_takes():
    @dataclasses.dataclass(frozen=True)
    class Ragged:
        def sample(self, rng, tokenizer):
            ids = rng.integers(4, 30, rng.integers(1, 8)).astype(np.int32)
            return TokenWindow.pair(ids, ids)

    data = load(objectives.Seq2Seq(most_inputs=3), corpus=Ragged(), examples=30)
    assert max(window.given for window in data.windows[0]["train"]) == 3


def test_every_record_is_looked_at_before_training():
    @dataclasses.dataclass(frozen=True)
    class Labelled:
        def documents(self, data_dir=None):
            return tuple(Record.pair(f"{i:02}", f"mail {i}", "odd" if i == 57 else "even") for i in range(90))

    with pytest.raises(ValueError, match="a record's target is 'odd'"):
        load(objectives.Classification(labels=("even", "other")), corpus=Labelled())


def test_too_few_sentinels_are_said_before_training():
    with pytest.raises(
        ValueError, match=r"SpanCorruption needs 64 sentinels for Data\.window = 128, but Bytes has 28"
    ):
        load(denoising.SpanCorruption(density=0.5, mean_span=1.0), corpus=Texts("a" * 100), window=128)


def test_all_parts_are_scored_on_what_data_says():
    parts = (
        Part(corpus=Texts(), name="a", objective=objectives.CausalLM()),
        Part(corpus=Texts("xyz"), name="b"),
    )
    data = Data(
        corpus=Mixture(parts=parts),
        objective=denoising.SpanCorruption(),
        evaluation=objectives.PrefixLM(),
        layout=layouts.Concatenate(),
    )
    assert [data.scored(part) for part in parts] == [objectives.PrefixLM()] * 2
    assert [data.trained(part) for part in parts] == [objectives.CausalLM(), denoising.SpanCorruption()]


def test_a_synthetic_window_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match=r"made a window of 40 tokens, but Data\.window = 16"):
        load(objectives.Seq2Seq(), corpus=Letters(20))


def test_a_stream_continues_row_by_row():
    data = load(objectives.CausalLM(), Stream())
    rows = data.stream("train", 0)
    batches = take(data.training(0), rows.steps)
    for row in range(4):
        ids, labels, segment, position = (
            np.concatenate([field(batch)[row] for batch in batches])
            for field in (
                lambda batch: batch.target.ids,
                lambda batch: batch.labels,
                lambda batch: batch.target.slots.segment,
                lambda batch: batch.target.slots.position,
            )
        )
        assert position.tolist() == list(range(len(ids)))
        assert (np.diff(segment) >= 0).all()
        inside = segment[1:] == segment[:-1]
        assert (labels[:-1][inside] == ids[1:][inside]).all()
        assert (labels[:-1][~inside] == data.tokenizer.eos).all()
        assert (ids[1:][~inside] == data.tokenizer.bos).all()
        whole = data.tokenizer.decode(ids[segment == segment[len(ids) // 2]])
        assert whole.startswith("<bos>")
        assert len(set(whole.removeprefix("<bos>")[0:64:16])) == 1
    again = take(data.training(0), rows.steps + 1)[-1]
    assert again.target.slots.position[0, 0] == rows.steps * 16
    assert again.target.slots.segment.min() > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"window": 1000}, r"change Data\.window"),
        ({"objective": objectives.PrefixLM(), "layout": Stream()}, r"Data\.layout = Stream\(\)"),
        (
            {"objective": objectives.CausalLM(), "layout": Stream(), "evaluation": objectives.PrefixLM()},
            "no evaluation",
        ),
        ({"objective": objectives.CausalLM(), "layout": layouts.Split()}, "Split needs inputs"),
        ({"objective": objectives.Seq2Seq()}, "Seq2Seq needs a record"),
        ({"batch": 0}, r"Data\.batch = 0"),
        ({"validation": 0.6, "test": 0.5}, "their sum"),
        (
            {"objective": denoising.BlankInfilling(), "evaluation": objectives.PrefixLM()},
            "cannot stand in one batch",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(changes, said):
    with pytest.raises(ValueError, match=said) as caught:
        load(**changes)
    assert "\n" not in str(caught.value)
