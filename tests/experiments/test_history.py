"""How a run learned is read from its folder, the same however it came about: at once, resumed, measured afterwards."""
# ruff: noqa: F811 (fixtures)

import dataclasses
import json
import os
import signal

import pytest
from test_launch import launched, project, rows  # noqa: F401
from tiny_models import QUIET, gin_of, planned, published, texts

from experiments import evaluating, folders, origins, running
from research.evaluation.learning import Convergence, StepsTo
from research.training import loop
from research.training.stopping import EarlyStopping
from research.training.trackers import Tracker, Writer

pytestmark = pytest.mark.slow


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stopping(Tracker):
    """Stops the run at a step as Ctrl-C does."""

    at: int

    def open(self, folder, title, config, *, first):
        return Stopped(self.at)


class Stopped(Writer):
    def __init__(self, at):
        self._at = at

    def write(self, step, values):
        if step == self._at:
            os.kill(os.getpid(), signal.SIGINT)

    def close(self, *, complete):
        pass


def run(one, folder, evaluations):
    job = running.Job(one, gin_of(one), folder, evaluations=evaluations, replayed=True)
    return running.run(job, console=QUIET)


def measured(result):
    return {name: result["metrics"][name] for name in ("early", "never", "end", "short")}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run that is measured when it ends, the experiment, what is measured, and the result."""
    folder = tmp_path_factory.mktemp("history")
    plan = loop.Plan(log_every=1, evaluate_every=2, checkpoint_every=6)
    one = planned(texts(folder / "texts"), steps=12, plan=plan)
    first = run(one, folder / "afterwards", {})
    evaluations = {
        "early": StepsTo(loss=folders.history(folder / "afterwards", first)[6]),
        "never": StepsTo(loss=0.01),
        "end": Convergence(share=0.5),
        "short": Convergence(),
    }
    return folder, one, evaluations, run(one, folder / "whole", evaluations)


def test_they_are_of_the_losses_in_the_log_and_at_the_end(place):
    folder, _, _, result = place
    lines = [json.loads(line) for line in (folder / "whole" / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert list(losses) == [2, 4, 6, 8, 10]
    losses[12] = result["metrics"]["validation_loss"]
    assert sorted(losses.values(), reverse=True) == list(
        losses.values()
    )  # so that step 6 is the first so low
    # Steps 6 to 12 are -3, -1, 1 and 3 from their mean, and 20 / 2 the sum of squares in steps a unit of two.
    slope = sum(place * losses[step] for place, step in ((-3, 6), (-1, 8), (1, 10), (3, 12))) / (2 * 20 / 2)
    assert measured(result) == {
        "early": {"steps": 6},
        "never": {"steps": None},
        "end": {"slope": pytest.approx(-6 * slope, rel=1e-6)},
        "short": {"slope": None},
    }


def test_a_finished_run_is_measured_afterwards(place):
    folder, one, evaluations, result = place
    found = run(one, folder / "afterwards", evaluations)
    assert measured(found) == measured(result)
    assert found["replay"]["scores"]["early"] == {"steps": None}  # three steps have no history


@pytest.mark.parametrize(
    ("at", "stopped"),
    [
        (9, "stopped at step 9; the same command"),
        (8, "stopped at once; .* step 6"),  # told with both lines of the step, and 7 and 8 are taken again
    ],
)
def test_a_resumed_run_has_the_whole_history(place, at, stopped):
    folder, one, evaluations, result = place
    path = folder / f"stopped_{at}"
    with pytest.raises(loop.Interrupted, match=stopped):
        run(dataclasses.replace(one, trackers=(Stopping(at=at),)), path, evaluations)
    assert list(folders.history(path, None)) == [2, 4, 6, 8]
    found = run(one, path, evaluations)
    assert folders.history(path, found) == folders.history(folder / "whole", result)
    assert measured(found) == measured(result)


def test_a_run_folder_is_measured_with_its_history_and_published_weights_have_none(place):
    folder, one, evaluations, result = place
    found = evaluating.measure(origins.opened(str(folder / "whole"), None), one, evaluations, None)
    assert found.scores == measured(result)
    weights = origins.opened(str(published(folder / "published")), None)
    scores = evaluating.measure(weights, one, evaluations, None).scores
    assert scores == {
        "early": {"steps": None},
        "never": {"steps": None},
        "end": {"slope": None},
        "short": {"slope": None},
    }


def test_a_run_without_losses_on_the_way_has_the_one_at_its_end(place):
    folder, one, _, result = place
    loss = result["metrics"]["validation_loss"]
    bare = dataclasses.replace(one, plan=loop.Plan())
    evaluations = {
        "reached": StepsTo(loss=loss),
        "never": StepsTo(loss=loss / 2),
        "end": Convergence(share=1.0),
    }
    metrics = run(bare, folder / "bare", evaluations)["metrics"]
    assert (metrics["reached"], metrics["never"], metrics["end"]) == (
        {"steps": 12},
        {"steps": None},
        {"slope": None},
    )


def test_a_run_that_stops_early_has_the_losses_after_its_best(place):
    folder, one, _, _ = place
    stopping = EarlyStopping(every=2, patience=1, least=10.0)  # nothing is so much better than the first
    early = dataclasses.replace(one, plan=loop.Plan(), early_stopping=stopping)
    result = run(early, folder / "early", {"all": Convergence(share=1.0)})
    assert (result["metrics"]["steps"], result["budget"]["steps"]) == (2, 4)
    assert list(folders.history(folder / "early", result)) == [2, 4]


def test_an_evaluation_does_not_take_the_name_of_a_measure(place):
    folder, one, _, _ = place
    with pytest.raises(ValueError, match="an evaluation is called 'steps', as a measure of every run is"):
        run(one, folder / "named", {"steps": StepsTo(loss=1.0)})


def test_a_study_has_them_in_its_rows_and_its_table(project):
    path = project / "configs" / "tiny" / "study.gin"
    head = "from experiments import study\n"
    columns = "'metrics.reach.steps', 'metrics.never.steps', 'metrics.end.slope'"
    path.write_text(
        path.read_text()
        .replace(head, f"{head}from research.evaluation import learning\n")
        .replace("'tokens_per_second'", columns)
        + "study.Table.evaluations = {'reach': @learning.StepsTo(), 'never': @never/learning.StepsTo(), "
        "'end': @learning.Convergence()}\n"
        "learning.StepsTo.loss = 100.0\nnever/learning.StepsTo.loss = 0.01\nlearning.Convergence.share = 1.0\n"
    )
    scale = project / "configs" / "scale" / "smoke.gin"
    scale.write_text(f"{scale.read_text()}from research.training import loop\nloop.Plan.evaluate_every = 1\n")
    code, _, wrong = launched(project, "--how=ensemble", "--members=2")
    assert code == 0, wrong
    found = rows(project)
    assert len(found) == 4
    for name, row in found.items():
        folder = project / "runs" / "tiny" / "smoke" / name.removesuffix(".json")
        losses = folders.history(folder, folders.finished(folder))
        assert list(losses) == [1, 2, 3, 4]
        weights = zip((-3, -1, 1, 3), losses.values(), strict=True)
        fall = -3 * sum(weight * loss for weight, loss in weights) / 10
        assert row["metrics"]["reach"] == {"steps": 1}
        assert row["metrics"]["never"] == {"steps": None}
        assert row["metrics"]["end"] == {"slope": pytest.approx(fall, rel=1e-6)}
    table = (project / "results" / "tiny" / "smoke" / "table.md").read_text().splitlines()
    assert table[0].endswith("| reach steps | never steps | end slope |")
    assert [line.split(" | ")[5:7] for line in table[2:4]] == [["1.0000", "n/a"]] * 2
