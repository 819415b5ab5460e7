"""The ledger of this repository: it covers the claims, its page is what the rows say, and so are the documents."""

import dataclasses
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from experiments import configs, ledger, study
from research.analysis import claims, conclusions, results
from research.analysis.rules import Contrast, Difference, Interaction, Verdict

RESULTS = configs.ROOT / "results"


def known():
    return configs.load(claims.Ledger, ["configs/claims.gin"])


def command(*words):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.ledger", *words],
        cwd=configs.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_ledger_covers_the_eighteen_claims_in_order():
    assert [claim.id for claim in known().claims] == [f"C{number}" for number in range(1, 19)]
    assert all(claim.text.endswith(".") and claim.published for claim in known().claims)


def test_a_published_figure_names_its_source():
    for claim in known().claims:
        for one in claim.published:
            assert one.tag in ("L", "L2")
            assert one.source
            assert re.search(r"\[M\]|\[L2?\]", one.figure + one.source) is None  # a tag is a field


def test_the_page_is_what_the_rows_say():
    assert ledger.PAGE.read_text() == conclusions.markdown(ledger.judged(RESULTS))


def test_documents_state_what_the_ledger_says():
    judged = ledger.judged(RESULTS)
    documents = [configs.ROOT / "README.md", *(configs.ROOT / "docs").rglob("*.md")]
    assert ledger.PAGE in documents
    found = {
        str(path): lines
        for path in documents
        if (lines := conclusions.contradictions(path.read_text(), judged))
    }
    assert found == {}
    assert {name for name, _ in conclusions.stated(ledger.PAGE.read_text())} >= {
        f"C{n}" for n in range(1, 19)
    }


def test_a_study_without_rules_leaves_its_claims_undeclared(monkeypatch):
    monkeypatch.setattr(ledger, "of_study", lambda *_: ())
    assert {one.verdict for one in ledger.judged(RESULTS)} == {Verdict.UNDECLARED}


def test_a_study_is_judged_by_its_own_arms_seeds_and_rows(monkeypatch, tmp_path):
    rule = Contrast(metric="metrics.loss", arm="prefix_lm@short", baseline="causal_lm", expect="greater")
    subclaim = claims.SubClaim(id="C2.loss", text="the causal decoder has the lower loss", rule=rule)
    table = SimpleNamespace(claims=(subclaim,), seeds={"smoke": (0, 1), "small": (1, 2, 3)})
    planned = SimpleNamespace(arms=("causal_lm",), points={"prefix_lm@short": None})
    monkeypatch.setattr(configs, "load", lambda target, files: table)
    monkeypatch.setattr(study, "load", lambda name, scale: planned if scale in table.seeds else None)
    (finding,) = ledger.of_study("architecture", tmp_path)
    assert (finding.verdict, finding.scale) == (Verdict.NOT_RUN, "small")
    for arm, shift in (("causal_lm", 0.0), ("prefix_lm@short", 0.5)):
        for seed in (1, 2, 3):
            save(
                arm,
                seed,
                seed + shift + 0.01 * (seed == 2),
                {subclaim.id: claims.rule_hash(subclaim)},
                tmp_path,
            )
    (finding,) = ledger.of_study("architecture", tmp_path)
    assert finding.verdict == Verdict.SUPPORTED
    assert finding.found is not None
    assert finding.found.effect.n == 3
    (elsewhere,) = ledger.of_study("architecture", tmp_path, "base")  # a scale that the study does not have
    assert (elsewhere.verdict, elsewhere.scale) == (Verdict.NOT_RUN, "base")


def save(arm, seed, loss, rules, folder):
    empty = {str: "", int: 0, bool: False}
    fields = {field.name: empty.get(field.type, {}) for field in dataclasses.fields(results.Row)}
    given = {"arm": arm, "seed": seed, "metrics": {"loss": loss}, "rules": rules, "key": "0" * 16}
    results.save(results.Row(**{**fields, **given}), folder / "architecture" / "small" / "cells")


@pytest.mark.slow
def test_the_command_writes_a_page_and_checks_it(tmp_path):
    page = tmp_path / "CLAIMS.md"
    code, _, error = command("--check", f"--page={page}")
    assert (code, error) == (
        1,
        f"error: {page}: not what the rows say; run python -m experiments.ledger and commit it\n",
    )
    assert command(f"--page={page}") == (0, "", "")
    assert page.read_text() == ledger.PAGE.read_text()
    assert command("--check", f"--page={page}") == (0, "", "")
    page.write_text(page.read_text().replace("C1", "C0", 1))
    assert command("--check", f"--page={page}")[0] == 1


@pytest.mark.slow
def test_the_command_says_in_one_line_what_is_wrong():
    code, out, error = command("--check", "now")
    assert (code, out) == (1, "")
    assert error == "error: unexpected argument 'now'; flags are given as --check\n"


DECLARED = """
from __gin__ import dynamic_registration
from research.analysis import claims
from research.analysis import rules

claims.SubClaim:
  id = 'C8.recurrence'
  text = 'memory lowers the loss of long text more than that of shuffled text'
  rule = @rules.Interaction()
  gates = (@claims.Gate(),)
  controls = (@again/rules.Contrast(),)
  unit = 'nats per token'
rules.Interaction:
  first = @long/rules.Difference()
  second = @shuffled/rules.Difference()
  expect = 'less'
  least = 0.01
long/rules.Difference:
  metric = 'metrics.loss'
  arm = 'xl'
  baseline = 'plain'
shuffled/rules.Difference:
  metric = 'metrics.shuffled.loss'
  arm = 'xl'
  baseline = 'plain'
claims.Gate:
  metric = 'metrics.slope'
  arm = 'xl'
  most = 0
again/rules.Contrast:
  metric = 'metrics.loss'
  arm = 'plain'
  baseline = 'plain_again'
  expect = 'equal'
"""


def test_a_subclaim_is_declared_in_gin(tmp_path):
    file = tmp_path / "study.gin"
    file.write_text(DECLARED)
    long, shuffled = (
        Difference(metric=f"metrics.{part}loss", arm="xl", baseline="plain") for part in ("", "shuffled.")
    )
    expected = claims.SubClaim(
        id="C8.recurrence",
        text="memory lowers the loss of long text more than that of shuffled text",
        rule=Interaction(first=long, second=shuffled, expect="less", least=0.01),
        gates=(claims.Gate(metric="metrics.slope", arm="xl", most=0.0),),
        controls=(Contrast(metric="metrics.loss", arm="plain", baseline="plain_again", expect="equal"),),
        unit="nats per token",
    )
    found = configs.load(claims.SubClaim, [str(file)])
    assert found == expected
    assert claims.rule_hash(found) == claims.rule_hash(expected)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("'less'", "'lower'", "expect = 'lower': expected"),
        ("'C8.recurrence'", "'recurrence'", "expected a claim and a name, such as 'C1.efficiency'"),
        ("  most = 0\n", "", "no bound; give it a least or a most"),
        ("  baseline = 'plain_again'\n", "", "compared with itself; give it a baseline"),
        ("@rules.Interaction()", "@rules.Interacton()", "did you mean 'Interaction'"),
    ],
)
def test_a_rule_that_is_declared_wrongly_is_said_in_one_line(tmp_path, before, after, message):
    file = tmp_path / "study.gin"
    file.write_text(DECLARED.replace(before, after, 1))
    with pytest.raises(configs.ConfigError, match=re.escape(message)) as caught:
        configs.load(claims.SubClaim, [str(file)])
    assert "\n" not in str(caught.value)
