"""A study: arms x seeds, and how its table is laid out. One file an arm, one `study.gin` for all of them."""

import dataclasses
import functools
from typing import Literal

from experiments import configs, experiment
from research.analysis import matching
from research.analysis.budget import Budget


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """What `study.gin` says of a study.

    Attributes:
      arms: names of the files in the study's folder, in the order of the table.
      seeds: by scale.
      columns: measures of the table; see `research.analysis.tables.MEASURES`.
      groups: the arms that are compared with each other, by the group's name: the first is the baseline.
      match: what every arm of a group costs as much of as its baseline, or None.
      knobs: by arm, the integer that is turned until it does, as a gin binding without its value and what the value
        is a multiple of: ("StackConfig.hidden", 8), ("train.steps", 1). An arm without one has to cost that as it is.
    """

    arms: tuple[str, ...]
    seeds: dict[str, tuple[int, ...]]
    columns: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]
    match: Literal["params", "flops", "tokens_seen", "loss_tokens"] | None = None
    knobs: dict[str, tuple[str, int]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A study at one scale; `groups` maps each arm to its group, `baselines` each group to its baseline."""

    name: str
    scale: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    columns: tuple[str, ...]
    groups: dict[str, str]
    baselines: dict[str, str]
    match: str | None = None
    knobs: dict[str, tuple[str, int]] = dataclasses.field(default_factory=dict)

    def experiment(
        self, arm: str, seed: int, data_dir: str | None = None
    ) -> tuple[experiment.Experiment, str]:
        """The experiment of one cell, its knob turned where there is a match, and its operative config.

        Raises:
          ConfigError: an arm that cannot cost what its baseline costs.
        """
        matched = self.matched(arm, data_dir)
        bound = [] if matched is None or arm not in self.knobs else [f"{self.knobs[arm][0]}={matched.value}"]
        return _load(self.name, self.scale, arm, f"train.seed={seed}", *bound)

    def matched(self, arm: str, data_dir: str | None = None) -> matching.Match | None:
        """The arm that costs what its group's baseline costs; None where nothing is matched.

        Raises:
          ConfigError: there is none within 2 %, or the knob is no binding.
        """
        if self.match is None:
            return None
        baseline, knob = self.baselines[self.groups[arm]], self.knobs.get(arm)
        return _matched(self.name, self.scale, arm, baseline, self.match, knob, data_dir)


def _load(name: str, scale: str, arm: str, *bindings: str) -> tuple[experiment.Experiment, str]:
    return experiment.load([f"configs/{name}/{arm}.gin", f"configs/scale/{scale}.gin"], bindings)


@functools.lru_cache(maxsize=256)  # of all seeds of an arm
def _matched(
    name: str, scale: str, arm: str, base: str, by: str, knob: tuple[str, int] | None, data_dir: str | None
) -> matching.Match:
    def cost(planned: experiment.Experiment) -> Budget:
        return experiment.cost(planned.model, planned.data, data_dir)

    baseline, _ = _load(name, scale, base)
    target = matching.total(cost(baseline), baseline.steps, by)
    # Without a knob there is nothing to turn: it has to be as it should.
    binding, multiple = knob or ("its size, which no knob of Table.knobs turns,", 1)

    def turned(value: int) -> experiment.Experiment:
        return _load(name, scale, arm, *([] if knob is None else [f"{binding}={value}"]))[0]

    high = 1 if knob is None else 2**20
    try:
        return matching.turned_to(
            turned, binding, by=by, target=target, cost=cost, high=high, multiple=multiple
        )
    except ValueError as error:
        raise configs.ConfigError(f"arm {arm} of study {name}: {error}") from error


def load(name: str, scale: str) -> Study:
    """The study of that name in `configs/`, at that scale.

    Raises:
      ConfigError: no such study or scale, an arm that is missing or in no group, or a knob of no arm.
    """
    folder = configs.ROOT / "configs" / name
    if not (folder / "study.gin").exists():
        known = sorted(path.parent.name for path in configs.ROOT.glob("configs/*/study.gin"))
        raise configs.ConfigError(f"--study={name}: no configs/{name}/study.gin; expected one of {known}")
    table = configs.load(Table, [f"configs/{name}/study.gin"])
    if scale not in table.seeds:
        raise configs.ConfigError(
            f"--scale={scale}: study {name} has the scales {sorted(table.seeds)}; see configs/{name}/study.gin"
        )
    if stray := sorted(set(table.knobs) - set(table.arms)):
        raise configs.ConfigError(
            f"Table.knobs of study {name} names {stray[0]!r}, which is none of Table.arms"
        )
    groups = {arm: group for group, arms in table.groups.items() for arm in arms}
    for arm in table.arms:
        if not (folder / f"{arm}.gin").exists():
            raise configs.ConfigError(f"arm {arm!r} of study {name} has no file configs/{name}/{arm}.gin")
        if arm not in groups:
            raise configs.ConfigError(f"arm {arm!r} of study {name} is in none of Table.groups")
    return Study(
        name=name,
        scale=scale,
        arms=table.arms,
        seeds=table.seeds[scale],
        columns=table.columns,
        groups=groups,
        baselines={group: arms[0] for group, arms in table.groups.items()},
        match=table.match,
        knobs=table.knobs,
    )
