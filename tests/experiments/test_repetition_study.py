"""The repetition study: some of each kind that smoke leaves out train, are scored and are evaluated."""

import dataclasses

import pytest
from short_cells import check_takes_steps

from experiments import experiment, study
from research.analysis.figures import Points

SMALL = study.load("repetition", "small")
# Some of each kind of objective, remedy and text. Shapes of `ways` and `quality` are checked in tests/evaluation.
ARMS = [
    *("prefix_mixture", "encoder_decoder_spans", "causal_from_given", "encoder_decoder_sequence"),
    *("causal_shuffled", "untrained", "legal_deduplicated", "ditto"),
]


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_takes_three_steps_and_makes_its_evaluations(arm, tmp_path):
    check_takes_steps(SMALL, arm, tmp_path)


@pytest.mark.parametrize("family", ["causal", "prefix", "encoder_decoder"])
def test_the_rates_of_a_family_differ_in_nothing_else(family):
    plain, *others = (SMALL.experiment(f"{family}{rate}", 0)[0] for rate in ("", "_10", "_25", "_50"))
    for one, rate in zip(others, (0.1, 0.25, 0.5), strict=True):
        (copies,) = one.data.transforms
        assert copies.rate == rate
        assert not copies.shuffled
        assert dataclasses.replace(one, data=dataclasses.replace(one.data, transforms=())) == plain


def test_what_is_written_fits_into_a_window_of_training():
    for arm in SMALL.arms:
        window = SMALL.experiment(arm, 0)[0].data.window
        found = SMALL.evaluations(arm)
        for name in found.keys() & {"repetition", "bytes"}:
            assert found[name].prompt + found[name].length == window
        if one := found.get("reinforcement"):
            assert one.prompt + one.times * one.most <= window
        for name in found.keys() & {"ways", "quality"}:
            assert found[name].samples.prompt + found[name].samples.length == window


def test_objectives_cost_as_much_in_the_first_stage_and_as_many_steps_in_the_second():
    for together in ("causal", "prefix", "encoder-decoder"):
        costs = []
        for arm in SMALL.comparisons[f"{together} first stage"]:
            one = SMALL.experiment(arm, 0)[0]
            costs.append(one.steps * experiment.cost(one.model, one.data, None).train_flops)
        assert max(costs) <= 1.02 * min(costs)
        assert {SMALL.experiment(arm, 0)[0].steps for arm in SMALL.comparisons[f"{together} objectives"]} == {
            300
        }


def test_what_lowers_its_metric_by_construction_is_marked():
    ways = dict(SMALL.table.evaluations["rated"].ways)
    filtered = {name: way.filters for name, way in ways.items() if way.filters}
    for spec in SMALL.table.labelled:
        assert spec.labels == tuple(ways)
        assert spec.filtered == filtered
    marked = [spec for spec in SMALL.table.figures if isinstance(spec, Points)]
    assert marked
    for spec in marked:
        for name, (_, way) in spec.points.items():
            assert name.endswith("‡") == ("loop@holtzman-code" in ways[way].filters)
