"""The forgetting study: some of each kind that smoke leaves out train, are scored and are evaluated."""

import pytest
from short_cells import check_takes_steps

from experiments import study

SMALL = study.load("forgetting", "small")
# Some of each kind of remedy, family, text and sequence, but those that read 125,000 words (phonemes): checking all
# shapes takes minutes.
ARMS = [
    *("replay_1", "si", "lora", "budget", "encoder_decoder_replay", "verses_ewc", "generative", "mixed"),
    *("time_3_ewc", "permuted_2"),
]


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_takes_three_steps_and_makes_its_evaluations(arm, tmp_path):
    check_takes_steps(SMALL, arm, tmp_path)


def test_a_table_has_no_column_of_what_its_arms_are_not_measured_by():
    assert SMALL.columns("base")[0] == "metrics.kept.loss.general"
    assert SMALL.columns("permuted tasks")[0] == "parameters"
    assert all("kept" not in column for column in SMALL.columns("permuted tasks"))


def test_what_is_classified_beside_a_frontier_is_not_of_it():
    for spec in SMALL.table.shifts:
        assert not set(spec.arms) & set(spec.frontier)
        assert {*spec.arms, *spec.frontier} <= SMALL.known_seeds.keys()
