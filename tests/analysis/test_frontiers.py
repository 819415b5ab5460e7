"""Which arms slide along a frontier, and which shift it."""

import dataclasses

import pytest

from research.analysis.frontiers import Shifts, interpolated
from research.analysis.results import Row
from research.analysis.tables import TableError

SEEDS = range(5)
SLOPE = {"slow": (3.0, 1.0), "middle": (2.0, 1.5), "fast": (1.0, 2.5)}  # what it learned, what it forgot
SPEC = Shifts(
    name="code", learned="metrics.new", forgotten="metrics.old", frontier=tuple(SLOPE), arms=("a", "b")
)


def rows(arm, learned, forgotten, seeds=SEEDS, noise=0.001, **data):
    """Seeds differ by much and have that in common, and by a little of their own."""
    kinds = {str: "", int: 0, bool: False}
    blank = {field.name: kinds.get(field.type, {}) for field in dataclasses.fields(Row)}
    blank["environment"] = {"attention": "dense", "matmul_precision": "highest"}
    blank["data"] = {"fingerprint": data.get("fingerprint", "one"), "order": "o"}
    return [
        Row(
            **blank
            | {
                "arm": arm,
                "seed": seed,
                "key": "0123456789abcdef",
                "metrics": {"new": learned + seed, "old": forgotten + 2 * seed + noise * (-1) ** seed},
            }
        )
        for seed in seeds
    ]


FRONTIER = [
    row for arm, (learned, forgotten) in SLOPE.items() for row in rows(arm, learned, forgotten, noise=0)
]


def table(*further, spec=SPEC, **options):
    known = dict.fromkeys((*SLOPE, "a", "b"), tuple(SEEDS))
    return spec.table([*FRONTIER, *further], known, **{"varied": False, **options})


def classes(found):
    return {line.arm: line.cells[-1].text for line in found.lines}


def test_a_height_is_read_off_straight_lines_and_never_beyond():
    points = [(3.0, 1.0), (1.0, 2.0), (2.0, 0.0)]
    assert interpolated(points, 1.25) == 1.5
    assert interpolated(points, 3.0) == 1.0
    assert interpolated(points, 0.99) is interpolated(points, 3.01) is None
    with pytest.raises(ValueError, match="two points have one place"):
        interpolated([*points, (2.0, 5.0)], 1.0)


@pytest.mark.parametrize(
    ("height", "noise", "expected"),
    [
        (2.0, 0.001, "slides"),
        (1.985, 0.001, "slides"),
        (1.9, 0.001, "shifts"),
        (2.1, 0.001, "worse"),
        (1.9, 0.5, "undecided"),
        (2.0, 0.5, "undecided"),
        (1.98, 0.001, "undecided"),
    ],
)
def test_a_class_follows_from_the_interval_and_the_margin(height, noise, expected):
    found = table(*rows("a", 1.5, height, noise=noise))
    assert classes(found) == {"a": expected, "b": "n/a"}
    (line, missing) = found.lines
    assert line.cells[2].estimate.mean == pytest.approx(height - 2.0 + noise / 5)
    assert [cell.text for cell in missing.cells] == ["n/a"] * 4
    assert missing.seeds == "missing"


def test_what_learns_less_or_more_than_the_frontier_is_not_comparable():
    for learned in (0.9, 3.1):
        assert classes(table(*rows("a", learned, 1.0)))["a"] == "not comparable"
    # One seed of five beyond it.
    odd = rows("a", 1.5, 1.0)
    odd[2] = dataclasses.replace(odd[2], metrics=odd[2].metrics | {"new": 100.0})
    found = table(*odd)
    assert classes(found)["a"] == "not comparable"
    assert "(n=4)" in found.lines[0].cells[2].text
    assert classes(table(*rows("a", 1.5, 1.0, seeds=(0,))))["a"] == "one seed"


def test_the_error_of_interpolation_is_told_from_the_inner_points():
    """Between slow and fast the line is at 1.75, and the middle at 1.5."""
    assert "misses it by (positive: it lies above) middle +0.250." in table().notes[-1]


def test_rows_of_other_data_are_refused_unless_the_study_varies_it():
    other = rows("a", 1.5, 1.9, fingerprint="two")
    with pytest.raises(TableError, match=r"data.fingerprint: 'one' in .* but 'two'"):
        table(*other)
    assert classes(table(*other, varied=True))["a"] == "shifts"


def test_what_cannot_be_is_one_line():
    with pytest.raises(TableError, match=r"Shifts 'code': no arm 'c'; did you mean"):
        table(spec=dataclasses.replace(SPEC, arms=("c",)))
    for frontier in (("slow", "fast"), ("slow", "fast", "slow")):
        with pytest.raises(TableError, match="expected at least 3 different arms"):
            dataclasses.replace(SPEC, frontier=frontier)
