"""A study from the first cell to the table."""

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest
from rich.console import Console

from experiments import cells, configs, experiment, grouping, launch, study
from experiments.folders import InUse
from research.analysis import matching
from research.training import loop


def started(folder, *words, **environment):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "experiments.launch", "--study=tiny", "--scale=smoke"),
            *(f"--results_dir={folder / 'results'}", f"--runs_dir={folder / 'runs'}", *words),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def launched(folder, *words, **environment):
    process = started(folder, *words, **environment)
    said, wrong = process.communicate(timeout=300)
    return process.returncode, said, wrong


@pytest.fixture
def project(tmp_path):
    """A copy of the project with a study of two arms on the standard library's source."""
    for name in ("research", "experiments", "configs"):
        shutil.copytree(configs.ROOT / name, tmp_path / name)
    study = tmp_path / "configs" / "tiny"
    study.mkdir()
    for arm, family in (("causal", "causal"), ("prefix", "prefix")):
        (study / f"{arm}.gin").write_text(
            "include 'configs/base.gin'\n"
            f"include 'configs/family/{family}.gin'\n"
            "include 'configs/objective/prefix_lm.gin'\n"
        )
    (study / "study.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom experiments import study\n"
        "study.Table.arms = ('causal', 'prefix')\n"
        "study.Table.seeds = {'smoke': (0, 1)}\n"
        "study.Table.columns = ('loss', 'parameters', 'tokens_per_second')\n"
        "study.Table.compared = {'all': ('causal', 'prefix')}\n"
    )
    scale = tmp_path / "configs" / "scale" / "smoke.gin"
    scale.write_text(
        scale.read_text().replace("steps = 80", "steps = 4")
        + "from research.data import corpora\n"
        + "pipeline.Data.corpus = @corpora.StandardLibrary()\n"
    )
    return tmp_path


@pytest.fixture
def matched(project, monkeypatch):
    """That study, its arms made to cost the same training FLOPs."""
    study_file = project / "configs" / "tiny" / "study.gin"

    def write(**changes):
        lines = [f"study.Table.{name} = {value!r}\n" for name, value in changes.items()]
        study_file.write_text(study_file.read_text() + "".join(lines))
        return study.load("tiny", "smoke")

    monkeypatch.setattr(configs, "ROOT", project)
    monkeypatch.chdir(project)
    yield write
    study._matched.cache_clear()


@pytest.mark.parametrize("knob", [("StackConfig.hidden", 4), ("train.steps", 1)])
def test_a_knob_is_turned_until_an_arm_costs_what_its_baseline_costs(matched, knob):
    by = "flops" if knob[0] == "StackConfig.hidden" else "loss_tokens"
    objective = "include 'configs/objective/causal_lm.gin'\n"  # twice the targets of a prefix language model
    arm = configs.ROOT / "configs" / "tiny" / "causal.gin"
    arm.write_text(arm.read_text().replace("include 'configs/objective/prefix_lm.gin'\n", objective))
    planned = matched(match={"all": by}, knobs={"prefix": knob})
    experiments = [planned.experiment(arm, 1)[0] for arm in ("causal", "prefix")]
    totals = [
        matching.total(experiment.cost(one.model, one.data, None), one.steps, by) for one in experiments
    ]
    found = planned.matched("prefix")
    assert totals[1] / totals[0] - 1 == pytest.approx(found.residual)
    assert abs(found.residual) < 0.02
    text = planned.experiment("prefix", 1)[1]
    assert experiments[1].seed == 1
    assert f"{knob[0].split('.')[1]} = {found.value}" in text  # the run's own config says it


def test_an_arm_that_cannot_be_matched_is_one_line(matched):
    planned = matched(match={"all": "params"}, knobs={"prefix": ("StackConfig.layers", 1)})
    assert planned.experiment("causal", 0)[0].steps == 4  # the baseline costs what it costs
    arm = configs.ROOT / "configs" / "tiny" / "prefix.gin"
    arm.write_text(arm.read_text() + "from research.models import config\nconfig.StackConfig.hidden = 1000\n")
    for knobs, wrong in [
        ({"prefix": ("StackConfig.layers", 1)}, "StackConfig.layers = 1 is nearest"),
        ({}, "which no knob of Table.knobs turns"),
        ({"prefix": ("StackConfig.hiden", 1)}, "did you mean 'hidden'"),
    ]:
        planned = matched(match={"all": "params"}, knobs=knobs)
        with pytest.raises(configs.ConfigError, match=wrong) as raised:
            planned.experiment("prefix", 0)
        assert "\n" not in str(raised.value)
    with pytest.raises(configs.ConfigError, match="names 'suffix', which is none of Table.arms"):
        matched(match={"all": "params"}, knobs={"suffix": ("train.steps", 1)})


def rows(project):
    folder = project / "results" / "tiny" / "smoke" / "cells"
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


@pytest.mark.slow
def test_a_study_runs_what_is_missing_and_nothing_else(project):
    code, said, wrong = launched(project, "--how=processes", "--workers=2")
    assert code == 0, wrong
    assert "tiny/smoke: 4 of 4 cells to run" in said
    first = rows(project)
    assert len(first) == 4
    assert all(row["timing"]["wall_seconds"] is None for row in first.values())  # shared the machine
    assert all(row["timing"]["tokens_per_second"] > 0 for row in first.values())  # timed when it was quiet
    orders = {(row["seed"], row["data"]["order"]) for row in first.values()}
    assert len(orders) == 2  # both arms of a seed saw the same windows

    code, said, _ = launched(project)
    assert code == 0
    assert "0 of 4 cells to run" in said
    assert rows(project) == first

    # A column that asks for another timing: rows get it, and nothing runs again.
    path = project / "configs" / "tiny" / "study.gin"
    path.write_text(path.read_text().replace("'tokens_per_second'", "'tokens_per_second', 'latency'"))
    code, said, wrong = launched(project)
    assert code == 0, wrong
    assert "0 of 4 cells to run" in said
    for name, row in rows(project).items():
        latency = row["timing"].pop("latency_seconds")
        assert 0 < latency < 1
        assert row == first[name]

    # Changing one arm runs that arm again, in place of its old rows.
    arm = project / "configs" / "tiny" / "prefix.gin"
    arm.write_text(
        "from __gin__ import dynamic_registration\nfrom research.models import config\n"
        + arm.read_text()
        + "config.StackConfig.softcap = 20.0\n"
    )
    code, said, wrong = launched(project)
    assert code == 0, wrong
    assert "2 of 4 cells to run" in said
    second = rows(project)
    assert {name for name in second if name.startswith("causal")} < set(first)
    assert len(second) == 4
    assert not {name for name in second if name.startswith("prefix")} & set(first)
    assert re.search(r"\| prefix \| 2 \|", (project / "results/tiny/smoke/table.md").read_text())


@pytest.mark.slow
def test_an_ensemble_has_the_rows_of_cells_that_ran_alone(project):
    arms = "--only=causal"
    code, _, wrong = launched(project, "--how=alone", arms)
    assert code == 0, wrong
    alone = rows(project)
    shutil.rmtree(project / "results")
    shutil.rmtree(project / "runs")
    code, said, wrong = launched(project, "--how=ensemble", arms)
    assert code == 0, wrong
    together = rows(project)
    assert set(together) == set(alone)
    for name, row in together.items():
        assert row["metrics"]["loss"] == pytest.approx(alone[name]["metrics"]["loss"], rel=1e-5)
        for part in ("key", "data", "budget", "config"):
            assert row[part] == alone[name][part]
        assert row["timing"]["wall_seconds"] is None
        assert alone[name]["timing"]["wall_seconds"] > 0


@pytest.mark.slow
def test_an_ensemble_is_spread_over_devices_and_a_member_with_a_strange_folder_is_left_out(project):
    """Three cells on four devices, of which three are used; the folder of a fourth belongs to another experiment."""
    study_file = project / "configs" / "tiny" / "study.gin"
    study_file.write_text(study_file.read_text().replace("(0, 1)", "(0, 1, 2, 3)"))
    arms = "--only=causal"
    code, _, wrong = launched(project, "--how=alone", arms, "--seeds=3")
    assert code == 0, wrong
    alone = rows(project)
    shutil.rmtree(project / "results")
    shutil.rmtree(project / "runs")
    process = started(project, "--dry_run", arms, "--seeds=4")
    said, _ = process.communicate(timeout=300)
    (folder,) = [line.split()[-1] for line in said.splitlines() if line.startswith("causal seed 3")]
    (project / folder).mkdir(parents=True)
    record = {"key": "another", "config": "", "data": {"fingerprint": ""}}
    (project / folder / "run.json").write_text(json.dumps(record))
    code, said, wrong = launched(project, "--how=ensemble", arms, "--seeds=4", JAX_NUM_CPU_DEVICES="4")
    assert code == 1
    assert "error: causal seed 3: run folder" in wrong
    together = rows(project)
    assert set(together) == set(alone)
    for name, row in together.items():
        assert row["metrics"]["loss"] == pytest.approx(alone[name]["metrics"]["loss"], rel=1e-5)
        assert row["timing"]["tokens_per_second"] > 0  # timed afterwards


@pytest.mark.slow
@pytest.mark.parametrize("how", ["alone", "processes"])
def test_sigterm_stops_a_launch_and_its_workers_which_save(project, how):
    scale = project / "configs" / "scale" / "smoke.gin"
    scale.write_text(scale.read_text().replace("steps = 4", "steps = 100000"))
    process = started(project, f"--how={how}", "--workers=2")
    runs = project / "runs" / "tiny" / "smoke"
    wanted, began = 1 if how == "alone" else 2, time.monotonic()
    while len([log for log in runs.glob("*/metrics.jsonl") if log.read_text()]) < wanted:
        assert process.poll() is None
        assert time.monotonic() - began < 240
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said, wrong = process.communicate(timeout=120)  # ends when no worker holds the pipe any more
    assert process.returncode == 130, wrong
    assert "the same command goes on from there" in said
    assert "Traceback" not in wrong
    saved = [step for step in runs.glob("*/checkpoints/*") if step.name.isdecimal()]
    assert len(saved) == wanted
    states = {json.loads(path.read_text())["status"] for path in runs.glob("*/run.json")}
    assert states == {"interrupted"}


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_no_cell(project):
    """Its cell, and the one beside it, which is told to stop and saves, go on from their checkpoints."""
    scale = project / "configs" / "scale" / "smoke.gin"
    scale.write_text(
        scale.read_text().replace("steps = 4", "steps = 600")
        + "pipeline.Data.window = 32\npipeline.Data.batch = 4\n"
        + "from research.training import loop\nloop.Plan.checkpoint_every = 20\n"
    )
    process = started(project, "--how=processes", "--workers=2")
    runs = project / "runs" / "tiny" / "smoke"
    began = time.monotonic()
    while len({path.parent for path in runs.glob("*/checkpoints/*0")}) < 2:
        assert process.poll() is None
        assert time.monotonic() - began < 240
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(int(workers[0]), signal.SIGKILL)
    said, wrong = process.communicate(timeout=300)
    assert process.returncode == 0, wrong
    assert len(rows(project)) == 4
    assert "failed" not in said


def test_a_row_that_cannot_be_written_is_named_and_the_others_are_kept(monkeypatch, tmp_path):
    def save(cell, result, *, timed):
        if cell.path == tmp_path / "first":
            raise OSError(errno.ENOSPC, "No space left on device")
        return result["loss"]

    found = [
        SimpleNamespace(path=tmp_path / name, row=None, job=None, data_dir=None)
        for name in ("first", "second")
    ]
    monkeypatch.setattr(cells, "save", save)
    monkeypatch.setattr(cells.running, "run_all", lambda *_, **__: [{"loss": 1.0}, {"loss": 2.0}])
    failed, loss = cells.run(found, timed=True, console=None)
    assert str(failed).startswith(f"cannot write {tmp_path}/first: No space left on device; make room there")
    assert loss == 2.0


class Waiting:
    """A cell; another process may be at work on it, or save its row."""

    def __init__(self, runs, title):
        self.title, self.runs, self.data_dir, self.row = title, runs, None, None
        self.again, self.followers, self.before, self.asked = False, (), (), ()
        planned = SimpleNamespace(steps=1, deterministic=False)
        self.job = SimpleNamespace(folder=runs / title, planned=planned, twins=title, evaluated=set())
        self.job.folder.mkdir(parents=True)
        self.lock = filelock.FileLock(self.job.folder / ".lock")

    def save(self):
        self.row = SimpleNamespace(value=lambda _: 2.0, timing={"tokens_per_second": None})


@pytest.fixture
def launcher(tmp_path, monkeypatch):
    """Make a launcher, here or on a cluster, for two cells: the first look after each pause does what is next."""
    every = [Waiting(tmp_path / "runs", title) for title in ("first", "second")]
    ran, events = [], []

    def pause(_):
        if not events:
            pytest.fail("nothing more happens, and it waits")
        events.pop(0)()

    def outcomes(cells):
        for cell in cells:
            ran.append(cell.title)
            yield InUse("in use") if cell.lock.is_locked else 1.0

    monkeypatch.setattr(launch, "time", SimpleNamespace(sleep=pause))
    monkeypatch.setattr(grouping, "shapes", lambda planned, _: [[index] for index in range(len(planned))])

    def make(*, cluster):
        if cluster:
            monkeypatch.setattr(cells, "run", lambda *_, **__: pytest.fail("a cell runs in the launcher"))
            each = SimpleNamespace(each=lambda _, todo: zip(todo, outcomes(todo), strict=True))
        else:
            monkeypatch.setattr(cells, "run", lambda todo, **_: list(outcomes(todo)))
        console = Console(quiet=True)
        return launch.Launcher("alone", 1, 1, each if cluster else None, console)

    yield make, every, ran, events
    for cell in every:
        cell.lock.release()


def nothing():
    pass


@pytest.mark.parametrize("cluster", [False, True])
def test_a_cell_that_another_launch_is_at_is_waited_for_and_not_run(launcher, cluster):
    make, every, ran, events = launcher
    every[0].lock.acquire()
    events += [nothing] * 3 * launch.LOOKS + [every[0].save]
    assert make(cluster=cluster).run(every) == {}
    assert ran == ["first", "second"]
    assert not events


@pytest.mark.parametrize("cluster", [False, True])
def test_a_cell_that_another_launch_has_given_up_runs_here_or_as_a_job(launcher, cluster):
    """A job waits some looks, since its row may not be seen yet; a look that finds it at work counts from none."""
    make, every, ran, events = launcher
    every[0].lock.acquire()
    looks = launch.LOOKS if cluster else 1
    events += [nothing, every[0].lock.release, *[nothing] * (looks - 1)]
    if cluster:
        events[3:3] = [every[0].lock.acquire, every[0].lock.release]
        events += [nothing]
    assert make(cluster=cluster).run(every) == {}
    assert ran == ["first", "second", "first"]
    assert not events


@pytest.mark.parametrize("cluster", [False, True])
def test_a_row_that_appears_late_is_enough(launcher, cluster):
    make, every, ran, events = launcher
    every[0].lock.acquire()

    def end():
        every[0].lock.release()
        every[0].save()

    events += [nothing, end]
    assert make(cluster=cluster).run(every) == {}
    assert ran == ["first", "second"]


def test_what_runs_beside_another_launch_is_not_timed(tmp_path, monkeypatch):
    first, second, other = (Waiting(tmp_path / "runs", title) for title in ("first", "second", "other"))
    timed = []

    def run(todo, *, timed, console):
        seen.append(timed)
        other.lock.acquire() if todo[0] is first else other.lock.release()
        return [1.0]

    seen = timed
    monkeypatch.setattr(cells, "run", run)
    console = Console(quiet=True)
    launch.Launcher("alone", 1, 1, None, console).run([first, second, Waiting(tmp_path / "runs", "third")])
    assert timed == [True, False, True]


@pytest.fixture
def untimed(tmp_path, monkeypatch):
    """A cell whose row has no timing; what can be timed of it, and the timings that were saved."""
    cell, saved = Waiting(tmp_path / "runs", "first"), []
    cell.save()
    cell.rows, cell.arm = tmp_path, "causal"
    cell.study = SimpleNamespace(
        table=SimpleNamespace(columns=("loss", "tokens_per_second"), shown={}, evaluations={}, measured={}),
        compared={"causal": "lm", "other": "spam"},
    )
    cell.study.columns = lambda together: study.Study.columns(cell.study, together)

    def save(row, _):
        saved.append(row.timing)
        cell.row = row

    values = {"tokens_per_second": lambda *_: 5.0, "latency_seconds": lambda *_: 0.002}
    monkeypatch.setattr(launch.timing, "TIMED", values)
    replaced = lambda row, timing: SimpleNamespace(value=row.value, timing=timing)  # noqa: E731
    monkeypatch.setattr(launch.dataclasses, "replace", replaced)
    monkeypatch.setattr(launch.results, "save", save)
    return cell, values, saved


def test_rows_are_timed_when_no_other_launch_is_at_work(untimed, tmp_path):
    first, _, saved = untimed
    other = Waiting(tmp_path / "runs", "other")
    with other.lock:
        launch.time_rows([first], Console(quiet=True))
    assert saved == []
    for _ in range(2):  # the second finds it timed
        launch.time_rows([first], Console(quiet=True))
    assert saved == [{"tokens_per_second": 5.0}]


def test_an_old_row_gets_what_its_table_shows_and_keeps_the_rest(untimed):
    first, _, saved = untimed
    first.row.timing["tokens_per_second"] = 7.0
    first.study.table.shown["spam"] = ("latency",)  # another table
    launch.time_rows([first], Console(quiet=True))
    assert saved == []
    first.study.table.shown["lm"] = ("latency",)
    console = Console(record=True, width=200, file=io.StringIO())
    for _ in range(2):
        launch.time_rows([first], console)
    assert saved == [{"tokens_per_second": 7.0, "latency_seconds": 0.002}]
    assert console.export_text() == "first  latency of one window 2.00 ms\n"


def test_what_cannot_be_timed_is_said_and_the_rest_is_timed(untimed):
    first, values, saved = untimed

    def refuse(*_):
        raise ValueError("held-out windows give nothing")

    values["tokens_per_second"] = refuse
    first.study.table.columns = ("latency", "tokens_per_second")
    console = Console(record=True, width=200, file=io.StringIO())
    launch.time_rows([first], console)
    assert saved == [{"tokens_per_second": None, "latency_seconds": 0.002}]
    assert "first  no tokens_per_second: held-out windows give nothing\n" in console.export_text()


def flagged(monkeypatch, tmp_path, **changes):
    given = {"results_dir": tmp_path / "results", "runs_dir": tmp_path / "runs", "data_dir": None}
    given |= {"dry_run": False, "stale": "mark", "only": None, **changes}
    monkeypatch.setattr(launch, "FLAGS", SimpleNamespace(**given))


@pytest.fixture
def tuned(matched):
    path = configs.ROOT / "configs" / "tiny" / "study.gin"
    path.write_text(f"{path.read_text()}study.Table.tuning = @study.Tuning()\n")
    return study.load("tiny", "smoke")


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (loop.Diverged("its loss is nan"), []),
        (RuntimeError("no memory"), ["prefix@learning_rate=0.01 seed 1000: no memory"]),
    ],
)
def test_a_rate_at_which_training_diverges_is_an_answer(tuned, tmp_path, monkeypatch, capsys, error, lines):
    losses = {0.001: 2.0, 0.003: 1.0}
    monkeypatch.setattr(launch.tuning.Grid, "choices", lambda grid: {arm: choice() for arm in grid.arms})

    def choice():
        return launch.choosing.Choice(losses={**losses, 0.01: None})

    def outcomes(_, todo):
        for cell in todo:
            yield cell, error if cell.title.startswith("prefix@learning_rate=0.01 ") else 1.0

    monkeypatch.setattr(launch.Launcher, "_outcomes", outcomes)
    flagged(monkeypatch, tmp_path)
    launcher = launch.Launcher("alone", 1, 1, None, Console(width=200))
    assert launch.tune(tuned, tuned.arms, launcher) == lines
    said = capsys.readouterr().out
    assert f"prefix@learning_rate=0.01 seed 1000  failed: {error}" in said
    assert "study.Table.learning_rates = {'smoke': {'causal': 0.003, 'prefix': 0.003}}" in said
    assert "none" in (tmp_path / "results/tiny/smoke/tuning/table.md").read_text()


def test_a_dry_run_of_the_grid_runs_nothing(tuned, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(launch.Launcher, "run", lambda *_: pytest.fail("it runs"))
    flagged(monkeypatch, tmp_path, dry_run=True)
    launcher = launch.Launcher("alone", 1, 1, None, Console(width=300))
    assert launch.tune(tuned, ("prefix",), launcher) == []
    said = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert said == [f"prefix@learning_rate={rate}" for rate in (0.001, 0.003, 0.01)]
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("dry", [False, True])
def test_an_arm_that_cannot_be_planned_is_told_and_the_others_run(
    matched, tmp_path, monkeypatch, capsys, dry
):
    planned = matched(match={"all": "params"}, seeds={"smoke": (0,)})
    arm = configs.ROOT / "configs" / "tiny" / "prefix.gin"
    arm.write_text(arm.read_text() + "from research.models import config\nconfig.StackConfig.hidden = 1000\n")
    ran = []
    monkeypatch.setattr(launch.Launcher, "run", lambda _, todo: ran.extend(cell.title for cell in todo) or {})
    flagged(monkeypatch, tmp_path, dry_run=dry)
    launcher = launch.Launcher("alone", 1, 1, None, Console(width=300))
    (line,) = launch.measure(planned, planned.arms, launcher)
    assert line.startswith("prefix seed 0: arm prefix of study tiny: match by 'params'")
    said = capsys.readouterr().out.splitlines()
    assert "causal  params +0.00%" in said
    assert ran == ([] if dry else ["causal seed 0"])


@pytest.mark.slow
def test_devices_sum_in_the_same_order_before_anything_is_counted(matched, monkeypatch):
    """The flag is set before the arm is matched, which asks JAX for its devices; and a dry run asks no cluster."""
    matched(match={"all": "params"})
    project = configs.ROOT
    arm = project / "configs" / "tiny" / "prefix.gin"
    arm.write_text(
        f"{arm.read_text()}from experiments import experiment\nexperiment.train.deterministic = True\n"
    )
    (project / "sitecustomize.py").write_text(
        "import os\nfrom jax._src import xla_bridge as bridge\ninitialise = bridge.backends\n"
        "def backends():\n"
        "    with open('flags', 'a') as file: print(os.environ.get('XLA_FLAGS', ''), file=file)\n"
        "    return initialise()\n"
        "bridge.backends = backends\n"
    )
    code, said, wrong = launched(project, "--dry_run", "--launcher=slurm", PATH="/nowhere", XLA_FLAGS="")
    assert code == 0, wrong
    assert "prefix  params +0.00%" in said
    flags = (project / "flags").read_text().splitlines()
    assert flags
    assert all("--xla_gpu_deterministic_ops=true" in line for line in flags)


@pytest.mark.slow
def test_a_cell_that_fails_is_named_and_the_others_are_kept(project):
    arm = project / "configs" / "tiny" / "prefix.gin"
    arm.write_text(
        "from __gin__ import dynamic_registration\n"
        "from research.data import corpora\nfrom research.data import pipeline\n" + arm.read_text()
    )
    scale = project / "configs" / "scale" / "smoke.gin"
    text = scale.read_text().replace("pipeline.Data.corpus = @corpora.StandardLibrary()\n", "")
    scale.write_text(text)
    for name, corpus in (("causal", "@corpora.StandardLibrary()"), ("prefix", "@local.TextFiles()")):
        path = project / "configs" / "tiny" / f"{name}.gin"
        modules = ("__gin__ import dynamic_registration", "research.data import corpora")
        head = "".join(f"from {module}\n" for module in (*modules, "research.data import pipeline"))
        body = path.read_text().replace(head, "")
        path.write_text(f"{head}from research.data import local\n{body}pipeline.Data.corpus = {corpus}\n")
    with (project / "configs" / "tiny" / "prefix.gin").open("a") as file:
        file.write("local.TextFiles.pattern = 'nowhere/*.txt'\n")
    code, said, wrong = launched(project, "--seeds=1")
    assert code == 1
    assert "prefix seed 0  failed" in said
    error = "prefix seed 0: TextFiles.pattern 'nowhere/*.txt' matches no file"
    assert f"error: {error}" in wrong
    assert [name.split("-")[0] for name in rows(project)] == ["causal"]
    assert "missing" in (project / "results/tiny/smoke/table.md").read_text()
