"""Objectives and layouts by hand, and that nothing of a window is lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data import layouts, objectives
from research.data.tokenizers import Bytes

T = Bytes()


def window(text):
    return T.encode(text)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_prefix_lm_concatenated_by_hand():
    example = objectives.PrefixLM()(window("abcd"), rng(), T)
    features = layouts.Concatenate()(example, T)
    assert T.decode(features["target"]) == "<bos>abc"
    assert T.decode(features["labels"]) == "abcd"
    assert features["prefix"].tolist() == [True, True, True, False]  # BOS and the inputs
    assert features["weights"].tolist() == [0, 0, 1, 1]  # the last prefix token predicts the first target


def test_prefix_lm_split_by_hand():
    features = layouts.Split()(objectives.PrefixLM()(window("abcd"), rng(), T), T)
    assert T.decode(features["source"]) == "ab"
    assert T.decode(features["target"]) == "<bos>c"
    assert T.decode(features["labels"]) == "cd"
    assert features["weights"].tolist() == [1, 1]


def test_causal_lm_has_no_prefix_and_a_loss_on_every_token():
    features = layouts.Concatenate()(objectives.CausalLM()(window("abc"), rng(), T), T)
    assert T.decode(features["target"]) == "<bos>ab"
    assert not features["prefix"].any()
    assert features["weights"].tolist() == [1, 1, 1]


def test_both_families_predict_the_same_targets():
    example = objectives.PrefixLM()(window("architecture"), rng(), T)
    line, pair = layouts.Concatenate()(example, T), layouts.Split()(example, T)
    assert line["labels"][line["weights"] > 0].tolist() == pair["labels"].tolist()


@given(st.integers(2, 200), st.integers(0, 2**32), st.floats(0.05, 0.9), st.floats(1, 6))
def test_span_corruption_loses_nothing_and_has_constant_lengths(length, seed, density, mean_span):
    objective = objectives.SpanCorruption(density=density, mean_span=mean_span)
    text = rng(seed).integers(4, 260, length).astype(np.int32)
    tokenizer = Bytes(sentinels=200)
    example = objective(text, rng(seed), tokenizer)
    limits = objective.limits(length)
    assert (len(example.inputs), len(example.targets)) == (limits.inputs, limits.targets)
    spans, current = {}, None
    for token in example.targets[:-1].tolist():
        if token >= 260:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    restored = [t for token in example.inputs[:-1].tolist() for t in spans.get(token, [token])]
    assert restored == text.tolist()
    assert example.inputs[-1] == example.targets[-1] == tokenizer.eos


def test_span_corruption_has_t5s_published_lengths():
    # T5: 568 raw tokens at density 0.15 and mean span 3 become 512 inputs and 114 targets.
    limits = objectives.SpanCorruption().limits(568)
    assert (limits.inputs, limits.targets) == (512, 114)


def test_masked_lm_masks_80_replaces_10_and_keeps_10_percent():
    text = np.full(20_000, 100, np.int32)
    example = objectives.MaskedLM()(text, rng(), T)
    chosen = example.weights > 0
    assert chosen.sum() == 3000
    assert (example.inputs[~chosen] == 100).all()
    assert (example.targets == text).all()
    assert (example.inputs[chosen] == T.mask).sum() == 2400
    assert 285 <= ((example.inputs[chosen] != T.mask) & (example.inputs[chosen] != 100)).sum() <= 300


@pytest.mark.parametrize(
    ("objective", "layout"),
    [
        (objectives.CausalLM(), layouts.Split()),
        (objectives.MaskedLM(), layouts.Concatenate()),
        (objectives.MaskedLM(), layouts.Split()),
        (objectives.PrefixLM(), layouts.InPlace()),
    ],
)
def test_what_a_family_cannot_express_is_refused_in_one_line(objective, layout):
    with pytest.raises(ValueError, match=r"set Data\.") as caught:
        layout(objective(window("abcdefgh"), rng(), T), T)
    assert "\n" not in str(caught.value)
