"""Tables of labels: numbers in their places, people last, marks where a metric is filtered."""

import pytest
from test_figures import row

from research.analysis.labels import Labelled
from research.analysis.rendering import markdown
from research.analysis.tables import TableError

SPEC = Labelled(
    name="ways",
    arm="causal",
    of="metrics.ways",
    metrics=("loops", "mauve"),
    labels=("greedy", "blocked"),
    filtered={"blocked": ("loops",)},
)
KNOWN = {"causal": (0, 1), "prefix": (0, 1)}


def rows(**more):
    ways = {
        "loops": {"greedy": 0.5, "blocked": 0.0},
        "mauve": {"greedy": 0.25, "blocked": 0.125},
        "human": {"loops": 0.01},
    }
    return [row("causal", seed, {"ways": ways | more}) for seed in KNOWN["causal"]]


def test_a_line_a_label_and_people_last():
    table = SPEC.table(rows(), KNOWN)
    assert [line.arm for line in table.lines] == ["greedy", "blocked", "human"]
    assert [[cell.text for cell in line.cells] for line in table.lines] == [
        ["0.500", "0.250"],
        ["0.000‡", "0.125"],
        ["0.010", "n/a"],
    ]
    assert "‡: lowered by construction" in markdown(table)
    assert SPEC.paths == ("metrics.ways.loops", "metrics.ways.mauve")


def test_means_have_intervals_and_missing_seeds_are_counted():
    first, second = rows(), rows(loops={"greedy": 0.7, "blocked": 0.0})
    (line, *_) = SPEC.table([first[0], second[1]], KNOWN).lines
    assert line.cells[0].estimate.mean == pytest.approx(0.6)
    assert line.cells[0].estimate.half_width > 0
    assert [one.seeds for one in SPEC.table(first[:1], KNOWN).lines] == ["1/2 seeds"] * 3


def test_what_is_declared_wrongly_is_said():
    with pytest.raises(TableError, match="Labelled 'ways': filtered = .'cut'."):
        Labelled(name="ways", arm="a", of="m", metrics=("x",), labels=("y",), filtered={"cut": ("x",)})
    with pytest.raises(TableError, match="Labelled 'ways': no arm 'causal'; did you mean 'casual'"):
        SPEC.table(rows(), {"casual": (0,)})
