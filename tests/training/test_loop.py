"""The loop: what it logs, when it stops, and what it keeps."""

import dataclasses
import json
import math
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from test_ensemble import DROPPING
from test_step import CAUSAL, batch

from research.training import loop, meters
from research.training.checkpoints import Checkpoints, Keep
from research.training.ensemble import Ensemble, Solo
from research.training.optimizers import AdamW
from research.training.step import AHEAD, Trainer
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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_log_that_cannot_be_written_is_named_and_ends_nobody_else(trainer, tmp_path):
    def fills(params):
        (tmp_path / "full" / "metrics.jsonl").unlink()
        (tmp_path / "full" / "metrics.jsonl").symlink_to("/dev/full")
        return {"validation_loss": 1.0}

    with Checkpoints(tmp_path / "a") as full, Checkpoints(tmp_path / "b") as whole:
        members = [
            member(trainer, tmp_path / "full", full, evaluate=fills),
            member(trainer, tmp_path / "whole", whole),
        ]
        outcomes = go(trainer, members, 20, evaluate_every=10, checkpoint_every=5)
        assert (full.latest, whole.latest) == (5, 20)
    assert str(outcomes[0].error).startswith(
        f"cannot write {tmp_path}/full/metrics.jsonl: No space left on device; make room there"
    )
    assert outcomes[1].error is None
    assert lines(tmp_path / "whole")[-1]["step"] == 20


class Stopping(Batches):
    """Ctrl-C comes while the fifth batch is made."""

    def __next__(self):
        if self.next == 5:
            signal.raise_signal(signal.SIGINT)
        return super().__next__()


def test_ctrl_c_that_nothing_takes_says_from_where_the_run_goes_on(trainer, tmp_path, monkeypatch, request):
    """As in several processes, each of which would stop at another step."""
    monkeypatch.setattr(loop._Stop, "__enter__", lambda self: self)
    monkeypatch.setattr(loop._Stop, "__exit__", lambda *_: None)
    monkeypatch.setattr(loop._Stop, "asked", False, raising=False)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever other tests have left
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    for every, where in (
        (0, "the beginning, since nothing is saved"),
        (2, "step 4, the newest that is saved"),
    ):
        with Checkpoints(tmp_path / f"checkpoints-{every}") as checkpoints:
            one = member(trainer, tmp_path / "run", checkpoints)
            with pytest.raises(
                loop.Interrupted, match=f"run stopped at once; the same command goes on from {where}"
            ):
                go(trainer, [dataclasses.replace(one, batches=Stopping())], 20, checkpoint_every=every)


def test_an_ensemble_that_is_interrupted_goes_on_as_if_it_was_not(tmp_path):
    dropping = Trainer(DROPPING, vocab=40, optimizer=AdamW(learning_rate=1e-2), steps=12)

    def train(name, batches):
        with Checkpoints(tmp_path / f"{name}-0") as first, Checkpoints(tmp_path / f"{name}-1") as second:
            members = [
                member(dropping, tmp_path / f"{name}-run-{seed}", checkpoints, seed=seed)
                for seed, checkpoints in enumerate((first, second))
            ]
            members[1] = dataclasses.replace(members[1], batches=batches)
            return go(dropping, members, 12, log_every=1, checkpoint_every=0)

    whole = train("whole", Batches(1))
    with pytest.raises(loop.Interrupted, match="stopped at step 5"):
        train("stopped", Stopping(1))
    resumed = train("stopped", Batches(1))
    for seed in range(2):
        losses = [
            [(line["step"], line["loss"]) for line in lines(tmp_path / f"{name}-run-{seed}")]
            for name in ("whole", "stopped")
        ]
        assert len(losses[0]) == 12
        assert losses[0] == losses[1]
        pairs = zip(*(jax.tree.leaves(one[seed].state.params) for one in (whole, resumed)), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


def test_what_is_stopped_and_cannot_be_saved_says_so(trainer, tmp_path):
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


def test_a_log_is_cut_where_its_run_goes_on_and_nothing_before_is_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = meters.Metrics(path, first=0)
    for step in (5, 10, 10, 15):
        log.write(step=step)
    before = path.read_bytes()
    with path.open("a") as file:
        file.write('{"step": 2')  # a kill came
    meters.Metrics(path, first=15)
    assert path.read_bytes() == before
    meters.Metrics(path, first=10)
    assert path.read_bytes() == b"".join(before.splitlines(keepends=True)[:3])


def test_the_last_step_is_saved_whenever_else_the_run_is(trainer, tmp_path):
    for every, kept in ((0, [7]), (3, [6, 7]), (7, [7])):
        with Checkpoints(tmp_path / f"checkpoints-{every}") as checkpoints:
            go(trainer, [member(trainer, tmp_path / f"run-{every}", checkpoints)], 7, checkpoint_every=every)
            assert checkpoints.steps == kept


def scored(values):
    """An evaluation whose results are known beforehand."""
    values = iter(values)
    return lambda params: {"validation_loss": next(values)}


def test_of_a_plain_run_the_checkpoint_of_the_best_evaluation_stays(trainer, tmp_path):
    with Checkpoints(tmp_path / "checkpoints", Keep(best=1)) as checkpoints:
        one = member(trainer, tmp_path / "run", checkpoints, evaluate=scored([3.0, 1.0, 2.0, 2.0]))
        go(trainer, [one], 25, evaluate_every=5, checkpoint_every=5)
        assert checkpoints.best == 10
        assert checkpoints.steps == [10, 20, 25]


def test_only_what_early_stopping_counts_takes_the_place_of_its_best_checkpoint(trainer, tmp_path):
    """Evaluations that it does not see, equal ones and gains too small to count are saved too, and not ranked."""
    seen = {3: 1.0, 5: 2.0, 6: 1.5, 9: 1.5, 10: 2.0, 12: 1.0, 15: 1.8}
    with Checkpoints(tmp_path / "checkpoints", Keep(latest=1, best=1)) as checkpoints:
        one = member(
            trainer,
            tmp_path / "run",
            checkpoints,
            evaluate=scored(seen.values()),
            stopping=EarlyStopping(every=5, patience=2, least=0.5),
        )
        (outcome,) = go(trainer, [one], 30, evaluate_every=3, checkpoint_every=1)
        assert outcome.error is None
        assert checkpoints.steps == [5, 15]
        assert int(outcome.state.step) == 5
    assert [line["step"] for line in lines(tmp_path / "run") if "validation_loss" in line] == list(seen)


def test_no_more_steps_are_under_way_than_an_evaluation_has_batches(trainer, tmp_path, monkeypatch):
    taken, waited, ready = [], [], jax.block_until_ready

    class Counting(Solo):
        def step(self, group, batches, running):
            group, metrics = super().step(group, batches, running)
            taken.append(metrics["loss"])
            return group, metrics

    def block(value):
        waited.extend(
            n for n, loss in enumerate(taken, 1) if any(loss is leaf for leaf in jax.tree.leaves(value))
        )
        under_way.append(len(taken) - max(waited))
        return ready(value)

    under_way = []
    monkeypatch.setattr(jax, "block_until_ready", block)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        loop.run(
            Counting(trainer, rows=4),
            [member(trainer, tmp_path / "run", checkpoints)],
            steps=40,
            plan=loop.Plan(log_every=40),
            work=loop.Work(tokens=lambda batch: 24),
            console=Console(quiet=True),
        )
    assert waited == list(range(1, 41 - AHEAD))
    assert set(under_way) == {AHEAD}


def test_a_loss_that_is_no_number_where_a_line_is_logged_ends_the_run_without_a_warning(trainer, tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        (outcome,) = go(trainer, [member(trainer, tmp_path / "run", checkpoints, broken=[12])], 30)
    assert "step 13: loss is nan" in str(outcome.error)
    assert [line["step"] for line in lines(tmp_path / "run")] == [10]


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


def test_an_evaluation_that_is_no_number_is_not_the_best_and_forgotten_with_the_next():
    watch = Watch(EarlyStopping(every=1, patience=2))
    assert not watch.see(1, {"validation_loss": math.nan})
    assert watch.see(2, {"validation_loss": 3.0})
    assert not watch.see(3, {"validation_loss": -math.inf})
    assert (watch.best, watch.step, watch.since) == (3.0, 2, 1)


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
