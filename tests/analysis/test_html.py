"""The page of results: everything is in it, escaped, once, in an order that makes sense without looking."""

import base64
import dataclasses
import math
import re
from collections import Counter
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from research.analysis import curves, drawing, fragments, html, tables
from research.analysis.claims import Claim, Gate, Published, SubClaim
from research.analysis.conclusions import Judged
from research.analysis.decisions import Measured, Verdict
from research.analysis.fragments import Run, Section, Tabled
from research.analysis.rendering import Cell, Column, Table
from research.analysis.results import Row
from research.analysis.rules import Contrast
from research.analysis.statistics import Estimate
from research.analysis.verdicts import Finding, Kind, Stamp

EMPTY = {"br", "img", "link", "meta", "polyline", "path", "li"}  # and those that end without an end tag


class Page(HTMLParser):
    """What a browser would make of the page, as far as the tests ask."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def row(arm="causal", seed=0, loss=2.0, **changes):
    values = {
        "study": "lengths",
        "scale": "smoke",
        "arm": arm,
        "seed": seed,
        "key": f"{seed}" * 64,
        "commit": "c0ffee",
        "dirty": False,
        "config": f"train.steps = 80\ntrain.seed = {seed}\nmask = '{arm}'\n",
        "environment": {"attention": "dense", "matmul_precision": "float32"},
        "data": {"fingerprint": "feedbeef" * 8, "order": f"windows {seed}"},
        "budget": {"parameters": 214_000},
        "metrics": {"loss": loss, "long_context": {"loss": {"64": 1.5, "128": 1.25}}},
        "timing": {"tokens_per_second": None},
        **changes,
    }
    return Row(**{field.name: values.get(field.name, {}) for field in dataclasses.fields(Row)})


ROWS = [row(seed=0, loss=2.0), row(seed=1, loss=2.2), row("prefix", 0, 1.9), row("prefix", 1, 2.0)]
LOG = tuple({"step": step, "loss": 5 - step / 100} for step in range(10, 110, 10))


def section(rows=ROWS, *, runs=None, baseline="causal", columns=("loss", "parameters"), **changes):
    arms = tuple(dict.fromkeys(one.arm for one in rows))
    seeds = sorted({one.seed for one in rows})
    return Section(
        study=rows[0].study,
        scale=rows[0].scale,
        runs=tuple(Run(row=one) for one in rows) if runs is None else tuple(runs),
        compared={"all": arms},
        tables=(
            Tabled(
                title="the table",
                table=tables.build(rows, arms=arms, seeds=seeds, columns=columns, baseline=baseline),
                baselines=dict.fromkeys(arms, baseline),
            ),
        ),
        **changes,
    )


def page(*sections):
    return html.page(sections or [section()], title="Results")


def finding(name="C2.loss", verdict=Verdict.SUPPORTED, **changes):
    values = {
        "subclaim": SubClaim(
            id=name,
            text="A prefix helps.",
            rule=Contrast(metric="metrics.loss", arm="prefix", baseline="causal", expect="less"),
            gates=(Gate(metric="metrics.loss", arm="causal", most=3.0),),
            unit="nats",
            published=(Published(figure="it does <not>", source="somebody 2022", tag="L2"),),
        ),
        "study": "lengths",
        "scale": "smoke",
        "verdict": verdict,
        "found": Measured(
            effect=Estimate(mean=-0.15, half_width=0.05, n=5), p=0.001, p_equal=0.9, detectable=0.04
        ),
        "p": 0.012,
        **changes,
    }
    return Finding(**values)


def claimed(*findings):
    return Judged(claim=Claim(id="C2", text="Prefixes help."), findings=findings)


def picture(caption="causal", alt="a lower triangle", lines=((0, 1),)):
    figure = Figure()
    for line in lines:
        figure.add_subplot().plot(line)
    return fragments.picture(figure, caption=caption, alt=alt)


def test_the_table_is_read_without_a_script():
    text = page()
    for expected in (
        "held-out loss per target token (nats)",
        "2.1000 ± 1.2706",
        "-0.1500 ± 0.6353",
        "0.214 M",
    ):
        assert expected in Page(text).text
    assert "onclick" not in text
    assert Page(text).all("html") == [{"lang": "en"}]


def test_a_number_opens_to_the_seeds_that_it_is_the_mean_of():
    cells = re.findall(r"<td data-value=.*?</td>", page())
    loss, difference = (next(cell for cell in cells if text in cell) for text in ("2.1000", "-0.1500 ±"))
    assert [float(value) for value in re.findall(r'data-value="(.*?)"', loss + difference)] == [
        2.1,
        pytest.approx(-0.15),
    ]
    assert re.findall(r">(seed \d)</a>: (.*?)<", loss) == [("seed 0", "2.0000"), ("seed 1", "2.2000")]
    assert re.findall(r">(seed \d)</a>: (.*?)<", difference) == [("seed 0", "-0.1000"), ("seed 1", "-0.2000")]
    assert "95 % interval over 2 seeds: 0.8294 to 3.3706" in loss  # 2.1 -+ 1.2706


def test_a_difference_is_of_the_column_before_it_and_a_path_is_a_column():
    rows = [row(), row("causal@w=2", loss=1.5), row("causal@w=3", metrics={"loss": 1.8})]
    arms = [one.arm for one in rows]
    column = "metrics.long_context.loss.64"
    plain = tables.build(rows, arms=arms, seeds=(0,), columns=(column, "loss"))
    difference = Column(name="difference", label="difference")
    lines = [
        dataclasses.replace(
            line,
            cells=(
                *line.cells,
                Cell(text="+1", estimate=Estimate(mean=1.0, half_width=math.nan, n=1)),
            ),
        )
        for line in plain.lines
    ]
    table = Table(columns=(*plain.columns, difference), lines=tuple(lines), notes=())
    shown = Tabled(title="sweep", table=table, baselines=dict.fromkeys(arms[1:], "causal"))
    text = page(dataclasses.replace(section(rows, baseline=None), tables=(shown,)))
    assert re.findall(r">seed 0</a>: (.*?)<", text) == [
        *("1.5000", "2.0000"),  # the baseline itself has no difference
        *("1.5000", "1.5000", "-0.5000"),
        *("1.8000", "-0.2000"),  # and this arm no such path
    ]


def test_every_link_leads_somewhere_and_every_id_is_one():
    runs = [Run(row=one, log=LOG, samples=("once upon",)) for one in ROWS]
    found = Page(page(section(runs=runs, masks=(picture(),)), section([row(scale="small")], baseline=None)))
    ids = Counter(attrs["id"] for _, attrs in found.tags if "id" in attrs)
    assert set(ids.values()) == {1}
    targets = {attrs["href"].removeprefix("#") for attrs in found.all("a")}
    assert "lengths/smoke/arm/prefix/seed/1" in targets
    assert targets <= set(ids)
    for attrs in found.all("svg"):
        assert "aria-hidden" in attrs or {attrs["aria-labelledby"], attrs["aria-describedby"]} <= set(ids)


def test_names_that_look_alike_have_places_of_their_own():
    rows = [row("a b"), row("a-b"), row("a/b"), row("curves"), row("a%20b")]
    ids = [attrs["id"] for _, attrs in Page(page(section(rows, baseline=None))).tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert not any(" " in one for one in ids)


def test_headings_follow_each_other():
    runs = [Run(row=one, log=LOG) for one in ROWS]
    found = Page(page(section(runs=runs), section([row(study="other")], baseline=None)))
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_nothing_that_rows_logs_or_samples_say_is_markup():
    evil = "<script>alert(1)</script>\"'&"
    evil_row = row(evil, metrics={"loss": 2.0, evil: evil}, config=evil, study=evil, scale=evil)
    log = ({"step": 1, evil: 1.0}, {"step": 2, evil: 2.0}, *LOG)
    shown = section(
        [evil_row],
        runs=[Run(row=evil_row, log=log, samples=(evil,))],
        baseline=None,
        masks=(picture(caption=evil, alt=evil),),
        notes=(evil,),
    )
    text = html.page([shown], title=evil)
    found = Page(text)
    assert len(found.all("script")) == 1
    assert "alert" not in re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    assert found.text.count(evil) > 8
    assert found.all("img")[0]["alt"] == evil


def test_the_page_fetches_nothing():
    text = page(section(masks=(picture(),), runs=[Run(row=one, log=LOG) for one in ROWS]))
    found = Page(text)
    assert not [attrs for tag, attrs in found.tags if tag in ("link", "iframe", "object", "base")]
    assert all(attrs["src"].startswith("data:") for _, attrs in found.tags if "src" in attrs)
    assert "url(" not in text
    assert "@import" not in text
    policy = next(attrs["content"] for attrs in found.all("meta") if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def test_the_same_sections_give_the_same_page():
    def made():
        return page(section(runs=[Run(row=one, log=LOG) for one in ROWS], masks=(picture(),)))

    assert made() == made()
    assert page() != page(section(ROWS[:2]))


def test_a_picture_keeps_its_words_and_is_in_the_page_once():
    both = section(masks=(picture("causal"), picture("prefix"), picture("other", lines=((1, 0),))))
    found = Page(page(both))
    images = found.all("img")
    assert [image["alt"] for image in images] == ["a lower triangle"] * 2
    assert base64.b64decode(images[0]["src"].partition(",")[2]).lstrip().startswith(b"<?xml")
    assert found.text.count("The same picture as above") == 1
    assert "prefix" in found.text


def test_a_config_is_in_the_page_once_and_of_other_seeds_only_what_differs():
    text = page()
    assert text.count("train.steps = 80") == 2  # one an arm
    assert text.count("train.seed = 0\nmask") == 2
    assert text.count("<pre>-train.seed = 0\n+train.seed = 1</pre>") == 2
    again = page(section(), section([dataclasses.replace(ROWS[0], study="other")], baseline=None))
    assert again.count("train.steps = 80") == 2
    assert "an arm above" in again


def test_values_that_all_runs_of_an_arm_share_are_written_once():
    found = re.search(r'<table class="values">.*?</table>', page(), re.DOTALL)[0]
    lines = dict(re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', found))
    assert lines["environment.attention"] == '<td colspan="2">dense</td>'
    assert lines["data.order"] == "<td>windows 0</td><td>windows 1</td>"
    assert lines["metrics.long_context.loss.64"] == '<td colspan="2">1.5</td>'
    assert lines["timing.tokens_per_second"] == '<td colspan="2">not measured</td>'
    assert "config" not in lines


def test_a_value_that_one_run_lacks_is_shown_as_missing():
    rows = [row(seed=0), row(seed=1, metrics={"loss": 2.0})]
    assert "<td>1.5</td><td>none</td>" in page(section(rows))


def test_missing_runs_and_refused_tables_are_said():
    rows = [row("causal"), row("prefix", loss=1.9)]
    table = tables.build(rows[:1], arms=("causal", "prefix"), seeds=(0,), columns=("loss",))
    shown = Tabled(title="the table", table=table, baselines={})
    found = Page(page(dataclasses.replace(section(rows[:1], baseline=None), tables=(shown,))))
    assert "missing" in found.text
    assert "1 of 2 runs" in found.text
    refused = dataclasses.replace(section(), tables=(), notes=("No table: data differ",))
    text = Page(page(refused)).text
    assert "No table: data differ" in text
    assert "causal: 2 runs" in text


def test_two_hundred_runs_make_a_small_page():
    rows = [row(f"arm {i}", seed, 2 + i / 100 + seed / 1000) for i in range(20) for seed in range(10)]
    log = tuple({"step": step, "loss": 2 + 1 / step} for step in range(1, 5001))
    shown = section(rows, runs=[Run(row=one, log=log) for one in rows], baseline="arm 0")
    text = page(shown)
    assert text.count("<polyline") == 220  # a curve a run, and a mean an arm
    assert len(text) < 4_000_000


def test_a_claim_says_its_verdict_and_what_it_rests_on():
    found = Page(html.page([section(findings=(finding(),))], [claimed(finding())], title="x"))
    words = " ".join(found.text.split())
    for expected in (
        "C2.loss: supported",
        "-0.15 ± 0.05 nats",
        "0.012, of difference",
        "detectable0.04 nats",
        "metrics.loss of prefix is less than metrics.loss of causal",
        "metrics.loss of causal at most 3",
        "it does <not> [L2] (somebody 2022)",
    ):
        assert expected in words
    (card,) = found.all("article")
    assert card["id"] in [attrs["href"].removeprefix("#") for attrs in found.all("a")]


def test_what_is_not_decided_has_no_numbers():
    unrun = finding(verdict=Verdict.NOT_RUN, found=None, p=None, reason="prefix has 2 of 5 seeds")
    found = Page(page(section(baseline=None, findings=(unrun,))))
    assert "not run yet" in found.text
    assert "prefix has 2 of 5 seeds" in found.text
    assert "of difference" not in found.text
    assert "effect" not in found.text


def test_a_claim_of_a_study_that_is_not_in_the_page_is_listed_without_a_link():
    text = html.page([section()], [claimed(finding(study="elsewhere"))], title="x")
    assert "C2.loss: " in Page(text).text
    assert "elsewhere/" not in text


def test_a_rejected_control_stands_with_the_claim_and_above_the_table():
    stamp = "negative control rejected: a < b"
    rejected = Stamp(kind=Kind.REJECTED, text=stamp)
    found = Page(page(section(findings=(finding(stamps=(rejected,)),))))
    assert found.text.count(stamp) == 2


def test_curves_have_words():
    runs = [
        Run(row=one, log=(*LOG, {"step": 50, "validation_loss": 3.0}, {"step": 100, "validation_loss": 2.5}))
        for one in ROWS
    ]
    text = page(section(runs=runs))
    assert "seed 0, training: 4.9 at step 10, 4 at step 100" in text
    assert "seed 1, validation: 3 at step 50, 2.5 at step 100" in text
    assert text.count('class="c0 d1"') == 4  # dashed: drawn, and in the key, of two arms
    assert "causal (2 seeds): 4.9 at step 10" in text


def test_an_arm_without_a_log_stays_in_the_key():
    runs = [Run(row=one, log=LOG if one.arm == "causal" and one.seed == 0 else ()) for one in ROWS]
    words = " ".join(Page(page(section(runs=runs))).text.split())
    assert "causal (1 of 2 seeds)" in words
    assert "prefix (0 of 2 seeds): no curve here" in words
    assert "seed 1, training: no curve here" in words
    assert "validation: no curve here" not in words  # which no run has
    assert "no curve here" not in page()  # where there is no chart at all


def test_a_run_that_stopped_early_is_said_where_it_ends_the_mean():
    runs = [Run(row=one, log=LOG[:6] if one.seed else LOG) for one in ROWS[:2]]
    words = " ".join(Page(page(section(ROWS[:2], runs=runs))).text.split())
    said = "causal (2 seeds; to step 60, the last that all have, of 100: 1 stopped early)"
    assert f"{said}: 4.9 at step 10, 4.4 at step 60" in words
    empty = [Run(row=ROWS[0], log=LOG), Run(row=ROWS[1], log=({"step": 1, "note": "x"},))]
    assert "causal (1 of 2 seeds): 4.9 at step 10, 4 at step 100" in page(section(ROWS[:2], runs=empty))


def test_lines_stand_out_from_the_page_in_both_schemes():
    style = re.search(r"<style>(.*?)</style>", page(), re.DOTALL)[1]
    schemes = re.findall(r"--ground: (#\w{6}).*?((?:--c\d: #\w{6}[;\s]*){8})", style, re.DOTALL)
    assert len(schemes) == 2
    for ground, colours in schemes:
        for colour in re.findall(r"#\w{6}", colours):
            assert drawing.contrast(colour, ground) >= 3


def test_a_log_is_read_by_name():
    log = [
        {"step": 1, "loss": 3.0, "gradient_norm": 1.0},
        {"step": 1, "validation_loss": 2.5, "validation_accuracy": 0.5, "note": "x", "better": True},
        {"step": 2, "spike": 9.0},
        {"step": 2, "loss": None},
    ]
    assert curves.points(log, "loss") == ((1.0, 3.0),)
    assert curves.held_out(log) == ["validation_loss", "validation_accuracy"]


def test_a_mean_curve_is_over_the_steps_that_all_have():
    assert curves.mean([[(1, 2.0), (2, 4.0)], [(2, 6.0), (3, 8.0)]]) == ((2, 5.0),)
    assert curves.mean([]) == ()


def test_thinning_keeps_the_ends_and_every_spike():
    line = [(float(step), 1.0) for step in range(10_000)]
    line[7_777] = (7_777.0, 9.0)
    kept = curves.thinned(line, 100)
    assert len(kept) <= 100
    assert line[7_777] in kept
    assert [kept[0], kept[-1]] == [line[0], line[-1]]
    assert list(kept) == sorted(kept)
    assert curves.thinned(line[:100], 100) == line[:100]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0, 4000), (0, 4000)),
        ((1.93, 5.4), (1.2, 6)),
        ((2.0, 2.0), (0, 4)),
        ((-1, 1), (-1, 1)),
        ((0, 80), (0, 80)),
    ],
)
def test_an_axis_holds_the_values_between_round_numbers(values, expected):
    low, high = curves.axis(values)
    assert (low, high) == pytest.approx(expected)


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=3))
@example([1.19, 5.09])
@example([1.0, 1.0 + 2**-52])
@example([0.0, 5e-324])
@example([2.4e158, -2e-166])
@example([1e16, 1e16 + 2])
def test_an_axis_holds_any_values_and_is_not_longer_than_it_has_to_be(values):
    low, high = curves.axis(values)
    assert low <= min(values) <= max(values) <= high
    assert low < high
    span = max(values) - min(values)
    if span > 1e-9 * max(map(abs, values)) and span > 1e-300:
        assert high - low <= 2.4 * span
        step = float(f"{(high - low) / 4:.2g}")  # of two digits, and the quarters are multiples of it
        assert (high - low) / 4 == pytest.approx(step)
        assert low / step == pytest.approx(round(low / step), abs=1e-6 * max(1, abs(low / step)))
