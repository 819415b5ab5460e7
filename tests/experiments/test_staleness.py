"""Which rows a change of the code makes stale."""

import json
import math

import pytest
from test_launch import launched, project, rows  # noqa: F401 (a fixture)

from experiments import staleness

REPLAY = {"losses": [3.0, 2.0, 1.0], "evaluation": 1.5}


@pytest.mark.parametrize(
    ("after", "moved"),
    [
        (REPLAY, 0.0),
        ({**REPLAY, "evaluation": 1.5 * (1 + 1e-4)}, 1e-4),
        ({**REPLAY, "losses": [3.0, 2.0 * (1 - 1e-3), 1.0]}, 1e-3),
        ({**REPLAY, "losses": [3.0, 2.0]}, math.inf),
        ({**REPLAY, "losses": [3.0, math.nan, 1.0]}, math.inf),
    ],
)
def test_the_furthest_loss_counts(after, moved):
    assert staleness.furthest(REPLAY, after) == pytest.approx(moved, rel=1e-3)


def edit(project, name, before, after):  # noqa: F811
    path = project / name
    text = path.read_text()
    assert text.count(before) >= 1, (name, before)
    path.write_text(text.replace(before, after))


@pytest.mark.slow
def test_only_what_moves_a_loss_makes_rows_stale(project):  # noqa: F811
    """A second arm uses YaRN, whose scores have a scale of their own."""
    folder = project / "configs" / "tiny"
    (folder / "prefix.gin").write_text(
        "from __gin__ import dynamic_registration\n"
        "from research.attention import positions\nfrom research.attention import rotary\n"
        "from research.models import config\n"
        + (folder / "causal.gin").read_text()
        + "config.StackConfig.positions = @positions.Rotary()\n"
        "positions.Rotary.scaling = @rotary.YaRN()\nrotary.YaRN.factor = 4.0\nrotary.YaRN.trained = 32\n"
    )
    edit(project, "configs/tiny/study.gin", ", 'tokens_per_second'", "")
    code, _, wrong = launched(project)
    assert code == 0, wrong
    first = rows(project)

    edit(project, "research/attention/core.py", "of the scores; 1 / sqrt(d)", "of all scores; 1 / sqrt(d)")
    edit(project, "research/attention/core.py", "\ndef attend(", "\n# a comment\ndef attend(")
    code, said, wrong = launched(project)
    assert code == 0, wrong
    assert "replaying" not in said
    assert "0 of 4 cells to run" in said
    assert rows(project) == first

    edit(project, "research/attention/core.py", "needs_lse", "wants_lse")  # a rename
    edit(project, "research/attention/rotary.py", "_angles(", "_turns(")
    code, said, wrong = launched(project)
    assert code == 0, wrong
    assert "the code of 4 rows has changed; replaying their first steps" in said
    assert "stale" not in said
    assert "0 of 4 cells to run" in said
    renamed = rows(project)
    for name, row in renamed.items():
        assert row["code"]["fingerprint"] == first[name]["code"]["fingerprint"] != row["code"]["checked"]
        assert not row["code"]["stale"]
        assert {**row, "code": None} == {**first[name], "code": None}
    code, said, _ = launched(project)  # what was compared once is not compared again
    assert "replaying" not in said

    edit(
        project, "research/attention/rotary.py", "0.1 * math.log(self.factor)", "0.3 * math.log(self.factor)"
    )
    code, said, wrong = launched(project)
    assert code == 0, wrong
    assert "prefix seed 0  is stale: a loss moved by" in said
    assert "prefix seed 1  is stale: a loss moved by" in said
    assert "causal seed" not in said
    assert "0 of 4 cells to run" in said
    assert {row["arm"] for row in rows(project).values() if row["code"]["stale"]} == {"prefix"}
    table = (project / "results/tiny/smoke/table.md").read_text()
    assert "Stale, since the code has come to measure something else: prefix (seeds 0, 1)." in table

    code, said, wrong = launched(project, "--stale=rerun")
    assert code == 0, wrong
    assert "2 of 4 cells to run" in said
    again = rows(project)
    assert not any(row["code"]["stale"] for row in again.values())
    for name, row in again.items():
        moved = row["metrics"]["loss"] != first[name]["metrics"]["loss"]
        assert moved == (row["arm"] == "prefix")
    aside = sorted((project / "runs" / "tiny" / "smoke" / "stale").glob("*/*.json"))
    assert [json.loads(path.read_text())["seed"] for path in aside] == [
        0,
        1,
    ]  # nothing that was finished is lost
    assert "Stale" not in (project / "results/tiny/smoke/table.md").read_text()
