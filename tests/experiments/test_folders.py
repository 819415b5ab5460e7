"""Run folders belong to one process at a time, and to one experiment; two launches at once share the work."""
# ruff: noqa: F811 (fixtures)

import json
import re
import subprocess
import sys
from collections import Counter

import pytest
from test_launch import project, rows, started  # noqa: F401

from experiments import configs, folders
from experiments.folders import InUse, RunError, RunFolder

HOLD = """
import sys
from pathlib import Path
from experiments.folders import RunFolder
folder = RunFolder(Path(sys.argv[1]), key="key", fingerprint="data", config="train.steps = 1")
print("held", flush=True)
sys.stdin.read()
"""


def opened(path, *, key="key", fingerprint="data", config="train.steps = 1\n"):
    return RunFolder(path, key=key, fingerprint=fingerprint, config=config)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path / "run"`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        cwd=configs.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_is_one_process_s_until_it_ends_however_that_is(holder, tmp_path):
    for _ in range(2):
        with pytest.raises(InUse) as raised:
            opened(tmp_path / "run")
        assert str(raised.value) == (
            f"run folder {tmp_path}/run is in use by another process; wait until it is done"
        )
    opened(tmp_path / "another").close()
    holder.kill()
    holder.wait()
    folder = opened(tmp_path / "run")
    with pytest.raises(InUse):  # now it is this one's
        opened(tmp_path / "run")
    folder.close()
    opened(tmp_path / "run").close()


def test_of_several_processes_of_one_run_the_first_one_has_it_and_writes(holder, tmp_path, monkeypatch):
    before = (tmp_path / "run" / "config.gin").read_text()
    monkeypatch.setattr(folders.jax, "process_index", lambda: 1)
    folder = opened(tmp_path / "run", config="train.steps = 2\n")
    folder.finish({"loss": 1.0})
    assert folder.result is None
    assert (tmp_path / "run" / "config.gin").read_text() == before
    folder.close()


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"key": "other"}, "holds another experiment (- train.steps = 1; + train.steps = 2); choose another"),
        (
            {"fingerprint": "other"},
            "read data data, but now the corpus or the weights are other; choose another",
        ),
    ],
)
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, changes, wrong):
    folder = opened(tmp_path)
    known = {"key": "key", "config": "train.steps = 1\n", "data": {"fingerprint": "data"}}
    folders.write(tmp_path / "run.json", folders.text_of(known))
    folder.close()
    with pytest.raises(RunError) as raised:
        opened(tmp_path, config="train.steps = 2\n", **changes)
    assert str(raised.value) == f"run folder {tmp_path} {wrong} --run_dir or remove the folder"
    assert (tmp_path / "config.gin").read_text() == "train.steps = 1\n"
    again = opened(tmp_path)  # who was refused holds it no more
    assert again.known == known
    again.close()


def test_a_result_is_there_until_it_is_put_aside(tmp_path):
    folder = opened(tmp_path)
    assert folder.result is None
    for number, loss in ((1, 1.5), (2, 2.5)):
        folder.finish({"loss": loss})
        (folder.path / "checkpoints").mkdir()
        assert folder.result == {"loss": loss}
        folder.set_aside()
        assert folder.result is None
        assert folder.known == {}
        assert not (folder.path / "checkpoints").exists()
        aside = folder.path / f"aside_{number}"
        assert json.loads((aside / "result.json").read_text()) == {"loss": loss}
        assert (aside / "checkpoints").exists()
    assert (folder.path / "config.gin").exists()


def test_what_cannot_be_written_is_one_line_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "result.json").mkdir()
    (tmp_path / "result.json" / "full").touch()
    folder = opened(tmp_path)
    with pytest.raises(RunError, match=r"^cannot write .*/result.json: .*; make room there"):
        folder.finish({"loss": 1.0})
    folder.close()
    assert not list(tmp_path.glob("*.tmp"))
    (tmp_path / "locked" / ".lock").mkdir(parents=True)
    with pytest.raises(RunError, match=r"^cannot write .*/locked: .*; make it writable$"):
        opened(tmp_path / "locked")


def test_the_losses_of_a_folder_are_those_of_its_log_and_of_its_result(tmp_path):
    assert folders.history(tmp_path, None) == {}
    log = [
        {"step": 10, "loss": 3.0},
        {"step": 10, "validation_loss": 3.5, "validation_bits_per_byte": 5.0},
        {"step": 12, "spike": 9.0},
        {"step": 20, "validation_loss": 3.0},
        {"step": 30, "validation_loss": 2.9},
        {"step": 20, "validation_loss": 3.1},  # taken again
        {"step": 20, "loss": 2.5},
        {"step": 40, "validation_loss": None},  # not finite
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in log)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 50, "validation_loss": 1')
    assert list(folders.history(tmp_path, None).items()) == [(10, 3.5), (20, 3.1), (30, 2.9)]
    result = {"metrics": {"validation_loss": 2.8}, "budget": {"steps": 45}}
    assert folders.history(tmp_path, result) == {10: 3.5, 20: 3.1, 30: 2.9, 45: 2.8}
    result["metrics"]["steps"] = 30  # stopped early: after 45 steps it kept those of step 30
    assert folders.history(tmp_path, result) == {10: 3.5, 20: 3.1, 30: 2.8}


WITNESS = """
import dataclasses
import os
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Witness:
    '''Notes who evaluates, once a run that has been trained; a replay reads fewer windows.'''

    def __call__(self, trained):
        if trained.text.data.held_out > 16:
            with Path("witness").open("a") as file:
                file.write(f"{os.getpid()}\\n")
        return {"seen": 1}
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["alone", "ensemble"])
def test_two_launches_at_once_share_the_cells_and_train_none_twice(project, how):
    (project / "witness.py").write_text(WITNESS)
    path = project / "configs" / "tiny" / "study.gin"
    head = "from experiments import study\n"
    text = path.read_text().replace(head, f"import witness\n{head}").replace(", 'tokens_per_second'", "")
    path.write_text(f"{text}study.Table.evaluations = {{'witness': @witness.Witness()}}\n")
    scale = project / "configs" / "scale" / "smoke.gin"
    scale.write_text(
        scale.read_text().replace("steps = 4", "steps = 40")
        + "from research.training import loop\nloop.Plan.log_every = 1\n"
    )
    launches = [started(project, f"--how={how}", "--members=2") for _ in range(2)]
    said = [launch.communicate(timeout=300) for launch in launches]
    assert [launch.returncode for launch in launches] == [0, 0], said
    found = rows(project)
    assert len(found) == 4
    runs = {path.name: path for path in (project / "runs" / "tiny" / "smoke").iterdir() if path.is_dir()}
    assert {f"{name}.json" for name in runs} == set(found)
    for run in runs.values():
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert Counter(line["step"] for line in lines) == dict.fromkeys(range(1, 41), 1)
        assert json.loads((run / "run.json").read_text())["status"] == "done"
    evaluated = Counter((project / "witness").read_text().split())
    assert evaluated.total() == 4
    assert set(evaluated) == {str(launch.pid) for launch in launches}  # each did some of it
    for out, _ in said:
        assert len(re.findall(r"(?m)^\w+ seed \d  held-out loss [\d.]+$", out)) == 4
