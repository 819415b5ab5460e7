"""The architecture study: some of each kind that smoke leaves out train, are scored and are evaluated."""

import pytest
from short_cells import check_takes_steps

from experiments import running, study

SMALL = study.load("architecture", "small")
# Every family that writes and every one that classifies, and one arm of what else differs in more than its corpus.
# Those that read 125,000 words (phonemes, alone or with verses) are left out: checking all shapes takes minutes.
ARMS = [
    *SMALL.comparisons["sorting"],
    *SMALL.comparisons["sentiment"],
    *("sorting_few_causal", "reversing_causal", "spam_encoder", "spam_encoder_shuffled"),
    *("regression_causal", "switching_prefix", "narrow_encoder_decoder", "params_encoder_decoder_half"),
]


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_takes_three_steps_and_makes_its_evaluations(arm, tmp_path):
    check_takes_steps(SMALL, arm, tmp_path)


@pytest.mark.slow
def test_arms_that_are_compared_read_the_same_windows_step_by_step(tmp_path):
    """Whatever their objective, family and layout, as far as each goes: the row records a hash of 100 steps."""
    for together in ("language modelling", "sorting", "denoising"):
        arms = SMALL.comparisons[together]
        loaded = [SMALL.experiment(arm, 0)[0].data for arm in arms]
        orders = {data.load(None).order(0, running.ORDERED) for data in loaded}
        assert len(orders) == 1, together
