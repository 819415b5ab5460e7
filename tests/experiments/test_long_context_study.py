"""The study of long context: its arms differ in what they should, and some of each kind train and are evaluated."""

import dataclasses

import pytest
from short_cells import check_takes_steps

from experiments import study
from research.attention.positions import Rotary
from research.evaluation.adapted import Adapted
from research.evaluation.long_context import LengthCurve

SMALL = study.load("long_context", "small")
# Some of each kind that smoke leaves out. `short_again` asks seven others, too many to train.
ARMS = [
    *("rotary_again", "tuned_window", "dilated", "compressive_convolution", "changing_xl_4"),
    *("text_long", "recall_local", "passkey_alibi", "copying_encoder_decoder_relative", "selective_chunks"),
    *("values_local", "needle_full"),
]


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_takes_three_steps_and_makes_its_evaluations(arm, tmp_path):
    check_takes_steps(SMALL, arm, tmp_path)


def planned(arm):
    return SMALL.experiment(arm, 0)[0]


def without_positions(one):
    stack = dataclasses.replace(one.model.stack, positions=Rotary())
    return dataclasses.replace(one, model=dataclasses.replace(one.model, stack=stack))


def test_schemes_differ_in_nothing_else():
    first, *others = (without_positions(planned(arm)) for arm in SMALL.comparisons["positions"])
    assert len(others) == 6
    assert all(one == first for one in others)


def test_mechanisms_see_as_many_tokens_of_text_a_step():
    mechanisms = (
        *("capacity", "mechanisms", "memories at equal FLOPs", "memories", "changing"),
        *("text", "shuffled"),
    )
    data = [planned(arm).data for together in mechanisms for arm in SMALL.comparisons[together]]
    assert {one.window * one.batch for one in data} == {48 * 24}
    # What is in random order, or changes, is trained and scored so.
    for one, control in (
        ("text_xl_4", "shuffled_xl_4"),
        ("xl_4", "changing_xl_4"),
        ("xl_0", "changing_xl_0"),
    ):
        plain, mixed = planned(one).data, planned(control).data
        assert dataclasses.replace(mixed, corpus=plain.corpus) == plain
        assert mixed != plain


def test_memories_take_the_same_steps_and_others_the_same_flops():
    assert {planned(arm).steps for arm in SMALL.comparisons["memories"]} == {400}
    assert {planned(arm).steps for arm in SMALL.comparisons["changing"]} == {400}
    assert SMALL.matches("long") == SMALL.matches("equal_xl") == "flops"
    assert planned("rotary_again") == planned("rotary")
    assert planned("full_again") == planned("full")
    assert planned("short_again") == planned("short")


def test_mechanisms_go_on_from_one_model():
    lengthened = ("mechanisms", "memories at equal FLOPs", "memories", "changing")
    arms = [planned(arm) for together in lengthened for arm in SMALL.comparisons[together]]
    assert {one.init_from.arm for one in arms} == {"short"}
    assert {one.optimizer for one in arms} == {arms[0].optimizer}
    short = planned("short")
    # What is trained from scratch has a learning rate too, the scale's.
    assert short.optimizer == planned("deep").optimizer == planned("rotary").optimizer


def test_effective_contexts_are_of_the_arms_that_they_name():
    used = SMALL.evaluations("short_again")["used"]
    assert all(name == stage.arm for name, stage in used.group)
    (labelled,) = SMALL.table.labelled
    assert set(labelled.labels) == {used.own, *(name for name, _ in used.group)}


def test_lengths_go_to_sixteen_times_what_is_trained_on_in_both_protocols():
    lengths = SMALL.evaluations("alibi")["lengths"]
    window = planned("alibi").data.window
    assert isinstance(lengths, LengthCurve)
    assert lengths.lengths[0] == window
    assert lengths.lengths[-1] == 16 * window
    assert lengths.stride < window  # or sliding windows of the trained length would not overlap


def test_what_is_scaled_is_scaled_for_the_longest_length_that_is_measured():
    for name in ("linear", "yarn"):
        adapted = SMALL.evaluations("rotary_again")[name]
        assert isinstance(adapted, Adapted)
        assert isinstance(adapted.evaluation, LengthCurve)
        window = planned("rotary").data.window
        assert adapted.positions.scaling.factor * window == adapted.evaluation.lengths[-1]
        # An arm that is tuned is scaled alike, and reads as far.
        tuned = planned(f"tuned_{name}")
        assert tuned.model.stack.positions == adapted.positions
        assert tuned.data.window == adapted.evaluation.lengths[-1]
