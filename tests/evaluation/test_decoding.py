"""Ways to write, and what a reference model says of what they write."""

import dataclasses

import numpy as np
import pytest
from test_repetition_of_models import FAMILIES, trained

from research.evaluation.continuing import Line, continued
from research.evaluation.decoding import Decoding, Way
from research.evaluation.repetition import self_bleu
from research.evaluation.samples import Repetition
from research.evaluation.trained import Evaluation, Known
from research.generation.contrastive import ContrastiveSearch
from research.generation.engine import Generation, Greedy
from research.generation.filters import CutRepeats, Rerank
from research.generation.processors import Chain, NoRepeatNGram
from research.generation.search import Beam

GREEDY = Way(how=Generation(choice=Greedy()))
SAMPLES = Repetition(prompts=6, prompt=6, length=10, n=2, rows=4)
WAYS = (
    ("greedy", GREEDY),
    ("beam", Way(how=Beam(size=2))),
    ("contrastive", Way(how=ContrastiveSearch(candidates=2))),
    ("drawn", Way()),
    (
        "blocked",
        Way(how=Generation(choice=Greedy(), processors=Chain(processors=(NoRepeatNGram(size=2),)))),
    ),
)
EVERY = Decoding(ways=WAYS, samples=SAMPLES, draws=2)


def known(found):
    return Known(found.trainer, found.params)


def test_protocol():
    assert isinstance(EVERY, Evaluation)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_writes_in_every_family(family):
    found = trained(family)
    scores = EVERY(found)
    names = [name for name, _ in WAYS]
    assert list(scores["tokens"]) == names
    assert scores["seq_rep@welleck"]["blocked"] == 0
    prompts, human = SAMPLES.pairs(found)
    assert scores["human"] == SAMPLES.measured(human) | {"self_bleu": self_bleu(human)}
    assert 0 < scores["self_bleu"]["greedy"] <= 1
    greedy = SAMPLES.measured(SAMPLES.samples(found, prompts, 0.0))
    assert {name: scores[name]["greedy"] for name in greedy} == greedy
    for name in names:
        assert scores["length_distance"][name] == abs(scores["tokens"][name] - scores["human"]["tokens"])
        assert scores["zipf_distance"][name] == abs(scores["zipf"][name] - scores["human"]["zipf"])


def test_a_beam_of_one_and_a_contrastive_search_without_penalty_are_greedy():
    found = trained("causal")
    prompts, _ = SAMPLES.pairs(found)

    def ids(how):
        return [line.ids.tolist() for line in SAMPLES.written(found, prompts, how)]

    greedy = ids(GREEDY.how)
    assert ids(Beam(size=1)) == greedy
    assert ids(ContrastiveSearch(penalty=0.0)) == greedy


def test_the_reference_rates_each_text_after_its_prompt():
    """The model itself, whose losses are those of what it wrote."""
    found = trained("causal")
    decoding = Decoding(ways=WAYS[:1], samples=SAMPLES, reference=known(found))
    scores = decoding(found)
    prompts, human = SAMPLES.pairs(found)
    lines = continued(found, prompts, dataclasses.replace(GREEDY.how, tokens=10), longest=6, rows=4)
    own = -sum(line.log_probability for line in lines) / sum(len(line.ids) for line in lines)
    assert scores["reference_loss"]["greedy"] == pytest.approx(own, rel=1e-4)
    floor = scores["human"]["reference_loss"]
    assert floor > own
    assert scores["reference_distance"]["greedy"] == pytest.approx(floor - own, rel=1e-4)
    assert 0 < scores["mauve"]["greedy"] <= 1
    assert 0 < scores["human"]["mauve"] <= 1
    assert sum(map(len, human)) == 60


def test_a_reference_of_another_family_reads_as_its_family_does():
    causal, other = trained("causal"), trained("encoder_decoder")
    scores = [
        Decoding(ways=WAYS[:1], samples=SAMPLES, reference=known(causal))(found)["human"]["reference_loss"]
        for found in (causal, other)
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_draws_are_others_each_time_and_searches_write_once():
    found = trained("causal")
    prompts, _ = SAMPLES.pairs(found)
    one, two = (EVERY.written(found, prompts, Way(), draw) for draw in (0, 1))
    assert [line.tolist() for line in one] != [line.tolist() for line in two]
    seen = []

    class Counting(Repetition):
        def measured(self, lines):
            seen.append(len(lines))
            return super().measured(lines)

    fields = {field.name: getattr(SAMPLES, field.name) for field in dataclasses.fields(SAMPLES)}
    Decoding(ways=WAYS[2:4], samples=Counting(**fields), draws=3)(found)
    assert seen == [6, 6, 18]  # people, the search, the draws


def test_the_best_of_candidates_is_taken(monkeypatch):
    found = trained("causal")
    tries = {draw: np.full(4, 70 + draw, np.int32) for draw in range(8)}
    rates = {draw: -abs(draw - 5.0) for draw in tries}

    def written(self, trained, prompts, how, draw=0):
        return [Line(tries[draw], 4 * rates[draw])] * len(prompts)

    monkeypatch.setattr(Repetition, "written", written)
    way = Way(rerank=Rerank(penalty=0.0), candidates=4)
    lines = [EVERY.written(found, [np.zeros(1, np.int32)], way, draw)[0] for draw in (0, 1)]
    assert [int(line[0]) for line in lines] == [73, 75]


def test_what_is_cut_is_measured_without_it(monkeypatch):
    found = trained("causal")
    text = found.text.tokenizer
    loop = text.encode("well and well and well and well and")
    monkeypatch.setattr(Repetition, "written", lambda *_, **__: [Line(loop, 0.0)])
    way = dataclasses.replace(GREEDY, cut=CutRepeats())
    (line,) = EVERY.written(found, [loop], way, 0)
    assert text.decode(line) == CutRepeats()(text.decode(loop)) != text.decode(loop)
    kept = np.array([101, 199, 102, text.mask], np.int32)  # is no text that would be written so
    monkeypatch.setattr(Repetition, "written", lambda *_, **__: [Line(kept, 0.0)])
    np.testing.assert_array_equal(EVERY.written(found, [kept], way, 0)[0], kept)


def test_a_way_that_writes_nothing_has_no_rating(monkeypatch):
    found = trained("causal")
    nothing = np.zeros(0, np.int32)
    monkeypatch.setattr(
        Repetition, "written", lambda self, _, prompts, *__: [Line(nothing, 0.0)] * len(prompts)
    )
    scores = Decoding(ways=WAYS[:1], samples=SAMPLES, reference=known(found))(found)
    assert scores["tokens"] == {"greedy": 0}
    assert "reference_loss" not in scores
    assert "reference_loss" in scores["human"]


def test_noise_makes_greedy_text_another_each_time():
    noisy = Way(how=Generation(choice=Greedy(), noise=0.3))
    assert noisy.draws
    assert not GREEDY.draws


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Decoding(ways=()), "has the names \\[\\]"),
        (lambda: Decoding(ways=(("human", GREEDY),)), "none 'human'"),
        (lambda: Decoding(ways=(("a", GREEDY), ("a", Way()))), "all different"),
        (lambda: Decoding(ways=WAYS, draws=0), "Decoding.draws = 0"),
        (lambda: Way(how=Beam(), rerank=Rerank(penalty=1.0)), "Way.rerank of Beam: it writes one text"),
        (lambda: Way(candidates=0), "Way.candidates = 0"),
    ],
)
def test_what_makes_no_sense_is_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
