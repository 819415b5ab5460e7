"""A study: arms x seeds x evaluations, and what follows from them. One file an arm, one `study.gin` for all of them."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterable

from experiments import configs, declaration, experiment, sweeps
from experiments.declaration import Table as Table
from experiments.declaration import Tuning as Tuning
from experiments.declaration import declared as declared
from experiments.sweeps import Point, Sweep, Values
from research.analysis import claims, matching, tables
from research.analysis.budget import Budget
from research.evaluation.trained import Evaluation

GROUPS = ("headline", "core", "extended")
MINUTES = {
    "headline": 30.0,
    "core": 120.0,
}  # at most, of the scale `small` on two cores; core includes headline
UNTUNED = ("smoke",)  # scales that claim nothing, so that no learning rate is chosen for them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A study at one scale.

    Attributes:
      name, scale: which.
      arms: those of the table.
      points: of arms that stand at a point of a sweep, their file and the point.
      seeds: of this scale; see `seeds_of`.
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
        files = self._files(file, self.compared[arm])
        return experiment.load(files, (*bindings, *turned, f"train.seed={seed}"))

    def deterministic(self, arms: Iterable[str]) -> bool:
        """Whether some of these arms ask for sums in the same order every time.

        It looks for no device, since that has to be known before. An arm that cannot be loaded is left out.
        """
        found = []
        for arm in arms:
            file, bindings = self._bound(arm)
            with contextlib.suppress(ValueError, OSError):  # as will be seen
                files = self._files(file, self.compared[arm])
                found.append(experiment.load(files, bindings)[0].deterministic)
        return any(found)

    def matched(self, arm: str, data_dir: str | None = None) -> matching.Match | None:
        """The arm that costs what its baseline costs; None where nothing is matched.

        Raises:
          ConfigError: there is none within 2 %, or the knob is no binding.
        """
        if (by := self.matches(arm)) is None:
            return None
        (file, bindings), together = self._bound(arm), self.compared[arm]
        own, base = (self._files(one, together) for one in (file, self.baselines[together]))
        try:
            return _matched(own, bindings, base, by, self.table.knobs.get(file), data_dir)
        except ValueError as error:
            raise configs.ConfigError(f"arm {file} of study {self.name}: {error}") from error

    def evaluations(self, arm: str) -> dict[str, Evaluation]:
        """What is measured of the arm, by name."""
        named = self.table.evaluations
        return {name: named[name] for name in self.table.measured.get(self.compared[arm], named)}

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        """The seeds that the arm runs."""
        group = next(group for group, arms in self.groups.items() if arm in arms)
        return self.seeds[: self.table.fewer.get(group, {}).get(self.scale)]

    @property
    def known_seeds(self) -> dict[str, tuple[int, ...]]:
        """The seeds of every arm."""
        return {arm: self.seeds_of(arm) for arms in self.groups.values() for arm in arms}

    @property
    def fewer(self) -> dict[str, tuple[int, ...]]:
        """The seeds of the arms that run not all of them."""
        arms = (arm for arms in self.groups.values() for arm in arms)
        return {arm: own for arm in arms if (own := self.seeds_of(arm)) != self.seeds}

    @property
    def rules(self) -> dict[str, str]:
        """What its rows record of its claims, however many seeds are run; see `claims.declared`."""
        whole = dataclasses.replace(self, seeds=self.table.seeds[self.scale])
        return claims.declared(self.table.claims, whole.seeds, whole.fewer)

    @property
    def comparisons(self) -> dict[str, tuple[str, ...]]:
        """The arms of each comparison, in their order, but those at points of a sweep."""
        return {
            together: tuple(arm for arm in self.arms if self.compared[arm] == together)
            for together in self.baselines
        }

    def columns(self, together: str) -> tuple[str, ...]:
        """The columns of a comparison's table, without those of evaluations that its arms do not get."""
        lacking = self.table.evaluations.keys() - set(
            self.table.measured.get(together, self.table.evaluations)
        )
        common = (name for name in self.table.columns if not _is_of(name, lacking))
        return (*common, *self.table.shown.get(together, ()))

    def matches(self, arm: str) -> str | None:
        """What the arm costs as much of as its baseline, or None."""
        return self.table.match.get(self.compared[arm])

    def knob(self, arm: str) -> str | None:
        """The binding that is turned to match the arm."""
        return self.table.knobs.get(self.file(arm), (None,))[0]

    def file(self, arm: str) -> str:
        """The name of the arm's file."""
        return self.points[arm][0] if arm in self.points else arm

    def _files(self, file: str, together: str) -> tuple[str, ...]:
        """The gin files of an experiment of that comparison; the last one decides."""
        data = self.table.data.get(together)
        own = (f"configs/{self.name}/{file}.gin", f"configs/scale/{self.scale}.gin")
        return own if data is None else (*own, data)

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
            points=self.points | points,
            seeds=(self.table.tuning.seed,),
            compared=self.compared | {name: self.compared[file] for name, (file, _) in points.items()},
            groups={"headline": (*self.compared, *points)},
            folder=f"{self.folder}/tuning",
            table=dataclasses.replace(
                self.table, evaluations={}, measured={}, fewer={}, claims=(), figures=(), sweeps=(), tasks={}
            ),
        )


@functools.lru_cache(maxsize=256)  # of all seeds of an arm
def _matched(
    files: tuple[str, ...],
    bindings: tuple[str, ...],
    base: tuple[str, ...],
    by: str,
    knob: tuple[str, int] | None,
    data_dir: str | None,
) -> matching.Match:
    """The arm of these files, at the cost of that of the others. ValueError: there is none."""

    def cost(planned: experiment.Experiment) -> Budget:
        return experiment.cost(planned.model, planned.data, data_dir)

    baseline, _ = experiment.load(base)
    target = matching.total(cost(baseline), baseline.steps, by)
    # Without a knob there is nothing to turn: it has to be as it should.
    binding, multiple = knob or ("its size, which no knob of Table.knobs turns,", 1)

    def turned(value: int) -> experiment.Experiment:
        turn = [] if knob is None else [f"{binding}={value}"]
        return experiment.load(files, (*bindings, *turn))[0]

    high = 1 if knob is None else 2**20
    return matching.turned_to(turned, binding, by=by, target=target, cost=cost, high=high, multiple=multiple)


def _is_of(column: str, evaluations: Iterable[str]) -> bool:
    """Whether a column is a number of one of these evaluations."""
    return any(tables.measure(column).path.startswith(f"metrics.{name}.") for name in evaluations)


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
    declaration.check_once(name, table)
    declaration.check_measures(name, table)
    compared = _by_arm(name, "Table.compared", table.compared)
    for arm in table.arms:
        if not (folder / f"{arm}.gin").exists():
            raise configs.ConfigError(f"arm {arm!r} of study {name} has no file configs/{name}/{arm}.gin")
        if arm not in compared:
            raise configs.ConfigError(f"arm {arm!r} of study {name} is in none of Table.compared")
    of_comparisons = {name: getattr(table, name) for name in ("match", "data", "measured", "shown")}
    for field, named in of_comparisons.items():
        if stray := sorted(set(named) - set(table.compared)):
            raise configs.ConfigError(
                f"Table.{field} of study {name} names {stray[0]!r}, expected some of Table.compared: "
                f"{list(table.compared)}"
            )
    if stray := sorted(set().union(*table.measured.values()) - set(table.evaluations)):
        raise configs.ConfigError(
            f"Table.measured of study {name} names {stray[0]!r}, expected some of Table.evaluations: "
            f"{list(table.evaluations)}"
        )
    rates = table.learning_rates.get(scale, {})
    swept = {"Table.sweeps": [arm for sweep in table.sweeps for arm in sweep.arms]}
    named = {"Table.compared": compared, "Table.knobs": table.knobs, "Table.learning_rates": rates, **swept}
    for field, arms in named.items():
        if stray := sorted(set(arms) - set(table.arms)):
            raise configs.ConfigError(
                f"{field} of study {name} names {stray[0]!r}, which is none of Table.arms"
            )
    points = _points(name, table)
    found = Study(
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
    _check_seeds(found)
    return found


def _check_seeds(planned: Study) -> None:
    """ConfigError where arms that are compared have not the same seeds, or a group has more than there are."""
    name, fewer = planned.name, planned.table.fewer
    for group, by_scale in fewer.items():
        if group not in planned.groups or not set(by_scale) <= set(planned.table.seeds):
            raise configs.ConfigError(
                f"Table.fewer of study {name} has {group!r}: {by_scale}, expected some of {list(planned.groups)}, each "
                f"with some of the scales {sorted(planned.table.seeds)}"
            )
        few = by_scale.get(planned.scale, 0)
        if not 0 <= few <= len(planned.seeds):
            raise configs.ConfigError(
                f"Table.fewer of study {name} has {few} for {group} at {planned.scale}, expected 0 to the "
                f"{len(planned.seeds)} of Table.seeds"
            )
    for together, arms in planned.comparisons.items():
        if len({planned.seeds_of(arm) for arm in arms}) > 1:
            raise configs.ConfigError(
                f"arms {', '.join(arms)} of study {name} are compared as {together!r} but have not the same seeds; put "
                "them into one of Table.groups"
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


def require_rates(planned: Study, arms: Iterable[str]) -> None:
    """ConfigError: learning rates are to be chosen for this scale and one of these arms has none."""
    if planned.table.tuning is None or planned.scale in UNTUNED:
        return
    if without := [arm for arm in arms if planned.file(arm) not in planned.rates]:
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
    declared = {
        group: tuple(
            arm for one in names for arm in ((one,) if one in table.arms else table.compared.get(one, (one,)))
        )
        for group, names in (table.groups or {GROUPS[0]: table.arms}).items()
    }
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
