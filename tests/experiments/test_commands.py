"""The command lines, run as a user runs them, and the documents that show what they printed."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from experiments import configs, experiment, masks, study, tabulate
from research.analysis import tables

README = configs.ROOT / "README.md"


def command(*words):
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=configs.ROOT, capture_output=True, text=True, timeout=240
    )
    return done.returncode, done.stdout, done.stderr


def test_the_prefix_picture_has_the_colours_of_its_parts():
    planned, _ = experiment.load(["configs/architecture/prefix_lm.gin"])
    (panel,) = masks.panels(planned.model, masks.example(planned.data, 4))
    hidden, both, mixed, targets = range(4)
    assert masks.kinds(panel).tolist() == [
        [both, both, both, hidden],
        [both, both, both, hidden],
        [both, both, both, hidden],
        [mixed, mixed, mixed, targets],
    ]


def test_an_encoder_decoder_has_three_panels():
    planned, _ = experiment.load(["configs/architecture/encoder_decoder_lm.gin"])
    drawn = masks.panels(planned.model, masks.example(planned.data, 6))
    assert [np.unique(masks.kinds(panel)).tolist() for panel in drawn] == [[1], [2], [0, 3]]


def panels_of(*bindings, file="causal_lm", documents=1, tokens=8, segments=3):
    planned, _ = experiment.load([f"configs/architecture/{file}.gin"], list(bindings))
    return masks.panels(planned.model, masks.example(planned.data, tokens, documents), segments)


def visible(panel):
    return masks.kinds(panel) > 0


@pytest.mark.parametrize(
    ("bindings", "rule"),
    [
        (["@Window()", "Window.w=3"], lambda d, k: (d >= 0) & (d < 3)),
        (
            ["@And()", "And.parts=(@Causal(), @Chunk())", "Chunk.c=4"],
            lambda d, k: (d >= 0) & ((d + k) // 4 == k // 4),
        ),
        (
            [
                "@And()",
                "And.parts=(@Causal(), @Or())",
                "Or.parts=(@Sinks(), @Window())",
                "Sinks.n=2",
                "Window.w=3",
            ],
            lambda d, k: (d >= 0) & ((k < 2) | (d < 3)),
        ),
    ],
)
def test_the_picture_of_any_mask_of_a_binding(bindings, rule):
    (panel,) = panels_of(f"DecoderConfig.mask={bindings[0]}", *bindings[1:])
    q, k = np.arange(8)[:, None], np.arange(8)
    assert (visible(panel) == rule(q - k, k)).all()


def test_packed_documents_do_not_see_each_other_and_their_blocks_are_not_computed():
    (panel,) = panels_of(documents=2)
    assert (visible(panel) == np.kron(np.eye(2), np.tril(np.ones((8, 8)))).astype(bool)).all()
    may, must = masks.visibility(panel, 4)
    assert may.astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert must.astype(int).tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]


def test_a_pattern_has_a_panel_for_each_of_its_masks():
    drawn = panels_of(
        "StackConfig.pattern=(@BlockSpec(), @local/BlockSpec())",
        "local/BlockSpec.window=@Window()",
        "Window.w=2",
    )
    assert [str(panel.mask) for panel in drawn] == ["Causal()", "And(parts=(Causal(), Window(w=2)))"]


def test_memories_stand_left_of_the_segment_that_reads_them():
    recurrent = ["StackConfig.memory=@Recurrent()", "Recurrent.length=4"]
    (panel,) = panels_of(*recurrent)
    assert panel.memory == 4
    assert (visible(panel) == np.tri(8, 12, 4, dtype=bool)).all()
    (fresh,) = panels_of(*recurrent, segments=0)
    assert not visible(fresh)[:, :4].any()
    (compressive,) = panels_of(
        *recurrent,
        "Recurrent.compression=@MeanPooling()",
        "MeanPooling.length=6",
        "MeanPooling.rate=4",
        "DecoderConfig.mask=@Window()",
        "Window.w=9",
    )
    covered = np.arange(-25, -4, 4)  # the last position that each compressed slot covers, from the segment
    position = np.concatenate([covered, np.arange(-4, 8)])
    behind = np.arange(8)[:, None] - position
    assert (visible(compressive) == ((behind >= 0) & (behind < 9))).all()


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_masks_writes_a_picture_and_explains_it(tmp_path, suffix):
    out = tmp_path / f"masks.{suffix}"
    code, said, _ = command(
        "experiments.masks", "--gin_file=configs/architecture/prefix_lm.gin", f"--out={out}"
    )
    assert code == 0
    assert "keys no later than the query, and the whole prefix" in said
    assert out.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")


def test_a_dry_run_shows_config_shapes_parameters_and_text():
    code, said, _ = command(
        "experiments.train",
        "--gin_file=configs/architecture/prefix_lm.gin",
        "--gin_file=configs/scale/smoke.gin",
        "--gin_file=tests/experiments/library.gin",
        "--dry_run",
    )
    assert code == 0
    for part in ("experiment.train.steps = 80", "embedding/table", "119,104 parameters", "target: <bos>"):
        assert part in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "compression",
    [(), ("Recurrent.compression=@Convolution()", "Convolution.length=6", "Convolution.rate=4")],
)
def test_a_memory_is_counted_trained_and_resumed(tmp_path, compression):
    words = [
        *("configs/architecture/causal_lm.gin", "configs/scale/smoke.gin", "tests/experiments/library.gin"),
        *("StackConfig.memory=@Recurrent()", "Recurrent.length=8", *compression),
        *("StackConfig.positions=@Relative()", "DecoderConfig.mask=@Window()", "Window.w=9"),
        *("Data.layout=@Stream()", "Data.evaluation=None", "Data.window=24", "Data.batch=4"),
        *("Data.held_out=16", "StackConfig.width=16", "train.steps=4", "Plan.checkpoint_every=2"),
    ]
    words = [f"--gin_{'param' if '=' in word else 'file'}={word}" for word in words]
    for name, said in (("train", "TFLOP"), ("budget", "attention, by visible pairs")):
        code, out, wrong = command(f"experiments.{name}", *words, *["--dry_run"] * (name == "train"))
        assert code == 0, wrong
        assert said in out

    words = ["experiments.train", *words, f"--run_dir={tmp_path}"]
    code, _, wrong = command(*words)
    assert code == 0, wrong
    result = tmp_path / "result.json"
    whole = json.loads(result.read_text())
    result.unlink()
    shutil.rmtree(tmp_path / "checkpoints" / "4")  # as if it had been killed after step 2
    code, out, wrong = command(*words)
    assert code == 0, wrong
    assert "resumed at step 2" in out
    again = json.loads(result.read_text())
    assert (again["metrics"], again["budget"]) == (whole["metrics"], whole["budget"])


def test_a_mistake_is_one_line_on_stderr_and_no_traceback():
    code, _, said = command(
        "experiments.train", "--gin_file=configs/architecture/prefix_lm.gin", "--gin_param=train.stps=1"
    )
    assert code == 1
    assert (
        said.splitlines()[-1]
        == "error: train.stps: no such parameter; did you mean 'steps'? (In bindings string line 1)"
    )
    assert "Traceback" not in said


def test_a_study_that_does_not_exist_is_one_line():
    code, _, said = command("experiments.launch", "--study=architectur")
    assert code == 1
    assert said.splitlines()[-1].startswith("error: --study=architectur: no configs/architectur/study.gin")


def test_readme_shows_the_table_of_the_committed_rows():
    table = tabulate.render(study.load("architecture", "smoke"), configs.ROOT / "results")["table"]
    block = re.search(r"<!-- table:architecture/smoke -->\n(.*?)<!-- /table -->", README.read_text(), re.S)
    assert block is not None
    assert block[1] == tables.markdown(table)
    assert (configs.ROOT / "results/architecture/smoke/table.md").read_text() == tables.markdown(table)


def test_readme_shows_the_line_that_makes_a_prefix_decoder():
    line = "families.DecoderConfig.mask = @masks.Prefix()"
    assert line in README.read_text()
    assert line in (configs.ROOT / "configs/family/prefix.gin").read_text()
