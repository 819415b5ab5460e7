"""The ledger of this repository: it covers the claims, its page is what the rows say, and so are the documents."""

import dataclasses
import re
import shutil
import subprocess
import sys

import pytest

from experiments import configs, ledger, study
from research.analysis import claims, claims_page, results, statements
from research.analysis.decisions import Verdict
from research.analysis.rules import Contrast, Difference, Interaction

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
            assert re.search(r"\[M\]|\[L2?\]", one.figure + one.source) is None  # a tag is a field


def test_the_page_is_what_the_rows_say():
    assert ledger.PAGE.read_text() == claims_page.markdown(ledger.judged(RESULTS))


def test_documents_state_what_the_ledger_says():
    judged = ledger.judged(RESULTS)
    documents = [configs.ROOT / "README.md", *(configs.ROOT / "docs").rglob("*.md")]
    assert ledger.PAGE in documents
    found = {
        str(path): lines
        for path in documents
        if (lines := statements.contradictions(path.read_text(), judged))
    }
    assert found == {}
    assert {name for name, _ in statements.stated(ledger.PAGE.read_text())} >= {f"C{n}" for n in range(1, 19)}


STUDY = """
from __gin__ import dynamic_registration
from experiments import study
from research.analysis import claims
from research.analysis import rules

study.Table:
  arms = ('causal_lm', 'prefix_lm')
  seeds = {'smoke': (0, 1), 'small': (1, 2, 3, 4, 5)}
  columns = ('loss',)
  compared = {'all': ('causal_lm', 'prefix_lm')}
  claims = (@claims.SubClaim(),)
claims.SubClaim:
  id = 'C2.free_text'
  text = 'the causal decoder has the lower loss'
  rule = @rules.Contrast()
rules.Contrast:
  metric = 'metrics.loss'
  arm = 'prefix_lm'
  baseline = 'causal_lm'
  expect = 'greater'
"""


@pytest.fixture
def project(monkeypatch, tmp_path):
    """A project with the claims of this one and a study that declares a rule for one of them."""
    folder = tmp_path / "configs" / "tiny"
    folder.mkdir(parents=True)
    shutil.copy(configs.ROOT / "configs" / "claims.gin", folder.parent)
    (folder / "study.gin").write_text(STUDY)
    for arm in ("causal_lm", "prefix_lm"):
        (folder / f"{arm}.gin").write_text("")
    monkeypatch.setattr(configs, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_rows(project, *, rules):
    for arm, shift in (("causal_lm", 0.0), ("prefix_lm", 0.5)):
        for seed in (1, 2, 3, 4, 5):
            save(
                arm,
                seed,
                seed + shift + 0.01 * (seed == 2) * (arm == "prefix_lm"),
                rules,
                project / "results",
            )


def test_a_study_is_judged_by_its_own_arms_seeds_and_rows(project):
    (finding,) = ledger.of_study("tiny", project / "results")
    assert (finding.verdict, finding.scale) == (Verdict.NOT_RUN, "small")
    assert "causal_lm lacks seeds 1, 2, 3, 4, 5" in finding.reason
    table = configs.load(study.Table, ["configs/tiny/study.gin"])
    save_rows(project, rules=claims.declared(table.claims, table.seeds["small"]))
    (finding,) = ledger.of_study("tiny", project / "results")
    assert (finding.verdict, finding.study) == (Verdict.SUPPORTED, "tiny")
    assert finding.found is not None
    assert finding.found.effect.n == 5
    (elsewhere,) = ledger.of_study(
        "tiny", project / "results", "base"
    )  # a scale that the study does not have
    assert (elsewhere.verdict, elsewhere.scale) == (Verdict.NOT_RUN, "base")


def test_the_claims_of_a_project_follow_from_its_rows(project):
    table = configs.load(study.Table, ["configs/tiny/study.gin"])
    save_rows(project, rules=claims.declared(table.claims, table.seeds["small"]))
    found = ledger.judged(project / "results")
    findings = {finding.subclaim.id: finding.verdict for one in found for finding in one.findings}
    assert findings == {"C2.free_text": Verdict.SUPPORTED}
    judged = {one.claim.id: one.verdict for one in found}
    assert judged["C2"] == Verdict.UNDECLARED  # whose other parts no study decides
    assert set(judged.values()) == {Verdict.UNDECLARED}


def test_rows_from_before_the_rule_or_with_other_seeds_are_exploratory(project):
    table = configs.load(study.Table, ["configs/tiny/study.gin"])
    for rules in ({}, claims.declared(table.claims, (1, 2, 3, 4))):
        save_rows(project, rules=rules)
        (finding,) = ledger.of_study("tiny", project / "results")
        assert finding.verdict == Verdict.EXPLORATORY


def test_a_scale_that_claims_nothing_is_refused():
    with pytest.raises(
        configs.ConfigError, match="--scale=smoke: claims nothing, expected a scale such as small"
    ):
        ledger.judged(RESULTS, "smoke")


def save(arm, seed, loss, rules, folder):
    empty = {str: "", int: 0, bool: False}
    fields = {field.name: empty.get(field.type, {}) for field in dataclasses.fields(results.Row)}
    given = {
        "study": "tiny",
        "scale": "small",
        "arm": arm,
        "seed": seed,
        "key": "0" * 16,
        "design": arm,
        "environment": {"attention": "dense", "matmul_precision": "float32"},
        "data": {"fingerprint": "data", "order": f"order {seed}"},
        "metrics": {"loss": loss},
        "rules": rules,
    }
    results.save(results.Row(**{**fields, **given}), folder / "tiny" / "small" / "cells")


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
    code, out, error = command("--scale=smoke")
    assert (code, out) == (1, "")
    assert error == "error: --scale=smoke: claims nothing, expected a scale such as small\n"


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
    assert claims.declared([found], (0, 1)) == claims.declared([expected], (0, 1))


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
