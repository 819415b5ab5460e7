"""Cells as jobs: what comes back of them, and what is wrong with how they were asked for."""
# ruff: noqa: F811 (fixtures)

import logging
import os
import signal
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from test_launch import launched, project, rows  # noqa: F401

from experiments import clusters, configs
from experiments.folders import InUse, RunFolder
from research.training import loop


def work(item):
    """What an item says: a number is doubled, a word is raised."""
    if item == "busy":
        raise InUse("run folder x is in use")
    if item == "stopped":
        raise loop.Interrupted("stopped at step 3")
    return 2 * item


def interrupted_once(path):
    """Is told that its machine is wanted by somebody else, the first time."""
    with Path(path).open("a") as file:
        file.write("begun\n")
    if Path(path).read_text().count("begun") == 1:
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(60)
    return "whole"


def stopped_twice(path):
    """Is told to end by SIGTERM and saves, as a run does, twice."""
    with Path(path).open("a") as file:
        file.write("begun\n")
    if Path(path).read_text().count("begun") < 3:
        raise loop.Interrupted("stopped at step 3")
    return "whole"


def killed(_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def local(tmp_path, monkeypatch):
    """Jobs that are processes of this machine, which find this file."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(configs.ROOT), str(Path(__file__).parent)]))
    return clusters.Cluster(tmp_path / "jobs", "local", {"timeout_min": 5})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("timeout_min=60", {"timeout_min": 60}),
        (
            "mem_gb=3.5, slurm_partition=gpu,slurm_qos='007',stderr_to_stdout=True,",
            {"mem_gb": 3.5, "slurm_partition": "gpu", "slurm_qos": "007", "stderr_to_stdout": True},
        ),
        ("slurm_time=10:00:00,slurm_comment=a=b", {"slurm_time": "10:00:00", "slurm_comment": "a=b"}),
    ],
)
def test_parameters_are_values_by_name(text, expected):
    found = clusters.parameters(text)
    assert found == expected
    assert [type(value) for value in found.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize(
    ("text", "part"),
    [("timeout_min", "timeout_min"), ("nodes=1,=3", "=3"), ("a b=3", "a b=3"), ("1=2", "1=2")],
)
def test_what_is_no_parameter_is_one_line(text, part):
    with pytest.raises(ValueError, match="expected name=value, such as timeout_min=60") as raised:
        clusters.parameters(text)
    assert str(raised.value).startswith(f"--slurm={text}: {part!r}, ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "parameters", "wrong"),
    [
        ("debug", {"queue": "gpu"}, "'queue' need to be prefixed"),
        ("debug", {"slurm_partitoin": "gpu"}, "Unknown argument 'partitoin'"),
        ("debug", {"timeout_min": "soon"}, "timeout_min.*soon"),
        ("slurm", {}, "slurm.*srun"),
        ("lsf", {}, "lsf"),
    ],
)
def test_a_cluster_that_cannot_be_asked_is_one_line(tmp_path, monkeypatch, kind, parameters, wrong):
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is no srun
    with pytest.raises(ValueError, match=wrong) as raised:
        clusters.Cluster(tmp_path / "jobs", kind, parameters)
    assert str(raised.value).startswith(f"--launcher=slurm on {kind!r}: ")
    assert "\n" not in str(raised.value)


def test_jobs_of_this_process_give_results_and_errors_as_values(tmp_path, monkeypatch):
    monkeypatch.setattr(clusters.start, "process", lambda: None)  # this one is set up for tests
    monkeypatch.setattr(
        logging, "FileHandler", lambda _: logging.NullHandler()
    )  # submitit would leave files open
    cluster = clusters.Cluster(tmp_path / "jobs", "debug", {})
    found = dict(cluster.each(work, [1, "busy", None, 4]))
    assert (found[1], found[4]) == (2, 8)
    assert isinstance(found["busy"], InUse)
    assert isinstance(found[None], TypeError)
    assert list(cluster.each(work, [])) == []


def test_who_looks_at_a_run_folder_sees_whether_somebody_is_at_work_and_leaves_nothing(tmp_path):
    folder = tmp_path / "run"
    assert not clusters.at_work(folder)
    assert not folder.exists()
    own = RunFolder(folder, key="k", fingerprint="f", config="")
    assert clusters.at_work(folder)
    own.close()
    assert not clusters.at_work(folder)
    RunFolder(folder, key="k", fingerprint="f", config="").close()


@pytest.mark.slow
def test_jobs_in_processes_give_results_and_errors_as_values(local):
    found = dict(local.each(work, [1, "busy", None]))
    assert found[1] == 2
    assert isinstance(found["busy"], InUse)
    assert str(found["busy"]) == "run folder x is in use"
    assert isinstance(found[None], TypeError)


@pytest.mark.slow
def test_a_job_that_is_preempted_runs_again_and_one_that_is_killed_says_where_its_log_is(local, tmp_path):
    ((_, whole),) = local.each(interrupted_once, [str(tmp_path / "begun")])
    assert whole == "whole"
    assert (tmp_path / "begun").read_text() == "begun\n" * 2
    ((_, dead),) = local.each(killed, [0])
    assert type(dead) is RuntimeError
    said = str(dead)
    assert said.startswith("job ")
    assert "\n" not in said
    assert Path(said.rsplit("its log is ", 1)[1]).is_relative_to(tmp_path / "jobs")


@pytest.mark.slow
def test_cells_that_were_jobs_have_the_rows_of_cells_that_ran_here(project):
    words = ("--launcher=slurm", "--cluster=local", "--slurm=timeout_min=5")
    path = project / "configs" / "tiny" / "study.gin"
    path.write_text(path.read_text().replace(", 'tokens_per_second'", ""))
    code, said, wrong = launched(project, "--launcher=slurm", PATH="/nowhere")
    assert (code, wrong.count("\n")) == (1, 1), wrong
    assert wrong.startswith("error: --launcher=slurm on 'slurm': ")
    code, said, wrong = launched(project, *words, "--seeds=1")
    assert code == 0, wrong
    assert said.count("  held-out loss ") == 2
    jobs = rows(project)
    assert len(list((project / "runs/tiny/smoke/jobs").glob("*_result.pkl"))) == 2
    for folder in ("results", "runs"):
        (project / folder).rename(project / f"{folder} of jobs")
    code, _, wrong = launched(project, "--how=alone", "--seeds=1")
    assert code == 0, wrong
    here = rows(project)
    assert jobs.keys() == here.keys()
    for name, row in jobs.items():
        assert row["metrics"] == pytest.approx(here[name]["metrics"], rel=1e-5)
        assert {part: row[part] for part in ("key", "data", "budget", "config", "code")} == {
            part: here[name][part] for part in ("key", "data", "budget", "config", "code")
        }
        assert row["timing"]["wall_seconds"] is None  # others may have run beside it


class AtOnce:
    """Jobs that are done when they are submitted."""

    def submit(self, task, work, item):
        job = Mock()
        job.done.return_value = True
        job.result.return_value = task(work, item)
        return job


@pytest.fixture
def at_once(tmp_path, monkeypatch):
    cluster = clusters.Cluster(tmp_path / "jobs", "debug", {})
    monkeypatch.setattr(cluster, "_executor", AtOnce())
    monkeypatch.setattr(clusters.start, "process", lambda: None)
    monkeypatch.setattr(clusters, "PAUSE", 0)
    return cluster


def test_a_cell_that_was_stopped_goes_on_in_another_job(at_once, tmp_path):
    log = tmp_path / "log"
    assert list(at_once.each(stopped_twice, [str(log)])) == [(str(log), "whole")]
    assert log.read_text() == "begun\n" * 3


def test_a_cell_that_is_stopped_again_and_again_is_given_up(at_once, monkeypatch):
    monkeypatch.setattr(clusters, "STOPS", 2)
    ((_, found),) = at_once.each(work, ["stopped"])
    assert isinstance(found, loop.Interrupted)
