"""Points of labels, curves with crossings, and maps of crossed arms: what is drawn, said and refused."""

import dataclasses

import numpy as np
import pytest
from test_figures import ARMS, CURVES, legend, lines, note, row, rows

from research.analysis import figures
from research.analysis.figures import Crossed, FigureError, Points

POINTS = Points(
    name="ways",
    title="Ways",
    x="metrics.cost",
    y="metrics.loops",
    points={"greedy": ("causal", "greedy"), "drawn": ("causal", "drawn"), "other": ("prefix", "greedy")},
)
CROSSED = Crossed(
    name="map",
    title="Map",
    metric="metrics.loss",
    columns=("causal", "prefix"),
    rows={"plain": ("causal", "prefix"), "copies": ("encoder", "")},
    label="loss",
)


def ways(seeds=(0, 1)):
    return [
        row(
            arm,
            seed,
            {
                "cost": {"greedy": 1.0 + place + seed, "drawn": 3.0 + seed},
                "loops": {"greedy": 0.5, "drawn": 0.1 * seed},
            },
        )
        for place, arm in enumerate(ARMS)
        for seed in seeds
    ]


def test_points_are_labels_of_arms():
    drawn = lines(POINTS.draw(ways(), ARMS))
    assert drawn["greedy"] == [[1.5, 0.5]]
    assert drawn["drawn"] == [[3.5, pytest.approx(0.05)]]
    assert drawn["other"] == [[2.5, 0.5]]
    assert POINTS.arms == ("causal", "prefix")
    assert "other 0.5 at 2.5" in figures.alt(POINTS, ways(), ARMS)


def test_a_point_that_a_seed_lacks_is_named():
    found = [
        dataclasses.replace(one, metrics={}) if (one.arm, one.seed) == ("prefix", 1) else one
        for one in ways()
    ]
    assert "missing: other (1/2 seeds)" in note(POINTS.draw(found, ARMS))


def test_points_of_nothing_or_of_other_arms_are_refused():
    with pytest.raises(FigureError, match="figure ways: points of"):
        dataclasses.replace(POINTS, points={})
    with pytest.raises(FigureError, match="and no other arms"):
        dataclasses.replace(POINTS, arms=("causal",))


def test_a_curve_has_a_level_and_where_it_is_reached():
    spec = dataclasses.replace(CURVES, level=0.5, level_label="half", crossing="metrics.kept", mark=None)
    figure = spec.draw(rows(), ARMS)
    drawn = lines(figure)
    assert drawn["half (0.5)"] == [[0, 0.5], [1, 0.5]]
    np.testing.assert_allclose(drawn["_causal"], [[5.01, 0.5]])
    assert legend(figure) == [*ARMS, "half (0.5)"]
    assert "causal: kept 5.01 ± 0.025" in figures.alt(spec, rows(), ARMS)


def test_a_crossing_without_a_level_is_refused():
    with pytest.raises(FigureError, match="figure curves: crossing = 'metrics.kept', but no level"):
        dataclasses.replace(CURVES, crossing="metrics.kept")


def test_a_map_has_the_mean_of_each_arm_in_its_place():
    figure = CROSSED.draw(rows(), ARMS)
    panel = figure.axes[0]
    shown = panel.images[0].get_array()
    np.testing.assert_allclose(shown.filled(-1), [[2 + 5 / 30, 3 + 5 / 30], [4 + 5 / 30, -1]])
    assert [text.get_text() for text in panel.texts] == ["2.17", "3.17", "4.17"]
    assert "plain: causal 2.167 ± 0.52, prefix 3.167 ± 0.52" in figures.alt(CROSSED, rows(), ARMS)


def test_a_map_names_what_is_missing():
    found = [one for one in rows() if (one.arm, one.seed) != ("encoder", 2)]
    assert "missing: encoder (2/3 seeds)" in note(CROSSED.draw(found, ARMS, (0, 1, 2)))


def test_a_map_needs_an_arm_or_none_in_every_place():
    with pytest.raises(FigureError, match="row 'plain' has 1 arms, expected one for each"):
        dataclasses.replace(CROSSED, rows={"plain": ("causal",)})
    with pytest.raises(FigureError, match="expected an arm"):
        dataclasses.replace(CROSSED, rows={"plain": ("", "")})
