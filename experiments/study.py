"""A study: arms x seeds, and how its table is laid out. One file an arm, one `study.gin` for all of them."""

import dataclasses

from experiments import configs, experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """What `study.gin` says of a study.

    Attributes:
      arms: names of the files in the study's folder, in the order of the table.
      seeds: by scale.
      columns: measures of the table; see `research.analysis.tables.MEASURES`.
      groups: the arms that are compared with each other, by the group's name: the first is the baseline.
    """

    arms: tuple[str, ...]
    seeds: dict[str, tuple[int, ...]]
    columns: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]


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

    def experiment(self, arm: str, seed: int) -> tuple[experiment.Experiment, str]:
        """The experiment of one cell, and its operative config."""
        files = [f"configs/{self.name}/{arm}.gin", f"configs/scale/{self.scale}.gin"]
        return experiment.load(files, [f"train.seed={seed}"])


def load(name: str, scale: str) -> Study:
    """The study of that name in `configs/`, at that scale.

    Raises:
      ConfigError: no such study or scale, or an arm that is missing or in no group.
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
    )
