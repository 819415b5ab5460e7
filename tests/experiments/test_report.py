"""The report finds every study with rows, and what their run folders have."""

import dataclasses
import itertools
import json
import shutil
import subprocess
import sys

import pytest
import smoke_rows

from experiments import configs, ledger, report, study
from experiments.sweeps import Sweep, Values
from research.analysis import fragments, html, results
from research.analysis.figures import Frontier


@pytest.fixture(scope="module")
def rows():
    return [dataclasses.replace(row, design=row.arm) for row in smoke_rows.rows()]


@pytest.fixture
def stored(rows, tmp_path):
    """A results folder with the rows."""
    for row in rows:
        results.save(row, tmp_path / "results" / "architecture" / "smoke" / "cells")
    return tmp_path / "results"


def rewritten(folder, row, **changes):
    cells = folder / "architecture" / "smoke" / "cells"
    (cells / row.name).unlink()
    results.save(dataclasses.replace(row, **changes), cells)


def test_a_run_has_what_its_folder_has(rows, tmp_path):
    folder = tmp_path / "architecture" / "smoke" / rows[0].name.removesuffix(".json")
    assert report.run(rows[0], tmp_path) == fragments.Run(row=rows[0])
    folder.mkdir(parents=True)
    line = {"step": 10, "loss": 3.5}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + '\n{"step": 20, "lo')  # a kill cut it short
    (folder / "samples.txt").write_text("Fellow citizens")
    (folder / "samples-hot.jsonl").write_text('{"prompt": "Fellow", "text": "travellers"}\n')
    (folder / "samples.bin").write_text("neither")
    found = report.run(rows[0], tmp_path)
    assert found.log == (line,)
    assert found.samples == ("prompt: Fellow\ntext: travellers", "Fellow citizens")


def test_arms_with_the_same_masks_share_a_picture(rows):
    pictures, undrawn = report.mask_pictures(rows, {})
    assert undrawn == []
    captions = [picture.caption for picture in pictures]
    assert captions[:3] == [
        "causal_lm, causal_lm_targets, causal_lm_again",
        "prefix_lm",
        "encoder_decoder_lm, encoder_decoder_tied_lm, encoder_decoder_half_lm",
    ]
    assert "self-attention, Causal(): keys no later than the query." in pictures[0].alt
    assert "and the whole prefix" in pictures[1].alt
    for part in ("encoder, Full()", "cross-attention, Full()", "decoder, Causal()"):
        assert part in pictures[2].alt


def test_a_config_that_no_longer_loads_costs_its_picture_only(rows):
    old = dataclasses.replace(rows[0], config=rows[0].config.replace("masks.Causal", "masks.Casual"))
    prefix = [row for row in rows if row.arm == "prefix_lm"]
    pictures, undrawn = report.mask_pictures([old, *prefix], {})
    assert [picture.caption for picture in pictures] == ["prefix_lm"]
    assert undrawn[0].startswith("The mask of causal_lm is not drawn: ")
    assert "Casual" in undrawn[0]


def test_sections_say_what_is_left_out_and_what_is_refused(stored, rows, tmp_path):
    rewritten(stored, rows[0], arm="forgotten")
    rewritten(stored, rows[1], data={**rows[1].data, "fingerprint": "other"})
    (found,) = report.sections(stored, tmp_path)
    assert len(found.runs) == len(rows) - 1
    assert found.tables == ()
    assert found.notes[0] == "Left out: 1 rows of arms or seeds that the study does not declare."
    assert found.notes[1].startswith("No table: data.fingerprint")
    assert html.page([found], title="x")


def test_figures_and_sweeps_that_a_study_declares_are_in_its_section(stored, rows, tmp_path):
    planned = study.load("architecture", "smoke")
    sweep = Sweep(arms=("causal_lm",), points=Values(binding="AdamW.learning_rate", values=(0.001, 0.01)))
    points = sweep.expanded()
    specs = [
        Frontier(name=name, title=name, x="budget.parameters", y=f"metrics.{name}")
        for name in ("loss", "lost")
    ]
    planned = dataclasses.replace(
        planned,
        points=points,
        compared=planned.compared | dict.fromkeys(points, "language modelling"),
        groups={"headline": (*planned.arms, *points)},
        table=dataclasses.replace(planned.table, figures=tuple(specs), sweeps=(sweep,)),
    )
    for name, row in itertools.product(points, rows[:2]):
        results.save(dataclasses.replace(row, arm=name), stored / "architecture" / "smoke" / "cells")
    found = report.section(planned, stored, tmp_path)
    assert [picture.caption for picture in found.figures] == ["loss"]
    assert "causal_lm 2.005" in found.figures[0].alt
    assert [note for note in found.notes if note.startswith("Not drawn: ") and "metrics.lost" in note]
    titles = [shown.title for shown in found.tables]
    assert (titles[0], titles[-1]) == ("architecture, smoke", "architecture, smoke: sweep 1")
    assert len(titles) == 1 + len(planned.comparisons)
    assert found.tables[-1].baselines == dict.fromkeys(("causal_lm", *points), "causal_lm")
    assert len(found.runs) == len(rows) + 4
    assert html.page([found], title="x").count(": 0.0000<") == 4  # differences of the points' seeds


def test_a_study_is_judged_once(rows, tmp_path, monkeypatch):
    planned = study.load("architecture", "smoke")
    planned = dataclasses.replace(planned, scale=ledger.SCALE, folder=f"architecture/{ledger.SCALE}")
    for row in rows:
        row = dataclasses.replace(row, scale=ledger.SCALE)
        results.save(row, tmp_path / "architecture" / ledger.SCALE / "cells")
    judge, calls = ledger.of_study, []
    monkeypatch.setattr(ledger, "of_study", lambda *given: calls.append(given[0]) or judge(*given))
    judged = ledger.judged(tmp_path)
    found = report.section(planned, tmp_path, tmp_path, report.findings(planned, tmp_path, judged))
    assert len(found.tables) == len(planned.comparisons)
    assert calls.count("architecture") == 1
    assert report.findings(planned, tmp_path) == found.findings
    assert calls.count("architecture") == 2  # where nothing is judged yet


def test_rows_of_no_study_are_an_error(stored, tmp_path):
    shutil.move(stored / "architecture", stored / "archtecture")
    with pytest.raises(configs.ConfigError, match="--study=archtecture: no configs"):
        list(report.sections(stored, tmp_path))


@pytest.mark.slow
def test_the_command_writes_the_same_file_twice_or_says_in_one_line_why_not(stored, tmp_path):
    def command(*words):
        return subprocess.run(
            [sys.executable, "-m", "experiments.report", *words],
            cwd=configs.ROOT,
            capture_output=True,
            text=True,
        )

    pages = []
    for name in ("one.html", "two.html"):
        done = command(f"--out={tmp_path / name}", f"--runs_dir={tmp_path}", f"--results_dir={stored}")
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(tmp_path / name), "")
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]
    failed = command(f"--out={tmp_path / 'three.html'}", f"--results_dir={tmp_path}")
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"error: --results_dir={tmp_path}: no rows")
    assert failed.stderr.count("\n") == 1
    assert not (tmp_path / "three.html").exists()
