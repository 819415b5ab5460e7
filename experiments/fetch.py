"""Download and verify the data archives: `python -m experiments.fetch [--what=NAME]`."""

import difflib
import sys

from absl import app, flags
from rich.console import Console

from research.data.catalog import CATALOG, CatalogError, Entry, fetch

DEFAULT = ("factbook",)

WHAT = flags.DEFINE_string(
    "what", "default", f"default ({', '.join(DEFAULT)}), all, or one of: {', '.join(CATALOG)}."
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Data folder; default: RESEARCH_DATA_DIR, else a folder in your cache."
)
OFFLINE = flags.DEFINE_bool("offline", False, "Only check what is there; download nothing.")


def selected(what: str) -> list[Entry]:
    """The entries that `--what` names; raises a CatalogError that suggests the nearest name."""
    groups = {"default": DEFAULT, "all": tuple(CATALOG)} | {name: (name,) for name in CATALOG}
    if what not in groups:
        nearest = difflib.get_close_matches(what, groups, n=1, cutoff=0)[0]
        raise CatalogError(
            f"--what={what} is unknown, did you mean {nearest}? Expected one of {', '.join(groups)}"
        )
    return [CATALOG[name] for name in groups[what]]


def main(argv: list[str]) -> int:
    """Fetch the selected entries and print a line for each; returns the exit code."""
    # Long lines stay whole, and no path or licence is taken for markup.
    console = Console(soft_wrap=True, markup=False, highlight=False)
    try:
        if len(argv) > 1:
            raise CatalogError(f"argument {argv[1]!r} is not a flag; did you mean --what={argv[1]}")
        for entry in selected(WHAT.value):
            with console.status(f"{entry.name}: checking") as status:
                path = fetch(entry, data_dir=DATA_DIR.value, offline=OFFLINE.value, report=status.update)
            size = path.stat().st_size / 1e6
            console.print(f"{entry.name}  {size:.1f} MB  {entry.licence}  {path}")
    except CatalogError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing unfinished was kept, run it again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    app.run(main)
