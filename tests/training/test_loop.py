"""The loop: what it logs, when it stops, and what it keeps."""

import dataclasses
import json
import signal

import jax
import numpy as np
import pytest
from rich.console import Console
from test_step import CAUSAL, batch

from research.training import loop, meters
from research.training.checkpoints import Checkpoints, Keep
from research.training.ensemble import Ensemble, Solo
from research.training.optimizers import AdamW
from research.training.step import Trainer
from research.training.stopping import EarlyStopping, Watch


class Batches:
    """Numbered batches; those of `broken` steps have weights that are no numbers."""

    def __init__(self, seed=0, broken=()):
        self.seed, self.broken, self.next = seed, broken, 0

    def __next__(self):
        made = batch(1000 * self.seed + self.next)
        if self.next in self.broken:
            made.weights[:] = np.nan
        self.next += 1
        return made

    def get_state(self):
        return self.next

    def set_state(self, state):
        self.next = state


@pytest.fixture(scope="module")
def trainer():
    return Trainer(CAUSAL, vocab=40, optimizer=AdamW(learning_rate=1e-2), steps=60)


def member(trainer, folder, checkpoints, *, seed=0, broken=(), **options):
    folder.mkdir(exist_ok=True)
    options = {"evaluate": lambda params: {"validation_loss": 1.0}} | options
    return loop.Member(
        title=folder.name,
        folder=folder,
        fresh=lambda: trainer.initial(jax.random.key(seed)),
        batches=Batches(seed, broken),
        checkpoints=checkpoints,
        **options,
    )


def go(trainer, members, steps=60, **plan):
    engine = Solo(trainer, rows=4) if len(members) == 1 else Ensemble(trainer, len(members))
    work = loop.Work(tokens=lambda batch: 24, flops=1e6, peak=1e9)
    return loop.run(
        engine, members, steps=steps, plan=loop.Plan(**plan), work=work, console=Console(quiet=True)
    )


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def params(outcome):
    return np.asarray(outcome.state.params["embedding"]["table"])


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_last_good_checkpoint(trainer, tmp_path):
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        (outcome,) = go(
            trainer, [member(trainer, tmp_path / "run", checkpoints, broken=[12])], checkpoint_every=5
        )
        assert isinstance(outcome.error, loop.Diverged)
        assert "step 13: loss is nan; newest checkpoint: step 10" in str(outcome.error)
        assert checkpoints.latest == 10
    assert [line["step"] for line in lines(tmp_path / "run")][-1] <= 20


def test_a_gradient_that_is_not_finite_ends_the_run_before_it_is_saved_or_scored(trainer, tmp_path):
    class Overflowing(Solo):
        """Says of the tenth step that its gradient overflowed, though its loss did not."""

        steps = 0

        def step(self, group, batches, running):
            state, metrics = super().step(group, batches, running)
            self.steps += 1
            return state, metrics | {"finite": metrics["finite"] & (self.steps != 10)}

    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        (outcome,) = loop.run(
            Overflowing(trainer, rows=4),
            [member(trainer, tmp_path / "run", checkpoints)],
            steps=10,
            plan=loop.Plan(checkpoint_every=5),
            work=loop.Work(tokens=lambda batch: 24),
            console=Console(quiet=True),
        )
        assert "step 10: loss is" in str(outcome.error)
        assert "its gradient is not finite; newest checkpoint: step 5" in str(outcome.error)
        assert checkpoints.latest == 5


def test_in_an_ensemble_one_diverges_one_stops_early_and_one_arrives(trainer, tmp_path):
    names = ("whole", "broken", "early")
    seen = iter([3.0, 2.0, 2.5, 2.6, 2.7])
    options = {
        "broken": {"broken": [12]},
        "early": {
            "evaluate": lambda params: {"validation_loss": next(seen)},
            "stopping": EarlyStopping(every=5, patience=2),
        },
    }
    with (
        Checkpoints(tmp_path / "a", Keep(best=1)) as first,
        Checkpoints(tmp_path / "b", Keep(best=1)) as second,
        Checkpoints(tmp_path / "c", Keep(best=1)) as third,
    ):
        members = [
            member(trainer, tmp_path / name, checkpoints, seed=seed, **options.get(name, {}))
            for seed, (name, checkpoints) in enumerate(zip(names, (first, second, third), strict=True))
        ]
        whole, broken, early = go(trainer, members, 30, checkpoint_every=10)
        assert second.latest == 10
    assert (whole.error, early.error) == (None, None)
    assert "broken step 13: loss is nan; newest checkpoint: step 10" in str(broken.error)
    assert int(whole.state.step) == 30
    assert int(broken.state.step) == 12  # frozen before the step that broke it
    assert int(early.state.step) == 10  # the step of its best evaluation
    assert max(line["step"] for line in lines(tmp_path / "early")) == 20

    for name, outcome, steps in (("whole", whole, 30), ("early", early, 10)):
        seed = names.index(name)
        with Checkpoints(tmp_path / f"alone-{name}") as checkpoints:
            alone = member(trainer, tmp_path / f"{name}-alone", checkpoints, seed=seed)
            (solo,) = go(trainer, [alone], steps)
        np.testing.assert_allclose(params(outcome), params(solo), atol=1e-5)


def test_a_member_that_fails_ends_nobody_else(trainer, tmp_path):
    """One cannot read its checkpoints, one cannot be scored, one has no disk; each says so, and the last arrives."""

    def fails(why):
        def fail(*_):
            raise OSError(why)

        return fail

    with (
        Checkpoints(tmp_path / "a") as unread,
        Checkpoints(tmp_path / "b") as unscored,
        Checkpoints(tmp_path / "c") as full,
        Checkpoints(tmp_path / "d") as whole,
    ):
        go(trainer, [member(trainer, tmp_path / "unread", unread)], 5)
        unread.restore, full.save = fails("unreadable"), fails("no space left")
        members = [
            member(trainer, tmp_path / "unread", unread),
            member(trainer, tmp_path / "unscored", unscored, evaluate=fails("no metric")),
            member(trainer, tmp_path / "full", full),
            member(trainer, tmp_path / "whole", whole),
        ]
        outcomes = go(trainer, members, 20, checkpoint_every=10, evaluate_every=5)
        assert whole.latest == 20
    assert [str(outcome.error) for outcome in outcomes] == [
        "unreadable",
        "no metric",
        "no space left",
        "None",
    ]
    assert [int(outcome.state.step) for outcome in outcomes] == [0, 5, 10, 20]


def test_what_is_stopped_and_cannot_be_saved_says_so(trainer, tmp_path):
    class Stopping(Batches):
        """Ctrl-C comes while the fifth batch is made."""

        def __next__(self):
            if self.next == 5:
                signal.raise_signal(signal.SIGINT)
            return super().__next__()

    def full(*_):
        raise OSError("no space left")

    for name, save, then in (
        ("saved", None, "stopped at step 5; the same command goes on from there"),
        ("unsaved", full, "stopped at step 5; but: no space left"),
    ):
        with Checkpoints(tmp_path / f"{name}-checkpoints") as checkpoints:
            if save is not None:
                checkpoints.save = save
            one = member(trainer, tmp_path / name, checkpoints)
            with pytest.raises(loop.Interrupted, match=then):
                go(trainer, [dataclasses.replace(one, batches=Stopping())], 20)
            assert checkpoints.latest == (5 if save is None else None)


def test_the_log_is_json_whatever_the_numbers_are(tmp_path):
    log = meters.Metrics(tmp_path / "metrics.jsonl", first=0)
    log.write(step=1, loss=float("nan"), gradient_norm=float("inf"), speed=None, tokens=2.0)

    def refuse(name):
        raise ValueError(name)

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = json.loads(line, parse_constant=refuse)
    assert found == {"step": 1, "loss": None, "gradient_norm": None, "speed": None, "tokens": 2.0}


def test_the_last_step_is_saved_whenever_else_the_run_is(trainer, tmp_path):
    for every, kept in ((0, [7]), (3, [6, 7]), (7, [7])):
        with Checkpoints(tmp_path / f"checkpoints-{every}") as checkpoints:
            go(trainer, [member(trainer, tmp_path / f"run-{every}", checkpoints)], 7, checkpoint_every=every)
            assert checkpoints.steps == kept


def test_members_are_regrouped_at_the_step_where_each_of_them_was(trainer, tmp_path):
    """Checkpoints belong to members: two leave an ensemble at different steps and meet in another one."""
    folders = [tmp_path / "one", tmp_path / "two"]

    def group(indices, steps):
        with (
            Checkpoints(tmp_path / "checkpoints-0") as first,
            Checkpoints(tmp_path / "checkpoints-1") as second,
        ):
            kept = (first, second)
            return go(
                trainer,
                [member(trainer, folders[i], kept[i], seed=i) for i in indices],
                steps,
                checkpoint_every=7,
            )

    group([0], 7)
    group([1], 14)
    together = group([0, 1], 21)
    assert [int(outcome.state.step) for outcome in together] == [21, 21]
    for index, outcome in enumerate(together):
        with Checkpoints(tmp_path / f"whole-{index}") as checkpoints:
            (alone,) = go(trainer, [member(trainer, tmp_path / f"w{index}", checkpoints, seed=index)], 21)
        np.testing.assert_allclose(params(outcome), params(alone), atol=1e-5)


def test_a_spike_of_the_loss_is_logged_at_its_step(trainer, tmp_path):
    class Spiking(Solo):
        """Says of one step that its loss was five times what it is."""

        steps = 0

        def step(self, group, batches, running):
            state, metrics = super().step(group, batches, running)
            self.steps += 1
            return state, metrics | {"loss": metrics["loss"] * (5 if self.steps == 43 else 1)}

    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        loop.run(
            Spiking(trainer, rows=4),
            [member(trainer, tmp_path / "run", checkpoints)],
            steps=60,
            plan=loop.Plan(),
            work=loop.Work(tokens=lambda batch: 24),
            console=Console(quiet=True),
        )
    assert [line["step"] for line in lines(tmp_path / "run") if "spike" in line] == [43]


def test_every_line_says_how_fast_and_how_well_used_the_device_is(trainer, tmp_path):
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        (outcome,) = go(trainer, [member(trainer, tmp_path / "run", checkpoints)], 30)
    first, second, third = lines(tmp_path / "run")
    assert first["tokens_per_second"] is None  # it compiled
    for line in (second, third):
        assert line["utilisation"] == pytest.approx(line["tokens_per_second"] / 24 * 1e6 / 1e9)
    assert outcome.utilisation == pytest.approx(outcome.tokens_per_second / 24 * 1e6 / 1e9)


@pytest.mark.slow
@pytest.mark.parametrize("last", [5, 50])
def test_a_profile_is_written_to_the_run_folder_also_if_the_run_ends_before(trainer, tmp_path, last):
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        go(trainer, [member(trainer, tmp_path / "run", checkpoints)], 8, profile=(3, last))
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


def test_early_stopping_counts_from_the_best_and_goes_on_where_it_was():
    watch = Watch(EarlyStopping(every=1, patience=2, least=0.1))
    assert [watch.see(step, {"validation_loss": loss}) for step, loss in ((1, 3.0), (2, 2.95), (3, 2.5))] == [
        True,
        False,
        True,
    ]
    assert (watch.best, watch.step, watch.since) == (2.5, 3, 0)
    other = Watch(watch.rule)
    other.set_state(json.loads(json.dumps(watch.get_state())))
    assert not other.see(4, {"validation_loss": 2.6})
    assert not other.over
    assert not other.see(5, {"validation_loss": 2.6})
    assert other.over
    with pytest.raises(
        ValueError, match=r"EarlyStopping.metric = 'validation_loss': expected one of \['x'\]"
    ):
        other.see(6, {"x": 1.0})
