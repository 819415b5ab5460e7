"""A finished cell is one small JSON row; everything reported is rebuilt from such rows."""

import dataclasses
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


class ResultError(ValueError):
    """A row, or a set of rows, that cannot be read as one study's results. One line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One measured cell: one arm with one seed, and all it needs to be believed.

    `key` hashes what determines the result: the experiment with its seed, and the data; `design` the
    same without the seed, so that all rows of an arm share it. `config` is the operative gin text.
    Losses are nats per target token, memory is bytes, time is seconds. A timing value is None where
    it was taken beside other work (parallel workers, a shared process), and may lack what is measured
    only where a table shows it. A metric is a number, or a
    mapping from labels (lengths, temperatures, ...) to numbers.

    `code` says which code it comes from (`fingerprint`), which code it was last compared with
    (`checked`) and whether the row is `stale`: "code" if that measured something else in `replay`, a
    run of a few steps, "config" if the arm is another one since, "" if neither. `rules` records the
    rules that the study had declared when the cell began, and `evaluations` a hash of each
    evaluation that was made.
    """

    study: str
    scale: str
    arm: str
    seed: int
    key: str
    design: str
    commit: str
    dirty: bool
    config: str
    code: Mapping[str, Any]
    replay: Mapping[str, Any]
    rules: Mapping[str, str]
    evaluations: Mapping[str, str]
    environment: Mapping[str, Any]
    data: Mapping[str, Any]
    budget: Mapping[str, Any]
    metrics: Mapping[str, Any]
    timing: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The row's file name."""
        return f"{self.arm}-s{self.seed}-{self.key[:12]}.json"

    def value(self, path: str) -> Any:
        """The value at a dotted path such as `metrics.loss`; KeyError if there is none. A label may have dots of its
        own (a temperature: `metrics.repetition.uniq.0.5`).
        """
        value, left = dataclasses.asdict(self), path.split(".")
        while left:
            known = value if isinstance(value, Mapping) else {}
            size = next((n for n in range(len(left), 0, -1) if ".".join(left[:n]) in known), None)
            if size is None:
                there = ", ".join(sorted(known)) or "nothing"
                raise KeyError(f"{self.name}: no value {path!r}: {left[0]!r} is not one of: {there}")
            value, left = known[".".join(left[:size])], left[size:]
        return value


_TYPES = {field.name: field.type for field in dataclasses.fields(Row)}


def save(row: Row, folder: Path | str) -> Path:
    """Writes the row into `folder`: a reader sees all of it or nothing, whatever is killed."""
    text = json.dumps(dataclasses.asdict(row), indent=2, sort_keys=True) + "\n"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / row.name
    temporary = folder / f".{row.name}.{os.getpid()}.tmp"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load(folder: Path | str) -> list[Row]:
    """All rows of a folder by arm, then seed; none if the folder does not exist yet.

    Raises ResultError for a file that is not a whole row or does not bear its row's name.
    """
    rows = [read(path) for path in sorted(Path(folder).glob("*.json"))]
    return sorted(rows, key=lambda row: (row.arm, row.seed, row.key))


def select(
    rows: Iterable[Row],
    arms: Sequence[str],
    seeds: Sequence[int],
    keys: Collection[str] | None = None,
) -> list[Row]:
    """The rows of these arms and seeds (and keys, where given), in the order of arms and seeds.

    Raises ResultError where two rows are left for one cell: which one counts is not for code to
    guess.
    """
    found: dict[tuple[str, int], Row] = {}
    for row in rows:
        if row.arm not in arms or row.seed not in seeds or (keys is not None and row.key not in keys):
            continue
        other = found.setdefault((row.arm, row.seed), row)
        if other is not row:
            raise ResultError(
                f"arm {row.arm!r} seed {row.seed}: expected one row, found {other.name} and "
                f"{row.name}; remove the stale one from results/{row.study}/{row.scale}/cells"
            )
    return [found[arm, seed] for arm in arms for seed in seeds if (arm, seed) in found]


def read(path: Path) -> Row:
    """One row; ResultError for a file that is not a whole row or does not bear its row's name."""
    remedy = "remove the file and launch the study again"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultError(f"{path}: not a JSON row ({error}); {remedy}") from None
    if not isinstance(fields, dict) or fields.keys() != _TYPES.keys():
        differing = sorted(_TYPES.keys() ^ set(fields)) if isinstance(fields, dict) else "all"
        raise ResultError(f"{path}: missing or unknown row fields: {differing}; {remedy}")
    for name, kind in _TYPES.items():
        expected = kind if isinstance(kind, type) else dict
        if type(fields[name]) is not expected:
            raise ResultError(f"{path}: {name} is {fields[name]!r}, expected {expected.__name__}; {remedy}")
    row = Row(**fields)
    if path.name != row.name:
        raise ResultError(f"{path}: holds the row of {row.name}; rename or remove the file")
    return row
