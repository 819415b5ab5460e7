"""What has to be declared before a run, and what of it decides."""

import dataclasses
import subprocess
import sys

import pytest

from research.analysis.claims import Claim, Gate, Ledger, Published, SubClaim, declared, recorded_tests
from research.analysis.decisions import ClaimError
from research.analysis.rules import Contrast, Counted, Difference, Level, NotTestable, Trend

RULE = Contrast(metric="metrics.loss", arm="causal", baseline="prefix", expect="less")
GATE = Gate(metric="metrics.slope", arm="causal", least=-0.1)
CONTROL = Contrast(metric="metrics.loss", arm="causal", baseline="causal_again", expect="equal")
SIZES = tuple(
    Difference(metric="metrics.loss", arm=f"causal_{size}", baseline=f"prefix_{size}")
    for size in ("s", "m", "l")
)
SEEDS = range(5)
SUBCLAIM = SubClaim(
    id="C2.loss", text="lower loss", rule=RULE, gates=(GATE,), controls=(CONTROL,), sizes=SIZES
)


def hash_of(subclaim, seeds=SEEDS):
    return declared([subclaim], seeds)[subclaim.id].split()[0]


def changed(value, **fields):
    return dataclasses.replace(value, **fields)


@pytest.mark.parametrize(
    "edit",
    [
        {"text": "other words"},
        {"unit": "nats"},
        {"published": (Published(figure="1.9", source="a paper", tag="L"),)},
    ],
)
def test_the_hash_is_not_of_texts(edit):
    assert hash_of(changed(SUBCLAIM, **edit)) == hash_of(SUBCLAIM)


@pytest.mark.parametrize(
    "edit",
    [
        {"rule": changed(RULE, **{name: value})}
        for name, value in [
            ("metric", "metrics.bits"),
            ("arm", "encoder_decoder"),
            ("baseline", "encoder_decoder"),
            ("baseline_metric", "metrics.bits"),
            ("expect", "greater"),
            ("margin", 0.03),
            ("least", 0.01),
        ]
    ]
    + [
        {"rule": Level(metric="metrics.loss", arm="causal", value=2.0, expect="less")},
        {"rule": Counted(of=changed(RULE, metric="budget.flops"))},
        {"rule": Trend(metrics=("metrics.loss",), arms=("causal", "prefix"), expect="rising")},
        {"gates": ()},
        {"gates": (changed(GATE, least=-0.2),)},
        {"gates": (changed(GATE, most=0.2),)},
        {"controls": ()},
        {"controls": (changed(CONTROL, margin=0.1),)},
        {"sizes": ()},
    ],
    ids=str,
)
def test_the_hash_is_of_all_that_decides(edit):
    assert hash_of(changed(SUBCLAIM, **edit)) != hash_of(SUBCLAIM)


def test_the_hash_is_of_values_and_not_of_how_gin_wrote_them():
    whole, broken = (changed(SUBCLAIM, rule=changed(RULE, margin=margin)) for margin in (1, 1.0))
    assert hash_of(whole) == hash_of(broken)


def test_the_record_is_the_same_in_another_process():
    code = (
        "from research.analysis.claims import SubClaim, declared\n"
        "from research.analysis.rules import Contrast\n"
        "rule = Contrast(metric='metrics.loss', arm='causal', baseline='prefix', expect='less')\n"
        "print(declared([SubClaim(id='C2.loss', text='', rule=rule)], (0, 1))['C2.loss'])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == declared([SubClaim(id="C2.loss", text="", rule=RULE)], (0, 1))["C2.loss"]
    assert len(printed.split()[0]) == 64


def test_a_subclaim_reads_its_rule_gates_and_controls():
    assert SUBCLAIM.reads() == (
        ("causal", "metrics.loss"),
        ("prefix", "metrics.loss"),
        ("causal", "metrics.slope"),
        ("causal_again", "metrics.loss"),
    )


@pytest.mark.parametrize("name", ["C2", "efficiency", "c2.loss", "C2.loss.late", "C2."])
def test_a_subclaim_is_named_after_its_claim(name):
    assert SUBCLAIM.claim == "C2"
    with pytest.raises(ClaimError, match="expected a claim and a name, such as 'C1.efficiency'"):
        changed(SUBCLAIM, id=name)


def test_a_gate_is_judged_by_the_median_seed():
    gate = Gate(metric="m", arm="a", least=0.8)
    assert gate.failure([0.1, 0.9, 0.95]) is None
    assert (
        gate.failure([0.99, 0.5, 0.7])
        == "gate failed: expected m of a at least 0.8, found 0.7 at the median seed"
    )
    assert Gate(metric="m", arm="a", most=0.0).failure([-1.0, 0.0, 5.0]) is None
    assert Gate(metric="m", arm="a", most=0.0).failure([0.1]) is not None
    both = Gate(metric="m", arm="a", least=0.1, most=0.9)
    assert [both.failure([value]) is None for value in (0.05, 0.5, 0.95)] == [False, True, False]


def test_a_gate_without_a_bound_and_a_claim_declared_twice_are_refused():
    with pytest.raises(ClaimError, match="no bound"):
        Gate(metric="m", arm="a")
    with pytest.raises(ClaimError, match="'C1' is declared twice"):
        Ledger(claims=(Claim(id="C1", text="this"), Claim(id="C1", text="that")))


def test_every_subclaim_is_recorded_with_its_hash_and_its_tests():
    other = SubClaim(id="C3.loss", text="", rule=changed(RULE, baseline="encoder_decoder"))
    found = declared([SUBCLAIM, other], (1, 0, 2))
    assert list(found) == ["C2.loss", "C3.loss"]
    assert found == declared([other, SUBCLAIM], (0, 1, 2))
    families = {
        name: {family: len(one) for family, one in recorded_tests(text).items()}
        for name, text in found.items()
    }
    assert families == {
        "C2.loss": {"difference": 2, "equivalence": 1},
        "C3.loss": {"difference": 1, "equivalence": 1},
    }


def test_the_record_is_of_the_declared_seeds():
    values = {
        declared([SUBCLAIM], seeds)["C2.loss"].split()[0] for seeds in [(0, 1, 2), (0, 1), (0, 1, 2, 3)]
    }
    assert len(values) == 3
    assert all(len(value) == 64 for value in values)


def test_a_rule_that_is_no_test_brings_none_and_equal_ones_are_one():
    nothing = changed(SUBCLAIM, rule=NotTestable(reason="too large"), controls=(), sizes=())
    assert recorded_tests(declared([nothing], (0,))["C2.loss"]) == {}
    twice = changed(SUBCLAIM, id="C3.again", text="the same in other words")
    one, other = (recorded_tests(value) for value in declared([SUBCLAIM, twice], (0,)).values())
    assert one == other


def test_a_control_is_another_test_than_an_equal_rule():
    one = changed(SUBCLAIM, rule=CONTROL, controls=(CONTROL,), sizes=())
    assert len(recorded_tests(declared([one], SEEDS)["C2.loss"])["difference"]) == 2


def test_what_is_recorded_in_another_form_brings_no_tests():
    assert recorded_tests("") == recorded_tests("0" * 64) == {}


@pytest.mark.parametrize("number", [1, 2])
def test_a_trend_with_size_is_of_three_or_more(number):
    with pytest.raises(ClaimError, match=f"SubClaim.sizes of C2.loss: {number}, expected at least 3"):
        changed(SUBCLAIM, sizes=SIZES[:number])


@pytest.mark.parametrize("rule", [CONTROL, NotTestable(reason="too large")])
def test_what_expects_no_sign_has_no_sizes(rule):
    with pytest.raises(ClaimError, match="expected none, since its rule expects no sign"):
        changed(SUBCLAIM, rule=rule)


@pytest.mark.parametrize("name", ["figure", "source"])
def test_a_published_figure_has_a_figure_and_a_source(name):
    with pytest.raises(ClaimError, match=f"Published.{name} is empty beside 'given'"):
        Published(**{"figure": "given", "source": "given", "tag": "L", name: " "})
