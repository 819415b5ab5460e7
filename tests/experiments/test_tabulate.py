"""What tabulate writes: whole files, of what is declared and of nothing else."""
# ruff: noqa: F811 (fixtures)

import dataclasses

import pytest
from test_launch import matched, project  # noqa: F401

from experiments import configs, folders, study, tabulate
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
    assert set(files) == TABLE | {name.replace("tasks", f"tasks_{n}") for name in TASKS for n in (1, 2)}
    assert "| prefix" not in files["tasks_1.md"].read_text()
    assert "| prefix" in files["tasks_2.md"].read_text()


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
    table = tabulate.render(planned, measured)
    readme = tmp_path / "README.md"
    readme.write_text("before ±\n<!-- table:tiny/smoke -->\nold\n<!-- /table -->\nafter\n", encoding="utf-8")
    tabulate.update_block(readme, planned, table)
    text = readme.read_text(encoding="utf-8")
    shown = f"<!-- table:tiny/smoke -->\n{tables.markdown(table)}<!-- /table -->"
    assert text == f"before ±\n{shown}\nafter\n"

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders.os, "replace", full)
    with pytest.raises(folders.RunError, match="No space left on device"):
        tabulate.update_block(readme, planned, table)
    assert readme.read_text(encoding="utf-8") == text
