"""The map of differences: what is in a cell, which way is better, and what is said of what is not there."""

import dataclasses

import matplotlib
import numpy as np
import pytest
from test_figures import note, row

from experiments import configs
from research.analysis import drawing, figures
from research.analysis.figures import Differences, FigureError, Task
from research.analysis.statistics import mean_interval

LOSS = Task(
    title="Phonemes",
    metric="metrics.loss",
    baseline="phonemes_causal",
    arms=("phonemes_prefix", "phonemes_encoder_decoder"),
    unit="nats",
)
SCORE = Task(
    title="Sorting",
    metric="metrics.score",
    baseline="sorting_causal",
    arms=("sorting_prefix", ""),
    better="higher",
)
SPEC = Differences(
    name="gains", title="Gains", rows=("prefix", "encoder-decoder"), columns=(LOSS, SCORE), caption="By task."
)
ARMS = (
    "phonemes_causal",
    "phonemes_prefix",
    "phonemes_encoder_decoder",
    "sorting_causal",
    "sorting_prefix",
    "another",
)
LOSSES = {
    "phonemes_causal": (2.0, 3.0, 4.0),
    "phonemes_prefix": (1.5, 2.4, 3.6),
    "phonemes_encoder_decoder": (2.25, 3.5, 4.0),
}
SCORES = {"sorting_causal": (10.0, 20.0, 30.0), "sorting_prefix": (11.0, 24.0, 31.0)}


def rows():
    named = [("loss", LOSSES), ("score", SCORES)]
    return [
        row(arm, seed, {metric: value})
        for metric, arms in named
        for arm, values in arms.items()
        for seed, value in enumerate(values)
    ]


def cells(figure):
    """What is written and the shade, by column and line; the places that are hatched."""
    panel = figure.axes[0]
    shades = panel.images[0].get_array().filled(np.nan)
    written = {(text.get_position()): text.get_text() for text in panel.texts}
    hatched = {(patch.get_x() + 0.5, patch.get_y() + 0.5) for patch in panel.patches if patch.get_hatch()}
    return {place: (text, shades[place[1], place[0]]) for place, text in written.items()}, hatched


def test_a_cell_is_the_mean_paired_difference_and_positive_is_better_whichever_way_the_metric_goes():
    found, hatched = cells(SPEC.draw(rows(), ARMS))
    gained, lost = mean_interval([0.5, 0.6, 0.4]), mean_interval([-0.25, -0.5, 0])
    scored = mean_interval([1, 4, 1])
    assert found[0, 0] == (f"+0.5\n± {gained.half_width:.2g} †", pytest.approx(1))
    assert found[0, 1] == (f"-0.25\n± {lost.half_width:.2g}", pytest.approx(-0.25 / 0.5))
    assert found[1, 0] == (f"+2\n± {scored.half_width:.2g}", pytest.approx(1))
    assert found[1, 1] == ("–", pytest.approx(np.nan, nan_ok=True))
    assert hatched == set()


def test_its_arms_are_those_of_its_tasks():
    assert SPEC.arms == ARMS[:-1]


def test_lines_and_tasks_are_named_with_units_and_baselines():
    figure = SPEC.draw(rows(), ARMS)
    panel = figure.axes[0]
    assert [tick.get_text() for tick in panel.get_yticklabels()] == ["prefix", "encoder-decoder"]
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["Phonemes\n(nats)", "Sorting"]
    assert "Baselines: phonemes_causal (Phonemes), sorting_causal (Sorting)." in note(figure)
    assert "divided by the largest one of their task" in note(figure)
    assert "A dash: no such arm." in note(figure)
    assert "missing" not in note(figure)
    full = dataclasses.replace(SPEC, columns=(LOSS,))
    assert "A dash" not in note(full.draw(rows(), ARMS))


def test_only_seeds_that_both_have_are_compared_and_what_lacks_is_named():
    some = [
        one
        for one in rows()
        if (one.arm, one.seed) not in {("phonemes_causal", 1), ("phonemes_prefix", 2)}
        and one.arm != "sorting_prefix"
    ]
    figure = SPEC.draw(some, ARMS)
    found, hatched = cells(figure)
    assert found[0, 0][0] == "+0.5"  # of seed 0 alone
    assert found[0, 1][0] == f"-0.125\n± {mean_interval([-0.25, 0]).half_width:.2g}"
    assert hatched == {(1, 0)}
    assert "What has one seed has no interval." in note(figure)
    said = (
        "missing: phonemes_causal at Phonemes (2/3 seeds), prefix at Phonemes (1/3 seeds), encoder-decoder at "
        "Phonemes (2/3 seeds), prefix at Sorting (0/3 seeds)"
    )
    assert said in note(figure).replace("- ", "-")  # where a line ends
    assert figures.alt(SPEC, some, ARMS).endswith(f"{said}.")


def test_a_task_that_has_not_run_is_hatched_and_a_typo_is_an_error():
    some = [one for one in rows() if one.arm in LOSSES]
    figure = SPEC.draw(some, ARMS)
    assert cells(figure)[1] == {(1, 0)}
    assert "sorting_causal at Sorting (0/3 seeds)" in note(figure)
    assert "Sorting against sorting_causal: missing." in figures.alt(SPEC, some, ARMS)
    typo = dataclasses.replace(SPEC, columns=(dataclasses.replace(LOSS, metric="metrics.los"),))
    with pytest.raises(FigureError, match=r"'metrics.los' is in no row.*did you mean 'metrics.loss'"):
        typo.draw(some, ARMS)
    with pytest.raises(FigureError, match="no rows of phonemes_causal, phonemes_prefix"):
        SPEC.draw([row("another", 0, {"loss": 1.0})], ARMS)


def test_equal_arms_have_the_colour_of_zero():
    same = [row(arm, seed, {"loss": 2.0}) for arm in LOSSES for seed in (0, 1)]
    found, _ = cells(dataclasses.replace(SPEC, columns=(LOSS,)).draw(same, ARMS))
    assert found == {(0, 0): ("0", 0), (0, 1): ("0", 0)}


def test_seeds_that_all_agree_on_a_difference_are_marked():
    found = [row(arm, seed, {"loss": 2.0 + i}) for i, arm in enumerate(LOSSES) for seed in (0, 1)]
    texts = cells(dataclasses.replace(SPEC, columns=(LOSS,)).draw(found, ARMS))[0]
    assert [text for text, _ in texts.values()] == ["-1 †", "-2 †"]


def test_the_words_hold_the_numbers():
    half = [mean_interval(values).half_width for values in ([0.5, 0.6, 0.4], [-0.25, -0.5, 0], [1, 4, 1])]
    assert figures.alt(SPEC, rows(), ARMS) == (
        "Gains. By task. Differences paired by seed, positive where better than the baseline; † where the interval "
        f"excludes 0. Phonemes (nats) against phonemes_causal: prefix +0.5 ± {half[0]:.2g} †; encoder-decoder -0.25 ± "
        f"{half[1]:.2g}. Sorting against sorting_causal: prefix +2 ± {half[2]:.2g}."
    )


def test_a_rebuild_is_the_same_byte_for_byte(tmp_path):
    first = figures.save(SPEC.draw(rows(), ARMS), tmp_path / "once")
    with matplotlib.rc_context({"font.size": 20, "image.cmap": "jet", "svg.hashsalt": "other"}):
        second = figures.save(SPEC.draw(rows()[::-1], ARMS), tmp_path / "again")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_every_text_can_be_read_and_nothing_is_cut_off():
    columns = tuple(
        dataclasses.replace(
            LOSS, title=f"Grapheme-to-phoneme conversion {i}", arms=tuple(LOSSES)[1:] * 3, better=better
        )
        for i, better in enumerate(("lower", "higher") * 5)
    )
    spec = dataclasses.replace(
        SPEC,
        title="A long title " * 12,
        rows=tuple(f"encoder-decoder of half the depth, {i}" for i in range(6)),
        columns=columns,
    )
    figure = spec.draw(rows()[:-1], ARMS)
    figure.draw_without_rendering()  # lays it out
    box = figure.get_tightbbox()
    assert min(box.x0, box.y0) >= -0.01
    assert box.x1 <= figure.get_figwidth() + 0.01
    assert box.y1 <= figure.get_figheight() + 0.01
    panel = figure.axes[0]
    for text, shade in zip(panel.texts, np.ravel(panel.images[0].get_array()), strict=True):
        assert text.get_fontsize() >= drawing.SMALLEST
        ground = panel.images[0].to_rgba(float(shade))[:3]
        assert drawing.contrast(text.get_color(), ground) >= 4.5
        bounds, (x, y) = text.get_window_extent(), text.get_position()
        corners = panel.transData.transform([(x - 0.5, y + 0.5), (x + 0.5, y - 0.5)])
        assert (corners[0] <= bounds.p0).all()  # a cell is as large as its text
        assert (bounds.p1 <= corners[1]).all()


# Machado, Oliveira and Fernandes (2009), "A Physiologically-based Model for Simulation of Color Vision Deficiency":
# linear RGB as it is seen with no red, and with no green, cones.
@pytest.mark.parametrize(
    "seen",
    [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ],
    ids=["protanopia", "deuteranopia"],
)
def test_better_and_worse_differ_to_the_colour_blind(seen):
    image = SPEC.draw(rows(), ARMS).axes[0].images[0]
    for shade in (0.25, 0.5, 1.0):
        colours = np.array([image.to_rgba(value)[:3] for value in (-shade, shade)])
        linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
        worse, better = linear @ np.transpose(seen)
        assert better[2] - worse[2] > 0.1  # bluer


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": ()}, r"rows = \(\) of figure gains: expected at least one"),
        ({"rows": ("prefix", "prefix")}, "each with a name of its own"),
        ({"columns": ()}, r"columns = \(\) of figure gains"),
        ({"columns": (LOSS, LOSS)}, r"columns = \('Phonemes', 'Phonemes'\) of figure gains"),
        ({"rows": ("prefix",)}, "of task 'Phonemes' in figure gains: expected 1, one for each of prefix"),
        ({"name": "a/b"}, "name = 'a/b'"),
    ],
)
def test_what_is_declared_wrongly_is_said_in_one_line(changes, said):
    with pytest.raises(FigureError, match=said) as caught:
        dataclasses.replace(SPEC, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"baseline": "phonemes_casual"}, {"arms": ("phonemes_prefx", "")}])
def test_an_unknown_arm_is_said_in_one_line(changes):
    spec = dataclasses.replace(SPEC, columns=(dataclasses.replace(LOSS, **changes),))
    with pytest.raises(FigureError, match=r"no arm 'phonemes_\w+'; did you mean 'phonemes_(causal|prefix)'"):
        spec.draw(rows(), ARMS)


def test_gin_binds_them_with_their_tasks(tmp_path):
    file = tmp_path / "study.gin"
    file.write_text(
        """from __gin__ import dynamic_registration
from research.analysis import figures

figures.Differences:
  name = 'gains'
  title = 'Gains'
  caption = 'By task.'
  rows = ('prefix', 'encoder-decoder')
  columns = (@phonemes/figures.Task(), @sorting/figures.Task())
phonemes/figures.Task:
  title = 'Phonemes'
  metric = 'metrics.loss'
  baseline = 'phonemes_causal'
  arms = ('phonemes_prefix', 'phonemes_encoder_decoder')
  unit = 'nats'
sorting/figures.Task:
  title = 'Sorting'
  metric = 'metrics.score'
  baseline = 'sorting_causal'
  arms = ('sorting_prefix', '')
  better = 'higher'
"""
    )
    assert configs.load(Differences, [str(file)]) == SPEC
    with pytest.raises(configs.ConfigError, match="better = 'more': expected .*lower"):
        configs.load(Differences, [str(file)], ["sorting/figures.Task.better='more'"])
