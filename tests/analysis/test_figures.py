"""Figures show what the rows hold, name what they lack, and are the same bytes each time."""

import dataclasses
import math

import matplotlib
import matplotlib.text
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import configs
from research.analysis import drawing, figures, tables
from research.analysis.figures import Curves, Explained, FigureError, Frontier, HeatMap, Response, Scaling
from research.analysis.results import ResultError, Row
from research.analysis.statistics import mean_interval

ARMS = ("causal", "prefix", "encoder")


def row(arm, seed, metrics=None, *, key="0123456789abcdef", **given):
    """A row with these fields; its mappings are empty otherwise."""
    given |= {"arm": arm, "seed": seed, "key": key, "metrics": metrics or {}}
    kinds = {str: "", int: 0, bool: False}
    return Row(**{field.name: kinds.get(field.type, {}) for field in dataclasses.fields(Row)} | given)


def rows(arms=ARMS, seeds=(0, 1, 2)):
    """Rows with two numbers, a series and a grid, all of them different."""
    return [
        row(
            arm,
            seed,
            {
                "loss": 2 + i + seed**2 / 10,
                "kept": 5 - i + seed / 100,
                "long": {"loss": {"128": 1 + i + seed**2 / 8, "64": i + seed**2 / 4, "256": 2.5 + i}},
                "passkey": {"64": {"0.5": i + seed, "1.0": 7}, "128": {"0.5": 3 * i, "1.0": 5 - seed}},
            },
            budget={"parameters": 1000 * 4**i},
            config=f"optimizers.AdamW.learning_rate = {0.001 * 2**i}\n",
        )
        for i, arm in enumerate(arms)
        for seed in seeds
    ]


FRONTIER = Frontier(name="frontier", title="Learnt and kept", x="metrics.loss", y="metrics.kept")
CURVES = Curves(
    name="curves", title="Loss at lengths", metric="metrics.long.loss", x_label="length", mark=128
)
HEAT = HeatMap(
    name="heat", title="Passkey", metric="metrics.passkey", row_label="length", column_label="depth"
)
SCALING = Scaling(name="scaling", title="Size", y="metrics.loss", lines={"all sizes": ARMS})
RESPONSE = Response(name="response", title="Rates", binding="AdamW.learning_rate", metric="metrics.loss")
SPECS = [FRONTIER, CURVES, HEAT, SCALING, RESPONSE]
each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)


def lines(figure):
    """The points of every line or set of dots, by label."""
    return {line.get_label(): np.array(line.get_xydata()).tolist() for line in figure.axes[0].get_lines()}


def words(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def legend(figure):
    return [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()]


def note(figure):
    return figure.get_supxlabel().replace("\n", " ")


def bars(figure):
    """The ends (low, high) of all error bars along y."""
    segments = [s for c in figure.axes[0].collections if hasattr(c, "get_segments") for s in c.get_segments()]
    return sorted((s[0][1], s[1][1]) for s in segments if len(s) == 2 and s[0][0] == s[1][0])


@each_spec
def test_a_rebuild_is_the_same_byte_for_byte_whatever_the_users_settings(spec, tmp_path):
    first = figures.save(spec.draw(rows(), ARMS), tmp_path / "once")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black", "svg.hashsalt": "other"}):
        second = figures.save(spec.draw(rows()[::-1], ARMS), tmp_path / "again")
        assert matplotlib.rcParams["font.size"] == 20  # is the user's again
    assert [path.name for path in first] == ["once.svg", "once.png"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert b"<dc:date>" not in first[0].read_bytes()


def test_other_numbers_are_other_bytes(tmp_path):
    pairs = zip(rows(), rows()[::-1], strict=True)
    other = [dataclasses.replace(one, metrics=last.metrics) for one, last in pairs]
    first = figures.save(CURVES.draw(rows(), ARMS), tmp_path / "first")
    second = figures.save(CURVES.draw(other, ARMS), tmp_path / "second")
    assert first[0].read_bytes() != second[0].read_bytes()
    assert first[1].read_bytes() != second[1].read_bytes()


def test_a_name_with_dots_keeps_them(tmp_path):
    paths = figures.save(FRONTIER.draw(rows(), ARMS), tmp_path / "new" / "rate=0.001")
    assert [path.name for path in paths] == ["rate=0.001.svg", "rate=0.001.png"]


def test_a_frontier_is_a_point_an_arm_with_both_intervals_and_every_seed():
    figure = FRONTIER.draw(rows(), ARMS)
    found = lines(figure)
    for i, arm in enumerate(ARMS):
        losses, kept = [2 + i, 2.1 + i, 2.4 + i], [5 - i, 5.01 - i, 5.02 - i]
        np.testing.assert_allclose(found[arm], [[np.mean(losses), np.mean(kept)]])
        np.testing.assert_allclose(found[f"_{arm}: seeds of {arm}"], np.transpose([losses, kept]))
    halves = mean_interval([5, 5.01, 5.02]).half_width
    np.testing.assert_allclose(bars(figure), [(5.01 - i - halves, 5.01 - i + halves) for i in (2, 1, 0)])
    assert legend(figure) == list(ARMS)
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == (tables.MEASURES["loss"].label, "kept")


def test_arms_are_joined_in_the_order_of_their_line():
    spec = dataclasses.replace(FRONTIER, lines={"strength": ("encoder", "causal")})
    figure = spec.draw(rows(seeds=(0,)), ARMS)
    assert legend(figure) == ["strength: encoder, causal", "prefix"]
    assert lines(figure)["strength: encoder, causal"] == [[4, 3], [2, 5]]
    assert lines(figure)["_strength: encoder, causal: first"] == [[4, 3]]
    assert "The first arm of a line is hollow." in note(figure)


def test_a_figure_says_how_much_of_the_variance_a_line_explains():
    spec = Explained(name="e", title="t", x="metrics.loss", y="metrics.kept")
    assert "A straight line explains R^2 = 1" in note(spec.draw(rows(), ARMS))
    bent = [
        dataclasses.replace(one, metrics=one.metrics | {"kept": (0.0, 1.0, 0.5)[ARMS.index(one.arm)]})
        for one in rows()
    ]
    said = note(spec.draw(bent, ARMS))
    assert "explains R^2 = 0.25" in said
    assert "of the variance over 3 points" in said
    assert "explains" in figures.alt(spec, bent, ARMS)
    assert "explains" not in note(spec.draw(rows(arms=ARMS[:2]), ARMS))


def test_a_line_through_arms_that_trained_longer_has_intervals_both_ways_on_a_logarithmic_axis():
    arms = tuple(f"{base}@{times}x" for base in ("causal", "prefix") for times in (1, 2, 4))
    losses = {arm: np.array([2.0, 2.1, 2.4]) - i / 10 for i, arm in enumerate(arms)}
    found = [
        row(arm, seed, {"loss": loss}, budget={"train_flops": 1e12 * int(arm[-2]) * (1 + seed / 100)})
        for arm in arms
        for seed, loss in enumerate(losses[arm])
    ]
    lines_of = {"causal": arms[:3], "prefix": arms[3:]}
    spec = Frontier(name="c", title="t", x="budget.train_flops", y="metrics.loss", lines=lines_of, log_x=True)
    figure = spec.draw(found, arms)
    drawn = {label.replace("\n", " "): points for label, points in lines(figure).items()}
    for name, members in lines_of.items():
        expected = [
            (1.01e12 * times, losses[arm].mean()) for times, arm in zip((1, 2, 4), members, strict=True)
        ]
        np.testing.assert_allclose(drawn[f"{name}: {', '.join(members)}"], expected)
    half = mean_interval(losses["causal@1x"]).half_width
    expected = sorted((loss.mean() - half, loss.mean() + half) for loss in losses.values())
    np.testing.assert_allclose(bars(figure), expected)
    assert figure.axes[0].get_xscale() == "log"
    assert figure.axes[0].get_yscale() == "linear"


def test_arms_whose_rows_lack_a_measure_are_named_with_it():
    measured = {("causal", 0): 0.5, ("causal", 1): 0.6, ("causal", 2): None, ("prefix", 0): 0.7}
    found = [
        dataclasses.replace(
            one,
            timing={"latency_seconds": measured[one.arm, one.seed]}
            if (one.arm, one.seed) in measured
            else {},
        )
        for one in rows()
    ]
    spec = dataclasses.replace(FRONTIER, x="timing.latency_seconds", x_label="latency")
    figure = spec.draw(found, ARMS)
    np.testing.assert_allclose(lines(figure)["causal"], [[0.55, 5.005]])
    np.testing.assert_allclose(lines(figure)["prefix"], [[0.7, 4]])
    assert lines(figure)["encoder"] == []
    said = "missing: causal (2/3 seeds), prefix (1/3 seeds), encoder (0/3 seeds)"
    assert said in note(figure)
    assert "rows without latency: causal, prefix, encoder" in note(figure)
    assert f"{said}. rows without latency: causal, prefix, encoder." in figures.alt(spec, found, ARMS)
    assert "rows without" not in note(FRONTIER.draw(found[:-1], ARMS))  # a row is missing, not a measure
    with pytest.raises(FigureError, match=r"'timing.latency_seconds' is in no row, expected a number"):
        spec.draw(rows(), ARMS)


@pytest.mark.parametrize("spec", [FRONTIER, CURVES, RESPONSE], ids=lambda spec: spec.name)
def test_a_single_seed_has_no_interval(spec):
    figure = spec.draw(rows(seeds=(4,)), ARMS)
    assert bars(figure) == []
    assert all(math.isnan(y) for band in areas(figure).values() for y in band)
    assert "What has one seed has no interval." in note(figure)
    assert not any("seeds of" in label for label in lines(figure))
    assert "What has one seed" not in note(spec.draw(rows(), ARMS))


def areas(figure):
    """The ends along y of every band, by label, nan where there is none."""
    return {
        area.get_label(): [y for path in area.get_paths() for _, y in path.vertices] or [math.nan]
        for area in figure.axes[0].collections
        if "band" in str(area.get_label())
    }


def test_curves_follow_the_numbers_that_the_labels_are():
    figure = CURVES.draw(rows(), ARMS)
    found = lines(figure)
    np.testing.assert_allclose(found["prefix"], [[64, 1 + 5 / 12], [128, 2 + 5 / 24], [256, 3.5]])
    assert found["_prefix: seeds of 64"] == [[64, 1], [64, 1.25], [64, 2]]
    half = mean_interval([1, 1.25, 2]).half_width
    assert max(areas(figure)["_prefix: band"]) >= 1 + 5 / 12 + half - 1e-9
    assert min(areas(figure)["_prefix: band"]) == pytest.approx(1 + 5 / 12 - half)
    assert found["trained on (128)"][0][0] == 128
    assert legend(figure) == [*ARMS, "trained on (128)"]


def test_labels_that_are_no_numbers_follow_one_another_by_name():
    arms = ("a", "b")
    parts = [row(arm, seed, {"by": {"code": 1, "law": 2 + seed}}) for arm in arms for seed in (0, 1)]
    figure = Curves(name="parts", title="Parts", metric="metrics.by").draw(parts, arms)
    assert lines(figure)["a"] == [[0, 1], [1, 2.5]]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["code", "law"]


def test_series_with_different_labels_are_each_drawn_as_far_as_they_go():
    found = [
        row("causal", 0, {"loss": {"64": 1, "128": 2}}),
        row("causal", 1, {"loss": {"64": 3, "128": None}}),
        row("prefix", 0, {"loss": {"64": 5, "512": 6}}),
        row("prefix", 1, {"loss": {"64": 5, "512": 6}}),
    ]
    figure = Curves(name="c", title="t", metric="metrics.loss").draw(found, ("causal", "prefix"))
    assert lines(figure)["causal"] == [[64, 2], [128, 2]]
    assert [x for x, _ in lines(figure)["prefix"]] == pytest.approx([64, math.nan, 512], nan_ok=True)
    assert "missing: causal at 128 (1/2 seeds), causal at 512 (0/2 seeds), prefix at 128 (0/2 seeds)" in note(
        figure
    )


def test_a_line_breaks_where_an_arm_lacks_a_label_and_a_point_alone_keeps_its_interval():
    def series(i, *labels):
        return {"loss": {label: i + int(label) / 64 for label in labels}}

    labels = ("64", "128", "256", "512", "1024")
    found = [row("a", seed, series(seed**2, *labels)) for seed in (0, 1)]
    found += [row("b", seed, series(seed**2, "128", "512", "1024")) for seed in (0, 1)]
    figure = Curves(name="c", title="t", metric="metrics.loss").draw(found, ("a", "b"))
    assert [y for _, y in lines(figure)["b"]] == pytest.approx([2.5, math.nan, 8.5, 16.5], nan_ok=True)
    assert len(lines(figure)["a"]) == 5
    assert "missing: b at 64 (0/2 seeds), b at 256 (0/2 seeds)" in note(figure)
    half = mean_interval([2, 3]).half_width
    assert bars(figure) == [pytest.approx((2.5 - half, 2.5 + half))]  # at 128, where a band has no width


def test_a_response_breaks_at_a_value_that_was_not_measured():
    def swept(rate, metrics):
        config = f"optimizers.AdamW.learning_rate = {rate}\n"
        return row(f"a@learning_rate={rate}", 0, metrics, config=config)

    found = [swept(0.01, {"loss": 3.0}), swept(0.003, {"other": 1.0}), swept(0.001, {"loss": 1.0})]
    figure = RESPONSE.draw(found, [one.arm for one in found])
    assert [y for _, y in lines(figure)["a"]] == pytest.approx([1, math.nan, 3], nan_ok=True)


@each_spec
def test_what_is_missing_is_named_and_stays_in_the_legend(spec):
    some = [one for one in rows() if one.arm == "causal" or (one.arm == "prefix" and one.seed < 2)]
    figure = spec.draw(some, ARMS)
    assert "missing: prefix (2/3 seeds), encoder (0/3 seeds)" in note(figure)
    assert "missing: prefix (2/3 seeds), encoder (0/3 seeds)." in figures.alt(spec, some, ARMS)
    assert "missing: causal (3/4 seeds)" in note(spec.draw(some, ARMS, (0, 1, 2, 3)))
    # An arm that is to run fewer seeds lacks none that it does not run.
    fewer = {"causal": (0, 1, 2, 3), "prefix": (0, 1), "encoder": ()}
    assert "missing: causal (3/4 seeds)." in figures.alt(spec, some, ARMS, fewer)
    assert all(any(arm in text for text in words(figure)) for arm in ARMS)


def test_an_arm_without_the_measure_is_missing():
    some = [row("encoder", seed, {"other": 1}) for seed in (0, 1, 2)] + rows(ARMS[:2])
    figure = FRONTIER.draw(some, ARMS)
    assert "missing: encoder (0/3 seeds)" in note(figure)
    assert lines(figure)["encoder"] == []
    with pytest.raises(FigureError, match="no rows of encoder; launch"):
        dataclasses.replace(FRONTIER, arms=("encoder",)).draw(rows(ARMS[:2]), ARMS)


def test_an_arm_looks_the_same_in_every_figure():
    colours = []
    for spec in (FRONTIER, CURVES, dataclasses.replace(FRONTIER, arms=("encoder", "prefix"))):
        found = {line.get_label(): line for line in spec.draw(rows(), ARMS).axes[0].get_lines()}
        colours.append((found["prefix"].get_color(), found["prefix"].get_marker()))
    assert len(set(colours)) == 1


def test_an_arm_looks_the_same_in_a_response():
    found = [
        *rows(),
        row("encoder@learning_rate=0.1", 0, {"loss": 1.0}, config="optimizers.AdamW.learning_rate = 0.1\n"),
    ]
    arms = (*ARMS, found[-1].arm)
    looks = []
    for spec in (FRONTIER, dataclasses.replace(RESPONSE, arms=("encoder@learning_rate=0.1", "encoder"))):
        drawn = {line.get_label(): line for line in spec.draw(found, arms).axes[0].get_lines()}
        looks.append((drawn["encoder"].get_color(), drawn["encoder"].get_marker()))
    assert looks[0] == looks[1]


def test_looks_can_be_told_apart_and_seen_on_white():
    looks = {(drawing.COLOURS[i % 7], drawing.MARKERS[i % 8]) for i in range(56)}
    assert len(drawing.COLOURS) == 7
    assert len(looks) == 56
    for colour in drawing.COLOURS:
        assert drawing.contrast(colour, "white") >= 3


def test_contrast_by_hand():
    assert drawing.contrast("black", "white") == pytest.approx(21)
    assert drawing.contrast("white", "#767676") == pytest.approx(4.54, abs=0.005)  # WCAG's own example
    assert drawing.contrast("#767676", "white") == drawing.contrast("white", "#767676")


@pytest.mark.parametrize("values", [range(256), (3,)], ids=["all", "equal"])
def test_every_number_of_a_heat_map_can_be_read(values):
    grid = {str(i): {"0": i} for i in values}
    panel = HEAT.draw([row("a", 0, {"passkey": grid})], ("a",)).axes[0]
    assert len(panel.texts) == len(values)
    for text, (value,) in zip(panel.texts, panel.images[0].get_array(), strict=True):
        ground = panel.images[0].to_rgba(float(value))[:3]
        assert drawing.contrast(text.get_color(), ground) >= 4.5


@given(st.tuples(*[st.floats(0, 1)] * 3))
def test_ink_is_read_on_any_ground(ground):
    assert drawing.contrast(drawing.ink(ground), ground) >= 4.5


@each_spec
def test_no_text_is_too_small_to_read(spec):
    texts = [text for text in spec.draw(rows(), ARMS).findobj(matplotlib.text.Text) if text.get_text()]
    assert min(text.get_fontsize() for text in texts) >= 8


@each_spec
def test_nothing_is_cut_off(spec):
    arms = tuple(f"encoder_decoder_half_denoising_{i}" for i in range(9))
    spec = dataclasses.replace(
        spec, title="A long title " * 12, **({"lines": {}} if "lines" in vars(spec) else {})
    )
    figure = spec.draw(rows(arms)[:-2], arms)
    figure.draw_without_rendering()  # lays it out
    box = figure.get_tightbbox()
    assert min(box.x0, box.y0) >= -0.01
    assert box.x1 <= figure.get_figwidth() + 0.01
    assert box.y1 <= figure.get_figheight() + 0.01


def test_a_heat_map_prints_means_on_one_scale():
    figure = HEAT.draw(rows(), ARMS[:2])
    panels = figure.axes[:2]
    assert [panel.get_title() for panel in panels] == ["causal", "prefix"]
    assert panels[1].images[0].get_array().tolist() == [[2, 7], [3, 4]]
    assert [text.get_text() for text in panels[1].texts] == ["2.00", "7.00", "3.00", "4.00"]
    assert {panel.images[0].get_clim() for panel in panels} == {(0, 7)}
    assert [tick.get_text() for tick in panels[0].get_yticklabels()] == ["64", "128"]


def test_a_cell_without_a_number_is_hatched_and_one_with_few_seeds_is_named():
    found = [
        row("a", 0, {"passkey": {"64": {"0": 1, "1": 0}, "128": {"0": 0.5}}}),
        row("a", 1, {"passkey": {"64": {"0": 0}, "128": {"0": 0.5}}}),
    ]
    figure = HEAT.draw(found, ("a",))
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.50", "0.00", "0.50"]
    (hatched,) = figure.axes[0].patches
    assert hatched.get_xy() == (0.5, 0.5)
    assert "missing: a at 64, 1 (1/2 seeds)" in note(figure)


def test_a_power_law_is_found_with_its_interval_over_seeds():
    sizes = {"s": 1e4, "l": 4e5, "m": 7e4}
    slopes = (-0.10, -0.12, -0.14)
    found = [
        row(arm, seed, {"loss": 9 * size**slope}, budget={"parameters": size})
        for arm, size in sizes.items()
        for seed, slope in enumerate(slopes)
    ]
    spec = dataclasses.replace(SCALING, lines={"law": ("s", "l", "m")})
    figure = spec.draw(found, tuple(sizes))
    half = mean_interval(slopes).half_width
    assert legend(figure) == [f"law: s, l, m; exponent -0.12 ± {half:.2g}"]
    assert "power laws fitted to each seed" in note(figure)
    (trend,) = (np.array(xy) for label, xy in lines(figure).items() if label.endswith(": trend"))
    np.testing.assert_allclose(trend[:, 1], 9 * trend[:, 0] ** -0.12)
    assert (figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) == ("log", "log")
    two = dataclasses.replace(spec, lines={"law": ("s", "l")})
    assert "exponent" not in " ".join(legend(two.draw(found, tuple(sizes))))


def test_a_response_reads_the_binding_from_the_rows_config_and_separates_other_bindings():
    def swept(arm, rate, steps, loss):
        config = f"RATE = {rate}\noptimizers.AdamW.learning_rate = %RATE\nexperiment.train.steps = {steps}\n"
        return row(arm, 0, {"loss": loss}, config=config)

    found = [
        swept("causal", 0.003, 80, 2.0),
        swept("causal@learning_rate=0.01", 0.01, 80, 3.0),
        swept("causal@learning_rate=0.001", 0.001, 80, 1.0),
        swept("causal@AdamW.learning_rate=0.001+steps=200", 0.001, 200, 0.5),
        swept("causal@steps=200", 0.003, 200, 0.4),
        row("sgd", 0, {"loss": 7.0}, config="optimizers.SGD.learning_rate = 1.0\n"),
    ]
    figure = RESPONSE.draw(found, [one.arm for one in found])
    drawn = lines(figure)
    assert drawn["causal"] == [[0.001, 1], [0.003, 2], [0.01, 3]]
    assert drawn["causal@steps=200"] == [[0.001, 0.5], [0.003, 0.4]]
    assert legend(figure) == ["causal", "causal@steps=200", "sgd"]
    assert "without AdamW.learning_rate: sgd" in note(figure)
    by_name = dataclasses.replace(RESPONSE, binding="StackConfig.norm")
    named = [row("a", 0, {"loss": 1.0}, config="config.StackConfig.norm = 'rms'\n")]
    axes = by_name.draw(named, ("a",)).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["'rms'"]


def test_a_scope_chooses_among_several_values():
    config = "enc/config.StackConfig.width = 8\ndec/config.StackConfig.width = 16\n"
    found = [row("a", 0, {"loss": 1.0}, config=config)]
    scoped = dataclasses.replace(RESPONSE, binding="dec/StackConfig.width")
    assert lines(scoped.draw(found, ("a",)))["a"] == [[16, 1]]
    with pytest.raises(FigureError, match="is 16 and 8, expected one value; name its scope"):
        dataclasses.replace(RESPONSE, binding="StackConfig.width").draw(found, ("a",))


@pytest.mark.parametrize(
    ("spec", "changes", "said"),
    [
        (
            FRONTIER,
            {"x": "metrics.los"},
            "'metrics.los' is in no row, expected a number; did you mean 'metrics.loss'",
        ),
        (FRONTIER, {"x": "metrics.long.loss"}, "is a series of numbers by a label, expected a number"),
        (
            CURVES,
            {"metric": "metrics.loss"},
            "is a number, expected a series .*; did you mean 'metrics.long.loss'",
        ),
        (HEAT, {"metric": "metrics.pass"}, "expected a grid .*; did you mean 'metrics.passkey'"),
        (FRONTIER, {"arms": ("casual",)}, "no arm 'casual'; did you mean 'causal'"),
        (SCALING, {"lines": {"a": ("encodr",)}}, "no arm 'encodr'; did you mean 'encoder'"),
        (RESPONSE, {"binding": "AdamW.learning"}, "did you mean 'optimizers.AdamW.learning_rate'"),
        (CURVES, {"metric": "metrics.long.loss", "log_y": True}, "log_y, but"),
    ],
)
def test_what_is_declared_wrongly_is_said_in_one_line(spec, changes, said):
    found = [*rows(), row("causal", 3, {"long": {"loss": {"64": -9.0}}})]
    with pytest.raises(FigureError, match=said) as caught:
        dataclasses.replace(spec, **changes).draw(found, ARMS)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_no_file_name_is_refused():
    with pytest.raises(FigureError, match="name = 'a/b'"):
        dataclasses.replace(FRONTIER, name="a/b")


def test_no_rows_and_two_rows_of_a_cell_are_refused():
    with pytest.raises(FigureError, match="no rows of causal, prefix, encoder; launch the study"):
        FRONTIER.draw([], ARMS)
    twice = [*rows(), dataclasses.replace(rows()[0], key="another")]
    with pytest.raises(ResultError, match="expected one row"):
        FRONTIER.draw(twice, ARMS)


def test_the_words_hold_the_numbers():
    spec = dataclasses.replace(FRONTIER, caption="What it means.", arms=("prefix",))
    half = mean_interval([3, 3.1, 3.4]).half_width
    assert figures.alt(spec, rows(), ARMS) == (
        "Learnt and kept. What it means. kept against held-out loss per target token (nats). "
        f"prefix 4.01 ± 0.025 at 3.167 ± {half:.2g}."
    )
    assert "causal: 0.4167 ± 1.3 at 64; 1.208 ± 0.65 at 128; 2.5 at 256." in figures.alt(CURVES, rows(), ARMS)
    assert "prefix: from 2.00 at 64, 0.5 to 7.00 at 64, 1.0, mean 4.00." in figures.alt(HEAT, rows(), ARMS)


def test_of_many_points_the_telling_ones_are_said():
    series = {str(i): {3: -1.0, 7: 9.0}.get(i, 1.0) for i in range(1, 20)}
    said = figures.alt(CURVES, [row("a", 0, {"long": {"loss": series}})], ("a",))
    assert "a: 1 at 1; -1 at 3; 9 at 7; 1 at 19." in said


def test_gin_binds_them(tmp_path):
    file = tmp_path / "study.gin"
    file.write_text(
        """from __gin__ import dynamic_registration
from research.analysis import figures

figures.Frontier:
  name = 'frontier'
  title = 'Learnt and kept'
  x = 'metrics.loss'
  y = 'metrics.kept'
  lines = {'strength': ('encoder', 'causal')}
"""
    )
    bound = configs.load(Frontier, [str(file)])
    assert bound == dataclasses.replace(FRONTIER, lines={"strength": ("encoder", "causal")})
    with pytest.raises(configs.ConfigError, match="lines = 3: expected dict"):
        configs.load(Frontier, [str(file)], ["Frontier.lines=3"])
