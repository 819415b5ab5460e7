"""Objectives and layouts by hand, and that nothing of a window is lost."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data import denoising, layouts, objectives
from research.data.tokenizers import Bytes
from research.data.windows import TokenWindow

T = Bytes()
WIDE = Bytes(sentinels=200)


def window(text):
    return TokenWindow.text(T.encode(text))


def record(inputs, target):
    return TokenWindow.pair(T.encode(inputs), T.encode(target))


def rng(seed=0):
    return np.random.default_rng(seed)


def read(ids):
    return T.decode(ids)


def test_prefix_lm_concatenated_by_hand():
    example = objectives.PrefixLM()(window("abcd"), rng(), T)
    features = layouts.Concatenate()(example, T)
    assert read(features["target"]) == "<bos>abc"
    assert read(features["labels"]) == "abcd"
    assert features["prefix"].tolist() == [True, True, True, False]  # BOS and the inputs
    assert features["weights"].tolist() == [0, 0, 1, 1]  # the last prefix token predicts the first target


def test_prefix_lm_split_by_hand():
    features = layouts.Split()(objectives.PrefixLM()(window("abcd"), rng(), T), T)
    assert read(features["source"]) == "ab"
    assert read(features["target"]) == "<bos>c"
    assert read(features["labels"]) == "cd"
    assert features["weights"].tolist() == [1, 1]


def test_causal_lm_has_no_prefix_and_a_loss_on_every_token():
    features = layouts.Concatenate()(objectives.CausalLM()(window("abc"), rng(), T), T)
    assert read(features["target"]) == "<bos>ab"
    assert not features["prefix"].any()
    assert features["weights"].tolist() == [1, 1, 1]


def test_causal_lm_with_a_loss_on_targets_scores_what_prefix_lm_scores():
    text = window("architecture")
    causal = layouts.Concatenate()(objectives.CausalLM(loss="targets")(text, rng(), T), T)
    prefix = layouts.Concatenate()(objectives.PrefixLM()(text, rng(), T), T)
    for name in ("target", "labels", "weights"):
        assert causal[name].tolist() == prefix[name].tolist()
    assert not causal["prefix"].any()


def test_causal_lm_on_a_record_scores_all_or_what_the_record_teaches():
    taught = record("2+2=", "4")
    assert objectives.CausalLM()(taught, rng(), T).weights.tolist() == [1] * 5
    assert objectives.CausalLM(loss="targets")(taught, rng(), T).weights.tolist() == [0, 0, 0, 0, 1]


def test_seq2seq_by_hand():
    example = objectives.Seq2Seq()(record("ab", "c"), rng(), T)
    assert read(example.inputs) == "ab<eos>"
    assert read(example.targets) == "c<eos>"
    line = layouts.Concatenate()(example, T)
    assert read(line["target"]) == "<bos>ab<eos>c"
    assert read(line["labels"]) == "ab<eos>c<eos>"
    assert line["weights"].tolist() == [0, 0, 0, 1, 1]
    assert line["prefix"].tolist() == [True, True, True, True, False]


def test_seq2seq_gives_all_turns_but_the_last():
    ids = T.encode("abcd")
    turns = TokenWindow(ids, np.array([False, True, False, True]))
    example = objectives.Seq2Seq()(turns, rng(), T)
    assert (read(example.inputs), read(example.targets)) == ("abc<eos>", "d<eos>")


def test_seq2seq_leaves_out_what_is_too_long():
    objective = objectives.Seq2Seq(most_inputs=3, most_targets=2)
    assert objective.admits(record("abc", "de"))
    assert not objective.admits(record("abcd", "de"))
    assert not objective.admits(record("abc", "def"))
    assert objective.limits(100) == objectives.Limits(4, 3, 7)


def test_classification_is_text_for_generators_and_a_class_for_encoders():
    objective = objectives.Classification(labels=("ham", "spam"))
    example = objective(record("buy", "spam"), rng(), T)
    line = layouts.Concatenate()(example, T)
    assert read(line["labels"][line["weights"] > 0]) == "spam<eos>"
    features = layouts.InPlace()(example, T)
    assert read(features["target"]) == "<bos>buy<eos>"
    assert features["labels"].tolist() == [1, 0, 0, 0, 0]
    assert features["weights"].tolist() == [1, 0, 0, 0, 0]


def test_both_families_predict_the_same_targets():
    example = objectives.PrefixLM()(window("architecture"), rng(), T)
    line, pair = layouts.Concatenate()(example, T), layouts.Split()(example, T)
    assert line["labels"][line["weights"] > 0].tolist() == pair["labels"].tolist()


class Planned(np.random.Generator):
    """A generator whose choices are written down: where spans are cut."""

    def __init__(self, *choices):
        super().__init__(np.random.PCG64(0))
        self.choices = list(choices)

    def choice(self, total, count, replace):
        chosen = self.choices.pop(0)
        assert len(chosen) == count
        return np.array(chosen)


def test_span_corruption_by_hand():
    # Raffel et al. 2020, figure 2, in letters: kept lengths 2 1, cut lengths 1 2.
    objective = denoising.SpanCorruption(density=0.5, mean_span=1.5)
    example = objective(window("abcdef"), Planned([1], [0]), T)
    assert read(example.inputs) == "ab<s0>d<s1><eos>"
    assert read(example.targets) == "<s0>c<s1>ef<eos>"
    line = layouts.Concatenate()(example, T)
    assert read(line["target"]) == "<bos>ab<s0>d<s1><eos><s0>c<s1>ef"
    assert line["weights"].tolist() == [0] * 6 + [1] * 6


def restored(inputs, targets, first):
    """The text that sentinels and the spans behind them stand for."""
    spans, current = {}, None
    for token in targets.tolist():
        if token >= first:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return [t for token in inputs.tolist() for t in spans.get(token, [token])]


@given(st.integers(2, 200), st.integers(0, 2**32), st.floats(0.05, 0.9), st.floats(1, 6))
def test_span_corruption_loses_nothing_and_has_constant_lengths(length, seed, density, mean_span):
    objective = denoising.SpanCorruption(density=density, mean_span=mean_span)
    text = TokenWindow.text(rng(seed).integers(4, 260, length).astype(np.int32))
    example = objective(text, rng(seed), WIDE)
    limits = objective.limits(length)
    assert (len(example.inputs), len(example.targets)) == (limits.inputs, limits.targets)
    assert restored(example.inputs[:-1], example.targets[:-1], 260) == text.ids.tolist()
    assert example.inputs[-1] == example.targets[-1] == WIDE.eos


def test_span_corruption_has_t5s_published_lengths():
    # T5: 568 raw tokens at density 0.15 and mean span 3 become 512 inputs and 114 targets.
    limits = denoising.SpanCorruption().limits(568)
    assert (limits.inputs, limits.targets) == (512, 114)


def test_masked_lm_masks_80_replaces_10_and_keeps_10_percent():
    text = TokenWindow.text(np.full(20_000, 100, np.int32))
    example = objectives.MaskedLM()(text, rng(), T)
    chosen = example.weights > 0
    assert chosen.sum() == 3000
    assert (example.inputs[~chosen] == 100).all()
    assert (example.targets == text.ids).all()
    assert (example.inputs[chosen] == T.mask).sum() == 2400
    assert 285 <= ((example.inputs[chosen] != T.mask) & (example.inputs[chosen] != 100)).sum() <= 300


class Spans(denoising.BlankInfilling):
    """Blanks at places that are written down."""

    def _spans(self, window, rng):
        return np.array([2, 4]), np.array([1, 2])


def test_blank_infilling_by_hand():
    # Du et al. 2022, figure 2: x1 x2 [x3] x4 [x5 x6], the second span first.
    class Swapped(np.random.Generator):
        def permutation(self, n):
            return [1, 0]

    example = Spans()(window("abcdef"), Swapped(np.random.PCG64(0)), T)
    line = layouts.Concatenate()(example, T)
    assert read(line["target"]) == "<bos>ab<mask>d<mask><bos>ef<bos>c"
    assert line["coords"][:, 0].tolist() == [0, 1, 2, 3, 4, 5, 5, 5, 5, 3, 3]
    assert line["coords"][:, 1].tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 3, 1, 2]
    assert line["prefix"].tolist() == [True] * 6 + [False] * 5
    assert line["weights"].tolist() == [0] * 6 + [1] * 5
    assert read(line["labels"][line["weights"] > 0]) == "ef<eos>c<eos>"
    pair = layouts.Split()(example, T)
    assert read(pair["source"]) == "ab<mask>d<mask>"
    assert read(pair["target"]) == "<bos>ef<bos>c"
    assert pair["source_coords"].tolist() == [[1, 0], [2, 0], [3, 0], [4, 0], [5, 0]]
    assert pair["coords"].tolist() == line["coords"][6:].tolist()


@given(
    st.integers(2, 150),
    st.integers(0, 2**32),
    st.floats(0.05, 0.9),
    st.floats(1, 6),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_blank_infilling_loses_nothing_and_keeps_its_limits(length, seed, density, mean_span, document):
    objective = denoising.BlankInfilling(density=density, mean_span=mean_span, document=document)
    text = TokenWindow.text(rng(seed).integers(4, 260, length).astype(np.int32))
    example = objective(text, rng(seed), T)
    limits = objective.limits(length)
    assert len(example.inputs) <= limits.inputs
    assert len(example.targets) == len(example.reads) <= limits.targets
    assert len(layouts.Concatenate()(example, T)["target"]) <= limits.total
    spans, current = {}, None
    for token, (place, inside), label in zip(
        example.reads.tolist(), example.coords[1].tolist(), example.targets.tolist(), strict=True
    ):
        if inside == 1:
            assert token == T.bos
            current = spans.setdefault(place, [])
        elif token != T.bos:
            current.append(token)
        assert label == T.eos or label >= 4
    text_ids = []
    for place, token in enumerate(example.inputs.tolist(), 1):
        text_ids += spans.pop(place) if token == T.mask else [token]
    assert text_ids == text.ids.tolist()
    assert not spans
    if not document:
        assert sum(label != T.eos for label in example.targets) == min(
            max(round(length * density), 1), length - 1
        )


@given(st.integers(8, 150), st.integers(0, 2**32))
def test_mixture_of_denoisers_tells_its_mode_and_loses_nothing(length, seed):
    objective = denoising.MixtureOfDenoisers()
    text = TokenWindow.text(rng(seed).integers(4, 260, length).astype(np.int32))
    example = objective(text, rng(seed), WIDE)
    limits = objective.limits(length)
    assert len(example.inputs) <= limits.inputs
    assert len(example.targets) <= limits.targets
    assert len(layouts.Concatenate()(example, WIDE)["target"]) <= limits.total
    mode = "RSX"[int(example.inputs[0]) - WIDE.sentinel(197)]
    if mode == "S":
        whole = [*example.inputs[1:].tolist(), *example.targets.tolist()]
    else:
        whole = restored(example.inputs[1:-1], example.targets[:-1], 260)
    assert whole == text.ids.tolist()


def test_mixture_of_denoisers_has_ul2s_shares():
    objective, text = denoising.MixtureOfDenoisers(), window("architecture" * 10)
    modes = [int(objective(text, rng(seed), WIDE).inputs[0]) - WIDE.sentinel(197) for seed in range(2000)]
    shares = np.bincount(modes, minlength=3) / 2000
    assert np.abs(shares - np.array([2, 1, 4]) / 7).max() < 0.04  # two R, one S, four X


def test_how_many_sentinels_an_objective_needs():
    assert denoising.SpanCorruption().sentinels(568) == 28
    extreme = denoising.Denoiser(mode="X", objective=denoising.SpanCorruption(density=0.5, mean_span=1.0))
    assert denoising.MixtureOfDenoisers(denoisers=(extreme,)).sentinels(54) == 27 + 3
    assert objectives.PrefixLM().sentinels(54) == 0


def test_a_record_of_one_speaker_is_scored_as_a_record():
    spoken = TokenWindow(T.encode("abcd"), np.ones(4, bool), record=True)
    assert objectives.CausalLM(loss="targets")(spoken, rng(), T).weights.tolist() == [1, 1, 1, 1]
    assert not objectives.Seq2Seq().admits(spoken)
    assert not objectives.Seq2Seq().admits(TokenWindow(T.encode("ab"), np.array([True, False]), record=True))


@given(st.integers(1, 100), st.integers(0, 2**32))
def test_deshuffling_gives_the_tokens_and_asks_for_the_text(length, seed):
    text = TokenWindow.text(rng(seed).integers(4, 260, length).astype(np.int32))
    example = denoising.Deshuffling()(text, rng(seed), T)
    assert example.targets.tolist() == [*text.ids.tolist(), T.eos]
    assert sorted(example.inputs[:-1].tolist()) == sorted(text.ids.tolist())
    assert example.inputs[-1] == T.eos


ALL = [
    objectives.CausalLM(),
    objectives.CausalLM(loss="targets"),
    objectives.PrefixLM(least=0.2, most=0.8),
    objectives.Seq2Seq(),
    objectives.MaskedLM(),
    objectives.Classification(labels=("efgh", "other")),
    denoising.SpanCorruption(),
    denoising.BlankInfilling(),
    denoising.MixtureOfDenoisers(),
    denoising.Deshuffling(),
]
EXPRESSIBLE = {
    layouts.Concatenate: lambda one: not isinstance(one, objectives.MaskedLM),
    layouts.Split: lambda one: not isinstance(one, objectives.MaskedLM | objectives.CausalLM),
    layouts.InPlace: lambda one: isinstance(one, objectives.MaskedLM | objectives.Classification),
}


@pytest.mark.parametrize("objective", ALL, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("layout", EXPRESSIBLE, ids=lambda one: one.__name__)
def test_every_objective_on_every_layout_that_can_express_it(objective, layout):
    example = objective(record("abcd", "efgh"), rng(), T)
    if EXPRESSIBLE[layout](objective):
        features = layout()(example, T)
        lengths = layout().lengths(objective.limits(8))
        for name, line in features.items():
            assert len(line) <= lengths[layouts.stream(name)]
        assert features["weights"].sum() == (
            1 if layout is layouts.InPlace and example.label is not None else example.weights.sum()
        )
    else:
        with pytest.raises(ValueError, match=r"set Data\.") as caught:
            layout()(example, T)
        assert "\n" not in str(caught.value)


@settings(max_examples=30)
@given(st.sampled_from(ALL), st.integers(0, 2**32))
def test_an_example_depends_on_its_generator_alone(objective, seed):
    first, second = (objective(record("abcd", "efgh"), rng(seed), T) for _ in range(2))
    for field in dataclasses.fields(first):
        a, b = getattr(first, field.name), getattr(second, field.name)
        assert np.array_equal(a, b) if isinstance(a, np.ndarray) else str(a) == str(b)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: objectives.CausalLM(cut=1.0), "CausalLM.cut = 1.0"),
        (lambda: objectives.PrefixLM(least=0.9, most=0.1), "least = 0.9, most = 0.1"),
        (lambda: objectives.Seq2Seq(most_inputs=0), "Seq2Seq.most_inputs = 0"),
        (lambda: objectives.Classification(labels=("a", "a")), "expected at least two, all different"),
        (lambda: objectives.MaskedLM(density=0.0), "MaskedLM.density = 0.0"),
        (lambda: denoising.SpanCorruption(mean_span=0.5), "mean_span = 0.5"),
        (lambda: denoising.BlankInfilling(document=2.0), "document = 2.0"),
        (lambda: denoising.MixtureOfDenoisers(denoisers=()), "expected at least one"),
        (lambda: objectives.Seq2Seq()(window("abc"), rng(), T), "Seq2Seq needs a record"),
        (lambda: objectives.Classification(labels=("x", "y"))(record("a", "z"), rng(), T), "target is 'z'"),
        (lambda: denoising.SpanCorruption()(window("a"), rng(), T), "set Data.window to at least 2"),
        (lambda: denoising.SpanCorruption()(window("a" * 2000), rng(), T), "raise Bytes.sentinels"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(make, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")) as caught:
        make()
    assert "\n" not in str(caught.value)
