"""What a `study.gin` says, and whether it can be; gin binds it as `study.Table` and `study.Tuning`."""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from experiments import configs
from experiments.sequences import Tasks
from experiments.sweeps import Sweep
from research.analysis import tables
from research.analysis.claims import SubClaim
from research.analysis.figures import Spec
from research.analysis.frontiers import Shifts
from research.analysis.labels import Labelled
from research.evaluation.trained import Evaluation

# What is measured of a run's own held-out data.
OWN = ("metrics.loss", "metrics.bits_per_byte", "metrics.validation_loss", "metrics.validation_bits_per_byte")


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
      fewer: by group and scale, how many of them its arms run, where not all; 0: the group has none of that scale.
      columns: measures of a table; see `research.analysis.tables.MEASURES`. Any number of a row is one by its path.
        Those of an evaluation that a comparison has not are left out of its table.
      shown: by comparison, more columns of its table.
      compared: the arms that are compared with each other, by a name for them: the first is the baseline. Each
        comparison has a table, the first that of the study; all its arms have as many seeds.
      groups: the comparisons of "headline", "core" and "extended", or single arms of theirs; the last is only run when
        asked for. {}: all are headline.
      varied: whether arms are trained on different data on purpose; then what compares is what evaluations measure of
        text that they name, and no table has the loss on a run's own.
      match: by comparison, what its arms cost as much of as their baseline; in one without, they cost what they cost.
      knobs: by arm, the integer that is turned until it does, as a gin binding without its value and what the value
        is a multiple of: ("StackConfig.hidden", 8), ("train.steps", 1). An arm without one has to cost that as it is.
      data: by comparison, the gin file with the data of all its arms, which is read after that of the scale; in one
        without, they have the data of the scale.
      evaluations: what is measured of a trained arm beside its loss, by name.
      measured: by comparison, the names of the evaluations of its arms; in one without, all.
      sweeps: arms at the points of a sweep; each is a cell of its own, called arm@point.
      tuning: how learning rates are chosen, or None: they are what the files say.
      learning_rates: by scale and arm, what was chosen.
      claims: sub-claims that the study decides, by rules that are written before it runs.
      figures: what is drawn of its rows.
      shifts: what of the arms is classified beside a frontier; see `research.analysis.frontiers`.
      sequences: tasks that are learned one after another; see `experiments.sequences`.
      labelled: tables of what one arm's evaluation measured by label; see `research.analysis.labels`.
      tasks: numbers that are summed up in one more table, by path, and which is better; see
        `research.analysis.aggregate`.
    """

    arms: tuple[str, ...]
    seeds: dict[str, tuple[int, ...]]
    columns: tuple[str, ...]
    compared: dict[str, tuple[str, ...]]
    fewer: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    shown: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    groups: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    varied: bool = False
    match: dict[str, Literal["params", "flops", "tokens_seen", "loss_tokens"]] = dataclasses.field(
        default_factory=dict
    )
    knobs: dict[str, tuple[str, int]] = dataclasses.field(default_factory=dict)
    data: dict[str, str] = dataclasses.field(default_factory=dict)
    evaluations: dict[str, Evaluation] = dataclasses.field(default_factory=dict)
    measured: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    sweeps: tuple[Sweep, ...] = ()
    tuning: Tuning | None = None
    learning_rates: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    claims: tuple[SubClaim, ...] = ()
    figures: tuple[Spec, ...] = ()
    shifts: tuple[Shifts, ...] = ()
    sequences: tuple[Tasks, ...] = ()
    labelled: tuple[Labelled, ...] = ()
    tasks: dict[str, Literal["higher", "lower"]] = dataclasses.field(default_factory=dict)


def declared(name: str) -> Table:
    """What `study.gin` of the study of that name in `configs/` says.

    Raises:
      ConfigError: no such study.
    """
    if not (configs.ROOT / "configs" / name / "study.gin").exists():
        known = sorted(path.parent.name for path in configs.ROOT.glob("configs/*/study.gin"))
        raise configs.ConfigError(f"--study={name}: no configs/{name}/study.gin; expected one of {known}")
    return configs.load(Table, [f"configs/{name}/study.gin"])


def check_once(name: str, table: Table) -> None:
    """ConfigError where an arm, a seed, a column, a table or a figure is declared twice."""
    declared: dict[str, Sequence[Any]] = {"Table.arms": table.arms, "Table.columns": table.columns}
    declared |= {f"Table.seeds of scale {scale}": seeds for scale, seeds in table.seeds.items()}
    named = [spec.name for spec in (*table.shifts, *table.sequences, *table.labelled)]
    declared |= {"Table.compared, .shifts, .sequences and .labelled": [*table.compared, *named]}
    declared |= {"Table.figures": [figure.name for figure in table.figures]}
    for field, values in declared.items():
        if twice := [value for value, count in collections.Counter(values).items() if count > 1]:
            raise configs.ConfigError(f"{field} of study {name} has {twice[0]!r} twice, expected it once")


def check_measures(name: str, table: Table) -> None:
    """ConfigError where a column, a task or what a figure shows is no number of a row, or where sweeps have none that
    can be compared.
    """
    declared: dict[str, Iterable[str]] = {"Table.columns": table.columns, "Table.tasks": table.tasks}
    declared |= {f"Table.shown[{together!r}]": names for together, names in table.shown.items()}
    declared |= {f"Table.shifts {spec.name!r}": (spec.learned, spec.forgotten) for spec in table.shifts}
    declared |= {f"Table.sequences {spec.name!r}": spec.losses for spec in table.sequences}
    declared |= {f"Table.labelled {spec.name!r}": spec.paths for spec in table.labelled}
    declared |= {f"figure {spec.name!r} of Table.figures": spec.paths for spec in table.figures}
    for field, names in declared.items():
        for one in names:
            try:
                tables.measure(one)
            except tables.TableError as error:
                raise configs.ConfigError(f"{field} of study {name}: {error}") from error
    own = [one for names in declared.values() for one in names if tables.measure(one).path in OWN]
    if table.varied and own:
        raise configs.ConfigError(
            f"Table.varied of study {name}, but {own[0]!r} is of what each run is trained on; name what an evaluation "
            "measures of one text"
        )
    if table.sweeps and (not table.columns or tables.measure(table.columns[0]).censored):
        raise configs.ConfigError(
            f"Table.columns of study {name} are {table.columns}: expected the first, which is that of the tables of "
            "sweeps, to have a mean"
        )
