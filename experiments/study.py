"""A study: arms x seeds x evaluations, and what follows from them. One file an arm, one `study.gin` for all of them."""

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from experiments import configs, experiment, sweeps
from experiments.sweeps import Point, Sweep, Values
from research.analysis import matching, tables
from research.analysis.budget import Budget
from research.analysis.claims import SubClaim
from research.analysis.figures import Spec
from research.evaluation.trained import Evaluation

GROUPS = ("headline", "core", "extended")
MINUTES = {
    "headline": 30.0,
    "core": 120.0,
}  # at most, of the scale `small` on two cores; core includes headline
UNTUNED = ("smoke",)  # scales that claim nothing, so that no learning rate is chosen for them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """How learning rates are chosen: each arm runs at each rate with one seed of its own, and the least loss of
    validation wins. A winner at the edge extends the grid, for every arm.

    Attributes:
      rates: the grid, rising by one factor.
      binding: what is bound to them.
      seed: no seed of a table.
      metric: path of the loss in a row.
    """

    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    binding: str = "AdamW.learning_rate"
    seed: int = 1000
    metric: str = "metrics.validation_loss"

    def __post_init__(self):
        if len(self.rates) < 3 or list(self.rates) != sorted(set(self.rates)):
            raise ValueError(f"Tuning.rates = {self.rates}: expected at least 3, rising")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """What `study.gin` says of a study.

    Attributes:
      arms: names of the files in the study's folder, in the order of the table.
      seeds: by scale.
      columns: measures of the table; see `research.analysis.tables.MEASURES`. Any number of a row is one by its path.
      compared: the arms that are compared with each other, by a name for them: the first is the baseline.
      groups: the arms of "headline", "core" and "extended", of which the last is only run when asked for; {}: all are
        headline.
      match: what every arm costs as much of as its baseline, or None.
      knobs: by arm, the integer that is turned until it does, as a gin binding without its value and what the value
        is a multiple of: ("StackConfig.hidden", 8), ("train.steps", 1). An arm without one has to cost that as it is.
      evaluations: what is measured of a trained arm beside its loss, by name.
      sweeps: arms at the points of a sweep; each is a cell of its own, called arm@point.
      tuning: how learning rates are chosen, or None: they are what the files say.
      learning_rates: by scale and arm, what was chosen.
      claims: sub-claims that the study decides, by rules that are written before it runs.
      figures: what is drawn of its rows.
      tasks: numbers that are summed up in one more table, by path, and which is better; see
        `research.analysis.aggregate`.
    """

    arms: tuple[str, ...]
    seeds: dict[str, tuple[int, ...]]
    columns: tuple[str, ...]
    compared: dict[str, tuple[str, ...]]
    groups: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    match: Literal["params", "flops", "tokens_seen", "loss_tokens"] | None = None
    knobs: dict[str, tuple[str, int]] = dataclasses.field(default_factory=dict)
    evaluations: dict[str, Evaluation] = dataclasses.field(default_factory=dict)
    sweeps: tuple[Sweep, ...] = ()
    tuning: Tuning | None = None
    learning_rates: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    claims: tuple[SubClaim, ...] = ()
    figures: tuple[Spec, ...] = ()
    tasks: dict[str, Literal["higher", "lower"]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A study at one scale.

    Attributes:
      name, scale: which.
      arms: those of the table.
      points: of arms that stand at a point of a sweep, their file and the point.
      seeds: of this scale.
      compared: each arm's name of those that it is compared with; `baselines`: by that name, the baseline.
      groups: by group, all its arms, those at points of a sweep with the arm whose file they are.
      rates: the learning rate of each arm, where one was chosen.
      folder: of its rows among the results and of its runs among the runs.
      table: all that `study.gin` says.
    """

    name: str
    scale: str
    arms: tuple[str, ...]
    points: dict[str, tuple[str, Point]]
    seeds: tuple[int, ...]
    compared: dict[str, str]
    baselines: dict[str, str]
    groups: dict[str, tuple[str, ...]]
    rates: dict[str, float]
    folder: str
    table: Table

    def experiment(
        self, arm: str, seed: int, data_dir: str | None = None
    ) -> tuple[experiment.Experiment, str]:
        """The experiment of one cell, its knob turned where there is a match, and its operative config.

        Raises:
          ConfigError: an arm that cannot cost what its baseline costs.
        """
        file, bindings = self._bound(arm)
        matched = self.matched(arm, data_dir)
        turned = (
            [] if matched is None or file not in self.table.knobs else [f"{self.knob(arm)}={matched.value}"]
        )
        return _load(self.name, self.scale, file, *bindings, *turned, f"train.seed={seed}")

    def deterministic(self, arms: Iterable[str]) -> bool:
        """Whether some of these arms ask for sums in the same order every time.

        It looks for no device, since that has to be known before. An arm that cannot be loaded is left out.
        """
        found = []
        for arm in arms:
            file, bindings = self._bound(arm)
            with contextlib.suppress(ValueError, OSError):  # as will be seen
                found.append(_load(self.name, self.scale, file, *bindings)[0].deterministic)
        return any(found)

    def matched(self, arm: str, data_dir: str | None = None) -> matching.Match | None:
        """The arm that costs what its baseline costs; None where nothing is matched.

        Raises:
          ConfigError: there is none within 2 %, or the knob is no binding.
        """
        if self.table.match is None:
            return None
        file, bindings = self._bound(arm)
        baseline, knob = self.baselines[self.compared[arm]], self.table.knobs.get(file)
        return _matched(self.name, self.scale, file, bindings, baseline, self.table.match, knob, data_dir)

    def knob(self, arm: str) -> str | None:
        """The binding that is turned to match the arm."""
        return self.table.knobs.get(self.file(arm), (None,))[0]

    def file(self, arm: str) -> str:
        """The name of the arm's file."""
        return self.points[arm][0] if arm in self.points else arm

    def _bound(self, arm: str) -> tuple[str, tuple[str, ...]]:
        """The arm's file, and what is bound over it."""
        file, point = self.points.get(arm, (arm, Point(items=())))
        tuning = self.table.tuning
        rate = [f"{tuning.binding}={self.rates[file]}"] if tuning is not None and file in self.rates else []
        return file, (*rate, *point.bindings)

    def limited(self, seeds: int) -> "Study":
        """The first so many of its seeds.

        Raises:
          ConfigError: it has not so many.
        """
        if seeds > len(self.seeds):
            raise configs.ConfigError(
                f"--seeds={seeds}: study {self.name} has {len(self.seeds)} at scale {self.scale}; see Table.seeds in "
                f"configs/{self.name}/study.gin"
            )
        return dataclasses.replace(self, seeds=self.seeds[:seeds])

    def grid(self, rates: tuple[float, ...], files: tuple[str, ...]) -> "Study":
        """The cells that choose learning rates: these arms of the table at each, with the seed for that.

        Raises:
          ConfigError: the study tunes none.
        """
        if self.table.tuning is None:
            raise configs.ConfigError(
                f"study {self.name} has no Table.tuning; see configs/{self.name}/study.gin"
            )
        sweep = Sweep(arms=files, points=Values(binding=self.table.tuning.binding, values=rates))
        points = sweep.expanded()
        return dataclasses.replace(
            self,
            arms=tuple(points),
            points=points,
            seeds=(self.table.tuning.seed,),
            compared={name: self.compared[file] for name, (file, _) in points.items()},
            groups={"headline": tuple(points)},
            rates={},
            folder=f"{self.folder}/tuning",
            table=dataclasses.replace(self.table, evaluations={}, claims=(), figures=(), sweeps=(), tasks={}),
        )


def _load(name: str, scale: str, arm: str, *bindings: str) -> tuple[experiment.Experiment, str]:
    return experiment.load([f"configs/{name}/{arm}.gin", f"configs/scale/{scale}.gin"], bindings)


@functools.lru_cache(maxsize=256)  # of all seeds of an arm
def _matched(
    name: str,
    scale: str,
    arm: str,
    bindings: tuple[str, ...],
    base: str,
    by: str,
    knob: tuple[str, int] | None,
    data_dir: str | None,
) -> matching.Match:
    def cost(planned: experiment.Experiment) -> Budget:
        return experiment.cost(planned.model, planned.data, data_dir)

    baseline, _ = _load(name, scale, base)
    target = matching.total(cost(baseline), baseline.steps, by)
    # Without a knob there is nothing to turn: it has to be as it should.
    binding, multiple = knob or ("its size, which no knob of Table.knobs turns,", 1)

    def turned(value: int) -> experiment.Experiment:
        turn = [] if knob is None else [f"{binding}={value}"]
        return _load(name, scale, arm, *bindings, *turn)[0]

    high = 1 if knob is None else 2**20
    try:
        return matching.turned_to(
            turned, binding, by=by, target=target, cost=cost, high=high, multiple=multiple
        )
    except ValueError as error:
        raise configs.ConfigError(f"arm {arm} of study {name}: {error}") from error


def declared(name: str) -> Table:
    """What `study.gin` of the study of that name in `configs/` says.

    Raises:
      ConfigError: no such study.
    """
    if not (configs.ROOT / "configs" / name / "study.gin").exists():
        known = sorted(path.parent.name for path in configs.ROOT.glob("configs/*/study.gin"))
        raise configs.ConfigError(f"--study={name}: no configs/{name}/study.gin; expected one of {known}")
    return configs.load(Table, [f"configs/{name}/study.gin"])


def load(name: str, scale: str) -> Study:
    """The study of that name in `configs/`, at that scale.

    Raises:
      ConfigError: no such study or scale, an arm that is missing, compared with none or twice in groups, a knob, a
        rate, a sweep or a group of no arm, sweeps that do not combine, or a column, task or figure that cannot be.
    """
    table, folder = declared(name), configs.ROOT / "configs" / name
    if scale not in table.seeds:
        raise configs.ConfigError(
            f"--scale={scale}: study {name} has the scales {sorted(table.seeds)}; see configs/{name}/study.gin"
        )
    _check_once(name, table)
    _check_measures(name, table)
    compared = _by_arm(name, "Table.compared", table.compared)
    for arm in table.arms:
        if not (folder / f"{arm}.gin").exists():
            raise configs.ConfigError(f"arm {arm!r} of study {name} has no file configs/{name}/{arm}.gin")
        if arm not in compared:
            raise configs.ConfigError(f"arm {arm!r} of study {name} is in none of Table.compared")
    rates = table.learning_rates.get(scale, {})
    swept = {"Table.sweeps": [arm for sweep in table.sweeps for arm in sweep.arms]}
    named = {"Table.compared": compared, "Table.knobs": table.knobs, "Table.learning_rates": rates, **swept}
    for field, arms in named.items():
        if stray := sorted(set(arms) - set(table.arms)):
            raise configs.ConfigError(
                f"{field} of study {name} names {stray[0]!r}, which is none of Table.arms"
            )
    points = _points(name, table)
    return Study(
        name=name,
        scale=scale,
        arms=table.arms,
        points=points,
        seeds=table.seeds[scale],
        compared=compared | {key: compared[arm] for key, (arm, _) in points.items()},
        baselines={together: arms[0] for together, arms in table.compared.items() if arms},
        groups=_groups(name, table, points),
        rates=rates,
        folder=f"{name}/{scale}",
        table=table,
    )


def _check_once(name: str, table: Table) -> None:
    """ConfigError where an arm, a seed, a column or a figure is declared twice."""
    declared: dict[str, Sequence[Any]] = {"Table.arms": table.arms, "Table.columns": table.columns}
    declared |= {f"Table.seeds of scale {scale}": seeds for scale, seeds in table.seeds.items()}
    declared |= {"Table.figures": [figure.name for figure in table.figures]}
    for field, values in declared.items():
        if twice := [value for value, count in collections.Counter(values).items() if count > 1]:
            raise configs.ConfigError(f"{field} of study {name} has {twice[0]!r} twice, expected it once")


def _check_measures(name: str, table: Table) -> None:
    """ConfigError where a column, a task or what a figure shows is no number of a row, or where sweeps have none that
    can be compared.
    """
    declared: dict[str, Iterable[str]] = {"Table.columns": table.columns, "Table.tasks": table.tasks}
    for spec in table.figures:
        paths = [getattr(spec, name) for name in ("metric", "x", "y") if hasattr(spec, name)]
        declared[f"figure {spec.name!r} of Table.figures"] = paths
    for field, names in declared.items():
        for one in names:
            try:
                tables.measure(one)
            except tables.TableError as error:
                raise configs.ConfigError(f"{field} of study {name}: {error}") from error
    if table.sweeps and (not table.columns or tables.measure(table.columns[0]).censored):
        raise configs.ConfigError(
            f"Table.columns of study {name} are {table.columns}: expected the first, which is that of the tables of "
            "sweeps, to have a mean"
        )


def _points(name: str, table: Table) -> dict[str, tuple[str, Point]]:
    """The arms at points of the sweeps; ConfigError where a name is that of two, or a point binds what is bound."""
    points: dict[str, tuple[str, Point]] = {}
    for sweep in table.sweeps:
        for key, (file, point) in sweep.expanded().items():
            if not point.items:  # the arm as it is
                continue
            earlier = points.setdefault(key, (file, point))[1]
            if key in table.arms or set(earlier.bindings) != set(point.bindings):
                other = "an arm of the table" if key in table.arms else f"{' and '.join(earlier.bindings)}"
                raise configs.ConfigError(
                    f"Table.sweeps of study {name}: {key!r} is the name of {' and '.join(point.bindings)} and of "
                    f"{other}; put both into one sweep, as parts of a Chain, or rename the arm"
                )
            turned = {table.knobs[file][0]: "Table.knobs turns"} if file in table.knobs else {}
            for bound, by in {**turned, "train.seed": "the seed of a cell binds"}.items():
                if any(sweeps.same(binding, bound) for binding, _ in point.items):
                    raise configs.ConfigError(
                        f"arm {key} of study {name} binds {bound}, which {by}; take it out of one"
                    )
    return points


def require_rates(planned: Study) -> None:
    """ConfigError: learning rates are to be chosen for this scale and an arm has none."""
    if planned.table.tuning is None or planned.scale in UNTUNED:
        return
    if without := [arm for arm in planned.arms if arm not in planned.rates]:
        raise configs.ConfigError(
            f"arm {without[0]} of study {planned.name} has no learning rate for scale {planned.scale}: run the same "
            f"command with --tune and put what it prints into Table.learning_rates of configs/{planned.name}/study.gin"
        )


def _by_arm(study: str, field: str, declared: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Where each arm stands; ConfigError where that is in two places."""
    found: dict[str, str] = {}
    for place, arms in declared.items():
        for arm in arms:
            if arm in found:
                raise configs.ConfigError(f"arm {arm!r} of study {study} stands twice in {field}")
            found[arm] = place
    return found


def _groups(name: str, table: Table, points: dict[str, tuple[str, Point]]) -> dict[str, tuple[str, ...]]:
    """Every arm of each group; an arm at a point of a sweep is where its own name or that of its file stands."""
    declared = table.groups or {GROUPS[0]: table.arms}
    if strange := sorted(set(declared) - set(GROUPS)):
        raise configs.ConfigError(
            f"Table.groups of study {name} has {strange[0]!r}, expected some of {GROUPS}"
        )
    of = _by_arm(name, "Table.groups", declared)
    for arm in sorted(of):
        if arm not in table.arms and arm not in points:
            raise configs.ConfigError(
                f"Table.groups of study {name} names {arm!r}, which is none of its arms"
            )
    for arm in table.arms:
        if arm not in of:
            raise configs.ConfigError(f"arm {arm!r} of study {name} is in none of Table.groups")
    of |= {key: of.get(key, of[arm]) for key, (arm, _) in points.items()}
    return {
        group: tuple(arm for arm in (*table.arms, *points) if of[arm] == group)
        for group in GROUPS
        if group in declared
    }
