"""Phrases that are written again and again, in each family, and where a model attends."""

import dataclasses

import jax
import numpy as np
import pytest
from test_repetition_of_models import FAMILIES, trained

from research.attention.masks import Causal
from research.attention.positions import Learned
from research.evaluation.attention_maps import attention_maps
from research.evaluation.long_context import token_losses
from research.evaluation.self_reinforcement import SelfReinforcement
from research.evaluation.trained import Evaluation
from research.models.families import DecoderConfig, EncoderConfig

FAMILY_WINDOW = 24  # of `trained`
FEW = SelfReinforcement(phrases=5, prompt=4, least=3, most=5, times=3)


def test_protocol():
    assert isinstance(FEW, Evaluation)


@pytest.mark.parametrize("family", FAMILIES)
def test_shares_of_attention_are_those_of_what_a_query_sees(family):
    found = trained(family)
    batch = found.text.held_out("test")[0]
    maps = attention_maps(found.trainer, found.params, batch)
    assert len(maps) == 1  # of one layer, the encoder's left out
    shares, real = np.asarray(maps[0]), np.asarray(batch.target.slots.segment) != 0
    np.testing.assert_allclose(shares.sum(-1)[:, 0][real], 1, atol=1e-5)
    prefix = np.asarray(batch.target.slots.prefix) & (family == "prefix")
    ahead = np.triu(np.ones(shares.shape[-2:], bool), 1) & ~(prefix[:, None] & prefix[:, :, None])
    assert np.abs(np.where(ahead[:, None], shares, 0)).max() == 0
    assert shares.min() >= 0
    assert shares.std() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_curves_are_what_a_pass_over_the_phrases_says(family):
    """Read one by one and in full, with losses in place of probabilities."""
    found = trained(family)
    scores = FEW(found)
    p = {time: [] for time in range(FEW.times)}
    for one, length in FEW._written(found.text):
        (batch,) = found.text.placed([one])
        losses = np.asarray(token_losses(found.trainer, found.params, batch))[0]
        each = np.exp(-losses[np.asarray(batch.weights)[0] > 0]).reshape(FEW.times, length)
        np.testing.assert_array_equal(
            one.targets.reshape(FEW.times, length), one.targets[:length][None].repeat(3, 0)
        )
        for time in range(FEW.times):
            p[time] += each[time].tolist()
    first = np.asarray(p[0])
    for time in range(FEW.times):
        np.testing.assert_allclose(scores["tp"][str(time)], np.mean(p[time]), rtol=1e-4)
        if time:
            np.testing.assert_allclose(
                scores["ip"][str(time)], np.mean(np.asarray(p[time]) > first), atol=0.06
            )
    assert set(scores["ip"]) == set(scores["attention"]) == {"1", "2"}
    assert set(scores["wr"]) == set(scores["entropy"]) == set(scores["top"]) == {"0", "1", "2"}
    most = np.log(found.text.tokenizer.vocab_size)
    assert all(0 < value <= most for value in scores["entropy"].values())
    assert all(0 < value < 1 for value in (*scores["attention"].values(), scores["induction"]))


def test_a_head_that_finds_what_followed_is_seen(monkeypatch):
    """Attention by hand: all of it at the token after the last time, in the second of two heads."""
    found = trained("causal")

    def maps(trainer, params, batch):
        rows, length = batch.labels.shape
        shares = np.zeros((rows, 2, length, length))
        shares[:, 0, :, 0] = 1.0
        for row, size in enumerate(sizes):
            for query in range(length):
                shares[row, 1, query, query - size + 1 if query >= size - 1 else 0] = 1.0
        return (shares,)

    sizes = [length for _, length in FEW._written(found.text)]
    monkeypatch.setattr("research.evaluation.self_reinforcement.attention_maps", maps)
    scores = FEW(found)
    assert scores["induction"] == 1.0
    assert scores["attention"] == {"1": 0.5, "2": 0.5}


def test_phrases_are_of_the_text_or_drawn_and_the_same_for_every_seed():
    found = trained("causal")
    other = dataclasses.replace(found, seed=7)
    for words in ("text", "random"):
        evaluation = dataclasses.replace(FEW, words=words)
        assert evaluation(found) == evaluation(other)
        windows = found.text.windows[0]["test"]
        lines = [windows[i].ids.tolist() for i in range(len(windows))]
        for one, length in evaluation._written(found.text):
            joined = [*one.inputs.tolist(), *one.targets[:length].tolist()]
            ends = range(len(joined), FAMILY_WINDOW + 1)
            inside = any(line[end - len(joined) : end] == joined for line in lines for end in ends)
            assert inside == (words == "text")


def test_what_cannot_be_measured_is_one_line():
    with pytest.raises(ValueError, match="a phrase of .* tokens in a window of 24; lower"):
        dataclasses.replace(FEW, prompt=22)(trained("causal"))
    for wrong in ({"times": 1}, {"phrases": 0}, {"least": 6}, {"prompt": 0}):
        with pytest.raises(ValueError, match="expected"):
            dataclasses.replace(FEW, **wrong)
    encoder = trained("causal", model=EncoderConfig(stack=FAMILIES["causal"][1].stack, classes=3))
    with pytest.raises(ValueError, match="SelfReinforcement is of tokens"):
        FEW(encoder)
    learned = dataclasses.replace(FAMILIES["causal"][1].stack, positions=Learned(length=16))
    with pytest.raises(
        ValueError, match=r"are read, but positions of the model \(Learned\) end at 16; lower Self"
    ):
        FEW(trained("causal", model=DecoderConfig(stack=learned, mask=Causal())))


def test_padding_of_the_last_batch_is_not_counted():
    """Of 5 phrases in batches of 8 as of 5 in batches of 5."""
    few, whole = trained("causal"), trained("causal")
    data = dataclasses.replace(whole.text.data, batch=5)
    object.__setattr__(whole.text, "data", data)
    for one, other in zip(jax.tree.leaves(FEW(few)), jax.tree.leaves(FEW(whole)), strict=True):
        assert one == pytest.approx(other, rel=1e-4)
