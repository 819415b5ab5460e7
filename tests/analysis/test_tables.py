"""Tables show what is there, say what is not, and refuse what does not compare."""

import csv
import dataclasses
import io
import math
import subprocess
import sys
from typing import Any

import pytest
import rich.console

from experiments import configs, study, tabulate
from research.analysis import rendering, results, statistics, tables
from research.analysis.results import ResultError, Row
from research.analysis.tables import TableError


def row(arm, seed, loss, *, key="0123456789abcdef", **changes):
    """A row with every measure; `changes` replace values by name, in whatever section."""
    sections: dict[str, Any] = {
        "environment": {"attention": "dense", "matmul_precision": "highest"},
        "data": {"fingerprint": "feedbeef" * 8, "order": "windows-0"},
        "budget": {
            "parameters": 214_000,
            "flops_per_token": 430_000,
            "train_flops": 1.29e12,
            "tokens_seen": 3_000_000,
            "loss_tokens": 1_500_000,
            "steps": 100,
        },
        "metrics": {"loss": loss, "bits_per_byte": loss / 2},
        "timing": {
            "tokens_per_second": 12_345.6,
            "latency_seconds": 0.00125,
            "wall_seconds": 61.25,
            "peak_memory_bytes": 3 * 2**20,
        },
    }
    sections |= {
        "code": {"fingerprint": "f", "checked": "f", "stale": ""},
        "replay": {"losses": [3.0, 2.9, 2.8], "evaluation": 2.7},
        "rules": {},
        "evaluations": {},
    }
    top: dict[str, Any] = {
        "study": "architecture",
        "scale": "smoke",
        "design": f"design of {arm}",
        "commit": "c0ffee",
        "dirty": False,
    }
    for name, value in changes.items():
        places = [section for section in sections.values() if name in section] or [top]
        assert name in places[0], name
        places[0][name] = value
    given = {"arm": arm, "seed": seed, "key": key, "config": "", **top, **sections}
    return Row(**{field.name: given.get(field.name, {}) for field in dataclasses.fields(Row)})


CAUSAL = [row("causal", 0, 2.0), row("causal", 1, 2.2), row("causal", 2, 2.4)]
PREFIX = [row("prefix", 0, 1.9), row("prefix", 1, 2.0), row("prefix", 2, 2.4)]


def build(rows, arms=("causal", "prefix"), seeds=(0, 1, 2), columns=("loss",), **options):
    return tables.build(rows, arms=arms, seeds=seeds, columns=columns, **options)


def texts(table):
    return [[line.arm, line.seeds, *(cell.text for cell in line.cells)] for line in table.lines]


def test_a_line_an_arm_in_the_given_order_with_intervals_and_paired_differences():
    table = build(CAUSAL + PREFIX, ("prefix", "causal"), columns=("loss", "parameters"), baseline="causal")
    assert [column.label for column in table.columns] == [
        "held-out loss per target token (nats)",
        "difference to causal",
        "parameters",
    ]
    # half widths: 4.302653 sd / sqrt(3), sd of (1.9, 2.0, 2.4) and of (-0.1, -0.2, 0)
    assert texts(table) == [
        ["prefix", "3", "2.1000 ± 0.6572", "-0.1000 ± 0.2484", "0.214 M"],
        ["causal", "3", "2.2000 ± 0.4968", "baseline", "0.214 M"],
    ]
    assert table.notes[0] == (
        "Scale smoke; 3 seeds; data feedbeeffeed; intervals are 95 % t intervals over seeds."
    )


def test_every_measure_reads_its_place_and_unit():
    table = build([row("causal", 0, 2.0)], ("causal",), (0,), columns=tuple(tables.MEASURES))
    found = dict(zip(tables.MEASURES, texts(table)[0][2:], strict=True))
    assert found == {
        "loss": "2.0000",
        "bits_per_byte": "1.0000",
        "parameters": "0.214 M",
        "flops_per_token": "0.430 M",
        "train_flops": "1.290 T",
        "tokens_seen": "3.000 M",
        "loss_tokens": "1.500 M",
        "tokens_per_second": "12,346",
        "latency": "1.25 ms",
        "wall_seconds": "61.2 s",
        "peak_memory": "3.0 MiB",
    }
    assert "An arm with one seed has no interval." in table.notes


def test_missing_rows_are_shown_and_never_averaged_over_silently():
    rows = [CAUSAL[0], CAUSAL[1], PREFIX[1], PREFIX[2]]
    table = build(rows, ("causal", "prefix", "encoder"), baseline="causal")
    assert texts(table) == [
        ["causal", "2/3 seeds", "2.1000 ± 1.2706", "baseline"],
        ["prefix", "2/3 seeds", "2.2000 ± 2.5412", "-0.2000 (n=1)"],
        ["encoder", "missing", "n/a", "n/a"],
    ]


def test_an_absent_baseline_leaves_differences_empty():
    assert texts(build(PREFIX, baseline="causal"))[1][-1] == "n/a"


def test_a_table_without_rows_is_all_missing():
    table = build([], baseline="causal")
    assert [line.seeds for line in table.lines] == ["missing", "missing"]
    assert "no rows yet" in table.notes[0]


def test_unmeasured_timing_is_no_number_and_part_of_it_is_counted():
    none = [row("causal", seed, 2.0, wall_seconds=None) for seed in range(3)]
    assert texts(build(none, columns=("wall_seconds",)))[0][2] == "n/a"
    some = [*none[:2], CAUSAL[2]]
    assert texts(build(some, columns=("wall_seconds",)))[0][2] == "61.2 s (n=1)"


def test_rows_from_before_a_timing_was_taken_show_none():
    old = [dataclasses.replace(one, timing={"tokens_per_second": 5.0, "wall_seconds": 1.0}) for one in CAUSAL]
    shown = texts(build([*old, *PREFIX], columns=("latency", "tokens_per_second")))
    assert [line[2] for line in shown] == ["n/a", "1.25 ms"]
    assert texts(build([*old[:2], CAUSAL[2]], columns=("latency",)))[0][2] == "1.25 ms (n=1)"
    assert texts(build(old, columns=("latency",)))[0][2] == "n/a"  # nobody has it yet
    with pytest.raises(TableError, match=r"no value 'timing.latency': 'latency' is not one of"):
        build([*old, *PREFIX], columns=("timing.latency",))
    only = dataclasses.replace(PREFIX[0], timing={"other": 2.0})
    shown = texts(build([*old, only, *PREFIX[1:]], columns=("timing.other",)))
    assert [line[2] for line in shown] == ["n/a", "2.0000 (n=1)"]
    with pytest.raises(TableError, match=r"no value 'budget.other'"):
        build(
            [dataclasses.replace(one, budget={"other": 1}) for one in old] + PREFIX, columns=("budget.other",)
        )


def test_a_baseline_is_one_of_the_arms():
    with pytest.raises(
        TableError, match=r"baseline 'masked': expected one of the arms \['causal', 'prefix'\]"
    ):
        build(CAUSAL + PREFIX, baseline="masked")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attention", "blockwise"),
        ("matmul_precision", "default"),
        ("fingerprint", "0ther"),
        ("order", "windows-1"),
        ("scale", "small"),
        ("study", "repetition"),
    ],
)
def test_rows_that_do_not_compare_are_refused_in_one_line(name, value):
    odd = row("prefix", 2, 2.4, **{name: value})
    with pytest.raises(TableError, match=rf"{name}: .*'{value}' in prefix-s2-") as caught:
        build([*CAUSAL, *PREFIX[:2], odd])
    assert "\n" not in str(caught.value)
    build([*CAUSAL, *PREFIX[:2], odd], seeds=(0, 1))  # rows outside the table do not count


def test_what_is_declared_wrongly_is_refused():
    with pytest.raises(TableError, match=r"'bits_per_bite': .*did you mean 'bits_per_byte'"):
        build(CAUSAL, columns=("bits_per_bite",))
    with pytest.raises(TableError, match="baseline 'cuasal'"):
        build(CAUSAL, baseline="cuasal")
    with pytest.raises(ResultError, match="remove the stale one"):
        build([*CAUSAL, row("causal", 0, 2.0, key="stale" * 4)])


def test_a_value_that_a_row_lacks_names_the_row():
    bare = dataclasses.replace(CAUSAL[0], metrics={"accuracy": 1.0})
    with pytest.raises(TableError, match=r"causal-s0-0123456789ab.json: no value 'metrics.loss'"):
        build([bare])


def test_a_vanishing_difference_has_no_negative_zero():
    rows = [row("causal", 0, 2.0), row("prefix", 0, 2.0 - 1e-9)]
    assert texts(build(rows, seeds=(0,), baseline="causal"))[1][-1] == "+0.0000"


ODD_ARM = r"a|b_50%[x]"


def odd_table():
    rows = [row("causal", seed, 2.0 + seed) for seed in range(2)]
    return build(
        rows + [row(ODD_ARM, seed, 1.5) for seed in range(2)],
        ("causal", ODD_ARM, "none"),
        (0, 1),
        baseline="causal",
    )


def test_markdown():
    assert tables.markdown(odd_table()) == (
        "| arm | seeds | held-out loss per target token (nats) | difference to causal |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| causal | 2 | 2.5000 ± 6.3531 | baseline |\n"
        "| a\\|b_50%[x] | 2 | 1.5000 | -1.0000 ± 6.3531 |\n"
        "| none | missing | n/a | n/a |\n"
        "\n"
        "Scale smoke; 2 seeds; data feedbeeffeed; intervals are 95 % t intervals over seeds.\n"
        "Differences are arm minus baseline, paired by seed. *: p < 0.05 after Holm's correction over 2 differences. "
        "Least difference that is found with 80 % power: 8.17 nats, without correction.\n"
    )


def test_csv_holds_numbers_in_the_rows_own_units():
    lines = list(csv.DictReader(io.StringIO(tables.csv(odd_table()))))
    assert lines[1] == {
        "arm": ODD_ARM,
        "seeds": "2",
        "seeds_declared": "2",
        "loss": "1.5",
        "loss_half_width": "0",
        "difference": "-1",
        "difference_half_width": "6.35310236809",  # t(0.975, 1) / 2 = tan(0.475 pi) / 2
    }
    assert (lines[2]["seeds"], lines[2]["loss"]) == ("0", "")
    single = tables.csv(build(CAUSAL, seeds=(0,), columns=("parameters",)))
    assert single.splitlines()[1] == "causal,1,1,214000,"


def test_latex_is_booktabs_and_escaped():
    text = tables.latex(odd_table())
    assert "a|b\\_50\\%[x] & 2 & 1.5000 & $-$1.0000 $\\pm$ 6.3531 \\\\\n" in text
    assert "95 \\% t intervals" in text
    assert "p $<$ 0.05" in text
    order = [text.index(rule) for rule in ("{lrrr}", "\\toprule", "\\midrule", "\\bottomrule")]
    assert order == sorted(order)
    assert rendering._escape("\\~^{") == "\\textbackslash{}\\textasciitilde{}\\textasciicircum{}\\{"


def test_the_terminal_shows_what_markdown_shows():
    console = rich.console.Console(width=160, file=io.StringIO(), record=True)
    console.print(tables.rich_table(odd_table()))
    shown = console.export_text()
    for text in (ODD_ARM, "-1.0000 ± 6.3531", "missing", "95 % t intervals"):
        assert text in shown


@pytest.mark.parametrize("renderer", [tables.markdown, tables.csv, tables.latex])
def test_the_order_of_rows_changes_no_byte(renderer):
    rows = [row("causal", seed, 2 + 0.1 * seed**3) for seed in range(9)]
    options: dict[str, Any] = {"seeds": tuple(range(9)), "baseline": "causal"}
    assert renderer(build(rows, **options)) == renderer(build(rows[::-1], **options))


STUDY = study.Study(
    name="architecture",
    scale="smoke",
    arms=("causal", "prefix"),
    points={},
    seeds=(0, 1, 2),
    compared={"causal": "lm", "prefix": "lm"},
    baselines={"lm": "causal"},
    groups={"headline": ("causal", "prefix")},
    rates={},
    folder="architecture/smoke",
    table=study.Table(
        arms=("causal", "prefix"),
        seeds={"smoke": (0, 1, 2)},
        columns=("loss", "parameters"),
        compared={"lm": ("causal", "prefix")},
    ),
)


@pytest.fixture
def results_dir(tmp_path):
    for each in CAUSAL + PREFIX:
        results.save(each, tmp_path / "results" / "architecture" / "smoke" / "cells")
    return tmp_path / "results"


def test_a_study_is_rendered_from_its_files(results_dir):
    table = tabulate.render(STUDY, results_dir)["table"]
    assert table == build(CAUSAL + PREFIX, columns=STUDY.table.columns, baseline="causal")
    into = tabulate.folder(STUDY, results_dir)
    tabulate.write(STUDY, {"table": table}, results_dir)
    assert (into / "table.md").read_text(encoding="utf-8") == tables.markdown(table)
    assert (into / "table.csv").read_text(encoding="utf-8") == tables.csv(table)
    assert (into / "table.tex").read_text(encoding="utf-8") == tables.latex(table)


def test_a_study_without_rows_says_how_to_get_them(tmp_path):
    with pytest.raises(TableError, match=r"no rows.*experiments.launch --study=architecture"):
        tabulate.render(STUDY, tmp_path)


def test_the_readme_block_is_rewritten_and_nothing_else(results_dir, tmp_path):
    table = tabulate.render(STUDY, results_dir)["table"]
    readme = tmp_path / "README.md"
    other = "<!-- table:architecture/small -->\nkept\n<!-- /table -->\n"
    start, end = "<!-- table:architecture/smoke -->", "<!-- /table -->"
    readme.write_text(f"# Top\n{other}\n{start}\nold\n{end}\nlast\n")
    for _ in range(2):
        tabulate.update_blocks(readme, STUDY, {"table": table})
        expected = f"# Top\n{other}\n{start}\n{tables.markdown(table)}{end}\nlast\n"
        assert readme.read_text(encoding="utf-8") == expected


@pytest.mark.parametrize(
    "text",
    [
        "nothing\n",
        "<!-- table:architecture/smoke -->\nno end\n",
        "<!-- table:architecture/smoke -->\n<!-- table:b/smoke -->\n<!-- /table -->\n",
    ],
)
def test_a_readme_without_the_block_is_left_alone(tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(TableError, match=r"README\.md: no block <!-- table:architecture/smoke"):
        tabulate.update_blocks(readme, STUDY, {"table": build(CAUSAL)})
    assert readme.read_text() == text


def command_line(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "experiments.tabulate", *arguments],
        cwd=configs.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_writes_and_prints(tmp_path):
    drawn = {
        "positions": {"loss": {"all": 2.1}},
        "cuts": {"first": {"random": 2.1}},
    }  # in the study's figures
    for each in CAUSAL:
        one = dataclasses.replace(each, arm="causal_lm", metrics={**each.metrics, **drawn})
        results.save(one, tmp_path / "architecture" / "smoke" / "cells")
    done = command_line("--study=architecture", f"--results_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "2.1000 ± 1.2706" in done.stdout  # seeds 0 and 1, which are the study's
    assert "2.1000 ± 1.2706" in (tmp_path / "architecture" / "smoke" / "table.md").read_text()


@pytest.mark.parametrize("name", ["architecture", "architekture"])
def test_the_command_fails_in_one_line(tmp_path, name):
    done = command_line(f"--study={name}", f"--results_dir={tmp_path}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_a_difference_is_marked_where_holm_leaves_it_significant():
    """Three differences, of which the raw p of two are below 0.05; Holm multiplies the least by 3, the next by 2."""
    seeds = (0, 1, 2, 3, 4)
    noise = (0.0, 0.01, -0.01, 0.02, -0.02)

    def arm(name, shift, spread):
        return [
            row(name, seed, 2 + 0.1 * seed + shift + spread * noise[seed], key=f"{name:0<16}")
            for seed in seeds
        ]

    rows = [*arm("base", 0, 0), *arm("far", 0.2, 1), *arm("near", 0.05, 2.4), *arm("same", 0.001, 1)]
    arms = ("base", "far", "near", "same")
    table = tables.build(rows, arms=arms, seeds=seeds, columns=("loss",), baseline="base")
    alone = tables.build(rows, arms=("base", "near"), seeds=seeds, columns=("loss",), baseline="base")
    shown = {line.arm: line.cells[1].text for line in table.lines}
    assert shown["far"].endswith(" *")
    assert not shown["near"].endswith("*")
    assert not shown["same"].endswith("*")
    assert alone.lines[1].cells[1].text.endswith(" *")  # the only one, so nothing is corrected
    assert "over 3 differences" in " ".join(table.notes)


def test_the_family_is_what_the_table_declares_and_not_what_has_run():
    """p of the one difference that has run is between 0.05 / 3 and 0.05."""
    rows = [row("base", seed, 2.0) for seed in range(5)]
    rows += [row("near", seed, 2.0 + loss) for seed, loss in enumerate((0.05, 0.074, 0.026, 0.098, 0.002))]
    rows += [row("single", 0, 2.5)]
    options: dict[str, Any] = {"seeds": range(5), "baseline": "base"}
    assert 0.05 / 3 < statistics.paired_test(*by_seed(rows, "near", "base")).p < 0.05
    alone = build(rows, ("base", "near"), **options)
    assert alone.lines[1].cells[1].text.endswith(" *")
    assert "over 1 difference." in alone.notes[1]
    declared = build(rows, ("base", "near", "single", "missing"), **options)
    assert not declared.lines[1].cells[1].text.endswith("*")
    assert "over 3 differences." in declared.notes[1]


def by_seed(rows, *arms):
    return [{one.seed: one.metrics["loss"] for one in rows if one.arm == arm} for arm in arms]


def test_a_table_without_losses_asks_nobody_for_one():
    rows = [dataclasses.replace(one, metrics={"score": 1.0}) for one in CAUSAL + PREFIX]
    assert texts(build(rows, columns=("metrics.score",), baseline="causal"))[0][2] == "1.0000"


def test_rows_of_one_arm_that_differ_in_more_than_their_seed_are_refused():
    odd = row("prefix", 2, 2.4, design="another")
    with pytest.raises(
        TableError, match="rows of one arm differ in more than their seed: prefix-s0-"
    ) as caught:
        build([*CAUSAL, *PREFIX[:2], odd])
    assert str(caught.value).endswith(f"and {odd.name}; launch the study again")
    with pytest.raises(TableError, match="differ in more than their seed"):
        tables.check_comparable([*PREFIX[:2], odd])
    tables.check_comparable([*CAUSAL, *PREFIX])
    tables.check_comparable([])


def test_what_is_not_finite_was_not_measured():
    rows = [row("causal", seed, loss) for seed, loss in enumerate((2.0, math.nan, math.inf))]
    assert texts(build(rows, ("causal",)))[0][2] == "2.0000 (n=1)"
    assert texts(build(rows[1:], ("causal",), seeds=(1, 2)))[0][2] == "n/a"


def test_a_series_or_a_text_is_no_column():
    metrics = {"loss": 2.0, "long": {"64": 1.0, "128": 2.0, "0.5": 3.0}, "note": "x"}
    rows = [dataclasses.replace(CAUSAL[0], metrics=metrics)]
    with pytest.raises(TableError, match=r"metrics.long: a series in causal-s0-.*: 64, 128$") as caught:
        build(rows, columns=("metrics.long",))
    assert "\n" not in str(caught.value)
    with pytest.raises(TableError, match="metrics.note: 'x' in causal-s0-.*, expected a number"):
        build(rows, columns=("metrics.note",))


def test_of_what_may_not_be_reached_the_median_is_shown_and_how_many_reached_it():
    steps = (100, None, 300)
    rows = [dataclasses.replace(one, metrics={"to": step}) for one, step in zip(CAUSAL, steps, strict=True)]
    rows += [dataclasses.replace(one, metrics={"to": None}) for one in PREFIX]
    table = build(rows, columns=("median(metrics.to)",))
    assert table.columns[0].label == "median to"
    assert [line.cells[0].text for line in table.lines] == [
        "300; reached by 2 of 3",
        "not reached; reached by 0 of 3",
    ]
    assert "causal,3,3,300," in tables.csv(table)


def test_a_path_of_a_known_measure_is_that_measure():
    assert tables.measure("budget.parameters") == tables.MEASURES["parameters"]
    assert tables.measure("metrics.long_context.loss.64").label == "long context loss 64"
    with pytest.raises(TableError, match="did you mean 'parameters'"):
        tables.measure("paramters.x")


def test_a_column_may_be_the_path_of_a_metric_that_some_arms_lack():
    rows = [row("causal", seed, 2.0) for seed in (0, 1)]
    probed = [
        dataclasses.replace(one, arm="prefix", metrics={"loss": 2.0, "probe": {"score": 0.25 * one.seed}})
        for one in rows
    ]
    table = build([*rows, *probed], seeds=(0, 1), columns=("metrics.probe.score",))
    assert table.columns[0].label == "probe score"
    assert [line.cells[0].text for line in table.lines] == ["n/a", "0.1250 ± 1.5883"]
    with pytest.raises(TableError, match="no value 'metrics.prob.score'"):
        build([*rows, *probed], seeds=(0, 1), columns=("metrics.prob.score",))


def test_rows_that_the_code_would_no_longer_measure_are_named():
    stale = {"fingerprint": "f", "checked": "g", "stale": "code"}
    rows = [
        dataclasses.replace(row("causal", seed, 2.0), code=stale) if seed else row("causal", 0, 2.0)
        for seed in (0, 1, 2)
    ]
    table = build(rows, arms=("causal",))
    assert "Stale, since the code has come to measure something else: causal (seeds 1, 2)." in table.notes
