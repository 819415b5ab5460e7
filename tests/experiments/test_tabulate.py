"""What tabulate writes: whole files, of what is declared and of nothing else."""
# ruff: noqa: F811 (fixtures)

import dataclasses

import pytest
from test_launch import matched, project  # noqa: F401

from experiments import configs, folders, study, tabulate
from experiments.configs import ConfigError
from research.analysis import results, tables

FIGURES = """
study.Table.figures = (@figures.Curves(),)
figures.Curves.name = 'lengths'
figures.Curves.title = 'Loss by length'
figures.Curves.metric = 'metrics.long'
"""


def written(text="", *, module="from research.analysis import figures"):
    """The study, with this in study.gin beside what it has."""
    path = configs.ROOT / "configs" / "tiny" / "study.gin"
    head = "from experiments import study\n"
    path.write_text(path.read_text().replace(head, f"{head}{module}\n", 1) + text)
    return study.load("tiny", "smoke")


@pytest.fixture
def measured(matched, tmp_path):
    """Rows of two arms with two seeds; where they lie."""
    matched(columns=("loss", "parameters"))
    for arm, seed, loss in [("causal", 0, 2.0), ("causal", 1, 2.1), ("prefix", 0, 1.5), ("prefix", 1, 1.7)]:
        save(tmp_path / "results", arm, seed, loss)
    return tmp_path / "results"


def save(results_dir, arm, seed, loss):
    given = {
        **{"study": "tiny", "scale": "smoke", "arm": arm, "seed": seed, "key": f"{seed}{arm}{'0' * 64}"[:64]},
        **{"design": arm, "environment": {"attention": "dense", "matmul_precision": "float32"}},
        **{"data": {"fingerprint": "f" * 64, "order": str(seed)}, "budget": {"parameters": 1000}},
        "metrics": {"loss": loss, "score": 4 - loss, "long": {"64": loss, "128": loss + 1}},
    }
    empty = {str: "", int: 0, bool: False}
    fields = {field.name: empty.get(field.type, {}) for field in dataclasses.fields(results.Row)}
    results.save(results.Row(**{**fields, **given}), results_dir / "tiny" / "smoke" / "cells")


def write(planned, results_dir):
    tabulate.write(planned, tabulate.render(planned, results_dir), results_dir)
    folder = results_dir / "tiny" / "smoke"
    paths = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "cells"]
    return {str(path.relative_to(folder)): path for path in paths}


TABLE = {"table.md", "table.csv", "table.tex"}
TASKS = {"tasks.md", "tasks.csv", "tasks.tex"}


def test_files_of_what_is_no_longer_declared_go_and_others_stay(measured):
    swept = (
        "study.Table.sweeps = (@sweeps.Sweep(),)\nsweeps.Sweep.arms = ('prefix',)\n"
        "sweeps.Sweep.points = @sweeps.Values()\nsweeps.Values.binding = 'StackConfig.layers'\n"
        "sweeps.Values.values = (1, 3)\nstudy.Table.tasks = {'metrics.loss': 'lower'}\n"
    )
    written(FIGURES)
    planned = written(swept, module="from experiments import sweeps")
    folder = measured / "tiny" / "smoke"
    drawn, sweep = (
        {"figures/lengths.svg", "figures/lengths.png"},
        {f"sweep_1.{s}" for s in ("md", "csv", "tex")},
    )
    assert set(write(planned, measured)) == TABLE | TASKS | sweep | drawn
    (folder / "notes.md").write_text("mine")
    (folder / "figures" / "notes.txt").write_text("mine")
    plain = dataclasses.replace(planned.table, sweeps=(), figures=(), tasks={})
    kept = TABLE | {"notes.md", "figures/notes.txt"}
    assert set(write(dataclasses.replace(planned, table=plain, points={}), measured)) == kept


def test_tasks_have_a_table_for_the_arms_that_are_compared(measured, matched):
    planned = matched(tasks={"metrics.loss": "lower", "metrics.score": "higher"})
    text = write(planned, measured)["tasks.md"].read_text()
    lines = [line.split("|")[1:] for line in text.splitlines() if line.startswith(("| causal", "| prefix"))]
    assert [line[0].strip() for line in lines] == ["causal", "prefix"]
    assert lines[1][2].strip().startswith("+")  # the prefix has the lesser loss and the higher score
    assert "2 tasks" in text
    apart = matched(compared={"one": ("causal",), "two": ("prefix",)})
    files = write(apart, measured)
    both = {name.replace("tasks", f"tasks_{n}") for name in TASKS for n in (1, 2)}
    assert set(files) == TABLE | {name.replace("table", "table_two") for name in TABLE} | both
    assert "| prefix" not in files["tasks_1.md"].read_text()
    assert "| prefix" in files["tasks_2.md"].read_text()


def test_each_comparison_has_a_table_with_its_own_columns_and_seeds(measured, matched, tmp_path):
    planned = matched(
        compared={"one": ("causal",), "number two": ("prefix",)},
        groups={"headline": ("causal",), "core": ("prefix",)},
        fewer={"core": {"smoke": 1}},
        shown={"number two": ("metrics.score",)},
    )
    assert [planned.seeds_of(arm) for arm in ("causal", "prefix")] == [(0, 1), (0,)]
    assert planned.fewer == {"prefix": (0,)}
    found = tabulate.render(planned, measured)
    one, two = (tables.markdown(found[name]) for name in ("table", "table_number_two"))
    assert "score" not in one
    assert "score" in two
    assert "| causal | 2 |" in one
    assert "| prefix | 1 |" in two
    # A loss is compared inside its comparison: the arm of the second has no baseline but itself.
    assert "difference to prefix" in two
    assert [line.cells[1].text for line in found["table_number_two"].lines] == ["baseline"]
    readme = tmp_path / "README.md"
    blocks = "".join(f"<!-- table:tiny/smoke{end} -->\n<!-- /table -->\n" for end in ("/number_two", ""))
    readme.write_text(blocks)
    tabulate.update_blocks(readme, planned, found)
    text = readme.read_text()
    assert text.index("| prefix | 1 |") < text.index("| causal | 2 |")
    apart = matched(
        compared={"one": ("causal",), "two": ("prefix",)},
        groups={"headline": ("causal",), "core": ("prefix",)},
        fewer={"core": {"smoke": 0}},
        shown={},
    )
    assert set(tabulate.render(apart, measured)) == {"table"}  # none of that scale


def test_seeds_of_a_group_are_refused_where_they_do_not_compare(matched):
    with pytest.raises(ConfigError, match="compared as 'all' but have not the same seeds"):
        matched(groups={"headline": ("causal",), "core": ("prefix",)}, fewer={"core": {"smoke": 1}})
    with pytest.raises(
        ConfigError, match=r"Table.fewer of study tiny has 3 for headline at smoke, expected 0 to"
    ):
        matched(groups={}, fewer={"headline": {"smoke": 3}})
    with pytest.raises(ConfigError, match="Table.fewer of study tiny has 'core'"):
        matched(fewer={"core": {"smoke": 1}})


def test_a_file_that_cannot_be_written_is_one_line_and_leaves_nothing_behind(measured, matched):
    planned = matched()
    folder = measured / "tiny" / "smoke"
    (folder / "table.csv").mkdir()
    with pytest.raises(folders.RunError, match=r"cannot write .*table.csv: ") as raised:
        write(planned, measured)
    assert "\n" not in str(raised.value)
    assert not list(folder.glob("*.tmp"))


def test_a_block_is_rewritten_whole_or_not_at_all(measured, matched, tmp_path, monkeypatch):
    planned = matched()
    table = tabulate.render(planned, measured)["table"]
    readme = tmp_path / "README.md"
    readme.write_text("before ±\n<!-- table:tiny/smoke -->\nold\n<!-- /table -->\nafter\n", encoding="utf-8")
    tabulate.update_blocks(readme, planned, {"table": table})
    text = readme.read_text(encoding="utf-8")
    shown = f"<!-- table:tiny/smoke -->\n{tables.markdown(table)}<!-- /table -->"
    assert text == f"before ±\n{shown}\nafter\n"

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders.os, "replace", full)
    with pytest.raises(folders.RunError, match="No space left on device"):
        tabulate.update_blocks(readme, planned, {"table": table})
    assert readme.read_text(encoding="utf-8") == text
